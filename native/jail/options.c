/* The command line: long options, each with its arguments as separate words. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
	"usage: nova-jail [OPTION]... -- PROGRAM [ARGUMENT]...\n"
	"       nova-jail --check\n"
	"\n"
	"Runs PROGRAM in an empty room: its own root, namespaces, user id; no capability,\n"
	"no descriptor and no environment but what is given here.\n"
	"\n"
	"the room\n"
	"  --bind-ro SOURCE DEST  a file or folder of the host, read-only\n"
	"  --bind SOURCE DEST     the same, writable\n"
	"  --device PATH          a device node, at its own path\n"
	"  --open-read-only PATH  where a --bind-ro is in the room: PROGRAM's first attempt to open it\n"
	"                         to read and write gives it a descriptor to read only\n"
	"  --hostname NAME        the name in its UTS namespace (sandbox)\n"
	"  --env KEY=VALUE        one variable; there are no others\n"
	"  --keep-fd N            a descriptor the program keeps, under its number\n"
	"identity and limits\n"
	"  --uid N --gid N        own ids (needs root)\n"
	"  --group N              a supplementary group, e.g. that of /dev/kvm (needs root)\n"
	"  --rlimit NAME=SOFT[:HARD]  as, core, cpu, data, fsize, memlock, nofile, nproc, stack;\n"
	"                         a number or 'unlimited'; core is always off\n"
	"  --cgroup DIR           made, joined, and removed at the end\n"
	"  --cgroup-set FILE=VALUE  a setting of the cgroup named last\n"
	"  --oom-score-adj N      who the kernel kills first when memory is gone\n"
	"  --allow-fork           processes as well as threads may be made\n"
	"the supervisor\n"
	"  --owner-fd N           read end of a pipe; at its end of file PROGRAM is killed\n"
	"  --hold-fd N            kept open by the supervisor until it ends (a lock)\n"
	"  --status-fd N          'reduced PART WHY', 'started PID' or 'failed STAGE ERRNO WHY',\n"
	"                         then ('out-of-memory' and) 'exited CODE' or 'signaled N'\n"
	"  --pid-file PATH        holds the host's pid of PROGRAM\n"
	"  --log PATH             its stdout and stderr: the last 64 to 128 KiB; fd:N for a descriptor\n"
	"  --console FD PATH      a pipe PROGRAM writes to as FD, logged likewise\n"
	"  --strict               refuse to start when a part of the jail cannot be had\n"
	"  --check                print as JSON what this host can give\n";

static const struct {
	const char *name;
	int resource;
} resources[] = {
	{"as", RLIMIT_AS},       {"core", RLIMIT_CORE},       {"cpu", RLIMIT_CPU},
	{"data", RLIMIT_DATA},   {"fsize", RLIMIT_FSIZE},     {"memlock", RLIMIT_MEMLOCK},
	{"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC},   {"stack", RLIMIT_STACK},
};

static const char *option; /* the one being read, for messages */

static _Noreturn void bad(const char *why, const char *what)
{
	failed("options", EINVAL, "%s: %s: '%.100s'", option, why, what);
}

static unsigned long number(const char *text)
{
	char *end;

	errno = 0;
	unsigned long n = strtoul(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || text[0] == '-')
		bad("not a number", text);
	return n;
}

static int descriptor(const char *text)
{
	unsigned long n = number(text);

	if (n > 1 << 20)
		bad("not a descriptor", text);
	return (int)n;
}

static uid_t identity(const char *text)
{
	unsigned long n = number(text);

	/* 0 would be the host's root, and -1 means "leave it" to setresuid. */
	if (n == 0 || n >= UINT32_MAX)
		bad("not an id a jail may have", text);
	return (uid_t)n;
}

static void room_for_one(size_t len, size_t max)
{
	if (len >= max)
		failed("options", E2BIG, "%s: given more than %zu times", option, max);
}

static void add_bind(struct options *o, const char *source, const char *dest, enum access access)
{
	room_for_one(o->binds_len, MAX_BINDS);
	if (source[0] != '/')
		bad("not an absolute path", source);
	if (dest[0] != '/' || dest[1] == '\0')
		bad("not an absolute path below /", dest);
	if (access == DEVICE && strncmp(dest, "/dev/", 5) != 0)
		bad("not a device below /dev", dest);
	/* A ".." would let a destination climb out of the room while it is built. */
	for (const char *p = dest; (p = strstr(p, "/..")) != NULL; p += 3)
		if (p[3] == '/' || p[3] == '\0')
			bad("has a '..'", dest);
	o->binds[o->binds_len++] = (struct bind){.source = source, .dest = dest, .access = access};
}

static rlim_t limit_value(const char *text)
{
	return strcmp(text, "unlimited") == 0 ? RLIM_INFINITY : (rlim_t)number(text);
}

static void add_limit(struct options *o, char *text)
{
	room_for_one(o->limits_len, MAX_LIMITS);
	char *soft = strchr(text, '=');
	if (soft == NULL)
		bad("not NAME=SOFT[:HARD]", text);
	*soft++ = '\0';
	char *hard = strchr(soft, ':');
	if (hard != NULL)
		*hard++ = '\0';
	for (size_t i = 0; i < sizeof resources / sizeof *resources; i++) {
		if (strcmp(resources[i].name, text) != 0)
			continue;
		struct limit *l = &o->limits[o->limits_len++];
		l->resource = resources[i].resource;
		l->value.rlim_cur = limit_value(soft);
		l->value.rlim_max = hard != NULL ? limit_value(hard) : l->value.rlim_cur;
		return;
	}
	bad("unknown limit", text);
}

