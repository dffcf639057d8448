/*
 * Reads or writes a disk as fio does: so many requests of a size, so many of them under way at once, one after the other
 * or anywhere. `write= random= size= depth= buffers= count= blocks= seed=` come on the command line; '<' is said when the
 * first one goes out, '>' when the last one is back. There may be fewer buffers than requests under way, as what is read
 * is not looked at: fio with plain calls has one, which stays in the processor's cache.
 */
#include "virtio.h"

#define BLOCK 2
#define FLUSH 9 /* without it each write is made durable */
#define DEPTH_MAX 64
#define LARGEST (128 << 10)

struct request {
    uint32_t type, reserved;
    uint64_t sector;
    struct descriptor table[3]; /* as Linux has it: one entry of the ring, and a table for each request */
    uint8_t status;
} __attribute__((aligned(64)));

static struct queue queue;
static struct request requests[DEPTH_MAX];
static uint8_t memory[DEPTH_MAX * LARGEST] __attribute__((aligned(4096)));
static uint64_t size, buffers, blocks, next, state;
static uint32_t random;

static void prepare(uint16_t slot, uint32_t write)
{
    struct request *request = &requests[slot];
    struct descriptor *table = request->table;
    request->type = write;
    request->status = 0xff;
    table[0] = (struct descriptor){(uintptr_t)request, 16, NEXT, 1};
    table[1] = (struct descriptor){(uintptr_t)(memory + slot % buffers * size), size, NEXT | (write ? 0 : WRITE), 2};
    table[2] = (struct descriptor){(uintptr_t)&request->status, 1, WRITE, 0};
    queue.descriptors[slot] = (struct descriptor){(uintptr_t)table, sizeof request->table, INDIRECT, 0};
}

/* Where the next one goes: xorshift64, cut to the number of blocks without a division. */
static uint64_t next_block(void)
{
    if (!random)
        return next++ % blocks;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 32) * blocks >> 32;
}

static void submit(uint16_t slot)
{
    requests[slot].sector = next_block() * (size / 512);
    add(&queue, slot);
}

/* So many requests, with `depth` under way. */
static void run(uint64_t count, uint64_t depth)
{
    uint64_t sent = 0, back = 0;
    for (; sent < depth && sent < count; sent++)
        submit(sent);
    kick(&queue);
    while (back < count) {
        while (!has_used(&queue))
            pause();
        do {
            uint16_t slot = take(&queue);
            if (requests[slot].status)
                give_up('s');
            back++;
            if (sent < count) {
                submit(slot);
                sent++;
            }
        } while (has_used(&queue));
        kick(&queue);
    }
}

void guest(const uint8_t *boot_params)
{
    const char *line = command_line(boot_params);
    uint64_t depth = number(line, "depth"), count = number(line, "count");
    size = number(line, "size");
    buffers = number(line, "buffers");
    blocks = number(line, "blocks");
    state = number(line, "seed") | 1;
    random = number(line, "random");
    if (!depth || depth > DEPTH_MAX || size > LARGEST || !buffers || !blocks)
        give_up('a');
    uint32_t device = find_device(BLOCK, 1ull << VERSION_1 | 1ull << EVENT_IDX | 1ull << INDIRECT_DESC | 1ull << FLUSH);
    set_up_queue(device, 0, &queue);
    start_device(device);
    for (uint16_t slot = 0; slot < depth; slot++)
        prepare(slot, number(line, "write"));
    run(4 * depth, depth); /* every page has been touched */
    say('<');
    run(count, depth);
    say('>');
}
