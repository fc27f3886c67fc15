#define _GNU_SOURCE
#include "cgroup.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"
#define ROUNDS 100
#define MAX_UNUSED 32

/* What the kernel holds for itself is no process's: a bound reckoned from all of the memory would
 * lie beyond what there is, and the guest would thrash instead of killing the hog. */
static uint64_t available;
static int nova = -1, memory_events = -1, pids_current = -1;

/* What each control group may have: less than all of them together, so that whatever one command
 * does, the next one still finds memory and a process id. */
static uint64_t group_memory, group_processes;
#define SPARE_MEMORY (24u << 20)
#define SPARE_PROCESSES 64

/* Not to wait, here and below: the guest's root may have mounted a FIFO over the file. */
static bool write_at(int directory, const char *file, const char *text) {
    int fd = openat(directory, file, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return false;
    bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return written;
}

static bool write_number(int directory, const char *file, uint64_t number) {
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return write_at(directory, file, text);
}

static uint64_t free_at_boot(void) {
    struct sysinfo info;
    return sysinfo(&info) == 0 ? (uint64_t)(info.freeram + info.bufferram) * info.mem_unit : 0;
}

void cgroup_set_reserve(uint64_t reserve) {
    if (nova < 0 || available == 0) return;
    if (reserve > available / 2) reserve = available / 2;
    uint64_t limit = available - reserve;
    group_memory = limit - (limit / 8 < SPARE_MEMORY ? limit / 8 : SPARE_MEMORY);
    if (!write_number(nova, "memory.max", limit)) log_error("memory.max: %m");
}

/* One after the other, so that a controller the kernel lacks does not cost the others. */
static void enable_controllers(int directory) {
    static const char *const controllers[] = {"+cpu", "+memory", "+pids"};
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++) {
        if (!write_at(directory, "cgroup.subtree_control", controllers[i])) log_error("%s: %m", controllers[i]);
    }
}

void cgroup_open(uint64_t reserve) {
    available = free_at_boot();
    int root = open(ROOT, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    if (root < 0 || (mkdirat(root, "nova", 0755) != 0 && errno != EEXIST)) {
        log_error("no control groups: %m");
        if (root >= 0) close(root);
        return;
    }
    enable_controllers(root);
    nova = openat(root, "nova", O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    close(root);
    if (nova < 0) return;
    memory_events = openat(nova, "memory.events", O_RDONLY | O_CLOEXEC);
    pids_current = openat(nova, "pids.current", O_RDONLY | O_CLOEXEC);
    /* CPU time is shared by commands, not by processes, and the agent has as much as all of them. */
    enable_controllers(nova);
    cgroup_set_reserve(reserve);
    /* Half a MiB for each: with more of them the guest thrashes before anything is refused. */
    uint64_t processes = available >> 19;
    if (processes < 256) processes = 256;
    if (processes > 16384) processes = 16384;
    group_processes = processes - SPARE_PROCESSES;
    if (!write_number(nova, "pids.max", processes)) log_error("pids.max: %m");
}

bool cgroup_is_open(void) { return nova >= 0; }

/* A directory is used again once it is empty: making, populating and removing one costs as much as
 * starting a small program. Not so after cgroup.kill: some kernels (Debian's 6.1.176) kill whatever
 * is cloned into one that was ever killed. */
static struct cgroup unused[MAX_UNUSED];
static size_t unused_count;

bool cgroup_take(struct cgroup *cgroup) {
    static uint32_t last;
    cgroup->fd = -1;
    cgroup->was_killed = false;
    if (nova < 0) return false;
    while (unused_count > 0) {
        *cgroup = unused[--unused_count];
        /* The guest's root may have removed it. */
        if (faccessat(cgroup->fd, "cgroup.procs", F_OK, 0) == 0) return true;
        close(cgroup->fd);
    }
    char name[16];
    cgroup->name = ++last;
    snprintf(name, sizeof name, "%u", cgroup->name);
    if (mkdirat(nova, name, 0755) != 0 && errno != EEXIST) return false;
    cgroup->fd = openat(nova, name, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    if (cgroup->fd < 0) return false;
    write_number(cgroup->fd, "memory.max", group_memory);
    write_number(cgroup->fd, "pids.max", group_processes);
    return true;
}

static bool is_empty(const struct cgroup *cgroup) {
    char text[64];
    int fd = openat(cgroup->fd, "cgroup.events", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n < 0) return true; /* it was removed, which only works when it is empty */
    text[n] = 0;
    return strstr(text, "populated 0") != NULL;
}

bool cgroup_give_back(struct cgroup *cgroup) {
    if (cgroup->fd < 0) return true;
    if (!is_empty(cgroup)) return false;
    if (!cgroup->was_killed && unused_count < MAX_UNUSED) {
        unused[unused_count++] = *cgroup;
    } else {
        char name[16];
        snprintf(name, sizeof name, "%u", cgroup->name);
        if (unlinkat(nova, name, AT_REMOVEDIR) != 0) log_error("control group %s: %m", name);
        close(cgroup->fd);
    }
    cgroup->fd = -1;
    return true;
}

static bool signal_each(const struct cgroup *cgroup, int signal) {
    int fd = openat(cgroup->fd, "cgroup.procs", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (file == NULL) {
        if (fd >= 0) close(fd);
        return false;
    }
    bool any = false;
    int pid;
    while (fscanf(file, "%d", &pid) == 1) {
        if (pid > 1 && kill(pid, signal) == 0) any = true;
    }
    fclose(file);
    return any;
}

bool cgroup_signal(struct cgroup *cgroup, int signal) {
    if (cgroup->fd < 0) return false;
    if (signal != SIGKILL) return signal_each(cgroup, signal);
    if (write_at(cgroup->fd, "cgroup.kill", "1")) {
        cgroup->was_killed = true;
        return true;
    }
    /* Before Linux 5.14: frozen, the processes cannot fork away from the list. */
    write_at(cgroup->fd, "cgroup.freeze", "1");
    bool any = false;
    for (int i = 0; i < ROUNDS && signal_each(cgroup, SIGKILL); i++) any = true;
    write_at(cgroup->fd, "cgroup.freeze", "0");
    return any;
}

static uint64_t number_in(int fd, const char *label) {
    char text[512];
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) return 0;
    text[n] = 0;
    const char *at = strstr(text, label);
    return at == NULL ? 0 : strtoull(at + strlen(label), NULL, 10);
}

uint64_t cgroup_oom_kills(void) { return number_in(memory_events, "oom_kill "); }
uint64_t cgroup_process_count(void) { return number_in(pids_current, ""); }
