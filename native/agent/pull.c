#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Of one turn, so that other streams have theirs. */
#define TURN 65536
/* What a process wrote to a terminal reaches the master's side through a kernel worker. */
#define SETTLE_US 20000
/* A program that exits closes its output a moment before it is gone. */
#define FAREWELL_US 2000

static uint8_t scrap[TURN];

static void close_pull(struct pull *pull) {
    source_close(&pull->source);
    pull->state = PULL_CLOSED;
}

static void end_channel(struct pull *pull) {
    if (pull->process->stream != NULL) stream_end_output(pull->process->stream, pull->channel);
}

/* Descendants that still write would die of SIGPIPE if nobody read. */
static void discard(struct pull *pull) {
    ssize_t n = read(pull->source.fd, scrap, sizeof scrap);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        close_pull(pull);
        process_settle(pull->process);
    } else if (!source_watch(&pull->source, EPOLLIN)) {
        close_pull(pull);
    }
}

void pull_discard(struct pull *pull) {
    if (pull->state == PULL_CLOSED || pull->state == PULL_DISCARD) return;
    pull->state = PULL_DISCARD;
    end_channel(pull);
    discard(pull);
}

static void pull_some(struct pull *pull) {
    struct stream *stream = pull->process->stream;
    size_t turn = TURN;
    pull->is_full = false;
    while (turn > 0) {
        size_t room;
        uint8_t *space = stream_space(stream, pull->channel, &room);
        if (space == NULL) {
            pull->is_full = true;
            source_watch(&pull->source, 0);
            return;
        }
        if (room > turn) room = turn;
        if (pull->state == PULL_LAST && room > pull->left) room = pull->left;
        ssize_t n = read(pull->source.fd, space, room);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN && pull->state == PULL_LAST && pull->left != SIZE_MAX) {
            /* A descendant has read what was counted: its user's pipe can be opened again. */
            pull_discard(pull);
            process_settle(pull->process);
            return;
        }
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) { /* a terminal whose last user is gone says EIO */
            close_pull(pull);
            process_report_soon(pull->process, FAREWELL_US);
            process_settle(pull->process);
            return;
        }
        stream_wrote(stream, pull->channel, (size_t)n);
        turn -= (size_t)n;
        if (pull->state == PULL_LAST && (pull->left -= (size_t)n) == 0) {
            pull_discard(pull);
            process_settle(pull->process);
            return;
        }
        if ((size_t)n < room) break;
    }
    source_watch(&pull->source, EPOLLIN);
}

static void pull_ready(struct source *source, uint32_t events) {
    (void)events;
    struct pull *pull = container(source, struct pull, source);
    if (pull->state == PULL_DISCARD) discard(pull);
    else pull_some(pull);
}

void pull_open(struct process *process, int i, int fd) {
    struct pull *pull = &process->pull[i];
    pull->source.fd = fd;
    pull->source.ready = pull_ready;
    pull->process = process;
    pull->channel = i + 1;
    pull->state = PULL_OPEN;
    source_watch(&pull->source, EPOLLIN);
}

void pull_go_on(struct process *process) {
    for (int i = 0; i < 2; i++) {
        struct pull *pull = &process->pull[i];
        if (pull->is_full && (pull->state == PULL_OPEN || pull->state == PULL_LAST)) pull_some(pull);
    }
}

static void settled(struct timer *timer) {
    struct process *process = container(timer, struct process, settle);
    struct pull *pull = &process->pull[0];
    if (pull->state != PULL_LAST) return;
    int held;
    pull->left = ioctl(pull->source.fd, FIONREAD, &held) == 0 && held > 0 ? (size_t)held : 0;
    if (pull->left == 0) pull_discard(pull);
    else pull_some(pull);
    process_settle(process);
}

void pull_last(struct process *process, int i) {
    struct pull *pull = &process->pull[i];
    if (pull->state != PULL_OPEN) return;
    pull->state = PULL_LAST;
    if (process->is_terminal) {
        pull->left = SIZE_MAX;
        process->settle.fire = settled;
        timer_set(&process->settle, SETTLE_US);
        pull_some(pull);
        return;
    }
    int held;
    pull->left = ioctl(pull->source.fd, FIONREAD, &held) == 0 && held > 0 ? (size_t)held : 0;
    if (pull->left == 0) pull_discard(pull);
    else pull_some(pull);
}
