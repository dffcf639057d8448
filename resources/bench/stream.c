/*
 * The floor for streams of `cargo xtask bench`: a socketpair between two threads, which copies each byte in and out once,
 * as a guest's stream does. And its other end: what a guest's stream is connected to.
 *
 * stream pair MODE SIZE COUNT        both ends; says '<' before and '>' after
 * stream listen MODE SIZE COUNT PATH the host's end of a guest's stream
 *
 * MODE is that of the first end: 1 sends so many packets, 2 receives as many bytes, 3 sends one, waits for it to come
 * back, and so on.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "host.h"
#include "stream.h"

static long mode, size, count;

static void put(int fd, char *buffer, long length)
{
    for (long done = 0, now; done < length; done += now)
        if ((now = send(fd, buffer + done, length - done, MSG_NOSIGNAL)) <= 0)
            fail("send");
}

/* All of it, or as much as there is at a time; false at the end. */
static int get(int fd, char *buffer, long length)
{
    for (long done = 0, now; done < length; done += now)
        if ((now = read(fd, buffer + done, length - done)) <= 0)
            return 0;
    return 1;
}

/* The guest's end, with as many buffers. */
static void first_end(int fd, char *sent, char *received)
{
    for (long i = 0; i < count; i++) {
        if (mode != 2)
            put(fd, sent + i % SENT * size, size);
        if (mode != 1 && !get(fd, received + i % RECEIVED * size, size))
            exit(1);
    }
}

static void other_end(int fd, char *buffer)
{
    for (long i = 0; i < count; i++) {
        if (mode != 2 && !get(fd, buffer, size))
            exit(1);
        if (mode != 1)
            put(fd, buffer, size);
    }
}

static char *filled(long length)
{
    char *buffer = malloc(length);
    if (!buffer)
        fail("malloc");
    return memset(buffer, 1, length);
}

static void *other_thread(void *fd)
{
    other_end(*(int *)fd, filled(size));
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    mode = atol(argv[2]);
    size = atol(argv[3]);
    count = atol(argv[4]);
    if (!strcmp(argv[1], "pair")) {
        int ends[2];
        char *sent = filled(SENT * size), *received = filled(RECEIVED * size);
        pthread_t thread;
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
            fail("socketpair");
        say('<');
        pthread_create(&thread, NULL, other_thread, &ends[1]);
        first_end(ends[0], sent, received);
        pthread_join(thread, NULL);
        say('>');
        return 0;
    }
    if (argc != 6)
        return 2;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, argv[5], sizeof at.sun_path - 1);
    unlink(argv[5]);
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    if (door < 0 || bind(door, (struct sockaddr *)&at, sizeof at) < 0 || listen(door, 1) < 0)
        fail(argv[5]);
    say('r');
    int fd = accept(door, NULL, NULL);
    if (fd < 0)
        fail("accept");
    char last, *buffer = filled(size);
    other_end(fd, buffer);
    /* Until the guest is done with it. */
    get(fd, &last, 1);
    return 0;
}
