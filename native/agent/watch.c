/* WATCH: changes below a directory, or of one file. */
#define _GNU_SOURCE
#include "operations.h"

#include "loop.h"
#include "path.h"
#include "protocol.h"
#include "watched.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define EVENTS (IN_CREATE | IN_MODIFY | IN_DELETE | IN_MOVE | IN_ATTRIB | IN_CLOSE_WRITE | IN_DELETE_SELF)
#define MAX_RECORD (PATH_MAX + 64)

struct watch {
    struct source inotify;
    struct stream *stream;
    struct user user;
    struct watched watched;
    char root[PATH_MAX];
    bool recursive, lost;
    uint32_t move_cookie; /* of a directory that was moved away, and may turn up again */
    char moved[PATH_MAX];
};

/* A full ring loses records and says so: the watched programs are not held up. */
static void report(struct watch *watch, uint64_t kind, const char *name, bool is_directory) {
    uint8_t bytes[MAX_RECORD];
    struct builder record = {bytes, 0, sizeof bytes, false};
    if (watch->lost) {
        put_number(&record, TAG_LOST, 1);
        if (!stream_record(watch->stream, &record)) return;
        watch->lost = false;
        record.length = 0;
    }
    put_number(&record, TAG_KIND, kind);
    put_text(&record, TAG_NAME, name);
    if (is_directory) put_number(&record, TAG_IS_DIR, 1);
    if (!stream_record(watch->stream, &record)) watch->lost = true;
}

static void found(void *with, const char *name, bool is_directory) {
    report(with, CHANGE_CREATED, name, is_directory);
}

static void add_tree(struct watch *watch, const char *name, bool is_new) {
    user_enter(&watch->user);
    /* What cannot be watched is not quietly left out. */
    if (watched_add_tree(&watch->watched, watch->inotify.fd, watch->root, name, EVENTS,
                         is_new ? found : NULL, watch) != 0) watch->lost = true;
    user_leave(&watch->user);
}

static bool join(char *name, const char *directory, const struct inotify_event *event) {
    const char *slash = *directory != 0 && event->len > 0 ? "/" : "";
    return snprintf(name, PATH_MAX, "%s%s%s", directory, slash, event->len > 0 ? event->name : "") < PATH_MAX;
}

static void moved_to(struct watch *watch, const struct inotify_event *event, const char *name) {
    if (watch->move_cookie != 0 && watch->move_cookie == event->cookie) {
        watched_rename(&watch->watched, watch->moved, name);
        watch->move_cookie = 0;
    } else {
        add_tree(watch, name, true);
    }
}

static void directory_changed(struct watch *watch, const struct inotify_event *event, const char *name) {
    if ((event->mask & IN_CREATE) != 0) add_tree(watch, name, true);
    if ((event->mask & IN_MOVED_TO) != 0) moved_to(watch, event, name);
    if ((event->mask & IN_MOVED_FROM) != 0) {
        watch->move_cookie = event->cookie;
        strcpy(watch->moved, name);
    }
}

/* The two halves of a move follow each other, so a directory is gone if the next event is not
 * the second one. */
static void forget_moved(struct watch *watch, const struct inotify_event *next) {
    if (watch->move_cookie == 0) return;
    if (next != NULL && (next->mask & IN_MOVED_TO) != 0 && next->cookie == watch->move_cookie) return;
    watched_remove_tree(&watch->watched, watch->inotify.fd, watch->moved);
    watch->move_cookie = 0;
}

