/* What belongs into every guest, whatever its image has left out. */
#define _GNU_SOURCE
#include "boot.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *type, *path;
    unsigned long flags;
    const char *options;
} mounts[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=755"},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"},
};

static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

static const struct {
    const char *path, *text;
} files[] = {
    {"/etc/resolv.conf", ""},
    {"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"},
    {"/etc/group", "root:x:0:\ntty:x:5:\n"},
};

static void make_directory(const char *path, mode_t mode) {
    if (mkdir(path, mode) != 0 && errno != EEXIST) log_error("mkdir %s: %m", path);
}

/* Never over what the image has, be it a link to nowhere. */
static void make_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        if (errno != EEXIST) log_error("%s: %m", path);
        return;
    }
    if (write(fd, text, strlen(text)) < 0) log_error("%s: %m", path);
    close(fd);
}

static void raise_loopback(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0) log_error("loopback: %m");
    if (fd >= 0) close(fd);
}

void furnish(void) {
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        /* /sys and /dev have their directories from the kernel, or take them. */
        if (access(mounts[i].path, F_OK) != 0) make_directory(mounts[i].path, 0755);
        if (mount(mounts[i].type, mounts[i].path, mounts[i].type, mounts[i].flags, mounts[i].options) != 0) {
            log_error("mount %s: %m", mounts[i].path);
        }
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST) log_error("%s: %m", links[i][1]);
    }
    make_directory("/tmp", 01777);
    make_directory("/etc", 0755);
    make_directory("/root", 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) make_file(files[i].path, files[i].text);
    raise_loopback();
}
