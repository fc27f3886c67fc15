#define _GNU_SOURCE
#include "watched.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#define MAX_FOUND 4096

static int full_path(char *path, const char *root, const char *name) {
    int n = *name == 0 ? snprintf(path, PATH_MAX, "%s", root) : snprintf(path, PATH_MAX, "%s/%s", root, name);
    return n < PATH_MAX ? 0 : ENAMETOOLONG;
}

static bool grow(void *vector, size_t *size, size_t count, size_t limit, size_t item) {
    if (count < *size) return true;
    if (count >= limit) return false;
    size_t larger = *size == 0 ? 16 : *size * 2;
    void *memory = realloc(*(void **)vector, larger * item);
    if (memory == NULL) return false;
    *(void **)vector = memory;
    *size = larger;
    return true;
}

static struct watched_directory *find(const struct watched *watched, int number) {
    for (size_t i = watched->count; i > 0; i--) {
        if (watched->directories[i - 1].number == number) return &watched->directories[i - 1];
    }
    return NULL;
}

int watched_add(struct watched *watched, int inotify, const char *root, const char *name, uint32_t events) {
    char path[PATH_MAX];
    int error = full_path(path, root, name);
    if (error != 0) return error;
    if (!grow(&watched->directories, &watched->size, watched->count, MAX_WATCHED, sizeof *watched->directories)) return ENOSPC;
    /* The root may be a file or a link to what is meant; a link below leads out of the tree. */
    int number = inotify_add_watch(inotify, path, *name == 0 ? events : events | IN_ONLYDIR | IN_DONT_FOLLOW);
    if (number < 0) return errno;
    char *copy = strdup(name);
    if (copy == NULL) return ENOMEM;
    struct watched_directory *known = find(watched, number);
    if (known != NULL) {
        free(known->name);
        known->name = copy;
    } else {
        watched->directories[watched->count++] = (struct watched_directory){number, copy};
    }
    return 0;
}

static void note_found(struct watched *watched, const char *name) {
    if (!grow(&watched->found, &watched->found_size, watched->found_count, MAX_FOUND, sizeof *watched->found)) return;
    char *copy = strdup(name);
    if (copy != NULL) watched->found[watched->found_count++] = copy;
}

static bool is_directory(const char *root, const char *name, const struct dirent *entry) {
    if (entry->d_type != DT_UNKNOWN) return entry->d_type == DT_DIR;
    char path[PATH_MAX];
    struct stat status;
    return full_path(path, root, name) == 0 && lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* Reads one directory and watches those in it, whose turn comes later. */
static int scan(struct watched *watched, int inotify, const char *root, const char *name, uint32_t events,
                void (*found)(void *with, const char *name, bool is_directory), void *with) {
    char path[PATH_MAX];
    int error = full_path(path, root, name);
    if (error != 0) return error;
    DIR *directory = opendir(path);
    /* Gone again; or the user cannot look into it either way. */
    if (directory == NULL) return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? 0 : errno;
    for (struct dirent *entry; error == 0 && (entry = readdir(directory)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char below[PATH_MAX];
        if (snprintf(below, sizeof below, "%s%s%s", name, *name != 0 ? "/" : "", entry->d_name) >= PATH_MAX) continue;
        bool descend = is_directory(root, below, entry);
        if (found != NULL) {
            found(with, below, descend);
            note_found(watched, below);
        }
        if (descend) error = watched_add(watched, inotify, root, below, events);
        if (error == EACCES || error == ENOENT || error == ENOTDIR) error = 0;
    }
    closedir(directory);
    return error;
}

/* Watched before it is read: what appears in between is told twice and counted once. Level by
 * level and without recursion, which a tree of the guest's making could drive through the stack;
 * what is watched already (a mount can put a directory into itself) is not read again. */
int watched_add_tree(struct watched *watched, int inotify, const char *root, const char *name, uint32_t events,
                     void (*found)(void *with, const char *name, bool is_directory), void *with) {
    size_t next = watched->count;
    int error = watched_add(watched, inotify, root, name, events);
    if (error == ENOENT || error == ENOTDIR) return *name == 0 ? error : 0; /* gone again */
    if (error != 0) return error;
    /* The first may have been watched already and not be the last of them. */
    if (next == watched->count) error = scan(watched, inotify, root, name, events, found, with);
    while (error == 0 && next < watched->count) {
        char at[PATH_MAX]; /* another name may take the place of this one meanwhile */
        snprintf(at, sizeof at, "%s", watched->directories[next++].name);
        error = scan(watched, inotify, root, at, events, found, with);
    }
    return error;
}

const char *watched_name(const struct watched *watched, int number) {
    struct watched_directory *directory = find(watched, number);
    return directory == NULL ? NULL : directory->name;
}

static bool is_below(const char *name, const char *tree) {
    size_t length = strlen(tree);
    return strncmp(name, tree, length) == 0 && (name[length] == 0 || name[length] == '/');
}

void watched_rename(struct watched *watched, const char *from, const char *to) {
    for (size_t i = 0; i < watched->count; i++) {
        struct watched_directory *directory = &watched->directories[i];
        if (!is_below(directory->name, from)) continue;
        char *name;
        if (asprintf(&name, "%s%s", to, directory->name + strlen(from)) < 0) continue;
        free(directory->name);
        directory->name = name;
    }
}

static void drop(struct watched *watched, struct watched_directory *directory) {
    free(directory->name);
    *directory = watched->directories[--watched->count];
}

void watched_remove_tree(struct watched *watched, int inotify, const char *name) {
    for (size_t i = watched->count; i > 0; i--) {
        struct watched_directory *directory = &watched->directories[i - 1];
        if (!is_below(directory->name, name)) continue;
        inotify_rm_watch(inotify, directory->number);
        drop(watched, directory);
    }
}

void watched_forget(struct watched *watched, int number) {
    struct watched_directory *directory = find(watched, number);
    if (directory != NULL) drop(watched, directory);
}

bool watched_was_found(struct watched *watched, const char *name) {
    for (size_t i = 0; i < watched->found_count; i++) {
        if (strcmp(watched->found[i], name) != 0) continue;
        free(watched->found[i]);
        watched->found[i] = watched->found[--watched->found_count];
        return true;
    }
    return false;
}

void watched_forget_found(struct watched *watched) {
    while (watched->found_count > 0) free(watched->found[--watched->found_count]);
}

void watched_free(struct watched *watched) {
    watched_forget_found(watched);
    while (watched->count > 0) free(watched->directories[--watched->count].name);
    free(watched->found);
    free(watched->directories);
}
