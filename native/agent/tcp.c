/* CONNECT: a TCP connection to a port of the guest, or one to a Unix socket. */
#define _GNU_SOURCE
#include "operations.h"

#include "loop.h"
#include "path.h"
#include "protocol.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Of one turn, so that other streams have theirs. */
#define TURN 65536
/* A Unix socket is connected at once, and its first answer comes soon as a rule: STATE waits for
 * it, so that both wake the host once. */
#define STATE_DELAY_US 20000

struct connecting {
    struct source socket;
    struct stream *stream;
    struct timer introduction; /* when STATE leaves alone */
    struct ring pending; /* input that the socket does not take yet */
    uint16_t port;
    bool is_connected, try_v6, input_ended, output_ended, is_full;
};

static void connection_ready(struct source *source, uint32_t events);

static void finish(struct connecting *tcp, int error) {
    timer_stop(&tcp->introduction);
    source_close(&tcp->socket);
    stream_reply(tcp->stream, (uint32_t)error, NULL);
}

/* 0: connected or on the way. */
static int dial(struct connecting *tcp, const struct sockaddr *address, socklen_t length) {
    source_close(&tcp->socket);
    tcp->socket.fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (tcp->socket.fd < 0) return errno;
    int on = 1;
    if (address->sa_family != AF_UNIX && setsockopt(tcp->socket.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) return errno;
    if (connect(tcp->socket.fd, address, length) != 0 && errno != EINPROGRESS) return errno;
    tcp->socket.ready = connection_ready;
    return source_watch(&tcp->socket, EPOLLOUT) ? 0 : ENOMEM;
}

static int dial_v4(struct connecting *tcp, struct in_addr host) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(tcp->port), .sin_addr = host};
    return dial(tcp, (struct sockaddr *)&address, sizeof address);
}

static int dial_v6(struct connecting *tcp, struct in6_addr host) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(tcp->port), .sin6_addr = host};
    return dial(tcp, (struct sockaddr *)&address, sizeof address);
}

static uint32_t wanted_events(const struct connecting *tcp) {
    bool reads = !tcp->output_ended && !tcp->is_full, writes = tcp->pending.start < tcp->pending.end;
    return (reads ? EPOLLIN : 0u) | (writes ? EPOLLOUT : 0u);
}

static void go_on(struct connecting *tcp) {
    if (tcp->socket.fd < 0) return;
    bool is_written = tcp->input_ended && tcp->pending.start == tcp->pending.end;
    if (is_written && tcp->output_ended) finish(tcp, 0);
    else source_watch(&tcp->socket, wanted_events(tcp));
}

static void receive(struct connecting *tcp) {
    size_t turn = TURN;
    tcp->is_full = false;
    while (turn > 0 && !tcp->output_ended) {
        size_t room;
        uint8_t *space = stream_space(tcp->stream, 1, &room);
        if (space == NULL) {
            tcp->is_full = true;
            return;
        }
        ssize_t n = recv(tcp->socket.fd, space, room < turn ? room : turn, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) return finish(tcp, errno);
        if (n == 0) {
            tcp->output_ended = true;
            stream_end_output(tcp->stream, 1);
            return;
        }
        stream_wrote(tcp->stream, 1, (size_t)n);
        turn -= (size_t)n;
    }
}

static void half_close(struct connecting *tcp) {
    if (tcp->input_ended && tcp->pending.start == tcp->pending.end && shutdown(tcp->socket.fd, SHUT_WR) != 0
        && errno != ENOTCONN) finish(tcp, errno);
}

/* Bytes taken; the connection may be over after it. */
static size_t transmit(struct connecting *tcp, const uint8_t *bytes, size_t length) {
    ssize_t n = send(tcp->socket.fd, bytes, length, MSG_NOSIGNAL);
    if (n >= 0) return (size_t)n;
    if (errno != EAGAIN && errno != EINTR) finish(tcp, errno);
    return 0;
}

static void transmit_pending(struct connecting *tcp) {
    struct ring *pending = &tcp->pending;
    uint64_t delivered = 0;
    while (tcp->socket.fd >= 0 && pending->start < pending->end) {
        size_t length;
        const uint8_t *bytes = ring_data(pending, pending->start, &length);
        size_t n = transmit(tcp, bytes, length);
        if (n == 0) break;
        ring_drop_to(pending, pending->start + n);
        delivered += n;
    }
    if (tcp->socket.fd < 0) return;
    stream_delivered(tcp->stream, delivered);
    half_close(tcp);
}

static void connected(struct connecting *tcp) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(tcp->socket.fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    if (error == ECONNREFUSED && tcp->try_v6) {
        tcp->try_v6 = false;
        /* A guest without IPv6 has refused, and nothing else is of interest. */
        if (dial_v6(tcp, in6addr_loopback) == 0) return;
    }
    if (error != 0) return finish(tcp, error);
    tcp->is_connected = true;
    stream_open_output(tcp->stream, 1);
    stream_accept(tcp->stream);
    transmit_pending(tcp);
    go_on(tcp);
}

