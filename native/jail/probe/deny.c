/* Runs a program on a host that gives less: answers some system calls with an
 * errno, as an old kernel, a container or AppArmor would.
 *
 *     deny mount=1,close_range=38 PROGRAM [ARGUMENT]...
 *
 * `namespaces` stands for clone with any namespace flag, `bounding` for dropping
 * a capability from the bounding set. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
	const char *name;
	unsigned call;
	unsigned argument, bits, equals; /* looked at when bits or equals is not 0 */
} calls[] = {
	{"namespaces", SYS_clone, 0, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_NEWUSER, 0},
	{"net", SYS_clone, 0, CLONE_NEWNET, 0},
	{"bounding", SYS_prctl, 0, 0, PR_CAPBSET_DROP},
	{"seccomp", SYS_prctl, 0, 0, PR_SET_SECCOMP},
	{"mount", SYS_mount, 0, 0, 0},
	{"mount_setattr", SYS_mount_setattr, 0, 0, 0},
	{"close_range", SYS_close_range, 0, 0, 0},
	{"landlock", SYS_landlock_create_ruleset, 0, 0, 0},
	{"sethostname", SYS_sethostname, 0, 0, 0},
	{"listener", SYS_seccomp, 1, SECCOMP_FILTER_FLAG_NEW_LISTENER, 0},
	{"addfd", SYS_ioctl, 1, 0, (unsigned)SECCOMP_IOCTL_NOTIF_ADDFD},
	{"process_vm_readv", SYS_process_vm_readv, 0, 0, 0},
};

static struct sock_filter code[128];
static unsigned short len;

static void add(struct sock_filter f)
{
	code[len++] = f;
}

static void deny(const char *name, unsigned error)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		if (strcmp(calls[i].name, name) != 0)
			continue;
		add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
		add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].call, 0, 3));
		add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * calls[i].argument));
		if (calls[i].bits != 0)
			add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, calls[i].bits, 0, 1));
		else if (calls[i].equals != 0)
			add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].equals, 0, 1));
		else
			add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 0, 0, 0));
		add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error));
		return;
	}
	fprintf(stderr, "deny: unknown: %s\n", name);
	exit(64);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 64;
	for (char *word = strtok(argv[1], ","); word != NULL; word = strtok(NULL, ",")) {
		char *error = strchr(word, '=');
		if (error == NULL)
			return 64;
		*error++ = '\0';
		deny(word, (unsigned)atoi(error));
	}
	add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	struct sock_fprog program = {.len = len, .filter = code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
		return 65;
	execv(argv[2], argv + 2);
	return 66;
}
