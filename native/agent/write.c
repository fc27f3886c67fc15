/* WRITE: into a file beside the old one, which takes its place at the end; or behind it. */
#define _GNU_SOURCE
#include "operations.h"

#include "path.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_LINKS 40
#define FILE_MODE 0644
/* Since Linux 5.8; musl does not have it. */
#define MOUNT_ROOT 0x2000

struct writing {
    struct user user;
    int directory, fd;
    char name[NAME_MAX + 1], temporary[48]; /* no temporary: the file itself is written */
    bool replaces, created;
    uint64_t size, expected;
    off_t old_size; /* of a file that is appended to; -1: it is not */
    struct stat old;
};

/* Opens the directory that `path` lies in and finds its name there; follows links that lead to
 * nothing yet, which open() with O_EXCL would not. As the user. */
static int find_place(const char *path, struct writing *writing) {
    char at[PATH_MAX], target[PATH_MAX];
    snprintf(at, sizeof at, "%s", path);
    for (int links = 0; links < MAX_LINKS; links++) {
        ssize_t n = readlink(at, target, sizeof target - 1);
        char *slash = strrchr(at, '/');
        if (n < 0) {
            if (errno != EINVAL && errno != ENOENT) return errno;
            if (slash[1] == 0) return EISDIR;
            if (strlen(slash + 1) > NAME_MAX) return ENAMETOOLONG;
            strcpy(writing->name, slash + 1);
            slash[slash == at] = 0;
            writing->directory = open(at, O_PATH | O_DIRECTORY | O_CLOEXEC);
            return writing->directory >= 0 ? 0 : errno;
        }
        target[n] = 0;
        size_t room = sizeof at - (size_t)(slash + 1 - at);
        if (target[0] == '/') strcpy(at, target);
        else if (snprintf(slash + 1, room, "%s", target) >= (int)room) return ENAMETOOLONG;
    }
    return ELOOP;
}

static bool may_write(const struct writing *writing) {
    return syscall(SYS_faccessat2, writing->directory, writing->name, W_OK, AT_EACCESS) == 0 || errno == ENOSYS;
}

static int open_itself(struct writing *writing, int flags) {
    writing->fd = openat(writing->directory, writing->name,
                         O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW | flags);
    return writing->fd >= 0 ? 0 : errno;
}

static int open_append(struct writing *writing, bool exists, mode_t mode) {
    int error = open_itself(writing, O_APPEND | (exists ? 0 : O_CREAT | O_EXCL));
    if (error != 0) return error;
    writing->created = !exists;
    if (writing->created && fchmod(writing->fd, mode) != 0) return errno;
    if (fstat(writing->fd, &writing->old) != 0) return errno;
    writing->old_size = S_ISREG(writing->old.st_mode) ? writing->old.st_size : -1;
    return 0;
}