static void connection_ready(struct source *source, uint32_t events) {
    struct connecting *tcp = container(source, struct connecting, socket);
    if (!tcp->is_connected) return connected(tcp);
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) receive(tcp);
    if (tcp->socket.fd >= 0 && (events & EPOLLOUT) != 0) transmit_pending(tcp);
    go_on(tcp);
}

static void introduce(struct timer *timer) {
    struct connecting *tcp = container(timer, struct connecting, introduction);
    stream_schedule(tcp->stream);
}

/* Rights do not matter to a name that begins with a NUL byte: it is in no file system. */
static int dial_name(struct connecting *tcp, const struct field *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (name->length > sizeof address.sun_path) return ENAMETOOLONG;
    memcpy(address.sun_path, name->bytes, name->length);
    return dial(tcp, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + name->length));
}

static int dial_path(struct connecting *tcp, struct fields request) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[PATH_MAX];
    struct user user;
    int error = path_and_user(request, &user, path);
    if (error != 0) return error;
    if (strlen(path) >= sizeof address.sun_path) return ENAMETOOLONG;
    strcpy(address.sun_path, path);
    user_enter(&user);
    error = dial(tcp, (struct sockaddr *)&address, sizeof address);
    user_leave(&user);
    return error;
}

/* A full backlog is EAGAIN: nothing tells when there is room. */
static int start_unix(struct connecting *tcp, struct fields request, const struct field *name) {
    bool is_path = name->length == 0 || name->bytes[0] != 0;
    int error = is_path ? dial_path(tcp, request) : dial_name(tcp, name);
    if (error != 0) return error;
    tcp->is_connected = true;
    stream_open_input(tcp->stream);
    stream_open_output(tcp->stream, 1);
    tcp->stream->state_due = true;
    tcp->introduction.fire = introduce;
    timer_set(&tcp->introduction, STATE_DELAY_US);
    go_on(tcp);
    return 0;
}

static struct connecting *make(struct stream *stream) {
    struct connecting *tcp = calloc(1, sizeof *tcp);
    if (tcp == NULL) return NULL;
    tcp->socket.fd = -1;
    tcp->stream = stream;
    stream->work = tcp;
    return tcp;
}

static int start(struct stream *stream, struct fields request) {
    struct field name;
    bool is_unix = fields_find(request, TAG_PATH, &name);
    uint64_t port = fields_number(request, TAG_PORT, 0);
    if (!is_unix && (port == 0 || port > UINT16_MAX)) return EINVAL;
    char host[64];
    int error = fields_text(request, TAG_HOST, host, sizeof host);
    if (error != 0 && error != ENOENT) return EINVAL;
    struct connecting *tcp = make(stream);
    if (tcp == NULL) return ENOMEM;
    if (is_unix) return start_unix(tcp, request, &name);
    tcp->port = (uint16_t)port;
    struct in_addr v4 = {htonl(INADDR_LOOPBACK)};
    struct in6_addr v6;
    tcp->try_v6 = error == ENOENT;
    if (error == 0 && inet_pton(AF_INET, host, &v4) != 1) {
        if (inet_pton(AF_INET6, host, &v6) != 1) return EINVAL;
        error = dial_v6(tcp, v6);
    } else {
        error = dial_v4(tcp, v4);
        if (error == ECONNREFUSED && tcp->try_v6) error = dial_v6(tcp, in6addr_loopback);
    }
    if (error == 0) stream_open_input(stream);
    return error;
}

static void input(struct stream *stream, const uint8_t *bytes, size_t length) {
    struct connecting *tcp = stream->work;
    size_t done = 0;
    if (tcp->is_connected && tcp->pending.start == tcp->pending.end) {
        done = transmit(tcp, bytes, length);
        if (tcp->socket.fd < 0) return;
        stream_delivered(stream, done);
    }
    if (done < length && !ring_append(&tcp->pending, DEFAULT_WINDOW, bytes + done, length - done)) return finish(tcp, ENOMEM);
    if (tcp->is_connected) go_on(tcp);
}

static void input_ended(struct stream *stream) {
    struct connecting *tcp = stream->work;
    tcp->input_ended = true;
    if (!tcp->is_connected) return;
    half_close(tcp);
    go_on(tcp);
}

static void room(struct stream *stream) {
    struct connecting *tcp = stream->work;
    if (!tcp->is_full || tcp->socket.fd < 0) return;
    receive(tcp);
    go_on(tcp);
}

static void cancel(struct stream *stream) {
    finish(stream->work, ECANCELED);
}

static void forget(struct stream *stream) {
    struct connecting *tcp = stream->work;
    if (tcp == NULL) return;
    timer_stop(&tcp->introduction);
    source_close(&tcp->socket);
    ring_free(&tcp->pending);
    free(tcp);
}

const struct operation connect_operation = {
    .number = OP_CONNECT, .start = start, .input = input, .input_ended = input_ended, .room = room,
    .cancel = cancel, .free = forget,
};
