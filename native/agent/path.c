#define _GNU_SOURCE
#include "path.h"

#include "environment.h"
#include "protocol.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int path_of(struct fields request, uint16_t tag, const struct user *user, char *path) {
    char text[PATH_MAX], cwd[PATH_MAX];
    int error = fields_text(request, tag, text, sizeof text);
    if (error == ENOENT || (error == 0 && text[0] == 0)) return EINVAL;
    if (error != 0) return error;
    if (text[0] == '/') {
        strcpy(path, text);
        return 0;
    }
    error = fields_text(request, TAG_CWD, cwd, sizeof cwd);
    if (error != 0 && error != ENOENT) return error;
    bool has_cwd = error == 0 && cwd[0] != 0;
    bool is_relative = has_cwd && cwd[0] != '/';
    int n = snprintf(path, PATH_MAX, "%s%s%s/%s", has_cwd && !is_relative ? "" : user->home,
                     is_relative ? "/" : "", has_cwd ? cwd : "", text);
    return n < PATH_MAX ? 0 : ENAMETOOLONG;
}

int path_and_user(struct fields request, struct user *user, char *path) {
    int error = user_of(request, user);
    return error != 0 ? error : path_of(request, TAG_PATH, user, path);
}

static uint64_t kind_of(mode_t mode) {
    return S_ISREG(mode) ? KIND_FILE : S_ISDIR(mode) ? KIND_DIRECTORY : S_ISLNK(mode) ? KIND_LINK : KIND_OTHER;
}

void put_entry(struct builder *entry, const char *name, const struct stat *status, int at, const char *path) {
    if (name != NULL) put_text(entry, TAG_NAME, name);
    put_number(entry, TAG_KIND, kind_of(status->st_mode));
    put_number(entry, TAG_SIZE, (uint64_t)status->st_size);
    put_number(entry, TAG_MODE, status->st_mode & 07777);
    put_number(entry, TAG_UID, status->st_uid);
    put_number(entry, TAG_GID, status->st_gid);
    put_number(entry, TAG_MTIME, (uint64_t)status->st_mtim.tv_sec * 1000000000 + (uint64_t)status->st_mtim.tv_nsec);
    put_number(entry, TAG_INODE, status->st_ino);
    if (!S_ISLNK(status->st_mode)) return;
    char target[PATH_MAX];
    ssize_t n = readlinkat(at, path, target, sizeof target);
    if (n >= 0) put_bytes(entry, TAG_TARGET_PATH, target, (size_t)n);
}

int make_parents(const char *path, const struct user *user, mode_t mode) {
    char parent[PATH_MAX];
    int error = 0;
    user_enter(user);
    for (const char *slash = strchr(path + 1, '/'); slash != NULL && error == 0; slash = strchr(slash + 1, '/')) {
        size_t length = (size_t)(slash - path);
        memcpy(parent, path, length);
        parent[length] = 0;
        /* A read-only or foreign directory that is there already is none to complain about. */
        struct stat status;
        if (mkdir(parent, mode) != 0 && stat(parent, &status) != 0) error = errno;
    }
    user_leave(user);
    return error;
}
