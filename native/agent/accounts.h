/* The guest's /etc/passwd and /etc/group: files that the guest may have filled with anything. */
#pragma once

#include "user.h"

/* By name, or by number if the name is NULL. */
bool account_find(const char *name, uid_t uid, struct user *user);
bool account_find_group(const char *name, gid_t *gid);
/* Every group the user is a member of. */
void account_groups(struct user *user);
void account_root(struct user *user);
/* Adds a user with uid 1000, or the next that is free, and a home. 0 or an errno. */
int account_make(const char *name);
