#define _GNU_SOURCE
#include "boot.h"

#include "log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MODULES "/modules"
#define MAX_MODULES 64
#define ROOT_DEVICE "/dev/vda"
#define SCRATCH_DEVICE "/dev/vdb"
#define WAIT_MS 10000
#define VIRTIO_BLOCK "0x0002"

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void load_module(const char *name) {
    char path[300];
    snprintf(path, sizeof path, MODULES "/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool is_loaded = fd >= 0 && (syscall(SYS_finit_module, fd, "", 0) == 0 || errno == EEXIST);
    if (!is_loaded) log_error("module %s: %m", name);
    if (fd >= 0) close(fd);
    /* The initramfs lives in memory until it is emptied. */
    if (unlink(path) != 0) log_error("unlink %s: %m", path);
}

static void load_modules(void) {
    char *names[MAX_MODULES];
    size_t count = 0;
    DIR *directory = opendir(MODULES);
    if (directory == NULL) return; /* everything is built in */
    for (struct dirent *entry; (entry = readdir(directory)) != NULL && count < MAX_MODULES;) {
        if (entry->d_name[0] == '.') continue;
        names[count] = strdup(entry->d_name);
        if (names[count] != NULL) count++;
    }
    closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        load_module(names[i]);
        free(names[i]);
    }
}

static bool wait_for(const char *path, int ms) {
    while (access(path, F_OK) != 0) {
        if (ms-- <= 0) return false;
        usleep(1000);
    }
    return true;
}

static int count_disks(void) {
    DIR *directory = opendir("/sys/bus/virtio/devices");
    if (directory == NULL) return 0;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char path[320], id[8] = "";
        snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (read(fd, id, sizeof id - 1) > 0 && strncmp(id, VIRTIO_BLOCK, 6) == 0) count++;
        close(fd);
    }
    closedir(directory);
    return count;
}

static void mount_root(void) {
    if (!wait_for(ROOT_DEVICE, WAIT_MS)) log_fatal("no disk " ROOT_DEVICE " after %d s", WAIT_MS / 1000);
    static const char *const types[] = {"ext4", "squashfs", "erofs"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (mount(ROOT_DEVICE, "/lower", types[i], MS_RDONLY | MS_NOATIME, "") == 0) return;
    }
    log_fatal("cannot mount the root file system of " ROOT_DEVICE ": %m");
}

static void mount_scratch(void) {
    bool has_disk = count_disks() > 1 ? wait_for(SCRATCH_DEVICE, WAIT_MS) : access(SCRATCH_DEVICE, F_OK) == 0;
    /* Else a kernel thread reads all of its bitmaps in the first seconds; kernels before 5.8 have neither. */
    bool is_mounted = has_disk && (mount(SCRATCH_DEVICE, "/scratch", "ext4", MS_NOATIME, "no_prefetch_block_bitmaps") == 0 ||
                                   mount(SCRATCH_DEVICE, "/scratch", "ext4", MS_NOATIME, "") == 0);
    if (has_disk && !is_mounted) {
        log_fatal("cannot mount the sandbox's disk " SCRATCH_DEVICE ": %m");
    }
    if (!has_disk && mount("tmpfs", "/scratch", "tmpfs", MS_NOATIME, "mode=755") != 0) {
        log_fatal("cannot mount a tmpfs in place of " SCRATCH_DEVICE ": %m");
    }
}

static void make_directory(const char *path, mode_t mode) {
    if (mkdir(path, mode) != 0 && errno != EEXIST) log_error("mkdir %s: %m", path);
}

static void mount_overlay(void) {
    make_directory("/scratch/upper", 0755);
    make_directory("/scratch/work", 0700);
    /* Without redirect_dir a directory of the image could not be renamed (EXDEV). */
    const char *options = "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=on";
    if (mount("overlay", "/root", "overlay", MS_NOATIME, options) != 0) log_fatal("cannot mount the overlay: %m");
}

void boot(void) {
    make_directory("/dev", 0755);
    make_directory("/sys", 0755);
    make_directory("/lower", 0755);
    make_directory("/scratch", 0755);
    make_directory("/root", 0755);
    if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755") != 0 && errno != EBUSY) log_fatal("cannot mount /dev: %m");
    log_open();
    if (mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "") != 0) log_error("mount /sys: %m");
    load_modules();
    mount_root();
    mount_scratch();
    mount_overlay();
    if (umount("/sys") != 0 || umount2("/dev", MNT_DETACH) != 0) log_error("umount: %m");
    unlink("/init");
    /* The disks stay mounted below the new root, where no path leads. */
    if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0) {
        log_fatal("cannot move to the new root: %m");
    }
}
