/* The directories of one inotify instance: their numbers, and their names below the root. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_WATCHED 8192

struct watched {
    struct watched_directory {
        int number;
        char *name; /* "" is the root itself */
    } *directories;
    size_t count, size;
    /* Names that a scan found in directories that had just appeared: their creation may be told
     * by inotify too. Forgotten once its queue is empty. */
    char **found;
    size_t found_count, found_size;
};

/* 0 or an errno; ENOSPC: too many directories. */
int watched_add(struct watched *watched, int inotify, const char *root, const char *name, uint32_t events);
/* The same for a directory and all directories below. `found` hears of all that is in it. */
int watched_add_tree(struct watched *watched, int inotify, const char *root, const char *name, uint32_t events,
                     void (*found)(void *with, const char *name, bool is_directory), void *with);
const char *watched_name(const struct watched *watched, int number);
void watched_rename(struct watched *watched, const char *from, const char *to);
void watched_remove_tree(struct watched *watched, int inotify, const char *name);
/* The kernel has removed the watch. */
void watched_forget(struct watched *watched, int number);
/* True once for each name found. */
bool watched_was_found(struct watched *watched, const char *name);
void watched_forget_found(struct watched *watched);
void watched_free(struct watched *watched);
