#define _GNU_SOURCE
#include "runfiles.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "/run/nova"
#define LOCALHOST "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

static struct {
    const char *path;
    mode_t mode;
    const char *over, *text; /* the name that it takes, and what it holds where the image has none */
    bool is_kernels;         /* the name is the kernel's: nobody can write there */
    int fd;
} files[] = {
    [RUN_HOSTNAME] = {FOLDER "/hostname", 0644, "/etc/hostname", "", false, -1},
    [RUN_HOSTS] = {FOLDER "/hosts", 0644, "/etc/hosts", LOCALHOST, false, -1},
    [RUN_MACHINE_ID] = {FOLDER "/machine-id", 0644, "/etc/machine-id", "", false, -1},
    /* The kernel makes its own once for each boot: all copies of a guest would have the same. */
    [RUN_BOOT_ID] = {FOLDER "/boot-id", 0444, "/proc/sys/kernel/random/boot_id", "", true, -1},
    [RUN_GENERATION] = {FOLDER "/generation", 0444, NULL, NULL, false, -1},
    [RUN_ENVIRONMENT] = {FOLDER "/environment", 0400, NULL, NULL, false, -1},
};
#define COUNT (sizeof files / sizeof *files)

static int write_all(int fd, const uint8_t *bytes, size_t length) {
    for (off_t at = 0; (size_t)at < length;) {
        ssize_t n = pwrite(fd, bytes + at, length - (size_t)at, at);
        if (n <= 0) return n < 0 ? errno : ENOSPC;
        at += n;
    }
    return 0;
}

/* What the image has there. False: nothing, or no file. */
static bool copy_content(const char *from, int to) {
    static uint8_t bytes[4096];
    int fd = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat status;
    bool is_file = fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    for (ssize_t n; is_file && (n = read(fd, bytes, sizeof bytes)) > 0;) {
        if (write(to, bytes, (size_t)n) != n) log_error("%s: %m", from);
    }
    if (fd >= 0) close(fd);
    return is_file;
}

/* A file to bind over. A link gives way to one: it may lead to what others need, as /dev/null. */
static bool make_place(const char *path) {
    struct stat status;
    if (lstat(path, &status) == 0) {
        if (S_ISREG(status.st_mode)) return true;
        if (unlink(path) != 0) return false;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

static void put_over(size_t i) {
    const char *over = files[i].over;
    bool is_bound = (files[i].is_kernels || make_place(over)) && mount(files[i].path, over, NULL, MS_BIND, NULL) == 0;
    if (is_bound && files[i].is_kernels) {
        is_bound = mount(NULL, over, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
    }
    if (!is_bound) log_error("%s: %m", over);
}

void run_files_open(void) {
    if (mkdir(FOLDER, 0755) != 0 && errno != EEXIST) log_error("mkdir " FOLDER ": %m");
    for (size_t i = 0; i < COUNT; i++) {
        files[i].fd = open(files[i].path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOATIME, files[i].mode);
        if (files[i].fd < 0) {
            log_error("%s: %m", files[i].path);
            continue;
        }
        if (files[i].over == NULL) continue;
        if (!copy_content(files[i].over, files[i].fd)) {
            run_file_write((enum run_file)i, files[i].text, strlen(files[i].text));
        }
        put_over(i);
    }
    static const uint8_t none[8];
    run_file_write(RUN_GENERATION, none, sizeof none);
}

int run_file_write(enum run_file file, const void *bytes, size_t length) {
    int fd = files[file].fd;
    uint8_t more;
    int error = write_all(fd, bytes, length);
    if (error != 0) return error;
    /* It seldom gets shorter, and asking so is cheaper than cutting it in any case. */
    if (pread(fd, &more, 1, (off_t)length) <= 0) return 0;
    return ftruncate(fd, (off_t)length) == 0 ? 0 : errno;
}

size_t run_file_read(enum run_file file, void *bytes, size_t size) {
    ssize_t n = pread(files[file].fd, bytes, size, 0);
    return n < 0 ? 0 : (size_t)n;
}

int run_file_give(enum run_file file, uid_t uid, gid_t gid) {
    return fchown(files[file].fd, uid, gid) == 0 ? 0 : errno;
}
