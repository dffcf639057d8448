/*
 * Times a boot: boot CASE COMMAND... runs a VMM until its guest's init says that it is there, and prints
 *
 *     boot CASE MICROSECONDS OWN
 *
 * OWN is the time that the VMM itself took of it: of its vCPU threads what they were in user mode and not in the guest,
 * of its other threads everything. The first is what the machine counted of user mode and not of guests, less what the
 * other threads were in user mode: of a thread, proc(5) scales the time in user mode to what the scheduler measured and
 * not the time in the guest, which leaves a difference where ticks are lost, and an emulated machine loses many. So it
 * wants a machine on which nothing else runs. As process 1 it is that init.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char HERE[] = "init is here\n";

static int init(void)
{
    /* The archive has no device files. */
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_WRONLY);
    if (console < 0 || write(console, HERE, sizeof HERE - 1) < 0)
        return 1;
    return reboot(RB_POWER_OFF);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

/* The first line of a file. */
static void line_of(const char *path, char *line, int size)
{
    FILE *stream = fopen(path, "r");
    if (!stream || !fgets(line, size, stream))
        line[0] = 0;
    if (stream)
        fclose(stream);
}

/* The same of a thread's. */
static void line_of_thread(pid_t process, const char *thread, const char *file, char *line, int size)
{
    char path[320];
    snprintf(path, sizeof path, "/proc/%d/task/%s/%s", process, thread, file);
    line_of(path, line, size);
}

/* The number behind so many spaces. */
static double field(const char *at, int spaces)
{
    for (; at && spaces; spaces--)
        at = strchr(at + 1, ' ');
    return at ? atof(at) : 0;
}

static double micros(double ticks)
{
    return ticks * 1e6 / sysconf(_SC_CLK_TCK);
}

/* Microseconds that this machine was in user mode and not in a guest, proc_stat(5): user, nice, guest and guest_nice are
   the numbers 1, 2, 9 and 10, of which the first two contain the others. There are two spaces before the first. */
static double in_user_mode(void)
{
    char line[512];
    line_of("/proc/stat", line, sizeof line);
    return micros(field(line, 2) + field(line, 3) - field(line, 10) - field(line, 11));
}

/* What a VMM took itself, of which the machine was in user mode for so long. */
static double own(pid_t process, double user)
{
    char path[32], line[512];
    double sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", process);
    DIR *threads = opendir(path);
    for (struct dirent *entry; threads && (entry = readdir(threads));) {
        const char *thread = entry->d_name;
        line_of_thread(process, thread, "stat", line, sizeof line);
        const char *end = strrchr(line, ')');
        if (!end || strstr(line, "(vcpu"))
            continue;
        /* proc_pid_stat(5): utime is the 14th field, and the name the second. */
        user -= micros(field(end, 12));
        line_of_thread(process, thread, "schedstat", line, sizeof line);
        sum += atof(line) / 1e3;
    }
    if (threads)
        closedir(threads);
    return sum + (user > 0 ? user : 0);
}

int main(int argc, char **argv)
{
    if (getpid() == 1)
        return init();
    if (argc < 3) {
        fprintf(stderr, "usage: boot CASE COMMAND...\n");
        return 2;
    }
    int pipes[2];
    if (pipe(pipes) < 0)
        return 1;
    double start = now(), user = in_user_mode();
    pid_t process = fork();
    if (!process) {
        int nothing = open("/dev/null", O_RDWR);
        dup2(nothing, 0);
        dup2(pipes[1], 1);
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    close(pipes[1]);
    static char said[1 << 20];
    long length = 0, count;
    while ((count = read(pipes[0], said + length, sizeof said - 1 - length)) > 0) {
        length += count;
        said[length] = 0;
        if (strstr(said, "init is here"))
            break;
    }
    double end = now(), mine = own(process, in_user_mode() - user);
    kill(process, SIGKILL);
    waitpid(process, NULL, 0);
    if (count <= 0) {
        printf("boot %s failed: %s\n", argv[1], length > 200 ? said + length - 200 : said);
        return 1;
    }
    printf("boot %s %.0f %.0f\n", argv[1], end - start, mine);
    return 0;
}
