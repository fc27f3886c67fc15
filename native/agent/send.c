/* What streams have to say, in fair turns: small frames before data, and of the data one frame
 * of each stream after the other. */
#include "stream.h"

#include "frames.h"
#include "port.h"
#include "protocol.h"

#include <errno.h>
#include <string.h>

#define MAX_DATA (PORT_PIECE - HEADER_SIZE - OFFSET_SIZE)
/* Data this short waits for the frames after it, to leave with them in one write. */
#define SHORT_DATA 4096

_Static_assert(RING_HEADROOM == HEADER_SIZE + OFFSET_SIZE, "a DATA header fits before a ring's bytes");

static struct link urgent = LIST_EMPTY(urgent), bulk = LIST_EMPTY(bulk);
static uint8_t piece[PORT_PIECE];

static bool has_data(const struct stream *stream, int i) {
    const struct output *output = &stream->output[i];
    if (!output->open || output->sent >= output->limit) return false;
    if (stream->operation->fill != NULL) return !output->ended || output->sent < output->final;
    return output->sent < output->ring.end;
}

static bool has_end(const struct stream *stream, int i) {
    const struct output *output = &stream->output[i];
    return output->open && output->ended && !output->end_sent && output->sent == output->final;
}

static bool has_reply(const struct stream *stream) {
    if (!stream->finished || stream->reply_sent) return false;
    for (int i = 0; i < 2; i++) {
        if (stream->output[i].open && !stream->output[i].end_sent) return false;
    }
    return true;
}

static bool has_any_data(const struct stream *stream) {
    return has_data(stream, 0) || has_data(stream, 1);
}

static bool has_control(const struct stream *stream) {
    return stream->state_due || stream->credit_due || has_end(stream, 0) || has_end(stream, 1) || has_reply(stream);
}

void stream_schedule(struct stream *stream) {
    bool is_queued = stream->queue.next != NULL;
    if (stream->reader != READER_LINKED || (is_queued && stream->is_urgent)) return;
    if (has_control(stream)) {
        list_remove(&stream->queue);
        list_append(&urgent, &stream->queue);
        stream->is_urgent = true;
    } else if (!is_queued && has_any_data(stream)) {
        list_append(&bulk, &stream->queue);
        stream->is_urgent = false;
    }
}

bool streams_have_something(void) {
    return !list_is_empty(&urgent) || !list_is_empty(&bulk);
}

void stream_rewind(struct stream *stream, uint64_t offset1, uint64_t offset2) {
    uint64_t offset[2] = {offset1, offset2};
    for (int i = 0; i < 2; i++) {
        struct output *output = &stream->output[i];
        if (!output->open) continue;
        ring_drop_to(&output->ring, offset[i]);
        output->sent = offset[i] > output->ring.start ? offset[i] : output->ring.start;
        if (stream->operation->fill != NULL) output->sent = offset[i];
        output->limit = output->sent + stream->window;
        output->end_sent = false;
    }
    stream->reply_sent = false;
    stream->credit_due = stream->input_open && !stream->input_ended && !stream->finished;
    stream->state_due = true;
}

static bool send_state(struct stream *stream) {
    uint8_t bytes[256];
    struct builder state = {bytes, 0, sizeof bytes, false};
    if (stream->input_open) put_number(&state, TAG_RECEIVED, stream->received);
    for (int i = 0; i < 2; i++) {
        struct output *output = &stream->output[i];
        uint64_t first = stream->operation != NULL && stream->operation->fill != NULL ? 0 : output->ring.start;
        if (output->open) put_number(&state, i == 0 ? TAG_FIRST1 : TAG_FIRST2, first);
    }
    if (stream->operation != NULL && stream->operation->describe != NULL) stream->operation->describe(stream, &state);
    uint8_t *payload = frames_add(FRAME_STATE, 0, stream->id, state.length);
    if (payload == NULL) return false;
    memcpy(payload, bytes, state.length);
    stream->state_due = false;
    return true;
}

static bool send_credit(struct stream *stream) {
    uint8_t *payload = frames_add(FRAME_CREDIT, 0, stream->id, 16);
    if (payload == NULL) return false;
    stream->credited = stream->delivered + DEFAULT_WINDOW;
    store64(payload, stream->received);
    store64(payload + 8, stream->credited);
    stream->credit_due = false;
    return true;
}

