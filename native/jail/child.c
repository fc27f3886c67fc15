/* The steps inside, in the only order that works: what needs privilege first,
 * then the privileges go, then the filter that would forbid the steps before. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void wait_for_go(int go)
{
	char byte;

	if (read(go, &byte, 1) != 1)
		_exit(EXIT_OURS); /* the supervisor is gone */
}

static void default_signals(void)
{
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void prefer_for_oom(const char *adjustment)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, adjustment, strlen(adjustment)) < 0)
		reduced("oom", errno, "oom_score_adj %s", adjustment);
	if (fd >= 0)
		close(fd);
}

static bool is_kept(const struct options *o, int fd)
{
	for (size_t i = 0; i < o->keep_len; i++)
		if (o->keep[i] == fd)
			return true;
	return false;
}

static void place(int from, int to)
{
	if (dup2(from, to) < 0)
		failed("descriptors", errno, "%d to %d", from, to);
}

static void place_descriptors(const struct options *o, const struct child_fds *fds)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		failed("descriptors", errno, "/dev/null");
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (!is_kept(o, fd))
			place(fd != STDIN_FILENO && fds->output >= 0 ? fds->output : null, fd);
	for (size_t i = 0; i < o->consoles_len; i++)
		place(fds->console[i], o->consoles[i].fd);
}

static void close_the_rest(const struct options *o, const struct child_fds *fds)
{
	int keep[MAX_FDS + MAX_CONSOLES + 2];
	size_t len = 0;

	for (size_t i = 0; i < o->keep_len; i++)
		keep[len++] = o->keep[i];
	for (size_t i = 0; i < o->consoles_len; i++)
		keep[len++] = o->consoles[i].fd;
	keep[len++] = fds->notes; /* exec closes these two */
	if (fds->lend >= 0)
		keep[len++] = fds->lend;
	close_all_but(keep, len);
}

/* After the change of uid, which clears it. Whoever dies between the clone and
 * this call is seen by the pipe. */
static void die_with_supervisor(int go)
{
	struct pollfd p = {.fd = go, .events = POLLIN};

	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
		failed("pdeathsig", errno, "prctl");
	if (poll(&p, 1, 0) != 0)
		_exit(EXIT_OURS);
}

void child_run(struct options *o, const struct child_fds *fds, unsigned long made)
{
	report_to(fds->notes);
	wait_for_go(fds->go);
	setsid();
	default_signals();
	if (o->oom_score_adj != NULL)
		prefer_for_oom(o->oom_score_adj);
	if ((made & CLONE_NEWUTS) && sethostname(o->hostname, strlen(o->hostname)) != 0)
		reduced("uts", errno, "the host's name stays visible");
	place_descriptors(o, fds);

	bool has_room = (made & CLONE_NEWNS) ? room_build(o) : room_missing("no mount namespace", 0);
	bool own_uid = has_room ? o->has_uid : identity_is_useful(o);
	umask(0077);
	if (chdir("/") != 0)
		failed("room", errno, "chdir");
	limits_apply(o);
	if (fds->lend >= 0)
		lend_open(o->open_read_only, fds->lend);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		failed("capabilities", errno, "no_new_privs");
	/* Before the uid goes: without a room its paths may be root's to open. */
	landlock_install(o, has_room);
	privileges_drop(o, own_uid);
	/* exec makes a readable program dumpable again; until then nobody of the
	 * new uid may look in. After it the pid namespace and the own uid hold. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	die_with_supervisor(fds->go);
	close_the_rest(o, fds);
	seccomp_install(o);
	if (fds->lend >= 0)
		lend_install(fds->lend);
	execve(o->program[0], o->program, o->env);
	failed("exec", errno, "%s", o->program[0]);
}