static void add_cgroup(struct options *o, const char *dir)
{
	room_for_one(o->cgroups_len, MAX_CGROUPS);
	if (dir[0] != '/')
		bad("not an absolute path", dir);
	o->cgroups[o->cgroups_len++] = (struct cgroup){.dir = dir};
}

static void add_setting(struct options *o, char *setting)
{
	if (o->cgroups_len == 0)
		bad("comes before any --cgroup", setting);
	struct cgroup *c = &o->cgroups[o->cgroups_len - 1];
	room_for_one(c->settings_len, MAX_SETTINGS);
	if (strchr(setting, '=') == NULL)
		bad("not FILE=VALUE", setting);
	c->settings[c->settings_len++] = setting;
}

static void add_descriptor(int *list, size_t *len, const char *text)
{
	room_for_one(*len, MAX_FDS);
	list[(*len)++] = descriptor(text);
}

static bool is(const char *name)
{
	return strcmp(option + 2, name) == 0;
}

/* Options about what the program gets; false when it is none of them. */
static bool parse_program(struct options *o, char **words)
{
	if (is("bind-ro")) {
		add_bind(o, words[0], words[1], READ_ONLY);
	} else if (is("bind")) {
		add_bind(o, words[0], words[1], READ_WRITE);
	} else if (is("device")) {
		add_bind(o, words[0], words[0], DEVICE);
	} else if (is("env")) {
		room_for_one(o->env_len, MAX_ENV);
		o->env[o->env_len++] = words[0];
	} else if (is("keep-fd")) {
		add_descriptor(o->keep, &o->keep_len, words[0]);
	} else if (is("console")) {
		room_for_one(o->consoles_len, MAX_CONSOLES);
		int fd = descriptor(words[0]);
		if (fd <= STDERR_FILENO)
			bad("is a standard descriptor", words[0]);
		o->consoles[o->consoles_len++] = (struct console){.fd = fd, .path = words[1]};
	} else if (is("uid")) {
		o->uid = identity(words[0]);
		o->has_uid = true;
	} else if (is("gid")) {
		o->gid = identity(words[0]);
	} else if (is("group")) {
		room_for_one(o->groups_len, MAX_GROUPS);
		o->groups[o->groups_len++] = identity(words[0]);
	} else if (is("rlimit")) {
		add_limit(o, words[0]);
	} else if (is("open-read-only")) {
		o->open_read_only = words[0];
	} else if (is("hostname")) {
		o->hostname = words[0];
	} else if (is("oom-score-adj")) {
		o->oom_score_adj = words[0];
	} else {
		return false;
	}
	return true;
}

/* Options about the supervisor and the host. */
static bool parse_supervisor(struct options *o, char **words)
{
	if (is("cgroup")) {
		add_cgroup(o, words[0]);
	} else if (is("cgroup-set")) {
		add_setting(o, words[0]);
	} else if (is("owner-fd")) {
		o->owner_fd = descriptor(words[0]);
	} else if (is("hold-fd")) {
		add_descriptor(o->hold, &o->hold_len, words[0]);
	} else if (is("status-fd")) {
		o->status_fd = descriptor(words[0]);
		report_open(o->status_fd, false);
	} else if (is("pid-file")) {
		o->pid_file = words[0];
	} else if (is("log")) {
		o->log = words[0];
	} else {
		return false;
	}
	return true;
}

static bool parse_switch(struct options *o)
{
	if (is("strict")) {
		o->strict = true;
	} else if (is("allow-fork")) {
		o->allow_fork = true;
	} else if (is("check")) {
		o->check = true;
	} else if (is("help")) {
		fputs(usage, stdout);
		exit(0);
	} else {
		return false;
	}
	return true;
}

static void check_open_read_only(const struct options *o)
{
	const char *path = o->open_read_only;

	option = "--open-read-only";
	if (strlen(path) >= PATH_MAX)
		bad("too long", path);
	for (size_t i = 0; i < o->binds_len; i++) {
		const struct bind *b = &o->binds[i];

		/* The source is its name where no room can be built. */
		if (b->access == READ_ONLY && (strcmp(b->dest, path) == 0 || strcmp(b->source, path) == 0))
			return;
	}
	bad("no --bind-ro has it", path);
}

static void finish(struct options *o)
{
	report_open(o->status_fd, o->strict);
	option = "--";
	if (o->check)
		return;
	if (o->program == NULL || o->program[0] == NULL)
		bad("no program given", "");
	if (o->program[0][0] != '/')
		bad("not an absolute path", o->program[0]);
	if (o->has_uid && o->gid == 0)
		o->gid = o->uid;
	if (o->open_read_only != NULL)
		check_open_read_only(o);
}

void options_parse(struct options *o, int argc, char **argv)
{
	o->owner_fd = o->status_fd = -1;
	o->hostname = "sandbox";
	for (int i = 1; i < argc; i++) {
		option = argv[i];
		if (strcmp(option, "--") == 0) {
			o->program = argv + i + 1;
			break;
		}
		if (strncmp(option, "--", 2) != 0)
			bad("not an option (see --help)", option);
		if (parse_switch(o))
			continue;
		int words = is("bind-ro") || is("bind") || is("console") ? 2 : 1;
		if (i + words >= argc)
			bad("unknown option, or its argument is missing", option);
		if (!parse_program(o, argv + i + 1) && !parse_supervisor(o, argv + i + 1))
			bad("unknown option (see --help)", option);
		i += words;
	}
	finish(o);
}

int options_largest_fd(const struct options *o)
{
	int largest = STDERR_FILENO;

	for (size_t i = 0; i < o->keep_len; i++)
		largest = o->keep[i] > largest ? o->keep[i] : largest;
	for (size_t i = 0; i < o->consoles_len; i++)
		largest = o->consoles[i].fd > largest ? o->consoles[i].fd : largest;
	return largest;
}
