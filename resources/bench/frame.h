/* The frame that is sent all the time: TCP over IPv4 to somebody else, which nobody on the way looks into. */
#include <stdint.h>

#define HEADER 12 /* struct virtio_net_hdr_v1 */
#define SEGMENT 1448
#define RECEIVED_MAX 4096

/* Bytes of a buffer to receive into, as Linux has it: for a short frame, or pages where frames are long, several for one. */
static inline uint32_t receive_room(uint32_t size)
{
    return size > 1514 ? RECEIVED_MAX : 1536;
}

/* A header and a frame of so many bytes; one that is longer than Ethernet's is left to be cut (Virtio 1.2 §5.1.6.2). */
static inline void make_frame(volatile uint8_t *buffer, uint32_t size)
{
    static const uint8_t start[] = {
        2, 0, 0, 0, 0, 2,  2, 0, 0, 0, 0, 1,  8, 0,                           /* to, from, IPv4 */
        0x45, 0, 0, 0,  0, 0, 0x40, 0,  64, 6, 0, 0,  10, 255, 0, 1,  10, 255, 0, 2, /* 20 bytes, do not cut, TCP */
        0, 1, 0, 2,  0, 0, 0, 0,  0, 0, 0, 0,  0x50, 0x10, 1, 0,  0, 0, 0, 0, /* 20 bytes, ACK */
    };
    volatile uint8_t *frame = buffer + HEADER;
    for (uint32_t i = 0; i < HEADER; i++)
        buffer[i] = 0;
    for (uint32_t i = 0; i < size; i++)
        frame[i] = i < sizeof start ? start[i] : 0;
    frame[16] = (size - 14) >> 8;
    frame[17] = size - 14;
    uint32_t sum = 0;
    for (uint32_t i = 14; i < 34; i += 2)
        sum += frame[i] << 8 | frame[i + 1];
    sum = ~((sum & 0xffff) + (sum >> 16));
    frame[24] = sum >> 8;
    frame[25] = sum;
    if (size > 1514) {
        buffer[0] = 1; /* flags: the checksum is missing */
        buffer[1] = 1; /* gso_type: TCP over IPv4 */
        buffer[2] = sizeof start;
        buffer[4] = SEGMENT & 0xff;
        buffer[5] = SEGMENT >> 8;
        buffer[6] = 34; /* csum_start, and the offset from there */
        buffer[8] = 16;
    }
}
