/* The floor that figures are held against: a PID 1 that boots as the agent does and serves what
 * the kernel alone can do, one request after the other, with no protocol, users, limits or pipes.
 *
 * A request is `u8 operation, u8 zero[3], u32 number`, and for ECHO and SPAWN that many bytes.
 * A reply is a `u32` and that many bytes, or for GET just the file's bytes. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODULES "/modules"
#define FILE_PATH "/tmp/floor"
/* What one write to a virtio port carries. */
#define PIECE 32768

enum operation { ECHO = 'e', SPAWN = 's', ANSWER = 'a', PUT = 'p', GET = 'g' };

struct request {
    uint8_t operation, zero[3];
    uint32_t number;
};

static int port = -1;
static uint8_t piece[PIECE];

static _Noreturn void die(const char *what) {
    int error = errno;
    int kmsg = open("/dev/kmsg", O_WRONLY);
    dprintf(kmsg, "floor-init: %s: %s\n", what, strerror(error));
    reboot(RB_POWER_OFF);
    _exit(1);
}

static void load_modules(void) {
    struct dirent **names;
    int count = scandir(MODULES, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] == '.') continue;
        char path[300];
        snprintf(path, sizeof path, MODULES "/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0) die(path);
        close(fd);
    }
}

static void wait_for(const char *path) {
    while (access(path, F_OK) != 0) usleep(1000);
}

static void mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    if (mkdir(target, 0755) != 0 && errno != EEXIST) die(target);
    if (mount(source, target, type, flags, options) != 0) die(target);
}

static void mount_root(void) {
    wait_for("/dev/vda");
    mount_at("/dev/vda", "/lower", "ext4", MS_RDONLY | MS_NOATIME, "");
    wait_for("/dev/vdb");
    mount_at("/dev/vdb", "/scratch", "ext4", MS_NOATIME, "");
    if (mkdir("/scratch/upper", 0755) != 0 || mkdir("/scratch/work", 0700) != 0) die("/scratch");
    mount_at("overlay", "/root", "overlay", MS_NOATIME, "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work");
    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) != 0) die("/dev");
    if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0) die("/");
}

static int open_first_port(void) {
    DIR *devices = opendir("/dev");
    int fd = -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(devices)) != NULL;) {
        if (strncmp(entry->d_name, "vport", 5) == 0) fd = openat(dirfd(devices), entry->d_name, O_RDWR | O_CLOEXEC);
    }
    closedir(devices);
    return fd;
}

static void read_all(void *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = read(port, (uint8_t *)bytes + done, length - done);
        if (n < 0 && errno != EINTR) die("port");
        if (n == 0) usleep(1000); /* nobody has connected yet */
        if (n > 0) done += (size_t)n;
    }
}

static void write_all(int fd, const void *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, (const uint8_t *)bytes + done, length - done);
        if (n < 0 && errno != EINTR) die("write");
        if (n > 0) done += (size_t)n;
    }
}

static void reply(const void *bytes, uint32_t length) {
    static uint8_t frame[sizeof length + PIECE];
    memcpy(frame, &length, sizeof length);
    memcpy(frame + sizeof length, bytes, length);
    write_all(port, frame, sizeof length + length);
}

static char *const environment[] = {"PATH=/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8", NULL};

/* vfork and exec, the least that starting a program takes. `output`: its standard output. */
static pid_t spawn(char *const *argv, int output) {
    pid_t pid = vfork();
    if (pid != 0) return pid;
    if (output >= 0) dup2(output, STDOUT_FILENO);
    execve(argv[0], argv, environment);
    _exit(127);
}

static void serve_spawn(uint32_t length) {
    char path[256] = "";
    if (length >= sizeof path) die("path");
    read_all(path, length);
    char *argv[] = {path, NULL}, *shell[] = {"/bin/sh", "-c", path, NULL};
    int status = -1;
    pid_t pid = spawn(path[0] == '/' ? argv : shell, -1);
    if (pid < 0 || waitpid(pid, &status, 0) != pid) die("spawn");
    reply(&status, sizeof status);
}

/* A program's output, to its end, and then the program's. */
static void serve_answer(void) {
    char *argv[] = {"/usr/bin/python3", "-c", "print(6*7)", NULL};
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) != 0) die("pipe");
    pid_t pid = spawn(argv, pair[1]);
    close(pair[1]);
    uint32_t length = 0;
    for (ssize_t n; (n = read(pair[0], piece + length, sizeof piece - length)) > 0;) length += (uint32_t)n;
    close(pair[0]);
    if (pid < 0 || waitpid(pid, NULL, 0) != pid) die("python3");
    reply(piece, length);
}

static void serve_echo(uint32_t length) {
    if (length > sizeof piece) die("echo");
    read_all(piece, length);
    reply(piece, length);
}

/* As `dd bs=32k iflag=fullblock` does: a port gives one page at a time, a file takes more. */
static void serve_put(uint32_t length) {
    int fd = open(FILE_PATH, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) die(FILE_PATH);
    for (uint32_t done = 0; done < length;) {
        size_t n = length - done < sizeof piece ? length - done : sizeof piece;
        read_all(piece, n);
        write_all(fd, piece, n);
        done += (uint32_t)n;
    }
    close(fd);
    reply(&length, sizeof length);
}

static void serve_get(uint32_t length) {
    int fd = open(FILE_PATH, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(FILE_PATH);
    for (uint32_t done = 0; done < length;) {
        ssize_t n = read(fd, piece, sizeof piece);
        if (n <= 0) die(FILE_PATH);
        write_all(port, piece, (size_t)n);
        done += (uint32_t)n;
    }
    close(fd);
}

static void serve(void) {
    struct request request;
    read_all(&request, sizeof request);
    switch (request.operation) {
    case ECHO: return serve_echo(request.number);
    case SPAWN: return serve_spawn(request.number);
    case ANSWER: return serve_answer();
    case PUT: return serve_put(request.number);
    case GET: return serve_get(request.number);
    default: die("request");
    }
}

int main(void) {
    mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
    load_modules();
    mount_root();
    while ((port = open_first_port()) < 0) usleep(1000);
    write_all(port, "ready", 5);
    for (;;) serve();
}
