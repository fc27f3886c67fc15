/* On whose behalf something is done. */
#pragma once

#include "fields.h"

#include <stdbool.h>
#include <sys/types.h>

#define MAX_GROUPS 64
#define MAX_NAME 64

struct user {
    uid_t uid;
    gid_t gid;
    size_t group_count;
    gid_t groups[MAX_GROUPS];
    char name[MAX_NAME], home[1024], shell[256];
};

/* Field USER, else the default user. 0 or an errno (ENOENT: no such user). */
int user_of(struct fields request, struct user *user);
/* Looks a name, a number, `name:group` or `number:number` up. */
int user_find(const char *text, struct user *user);
/* Makes it the default, and the account too if the guest has none. `is_new` becomes true where
 * it was not the default before. */
int user_set_default(const char *text, bool *is_new);
/* As it was found when it was made the default. */
const struct user *user_default(void);

/* Paths are looked up and files made with this user's rights until user_leave(). Only the
 * file-system ids change, so the user's processes cannot signal the agent meanwhile. */
void user_enter(const struct user *user);
void user_leave(const struct user *user);

/* musl's functions of these names would change every thread's ids and not only the caller's
 * (there is one), and cannot be called in a child that shares the agent's memory. */
int raw_setgroups(size_t count, const gid_t *groups);
int raw_setresuid(uid_t uid);
int raw_setresgid(gid_t gid);
