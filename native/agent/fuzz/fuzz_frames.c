/* Fuzzes what a host can send: frames, attaching, credit, streams, and operations that stand for
 * the real ones without touching the machine.
 *
 * Links: fuzz/check.c fuzz/make_input.c frames.c connection.c stream.c send.c ring.c fields.c
 *
 * The port and the operations are made here. From native/agent (`make fuzz` does the same):
 *
 *   gcc -std=c11 -g -O1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -I. \
 *       -o /tmp/fuzz_frames fuzz/fuzz_frames.c fuzz/check.c fuzz/make_input.c \
 *       frames.c connection.c stream.c send.c ring.c fields.c
 *   /tmp/fuzz_frames 60            sixty seconds of inputs made here
 *   /tmp/fuzz_frames FILE...       replays inputs ("-" is standard input)
 *
 * An input that fails is left in fuzz_frames.failed.
 *
 * With clang's libFuzzer: -DLIBFUZZER and -fsanitize=fuzzer,address,undefined.
 * Besides what the sanitizers find, the agent's own output is checked: whole frames, offsets in
 * order, never beyond the credit, nothing after a reply. */
#define _GNU_SOURCE
#include "check.h"
#include "connection.h"
#include "fields.h"
#include "port.h"
#include "protocol.h"
#include "stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH 200

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* The port: gives the input in pieces, takes what the agent says in part or not at all. */
static const uint8_t *input;
static size_t input_size, input_at;
static unsigned whims;

static unsigned whim(unsigned below) {
    whims = whims * 1103515245u + 12345u;
    return (whims >> 16) % below;
}

bool port_can_read(void) { return input_at < input_size; }
bool port_can_write(void) { return whim(8) != 0; }

size_t port_read(uint8_t *bytes, size_t size) {
    size_t n = input_size - input_at;
    if (n > size) n = size;
    if (n > 4096) n = 4096;
    if (n > 1 && whim(4) == 0) n = 1 + whim((unsigned)n);
    memcpy(bytes, input + input_at, n);
    input_at += n;
    return n;
}

size_t port_write(const uint8_t *bytes, size_t length) {
    if (length > PORT_PIECE) abort();
    if (whim(6) == 0) return 0;
    if (whim(6) == 0) length = 1 + whim((unsigned)length);
    check_output(bytes, length);
    return length;
}

/* An operation with every channel: echoes its input to channel 1, says something on channel 2. */
static void echo(struct stream *stream, const uint8_t *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        size_t room;
        uint8_t *space = stream_space(stream, 1 + (int)(done & 1), &room);
        if (space == NULL) break;
        if (room > length - done) room = length - done;
        memcpy(space, bytes + done, room);
        stream_wrote(stream, 1 + (int)(done & 1), room);
        done += room;
    }
    stream_delivered(stream, length);
}

static void echo_ended(struct stream *stream) { stream_reply_number(stream, TAG_SIZE, stream->received); }
static void echo_cancel(struct stream *stream) { stream_reply(stream, ECANCELED, NULL); }

static void echo_room(struct stream *stream) {
    uint8_t bytes[64];
    struct builder record = {bytes, 0, sizeof bytes, false};
    put_text(&record, TAG_NAME, "room");
    if (stream->output[0].ring.end < 100000) stream_record(stream, &record);
}

static int echo_start(struct stream *stream, struct fields request) {
    if (fields_number(request, TAG_MODE, 0) == 7) return EPERM;
    stream_open_input(stream);
    stream_open_output(stream, 1);
    stream_open_output(stream, 2);
    stream_accept(stream);
    struct field field;
    while (fields_next(&request, &field)) {
        char text[64];
        if (field.tag == TAG_ARG) echo(stream, field.bytes, field.length);
        if (fields_text(request, TAG_PATH, text, sizeof text) == 0) echo(stream, (uint8_t *)text, strlen(text));
    }
    return 0;
}

static size_t zeros_fill(struct stream *stream, uint64_t offset, uint8_t *bytes, size_t size) {
    uint64_t total = stream->id * 1000u;
    if (offset >= total) return 0;
    if (size > total - offset) size = (size_t)(total - offset);
    memset(bytes, 0, size);
    return size;
}

static int zeros_start(struct stream *stream, struct fields request) {
    (void)request;
    stream_open_output(stream, 1);
    stream_accept(stream);
    return 0;
}

static int ping_start(struct stream *stream, struct fields request) {
    stream_reply_number(stream, TAG_SIZE, request.length);
    return 0;
}

const struct operation *operation_find(uint16_t number) {
    static const struct operation exec = {
        .number = OP_EXEC, .start = echo_start, .input = echo, .input_ended = echo_ended,
        .room = echo_room, .cancel = echo_cancel,
    }, list = {
        .number = OP_LIST, .start = echo_start, .input = echo, .input_ended = echo_ended,
        .room = echo_room, .cancel = echo_cancel,
    }, read = {.number = OP_READ, .start = zeros_start, .fill = zeros_fill, .cancel = echo_cancel},
       ping = {.number = OP_PING, .start = ping_start};
    return number == OP_EXEC ? &exec : number == OP_LIST ? &list : number == OP_READ ? &read
         : number == OP_PING ? &ping : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    input = bytes;
    input_size = size;
    input_at = 0;
    whims = size > 0 ? bytes[size - 1] : 0;
    ring_limit_all(whims % 4 == 0 ? 65536 : 8 << 20);
    check_reset();
    connection_up();
    for (int idle = 0, turns = 0; idle < 50; turns++) {
        if (!connection_serve()) idle++;
        check_turns(turns);
    }
    connection_down();
    check_reset();
    streams_detach_all();
    while (!list_is_empty(streams_all())) {
        struct stream *stream = container(streams_all()->next, struct stream, all);
        struct frame frame = {FRAME_RELEASE, 0, stream->id, bytes, 0};
        stream_frame(&frame);
    }
    return 0;
}

#ifndef LIBFUZZER
static void replay(const char *path) {
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    static uint8_t bytes[4 << 20];
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof bytes, file));
    if (file != stdin) fclose(file);
}

/* In a process of its own: an input may use up the numbers of an agent's life. */
static void run_some(unsigned seed) {
    static uint8_t bytes[1 << 20];
    for (unsigned i = 0; i < BATCH && streams_next() < UINT32_MAX / 2; i++) {
        size_t size = make_input(seed + i, bytes, sizeof bytes);
        check_input(bytes, size);
        LLVMFuzzerTestOneInput(bytes, size);
    }
}

static int run_for(long seconds) {
    time_t until = time(NULL) + seconds;
    unsigned batches = 0;
    for (unsigned seed = (unsigned)time(NULL); time(NULL) < until; seed += BATCH, batches++) {
        pid_t child = fork();
        if (child == 0) {
            run_some(seed);
            _exit(0);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
    }
    printf("%u batches of up to %d inputs, nothing found\n", batches, BATCH);
    return 0;
}

int main(int count, char **arguments) {
    char *end = NULL;
    long seconds = count == 2 ? strtol(arguments[1], &end, 10) : 10;
    if (count < 2 || (seconds > 0 && *end == 0)) return run_for(seconds);
    for (int i = 1; i < count; i++) replay(arguments[i]);
    return 0;
}
#endif
