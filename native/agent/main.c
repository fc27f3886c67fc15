/* nova-agent: PID 1 of every guest. It makes the guest whole, then serves docs/protocol.md. */
#define _GNU_SOURCE
#include "boot.h"
#include "cgroup.h"
#include "children.h"
#include "connection.h"
#include "log.h"
#include "loop.h"
#include "port.h"
#include "process.h"
#include "random.h"
#include "ring.h"
#include "runfiles.h"
#include "spawn.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* Of the guest's memory: all rings together, and what its processes do not get. */
#define RINGS_SHARE 8
#define RESERVE_SHARE 32
#define RESERVE_BYTES (16u << 20)

/* The kernel gives PID 1 no descriptors where it has no console, and a program's pipes must not
 * get the numbers that its standard streams have. */
static void hold_standard_descriptors(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

/* Ahead of a guest full of busy processes, which start at 0 again. musl has no
 * sched_setscheduler() of its own. */
static void prefer_agent(void) {
    struct sched_param none = {0};
    if (syscall(SYS_sched_setscheduler, 0, SCHED_OTHER | SCHED_RESET_ON_FORK, &none) != 0
        || setpriority(PRIO_PROCESS, 0, -20) != 0) log_error("priority: %m");
}

int main(void) {
    umask(0);
    boot();
    furnish();
    hold_standard_descriptors();
    log_open();
    run_files_open();
    random_open();
    /* As PID 1 the agent is safe from the out-of-memory killer without asking for it. */
    struct sysinfo info;
    uint64_t memory = sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit : 0;
    ring_limit_all(memory / RINGS_SHARE);
    cgroup_open(RESERVE_BYTES + memory / RESERVE_SHARE);
    spawn_prepare();
    prefer_agent();
    /* Ctrl-Alt-Del shall not reboot a machine whose disk is in use. */
    reboot(RB_DISABLE_CAD);
    if (!loop_open() || !children_open(processes_sweep)) log_fatal("no event loop: %m");
    connection_open();
    port_open();
    loop_run(connection_serve);
}
