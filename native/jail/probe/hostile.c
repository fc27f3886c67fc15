/* What a hostile QEMU would try: run in the jail, it prints as JSON how far it
 * got; run without the jail, it must get far, or the test proves nothing.
 *
 * Each attempt is harmless where it succeeds: it asks for nothing, or for
 * something that does not exist, so that permission is all that is tested. An
 * attempt got through when the kernel no longer says that it may not. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* What is on the host, as the test put it there. */
static const char *secret_file, *abstract_name, *host_name;
static int victim, tcp_port, shm_key;
static const char *own_path;

/* Every attempt returns 0, or the errno that stopped it. */
#define CALL(expression) ((expression) < 0 ? errno : 0)
#define SYSCALL(...) CALL(syscall(__VA_ARGS__))

static int opens(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

/* files */
static int read_password_file(void) { return opens("/etc/passwd", O_RDONLY); }
static int read_secret_file(void) { return opens(secret_file, O_RDONLY); }
static int climb_out(void) { return opens("../../../../../../../../etc/passwd", O_RDONLY); }
static int read_proc_self(void) { return opens("/proc/self/maps", O_RDONLY); }
static int read_proc_of_first(void) { return opens("/proc/1/status", O_RDONLY); }
static int read_sys(void) { return opens("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY); }
static int open_kernel_log(void) { return opens("/dev/kmsg", O_RDONLY); }
static int open_terminal_maker(void) { return opens("/dev/ptmx", O_RDWR); }
static int open_shared_memory(void) { return opens("/dev/shm", O_RDONLY); }
static int touch_program(void) { return CALL(utimensat(AT_FDCWD, own_path, NULL, 0)); }
static int list_host_folders(void)
{
	struct stat st;
	return CALL(stat("/etc", &st)) && CALL(stat("/home", &st)) && CALL(stat("/var", &st)) ? ENOENT : 0;
}
static int make_file_in_root(void)
{
	int e = opens("/nova-hostile", O_WRONLY | O_CREAT);
	unlink("/nova-hostile");
	return e;
}
static int make_file_in_tmp(void)
{
	int e = opens("/tmp/nova-hostile", O_WRONLY | O_CREAT);
	unlink("/tmp/nova-hostile");
	return e;
}
static int make_file_in_dev(void)
{
	int e = opens("/dev/nova-hostile", O_WRONLY | O_CREAT);
	unlink("/dev/nova-hostile");
	return e;
}
static int change_mode_of_program(void)
{
	struct stat st;
	return CALL(stat(own_path, &st)) ? errno : CALL(chmod(own_path, st.st_mode & 07777));
}
static int make_device(void)
{
	int e = CALL(mknod("/dev/nova-hostile", S_IFCHR | 0600, 0x103));
	unlink("/dev/nova-hostile");
	return e;
}
static int file_by_handle(void)
{
	struct { unsigned bytes; int type; char handle[64]; } h = {.bytes = 64};
	int mount_id;
	return SYSCALL(SYS_name_to_handle_at, AT_FDCWD, "/", &h, &mount_id, 0);
}
static int open_handle(void)
{
	struct { unsigned bytes; int type; char handle[8]; } h = {.bytes = 8, .type = 1};
	return SYSCALL(SYS_open_by_handle_at, AT_FDCWD, &h, O_RDONLY);
}

/* mounts and namespaces */
static int mount_something(void) { return CALL(mount("none", "/", "no-such-file-system", 0, NULL)); }
static int unmount_something(void) { return CALL(umount2("/dev/null", 0)); }
static int remount_root_writable(void) { return CALL(mount(NULL, "/dev/null", NULL, MS_REMOUNT | MS_BIND, NULL)); }
static int pivot_the_root(void) { return SYSCALL(SYS_pivot_root, "/", "/"); }
static int change_root(void) { return CALL(chroot("/")); }
static int open_file_system(void) { return SYSCALL(SYS_fsopen, "tmpfs", 0); }
static int clone_mount_tree(void) { return SYSCALL(SYS_open_tree, AT_FDCWD, "/", 1); }
static int new_user_namespace(void) { return CALL(unshare(CLONE_NEWUSER)); }
static int new_mount_namespace(void) { return CALL(unshare(CLONE_NEWNS)); }
static int join_namespace(void) { return SYSCALL(SYS_setns, 0, 0); }
static int clone_into_namespaces(void)
{
	long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		_exit(0);
	return pid < 0 ? errno : (waitpid((pid_t)pid, NULL, 0), 0);
}

/* other processes */
static int signal_victim(void) { return CALL(kill(victim, 0)); }
static int signal_everybody(void) { return CALL(kill(-1, 0)); }
static int trace_victim(void)
{
	if (ptrace(PTRACE_SEIZE, victim, NULL, NULL) < 0)
		return errno;
	ptrace(PTRACE_DETACH, victim, NULL, NULL);
	return 0;
}
static int read_victims_memory(void)
{
	char byte;
	struct iovec here = {&byte, 1}, there = {environ, 1};
	return CALL(process_vm_readv(victim, &here, 1, &there, 1, 0));
}
static int write_victims_memory(void)
{
	char byte = 0;
	struct iovec here = {&byte, 1}, there = {(void *)8, 1};
	return CALL(process_vm_writev(victim, &here, 1, &there, 1, 0));
}
static int hold_victim(void) { return SYSCALL(SYS_pidfd_open, victim, 0); }
static int slow_victim(void) { return CALL(setpriority(PRIO_PROCESS, (id_t)victim, 5)); }
static int limit_victim(void)
{
	struct rlimit r;
	return CALL(prlimit(victim, RLIMIT_NOFILE, NULL, &r));
}
static int pin_victim(void)
{
	cpu_set_t set;
	return CALL(sched_getaffinity(victim, sizeof set, &set));
}
static int compare_with_victim(void) { return SYSCALL(SYS_kcmp, getpid(), victim, 1, 0, 0); }
static int fork_process(void)
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	return pid < 0 ? errno : (waitpid(pid, NULL, 0), 0);
}
static int clone3_process(void) { return SYSCALL(SYS_clone3, NULL, 0); }
static int run_shell(void) { return CALL(access("/bin/sh", X_OK)); }
static int run_program_in_memory(void)
{
	int fd = (int)syscall(SYS_memfd_create, "x", 0);
	char *none[] = {NULL};
	return SYSCALL(SYS_execveat, fd, "", none, none, AT_EMPTY_PATH); /* an empty file is ENOEXEC */
}

/* identity */
static int become_root(void) { return CALL(setresuid(0, 0, 0)); }
static int become_root_group(void) { return CALL(setresgid(0, 0, 0)); }
static int drop_groups(void) { return SYSCALL(SYS_setgroups, 0, NULL); }
static int take_capabilities(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];

	if (syscall(SYS_capget, &h, d) != 0)
		return errno;
	d[0].permitted |= 1u << CAP_SYS_ADMIN;
	d[0].effective |= 1u << CAP_SYS_ADMIN;
	return SYSCALL(SYS_capset, &h, d);
}

/* sockets */
static int make_socket(int family, int type, int protocol)
{
	int fd = socket(family, type | SOCK_CLOEXEC, protocol);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}
static int internet_socket(void) { return make_socket(AF_INET, SOCK_STREAM, 0); }
static int internet6_socket(void) { return make_socket(AF_INET6, SOCK_STREAM, 0); }
static int netlink_socket(void) { return make_socket(AF_NETLINK, SOCK_RAW, 0); }
static int packet_socket(void) { return make_socket(AF_PACKET, SOCK_RAW, 0); }
static int crypto_socket(void) { return make_socket(AF_ALG, SOCK_SEQPACKET, 0); }
static int connect_to_loopback(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)tcp_port),
				.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int e = fd < 0 ? errno : CALL(connect(fd, (struct sockaddr *)&a, sizeof a));
	close(fd);
	return e;
}
static int connect_to_abstract_socket(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t len = strlen(abstract_name);
	memcpy(a.sun_path + 1, abstract_name, len);
	int e = fd < 0 ? errno
		       : CALL(connect(fd, (struct sockaddr *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)));
	close(fd);
	return e;
}

