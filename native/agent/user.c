#define _GNU_SOURCE
#include "user.h"

#include "accounts.h"
#include "log.h"
#include "protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static char default_name[2 * MAX_NAME] = "root";

int raw_setgroups(size_t count, const gid_t *groups) { return (int)syscall(SYS_setgroups, count, groups); }
int raw_setresuid(uid_t uid) { return (int)syscall(SYS_setresuid, uid, uid, uid); }
int raw_setresgid(gid_t gid) { return (int)syscall(SYS_setresgid, gid, gid, gid); }

static bool parse_id(const char *text, uint32_t *id) {
    if (*text < '0' || *text > '9') return false;
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    /* The largest number means "leave it as it is" to the kernel. */
    if (errno != 0 || *end != 0 || number >= UINT32_MAX) return false;
    *id = (uint32_t)number;
    return true;
}

int user_find(const char *text, struct user *user) {
    char name[MAX_NAME];
    const char *colon = strchr(text, ':');
    size_t length = colon != NULL ? (size_t)(colon - text) : strlen(text);
    if (length == 0 || length >= sizeof name) return EINVAL;
    memcpy(name, text, length);
    name[length] = 0;

    memset(user, 0, sizeof *user);
    uid_t uid;
    bool is_number = parse_id(name, &uid);
    if (!account_find(is_number ? NULL : name, uid, user)) {
        /* An image's "1234:1234" needs no entry in its /etc/passwd. */
        if (!is_number) return strcmp(name, "root") == 0 ? account_root(user), 0 : ENOENT;
        user->uid = uid;
        user->gid = colon == NULL && uid != 0 ? uid : 0;
        memcpy(user->name, name, length + 1);
        strcpy(user->home, uid == 0 ? "/root" : "/");
    }
    if (colon == NULL) {
        account_groups(user);
        return 0;
    }
    if (parse_id(colon + 1, &user->gid)) return 0;
    return account_find_group(colon + 1, &user->gid) ? 0 : ENOENT;
}

int user_of(struct fields request, struct user *user) {
    char text[2 * MAX_NAME];
    int error = fields_text(request, TAG_USER, text, sizeof text);
    if (error == ENOENT) return user_find(default_name, user);
    return error != 0 ? EINVAL : user_find(text, user);
}

int user_set_default(const char *text) {
    struct user user;
    if (strlen(text) >= sizeof default_name) return EINVAL;
    int error = user_find(text, &user);
    if (error == ENOENT && strchr(text, ':') == NULL) {
        error = account_make(text);
        if (error == 0) error = user_find(text, &user);
    }
    if (error == 0) strcpy(default_name, text);
    return error;
}

static bool is_agent_itself(const struct user *user) {
    return user->uid == 0 && user->gid == 0 && user->group_count == 0;
}

void user_enter(const struct user *user) {
    if (is_agent_itself(user)) return;
    if (raw_setgroups(user->group_count, user->groups) != 0) log_error("setgroups: %m");
    setfsgid(user->gid);
    setfsuid(user->uid);
}

void user_leave(const struct user *user) {
    if (is_agent_itself(user)) return;
    setfsuid(0);
    setfsgid(0);
    /* Failing here would leave the agent in a group it never had, nothing worse. */
    if (raw_setgroups(0, NULL) != 0) log_error("setgroups: %m");
}
