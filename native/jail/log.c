/* A log that keeps the end of what was written: the last 64 to 128 KiB, taken at
 * 4 MiB a second at most. A guest that prints without end fills no disk and
 * costs the host little; it waits. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEPT = 64 * 1024, LARGEST = 2 * KEPT, PIECE = 16 * 1024, DRAINED = 1024 * 1024, PER_MS = 4 * 1024, BURST = 1024 * 1024 };

struct log {
	int source;
	int fd;
	int dir;            /* -1: a descriptor was given, there is no name to replace */
	char name[NAME_MAX + 1];
	char next_name[NAME_MAX + 8];
	size_t size;        /* of the file */
	size_t total;       /* bytes ever seen, so total % KEPT is where the ring goes on */
	struct budget bytes;
	char ring[KEPT];
};

static void open_target(struct log *l, const char *path)
{
	char *folder = strdup(path);
	char *slash = folder != NULL ? strrchr(folder, '/') : NULL;

	if (slash == NULL)
		failed("log", EINVAL, "not an absolute path: %s", path);
	snprintf(l->name, sizeof l->name, "%s", slash + 1);
	snprintf(l->next_name, sizeof l->next_name, "%s.next", l->name);
	slash[slash == folder ? 1 : 0] = '\0';
	l->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->dir < 0)
		failed("log", errno, "%s", folder);
	l->fd = openat(l->dir, l->name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (l->fd < 0)
		failed("log", errno, "%s", path);
	free(folder);
}

struct log *log_open(const char *path, int source_fd)
{
	struct log *l = calloc(1, sizeof *l);

	if (l == NULL)
		failed("log", ENOMEM, "%s", path);
	l->source = source_fd;
	l->bytes = (struct budget){.per_ms = PER_MS, .burst = BURST};
	/* Where there is no room, /proc lets the program read its own pipe empty
	 * between our poll and our read, which must not wait for more. */
	fcntl(source_fd, F_SETFL, O_NONBLOCK);
	l->dir = -1;
	if (strncmp(path, "fd:", 3) == 0)
		l->fd = atoi(path + 3);
	else
		open_target(l, path);
	return l;
}

int log_source(const struct log *l)
{
	return l->source;
}

bool log_may_take(struct log *l)
{
	return budget_left(&l->bytes);
}

/* A full disk loses log lines and nothing else. */
static void append(struct log *l, const char *data, size_t len)
{
	ssize_t n;

	while (len > 0 && ((n = write(l->fd, data, len)) > 0 || errno == EINTR)) {
		if (n <= 0)
			continue;
		l->size += (size_t)n;
		data += n;
		len -= (size_t)n;
	}
}

static void append_ring(struct log *l)
{
	size_t at = l->total % KEPT;

	if (l->total >= KEPT)
		append(l, l->ring + at, KEPT - at);
	append(l, l->ring, at);
}

static void start_over(struct log *l)
{
	int fd = -1;

	if (l->dir >= 0)
		fd = openat(l->dir, l->next_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	l->size = 0;
	if (fd >= 0) {
		int old = l->fd;

		l->fd = fd;
		append_ring(l);
		/* A reader sees the whole old file or the whole new one. */
		renameat(l->dir, l->next_name, l->dir, l->name);
		close(old);
		return;
	}
	if (ftruncate(l->fd, 0) == 0 && lseek(l->fd, 0, SEEK_SET) == 0)
		append_ring(l);
}

static void remember(struct log *l, const char *data, size_t len)
{
	for (size_t done = 0; done < len;) {
		size_t at = l->total % KEPT;
		size_t n = len - done < KEPT - at ? len - done : KEPT - at;

		memcpy(l->ring + at, data + done, n);
		l->total += n;
		done += n;
	}
}

bool log_copy(struct log *l)
{
	static char piece[PIECE];
	ssize_t n = read(l->source, piece, sizeof piece);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		return false;
	l->bytes.left -= n;
	remember(l, piece, (size_t)n);
	if (l->size + (size_t)n > LARGEST)
		start_over(l);
	else
		append(l, piece, (size_t)n);
	return true;
}

/* What is still in the pipe when the program has ended. Bounded, because
 * without a pid namespace something may still be writing. */
void log_drain(struct log *l)
{
	for (size_t before = l->total, at = 0; l->total - before < DRAINED; at = l->total)
		if (!log_copy(l) || l->total == at)
			return;
}
