/* SHUTDOWN: the reply, then the processes, then the disk, then the power. */
#define _GNU_SOURCE
#include "operations.h"

#include "connection.h"
#include "loop.h"
#include "port.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_US 2000000
#define STEP_US 10000

static struct timer step;
static uint64_t deadline;
static bool is_terminating;

static _Noreturn void power_off(void) {
    kill(-1, SIGKILL);
    sync();
    /* Firecracker has no power button: its process ends when the guest reboots. */
    reboot(port_is_vsock() ? RB_AUTOBOOT : RB_POWER_OFF);
    for (;;) pause();
}

/* Whether only the agent is left: as PID 1 it is every orphan's parent. */
static bool is_alone(void) {
    return waitpid(-1, NULL, WNOHANG) < 0;
}

static void advance(struct timer *timer) {
    if (!is_terminating && (connection_is_flushed() || monotonic_us() > deadline)) {
        is_terminating = true;
        kill(-1, SIGTERM);
        /* A stopped process could not die of it. */
        kill(-1, SIGCONT);
        deadline = monotonic_us() + GRACE_US;
    }
    if (is_terminating && (is_alone() || monotonic_us() > deadline)) power_off();
    timer_set(timer, STEP_US);
}

int do_shutdown(struct fields request, struct builder *reply) {
    (void)request;
    (void)reply;
    if (step.fire != NULL) return 0;
    step.fire = advance;
    deadline = monotonic_us() + GRACE_US;
    timer_set(&step, 0);
    return 0;
}
