/* A process that EXEC started, from its request until its last descendant is gone. */
#pragma once

#include "cgroup.h"
#include "children.h"
#include "loop.h"
#include "ring.h"
#include "stream.h"

struct pull {
    struct source source;
    struct process *process;
    int channel;
    enum { PULL_CLOSED, PULL_OPEN, PULL_LAST, PULL_DISCARD } state;
    size_t left;  /* PULL_LAST: what the pipe held when the process ended */
    bool is_full; /* the ring was: it waits for room */
};

struct process {
    struct link all;
    struct stream *stream; /* NULL: released */
    struct child child;
    struct cgroup cgroup;
    struct pull pull[2];
    struct source feed; /* standard input */
    struct ring pending;
    bool input_ended;
    bool is_terminal; /* a PTY, whose master is pull[0]'s descriptor */
    struct timer timeout, settle, report;

    uint8_t *more; /* the request's fields, while channel 0 still brings some */
    size_t more_length, more_size;

    bool background, running, ended, killed, timed_out, out_of_memory;
    int status;
    uint64_t started_us, started_ns, duration_us, cpu_us, oom_kills;
    pid_t pid;
    char user[64], name[64];
    uint8_t arguments[2048]; /* ARG fields, cut */
    size_t arguments_length;
};

/* pull.c: output, from the process to its stream. */
void pull_open(struct process *process, int i, int fd);
void pull_go_on(struct process *process);
/* The process ended: only what the pipe holds now is delivered. */
void pull_last(struct process *process, int i);
void pull_discard(struct pull *pull);

/* feed.c: input. */
void feed_open(struct process *process, int fd);
void feed_bytes(struct process *process, const uint8_t *bytes, size_t length);
void feed_end(struct process *process);
void feed_close(struct process *process);

/* process.c */
struct process *process_make(struct stream *stream);
struct process *process_of(uint32_t stream);
bool process_signal_tree(struct process *process, int signal);
/* What can be told leaves with what follows it, or after that time. */
void process_report_soon(struct process *process, uint64_t delay_us);
/* Answers as soon as all output is there. */
void process_settle(struct process *process);
void processes_sweep(void);
void processes_each(void (*visit)(struct process *process, void *with), void *with);

/* exec.c */
void exec_reply(struct process *process);
