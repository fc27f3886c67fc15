/* READ: a file's bytes, read when they can be sent and again if the host lost them. */
#define _GNU_SOURCE
#include "operations.h"

#include "path.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

struct reading {
    int fd;
    uint64_t offset, size;
};

static int open_file(struct fields request, int *fd) {
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    user_enter(&user);
    /* A FIFO would wait for its writer without O_NONBLOCK. */
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*fd < 0) error = errno == ENXIO ? EINVAL : errno; /* a socket's errno */
    user_leave(&user);
    struct stat status;
    if (error == 0 && fstat(*fd, &status) != 0) error = errno;
    else if (error == 0 && S_ISDIR(status.st_mode)) error = EISDIR;
    else if (error == 0 && (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode))) error = EINVAL;
    if (error != 0 && *fd >= 0) close(*fd);
    return error;
}

static int start(struct stream *stream, struct fields request) {
    uint64_t offset = fields_number(request, TAG_OFFSET, 0), size = fields_number(request, TAG_SIZE, INT64_MAX);
    if (offset > INT64_MAX || size > INT64_MAX - offset) size = INT64_MAX - (offset <= INT64_MAX ? offset : 0);
    if (offset > INT64_MAX) return EINVAL;
    int fd = -1;
    int error = open_file(request, &fd);
    if (error != 0) return error;
    struct reading *reading = malloc(sizeof *reading);
    if (reading == NULL) {
        close(fd);
        return ENOMEM;
    }
    *reading = (struct reading){fd, offset, size};
    stream->work = reading;
    stream_open_output(stream, 1);
    stream_accept(stream);
    return 0;
}

/* Devices that cannot seek are read on from where they stand. */
static ssize_t read_at(const struct reading *reading, uint8_t *bytes, size_t size, uint64_t offset) {
    ssize_t n = pread(reading->fd, bytes, size, (off_t)(reading->offset + offset));
    return n < 0 && errno == ESPIPE ? read(reading->fd, bytes, size) : n;
}

static size_t fill(struct stream *stream, uint64_t offset, uint8_t *bytes, size_t size) {
    struct reading *reading = stream->work;
    if (size > reading->size - offset) size = (size_t)(reading->size - offset);
    size_t length = 0;
    /* Files of /proc give what they have in pieces; only 0 is the end. */
    while (length < size) {
        ssize_t n = read_at(reading, bytes + length, size - length, offset + length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && length == 0) stream_reply(stream, (uint32_t)errno, NULL);
        if (n <= 0) break;
        length += (size_t)n;
    }
    return length;
}

static void cancel(struct stream *stream) {
    stream_reply(stream, ECANCELED, NULL);
}

static void forget(struct stream *stream) {
    struct reading *reading = stream->work;
    if (reading == NULL) return;
    close(reading->fd);
    free(reading);
}

const struct operation read_operation = {
    .number = OP_READ, .start = start, .fill = fill, .cancel = cancel, .free = forget,
};