/* IPC and keys */
static int attach_shared_memory(void)
{
	int id = shmget(shm_key, 1, 0);
	return id < 0 ? errno : CALL((long)shmat(id, NULL, SHM_RDONLY));
}
static int make_shared_memory(void)
{
	int id = shmget(IPC_PRIVATE, 4096, 0600);
	return id < 0 ? errno : CALL(shmctl(id, IPC_RMID, NULL));
}
static int make_message_queue(void)
{
	long id = syscall(SYS_msgget, IPC_PRIVATE, 0600);
	return id < 0 ? errno : SYSCALL(SYS_msgctl, id, IPC_RMID, NULL);
}
static int posix_message_queue(void) { return SYSCALL(SYS_mq_open, "nova-none", O_RDONLY, 0, NULL); }
static int session_keyring(void) { return SYSCALL(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1); }
static int add_a_key(void) { return SYSCALL(SYS_add_key, "user", "nova-hostile", "x", 1, KEY_SPEC_PROCESS_KEYRING); }
static int request_a_key(void) { return SYSCALL(SYS_request_key, "user", "nova-none", NULL, 0); }

/* the kernel */
static int load_bpf(void) { return SYSCALL(SYS_bpf, 9999, NULL, 0); }
static int measure_performance(void)
{
	struct perf_event_attr a = {.type = PERF_TYPE_SOFTWARE, .size = sizeof a, .exclude_kernel = 1};
	return SYSCALL(SYS_perf_event_open, &a, 0, -1, -1, 0);
}
static int handle_page_faults(void) { return SYSCALL(SYS_userfaultfd, 1); }
static int open_io_uring(void)
{
	char parameters[256] = {0};
	return SYSCALL(SYS_io_uring_setup, 1, parameters);
}
static int load_module(void) { return SYSCALL(SYS_init_module, NULL, 0, ""); }
static int unload_module(void) { return SYSCALL(SYS_delete_module, "nova-none", O_NONBLOCK); }
static int load_kernel(void) { return SYSCALL(SYS_kexec_load, 0, 9999, NULL, 0); }
static int restart_machine(void) { return SYSCALL(SYS_reboot, 0, 0, 0, NULL); }
static int read_kernel_log(void) { return SYSCALL(SYS_syslog, 10, NULL, 0); }
static int swap_on(void) { return SYSCALL(SYS_swapon, "/nova-none", 0); }
static int adjust_clock(void)
{
	struct timex t = {0};
	return CALL(adjtimex(&t));
}
static int watch_file_system(void) { return SYSCALL(SYS_fanotify_init, 0, 0); }
static int ask_quota(void) { return SYSCALL(SYS_quotactl, 0x800001 << 8, NULL, 0, NULL); }
static int change_personality(void) { return SYSCALL(SYS_personality, 0xffffffff); }
static int rename_host(void)
{
	struct utsname u;
	uname(&u);
	return CALL(sethostname(u.nodename, strlen(u.nodename)));
}
static int type_into_terminal(void)
{
	char c = 'x';
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	return CALL(ioctl(fd, 0x5412 /* TIOCSTI */, &c)); /* no terminal: ENOTTY */
}
static int move_pipe_pages(void)
{
	int p[2], q[2];
	if (pipe2(p, O_NONBLOCK) != 0 || pipe2(q, O_NONBLOCK) != 0)
		return errno;
	return SYSCALL(SYS_tee, p[0], q[1], 1, 2); /* an empty pipe: EAGAIN */
}

