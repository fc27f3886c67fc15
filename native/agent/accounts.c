#define _GNU_SOURCE
#include "accounts.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_LINE 4096
#define MAX_FILE (1 << 20)
#define FIRST_UID 1000

/* Calls `take` with each line's fields until it says true. Longer lines and the rest of a
 * longer file do not count. */
static bool each_line(const char *path, int columns, bool (*take)(char **column, void *with), void *with) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return false;
    FILE *file = fdopen(fd, "r");
    if (file == NULL) {
        close(fd);
        return false;
    }
    char line[MAX_LINE];
    size_t total = 0;
    bool taken = false, in_long_line = false;
    while (!taken && total < MAX_FILE && fgets(line, sizeof line, file) != NULL) {
        size_t length = strlen(line);
        bool is_whole = length > 0 && line[length - 1] == '\n';
        total += length + 1;
        bool is_rest = in_long_line;
        in_long_line = !is_whole && length == sizeof line - 1;
        if (is_rest || in_long_line) continue;
        if (is_whole) line[length - 1] = 0;
        char *column[8], *at = line;
        int n = 0;
        while (n < columns && at != NULL) column[n++] = strsep(&at, ":");
        if (n == columns) taken = take(column, with);
    }
    fclose(file);
    return taken;
}

static bool parse(const char *text, uint32_t *number) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    *number = (uint32_t)value;
    return isdigit((unsigned char)*text) && *end == 0 && value < UINT32_MAX;
}

static void copy(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

struct wanted {
    const char *name;
    uint32_t id;
    struct user *user;
};

static bool take_account(char **column, void *with) {
    struct wanted *wanted = with;
    uint32_t uid, gid;
    if (!parse(column[2], &uid) || !parse(column[3], &gid)) return false;
    if (wanted->name != NULL ? strcmp(wanted->name, column[0]) != 0 : wanted->id != uid) return false;
    struct user *user = wanted->user;
    user->uid = uid;
    user->gid = gid;
    copy(user->name, sizeof user->name, column[0]);
    copy(user->home, sizeof user->home, column[5][0] == '/' ? column[5] : "/");
    copy(user->shell, sizeof user->shell, column[6]);
    return true;
}

bool account_find(const char *name, uid_t uid, struct user *user) {
    struct wanted wanted = {name, uid, user};
    return each_line("/etc/passwd", 7, take_account, &wanted);
}

static bool take_group(char **column, void *with) {
    struct wanted *wanted = with;
    return strcmp(column[0], wanted->name) == 0 && parse(column[2], &wanted->id);
}

bool account_find_group(const char *name, gid_t *gid) {
    struct wanted wanted = {name, 0, NULL};
    if (!each_line("/etc/group", 4, take_group, &wanted)) return false;
    *gid = wanted.id;
    return true;
}

static bool take_membership(char **column, void *with) {
    struct user *user = with;
    uint32_t gid;
    if (!parse(column[2], &gid) || gid == user->gid) return false;
    for (char *member, *rest = column[3]; (member = strsep(&rest, ",")) != NULL;) {
        if (strcmp(member, user->name) != 0) continue;
        user->groups[user->group_count++] = gid;
        break;
    }
    return user->group_count == MAX_GROUPS;
}

void account_groups(struct user *user) {
    each_line("/etc/group", 4, take_membership, user);
}

void account_root(struct user *user) {
    copy(user->name, sizeof user->name, "root");
    copy(user->home, sizeof user->home, "/root");
    copy(user->shell, sizeof user->shell, "/bin/sh");
}

static bool take_gid(char **column, void *with) {
    uint32_t gid;
    return parse(column[2], &gid) && gid == *(uint32_t *)with;
}

static bool is_taken(uint32_t id) {
    struct user user;
    return account_find(NULL, id, &user) || each_line("/etc/group", 4, take_gid, &id);
}

static int append(const char *path, mode_t mode, const char *text, bool must_exist) {
    int fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | O_NONBLOCK | (must_exist ? 0 : O_CREAT), mode);
    if (fd < 0) return errno == ENOENT && must_exist ? 0 : errno;
    struct stat status;
    char last = '\n';
    int error = 0;
    if (fstat(fd, &status) != 0) error = errno;
    else if (status.st_size > 0 && pread(fd, &last, 1, status.st_size - 1) != 1) error = EIO;
    /* An image's file may lack the last line's end. */
    if (error == 0 && last != '\n' && write(fd, "\n", 1) != 1) error = EIO;
    if (error == 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text)) error = ENOSPC;
    close(fd);
    return error;
}

int account_make(const char *name) {
    if (*name == 0 || strlen(name) >= 32 || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-")] != 0
        || !islower((unsigned char)*name)) return EINVAL;
    uint32_t id = FIRST_UID;
    while (is_taken(id) && id < FIRST_UID + 100) id++;
    const char *shell = access("/bin/bash", X_OK) == 0 ? "/bin/bash" : "/bin/sh";
    char line[512], home[64];
    snprintf(home, sizeof home, "/home/%s", name);
    snprintf(line, sizeof line, "%s:x:%u:%u::%s:%s\n", name, id, id, home, shell);
    int error = append("/etc/passwd", 0644, line, false);
    if (error != 0) return error;
    snprintf(line, sizeof line, "%s:x:%u:\n", name, id);
    error = append("/etc/group", 0644, line, false);
    /* Without an entry there sudo and su count the account as expired. */
    snprintf(line, sizeof line, "%s:!:19000:0:99999:7:::\n", name);
    if (error == 0) error = append("/etc/shadow", 0640, line, true);
    if (error != 0) return error;
    if (mkdir("/home", 0755) != 0 && errno != EEXIST) return errno;
    if (mkdir(home, 0755) != 0 && errno != EEXIST) return errno;
    return lchown(home, id, id) == 0 ? 0 : errno;
}
