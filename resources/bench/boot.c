/*
 * Times a boot: boot CASE COMMAND... runs a VMM until its guest's init says that it is there, and prints
 *
 *     boot CASE MICROSECONDS OWN
 *
 * OWN is the time that the VMM itself took of it: of its vCPU threads what they were in user mode and not in the guest,
 * of its other threads everything. As process 1 it is that init.
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

/* The first line of a file of a thread's. */
static void line_of(pid_t process, const char *thread, const char *file, char *line, int size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%s/%s", process, thread, file);
    FILE *stream = fopen(path, "r");
    if (!stream || !fgets(line, size, stream))
        line[0] = 0;
    if (stream)
        fclose(stream);
}

/* Microseconds of one thread's that are the VMM's own. */
static double own_of(pid_t process, const char *thread)
{
    char line[512];
    line_of(process, thread, "comm", line, sizeof line);
    if (strncmp(line, "vcpu", 4)) {
        line_of(process, thread, "schedstat", line, sizeof line);
        return atof(line) / 1e3;
    }
    /* proc_pid_stat(5): utime is the 14th field, guest_time, which is part of it, the 43rd. */
    line_of(process, thread, "stat", line, sizeof line);
    double ticks = 0;
    int field = 2;
    for (char *at = strrchr(line, ')'); at && (at = strchr(at, ' ')); at++) {
        field++;
        if (field == 14)
            ticks += atof(at);
        if (field == 43)
            ticks -= atof(at);
    }
    return ticks * 1e6 / sysconf(_SC_CLK_TCK);
}

static double own(pid_t process)
{
    char path[32];
    double sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", process);
    DIR *threads = opendir(path);
    for (struct dirent *entry; threads && (entry = readdir(threads));)
        if (entry->d_name[0] != '.')
            sum += own_of(process, entry->d_name);
    if (threads)
        closedir(threads);
    return sum;
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
    double start = now();
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
    double end = now(), mine = own(process);
    kill(process, SIGKILL);
    waitpid(process, NULL, 0);
    if (count <= 0) {
        printf("boot %s failed: %s\n", argv[1], length > 200 ? said + length - 200 : said);
        return 1;
    }
    printf("boot %s %.0f %.0f\n", argv[1], end - start, mine);
    return 0;
}
