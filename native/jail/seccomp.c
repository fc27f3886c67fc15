/* The system calls that QEMU never needs, denied.
 *
 * QEMU brings a filter of its own (-sandbox on); this one lies below it, is
 * there before the first instruction of QEMU, and holds for any program. What
 * is denied answers EPERM, as the kernel itself would without a privilege. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define THIS_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCH AUDIT_ARCH_AARCH64
#else
#error "no system call table for this architecture"
#endif

/* Calls that are newer than this libc's headers; the numbers are the same on
 * every architecture since 5.1. */
enum {
	NR_quotactl_fd = 443,
	NR_lsm_set_self_attr = 460,
	NR_open_tree_attr = 467,
	NR_file_setattr = 469,
};

static const unsigned denied[] = {
	/* other processes */
	SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_pidfd_open, SYS_pidfd_getfd,
	SYS_pidfd_send_signal, SYS_process_madvise, SYS_process_mrelease, SYS_move_pages, SYS_migrate_pages,
	/* what the kernel runs */
	SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
	SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_syslog,
	SYS_fanotify_init, SYS_fanotify_mark,
	/* file systems and namespaces */
	SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig,
	SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_swapon, SYS_swapoff, SYS_setns, SYS_unshare, SYS_mknodat,
	SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_quotactl, NR_quotactl_fd, SYS_acct, SYS_nfsservctl,
	SYS_lookup_dcookie, NR_open_tree_attr, NR_file_setattr,
	/* a program that is no file of the room: an unlinked or in-memory one */
	SYS_execveat,
	/* keys, old IPC */
	SYS_add_key, SYS_request_key, SYS_keyctl, SYS_shmget, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_semget, SYS_semop,
	SYS_semctl, SYS_semtimedop, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open, SYS_mq_unlink,
	SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify, SYS_mq_getsetattr,
	/* the machine's state */
	SYS_settimeofday, SYS_clock_settime, SYS_adjtimex, SYS_clock_adjtime, SYS_sethostname, SYS_setdomainname,
	SYS_vhangup, SYS_personality, NR_lsm_set_self_attr,
	/* pages moved between pipes and files, source of more than one escape */
	SYS_vmsplice, SYS_splice, SYS_tee,
#if defined(__x86_64__)
	SYS_kexec_file_load, SYS_mknod, SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib, SYS_ustat, SYS_sysfs,
	SYS__sysctl, SYS_create_module, SYS_get_kernel_syms, SYS_query_module,
#elif defined(__aarch64__)
	294 /* kexec_file_load */,
#endif
};

#if defined(__x86_64__)
static const unsigned forks[] = {SYS_fork, SYS_vfork};
#else
static const unsigned forks[] = {0};
#endif

enum { MAX_PROGRAM = 192 };

struct program {
	struct sock_filter code[MAX_PROGRAM];
	unsigned short len;
};

#define DENY (SECCOMP_RET_ERRNO | EPERM)
#define ARG_LOW(n) (offsetof(struct seccomp_data, args[n])) /* both architectures are little-endian */

static void add(struct program *p, struct sock_filter instruction)
{
	if (p->len >= MAX_PROGRAM)
		failed("seccomp", E2BIG, "the filter grew past %d instructions", MAX_PROGRAM);
	p->code[p->len++] = instruction;
}

#define STMT(code, k) add(p, (struct sock_filter)BPF_STMT(code, k))
#define JUMP(code, k, yes, no) add(p, (struct sock_filter)BPF_JUMP(code, k, yes, no))

static void answer(struct program *p, unsigned call, unsigned verdict)
{
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
	STMT(BPF_RET | BPF_K, verdict);
}

static void check_architecture(struct program *p)
{
	STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCH, 1, 0);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
#if defined(__x86_64__)
	/* x32: the same architecture value, other numbers. */
	JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
#endif
}

/* The sections below each load an argument; a call that is another's falls
 * through with the number still loaded. */
