/*
 * Sends or receives frames as fast as the card takes or brings them. `send= size= count=` come on the command line; who
 * receives says 'r' when the card is ready and waits for a byte. '<' is said when it begins, '>' after the last frame.
 */
#include "frame.h"
#include "virtio.h"

#define NET 1

static struct queue receive, transmit;
static uint8_t sent[HEADER + 65536] __attribute__((aligned(4096)));
static uint8_t received[QUEUE_MAX][RECEIVED_MAX] __attribute__((aligned(4096)));

static void send_all(uint64_t size, uint64_t count)
{
    make_frame(sent, size);
    for (uint16_t slot = 0; slot < QUEUE_MAX; slot++)
        transmit.descriptors[slot] = (struct descriptor){(uintptr_t)sent, HEADER + size, 0, 0};
    uint64_t given = 0, back = 0;
    say('<');
    for (; given < QUEUE_MAX && given < count; given++)
        add(&transmit, given);
    kick(&transmit);
    while (back < count) {
        while (!has_used(&transmit))
            pause();
        do {
            uint16_t slot = take(&transmit);
            back++;
            if (given < count) {
                add(&transmit, slot);
                given++;
            }
        } while (has_used(&transmit));
        kick(&transmit);
    }
    say('>');
}

static void receive_all(uint64_t size, uint64_t count)
{
    uint32_t room = receive_room(size);
    for (uint16_t slot = 0; slot < QUEUE_MAX; slot++) {
        *(volatile uint8_t *)received[slot] = 0; /* the host has no memory for a page before it is used */
        receive.descriptors[slot] = (struct descriptor){(uintptr_t)received[slot], room, WRITE, 0};
    }
    uint64_t frames = 0;
    uint32_t parts = 0;
    say('r');
    while (!(in8(LINE_STATUS) & 1))
        ;
    say('<');
    for (uint16_t slot = 0; slot < QUEUE_MAX; slot++)
        add(&receive, slot);
    kick(&receive);
    while (frames < count) {
        while (!has_used(&receive))
            pause();
        do {
            uint16_t slot = take(&receive);
            if (!parts)
                parts = *(volatile uint16_t *)(received[slot] + 10); /* num_buffers */
            if (!--parts)
                frames++;
            add(&receive, slot);
        } while (has_used(&receive));
        kick(&receive);
    }
    say('>');
}

void guest(const uint8_t *boot_params)
{
    const char *line = command_line(boot_params);
    uint64_t size = number(line, "size"), count = number(line, "count");
    /* Checksums and segmentation either way, mergeable receive buffers. */
    uint64_t features = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15;
    uint32_t device = find_device(NET, 1ull << VERSION_1 | 1ull << EVENT_IDX | features);
    set_up_queue(device, 0, &receive);
    set_up_queue(device, 1, &transmit);
    start_device(device);
    if (size > 65536)
        give_up('a');
    if (number(line, "send"))
        send_all(size, count);
    else
        receive_all(size, count);
}
