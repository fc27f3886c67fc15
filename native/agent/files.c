/* The file operations that are over at once. */
#define _GNU_SOURCE
#include "operations.h"

#include "loop.h"
#include "path.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/* The agent's own umask is 0: modes are taken as they are given. */
#define DIRECTORY_MODE 0755

int do_stat(struct fields request, struct builder *reply) {
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    int flags = fields_number(request, TAG_FOLLOW, 0) != 0 ? 0 : AT_SYMLINK_NOFOLLOW;
    struct stat status;
    user_enter(&user);
    if (fstatat(AT_FDCWD, path, &status, flags) != 0) error = errno;
    else put_entry(reply, NULL, &status, AT_FDCWD, path);
    user_leave(&user);
    return error;
}

int do_mkdir(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    mode_t mode = fields_number(request, TAG_MODE, DIRECTORY_MODE) & 07777;
    bool parents = fields_number(request, TAG_PARENTS, 0) != 0;
    if (parents) error = make_parents(path, &user, DIRECTORY_MODE);
    if (error != 0) return error;
    user_enter(&user);
    struct stat status;
    if (mkdir(path, mode) != 0) error = errno;
    if (error == EEXIST && parents && stat(path, &status) == 0 && S_ISDIR(status.st_mode)) error = 0;
    user_leave(&user);
    return error;
}

int do_rename(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX], target[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error == 0) error = path_of(request, TAG_TARGET_PATH, &user, target);
    if (error != 0) return error;
    user_enter(&user);
    if (rename(path, target) != 0) error = errno;
    user_leave(&user);
    return error;
}

int do_chmod(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    uint64_t mode = fields_number(request, TAG_MODE, UINT64_MAX);
    if (error == 0 && mode > 07777) error = EINVAL;
    if (error != 0) return error;
    user_enter(&user);
    if (chmod(path, (mode_t)mode) != 0) error = errno;
    user_leave(&user);
    return error;
}

int do_symlink(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX], target[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error == 0) error = fields_text(request, TAG_TARGET_PATH, target, sizeof target);
    if (error != 0) return error;
    user_enter(&user);
    if (symlink(target, path) != 0) error = errno;
    user_leave(&user);
    return error;
}

int do_readlink(struct fields request, struct builder *reply) {
    struct user user;
    char path[PATH_MAX], target[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    user_enter(&user);
    ssize_t n = readlink(path, target, sizeof target);
    if (n < 0) error = errno;
    else put_bytes(reply, TAG_TARGET_PATH, target, (size_t)n);
    user_leave(&user);
    return error;
}

int do_truncate(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    uint64_t size = fields_number(request, TAG_SIZE, UINT64_MAX);
    if (error == 0 && size > INT64_MAX) error = EINVAL;
    if (error != 0) return error;
    user_enter(&user);
    /* truncate() would wait for whoever holds a lease on the file. */
    int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) error = errno == ENXIO ? EINVAL : errno;
    else if (ftruncate(fd, (off_t)size) != 0) error = errno;
    user_leave(&user);
    if (fd >= 0) close(fd);
    return error;
}

int do_utime(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    uint64_t ns = fields_number(request, TAG_MTIME, realtime_ns());
    struct timespec times[2] = {
        {.tv_nsec = UTIME_OMIT},
        {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)},
    };
    user_enter(&user);
    if (utimensat(AT_FDCWD, path, times, 0) != 0) error = errno;
    user_leave(&user);
    return error;
}

int do_chown(struct fields request, struct builder *reply) {
    (void)reply;
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    if (user.uid != 0) return EPERM;
    uint64_t uid = fields_number(request, TAG_UID, UINT32_MAX), gid = fields_number(request, TAG_GID, UINT32_MAX);
    if (uid > UINT32_MAX || gid > UINT32_MAX) return EINVAL;
    return lchown(path, (uid_t)uid, (gid_t)gid) == 0 ? 0 : errno;
}
