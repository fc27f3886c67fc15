/* Reaping: the agent's own children, and every orphan of the guest. */
#pragma once

#include "list.h"

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

struct child {
    struct link link;
    pid_t pid;
    void (*ended)(struct child *child, int status, const struct rusage *usage);
};

/* Blocks all signals and hears SIGCHLD. `orphan_ended` is called after orphans were reaped. */
bool children_open(void (*orphan_ended)(void));
void child_add(struct child *child);
