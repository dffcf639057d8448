/* What the programs for streams and taps say: an error and no more, or one byte that the bench waits for. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline void say(char byte)
{
    if (write(1, &byte, 1) != 1)
        exit(1);
}
