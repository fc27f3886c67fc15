#define _GNU_SOURCE
#include "process.h"

#include "protocol.h"

#include <errno.h>
#include <termios.h>
#include <unistd.h>

/* The program closed its input, or is gone: the rest of it is taken and dropped. */
static void stop(struct process *process) {
    uint64_t dropped = process->pending.end - process->pending.start;
    source_close(&process->feed);
    ring_free(&process->pending);
    if (process->stream != NULL && dropped > 0) stream_delivered(process->stream, dropped);
}

static void finish(struct process *process) {
    if (!process->is_terminal) {
        source_close(&process->feed);
        return;
    }
    /* A terminal has no end of file of its own: its line discipline makes one of a character. */
    struct termios modes;
    if (tcgetattr(process->feed.fd, &modes) != 0) return;
    if (write(process->feed.fd, &modes.c_cc[VEOF], 1) < 0) return; /* nobody is left to read it */
}

static ssize_t write_some(struct process *process, const uint8_t *bytes, size_t length) {
    ssize_t n;
    do n = write(process->feed.fd, bytes, length);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n < 0) stop(process);
    return n;
}

static void feed_ready(struct source *source, uint32_t events) {
    (void)events;
    struct process *process = container(source, struct process, feed);
    struct ring *pending = &process->pending;
    uint64_t delivered = 0;
    while (pending->start < pending->end) {
        size_t length;
        const uint8_t *bytes = ring_data(pending, pending->start, &length);
        ssize_t n = write_some(process, bytes, length);
        if (n <= 0) break;
        ring_drop_to(pending, pending->start + (uint64_t)n);
        delivered += (uint64_t)n;
    }
    if (process->stream != NULL && delivered > 0) stream_delivered(process->stream, delivered);
    if (process->feed.fd < 0 || pending->start < pending->end) return;
    source_watch(&process->feed, 0);
    if (process->input_ended) finish(process);
}

void feed_open(struct process *process, int fd) {
    process->feed.fd = fd;
    process->feed.ready = feed_ready;
}

void feed_bytes(struct process *process, const uint8_t *bytes, size_t length) {
    if (process->feed.fd < 0) {
        stream_delivered(process->stream, length);
        return;
    }
    size_t done = 0;
    while (done < length && process->pending.start == process->pending.end) {
        ssize_t n = write_some(process, bytes + done, length - done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done > 0) stream_delivered(process->stream, done);
    if (done == length) return;
    if (process->feed.fd < 0) {
        stream_delivered(process->stream, length - done);
    } else if (!ring_append(&process->pending, DEFAULT_WINDOW, bytes + done, length - done)
               || !source_watch(&process->feed, EPOLLOUT)) {
        /* Input with a hole in it would be worse than none. */
        process->killed = true;
        process_signal_tree(process, 9);
        stop(process);
    }
}

void feed_end(struct process *process) {
    process->input_ended = true;
    if (process->feed.fd >= 0 && process->pending.start == process->pending.end) finish(process);
}

void feed_close(struct process *process) {
    source_close(&process->feed);
    ring_free(&process->pending);
}
