/* The event loop: descriptors, timers, and one call before each sleep. */
#pragma once

#include "list.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

/* Part of whatever owns the descriptor. All zero but fd: not watched. */
struct source {
    int fd;
    uint32_t events;
    void (*ready)(struct source *source, uint32_t events);
};

struct timer {
    struct link link;
    uint64_t due;
    void (*fire)(struct timer *timer);
};

bool loop_open(void);
void loop_run(bool (*before_sleep)(void));

/* Change what is waited for; no events at all takes the descriptor out of the loop. */
bool source_watch(struct source *source, uint32_t events);
/* Take it out and close it. */
void source_close(struct source *source);

void timer_set(struct timer *timer, uint64_t delay_us);
void timer_stop(struct timer *timer);

uint64_t monotonic_us(void);
uint64_t realtime_ns(void);
