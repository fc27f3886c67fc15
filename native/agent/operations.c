#include "operations.h"

#include "protocol.h"

#include <stddef.h>

#define MAX_SIMPLE_REPLY 8192

static int do_ping(struct fields request, struct builder *reply) {
    (void)request;
    (void)reply;
    return 0;
}

static const struct {
    uint16_t number;
    int (*run)(struct fields request, struct builder *reply);
} simple[] = {
    {OP_PING, do_ping},         {OP_CONFIGURE, do_configure}, {OP_METRICS, do_metrics},
    {OP_CLOCK, do_clock},       {OP_ENTROPY, do_entropy},     {OP_SHUTDOWN, do_shutdown},
    {OP_SIGNAL, do_signal},     {OP_RESIZE, do_resize},       {OP_STAT, do_stat},
    {OP_MKDIR, do_mkdir},       {OP_RENAME, do_rename},       {OP_CHMOD, do_chmod},
    {OP_SYMLINK, do_symlink},   {OP_READLINK, do_readlink},   {OP_TRUNCATE, do_truncate},
    {OP_UTIME, do_utime},       {OP_CHOWN, do_chown},
};
#define SIMPLE_COUNT (sizeof simple / sizeof *simple)

static int start_simple(struct stream *stream, struct fields request);

/* One for each, so that a stream's operation tells its number. */
static struct operation simple_operations[SIMPLE_COUNT];

static const struct operation *const others[] = {
    &exec_operation,   &processes_operation, &read_operation,  &write_operation,
    &list_operation,   &remove_operation,    &watch_operation, &connect_operation,
};

const struct operation *operation_find(uint16_t number) {
    for (size_t i = 0; i < SIMPLE_COUNT; i++) {
        if (simple[i].number != number) continue;
        simple_operations[i].number = number;
        simple_operations[i].start = start_simple;
        return &simple_operations[i];
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (others[i]->number == number) return others[i];
    }
    return NULL;
}

static int start_simple(struct stream *stream, struct fields request) {
    static uint8_t bytes[MAX_SIMPLE_REPLY];
    struct builder reply = {bytes, 0, sizeof bytes, false};
    size_t i = (size_t)(stream->operation - simple_operations);
    int error = simple[i].run(request, &reply);
    if (error == 0) stream_reply(stream, 0, &reply);
    return error;
}