/* Whether the watched path itself is still there. */
static bool take(struct watch *watch, const struct inotify_event *event) {
    static const struct {
        uint32_t mask;
        uint64_t kind;
    } kinds[] = {
        {IN_CREATE, CHANGE_CREATED},        {IN_MODIFY, CHANGE_MODIFIED},
        {IN_DELETE, CHANGE_REMOVED},        {IN_MOVED_FROM, CHANGE_RENAMED_FROM},
        {IN_MOVED_TO, CHANGE_RENAMED_TO},   {IN_ATTRIB, CHANGE_ATTRIBUTES},
        {IN_CLOSE_WRITE, CHANGE_CLOSED},
    };
    forget_moved(watch, event);
    if ((event->mask & IN_Q_OVERFLOW) != 0) watch->lost = true;
    const char *directory = watched_name(&watch->watched, event->wd);
    char name[PATH_MAX];
    if (directory == NULL || !join(name, directory, event)) return true;
    bool is_root = *directory == 0 && event->len == 0;
    if ((event->mask & IN_DELETE_SELF) != 0 && is_root) report(watch, CHANGE_REMOVED, name, false);
    /* A directory below tells its own changes what its parent tells too. */
    bool is_told_by_parent = event->len == 0 && !is_root;
    bool is_directory = (event->mask & IN_ISDIR) != 0;
    bool is_known = (event->mask & IN_CREATE) != 0 && watched_was_found(&watch->watched, name);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !is_told_by_parent && !is_known; i++) {
        if ((event->mask & kinds[i].mask) != 0) report(watch, kinds[i].kind, name, is_directory);
    }
    if (is_directory && watch->recursive && !is_known && event->len > 0) directory_changed(watch, event, name);
    if ((event->mask & IN_IGNORED) != 0) watched_forget(&watch->watched, event->wd);
    return !is_root || (event->mask & IN_IGNORED) == 0;
}

static void end(struct watch *watch) {
    source_close(&watch->inotify);
    stream_reply(watch->stream, 0, NULL);
}

static void room(struct stream *stream) {
    struct watch *watch = stream->work;
    uint8_t bytes[32];
    struct builder record = {bytes, 0, sizeof bytes, false};
    put_number(&record, TAG_LOST, 1);
    if (watch->lost && stream_record(stream, &record)) watch->lost = false;
}

static void ready(struct source *source, uint32_t events) {
    (void)events;
    struct watch *watch = container(source, struct watch, inotify);
    static uint8_t bytes[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n = read(source->fd, bytes, sizeof bytes);
    for (ssize_t at = 0; at < n;) {
        const struct inotify_event *event = (const struct inotify_event *)(bytes + at);
        if (!take(watch, event)) return end(watch);
        at += (ssize_t)(sizeof *event + event->len);
    }
    if (n < 0) {
        forget_moved(watch, NULL);
        watched_forget_found(&watch->watched);
    }
    /* No further event may come to say it with. */
    room(watch->stream);
}

static int begin(struct watch *watch, struct fields request) {
    int error = path_and_user(request, &watch->user, watch->root);
    if (error != 0) return error;
    watch->recursive = fields_number(request, TAG_RECURSIVE, 0) != 0;
    watch->inotify.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch->inotify.fd < 0) return errno;
    watch->inotify.ready = ready;
    user_enter(&watch->user);
    error = watched_add(&watch->watched, watch->inotify.fd, watch->root, "", EVENTS);
    if (error == 0 && watch->recursive) {
        error = watched_add_tree(&watch->watched, watch->inotify.fd, watch->root, "", EVENTS, NULL, NULL);
    }
    user_leave(&watch->user);
    return error != 0 ? error : source_watch(&watch->inotify, EPOLLIN) ? 0 : ENOMEM;
}

static int start(struct stream *stream, struct fields request) {
    struct watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL) return ENOMEM;
    watch->inotify.fd = -1;
    watch->stream = stream;
    stream->work = watch;
    int error = begin(watch, request);
    if (error != 0) return error;
    stream_open_output(stream, 1);
    stream_accept(stream);
    return 0;
}

static void cancel(struct stream *stream) {
    end(stream->work);
}

static void forget(struct stream *stream) {
    struct watch *watch = stream->work;
    if (watch == NULL) return;
    source_close(&watch->inotify);
    watched_free(&watch->watched);
    free(watch);
}

const struct operation watch_operation = {
    .number = OP_WATCH, .start = start, .room = room, .cancel = cancel, .free = forget,
};
