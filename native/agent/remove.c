/* REMOVE. A tree is removed by a child, for it may take long. */
#define _GNU_SOURCE
#include "operations.h"

#include "children.h"
#include "path.h"
#include "protocol.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct removal {
    struct child child;
    struct stream *stream; /* NULL: released */
};

static int remove_at(int at, const char *name);

/* One descriptor is open for each level: of a tree deeper than the limit of descriptors the
 * depths stay, and the reply says EMFILE. */
static int empty_directory(int fd) {
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        int error = errno;
        close(fd);
        return error;
    }
    int error = 0;
    struct dirent *entry;
    while (error == 0 && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) error = remove_at(fd, entry->d_name);
    }
    closedir(directory);
    return error;
}

static int remove_at(int at, const char *name) {
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return errno;
    /* O_NOFOLLOW: never into what a link points at, even if it takes the directory's place now. */
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno;
    int error = empty_directory(fd);
    if (error == 0 && unlinkat(at, name, AT_REMOVEDIR) != 0 && errno != ENOENT) error = errno;
    return error;
}

static void ended(struct child *child, int status, const struct rusage *usage) {
    (void)usage;
    struct removal *removal = container(child, struct removal, child);
    if (removal->stream != NULL) {
        removal->stream->work = NULL;
        /* An errno fits into an exit status. */
        stream_reply(removal->stream, WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : ECANCELED, NULL);
    }
    free(removal);
}

static int remove_tree(struct stream *stream, const struct user *user, const char *path) {
    struct removal *removal = calloc(1, sizeof *removal);
    if (removal == NULL) return ENOMEM;
    pid_t pid = fork();
    if (pid < 0) {
        free(removal);
        return errno;
    }
    if (pid == 0) {
        /* Its copies of pipes and sockets would keep others from seeing their end. */
        syscall(SYS_close_range, STDERR_FILENO + 1, UINT_MAX, 0);
        if (raw_setgroups(user->group_count, user->groups) != 0 || raw_setresgid(user->gid) != 0
            || raw_setresuid(user->uid) != 0) _exit(errno);
        struct stat status;
        if (lstat(path, &status) != 0) _exit(errno);
        _exit(remove_at(AT_FDCWD, path));
    }
    removal->child.pid = pid;
    removal->child.ended = ended;
    removal->stream = stream;
    stream->work = removal;
    child_add(&removal->child);
    stream_accept(stream);
    return 0;
}

static int start(struct stream *stream, struct fields request) {
    struct user user;
    char path[PATH_MAX];
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    bool recursive = fields_number(request, TAG_RECURSIVE, 0) != 0;
    user_enter(&user);
    if (unlink(path) != 0) error = errno;
    if ((error == EISDIR || error == EPERM) && rmdir(path) == 0) error = 0;
    else if (error == EISDIR) error = errno;
    user_leave(&user);
    bool is_full = error == ENOTEMPTY || error == EEXIST;
    if (is_full && recursive) return remove_tree(stream, &user, path);
    if (error == 0) stream_reply(stream, 0, NULL);
    return error;
}

static void stop(struct removal *removal) {
    if (removal != NULL) kill(removal->child.pid, SIGKILL);
}

static void cancel(struct stream *stream) {
    stop(stream->work);
}

static void forget(struct stream *stream) {
    struct removal *removal = stream->work;
    if (removal == NULL) return;
    removal->stream = NULL;
    stop(removal);
}

const struct operation remove_operation = {
    .number = OP_REMOVE, .start = start, .cancel = cancel, .free = forget,
};
