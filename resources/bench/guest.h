/*
 * What guests written in C have. They run at CPL 3 with all of memory and all ports (guest.S), one at a time, without
 * interrupts: they look at memory until there is something.
 */
#include <stdint.h>

#define SERIAL 0x3f8
#define LINE_STATUS 0x3fd
#define SLEEP 0x600

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port) : "memory");
    return value;
}

/* A byte for who measures: the moment counts, and which it is. */
static inline void say(uint8_t byte)
{
    out8(SERIAL, byte);
}

/* Ends it all, so that whoever waits for more sees that there is something wrong: '!', and why. */
static inline void give_up(uint8_t why)
{
    say('!');
    say(why);
    for (;;)
        out8(SLEEP, 0x34);
}

static inline void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* The kernel's command line (Documentation/arch/x86/boot.rst, cmd_line_ptr). */
static inline const char *command_line(const uint8_t *boot_params)
{
    return (const char *)(uintptr_t) * (const uint32_t *)(boot_params + 0x228);
}

/* The number after `key=` on the command line; zero where it is not. */
static inline uint64_t number(const char *line, const char *key)
{
    for (; *line; line++) {
        const char *at = line, *name = key;
        while (*name && *at == *name)
            at++, name++;
        if (*name || *at != '=')
            continue;
        uint64_t value = 0;
        for (at++; *at >= '0' && *at <= '9'; at++)
            value = 10 * value + (*at - '0');
        return value;
    }
    return 0;
}
