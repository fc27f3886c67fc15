#include "ring.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SIZE 4096

static uint64_t all_limit = UINT64_MAX, all_used;
static bool starved, returned;

void ring_limit_all(uint64_t bytes) {
    all_limit = bytes;
}

bool ring_memory_returned(void) {
    bool answer = starved && returned;
    returned = false;
    if (answer) starved = false;
    return answer;
}

static uint8_t *allocate(uint32_t size) {
    if (all_used + size > all_limit) {
        starved = true;
        return NULL;
    }
    uint8_t *memory = malloc(RING_HEADROOM + (size_t)size);
    if (memory == NULL) {
        starved = true;
        return NULL;
    }
    all_used += size;
    return memory + RING_HEADROOM;
}

static void release(uint8_t *bytes, uint32_t size) {
    if (bytes == NULL) return;
    free(bytes - RING_HEADROOM);
    all_used -= size;
    returned = true;
}

static bool grow(struct ring *ring) {
    uint32_t size = ring->size == 0 ? FIRST_SIZE : ring->size * 2;
    uint8_t *bytes = allocate(size);
    if (bytes == NULL) return false;
    for (uint64_t at = ring->start; at < ring->end;) {
        size_t n;
        const uint8_t *piece = ring_data(ring, at, &n);
        uint32_t to = (uint32_t)at & (size - 1);
        if (n > size - to) n = size - to;
        memcpy(bytes + to, piece, n);
        at += n;
    }
    release(ring->bytes, ring->size);
    ring->bytes = bytes;
    ring->size = size;
    return true;
}

uint8_t *ring_space(struct ring *ring, uint32_t window, size_t *length) {
    uint64_t used = ring->end - ring->start;
    *length = 0;
    if (used >= window) return NULL;
    /* Grown when full: a ring that is drained as fast as it fills stays small. */
    if (used == ring->size && !grow(ring)) return NULL;
    uint32_t at = (uint32_t)ring->end & (ring->size - 1);
    uint64_t free_bytes = (ring->size < window ? ring->size : window) - used;
    uint64_t to_wrap = ring->size - at;
    *length = (size_t)(free_bytes < to_wrap ? free_bytes : to_wrap);
    return ring->bytes + at;
}

void ring_wrote(struct ring *ring, size_t length) {
    ring->end += length;
}

uint8_t *ring_data(const struct ring *ring, uint64_t offset, size_t *length) {
    if (offset >= ring->end) {
        *length = 0;
        return NULL;
    }
    uint32_t at = (uint32_t)offset & (ring->size - 1);
    uint64_t held = ring->end - offset;
    uint64_t to_wrap = ring->size - at;
    *length = (size_t)(held < to_wrap ? held : to_wrap);
    return ring->bytes + at;
}

void ring_drop_to(struct ring *ring, uint64_t offset) {
    if (offset > ring->end) offset = ring->end;
    if (offset > ring->start) ring->start = offset;
}

bool ring_append(struct ring *ring, uint32_t window, const uint8_t *bytes, size_t length) {
    if (ring->end - ring->start + length > window) return false;
    while (ring->size < ring->end - ring->start + length) {
        if (!grow(ring)) return false;
    }
    while (length > 0) {
        size_t n;
        uint8_t *space = ring_space(ring, window, &n);
        if (n > length) n = length;
        memcpy(space, bytes, n);
        ring_wrote(ring, n);
        bytes += n;
        length -= n;
    }
    return true;
}

void ring_free(struct ring *ring) {
    release(ring->bytes, ring->size);
    ring->bytes = NULL;
    ring->size = 0;
    ring->start = ring->end;
}
