/* --check: tries each part for real and prints what this host can give. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool first = true;

static void print_part(const char *name, bool given, const char *why)
{
	printf("%s\n  {\"name\": \"%s\", \"given\": %s, \"why\": \"%s\"}", first ? "" : ",", name, given ? "true" : "false", why);
	first = false;
}

static void print_trial(const char *name, int error)
{
	print_part(name, error == 0, error == 0 ? "" : strerror(error));
}

static int check_seccomp(void)
{
	const unsigned action = SECCOMP_RET_ERRNO;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0 ? 0 : errno;
}

int check_print(void)
{
	unsigned long user = has_capability(CAP_SYS_ADMIN) ? 0 : CLONE_NEWUSER;
	bool own_uid = has_capability(CAP_SETUID) && has_capability(CAP_SETGID);
	int user_error = trial(CLONE_NEWUSER);
	int base_error = user != 0 ? user_error : 0;
	int abi = landlock_abi();
	char text[64];

	printf("{\"uid\": %u, \"parts\": [", geteuid());
	print_trial("user", user_error);
	for (size_t i = 0; i < spaces_len; i++)
		print_trial(spaces[i].name, base_error != 0 ? base_error : trial(user | spaces[i].flag));
	print_trial("room", base_error != 0 ? base_error : trial_run(user | CLONE_NEWNS, room_trial));
	print_part("uid", own_uid, own_uid ? "" : "changing to a uid of its own needs root");
	print_trial("seccomp", check_seccomp());
	print_trial("open-read-only", trial_run(0, lend_trial));
	snprintf(text, sizeof text, "%s%d", abi < 1 ? "not in this kernel: " : "ABI ", abi < 1 ? errno : abi);
	print_part("landlock", abi >= 1, text);
	printf("\n]}\n");
	return 0;
}
