#include "check.h"

#include "fields.h"
#include "frames.h"
#include "protocol.h"
#include "stream.h"

#include <string.h>

static unsigned state;

static unsigned pick(unsigned below) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

/* What each stream has been sent, so that most offsets are right. */
#define STREAMS 64
static uint64_t sent[STREAMS];
static uint32_t base;

static size_t put_frame(uint8_t *at, uint8_t type, uint8_t channel, uint32_t stream, size_t length) {
    frame_write_header(at, type, channel, stream, length);
    return HEADER_SIZE + length;
}

static size_t put_attach(uint8_t *at) {
    memset(at + HEADER_SIZE, 0, 2 * NONCE_SIZE + 2);
    at[HEADER_SIZE] = (uint8_t)pick(256);
    at[HEADER_SIZE + NONCE_SIZE] = (uint8_t)pick(2);
    store16(at + HEADER_SIZE + 2 * NONCE_SIZE, pick(40) == 0 ? 2 : 1);
    return put_frame(at, FRAME_ATTACH, 0, 0, 2 * NONCE_SIZE + 2);
}

static size_t put_request(uint8_t *at, uint32_t stream) {
    static const uint16_t operations[] = {OP_EXEC, OP_EXEC, OP_LIST, OP_READ, OP_PING, 999};
    uint8_t *payload = at + HEADER_SIZE;
    store16(payload, operations[pick(6)]);
    struct builder fields = {payload + 2, 0, 3000, false};
    if (pick(2) == 0) put_number(&fields, TAG_WINDOW, pick(4) == 0 ? pick(2000000) : 16384);
    if (pick(4) == 0) put_number(&fields, TAG_MODE, pick(10));
    if (pick(3) == 0) put_text(&fields, TAG_PATH, "/some/path");
    static const uint8_t argument[2500];
    if (pick(3) == 0) put_bytes(&fields, TAG_ARG, argument, pick(sizeof argument));
    return put_frame(at, FRAME_REQUEST, 0, stream, 2 + fields.length);
}

static size_t put_data(uint8_t *at, uint32_t stream, unsigned slot) {
    size_t length = pick(8) == 0 ? pick(MAX_PAYLOAD - OFFSET_SIZE) + 1 : pick(200) + 1;
    store64(at + HEADER_SIZE, sent[slot]);
    memset(at + HEADER_SIZE + OFFSET_SIZE, pick(3) == 0 ? 0 : 'x', length);
    sent[slot] += length;
    return put_frame(at, FRAME_DATA, 0, stream, OFFSET_SIZE + length);
}

static size_t put_pair(uint8_t *at, uint8_t type, uint32_t stream) {
    uint64_t consumed = pick(2) == 0 ? 0 : pick(20000);
    store64(at + HEADER_SIZE, consumed);
    store64(at + HEADER_SIZE + 8, type == FRAME_CREDIT ? consumed + pick(300000) : pick(3) == 0 ? pick(3000) : 0);
    return put_frame(at, type, type == FRAME_CREDIT ? (uint8_t)(1 + pick(2)) : 0, stream, 16);
}

static size_t put_any(uint8_t *at) {
    unsigned slot = pick(STREAMS);
    uint32_t stream = base + slot;
    switch (pick(14)) {
    case 0: case 1: case 2: return put_request(at, stream);
    case 3: case 4: case 5: return put_data(at, stream, slot);
    case 6: case 7: return put_pair(at, FRAME_CREDIT, stream);
    case 8: return put_pair(at, FRAME_RESUME, stream);
    case 9: return put_frame(at, FRAME_RELEASE, 0, stream, 0);
    case 10: return put_frame(at, FRAME_CANCEL, 0, stream, 0);
    case 11: return put_frame(at, FRAME_DETACH, 0, stream, 0);
    case 12:
        store64(at + HEADER_SIZE, sent[slot]);
        return put_frame(at, FRAME_END, 0, stream, OFFSET_SIZE);
    default: return pick(20) == 0 ? put_attach(at) : (*at = 0, (size_t)1);
    }
}

size_t make_input(unsigned seed, uint8_t *bytes, size_t size) {
    state = seed * 2654435761u + 1;
    /* Numbers are never used twice in the agent's life. */
    base = streams_next();
    memset(sent, 0, sizeof sent);
    size_t length = 0;
    if (pick(8) == 0) {
        length = MAX_FRAME;
        memset(bytes, 0, length);
    }
    length += put_attach(bytes + length);
    unsigned frames = 1 + pick(200);
    for (unsigned i = 0; i < frames && size - length > 2 * MAX_FRAME; i++) {
        length += put_any(bytes + length);
        if (pick(100) == 0) { /* a broken connection, taken over */
            length -= pick(8);
            memset(bytes + length, 0, MAX_FRAME);
            length += MAX_FRAME;
            length += put_attach(bytes + length);
        }
    }
    /* Some inputs are broken anywhere. */
    if (pick(3) == 0) {
        for (unsigned i = pick(8); i > 0; i--) bytes[pick((unsigned)length)] = (uint8_t)pick(256);
    }
    return length;
}
