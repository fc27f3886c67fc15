#define _GNU_SOURCE
#include "port.h"

#include "connection.h"
#include "log.h"
#include "loop.h"
#include "protocol.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS "/sys/class/virtio-ports"
#define VIRTIO_CONSOLE 3
#define WAIT_MS 5000

struct sockaddr_vsock {
    sa_family_t family;
    uint16_t reserved;
    uint32_t port, cid;
    uint8_t flags, zero[3];
};

static struct source port = {.fd = -1}, listener = {.fd = -1};
static bool vsock, up, readable, writable;

bool port_is_vsock(void) { return vsock; }
bool port_can_read(void) { return readable; }
bool port_can_write(void) { return writable; }

static void set_up(bool now) {
    if (up == now) return;
    up = now;
    if (!up) readable = writable = false;
    if (up) connection_up();
    else connection_down();
}

/* Edge-triggered: a port whose host side is closed is readable (end of file) for as long as
 * it stays closed. The driver wakes the port's wait queue when the host opens or closes it. */
static void port_ready(struct source *source, uint32_t events) {
    (void)source;
    if (!vsock) set_up((events & EPOLLHUP) == 0);
    readable = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) != 0;
    writable = (events & EPOLLOUT) != 0;
}

static void hang_up(void) {
    if (vsock) source_close(&port);
    set_up(false);
}

size_t port_read(uint8_t *bytes, size_t size) {
    ssize_t n = read(port.fd, bytes, size);
    if (n > 0) return (size_t)n;
    readable = false;
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) hang_up();
    return 0;
}

size_t port_write(const uint8_t *bytes, size_t length) {
    ssize_t n = vsock ? send(port.fd, bytes, length, MSG_NOSIGNAL) : write(port.fd, bytes, length);
    if (n > 0) return (size_t)n;
    /* A full virtqueue makes a port's write return 0. */
    writable = false;
    if (n < 0 && errno != EAGAIN && errno != EINTR) hang_up();
    return 0;
}

static bool watch_port(void) {
    port.ready = port_ready;
    return source_watch(&port, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

/* The newest connection wins: the one before may be a leftover of a snapshot, silent for ever. */
static void listener_ready(struct source *source, uint32_t events) {
    (void)events;
    int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    hang_up();
    port.fd = fd;
    if (watch_port()) set_up(true);
    else source_close(&port);
}

static bool listen_on_vsock(void) {
    listener.fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener.fd < 0) return false;
    struct sockaddr_vsock any = {.family = AF_VSOCK, .port = VSOCK_PORT, .cid = UINT32_MAX};
    listener.ready = listener_ready;
    vsock = true;
    return bind(listener.fd, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener.fd, 8) == 0
        && source_watch(&listener, EPOLLIN);
}

static bool read_line(const char *path, char *line, int size) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    bool read = fgets(line, size, file) != NULL;
    fclose(file);
    if (read) line[strcspn(line, "\n")] = 0;
    return read;
}

static bool has_console_device(void) {
    DIR *devices = opendir("/sys/bus/virtio/devices");
    if (devices == NULL) return false;
    bool found = false;
    for (struct dirent *entry; !found && (entry = readdir(devices)) != NULL;) {
        char path[320], id[16];
        snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
        unsigned number;
        found = read_line(path, id, sizeof id) && sscanf(id, "0x%x", &number) == 1 && number == VIRTIO_CONSOLE;
    }
    closedir(devices);
    return found;
}

static int open_named_port(void) {
    DIR *ports = opendir(PORTS);
    if (ports == NULL) return -1;
    int fd = -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(ports)) != NULL;) {
        char path[320], name[64];
        snprintf(path, sizeof path, PORTS "/%s/name", entry->d_name);
        if (!read_line(path, name, sizeof name) || strcmp(name, PORT_NAME) != 0) continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(ports);
    return fd;
}

void port_open(void) {
    port.fd = open_named_port();
    /* The device tells its ports' names some time after the driver has found it. */
    for (int ms = 0; port.fd < 0 && ms < WAIT_MS && has_console_device(); ms++) {
        usleep(1000);
        port.fd = open_named_port();
    }
    if (port.fd >= 0 ? !watch_port() : !listen_on_vsock()) {
        log_fatal("no way to the host: neither a virtio port " PORT_NAME " nor vsock: %m");
    }
}
