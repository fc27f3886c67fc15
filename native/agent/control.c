/* SIGNAL, RESIZE and PROCESSES: what concerns processes that run already. */
#define _GNU_SOURCE
#include "operations.h"

#include "process.h"
#include "protocol.h"
#include "terminal.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static struct process *target_of(struct fields request) {
    uint64_t target = fields_number(request, TAG_TARGET, 0);
    return target <= UINT32_MAX ? process_of((uint32_t)target) : NULL;
}

int do_signal(struct fields request, struct builder *reply) {
    (void)reply;
    struct process *process = target_of(request);
    uint64_t number = fields_number(request, TAG_SIGNAL, 0);
    if (number == 0 || number >= NSIG) return EINVAL;
    if (process == NULL) return ESRCH;
    if (number == SIGKILL) process->killed = true;
    if (fields_number(request, TAG_TREE, 0) != 0) return process_signal_tree(process, (int)number) ? 0 : ESRCH;
    if (!process->running) return ESRCH;
    if (process->is_terminal && terminal_signal(process->pull[0].source.fd, (int)number)) return 0;
    return kill(process->pid, (int)number) == 0 ? 0 : errno;
}

int do_resize(struct fields request, struct builder *reply) {
    (void)reply;
    struct process *process = target_of(request);
    if (process == NULL || !process->is_terminal || process->pull[0].source.fd < 0) return process == NULL ? ESRCH : ENOTTY;
    uint64_t rows = fields_number(request, TAG_ROWS, 24), columns = fields_number(request, TAG_COLS, 80);
    return terminal_resize(process->pull[0].source.fd, rows, columns) ? 0 : errno;
}

#define MAX_RECORD (sizeof(((struct process *)NULL)->arguments) + 512)

/* All that runs, as of the request: records of a few hundred bytes for at most MAX_STREAMS. */
struct table {
    uint8_t *bytes;
    size_t length, size;
};

static void put_process(struct builder *record, const struct process *process) {
    put_number(record, TAG_STREAM, process->stream->id);
    put_number(record, TAG_PID, (uint64_t)process->pid);
    struct fields arguments = {process->arguments, process->arguments_length};
    struct field field;
    while (fields_next(&arguments, &field)) put_bytes(record, TAG_ARG, field.bytes, field.length);
    if (process->name[0] != 0) put_text(record, TAG_NAME, process->name);
    put_number(record, TAG_STARTED, process->started_ns);
    if (process->is_terminal) put_number(record, TAG_PTY, 1);
    if (process->background) put_number(record, TAG_BACKGROUND, 1);
    put_text(record, TAG_USER, process->user);
    if (!process->ended) return;
    if (WIFSIGNALED(process->status)) put_number(record, TAG_SIGNAL, (uint64_t)WTERMSIG(process->status));
    else put_number(record, TAG_EXIT, (uint64_t)WEXITSTATUS(process->status));
}

static void add(struct process *process, void *with) {
    struct table *table = with;
    if (process->stream == NULL || process->pid <= 0) return;
    uint8_t bytes[MAX_RECORD];
    struct builder record = {bytes, 0, sizeof bytes, false};
    put_process(&record, process);
    size_t needed = table->length + 4 + record.length;
    if (needed > table->size) {
        uint8_t *larger = realloc(table->bytes, needed * 2);
        if (larger == NULL) return;
        table->bytes = larger;
        table->size = needed * 2;
    }
    store32(table->bytes + table->length, (uint32_t)record.length);
    memcpy(table->bytes + table->length + 4, bytes, record.length);
    table->length = needed;
}

static size_t fill(struct stream *stream, uint64_t offset, uint8_t *bytes, size_t size) {
    struct table *table = stream->work;
    size_t left = table->length - (size_t)offset;
    if (size > left) size = left;
    if (size > 0) memcpy(bytes, table->bytes + offset, size);
    return size;
}

static int start(struct stream *stream, struct fields request) {
    (void)request;
    struct table *table = calloc(1, sizeof *table);
    if (table == NULL) return ENOMEM;
    stream->work = table;
    processes_each(add, table);
    stream_open_output(stream, 1);
    stream_accept(stream);
    return 0;
}

static void cancel(struct stream *stream) {
    stream_reply(stream, ECANCELED, NULL);
}

static void forget(struct stream *stream) {
    struct table *table = stream->work;
    if (table == NULL) return;
    free(table->bytes);
    free(table);
}

const struct operation processes_operation = {
    .number = OP_PROCESSES, .start = start, .fill = fill, .cancel = cancel, .free = forget,
};
