/* LIST: a directory's entries, as many at a time as there is room for. */
#define _GNU_SOURCE
#include "operations.h"

#include "path.h"
#include "protocol.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_RECORD (NAME_MAX + PATH_MAX + 256)

_Static_assert(MAX_RECORD + 4 <= MIN_WINDOW, "a record fits into any window");

struct listing {
    DIR *directory;
    struct user user;
    uint8_t bytes[MAX_RECORD]; /* the record that waits for room */
    size_t length;
};

/* False: there is none left. */
static bool next_entry(struct listing *listing) {
    struct dirent *entry;
    while ((entry = readdir(listing->directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct stat status;
        int at = dirfd(listing->directory);
        /* Gone since, or not to be looked at: a directory may be readable but not searchable. */
        if (fstatat(at, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
        struct builder record = {listing->bytes, 0, sizeof listing->bytes, false};
        put_entry(&record, entry->d_name, &status, at, entry->d_name);
        listing->length = record.length;
        return true;
    }
    return false;
}

static void room(struct stream *stream) {
    struct listing *listing = stream->work;
    bool more = true;
    user_enter(&listing->user);
    while (more) {
        if (listing->length == 0) more = next_entry(listing);
        struct builder record = {listing->bytes, listing->length, sizeof listing->bytes, false};
        if (more && !stream_record(stream, &record)) break;
        listing->length = 0;
    }
    user_leave(&listing->user);
    if (!more) stream_reply(stream, 0, NULL);
}

static int start(struct stream *stream, struct fields request) {
    struct listing *listing = calloc(1, sizeof *listing);
    if (listing == NULL) return ENOMEM;
    stream->work = listing;
    char path[PATH_MAX];
    int error = path_and_user(request, &listing->user, path);
    if (error != 0) return error;
    user_enter(&listing->user);
    listing->directory = opendir(path);
    if (listing->directory == NULL) error = errno;
    user_leave(&listing->user);
    if (error != 0) return error;
    stream_open_output(stream, 1);
    stream_accept(stream);
    room(stream);
    return 0;
}

static void cancel(struct stream *stream) {
    stream_reply(stream, ECANCELED, NULL);
}

static void forget(struct stream *stream) {
    struct listing *listing = stream->work;
    if (listing == NULL) return;
    if (listing->directory != NULL) closedir(listing->directory);
    free(listing);
}

const struct operation list_operation = {
    .number = OP_LIST, .start = start, .room = room, .cancel = cancel, .free = forget,
};
