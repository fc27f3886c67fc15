#define _GNU_SOURCE
#include "process.h"

#include "connection.h"
#include "environment.h"
#include "log.h"
#include "operations.h"
#include "protocol.h"
#include "spawn.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_MORE (4u << 20)
/* Nobody can do anything with the STATE of a program without input: where it ends soon, all that
 * is to be said of it wakes the host once and not three times. */
#define STATE_DELAY_US 20000

/* The ends of a process's descriptors: ours, and its own. */
struct ends {
    int ours[3], theirs[3];
};

static int dev_null = -1;

static void close_all(int *fds) {
    for (int i = 0; i < 3; i++) {
        bool is_shared = fds[i] == dev_null || (i > 0 && fds[i] == fds[0]) || (i > 1 && fds[i] == fds[1]);
        if (fds[i] >= 0 && !is_shared) close(fds[i]);
    }
}

static bool open_pipe(struct ends *ends, int i) {
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) != 0) return false;
    ends->ours[i] = pair[i == 0];
    ends->theirs[i] = pair[i != 0];
    return fcntl(ends->ours[i], F_SETFL, O_NONBLOCK) == 0;
}

static bool open_ends(struct ends *ends, struct fields request) {
    for (int i = 0; i < 3; i++) ends->ours[i] = ends->theirs[i] = -1;
    if (fields_number(request, TAG_PTY, 0) != 0) {
        int master, slave;
        if (!terminal_open(&master, &slave, fields_number(request, TAG_ROWS, 24), fields_number(request, TAG_COLS, 80))) return false;
        ends->ours[1] = master;
        for (int i = 0; i < 3; i++) ends->theirs[i] = slave;
        /* Its own descriptor, since epoll keeps one set of events for each. */
        ends->ours[0] = fcntl(master, F_DUPFD_CLOEXEC, 3);
        return ends->ours[0] >= 0;
    }
    if (fields_number(request, TAG_STDIN, 0) != 0) {
        if (!open_pipe(ends, 0)) return false;
    } else {
        if (dev_null < 0) dev_null = open("/dev/null", O_RDWR | O_CLOEXEC);
        ends->theirs[0] = dev_null;
    }
    return open_pipe(ends, 1) && open_pipe(ends, 2);
}

/* So that the user may open them again by name: as /dev/stdout, /dev/fd/1, or the terminal's. */
static void give(const struct ends *ends, const struct user *user) {
    for (int i = 0; i < 3; i++) {
        if (ends->theirs[i] == dev_null) continue;
        if (fchown(ends->theirs[i], user->uid, (gid_t)-1) != 0) log_error("the ends of a process: %m");
    }
}

static void not_started(struct stream *stream, enum stage stage, int error) {
    uint8_t bytes[32];
    struct builder fields = {bytes, 0, sizeof bytes, false};
    put_text(&fields, TAG_STAGE, stage_name(stage));
    stream_reply(stream, (uint32_t)error, &fields);
}

static void timed_out(struct timer *timer) {
    struct process *process = container(timer, struct process, timeout);
    process->timed_out = process->killed = true;
    process_signal_tree(process, SIGKILL);
}

static void remember(struct process *process, struct fields request, const struct user *user) {
    struct builder arguments = {process->arguments, 0, sizeof process->arguments, false};
    struct field field;
    struct fields rest = request;
    while (fields_next(&rest, &field)) {
        if (field.tag == TAG_ARG) put_bytes(&arguments, TAG_ARG, field.bytes, field.length);
    }
    process->arguments_length = arguments.length;
    memcpy(process->user, user->name, sizeof process->user);
    /* A name that is too long is no name; the process runs all the same. */
    if (fields_text(request, TAG_NAME, process->name, sizeof process->name) != 0) process->name[0] = 0;
    process->background = fields_number(request, TAG_BACKGROUND, 0) != 0;
}

static void connect_ends(struct process *process, const struct ends *ends, bool terminal) {
    struct stream *stream = process->stream;
    process->is_terminal = terminal;
    stream_open_output(stream, 1);
    pull_open(process, 0, ends->ours[1]);
    if (!terminal) {
        stream_open_output(stream, 2);
        pull_open(process, 1, ends->ours[2]);
    }
    if (ends->ours[0] < 0) return;
    if (!stream->input_open) stream_open_input(stream);
    feed_open(process, ends->ours[0]);
}

static int find_cwd(struct fields request, const struct user *user, char *cwd, bool *may_be_missing) {
    char text[PATH_MAX];
    int error = fields_text(request, TAG_CWD, text, sizeof text);
    *may_be_missing = error == ENOENT && environment_default_cwd() == NULL;
    if (error == ENOENT) snprintf(text, sizeof text, "%s", environment_default_cwd() != NULL ? environment_default_cwd() : user->home);
    else if (error != 0) return error;
    int n = text[0] == '/' ? snprintf(cwd, PATH_MAX, "%s", text) : snprintf(cwd, PATH_MAX, "%s/%s", user->home, text);
    return n < PATH_MAX ? 0 : ENAMETOOLONG;
}