static void check_sockets(struct program *p)
{
	/* Without a network device QEMU speaks to us, over unix sockets we hand it. */
	const unsigned calls[] = {SYS_socket, SYS_socketpair};

	for (size_t i = 0; i < 2; i++) {
		JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 4);
		STMT(BPF_LD | BPF_W | BPF_ABS, ARG_LOW(0));
		JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 0, 1);
		STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		STMT(BPF_RET | BPF_K, DENY);
	}
}

static void check_clone(struct program *p, bool allow_fork)
{
	const unsigned spaces_mask = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET |
				     CLONE_NEWCGROUP | CLONE_NEWUSER;

	JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, allow_fork ? 4 : 5);
	STMT(BPF_LD | BPF_W | BPF_ABS, ARG_LOW(0));
	if (allow_fork) {
		JUMP(BPF_JMP | BPF_JSET | BPF_K, spaces_mask, 1, 0);
		STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		STMT(BPF_RET | BPF_K, DENY);
	} else {
		JUMP(BPF_JMP | BPF_JSET | BPF_K, spaces_mask, 2, 0);
		JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1);
		STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		STMT(BPF_RET | BPF_K, DENY);
		for (size_t i = 0; i < sizeof forks / sizeof *forks && forks[0] != 0; i++)
			answer(p, forks[i], DENY);
	}
	/* Its flags lie in memory, where a filter cannot see them; libraries fall
	 * back to clone when it is not there. */
	answer(p, SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
}

static void check_ioctl(struct program *p)
{
	/* Typing into, and pasting onto, the terminal of whoever started us. */
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 5);
	STMT(BPF_LD | BPF_W | BPF_ABS, ARG_LOW(1));
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, TIOCSTI, 1, 0);
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, TIOCLINUX, 0, 1);
	STMT(BPF_RET | BPF_K, DENY);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

/* Out of the signal that comes when the supervisor dies. */
static void check_prctl(struct program *p)
{
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 4);
	STMT(BPF_LD | BPF_W | BPF_ABS, ARG_LOW(0));
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_PDEATHSIG, 0, 1);
	STMT(BPF_RET | BPF_K, DENY);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

void seccomp_install(const struct options *o)
{
	static struct program program;
	struct program *p = &program;

	check_architecture(p);
	check_sockets(p);
	check_clone(p, o->allow_fork);
	check_ioctl(p);
	check_prctl(p);
	/* All the calls that are only denied: one jump each to the common answer. */
	size_t len = sizeof denied / sizeof *denied;
	for (size_t i = 0; i < len; i++)
		JUMP(BPF_JMP | BPF_JEQ | BPF_K, denied[i], (uint8_t)(len - i), 0);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	STMT(BPF_RET | BPF_K, DENY);

	struct sock_fprog filter = {.len = p->len, .filter = p->code};
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) != 0)
		reduced("seccomp", errno, "the kernel takes no filter");
}

static void ask_about(struct program *p, unsigned call, unsigned flags_at)
{
	/* To write alone, to make or to empty a file is never what is lent, and with
	 * O_PATH the mode says nothing. */
	const unsigned telling = O_ACCMODE | O_CREAT | O_TRUNC | O_DIRECTORY | O_PATH;

	JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 5);
	STMT(BPF_LD | BPF_W | BPF_ABS, ARG_LOW(flags_at));
	STMT(BPF_ALU | BPF_AND | BPF_K, telling);
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, O_RDWR, 0, 1);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

/* Over the other filter, whose denials weigh more than any answer to this one. */
int seccomp_listen(void)
{
	static struct program program;
	struct program *p = &program;

	STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCH, 1, 0);
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	/* Not openat2: its flags lie in memory, and no libc opens a file with it. */
	ask_about(p, SYS_openat, 2);
#if defined(__x86_64__)
	ask_about(p, SYS_open, 1);
#endif
	STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);

	struct sock_fprog filter = {.len = p->len, .filter = p->code};
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}
