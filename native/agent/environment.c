#define _GNU_SOURCE
#include "environment.h"

#include "protocol.h"
#include "runfiles.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define BASICS 6
#define CWD_NAME "PWD="

static uint8_t *defaults; /* ENV fields of CONFIGURE */
static size_t defaults_length;
static char default_cwd[PATH_MAX];

const char *environment_default_cwd(void) {
    return default_cwd[0] != 0 ? default_cwd : NULL;
}

/* Bytes and number of a tag's fields. False: one of them holds a NUL, or, in an environment,
 * no name. */
static bool measure(struct fields fields, uint16_t tag, size_t *bytes, size_t *count) {
    struct field field;
    while (fields_next(&fields, &field)) {
        if (field.tag != tag) continue;
        if (field.length > 0 && memchr(field.bytes, 0, field.length) != NULL) return false;
        if (tag == TAG_ENV && (field.length < 2 || memchr(field.bytes + 1, '=', field.length - 1) == NULL)) return false;
        *bytes += field.length + 1;
        *count += 1;
    }
    return true;
}

int environment_set_defaults(struct fields request, bool *is_new) {
    char cwd[PATH_MAX];
    int error = fields_text(request, TAG_CWD, cwd, sizeof cwd);
    if (error != 0 && error != ENOENT) return error;
    if (error == 0 && strcmp(cwd, default_cwd) != 0) {
        strcpy(default_cwd, cwd);
        *is_new = true;
    }
    struct field field;
    if (!fields_find(request, TAG_ENV, &field)) return 0;
    size_t bytes = 0, count = 0;
    if (!measure(request, TAG_ENV, &bytes, &count)) return EINVAL;
    uint8_t *memory = malloc(bytes + count * 8);
    if (memory == NULL) return ENOMEM;
    struct builder builder = {memory, 0, bytes + count * 8, false};
    struct fields rest = request;
    while (fields_next(&rest, &field)) {
        if (field.tag == TAG_ENV) put_bytes(&builder, TAG_ENV, field.bytes, field.length);
    }
    free(defaults);
    defaults = memory;
    defaults_length = builder.length;
    *is_new = true;
    return 0;
}

/* Later ones win: a name that is there already is replaced. */
static void set(char **environment, size_t *count, char *entry) {
    size_t name = strcspn(entry, "=") + 1;
    for (size_t i = 0; i < *count; i++) {
        if (strncmp(environment[i], entry, name) == 0) {
            environment[i] = entry;
            return;
        }
    }
    environment[(*count)++] = entry;
}

static char *copy(char **memory, const uint8_t *bytes, size_t length) {
    char *text = *memory;
    memcpy(text, bytes, length);
    text[length] = 0;
    *memory += length + 1;
    return text;
}

static void set_fields(struct fields fields, char **environment, size_t *count, char **memory) {
    struct field field;
    while (fields_next(&fields, &field)) {
        if (field.tag == TAG_ENV) set(environment, count, copy(memory, field.bytes, field.length));
    }
}

static size_t write_basics(const struct user *user, bool terminal, char entries[BASICS][1100]) {
    size_t n = 0;
    snprintf(entries[n++], sizeof entries[0], "PATH=" DEFAULT_PATH);
    snprintf(entries[n++], sizeof entries[0], "HOME=%s", user->home);
    snprintf(entries[n++], sizeof entries[0], "USER=%s", user->name);
    snprintf(entries[n++], sizeof entries[0], "LOGNAME=%s", user->name);
    snprintf(entries[n++], sizeof entries[0], "LANG=C.UTF-8");
    if (terminal) snprintf(entries[n++], sizeof entries[0], "TERM=xterm-256color");
    return n;
}

int arguments_build(struct fields request, const struct user *user, bool terminal, struct arguments *arguments) {
    char basics[BASICS][1100];
    bool clear = fields_number(request, TAG_CLEAR_ENV, 0) != 0;
    size_t basic_count = clear ? 0 : write_basics(user, terminal, basics);
    struct fields standing = {defaults, clear ? 0 : defaults_length};
    size_t bytes = 0, argc = 0, variables = basic_count;
    if (!measure(request, TAG_ARG, &bytes, &argc) || argc == 0) return EINVAL;
    if (!measure(request, TAG_ENV, &bytes, &variables) || !measure(standing, TAG_ENV, &bytes, &variables)) return EINVAL;
    for (size_t i = 0; i < basic_count; i++) bytes += strlen(basics[i]) + 1;

    char **vectors = malloc((argc + variables + 2) * sizeof *vectors + bytes);
    if (vectors == NULL) return ENOMEM;
    char *memory = (char *)(vectors + argc + variables + 2);
    *arguments = (struct arguments){.argv = vectors, .environment = vectors + argc + 1, .argc = argc, .memory = vectors};
    struct fields rest = request;
    struct field field;
    size_t n = 0;
    while (fields_next(&rest, &field)) {
        if (field.tag == TAG_ARG) vectors[n++] = copy(&memory, field.bytes, field.length);
    }
    vectors[n] = NULL;
    size_t count = 0;
    for (size_t i = 0; i < basic_count; i++) {
        arguments->environment[count++] = copy(&memory, (const uint8_t *)basics[i], strlen(basics[i]));
    }
    set_fields(standing, arguments->environment, &count, &memory);
    set_fields(request, arguments->environment, &count, &memory);
    arguments->environment[count] = NULL;
    arguments->search = DEFAULT_PATH;
    for (size_t i = 0; i < count; i++) {
        if (strncmp(arguments->environment[i], "PATH=", 5) == 0) arguments->search = arguments->environment[i] + 5;
    }
    return 0;
}

static int give_to(const struct user *user) {
    static uid_t uid;
    static gid_t gid;
    if (user->uid == uid && user->gid == gid) return 0;
    int error = run_file_give(RUN_ENVIRONMENT, user->uid, user->gid);
    if (error != 0) return error;
    uid = user->uid;
    gid = user->gid;
    return 0;
}

/* The working directory stands first, in the place of a program's name, and no variable is called
 * as it is. */
int environment_publish(void) {
    const struct user *user = user_default();
    char cwd[2 * PATH_MAX];
    uint8_t bytes[sizeof cwd + 16];
    bool is_whole = default_cwd[0] == '/';
    snprintf(cwd, sizeof cwd, CWD_NAME "%s%s%s", is_whole ? "" : user->home,
             is_whole || default_cwd[0] == 0 ? "" : "/", default_cwd);
    struct builder request = {bytes, 0, sizeof bytes, false};
    put_text(&request, TAG_ARG, cwd);
    struct arguments arguments;
    int error = arguments_build((struct fields){bytes, request.length}, user, false, &arguments);
    if (error != 0) return error;
    size_t length = strlen(cwd) + 1;
    for (char **entry = arguments.environment; *entry != NULL; entry++) length += strlen(*entry) + 1;
    char *text = malloc(length);
    if (text != NULL) {
        char *at = stpcpy(text, cwd) + 1;
        for (char **entry = arguments.environment; *entry != NULL; entry++) {
            if (strncmp(*entry, CWD_NAME, strlen(CWD_NAME)) != 0) at = stpcpy(at, *entry) + 1;
        }
        error = give_to(user);
        if (error == 0) error = run_file_write(RUN_ENVIRONMENT, text, (size_t)(at - text));
    } else {
        error = ENOMEM;
    }
    free(arguments.memory);
    free(text);
    return error;
}