static bool send_end(struct stream *stream, int i) {
    uint8_t *payload = frames_add(FRAME_END, (uint8_t)(i + 1), stream->id, OFFSET_SIZE);
    if (payload == NULL) return false;
    store64(payload, stream->output[i].final);
    stream->output[i].end_sent = true;
    return true;
}

static bool send_reply(struct stream *stream) {
    uint8_t *payload = frames_add(FRAME_REPLY, 0, stream->id, 4 + stream->reply_length);
    if (payload == NULL) return false;
    store32(payload, stream->status);
    if (stream->reply_length > 0) memcpy(payload + 4, stream->reply, stream->reply_length);
    stream->reply_sent = true;
    return true;
}

/* Writes a frame whose header goes in the bytes before `data`. */
static bool write_data(struct stream *stream, int i, uint8_t *data, size_t length) {
    uint8_t *header = data - RING_HEADROOM;
    frame_write_header(header, FRAME_DATA, (uint8_t)(i + 1), stream->id, OFFSET_SIZE + length);
    store64(header + HEADER_SIZE, stream->output[i].sent);
    return frames_write(header, RING_HEADROOM + length);
}

static bool send_short(struct stream *stream, int i, const uint8_t *data, size_t length) {
    uint8_t *payload = frames_add(FRAME_DATA, (uint8_t)(i + 1), stream->id, OFFSET_SIZE + length);
    if (payload == NULL) return false;
    store64(payload, stream->output[i].sent);
    memcpy(payload + OFFSET_SIZE, data, length);
    return true;
}

static bool send_ring(struct stream *stream, int i) {
    struct output *output = &stream->output[i];
    size_t length;
    uint8_t *data = ring_data(&output->ring, output->sent, &length);
    if (length > output->limit - output->sent) length = (size_t)(output->limit - output->sent);
    if (length > MAX_DATA) length = MAX_DATA;
    bool sent;
    if (length <= SHORT_DATA) {
        sent = send_short(stream, i, data, length);
    } else {
        /* The header takes the place of bytes that are still needed. */
        uint8_t saved[RING_HEADROOM];
        memcpy(saved, data - RING_HEADROOM, RING_HEADROOM);
        sent = write_data(stream, i, data, length);
        memcpy(data - RING_HEADROOM, saved, RING_HEADROOM);
    }
    if (sent) output->sent += length;
    return sent;
}

static bool send_filled(struct stream *stream) {
    struct output *output = &stream->output[0];
    /* What is read in vain is read again. */
    if (!port_can_write()) return false;
    uint64_t size = output->limit - output->sent;
    if (output->ended && size > output->final - output->sent) size = output->final - output->sent;
    if (size > MAX_DATA) size = MAX_DATA;
    uint8_t *data = piece + RING_HEADROOM;
    size_t length = stream->operation->fill(stream, output->sent, data, (size_t)size);
    if (length > SHORT_DATA ? !write_data(stream, 0, data, length)
                            : length > 0 && !send_short(stream, 0, data, length)) return false;
    output->sent += length;
    if (output->sent > output->ring.end) output->ring.end = output->sent;
    if (length < size) {
        /* What a host saw before it came back may be gone: the file was cut meanwhile. */
        if (output->ended && stream->status == 0 && output->sent < output->final) stream->status = EIO;
        output->ended = true;
        output->final = output->sent;
        stream_reply_number(stream, TAG_SIZE, output->final);
    }
    return true;
}

static bool send_data(struct stream *stream) {
    if (stream->operation->fill != NULL) return send_filled(stream);
    if (has_data(stream, 0) && !send_ring(stream, 0)) return false;
    return !has_data(stream, 1) || send_ring(stream, 1);
}

static bool send_next(struct stream *stream) {
    if (stream->state_due) return send_state(stream);
    if (stream->credit_due) return send_credit(stream);
    if (has_end(stream, 0)) return send_end(stream, 0);
    if (has_end(stream, 1)) return send_end(stream, 1);
    if (has_reply(stream)) return send_reply(stream);
    return !has_any_data(stream) || send_data(stream);
}

bool streams_send(void) {
    struct link *first = !list_is_empty(&urgent) ? urgent.next : bulk.next;
    if (first == &bulk) return false;
    struct stream *stream = container(first, struct stream, queue);
    if (!send_next(stream)) return false;
    list_remove(first);
    stream_schedule(stream);
    return true;
}
