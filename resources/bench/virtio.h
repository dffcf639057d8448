/* A driver of virtio-mmio devices and split queues (Virtio 1.2 §2.7, §4.2), as small as it gets. */
#include "guest.h"

#define FIRST_DEVICE 0xd0000000u /* mvm has a page for each from here on */
#define DEVICES 16
#define INDIRECT_DESC 28
#define EVENT_IDX 29
#define VERSION_1 32

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

#define QUEUE_MAX 256

struct avail {
    uint16_t flags, index, ring[QUEUE_MAX], used_event;
};

struct used {
    uint16_t flags, index;
    struct {
        uint32_t id, length;
    } ring[QUEUE_MAX];
    uint16_t avail_event;
};

/* A queue of QUEUE_MAX entries, and how far each side has come. */
struct queue {
    struct descriptor descriptors[QUEUE_MAX];
    struct avail avail;
    struct used used __attribute__((aligned(64)));
    volatile uint32_t *doorbell;
    uint16_t number, added, kicked, seen;
} __attribute__((aligned(4096)));

static inline volatile uint32_t *reg(uint32_t device, uint32_t offset)
{
    return (volatile uint32_t *)(uintptr_t)(device + offset);
}

/* The first device of a kind, acknowledged, with exactly these features. */
static uint32_t find_device(uint32_t kind, uint64_t features)
{
    for (uint32_t device = FIRST_DEVICE; device < FIRST_DEVICE + DEVICES * 0x1000; device += 0x1000) {
        if (*reg(device, 0x00) != 0x74726976 || *reg(device, 0x08) != kind)
            continue;
        *reg(device, 0x70) = 0;
        *reg(device, 0x70) = 1 | 2; /* ACKNOWLEDGE, DRIVER */
        for (uint32_t half = 0; half < 2; half++) {
            *reg(device, 0x24) = half;
            *reg(device, 0x20) = features >> (32 * half);
        }
        *reg(device, 0x70) = 1 | 2 | 8; /* FEATURES_OK */
        if (!(*reg(device, 0x70) & 8))
            give_up('f');
        return device;
    }
    give_up('d');
    return 0;
}

static void set_up_queue(uint32_t device, uint16_t number, struct queue *queue)
{
    *reg(device, 0x30) = number;
    if (*reg(device, 0x34) < QUEUE_MAX)
        give_up('q');
    *reg(device, 0x38) = QUEUE_MAX;
    *reg(device, 0x80) = (uint32_t)(uintptr_t)queue->descriptors;
    *reg(device, 0x84) = 0;
    *reg(device, 0x90) = (uint32_t)(uintptr_t)&queue->avail;
    *reg(device, 0x94) = 0;
    *reg(device, 0xa0) = (uint32_t)(uintptr_t)&queue->used;
    *reg(device, 0xa4) = 0;
    *reg(device, 0x44) = 1;
    queue->doorbell = reg(device, 0x50);
    queue->number = number;
    /* No interrupts, with EVENT_IDX or without. */
    queue->avail.flags = 1;
    queue->avail.used_event = 0x8000;
}

static void start_device(uint32_t device)
{
    *reg(device, 0x70) = 1 | 2 | 4 | 8; /* DRIVER_OK */
    if (*reg(device, 0x70) & 64)
        give_up('r');
}

/* Makes a chain available; the device may see it from now on. */
static inline void add(struct queue *queue, uint16_t head)
{
    queue->avail.ring[queue->added % QUEUE_MAX] = head;
    queue->added++;
    __atomic_store_n(&queue->avail.index, queue->added, __ATOMIC_RELEASE);
}

/* Rings where the device asked for it (§2.7.10: EVENT_IDX is negotiated by all guests here). */
static inline void kick(struct queue *queue)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t event = __atomic_load_n(&queue->used.avail_event, __ATOMIC_RELAXED);
    if ((uint16_t)(queue->added - event - 1) < (uint16_t)(queue->added - queue->kicked))
        *queue->doorbell = queue->number;
    queue->kicked = queue->added;
}

/* Whether chains came back that were not taken yet. */
static inline int has_used(struct queue *queue)
{
    return __atomic_load_n(&queue->used.index, __ATOMIC_ACQUIRE) != queue->seen;
}

/* The next chain that came back: its head. */
static inline uint16_t take(struct queue *queue)
{
    uint16_t head = queue->used.ring[queue->seen % QUEUE_MAX].id;
    queue->seen++;
    /* An interrupt would come half way round the index. */
    queue->avail.used_event = queue->seen + 0x8000;
    return head;
}
