/*
 * The floor for the card of `cargo xtask bench`, and who sends to it: frames through a tap, with nothing around.
 *
 * tap send NAME SIZE COUNT      makes a tap and writes so many frames to it
 * tap receive NAME SIZE COUNT   makes a tap, says 'r', and when a byte comes on standard input reads so many frames
 * tap fill NAME SIZE COUNT      puts so many frames into the queue of a tap that is there, for its reader to find
 *
 * The first two say '<' before the first frame and '>' after the last.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "frame.h"
#include "host.h"

#define BUFFERS 256 /* as many as the guest has */

static uint8_t buffer[HEADER + 65536];
static uint8_t received[BUFFERS][RECEIVED_MAX] __attribute__((aligned(4096)));

static void set_up(const char *name, int queue)
{
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (queue) {
        request.ifr_qlen = queue;
        if (ioctl(fd, SIOCSIFTXQLEN, &request) < 0)
            fail("SIOCSIFTXQLEN");
    } else {
        if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
            fail("SIOCGIFFLAGS");
        request.ifr_flags |= IFF_UP;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            fail("SIOCSIFFLAGS");
    }
    close(fd);
}

/* A tap as mvm has it: with the virtio header, and offloads. */
static int make(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = HEADER, fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0)
        fail("/dev/net/tun");
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        fail("TUNSETIFF");
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
        fail("the tap's offloads");
    set_up(name, 0);
    return fd;
}

static void fill(const char *name, size_t size, long count)
{
    int one = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name), .sll_protocol = htons(0x800)};
    /* Its header has two bytes less than a tap's. */
    uint8_t *start = buffer + 2;
    memmove(start, buffer, HEADER - 2);
    set_up(name, count + 64);
    if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) < 0)
        fail("a packet socket");
    for (long i = 0; i < count; i++)
        if (sendto(fd, start, HEADER - 2 + size, 0, (struct sockaddr *)&to, sizeof to) < 0)
            fail("sendto");
}

/* Into the next buffers of the ring that the guest has, as many as a frame takes. */
static void receive_all(int fd, size_t size, long count)
{
    size_t room = receive_room(size), parts = (HEADER + size + room - 1) / room;
    struct iovec vectors[BUFFERS];
    if (parts > BUFFERS)
        exit(2);
    memset(received, 1, sizeof received);
    say('<');
    for (long i = 0, next = 0; i < count; i++) {
        for (size_t part = 0; part < parts; part++, next = (next + 1) % BUFFERS)
            vectors[part] = (struct iovec){received[next], room};
        if (readv(fd, vectors, parts) < 0)
            fail("readv");
    }
    say('>');
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: tap send|receive|fill NAME SIZE COUNT\n");
        return 2;
    }
    const char *name = argv[2];
    size_t size = atol(argv[3]);
    long count = atol(argv[4]);
    if (size > sizeof buffer - HEADER)
        return 2;
    make_frame(buffer, size);
    if (!strcmp(argv[1], "fill")) {
        fill(name, size, count);
        return 0;
    }
    int fd = make(name);
    if (!strcmp(argv[1], "send")) {
        struct iovec vector = {buffer, HEADER + size};
        say('<');
        for (long i = 0; i < count; i++)
            if (writev(fd, &vector, 1) < 0)
                fail("writev");
        say('>');
    } else {
        char go;
        say('r');
        if (read(0, &go, 1) != 1)
            return 1;
        receive_all(fd, size, count);
    }
    return 0;
}
