/*
 * A stream to port 52 of the host. `mode= size= count=` come on the command line: 1 sends so many packets of a size,
 * 2 receives as many bytes, 3 sends a packet, waits for one to come back, and so on. '<' is said when the stream is
 * there, '>' when all is done.
 */
#include "stream.h"
#include "virtio.h"

#define VSOCK 19
#define HOST 2
#define PORT 52
#define PACKET_MAX 65536
#define WINDOW (1 << 20)
#define LEAST (4096 - HEADER) /* room for data in a buffer: Linux has one of a page with the header */

enum { REQUEST = 1, RESPONSE, RESET, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST };

struct packet {
    uint64_t from, to;
    uint32_t from_port, to_port, length;
    uint16_t type, op;
    uint32_t flags, window, taken;
    uint8_t data[PACKET_MAX];
} __attribute__((packed, aligned(64)));

#define HEADER 44

static struct queue receive, transmit;
static struct packet sent[SENT], received[RECEIVED];
static uint16_t unused[SENT], unused_count;
static uint64_t cid;
static uint32_t peer_window, peer_taken, given, taken, told;
static uint64_t got;
static int connected;

/* Gives the host's packets back, and takes ours. */
static void look(void)
{
    while (has_used(&transmit))
        unused[unused_count++] = take(&transmit);
    int any = 0;
    while (has_used(&receive)) {
        uint16_t slot = take(&receive);
        volatile struct packet *packet = &received[slot];
        if (packet->op == RESET || packet->op == SHUTDOWN)
            give_up('c');
        if (packet->op == RESPONSE)
            connected = 1;
        peer_window = packet->window;
        peer_taken = packet->taken;
        if (packet->op == DATA) {
            got += packet->length;
            taken += packet->length;
        }
        add(&receive, slot);
        any = 1;
    }
    if (any)
        kick(&receive);
}

static void send(uint16_t op, uint32_t length)
{
    while (!unused_count)
        look();
    uint16_t slot = unused[--unused_count];
    struct packet *packet = &sent[slot];
    packet->op = op;
    packet->length = length;
    packet->taken = told = taken;
    transmit.descriptors[slot].length = HEADER + length;
    given += length;
    add(&transmit, slot);
    kick(&transmit);
}

/* Waits until the host has room for so many bytes. */
static void wait_for_room(uint32_t length)
{
    while (peer_window - (given - peer_taken) < length || peer_window < given - peer_taken) {
        look();
        pause();
    }
}

static void run(uint32_t mode, uint32_t size, uint64_t count)
{
    for (uint64_t i = 1; i <= count; i++) {
        if (mode != 2) {
            wait_for_room(size);
            send(DATA, size);
        }
        while (mode != 1 && got < i * size) {
            look();
            pause();
            if (taken - told > WINDOW / 4)
                send(CREDIT_UPDATE, 0);
        }
    }
    while (unused_count < SENT)
        look();
}

void guest(const uint8_t *boot_params)
{
    const char *line = command_line(boot_params);
    uint32_t mode = number(line, "mode"), size = number(line, "size");
    if (!mode || !size || size > PACKET_MAX)
        give_up('a');
    uint32_t device = find_device(VSOCK, 1ull << VERSION_1 | 1ull << EVENT_IDX | 1);
    cid = *reg(device, 0x100);
    set_up_queue(device, 0, &receive);
    set_up_queue(device, 1, &transmit);
    start_device(device);
    uint32_t room = size > LEAST ? size : LEAST;
    for (uint16_t slot = 0; slot < RECEIVED; slot++) {
        receive.descriptors[slot] = (struct descriptor){(uintptr_t)&received[slot], HEADER + room, WRITE, 0};
        add(&receive, slot);
    }
    kick(&receive);
    for (uint16_t slot = 0; slot < SENT; slot++) {
        transmit.descriptors[slot] = (struct descriptor){(uintptr_t)&sent[slot], HEADER, 0, 0};
        struct packet *packet = &sent[slot];
        packet->from = cid;
        packet->to = HOST;
        packet->from_port = 1024;
        packet->to_port = PORT;
        packet->type = 1;
        packet->window = WINDOW;
        unused[unused_count++] = slot;
    }
    send(REQUEST, 0);
    while (!connected)
        look();
    say('<');
    run(mode, size, number(line, "count"));
    say('>');
}
