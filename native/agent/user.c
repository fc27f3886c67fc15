#define _GNU_SOURCE
#include "user.h"

#include "accounts.h"
#include "log.h"
#include "protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char default_name[2 * MAX_NAME] = "root";
static struct user default_user = {.name = "root", .home = "/root", .shell = "/bin/sh"};
static bool has_default;

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

/* What says that a file is still the same; all zero where there is none. */
static void look_at(const char *path, struct stat *file) {
    if (stat(path, file) != 0) memset(file, 0, sizeof *file);
}

static bool is_same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size
        && memcmp(&a->st_mtim, &b->st_mtim, sizeof a->st_mtim) == 0
        && memcmp(&a->st_ctim, &b->st_ctim, sizeof a->st_ctim) == 0;
}

/* The one that was found last, as long as nobody has written the files: reading them takes longer
 * than the rest of what is done before a program starts. */
static int user_find_again(const char *text, struct user *user) {
    static char last_text[2 * MAX_NAME];
    static struct user last;
    static struct stat passwd, group;
    struct stat passwd_now, group_now;
    look_at("/etc/passwd", &passwd_now);
    look_at("/etc/group", &group_now);
    /* An empty text is none that was found. */
    if (last_text[0] == 0 || strcmp(text, last_text) != 0 || !is_same(&passwd, &passwd_now) || !is_same(&group, &group_now)) {
        last_text[0] = 0;
        int error = user_find(text, &last);
        if (error != 0) return error;
        strcpy(last_text, text);
        passwd = passwd_now;
        group = group_now;
    }
    *user = last;
    return 0;
}

int user_of(struct fields request, struct user *user) {
    char text[2 * MAX_NAME];
    int error = fields_text(request, TAG_USER, text, sizeof text);
    if (error == ENOENT) return user_find_again(default_name, user);
    return error != 0 ? EINVAL : user_find_again(text, user);
}

int user_set_default(const char *text, bool *is_new) {
    struct user user;
    if (strlen(text) >= sizeof default_name) return EINVAL;
    /* The copy of a guest that was set up for the same user: what was found then is in its memory. */
    if (has_default && strcmp(text, default_name) == 0) return 0;
    int error = user_find(text, &user);
    if (error == ENOENT && strchr(text, ':') == NULL) {
        error = account_make(text);
        if (error == 0) error = user_find(text, &user);
    }
    if (error != 0) return error;
    strcpy(default_name, text);
    default_user = user;
    has_default = *is_new = true;
    return 0;
}

const struct user *user_default(void) { return &default_user; }

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