static void launch(struct process *process, struct fields request) {
    struct stream *stream = process->stream;
    struct user user;
    int error = user_of(request, &user);
    if (error != 0) return not_started(stream, STAGE_USER, error);
    bool terminal = fields_number(request, TAG_PTY, 0) != 0, may_be_missing;
    char cwd[PATH_MAX];
    error = find_cwd(request, &user, cwd, &may_be_missing);
    if (error != 0) return not_started(stream, STAGE_CWD, error);
    struct arguments arguments;
    error = arguments_build(request, &user, terminal, &arguments);
    if (error != 0) return not_started(stream, STAGE_EXEC, error);
    struct ends ends;
    if (!open_ends(&ends, request) || (!cgroup_take(&process->cgroup) && cgroup_is_open())) {
        error = errno;
        close_all(ends.ours);
        close_all(ends.theirs);
        free(arguments.memory);
        return not_started(stream, STAGE_FORK, error);
    }
    give(&ends, &user);
    struct spawn start = {
        .argv = arguments.argv, .environment = arguments.environment, .search = arguments.search,
        .cwd = cwd, .cwd_may_be_missing = may_be_missing,
        .stdio = {ends.theirs[0], ends.theirs[1], ends.theirs[2]},
        .terminal = terminal, .cgroup = process->cgroup.fd, .user = &user,
    };
    process->oom_kills = cgroup_oom_kills();
    process->started_us = monotonic_us();
    process->started_ns = realtime_ns();
    process->pid = process->child.pid = spawn(&start);
    close_all(ends.theirs);
    free(arguments.memory);
    if (process->pid < 0) {
        close_all(ends.ours);
        return not_started(stream, start.stage, start.error);
    }
    process->running = true;
    child_add(&process->child);
    remember(process, request, &user);
    connect_ends(process, &ends, terminal);
    uint64_t timeout_ms = fields_number(request, TAG_TIMEOUT, 0);
    process->timeout.fire = timed_out;
    if (timeout_ms > 0) timer_set(&process->timeout, timeout_ms < UINT32_MAX ? timeout_ms * 1000 : UINT64_MAX / 4);
    if (terminal || process->background || stream->input_open) return stream_accept(stream);
    stream->state_due = true;
    process_report_soon(process, STATE_DELAY_US);
}

static int start(struct stream *stream, struct fields request) {
    struct process *process = process_make(stream);
    if (process == NULL) return ENOMEM;
    stream->work = process;
    uint64_t more = fields_number(request, TAG_MORE, 0);
    if (more > MAX_MORE) {
        not_started(stream, STAGE_EXEC, E2BIG);
    } else if (more == 0) {
        launch(process, request);
    } else {
        process->more_size = request.length + more;
        process->more = malloc(process->more_size);
        if (process->more == NULL) return ENOMEM;
        memcpy(process->more, request.bytes, request.length);
        process->more_length = request.length;
        stream_open_input(stream);
    }
    return 0;
}

/* Long arguments, before the program can start. Bytes used. */
static size_t take_more(struct process *process, const uint8_t *bytes, size_t length) {
    size_t n = process->more_size - process->more_length;
    if (n > length) n = length;
    memcpy(process->more + process->more_length, bytes, n);
    process->more_length += n;
    stream_delivered(process->stream, n);
    if (process->more_length < process->more_size) return n;
    uint8_t *memory = process->more;
    process->more = NULL;
    struct fields request = {memory, process->more_size};
    if (fields_are_whole(request)) launch(process, request);
    else not_started(process->stream, STAGE_EXEC, EINVAL);
    free(memory);
    return n;
}

static void input(struct stream *stream, const uint8_t *bytes, size_t length) {
    struct process *process = stream->work;
    size_t used = process->more != NULL ? take_more(process, bytes, length) : 0;
    if (used < length && !stream->finished) feed_bytes(process, bytes + used, length - used);
}

static void input_ended(struct stream *stream) {
    struct process *process = stream->work;
    if (process->more != NULL) not_started(stream, STAGE_EXEC, EINVAL);
    else feed_end(process);
}

static void room(struct stream *stream) {
    pull_go_on(stream->work);
}

static void describe(struct stream *stream, struct builder *state) {
    struct process *process = stream->work;
    if (process->pid > 0) put_number(state, TAG_PID, (uint64_t)process->pid);
}

static void cancel(struct stream *stream) {
    struct process *process = stream->work;
    process->killed = true;
    if (process->running) process_signal_tree(process, SIGKILL);
    else if (process->more != NULL) not_started(stream, STAGE_EXEC, ECANCELED);
}

static void forget(struct stream *stream) {
    struct process *process = stream->work;
    if (process == NULL) return;
    if (process->running) {
        process->killed = true;
        process_signal_tree(process, SIGKILL);
    }
    process->stream = NULL;
    free(process->more);
    process->more = NULL;
    timer_stop(&process->timeout);
    feed_close(process);
    pull_discard(&process->pull[0]);
    pull_discard(&process->pull[1]);
    processes_sweep();
}

void exec_reply(struct process *process) {
    uint8_t bytes[128];
    struct builder fields = {bytes, 0, sizeof bytes, false};
    if (WIFSIGNALED(process->status)) put_number(&fields, TAG_SIGNAL, (uint64_t)WTERMSIG(process->status));
    else put_number(&fields, TAG_EXIT, (uint64_t)WEXITSTATUS(process->status));
    if (process->timed_out) put_number(&fields, TAG_TIMED_OUT, 1);
    if (process->out_of_memory) put_number(&fields, TAG_OOM, 1);
    put_number(&fields, TAG_DURATION, process->duration_us);
    put_number(&fields, TAG_CPU_USEC, process->cpu_us);
    stream_reply(process->stream, 0, &fields);
}

const struct operation exec_operation = {
    .number = OP_EXEC, .start = start, .input = input, .input_ended = input_ended, .room = room,
    .describe = describe, .cancel = cancel, .free = forget,
};
