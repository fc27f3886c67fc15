/* The process outside: makes the child, reads its output, ends it when the
 * owner goes, and says how it ended. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_LOGS = MAX_CONSOLES + 1, OTHERS = 4, LATER_MS = 20 };

struct supervisor {
	pid_t child;
	int signals;
	int notes;
	int owner;
	struct log *logs[MAX_LOGS]; /* NULL once its source ended */
	size_t logs_len;
	struct lender lender;
	bool told_failure;
	bool ended; /* and buried: its pid may be another's */
	int wait_status;
};

/* Above every number that means something to the program, so that placing
 * descriptors in the child overwrites none of ours. */
static int high(int low, int above)
{
	int fd = fcntl(low, F_DUPFD_CLOEXEC, above + 1);

	if (fd < 0)
		failed("descriptors", errno, "above %d", above);
	close(low);
	return fd;
}

static void high_pipe(int ends[2], int above)
{
	int low[2];

	if (pipe2(low, O_CLOEXEC) != 0)
		failed("descriptors", errno, "pipe");
	for (int i = 0; i < 2; i++)
		ends[i] = high(low[i], above);
}

static int open_log(struct supervisor *s, const char *path, int above)
{
	int ends[2];

	high_pipe(ends, above);
	s->logs[s->logs_len++] = log_open(path, ends[0]);
	return ends[1];
}

static void open_logs(struct supervisor *s, const struct options *o, struct child_fds *fds, int above)
{
	fds->output = o->log != NULL ? open_log(s, o->log, above) : -1;
	for (size_t i = 0; i < o->consoles_len; i++)
		fds->console[i] = open_log(s, o->consoles[i].path, above);
}

static void open_lender(struct supervisor *s, const struct options *o, struct child_fds *fds, int above)
{
	int low[2];

	fds->lend = -1;
	lender_start(&s->lender, o->open_read_only, -1);
	if (o->open_read_only == NULL)
		return;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, low) != 0)
		failed("descriptors", errno, "socketpair");
	s->lender.socket = high(low[0], above);
	fds->lend = high(low[1], above);
}

static void prepare_binds(struct options *o)
{
	struct stat st;

	for (size_t i = 0; i < o->binds_len; i++) {
		if (stat(o->binds[i].source, &st) != 0)
			failed("bind", errno, "%s", o->binds[i].source);
		o->binds[i].is_directory = S_ISDIR(st.st_mode);
	}
}

static void check_descriptors(const struct options *o)
{
	for (size_t i = 0; i < o->keep_len; i++) {
		if (fcntl(o->keep[i], F_GETFD) < 0)
			failed("descriptors", errno, "--keep-fd %d", o->keep[i]);
		for (size_t j = 0; j < o->consoles_len; j++)
			if (o->consoles[j].fd == o->keep[i])
				failed("descriptors", EINVAL, "%d is kept and a console", o->keep[i]);
	}
}

static int watch_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		failed("supervisor", errno, "signalfd");
	return fd;
}

static pid_t make_child(unsigned long *made)
{
	*made = namespaces_wanted();
	pid_t pid = raw_clone(*made);
	if (pid >= 0)
		return pid;
	*made = namespaces_possible(*made);
	pid = raw_clone(*made);
	if (pid < 0)
		failed("clone", errno, "making the process");
	return pid;
}

/* The program's own descriptors are its alone: the peer of a socket must see
 * its end when the program ends, and a disk must not stay open. */
static void let_go(const struct options *o, const struct child_fds *fds)
{
	for (size_t i = 0; i < o->keep_len; i++)
		if (o->keep[i] > STDERR_FILENO)
			close(o->keep[i]);
	for (size_t i = 0; i < o->consoles_len; i++)
		close(fds->console[i]);
	if (fds->output >= 0)
		close(fds->output);
	if (fds->lend >= 0)
		close(fds->lend);
	close(fds->notes);
	close(fds->go);
}

static void write_pid_file(const char *path, pid_t pid)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0 || dprintf(fd, "%d\n", (int)pid) < 0)
		failed("pid-file", errno, "%s", path);
	close(fd);
}