/* what came along */
static int inherited_descriptors(void)
{
	for (int fd = 3; fd < 65536; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			return 0;
	return EBADF;
}
static int inherited_environment(void) { return getenv("NOVA_HOST_SECRET") != NULL ? 0 : ENOENT; }
static int learn_host_name(void)
{
	struct utsname u;
	uname(&u);
	return strcmp(u.nodename, host_name) == 0 ? 0 : ENOENT;
}
static int dump_core(void)
{
	struct rlimit r = {1 << 20, 1 << 20};
	return CALL(setrlimit(RLIMIT_CORE, &r));
}
static int open_many_files(void)
{
	int opened = 0, e = 0;
	for (; opened < 1000 && e == 0; opened++)
		e = CALL(open("/dev/null", O_RDONLY | O_CLOEXEC));
	for (int fd = 3; fd < 1100; fd++)
		if (fcntl(fd, F_GETFD) == FD_CLOEXEC)
			close(fd);
	return e;
}

static int outlive_supervisor(void) { return CALL(prctl(PR_SET_PDEATHSIG, 0)); }

static const struct attempt {
	const char *name;
	int (*try)(void);
	int past; /* an errno that comes only after permission was given */
} attempts[] = {
#define A(name) {#name, name, 0}
#define AP(name, past) {#name, name, past}
	A(inherited_descriptors), A(inherited_environment), A(learn_host_name), A(read_password_file),
	A(read_secret_file), A(climb_out), A(read_proc_self), A(read_proc_of_first), A(read_sys), A(open_kernel_log),
	A(open_terminal_maker), A(open_shared_memory), A(touch_program), A(list_host_folders), A(make_file_in_root),
	A(make_file_in_tmp), A(make_file_in_dev), A(change_mode_of_program), A(make_device), A(file_by_handle),
	AP(open_handle, ESTALE), AP(mount_something, ENODEV), AP(unmount_something, EINVAL),
	AP(remount_root_writable, EINVAL), AP(pivot_the_root, EBUSY), A(change_root), A(open_file_system),
	A(clone_mount_tree), A(clone_into_namespaces), AP(join_namespace, EINVAL), A(signal_victim), A(signal_everybody),
	A(trace_victim), AP(read_victims_memory, EFAULT), AP(write_victims_memory, EFAULT), A(hold_victim), A(slow_victim),
	A(limit_victim), A(pin_victim), A(compare_with_victim), A(fork_process), AP(clone3_process, EINVAL), A(run_shell),
	AP(run_program_in_memory, ENOEXEC), A(internet_socket), A(internet6_socket), A(netlink_socket), A(packet_socket),
	A(crypto_socket), A(connect_to_loopback), A(connect_to_abstract_socket), A(attach_shared_memory),
	A(make_shared_memory), A(make_message_queue), AP(posix_message_queue, ENOENT), A(session_keyring), A(add_a_key),
	AP(request_a_key, ENOKEY), AP(load_bpf, EINVAL), A(measure_performance), A(handle_page_faults), A(open_io_uring),
	AP(load_module, EFAULT), AP(unload_module, ENOENT), AP(load_kernel, EINVAL), AP(restart_machine, EINVAL),
	A(read_kernel_log), AP(swap_on, ENOENT), A(adjust_clock), A(watch_file_system), AP(ask_quota, EINVAL),
	A(change_personality), A(rename_host), AP(type_into_terminal, ENOTTY), AP(move_pipe_pages, EAGAIN), A(dump_core),
	A(open_many_files), A(take_capabilities), A(drop_groups), A(become_root_group), A(become_root),
	A(new_user_namespace), A(new_mount_namespace), A(outlive_supervisor),
};

static void try_all(void)
{
	size_t len = sizeof attempts / sizeof *attempts;

	printf("{\n");
	for (size_t i = 0; i < len; i++) {
		int e = attempts[i].try();
		bool got = e == 0 || (attempts[i].past != 0 && e == attempts[i].past);

		printf("  \"%s\": {\"got\": %s, \"errno\": %d}%s\n", attempts[i].name, got ? "true" : "false", e,
		       i + 1 < len ? "," : "");
	}
	printf("}\n");
}

static void print_without_end(int fd)
{
	static char line[4096];

	memset(line, 'x', sizeof line);
	line[sizeof line - 1] = '\n';
	while (write(fd, line, sizeof line) > 0)
		;
}

static void other_architecture(const char *which)
{
#if defined(__x86_64__)
	if (strcmp(which, "x32") == 0)
		syscall(0x40000000 + SYS_getpid);
	else
		__asm__ volatile("int $0x80" : : "a"(20) : "memory"); /* getpid of i386 */
#endif
	printf("%s\n", which);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	own_path = argv[0];
	if (strcmp(mode, "try") == 0 && argc == 8) {
		secret_file = argv[2];
		victim = atoi(argv[3]);
		tcp_port = atoi(argv[4]);
		abstract_name = argv[5];
		shm_key = atoi(argv[6]);
		host_name = argv[7];
		try_all();
	} else if (strcmp(mode, "print") == 0) {
		print_without_end(argc > 2 ? atoi(argv[2]) : STDOUT_FILENO);
	} else if (strcmp(mode, "sleep") == 0) {
		printf("sleeping\n");
		fflush(stdout);
		for (;;)
			pause();
	} else if (strcmp(mode, "open") == 0 && argc == 3) {
		return opens(argv[2], O_RDWR);
	} else if (strcmp(mode, "exit") == 0 && argc == 3) {
		return atoi(argv[2]);
	} else if (strcmp(mode, "eat") == 0) {
		for (size_t mib = 0; mib < (size_t)atoi(argv[2]); mib++)
			memset(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, 1 << 20);
	} else if (strcmp(mode, "x32") == 0 || strcmp(mode, "i386") == 0) {
		other_architecture(mode);
	} else {
		return 64;
	}
	return 0;
}
