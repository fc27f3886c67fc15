/* Paths of requests, and what lies there. */
#pragma once

#include "fields.h"
#include "user.h"

#include <sys/stat.h>

/* An absolute path of at most PATH_MAX bytes. 0 or an errno. */
int path_of(struct fields request, uint16_t tag, const struct user *user, char *path);
/* Who asks, and about which path: what most requests begin with. */
int path_and_user(struct fields request, struct user *user, char *path);

/* The fields of one entry, `name` unless it is NULL. A link's text is read by `at` and `path`. */
void put_entry(struct builder *entry, const char *name, const struct stat *status, int at, const char *path);
/* The directories on the way to the last name of `path`. 0 or an errno. */
int make_parents(const char *path, const struct user *user, mode_t mode);
