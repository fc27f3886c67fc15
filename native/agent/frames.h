/* Bytes to frames, and frames to bytes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct frame {
    uint8_t type, channel;
    uint32_t stream;
    const uint8_t *payload;
    size_t length;
};

/* Hands each whole frame to connection_frame() until that says false. The number of bytes
 * used up; `error` says what was wrong with the one after them. */
size_t frames_parse(const uint8_t *bytes, size_t length, const char **error);

void frame_write_header(uint8_t *header, uint8_t type, uint8_t channel, uint32_t stream, size_t length);

/* A place for a frame's payload among those that wait to be written; NULL: no room now. */
uint8_t *frames_add(uint8_t type, uint8_t channel, uint32_t stream, size_t length);
/* Writes a whole frame as it lies in memory, behind all others. False: not now. */
bool frames_write(const uint8_t *frame, size_t length);
bool frames_flush(void);
void frames_forget(void);