static void begin(struct supervisor *s, struct options *o)
{
	struct child_fds fds;
	int above = options_largest_fd(o), notes[2], go[2];
	unsigned long made;

	identity_decide(o);
	prepare_binds(o);
	check_descriptors(o);
	open_logs(s, o, &fds, above);
	open_lender(s, o, &fds, above);
	high_pipe(notes, above);
	high_pipe(go, above);
	fds.notes = notes[1];
	fds.go = go[0];
	s->signals = watch_signals();
	s->owner = o->owner_fd;
	s->child = make_child(&made);
	if (s->child == 0) {
		close(go[1]);
		child_run(o, &fds, made);
	}
	s->notes = notes[0];
	let_go(o, &fds);
	if (made & CLONE_NEWUSER)
		namespaces_map_ids(s->child, o);
	if (o->pid_file != NULL)
		write_pid_file(o->pid_file, s->child);
	cgroups_enter(o, s->child);
	if (write(go[1], "g", 1) != 1)
		failed("supervisor", errno, "the child is gone");
	/* go[1] stays open: its end of file tells the child that we died. */
	if (o->open_read_only != NULL)
		identity_resemble(o);
	supervisor_privileges_drop(o);
	/* Not before the maps are written: /proc/PID of a process that is not
	 * dumpable, and of its children, belongs to root. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* False at the end of the notes: exec worked, or the child is gone. */
static bool take_note(struct supervisor *s)
{
	struct note n;
	ssize_t len = read(s->notes, &n, sizeof n);

	if (len < 0)
		return errno == EINTR;
	if (len != sizeof n)
		return false;
	report_forward(&n);
	s->told_failure |= n.kind == NOTE_FAILED;
	return true;
}

static void check_lender(struct supervisor *s)
{
	if (lender_can_look(s->child))
		return;
	int error = errno;

	kill(s->child, SIGKILL);
	report_line("failed open-read-only %d the program's memory cannot be looked into: %s", error, strerror(error));
	s->told_failure = true;
}

/* A child that was killed on its way closes the pipe as exec does; then the
 * ending that follows tells the rest. */
static void notes_ended(struct supervisor *s)
{
	close(s->notes);
	s->notes = -1;
	if (!s->told_failure && !s->ended && s->lender.path != NULL)
		check_lender(s);
	if (!s->told_failure)
		report_line("started %d", (int)s->child);
}

static void take_signals(struct supervisor *s)
{
	struct signalfd_siginfo info;

	while (read(s->signals, &info, sizeof info) == sizeof info) {
		if (info.ssi_signo == SIGUSR1)
			s->owner = -1; /* it is finished, and may go */
		else if (info.ssi_signo != SIGCHLD)
			kill(s->child, SIGKILL);
	}
}

static void watch_owner(struct supervisor *s)
{
	char bytes[256];
	ssize_t n = read(s->owner, bytes, sizeof bytes);

	if (n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN)))
		return;
	s->owner = -1;
	kill(s->child, SIGKILL);
}

static void copy_log(struct log **l)
{
	if (log_copy(*l))
		return;
	close(log_source(*l));
	*l = NULL;
}

static void serve(struct supervisor *s)
{
	struct pollfd p[OTHERS + MAX_LOGS] = {
		{.fd = s->signals, .events = POLLIN},
		{.fd = s->notes, .events = POLLIN},
		{.fd = s->owner, .events = POLLIN},
		{.fd = lender_source(&s->lender), .events = POLLIN},
	};
	int timeout = -1;

	for (size_t i = 0; i < s->logs_len; i++) {
		p[OTHERS + i] = (struct pollfd){.fd = -1, .events = POLLIN};
		if (s->logs[i] != NULL && log_may_take(s->logs[i]))
			p[OTHERS + i].fd = log_source(s->logs[i]);
		else if (s->logs[i] != NULL)
			timeout = LATER_MS;
	}
	if (!lender_may_answer(&s->lender)) {
		p[3].fd = -1;
		timeout = LATER_MS;
	}
	if (poll(p, OTHERS + s->logs_len, timeout) < 0)
		return;
	if (p[2].revents != 0)
		watch_owner(s);
	if (p[1].revents != 0 && !take_note(s))
		notes_ended(s);
	if (p[0].revents != 0)
		take_signals(s);
	if (p[3].revents != 0)
		lender_serve(&s->lender, p[3].revents);
	for (size_t i = 0; i < s->logs_len; i++)
		if (p[OTHERS + i].revents != 0)
			copy_log(&s->logs[i]);
}

static bool has_ended(struct supervisor *s)
{
	s->ended = waitpid(s->child, &s->wait_status, WNOHANG) == s->child;
	return s->ended;
}

static int finish(struct supervisor *s, struct options *o)
{
	int status = s->wait_status;

	while (s->notes >= 0)
		if (!take_note(s))
			notes_ended(s);
	for (size_t i = 0; i < s->logs_len; i++)
		if (s->logs[i] != NULL)
			log_drain(s->logs[i]);
	bool out_of_memory = WIFSIGNALED(status) && cgroups_killed(o);
	cgroups_leave(o);
	if (s->told_failure)
		return EXIT_OURS;
	if (out_of_memory)
		report_line("out-of-memory");
	if (WIFSIGNALED(status)) {
		report_line("signaled %d", WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	report_line("exited %d", WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

int supervise(struct options *o)
{
	static struct supervisor s = {.owner = -1};

	begin(&s, o);
	if (chdir("/") != 0)
		failed("supervisor", errno, "chdir");
	while (!has_ended(&s))
		serve(&s);
	return finish(&s, o);
}
