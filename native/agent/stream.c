#include "stream.h"

#include "connection.h"
#include "protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 256
#define DETACHED_STEP 16384

static struct link all = LIST_EMPTY(all);
static struct link buckets[BUCKETS];
static uint32_t highest, count;
static bool trim_due;

struct link *streams_all(void) { return &all; }
uint32_t streams_next(void) { return highest + 1; }

struct stream *stream_find(uint32_t id) {
    struct link *bucket = &buckets[id % BUCKETS];
    if (bucket->next == NULL) return NULL;
    for (struct link *l = bucket->next; l != bucket; l = l->next) {
        struct stream *stream = container(l, struct stream, bucket);
        if (stream->id == id) return stream;
    }
    return NULL;
}

static struct stream *create(uint32_t id) {
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    stream->id = id;
    struct link *bucket = &buckets[id % BUCKETS];
    if (bucket->next == NULL) bucket->next = bucket->prev = bucket;
    list_append(bucket, &stream->bucket);
    list_append(&all, &stream->all);
    count++;
    return stream;
}

static void destroy(struct stream *stream) {
    if (stream->operation != NULL && stream->operation->free != NULL) stream->operation->free(stream);
    list_remove(&stream->all);
    list_remove(&stream->bucket);
    list_remove(&stream->queue);
    ring_free(&stream->output[0].ring);
    ring_free(&stream->output[1].ring);
    free(stream->reply);
    free(stream);
    count--;
}

static bool is_exec(const struct stream *stream) {
    return stream->operation != NULL && stream->operation->number == OP_EXEC;
}

/* Finished processes that nobody released: the oldest go. */
static void trim_finished(void) {
    trim_due = false;
    int finished = 0;
    for (struct link *l = all.prev; l != &all;) {
        struct stream *stream = container(l, struct stream, all);
        l = l->prev;
        if (!stream->finished || stream->reader != READER_DETACHED) continue;
        if (++finished > MAX_FINISHED) destroy(stream);
    }
}

void stream_open_input(struct stream *stream) {
    stream->input_open = true;
    stream->credited = DEFAULT_WINDOW;
}

void stream_open_output(struct stream *stream, int channel) {
    struct output *output = &stream->output[channel - 1];
    output->open = true;
    output->limit = stream->window;
}

void stream_accept(struct stream *stream) {
    stream->state_due = true;
    stream_schedule(stream);
}

void stream_delivered(struct stream *stream, uint64_t length) {
    stream->delivered += length;
    if (stream->input_ended || stream->finished || stream->delivered + DEFAULT_WINDOW - stream->credited < DEFAULT_WINDOW / 4) return;
    stream->credit_due = true;
    stream_schedule(stream);
}

uint8_t *stream_space(struct stream *stream, int channel, size_t *length) {
    struct output *output = &stream->output[channel - 1];
    uint8_t *space = ring_space(&output->ring, stream->window, length);
    if (space != NULL || stream->reader != READER_DETACHED) return space;
    uint64_t held = output->ring.end - output->ring.start;
    ring_drop_to(&output->ring, output->ring.start + (held < DETACHED_STEP ? held : DETACHED_STEP));
    return ring_space(&output->ring, stream->window, length);
}

void stream_wrote(struct stream *stream, int channel, size_t length) {
    ring_wrote(&stream->output[channel - 1].ring, length);
    stream_schedule(stream);
}

bool stream_record(struct stream *stream, const struct builder *record) {
    struct ring *ring = &stream->output[0].ring;
    uint64_t used = ring->end - ring->start;
    if (record->full || used + 4 + record->length > stream->window) return false;
    uint8_t length[4];
    store32(length, (uint32_t)record->length);
    uint64_t end = ring->end;
    if (!ring_append(ring, stream->window, length, sizeof length)) return false;
    if (!ring_append(ring, stream->window, record->bytes, record->length)) {
        ring->end = end;
        return false;
    }
    stream_schedule(stream);
    return true;
}

void stream_end_output(struct stream *stream, int channel) {
    struct output *output = &stream->output[channel - 1];
    if (!output->open || output->ended) return;
    output->ended = true;
    output->final = output->ring.end;
    stream_schedule(stream);
}

void stream_reply(struct stream *stream, uint32_t status, const struct builder *fields) {
    if (stream->finished) return;
    stream_end_output(stream, 1);
    stream_end_output(stream, 2);
    stream->finished = true;
    stream->status = status;
    trim_due = trim_due || stream->reader == READER_DETACHED;
    if (fields != NULL && fields->length > 0) {
        stream->reply = malloc(fields->length);
        if (stream->reply == NULL) stream->status = ENOMEM;
        else memcpy(stream->reply, fields->bytes, stream->reply_length = fields->length);
    }
    stream_schedule(stream);
}

void stream_reply_number(struct stream *stream, uint16_t tag, uint64_t number) {
    uint8_t bytes[16];
    struct builder fields = {bytes, 0, sizeof bytes, false};
    put_number(&fields, tag, number);
    stream_reply(stream, 0, &fields);
}

void streams_stand_still(void) {
    for (struct link *l = all.next; l != &all; l = l->next) {
        struct stream *stream = container(l, struct stream, all);
        if (stream->reader == READER_LINKED) stream->reader = READER_STILL;
        list_remove(&stream->queue);
    }
}

static void detach(struct stream *stream) {
    stream->reader = is_exec(stream) ? READER_DETACHED : READER_STILL;
    list_remove(&stream->queue);
    if (stream->reader == READER_DETACHED && !stream->finished && stream->operation->room != NULL) {
        stream->operation->room(stream);
    }
}

