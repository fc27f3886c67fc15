/* What the child gives up: limits, ids, capabilities, descriptors. */
#define _GNU_SOURCE
#include "jail.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct rlimit first_nofile; /* before the program's own limit is set */

void limits_apply(const struct options *o)
{
	/* 1, not 0: a core_pattern that is a pipe ignores 0 and takes 1 as "never",
	 * and guest memory must not reach the host's crash collector. */
	struct rlimit no_core = {1, 1};

	if (getrlimit(RLIMIT_NOFILE, &first_nofile) != 0)
		failed("rlimit", errno, "getrlimit nofile");
	if (setrlimit(RLIMIT_CORE, &no_core) != 0)
		reduced("core", errno, "RLIMIT_CORE");
	for (size_t i = 0; i < o->limits_len; i++) {
		struct rlimit value = o->limits[i].value, now;

		if (o->limits[i].resource == RLIMIT_CORE)
			continue;
		if (getrlimit(o->limits[i].resource, &now) != 0)
			failed("rlimit", errno, "getrlimit %d", o->limits[i].resource);
		/* A limit that is tighter already stays: raising it needs root. */
		if (!has_capability(CAP_SYS_RESOURCE) && value.rlim_max > now.rlim_max)
			value.rlim_max = now.rlim_max;
		if (value.rlim_cur > value.rlim_max)
			value.rlim_cur = value.rlim_max;
		if (setrlimit(o->limits[i].resource, &value) != 0)
			failed("rlimit", errno, "setrlimit %d", o->limits[i].resource);
	}
}

static void drop_bounding(void)
{
	/* With the bounding set empty no exec can bring a capability back, and
	 * with these bits uid 0 of a user namespace is an ordinary uid. */
	int bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
		   SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	for (int c = 0; c < 64; c++) {
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) == 0)
			continue;
		if (errno == EINVAL)
			break; /* past the last one this kernel knows */
		/* An ordinary user without a user namespace, or in one that AppArmor
		 * has taken the powers from. */
		reduced("bounding", errno, "the bounding set stays as it is; no_new_privs keeps it from being used");
		return;
	}
	if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) != 0)
		reduced("bounding", errno, "securebits");
}

static void change_ids(const struct options *o)
{
	/* setgroups is denied in an ordinary user's namespace, where it could take
	 * away a group that forbids something. */
	if (setgroups(o->groups_len, o->groups) != 0)
		failed("uid", errno, "setgroups");
	if (setresgid(o->gid, o->gid, o->gid) != 0)
		failed("uid", errno, "setresgid %u", o->gid);
	if (setresuid(o->uid, o->uid, o->uid) != 0)
		failed("uid", errno, "setresuid %u", o->uid);
}

static int set_capabilities(uint32_t low)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{.effective = low, .permitted = low}};

	return (int)syscall(SYS_capset, &header, data);
}

void identity_decide(struct options *o)
{
	if (!o->has_uid) {
		reduced("uid", 0, "no uid of its own was given: it runs as uid %u", geteuid());
	} else if (!has_capability(CAP_SETUID) || !has_capability(CAP_SETGID)) {
		reduced("uid", 0, "a uid of its own needs root: it runs as uid %u", geteuid());
		o->has_uid = false;
	}
}

static bool can_reach_all(const struct options *o)
{
	for (size_t i = 0; i < o->binds_len; i++)
		if (faccessat(AT_FDCWD, o->binds[i].source, R_OK, AT_EACCESS) != 0)
			return false;
	return true;
}

/* A room's binds are made by root. Without a room the program goes the host's
 * paths itself, and a uid of its own may not enter root's folders. Then landlock
 * has to be the wall, and the uid stays: without capabilities and without files. */
bool identity_is_useful(const struct options *o)
{
	if (!o->has_uid)
		return false;
	if (setegid(o->gid) != 0 || seteuid(o->uid) != 0)
		failed("uid", errno, "trying uid %u", o->uid);
	bool useful = can_reach_all(o);
	if (seteuid(getuid()) != 0 || setegid(getgid()) != 0)
		failed("uid", errno, "coming back from uid %u", o->uid);
	if (useful)
		return true;
	if (landlock_abi() < 1)
		failed("reach", EACCES, "without a room, uid %u must be able to read its files: put them where others may enter", o->uid);
	reduced("uid", 0, "without a room, uid %u could not reach its files: it runs as uid %u", o->uid, geteuid());
	return false;
}

void privileges_drop(const struct options *o, bool own_uid)
{
	drop_bounding();
	if (own_uid)
		change_ids(o);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 && errno != EINVAL)
		failed("capabilities", errno, "clearing the ambient set");
	if (set_capabilities(0) != 0)
		failed("capabilities", errno, "capset");
}

/* The supervisor reads what a hostile program writes. Of root's powers it keeps
 * the one to signal a process of another uid and, where it has a cgroup to
 * remove, the one to do that: cgroup folders are writable to nobody (0555). */
void supervisor_privileges_drop(const struct options *o)
{
	uint32_t kept = 0;

	if (has_capability(CAP_KILL))
		kept |= 1u << CAP_KILL;
	if (o->cgroups_len > 0 && has_capability(CAP_DAC_OVERRIDE))
		kept |= 1u << CAP_DAC_OVERRIDE;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || set_capabilities(kept) != 0)
		reduced("supervisor", errno, "it keeps the privileges it was started with");
}

/* To look into a process the kernel wants all its ids to be our real ones (or
 * CAP_SYS_PTRACE, with which we could look into every process of the host). It
 * is for the moments until the program has been lent its file. */
static bool resembles;
static uid_t real_uid;
static gid_t real_gid;

void identity_resemble(const struct options *o)
{
	real_uid = getuid();
	real_gid = getgid();
	/* Otherwise there would be no way back, once the capabilities are gone. */
	if (!o->has_uid || real_uid != geteuid() || real_gid != getegid())
		return;
	resembles = true;
	if (setresgid(o->gid, (gid_t)-1, (gid_t)-1) != 0 || setresuid(o->uid, (uid_t)-1, (uid_t)-1) != 0)
		failed("uid", errno, "resembling uid %u", o->uid);
}

void identity_return(void)
{
	if (!resembles)
		return;
	resembles = false;
	if (setresuid(real_uid, (uid_t)-1, (uid_t)-1) != 0 || setresgid(real_gid, (gid_t)-1, (gid_t)-1) != 0)
		failed("supervisor", errno, "coming back to uid %u", real_uid);
}

static int ascending(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static void close_span(unsigned first, unsigned last)
{
	if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
		return;
	/* Before Linux 5.9. Not up to the limit of now, which is the program's: what
	 * is to be closed was opened under the one that we came with. */
	rlim_t end = first_nofile.rlim_max < 1 << 20 ? first_nofile.rlim_max : 1 << 20;
	for (unsigned fd = first; fd <= last && fd < end; fd++)
		close((int)fd);
}

void close_all_but(const int *keep, size_t keep_len)
{
	int sorted[MAX_FDS * 2 + MAX_CONSOLES];
	size_t len = 0;
	unsigned next = STDERR_FILENO + 1;

	for (size_t i = 0; i < keep_len && i < sizeof sorted / sizeof *sorted; i++)
		sorted[len++] = keep[i];
	qsort(sorted, len, sizeof *sorted, ascending);
	for (size_t i = 0; i < len; i++) {
		if (sorted[i] < (int)next)
			continue;
		close_span(next, (unsigned)sorted[i] - 1);
		next = (unsigned)sorted[i] + 1;
	}
	close_span(next, UINT_MAX);
}
