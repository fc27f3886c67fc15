/* Limits on memory, processes and CPU time, where the host has them. The
 * folders and files are the caller's choice: version 1 and 2 look alike here. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int put(const char *dir, const char *file, const char *value)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = write(fd, value, strlen(value));
	int error = errno;
	close(fd);
	errno = error;
	return n < 0 ? -1 : 0;
}

/* In strict mode this is the end of the child, which may be in a group already. */
static void cannot(struct options *o, pid_t child, const char *dir, const char *what)
{
	int error = errno;

	if (o->strict) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		cgroups_leave(o);
	}
	reduced("cgroup", error, "%s: %s", dir, what);
}

static void apply_settings(struct options *o, pid_t child, struct cgroup *c)
{
	for (size_t i = 0; i < c->settings_len; i++) {
		char *file = c->settings[i], *value = strchr(file, '=');

		*value++ = '\0';
		if (put(c->dir, file, value) != 0)
			cannot(o, child, c->dir, file);
	}
}

void cgroups_enter(struct options *o, pid_t child)
{
	char pid[16];

	snprintf(pid, sizeof pid, "%d", (int)child);
	for (size_t i = 0; i < o->cgroups_len; i++) {
		struct cgroup *c = &o->cgroups[i];

		c->made = mkdir(c->dir, 0755) == 0;
		if (!c->made && errno != EEXIST) {
			cannot(o, child, c->dir, "mkdir");
			continue;
		}
		apply_settings(o, child, c);
		if (put(c->dir, "cgroup.procs", pid) != 0)
			cannot(o, child, c->dir, "cgroup.procs");
	}
}

/* Version 2 tells it in memory.events, version 1 in memory.oom_control; both in
 * a line "oom_kill N". */
static bool killed_in(const char *dir, const char *file)
{
	char path[PATH_MAX], text[512];

	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = '\0';
	const char *count = strstr(text, "oom_kill ");
	return count != NULL && atoi(count + strlen("oom_kill ")) > 0;
}

bool cgroups_killed(const struct options *o)
{
	for (size_t i = 0; i < o->cgroups_len; i++) {
		const char *dir = o->cgroups[i].dir;

		if (o->cgroups[i].made && (killed_in(dir, "memory.events") || killed_in(dir, "memory.oom_control")))
			return true;
	}
	return false;
}

void cgroups_leave(struct options *o)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	for (size_t i = 0; i < o->cgroups_len; i++) {
		/* A process that was just reaped may still be counted for a moment. */
		for (int tries = 0; o->cgroups[i].made && tries < 200; tries++) {
			if (rmdir(o->cgroups[i].dir) == 0 || errno != EBUSY)
				break;
			nanosleep(&pause, NULL);
		}
	}
}
