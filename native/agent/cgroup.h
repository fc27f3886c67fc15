/* Control groups: one for each process started, all below one that bounds them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct cgroup {
    uint32_t name;
    int fd; /* its directory; -1: there is none */
    bool was_killed;
};

/* Bounds memory to all that is free now but `reserve` bytes. */
void cgroup_open(uint64_t reserve);
void cgroup_set_reserve(uint64_t reserve);

/* Whether the kernel has them. */
bool cgroup_is_open(void);
bool cgroup_take(struct cgroup *cgroup);
/* False while processes are in it. */
bool cgroup_give_back(struct cgroup *cgroup);
/* SIGKILL reaches all at once, whatever they fork meanwhile. */
bool cgroup_signal(struct cgroup *cgroup, int signal);

uint64_t cgroup_oom_kills(void);
uint64_t cgroup_process_count(void);
