/* Streams: one request each, with its byte channels, credit, and what must still be said. */
#pragma once

#include "fields.h"
#include "frames.h"
#include "list.h"
#include "ring.h"

#include <stdbool.h>
#include <stdint.h>

enum reader {
    READER_LINKED,   /* the host reads */
    READER_STILL,    /* the connection was lost: nothing is sent, nothing is dropped */
    READER_DETACHED, /* nobody reads: a process goes on, the oldest output is dropped */
};

struct output {
    struct ring ring;
    uint64_t sent, limit, final;
    bool open, ended, end_sent;
};

struct stream {
    struct link all, bucket, queue;
    uint32_t id, window;
    const struct operation *operation;
    void *work; /* the operation's own */
    enum reader reader;
    bool is_urgent, state_due, credit_due, finished, reply_sent;
    bool input_open, input_ended;
    uint64_t received, delivered, credited;
    struct output output[2];
    uint32_t status;
    uint8_t *reply;
    size_t reply_length;
};

/* What a kind of request does. Callbacks may be NULL; none of them is called after the reply,
 * but `free`, which ends whatever goes on. */
struct operation {
    uint16_t number;
    /* 0, or an errno: the request is answered with it at once. */
    int (*start)(struct stream *stream, struct fields request);
    void (*input)(struct stream *stream, const uint8_t *bytes, size_t length);
    void (*input_ended)(struct stream *stream);
    /* Channels 1 and 2 have room again. */
    void (*room)(struct stream *stream);
    /* Instead of a ring: what comes at `offset`, less than `size` only at the end (the stream
     * is then answered with SIZE) or after a reply with an error. May be asked again. */
    size_t (*fill)(struct stream *stream, uint64_t offset, uint8_t *bytes, size_t size);
    void (*describe)(struct stream *stream, struct builder *state);
    void (*cancel)(struct stream *stream);
    void (*free)(struct stream *stream);
};

const struct operation *operation_find(uint16_t number);

/* For operations. */
void stream_open_input(struct stream *stream);
void stream_open_output(struct stream *stream, int channel);
void stream_accept(struct stream *stream);
/* Input that arrived was used up: the host may send as much again. */
void stream_delivered(struct stream *stream, uint64_t length);
uint8_t *stream_space(struct stream *stream, int channel, size_t *length);
void stream_wrote(struct stream *stream, int channel, size_t length);
/* A whole record; false: no room for it now. */
bool stream_record(struct stream *stream, const struct builder *record);
void stream_end_output(struct stream *stream, int channel);
void stream_reply(struct stream *stream, uint32_t status, const struct builder *fields);
/* The same, where a simple answer will do. */
void stream_reply_number(struct stream *stream, uint16_t tag, uint64_t number);

/* For the connection. */
bool stream_frame(const struct frame *frame);
void streams_stand_still(void);
void streams_detach_all(void);
uint32_t streams_next(void);
struct stream *stream_find(uint32_t id);
struct link *streams_all(void);
/* One frame, of the next stream whose turn it is; false: nothing to send, or no room. */
bool streams_send(void);
bool streams_have_something(void);
/* Before each sleep: lets streams go on that could not get memory, forgets the oldest
 * finished processes. */
void streams_tidy(void);

/* Between stream.c and send.c. */
void stream_schedule(struct stream *stream);
void stream_rewind(struct stream *stream, uint64_t offset1, uint64_t offset2);
