/* CONFIGURE, CLOCK, ENTROPY: what makes one guest differ from the others of its template. */
#define _GNU_SOURCE
#include "operations.h"

#include "cgroup.h"
#include "environment.h"
#include "loop.h"
#include "protocol.h"
#include "user.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAX_ENTROPY 512
#define MAX_HOSTNAME 64
#define MAX_HOSTS 65536
#define OWN_ADDRESS "127.0.1.1\t"

static int write_file(const char *path, const char *text, size_t length) {
    /* A new file and a rename would break an image's link to elsewhere; O_NOFOLLOW is not
     * needed: only root can have put a link into /etc. */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0644);
    if (fd < 0) return errno;
    ssize_t n = write(fd, text, length);
    int error = n == (ssize_t)length ? 0 : n < 0 ? errno : ENOSPC;
    close(fd);
    return error;
}

/* The line of this host is replaced, so that its name is found without a name server. */
static int name_in_hosts(const char *name) {
    char *old = malloc(2 * MAX_HOSTS);
    if (old == NULL) return ENOMEM;
    char *text = old + MAX_HOSTS;
    int fd = open("/etc/hosts", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 ? 0 : read(fd, old, MAX_HOSTS - 256);
    if (fd >= 0) close(fd);
    old[n < 0 ? 0 : n] = 0;
    size_t length = 0;
    for (char *line, *rest = old; (line = strsep(&rest, "\n")) != NULL;) {
        if (*line == 0 || strncmp(line, OWN_ADDRESS, strlen(OWN_ADDRESS)) == 0) continue;
        length += (size_t)sprintf(text + length, "%s\n", line);
    }
    length += (size_t)sprintf(text + length, OWN_ADDRESS "%s\n", name);
    int error = write_file("/etc/hosts", text, length);
    free(old);
    return error;
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
    return error != 0 ? error : write_file("/etc/hostname", name, length + 1);
}

static int set_machine_id(struct fields request) {
    char id[34];
    int error = fields_text(request, TAG_MACHINE_ID, id, 33);
    if (error == ENOENT) return 0;
    if (error != 0 || strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32) return EINVAL;
    strcpy(id + 32, "\n");
    return write_file("/etc/machine-id", id, 33);
}

static int set_clock(struct fields request) {
    uint64_t ns = fields_number(request, TAG_CLOCK, UINT64_MAX);
    if (ns == UINT64_MAX) return 0;
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &time) == 0 ? 0 : errno;
}

static int add_entropy(struct fields request) {
    struct field field;
    if (!fields_find(request, TAG_ENTROPY, &field)) return 0;
    if (field.length == 0 || field.length > MAX_ENTROPY) return EINVAL;
    struct {
        int bits, size;
        uint8_t bytes[MAX_ENTROPY];
    } pool = {(int)field.length * 8, (int)field.length, {0}};
    memcpy(pool.bytes, field.bytes, field.length);
    int fd = open("/dev/urandom", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return errno;
    /* Mixed in alone, it would count only at the generator's next reseeding, a minute later:
     * until then all clones of one snapshot would draw the same numbers. */
    int error = ioctl(fd, RNDADDENTROPY, &pool) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0 ? errno : 0;
    close(fd);
    return error;
}

static int set_user(struct fields request) {
    char text[2 * MAX_NAME];
    int error = fields_text(request, TAG_USER, text, sizeof text);
    if (error == ENOENT) return 0;
    return error != 0 ? EINVAL : user_set_default(text);
}

int do_configure(struct fields request, struct builder *reply) {
    (void)reply;
    int error = add_entropy(request);
    if (error == 0) error = set_clock(request);
    if (error == 0) error = set_hostname(request);
    if (error == 0) error = set_machine_id(request);
    if (error == 0) error = set_user(request);
    if (error == 0) error = environment_set_defaults(request);
    uint64_t reserve = fields_number(request, TAG_MEMORY_RESERVE, UINT64_MAX);
    if (error == 0 && reserve != UINT64_MAX) cgroup_set_reserve(reserve);
    return error;
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
