/* The status line, and the notes by which the child reaches it. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int status_fd = -1;
static int note_fd = -1; /* set in the child only */
static bool strict_mode;

void report_open(int fd, bool strict)
{
	status_fd = fd;
	strict_mode = strict;
}

void report_to(int fd)
{
	note_fd = fd;
}

static void write_all(int fd, const void *data, size_t len)
{
	const char *at = data;

	while (len > 0) {
		ssize_t n = write(fd, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return; /* nobody reads any more: there is nobody to tell */
		at += n;
		len -= (size_t)n;
	}
}

void report_line(const char *format, ...)
{
	char line[512];
	va_list args;

	if (status_fd < 0)
		return;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	if ((size_t)n > sizeof line - 2)
		n = sizeof line - 2;
	for (int i = 0; i < n; i++)
		if (line[i] == '\n')
			line[i] = ' ';
	line[n++] = '\n';
	write_all(status_fd, line, (size_t)n);
}

void report_forward(const struct note *n)
{
	if (n->kind == NOTE_REDUCED) {
		report_line("reduced %.28s %.220s", n->name, n->text);
		return;
	}
	report_line("failed %.28s %d %.220s", n->name, n->error, n->text);
	if (status_fd < 0)
		dprintf(STDERR_FILENO, "nova-jail: %.28s: %.220s\n", n->name, n->text);
}

static void tell(enum note_kind kind, const char *name, int error, const char *format, va_list args)
{
	struct note n = {.kind = (int32_t)kind, .error = error};

	snprintf(n.name, sizeof n.name, "%s", name);
	int at = vsnprintf(n.text, sizeof n.text, format, args);
	if (error != 0 && at >= 0 && (size_t)at < sizeof n.text)
		snprintf(n.text + at, sizeof n.text - (size_t)at, ": %s", strerror(error));
	if (note_fd >= 0)
		write_all(note_fd, &n, sizeof n);
	else
		report_forward(&n);
}

void reduced(const char *name, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	tell(strict_mode ? NOTE_FAILED : NOTE_REDUCED, name, error, format, args);
	va_end(args);
	if (strict_mode)
		_exit(EXIT_OURS);
}

void failed(const char *stage, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	tell(NOTE_FAILED, stage, error, format, args);
	va_end(args);
	_exit(EXIT_OURS);
}