static int open_temporary(struct writing *writing) {
    static unsigned counter;
    for (int i = 0; i < 100; i++) {
        snprintf(writing->temporary, sizeof writing->temporary, ".nova-write-%d-%u", getpid(), counter++);
        writing->fd = openat(writing->directory, writing->temporary,
                             O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (writing->fd >= 0) return 0;
        if (errno != EEXIST) break;
    }
    writing->temporary[0] = 0;
    return errno;
}

/* Nothing can take the place of a file that another one is bound over, as /etc/hosts. */
static bool is_bound(const struct writing *writing) {
    struct statx status;
    return statx(writing->directory, writing->name, AT_SYMLINK_NOFOLLOW, 0, &status) == 0
        && (status.stx_attributes & MOUNT_ROOT) != 0;
}

/* A file that the user may write is replaced with the agent's own rights, to keep its owner: the
 * user needs none on the directory for that, as he would not to write into the file. */
static int open_replacement(struct writing *writing, bool has_mode, mode_t mode) {
    const struct stat *old = &writing->old;
    if (!may_write(writing)) return errno;
    if (has_mode && writing->user.uid != 0 && writing->user.uid != old->st_uid) return EPERM;
    if (is_bound(writing)) {
        int error = open_itself(writing, O_TRUNC);
        return error == 0 && has_mode && fchmod(writing->fd, mode) != 0 ? errno : error;
    }
    user_leave(&writing->user);
    int error = open_temporary(writing);
    if (error == 0) {
        mode_t kept = old->st_mode & (writing->user.uid == 0 ? 07777 : 01777);
        if (fchown(writing->fd, old->st_uid, old->st_gid) != 0) error = errno;
        else if (fchmod(writing->fd, has_mode ? mode : kept) != 0) error = errno;
    }
    user_enter(&writing->user);
    writing->replaces = true;
    /* Where no file can be made, as in /proc and /sys, the old one is written. */
    return writing->temporary[0] != 0 ? error : open_itself(writing, O_TRUNC);
}

static int open_target(struct writing *writing, const char *path, struct fields request) {
    int error = find_place(path, writing);
    if (error != 0) return error;
    bool append = fields_number(request, TAG_APPEND, 0) != 0;
    uint64_t mode = fields_number(request, TAG_MODE, UINT64_MAX);
    bool has_mode = mode != UINT64_MAX, exists = true;
    if (has_mode && mode > 07777) return EINVAL;
    if (fstatat(writing->directory, writing->name, &writing->old, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT) return errno;
        exists = false;
    }
    if (exists && S_ISDIR(writing->old.st_mode)) return EISDIR;
    if (exists && S_ISSOCK(writing->old.st_mode)) return EINVAL;
    mode_t new_mode = has_mode ? (mode_t)mode : FILE_MODE;
    if (append) return open_append(writing, exists, new_mode);
    if (exists && !S_ISREG(writing->old.st_mode)) return open_itself(writing, 0);
    if (exists) return open_replacement(writing, has_mode, new_mode);
    error = open_temporary(writing);
    return error == 0 && fchmod(writing->fd, new_mode) != 0 ? errno : error;
}

static void close_writing(struct writing *writing) {
    if (writing->fd >= 0) close(writing->fd);
    if (writing->directory >= 0) close(writing->directory);
    writing->fd = writing->directory = -1;
}

/* Leaves everything as it was before. What the user made is removed with his rights: another
 * one's file may be in its place by now. */
static void undo(struct writing *writing) {
    if (writing->fd < 0) return;
    if (!writing->replaces) user_enter(&writing->user);
    if (writing->temporary[0] != 0) unlinkat(writing->directory, writing->temporary, 0);
    else if (writing->created) unlinkat(writing->directory, writing->name, 0);
    else if (writing->old_size >= 0 && ftruncate(writing->fd, writing->old_size) != 0) writing->old_size = -1;
    if (!writing->replaces) user_leave(&writing->user);
    close_writing(writing);
}

static void fail(struct stream *stream, int error) {
    undo(stream->work);
    stream_reply(stream, (uint32_t)error, NULL);
}

static int start(struct stream *stream, struct fields request) {
    struct writing *writing = calloc(1, sizeof *writing);
    if (writing == NULL) return ENOMEM;
    writing->fd = writing->directory = -1;
    writing->old_size = -1;
    stream->work = writing;
    char path[PATH_MAX];
    int error = path_and_user(request, &writing->user, path);
    if (error == 0 && fields_number(request, TAG_CREATE_PARENTS, 0) != 0) error = make_parents(path, &writing->user, 0755);
    if (error != 0) return error;
    writing->expected = fields_number(request, TAG_SIZE, UINT64_MAX);
    user_enter(&writing->user);
    error = open_target(writing, path, request);
    user_leave(&writing->user);
    if (error != 0) {
        undo(writing);
        close_writing(writing);
        return error;
    }
    stream_open_input(stream);
    stream_accept(stream);
    return 0;
}

static void input(struct stream *stream, const uint8_t *bytes, size_t length) {
    struct writing *writing = stream->work;
    if (length > writing->expected - writing->size) return fail(stream, EINVAL);
    writing->size += length;
    stream_delivered(stream, length);
    while (length > 0) {
        ssize_t n = write(writing->fd, bytes, length);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail(stream, n < 0 ? errno : EIO);
        bytes += n;
        length -= (size_t)n;
    }
}

/* The old file may have been exchanged since its rights were looked at. */
static int replace_old(struct writing *writing) {
    struct stat now;
    if (fstatat(writing->directory, writing->name, &now, AT_SYMLINK_NOFOLLOW) != 0) return errno;
    if (now.st_ino != writing->old.st_ino || now.st_dev != writing->old.st_dev) return ESTALE;
    return renameat(writing->directory, writing->temporary, writing->directory, writing->name) == 0 ? 0 : errno;
}

static int take_place(struct writing *writing) {
    if (writing->replaces) return replace_old(writing);
    user_enter(&writing->user);
    int error = renameat(writing->directory, writing->temporary, writing->directory, writing->name) == 0 ? 0 : errno;
    user_leave(&writing->user);
    return error;
}

static void input_ended(struct stream *stream) {
    struct writing *writing = stream->work;
    bool is_short = writing->expected != UINT64_MAX && writing->size != writing->expected;
    int error = is_short ? EINVAL : writing->temporary[0] != 0 ? take_place(writing) : 0;
    if (error != 0) return fail(stream, error);
    close_writing(writing);
    stream_reply_number(stream, TAG_SIZE, writing->size);
}

static void cancel(struct stream *stream) {
    fail(stream, ECANCELED);
}

static void forget(struct stream *stream) {
    struct writing *writing = stream->work;
    if (writing == NULL) return;
    undo(writing);
    free(writing);
}

const struct operation write_operation = {
    .number = OP_WRITE, .start = start, .input = input, .input_ended = input_ended,
    .cancel = cancel, .free = forget,
};
