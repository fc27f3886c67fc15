/* Starting a program, at about the price of a vfork. */
#pragma once

#include "user.h"

#include <stdbool.h>
#include <sys/types.h>

enum stage { STAGE_USER, STAGE_CWD, STAGE_FORK, STAGE_EXEC };

struct spawn {
    char **argv, **environment;
    const char *search; /* the child's PATH */
    const char *cwd;
    bool cwd_may_be_missing; /* then it is / */
    int stdio[3];
    bool terminal; /* stdio is a terminal that shall control the new session */
    int cgroup;    /* -1: none */
    const struct user *user;
    int error; /* and where it came from, when there is no child */
    enum stage stage;
};

/* Remembers the limits that programs start with; the agent raises its own. */
void spawn_prepare(void);
/* The child's id once the program runs, or -1. */
pid_t spawn(struct spawn *spawn);
const char *stage_name(enum stage stage);
