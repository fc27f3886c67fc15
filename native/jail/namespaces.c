/* Which namespaces this host gives, and who the child is in its user namespace. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

const struct space spaces[] = {
	{"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID},       {"ipc", CLONE_NEWIPC},
	{"uts", CLONE_NEWUTS},  {"net", CLONE_NEWNET}, {"cgroupns", CLONE_NEWCGROUP},
};
const size_t spaces_len = sizeof spaces / sizeof *spaces;

/* With a null stack the child goes on as after fork(), whatever the order of
 * clone's other arguments is on this architecture. */
pid_t raw_clone(unsigned long flags)
{
	return (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

bool has_capability(int capability)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};

	if (syscall(SYS_capget, &header, data) != 0)
		return false;
	return data[capability / 32].effective & (1u << (capability % 32));
}

unsigned long namespaces_wanted(void)
{
	unsigned long flags = has_capability(CAP_SYS_ADMIN) ? 0 : CLONE_NEWUSER;

	for (size_t i = 0; i < spaces_len; i++)
		flags |= spaces[i].flag;
	return flags;
}

/* "self" or the child: both may write a map of one id. */
static void write_proc(const char *who, const char *name, const char *text)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%s/%s", who, name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		failed("user", errno, "%s", path);
	if (write(fd, text, strlen(text)) < 0)
		failed("user", errno, "writing '%s' to %s", text, path);
	close(fd);
}

/* Each id is itself inside, so that what the child sees is what the host sees. */
static void map_own_ids(const char *who, uid_t uid, gid_t gid)
{
	char text[32];

	/* Needed since Linux 3.19 before an unprivileged gid_map. */
	write_proc(who, "setgroups", "deny");
	snprintf(text, sizeof text, "%u %u 1\n", uid, uid);
	write_proc(who, "uid_map", text);
	snprintf(text, sizeof text, "%u %u 1\n", gid, gid);
	write_proc(who, "gid_map", text);
}

void namespaces_map_ids(pid_t child, const struct options *o)
{
	char who[16], text[96];
	uid_t uid = geteuid();
	gid_t gid = getegid();

	snprintf(who, sizeof who, "%d", (int)child);
	/* Without CAP_SETUID the kernel lets us map our own id and no other. */
	if (!o->has_uid) {
		map_own_ids(who, uid, gid);
		return;
	}
	snprintf(text, sizeof text, "%u %u 1\n%u %u 1\n", uid, uid, o->uid, o->uid);
	write_proc(who, "uid_map", text);
	snprintf(text, sizeof text, "%u %u 1\n%u %u 1\n", gid, gid, o->gid, o->gid);
	write_proc(who, "gid_map", text);
}

int trial_run(unsigned long flags, int (*inside)(void))
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int status;
	pid_t pid = raw_clone(flags);

	if (pid < 0)
		return errno;
	if (pid == 0) {
		if (inside == NULL)
			_exit(0);
		if (flags & CLONE_NEWUSER)
			map_own_ids("self", uid, gid);
		_exit(inside());
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
}

int trial(unsigned long flags)
{
	return trial_run(flags, NULL);
}

unsigned long namespaces_possible(unsigned long wanted)
{
	unsigned long possible = wanted & CLONE_NEWUSER;
	int user_error = possible ? trial(possible) : 0;

	if (user_error != 0)
		possible = 0;
	for (size_t i = 0; i < spaces_len; i++) {
		int error = user_error != 0 ? user_error : trial(possible | spaces[i].flag);

		if (error == 0)
			possible |= spaces[i].flag;
		else if (user_error != 0)
			reduced(spaces[i].name, error, "no user namespace, and not root");
		else
			reduced(spaces[i].name, error, "the kernel refuses this namespace");
	}
	/* A user namespace alone protects nothing, and costs the ids their names. */
	return possible == CLONE_NEWUSER ? 0 : possible;
}
