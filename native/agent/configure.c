/* CONFIGURE, CLOCK, ENTROPY: what makes one guest differ from the others of its template. */
#define _GNU_SOURCE
#include "operations.h"

#include "cgroup.h"
#include "environment.h"
#include "loop.h"
#include "protocol.h"
#include "random.h"
#include "runfiles.h"
#include "user.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_HOSTNAME 64
#define MAX_HOSTS 65536
#define OWN_ADDRESS "127.0.1.1\t"

/* The line of this host is replaced, so that its name is found without a name server. */
static int name_in_hosts(const char *name) {
    static char text[MAX_HOSTS + sizeof OWN_ADDRESS + MAX_HOSTNAME + 3];
    size_t length = run_file_read(RUN_HOSTS, text, MAX_HOSTS);
    /* Nobody's file is cut off for that. */
    if (length == MAX_HOSTS) return 0;
    for (size_t at = 0; at < length;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t line = end != NULL ? (size_t)(end - text) + 1 - at : length - at;
        if (line < strlen(OWN_ADDRESS) || memcmp(text + at, OWN_ADDRESS, strlen(OWN_ADDRESS)) != 0) {
            at += line;
            continue;
        }
        length -= line;
        memmove(text + at, text + at + line, length - at);
    }
    if (length > 0 && text[length - 1] != '\n') text[length++] = '\n';
    length = (size_t)(stpcpy(stpcpy(stpcpy(text + length, OWN_ADDRESS), name), "\n") - text);
    return run_file_write(RUN_HOSTS, text, length);
}

static int set_hostname(struct fields request) {
    char name[MAX_HOSTNAME + 2];
    int error = fields_text(request, TAG_HOSTNAME, name, MAX_HOSTNAME + 1);
    if (error == ENOENT) return 0;
    size_t length = strlen(name);
    if (error != 0 || length == 0 || name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")] != 0) return EINVAL;
    if (sethostname(name, length) != 0) return errno;
    error = name_in_hosts(name);
    strcpy(name + length, "\n");
    return error != 0 ? error : run_file_write(RUN_HOSTNAME, name, length + 1);
}

static int set_machine_id(struct fields request) {
    char id[34];
    int error = fields_text(request, TAG_MACHINE_ID, id, 33);
    if (error == ENOENT) return 0;
    if (error != 0 || strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32) return EINVAL;
    strcpy(id + 32, "\n");
    return run_file_write(RUN_MACHINE_ID, id, 33);
}

static int set_clock(struct fields request) {
    uint64_t ns = fields_number(request, TAG_CLOCK, UINT64_MAX);
    if (ns == UINT64_MAX) return 0;
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &time) == 0 ? 0 : errno;
}

static int add_entropy(struct fields request) {
    struct field field;
    return fields_find(request, TAG_ENTROPY, &field) ? random_add(field.bytes, field.length) : 0;
}

/* What tells programs that this guest is another one than the one they were started in. Last: a
 * program that sees a new generation finds everything else as it is to be. */
static int renew(struct fields request) {
    struct field field;
    if (!fields_find(request, TAG_ENTROPY, &field)) return 0;
    struct {
        uint8_t id[16], generation[8];
    } fresh;
    int error = random_take(&fresh, sizeof fresh);
    if (error != 0) return error;
    uint8_t *id = fresh.id;
    id[6] = (id[6] & 0x0f) | 0x40; /* a UUID of version 4, as the kernel's */
    id[8] = (id[8] & 0x3f) | 0x80;
    char text[40], *at = text;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *at++ = '-';
        *at++ = "0123456789abcdef"[id[i] >> 4];
        *at++ = "0123456789abcdef"[id[i] & 15];
    }
    *at++ = '\n';
    error = run_file_write(RUN_BOOT_ID, text, (size_t)(at - text));
    return error != 0 ? error : run_file_write(RUN_GENERATION, fresh.generation, sizeof fresh.generation);
}

static int set_user(struct fields request, bool *is_new) {
    char text[2 * MAX_NAME];
    int error = fields_text(request, TAG_USER, text, sizeof text);
    if (error == ENOENT) return 0;
    return error != 0 ? EINVAL : user_set_default(text, is_new);
}

int do_configure(struct fields request, struct builder *reply) {
    (void)reply;
    static bool is_published;
    bool is_new = !is_published;
    int error = add_entropy(request);
    if (error == 0) error = set_clock(request);
    if (error == 0) error = set_hostname(request);
    if (error == 0) error = set_machine_id(request);
    if (error == 0) error = set_user(request, &is_new);
    if (error == 0) error = environment_set_defaults(request, &is_new);
    if (error == 0 && is_new) error = environment_publish();
    is_published = error == 0;
    uint64_t reserve = fields_number(request, TAG_MEMORY_RESERVE, UINT64_MAX);
    if (error == 0 && reserve != UINT64_MAX) cgroup_set_reserve(reserve);
    return error != 0 ? error : renew(request);
}

int do_clock(struct fields request, struct builder *reply) {
    int error = set_clock(request);
    if (error == 0) put_number(reply, TAG_CLOCK, realtime_ns());
    return error;
}

int do_entropy(struct fields request, struct builder *reply) {
    (void)reply;
    struct field field;
    return fields_find(request, TAG_ENTROPY, &field) ? add_entropy(request) : EINVAL;
}
