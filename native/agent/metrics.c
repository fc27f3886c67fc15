/* METRICS: one look at the whole guest. */
#define _GNU_SOURCE
#include "operations.h"

#include "cgroup.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

/* A small file of the kernel's, whole. */
static const char *read_text(const char *path) {
    static char text[8192];
    /* Root may have mounted a FIFO over it. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n < 0 ? 0 : n] = 0;
    return text;
}

static uint64_t number_after(const char *text, const char *label) {
    const char *at = strstr(text, label);
    return at == NULL ? 0 : strtoull(at + strlen(label), NULL, 10);
}

/* Received and sent by all interfaces but loopback. */
static void put_network(struct builder *reply) {
    uint64_t received = 0, sent = 0;
    for (const char *line = read_text("/proc/net/dev"); line != NULL; line = strchr(line + 1, '\n')) {
        char name[32];
        unsigned long long in, out;
        int n = sscanf(line, " %31[^:]: %llu %*u %*u %*u %*u %*u %*u %*u %llu", name, &in, &out);
        if (n != 3 || strcmp(name, "lo") == 0) continue;
        received += in;
        sent += out;
    }
    put_number(reply, TAG_NET_RX, received);
    put_number(reply, TAG_NET_TX, sent);
}

int do_metrics(struct fields request, struct builder *reply) {
    (void)request;
    struct sysinfo info;
    struct statvfs disk;
    if (sysinfo(&info) != 0 || statvfs("/", &disk) != 0) return errno;
    put_number(reply, TAG_CPU_USEC, number_after(read_text("/sys/fs/cgroup/cpu.stat"), "usage_usec "));
    put_number(reply, TAG_MEM_TOTAL, (uint64_t)info.totalram * info.mem_unit);
    put_number(reply, TAG_MEM_AVAILABLE, number_after(read_text("/proc/meminfo"), "MemAvailable:") * 1024);
    put_number(reply, TAG_DISK_TOTAL, (uint64_t)disk.f_blocks * disk.f_frsize);
    put_number(reply, TAG_DISK_USED, (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize);
    put_number(reply, TAG_PROCESSES, cgroup_process_count());
    struct timespec up;
    clock_gettime(CLOCK_BOOTTIME, &up);
    put_number(reply, TAG_UPTIME_USEC, (uint64_t)up.tv_sec * 1000000 + (uint64_t)up.tv_nsec / 1000);
    put_number(reply, TAG_LOAD, (uint64_t)info.loads[0] * 1000 >> SI_LOAD_SHIFT);
    put_network(reply);
    put_number(reply, TAG_OOM_KILLS, cgroup_oom_kills());
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    put_number(reply, TAG_CPUS, cpus > 0 ? (uint64_t)cpus : 1);
    return 0;
}
