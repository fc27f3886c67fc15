#define _GNU_SOURCE
#include "process.h"

#include "protocol.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

/* Descendants that outlive their process keep its control group for a while. */
#define SWEEP_US 50000

static struct link all = LIST_EMPTY(all);
static struct timer sweep_timer;

static void ended(struct child *child, int status, const struct rusage *usage);

struct process *process_make(struct stream *stream) {
    struct process *process = calloc(1, sizeof *process);
    if (process == NULL) return NULL;
    process->stream = stream;
    process->cgroup.fd = process->feed.fd = -1;
    process->pull[0].source.fd = process->pull[1].source.fd = -1;
    process->child.ended = ended;
    list_append(&all, &process->all);
    return process;
}

struct process *process_of(uint32_t id) {
    struct stream *stream = stream_find(id);
    bool is_exec = stream != NULL && stream->operation != NULL && stream->operation->number == OP_EXEC;
    return is_exec ? stream->work : NULL;
}

void processes_each(void (*visit)(struct process *process, void *with), void *with) {
    for (struct link *l = all.next; l != &all; l = l->next) visit(container(l, struct process, all), with);
}

bool process_signal_tree(struct process *process, int signal) {
    bool reached = cgroup_signal(&process->cgroup, signal);
    /* Root can leave its control group, and killing an empty one succeeds. */
    if (process->running && (!reached || signal == SIGKILL)) reached = kill(process->pid, signal) == 0 || reached;
    return reached;
}

static void report(struct timer *timer) {
    struct process *process = container(timer, struct process, report);
    if (process->stream == NULL) return;
    for (int i = 0; i < 2; i++) {
        const struct pull *pull = &process->pull[i];
        if (pull->channel != 0 && pull->state == PULL_CLOSED) stream_end_output(process->stream, pull->channel);
    }
    stream_schedule(process->stream);
}

void process_report_soon(struct process *process, uint64_t delay_us) {
    process->report.fire = report;
    timer_set(&process->report, delay_us);
}

static bool is_done(const struct pull *pull) {
    return pull->state == PULL_CLOSED || pull->state == PULL_DISCARD;
}

void process_settle(struct process *process) {
    if (!process->ended || process->stream == NULL || process->stream->finished) return;
    if (is_done(&process->pull[0]) && is_done(&process->pull[1])) exec_reply(process);
}

/* Frees what is over; later, where nobody still uses it. */
static void sweep(struct timer *timer) {
    (void)timer;
    for (struct link *l = all.next; l != &all;) {
        struct process *process = container(l, struct process, all);
        l = l->next;
        if (process->running || process->more != NULL) continue;
        bool is_empty = cgroup_give_back(&process->cgroup);
        bool is_closed = process->pull[0].state == PULL_CLOSED && process->pull[1].state == PULL_CLOSED;
        if (process->stream != NULL || !is_empty || !is_closed) continue;
        list_remove(&process->all);
        timer_stop(&process->settle);
        timer_stop(&process->report);
        free(process);
    }
}

void processes_sweep(void) {
    if (sweep_timer.link.next != NULL) return;
    sweep_timer.fire = sweep;
    timer_set(&sweep_timer, SWEEP_US);
}

static void ended(struct child *child, int status, const struct rusage *usage) {
    struct process *process = container(child, struct process, child);
    process->running = false;
    process->ended = true;
    process->status = status;
    process->duration_us = monotonic_us() - process->started_us;
    process->cpu_us = (uint64_t)usage->ru_utime.tv_sec * 1000000 + (uint64_t)usage->ru_utime.tv_usec
        + (uint64_t)usage->ru_stime.tv_sec * 1000000 + (uint64_t)usage->ru_stime.tv_usec;
    bool was_killed = WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 128 + SIGKILL;
    process->out_of_memory = was_killed && !process->killed && cgroup_oom_kills() != process->oom_kills;
    /* What it left behind holds the memory that the next command needs. */
    if (process->out_of_memory) process_signal_tree(process, SIGKILL);
    timer_stop(&process->timeout);
    feed_close(process);
    pull_last(process, 0);
    pull_last(process, 1);
    process_settle(process);
    processes_sweep();
}
