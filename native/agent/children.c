#define _GNU_SOURCE
#include "children.h"

#include "loop.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static struct link children = LIST_EMPTY(children);
static struct source signals = {.fd = -1};
static void (*orphan_ended)(void);

void child_add(struct child *child) {
    list_append(&children, &child->link);
}

static struct child *find(pid_t pid) {
    for (struct link *l = children.next; l != &children; l = l->next) {
        struct child *child = container(l, struct child, link);
        if (child->pid == pid) return child;
    }
    return NULL;
}

static void reap(struct source *source, uint32_t events) {
    (void)events;
    /* Signals of one number do not queue: however many are told here, all children are asked. */
    struct signalfd_siginfo info[8];
    while (read(source->fd, info, sizeof info) == sizeof info) continue;
    bool orphans = false;
    int status;
    struct rusage usage;
    for (pid_t pid; (pid = wait4(-1, &status, WNOHANG, &usage)) > 0;) {
        struct child *child = find(pid);
        if (child == NULL) {
            orphans = true;
            continue;
        }
        list_remove(&child->link);
        child->ended(child, status, &usage);
    }
    if (orphans) orphan_ended();
}

bool children_open(void (*on_orphan)(void)) {
    orphan_ended = on_orphan;
    sigset_t every;
    sigfillset(&every);
    if (sigprocmask(SIG_SETMASK, &every, NULL) != 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR) return false;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    signals.fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    signals.ready = reap;
    return signals.fd >= 0 && source_watch(&signals, EPOLLIN);
}
