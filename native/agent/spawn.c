#define _GNU_SOURCE
#include "spawn.h"

#include "log.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_UMASK 022
/* How long a program may take to start, and how often its child is looked at meanwhile. */
#define START_US 10000000
#define STEP_MS 20

static struct rlimit open_files;
/* One child at a time: the agent sleeps until its exec. */
static uint8_t child_stack[65536] __attribute__((aligned(16)));

struct kernel_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

void spawn_prepare(void) {
    if (getrlimit(RLIMIT_NOFILE, &open_files) != 0) log_error("getrlimit: %m");
    struct rlimit own = {open_files.rlim_max, open_files.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &own) != 0) log_error("setrlimit: %m");
}

const char *stage_name(enum stage stage) {
    static const char *const names[] = {"user", "cwd", "fork", "exec"};
    return names[stage];
}

/* clone3 whose child goes on in `run` on a stack of its own, sharing all memory with the agent,
 * which does nothing but wait until the child executes a program or exits. */
static long clone_onto(struct clone_args *arguments, void (*run)(struct spawn *), struct spawn *spawn) {
#if defined(__x86_64__)
    long result;
    register void (*function)(struct spawn *) __asm__("r12") = run;
    register struct spawn *argument __asm__("r13") = spawn;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(SYS_clone3), "D"(arguments), "S"(sizeof *arguments), "r"(function), "r"(argument)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = sizeof *arguments;
    register long x8 __asm__("x8") = SYS_clone3;
    register void (*function)(struct spawn *) __asm__("x20") = run;
    register struct spawn *argument __asm__("x21") = spawn;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x21\n\t"
                     "blr x20\n\t"
                     "brk 1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x8), "r"(function), "r"(argument)
                     : "memory");
    return x0;
#else
#error "clone3 for this architecture"
#endif
}

static _Noreturn void give_up(struct spawn *spawn, enum stage stage, int error) {
    spawn->stage = stage;
    spawn->error = error;
    for (;;) syscall(SYS_exit_group, 127);
}

static void check(struct spawn *spawn, enum stage stage, long result) {
    if (result < 0) give_up(spawn, stage, errno);
}

static void reset_signals(struct spawn *spawn) {
    /* musl's sigprocmask would keep its internal signals out of the set. */
    uint64_t none = 0;
    struct kernel_sigaction action = {.handler = SIG_DFL};
    check(spawn, STAGE_FORK, syscall(SYS_rt_sigaction, SIGPIPE, &action, NULL, sizeof none));
    check(spawn, STAGE_FORK, syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none));
}

static int is_program(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) return errno;
    if (!S_ISREG(status.st_mode)) return EACCES;
    /* Unlike access(2), with the file-system ids. Absent before Linux 5.8: exec decides then. */
    if (syscall(SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS) != 0 && errno != ENOSYS) return errno;
    return 0;
}

/* Done before the last change of ids and not by trying execve on each path: from that change on
 * until its exec the child is the user's to stop, and the agent would wait for it. */
static const char *find_program(struct spawn *spawn, char *path) {
    const char *name = spawn->argv[0];
    if (strchr(name, '/') != NULL) return name;
    if (*name == 0) give_up(spawn, STAGE_EXEC, ENOENT);
    int error = ENOENT;
    for (const char *at = spawn->search; at != NULL; at = *at == ':' ? at + 1 : NULL) {
        const char *end = strchrnul(at, ':');
        int length = (int)(end - at);
        int n = snprintf(path, PATH_MAX, "%.*s%s%s", length, at, length > 0 ? "/" : "", name);
        int found = n < PATH_MAX ? is_program(path) : ENAMETOOLONG;
        if (found == 0) return path;
        if (found == EACCES) error = EACCES;
        at = end;
    }
    give_up(spawn, STAGE_EXEC, error);
}

static void child(struct spawn *spawn) {
    const struct user *user = spawn->user;
    syscall(SYS_setsid);
    if (spawn->terminal) check(spawn, STAGE_FORK, ioctl(spawn->stdio[0], TIOCSCTTY, 0));
    for (int i = 0; i < 3; i++) check(spawn, STAGE_FORK, syscall(SYS_dup3, spawn->stdio[i], i, 0));
    reset_signals(spawn);
    syscall(SYS_umask, CHILD_UMASK);
    check(spawn, STAGE_FORK, syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &open_files, NULL));

    check(spawn, STAGE_USER, raw_setgroups(user->group_count, user->groups));
    check(spawn, STAGE_USER, raw_setresgid(user->gid));
    syscall(SYS_setfsuid, user->uid);
    if (chdir(spawn->cwd) != 0 && !(spawn->cwd_may_be_missing && chdir("/") == 0)) give_up(spawn, STAGE_CWD, errno);
    char path[PATH_MAX];
    const char *program = find_program(spawn, path);
    check(spawn, STAGE_USER, raw_setresuid(user->uid));
    syscall(SYS_execve, program, spawn->argv, spawn->environment);
    give_up(spawn, STAGE_EXEC, errno);
}

/* False: it was killed, for it took too long. Not left to CLONE_VFORK, whose wait has no end: the
 * user may stop the child, and holds its exec up with a lease on the program. Errno is the child's
 * too, so nothing here may fail. */
static bool wait_for_exec(int alive, pid_t pid) {
    struct pollfd end = {.fd = alive};
    uint64_t deadline = monotonic_us() + START_US;
    bool in_time = true;
    while (poll(&end, 1, STEP_MS) == 0) {
        siginfo_t stopped = {.si_pid = 0};
        if (waitid(P_PID, (id_t)pid, &stopped, WSTOPPED | WNOHANG) == 0 && stopped.si_pid == pid) kill(pid, SIGCONT);
        if (!in_time || monotonic_us() < deadline) continue;
        in_time = false;
        kill(pid, SIGKILL);
    }
    return in_time;
}

pid_t spawn(struct spawn *spawn) {
    struct clone_args arguments = {
        .flags = CLONE_VM,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)child_stack,
        .stack_size = sizeof child_stack,
    };
    if (spawn->cgroup >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)spawn->cgroup;
    }
    spawn->error = 0;
    spawn->stage = STAGE_FORK;
    int alive[2]; /* exec, after it has left our memory, and exit close the child's end */
    if (pipe2(alive, O_CLOEXEC) != 0) {
        spawn->error = errno;
        return -1;
    }
    long pid = clone_onto(&arguments, child, spawn);
    close(alive[1]);
    /* The child writes to `spawn` behind the compiler's back; the asm's memory clobber says so. */
    if (pid < 0) {
        spawn->error = (int)-pid;
    } else if (!wait_for_exec(alive[0], (pid_t)pid)) {
        spawn->stage = STAGE_EXEC;
        spawn->error = ETIMEDOUT;
    }
    close(alive[0]);
    return spawn->error != 0 ? -1 : (pid_t)pid;
}
