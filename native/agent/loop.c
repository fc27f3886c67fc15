#define _GNU_SOURCE
#include "loop.h"

#include "log.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64

static int epoll = -1;
static struct link timers = LIST_EMPTY(timers);
static struct epoll_event batch[BATCH];
static int batch_length;

uint64_t monotonic_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t realtime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

bool loop_open(void) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    return epoll >= 0;
}

/* An owner may free a source while an event for it still waits in this batch. */
static void drop_from_batch(const struct source *source) {
    for (int i = 0; i < batch_length; i++) {
        if (batch[i].data.ptr == source) batch[i].data.ptr = NULL;
    }
}

bool source_watch(struct source *source, uint32_t events) {
    if (events == source->events) return true;
    /* Epoll reports HUP and ERR even for an empty set of events, without end: a source that
     * is not to be heard must leave the set. */
    int change = events == 0 ? EPOLL_CTL_DEL : source->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (epoll_ctl(epoll, change, source->fd, &event) != 0) {
        log_error("epoll_ctl: %m");
        return false;
    }
    source->events = events;
    if (events == 0) drop_from_batch(source);
    return true;
}

void source_close(struct source *source) {
    if (source->fd < 0) return;
    source_watch(source, 0);
    close(source->fd);
    source->fd = -1;
}

void timer_set(struct timer *timer, uint64_t delay_us) {
    list_remove(&timer->link);
    timer->due = monotonic_us() + delay_us;
    list_append(&timers, &timer->link);
}

void timer_stop(struct timer *timer) {
    list_remove(&timer->link);
}

/* Few timers are ever set: at most one for each process with a time limit. */
static int sleep_ms(void) {
    if (list_is_empty(&timers)) return -1;
    uint64_t first = UINT64_MAX;
    for (struct link *l = timers.next; l != &timers; l = l->next) {
        uint64_t due = container(l, struct timer, link)->due;
        if (due < first) first = due;
    }
    uint64_t now = monotonic_us();
    if (first <= now) return 0;
    uint64_t ms = (first - now + 999) / 1000;
    return ms > 60000 ? 60000 : (int)ms;
}

static void fire_due(void) {
    if (list_is_empty(&timers)) return;
    uint64_t now = monotonic_us();
    struct link *l = timers.next;
    while (l != &timers) {
        struct timer *timer = container(l, struct timer, link);
        if (timer->due <= now) {
            timer_stop(timer);
            timer->fire(timer);
            l = timers.next; /* firing may have changed the list anywhere */
        } else {
            l = l->next;
        }
    }
}

void loop_run(bool (*before_sleep)(void)) {
    for (;;) {
        bool more = before_sleep();
        int n = epoll_wait(epoll, batch, BATCH, more ? 0 : sleep_ms());
        if (n < 0 && errno != EINTR) log_error("epoll_wait: %m");
        batch_length = n < 0 ? 0 : n;
        for (int i = 0; i < batch_length; i++) {
            struct source *source = batch[i].data.ptr;
            if (source != NULL) source->ready(source, batch[i].events);
        }
        batch_length = 0;
        fire_due();
    }
}
