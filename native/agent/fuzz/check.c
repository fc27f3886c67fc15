#include "check.h"

#include "fields.h"
#include "protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IDS 65536

static uint8_t waiting[2 * MAX_FRAME];
static size_t waiting_length;
static const uint8_t *input;
static size_t input_size;

static struct seen {
    uint64_t next[3];
    uint8_t ended[3], replied, known[3];
} seen[MAX_IDS];
static uint32_t touched[MAX_IDS];
static size_t touched_count;

/* The sanitizers' runtimes have it; without them only demand() keeps the input. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static void keep_input(void) {
    FILE *file = input == NULL ? NULL : fopen("fuzz_frames.failed", "wb");
    if (file == NULL) return;
    fwrite(input, 1, input_size, file);
    fclose(file);
    fprintf(stderr, "the input is in fuzz_frames.failed\n");
}

static void demand(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "the agent broke the protocol: %s\n", what);
    keep_input();
    abort();
}

void check_input(const uint8_t *bytes, size_t size) {
    if (input == NULL && __sanitizer_set_death_callback != NULL) __sanitizer_set_death_callback(keep_input);
    input = bytes;
    input_size = size;
}

void check_turns(int turns) {
    demand(turns < 1000000, "the loop does not come to rest");
}

void check_reset(void) {
    waiting_length = 0;
    while (touched_count > 0) memset(&seen[touched[--touched_count]], 0, sizeof *seen);
}

static void check_data(struct seen *stream, int channel, uint64_t offset, size_t length) {
    demand(channel == 1 || channel == 2, "a channel that an agent does not send on");
    demand(!stream->ended[channel], "data after the end");
    if (stream->known[channel]) demand(offset == stream->next[channel], "data out of order");
    stream->known[channel] = 1;
    stream->next[channel] = offset + length;
}

static void check_frame(uint8_t type, uint8_t channel, uint32_t id, const uint8_t *payload, size_t length) {
    if (type == FRAME_ATTACHED || type == FRAME_HELLO || type == FRAME_GOAWAY) {
        demand(id == 0, "a stream number where none belongs");
        return;
    }
    demand(id != 0, "no stream number");
    struct seen *stream = &seen[id % MAX_IDS];
    if (touched_count < MAX_IDS) touched[touched_count++] = id % MAX_IDS;
    switch (type) {
    case FRAME_STATE: /* begun, or resumed: offsets start anew */
        memset(stream, 0, sizeof *stream);
        break;
    case FRAME_DATA:
        demand(length > OFFSET_SIZE, "empty data");
        demand(!stream->replied, "data after the reply");
        check_data(stream, channel, load64(payload), length - OFFSET_SIZE);
        break;
    case FRAME_END:
        demand(length == OFFSET_SIZE && !stream->replied && !stream->ended[channel & 1 ? 1 : 2], "a wrong end");
        if (stream->known[channel]) demand(load64(payload) == stream->next[channel], "an end at a wrong offset");
        stream->ended[channel] = 1;
        break;
    case FRAME_REPLY:
        demand(length >= 4, "a reply without a status");
        stream->replied = 1;
        break;
    case FRAME_CREDIT:
        demand(length == 16 && load64(payload) <= load64(payload + 8), "wrong credit");
        break;
    default:
        demand(0, "an unknown frame");
    }
}

void check_output(const uint8_t *bytes, size_t length) {
    demand(length <= sizeof waiting - waiting_length, "too much of a frame");
    memcpy(waiting + waiting_length, bytes, length);
    waiting_length += length;
    size_t at = 0;
    while (waiting_length - at >= HEADER_SIZE) {
        const uint8_t *header = waiting + at;
        size_t size = load32(header + 8);
        demand(size <= MAX_PAYLOAD && load16(header + 2) == 0, "a wrong header");
        if (waiting_length - at - HEADER_SIZE < size) break;
        check_frame(header[0], header[1], load32(header + 4), header + HEADER_SIZE, size);
        at += HEADER_SIZE + size;
    }
    memmove(waiting, waiting + at, waiting_length - at);
    waiting_length -= at;
}