void streams_detach_all(void) {
    for (struct link *l = all.next; l != &all;) {
        struct stream *stream = container(l, struct stream, all);
        l = l->next;
        if (is_exec(stream)) detach(stream);
        else destroy(stream);
    }
    trim_due = true;
}

void streams_tidy(void) {
    if (trim_due) trim_finished();
    if (!ring_memory_returned()) return;
    for (struct link *l = all.next; l != &all; l = l->next) {
        struct stream *stream = container(l, struct stream, all);
        if (!stream->finished && stream->operation->room != NULL) stream->operation->room(stream);
    }
}

static void resume(struct stream *stream, uint64_t offset1, uint64_t offset2) {
    stream->reader = READER_LINKED;
    stream_rewind(stream, offset1, offset2);
    if (!stream->finished && stream->operation->room != NULL) stream->operation->room(stream);
    stream_schedule(stream);
}

static bool request(const struct frame *frame) {
    if (frame->length < 2) return connection_fail("REQUEST without an operation");
    struct fields fields = {frame->payload + 2, frame->length - 2};
    if (!fields_are_whole(fields)) return connection_fail("REQUEST with a broken field");
    struct stream *stream = stream_find(frame->stream);
    if (stream != NULL) {
        resume(stream, stream->output[0].ring.start, stream->output[1].ring.start);
        return true;
    }
    if (frame->stream <= highest) {
        connection_refuse(frame->stream, ESTALE);
        return true;
    }
    highest = frame->stream;
    stream = count < MAX_STREAMS ? create(frame->stream) : NULL;
    if (stream == NULL) {
        connection_refuse(frame->stream, EAGAIN);
        return true;
    }
    uint64_t window = fields_number(fields, TAG_WINDOW, DEFAULT_WINDOW);
    stream->window = (uint32_t)(window < MIN_WINDOW ? MIN_WINDOW : window > MAX_WINDOW ? MAX_WINDOW : window);
    stream->operation = operation_find(load16(frame->payload));
    int error = stream->operation == NULL ? ENOSYS : stream->operation->start(stream, fields);
    if (error != 0) stream_reply(stream, (uint32_t)error, NULL);
    return true;
}

static bool data(struct stream *stream, const struct frame *frame) {
    if (stream->finished) return true; /* it crossed the reply */
    if (!stream->input_open || stream->input_ended) return connection_fail("DATA where no input is taken");
    uint64_t offset = load64(frame->payload);
    size_t length = frame->length - OFFSET_SIZE;
    if (offset != stream->received) return connection_fail("DATA at a wrong offset");
    if (length > stream->credited - stream->received) return connection_fail("DATA beyond the credit");
    stream->received += length;
    stream->operation->input(stream, frame->payload + OFFSET_SIZE, length);
    return true;
}

static bool end(struct stream *stream, const struct frame *frame) {
    if (stream->finished || stream->input_ended) return true;
    if (!stream->input_open) return connection_fail("END where no input is taken");
    if (load64(frame->payload) != stream->received) return connection_fail("END at a wrong offset");
    stream->input_ended = true;
    stream->operation->input_ended(stream);
    return true;
}

static bool credit(struct stream *stream, const struct frame *frame) {
    if (frame->channel != 1 && frame->channel != 2) return connection_fail("CREDIT for a wrong channel");
    struct output *output = &stream->output[frame->channel - 1];
    uint64_t consumed = load64(frame->payload), limit = load64(frame->payload + 8);
    if (!output->open) return connection_fail("CREDIT for a channel that is not there");
    if (consumed > output->sent || limit < consumed) return connection_fail("CREDIT for bytes never sent");
    ring_drop_to(&output->ring, consumed);
    if (limit > output->limit) output->limit = limit;
    if (!stream->finished && stream->operation->room != NULL) stream->operation->room(stream);
    stream_schedule(stream);
    return true;
}

static bool resume_frame(struct stream *stream, const struct frame *frame) {
    uint64_t offset[2] = {load64(frame->payload), load64(frame->payload + 8)};
    for (int i = 0; i < 2; i++) {
        if (offset[i] > stream->output[i].ring.end) return connection_fail("RESUME beyond the end");
    }
    resume(stream, offset[0], offset[1]);
    return true;
}

static bool has_right_length(const struct frame *frame) {
    switch (frame->type) {
    case FRAME_RESUME: case FRAME_CREDIT: return frame->length == 16;
    case FRAME_DATA: return frame->length > OFFSET_SIZE;
    case FRAME_END: return frame->length == OFFSET_SIZE;
    default: return frame->length == 0;
    }
}

bool stream_frame(const struct frame *frame) {
    if (frame->type == FRAME_REQUEST) return request(frame);
    if (!has_right_length(frame)) return connection_fail("a frame of a wrong length");
    if ((frame->type == FRAME_DATA || frame->type == FRAME_END) && frame->channel != 0) {
        return connection_fail("the host sends on channel 0 only");
    }
    struct stream *stream = stream_find(frame->stream);
    if (stream == NULL) {
        if (frame->type == FRAME_RESUME) connection_refuse(frame->stream, ESTALE);
        return true;
    }
    switch (frame->type) {
    case FRAME_RELEASE:
        destroy(stream);
        return true;
    case FRAME_CANCEL:
        if (!stream->finished && stream->operation->cancel != NULL) stream->operation->cancel(stream);
        return true;
    case FRAME_RESUME: return resume_frame(stream, frame);
    case FRAME_DETACH:
        detach(stream);
        trim_due = true;
        return true;
    case FRAME_DATA: return data(stream, frame);
    case FRAME_END: return end(stream, frame);
    default: return credit(stream, frame);
    }
}
