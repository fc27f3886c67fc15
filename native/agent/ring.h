/* A ring of bytes addressed by stream offset, grown only when it is needed. All rings
 * together stay below a share of the guest's memory. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A frame's header is written in place before the data, so a ring keeps room in front. */
#define RING_HEADROOM 20

struct ring {
    uint8_t *bytes;
    uint32_t size;       /* allocated: 0 or a power of two */
    uint64_t start, end; /* offsets of what it holds */
};

void ring_limit_all(uint64_t bytes);
/* Whether memory given back since the last call may let a starved ring grow. */
bool ring_memory_returned(void);

/* Memory to read into, in one piece, and its length: 0 if the ring holds `window` bytes
 * already or no memory may be taken. */
uint8_t *ring_space(struct ring *ring, uint32_t window, size_t *length);
void ring_wrote(struct ring *ring, size_t length);
/* What is held from `offset` on, in one piece. */
uint8_t *ring_data(const struct ring *ring, uint64_t offset, size_t *length);
void ring_drop_to(struct ring *ring, uint64_t offset);
/* Takes all of `bytes`, or nothing and says false. */
bool ring_append(struct ring *ring, uint32_t window, const uint8_t *bytes, size_t length);
void ring_free(struct ring *ring);
