/* A file that the program opens to write, and gets to read.
 *
 * QEMU before 8.2 opens the file of a guest's memory O_RDWR even where it maps
 * it privately, and keeps the descriptor. Many machines share that file. So the
 * call is put to the supervisor (seccomp's user notification, Linux 5.9), which
 * puts a descriptor in its place that was opened O_RDONLY, in the room and thus
 * through a read-only mount.
 *
 * The child opens the file and makes the listener, and hands both out through a
 * socket. The file is lent once. Every other call that is put to the supervisor
 * goes on as if nobody had looked: what it may open, the kernel decides, by
 * arguments that the program may still change. Nothing here is a permission. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The kernel writes its own idea of a notice, which newer ones may make longer. */
enum { LARGEST_NOTICE = 512, ASKED_PER_MS = 1, ASKED_AT_ONCE = 1000 };

static const char stage[] = "open-read-only";

static void hand_out(int socket, int fd)
{
	char byte = 0;
	struct iovec data = {&byte, 1};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	if (sendmsg(socket, &message, MSG_NOSIGNAL) != 1)
		failed(stage, errno, "handing a descriptor out");
	close(fd);
}

void lend_open(const char *path, int socket)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) != 0)
		failed("bind", errno, "%s", path);
	if (!S_ISREG(st.st_mode))
		failed("bind", EINVAL, "%s is no file", path);
	hand_out(socket, fd);
}

/* No call waits yet, so a kernel that knows how to give a descriptor finds none
 * to give it to; one that does not knows no such command. */
static int can_give(int listener)
{
	struct seccomp_notif_addfd gift = {.srcfd = (uint32_t)listener};
	struct seccomp_notif_sizes sizes;

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &gift) != 0 && errno != ENOENT)
		return ENOSYS;
	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) != 0)
		return errno;
	if (sizes.seccomp_notif > LARGEST_NOTICE || sizes.seccomp_notif_resp > LARGEST_NOTICE)
		return E2BIG;
	return 0;
}

static const char *why_not(int error)
{
	switch (error) {
	case EINVAL:
	case ENOSYS:
		return "the kernel cannot answer the program's calls (Linux 5.9 can)";
	case EBUSY:
		return "the container answers its programs' calls itself, and there can be one only";
	default:
		return "the kernel lets us answer no calls";
	}
}

void lend_install(int socket)
{
	int listener = seccomp_listen();
	int error = listener < 0 ? errno : can_give(listener);

	if (error != 0)
		failed(stage, error, "%s", why_not(error));
	hand_out(socket, listener);
}

int lend_trial(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return errno;
	int listener = seccomp_listen();
	return listener < 0 ? errno : can_give(listener);
}

void lender_start(struct lender *l, const char *path, int socket)
{
	*l = (struct lender){
		.path = path,
		.socket = socket,
		.file = -1,
		.listener = -1,
		.asked = {.per_ms = ASKED_PER_MS, .burst = ASKED_AT_ONCE},
	};
}

static bool may_look(pid_t pid)
{
	char byte;
	/* Permission is asked before the address, which is nobody's. */
	struct iovec here = {&byte, 1}, there = {NULL, 1};

	return process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0 || errno == EFAULT || errno == ESRCH;
}

/* The program is there: what it was started as, we are allowed to read, or not
 * (Yama, another security module, a container's filter). */
bool lender_can_look(pid_t program)
{
	if (may_look(program))
		return true;
	/* Without a room it may have kept the uid that we came with. */
	identity_return();
	return may_look(program);
}

int lender_source(const struct lender *l)
{
	return l->listener >= 0 ? l->listener : l->socket;
}

bool lender_may_answer(struct lender *l)
{
	return l->listener < 0 || budget_left(&l->asked);
}

static void stop_lending(struct lender *l)
{
	if (l->file >= 0)
		close(l->file);
	l->file = -1;
	identity_return();
}

static void receive(struct lender *l)
{
	char byte;
	struct iovec data = {&byte, 1};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(l->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *c = n == 1 ? CMSG_FIRSTHDR(&message) : NULL;

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (c != NULL)
		memcpy(l->file < 0 ? &l->file : &l->listener, CMSG_DATA(c), sizeof(int));
	if (c != NULL && l->listener < 0)
		return;
	close(l->socket); /* both are here, or the child ended on its way */
	l->socket = -1;
	if (c == NULL)
		stop_lending(l);
}

/* The filter has looked at the flags. Whether it is this path only the memory
 * says, which is another thread's to change; it would get a file to read. */
static bool wants_file(const struct lender *l, const struct seccomp_notif *call)
{
	char text[PATH_MAX];
	size_t len = strlen(l->path) + 1; /* options.c: it fits */
	uint64_t at = call->data.args[call->data.nr == SYS_openat ? 1 : 0];
	struct iovec here = {text, len}, there = {(void *)(uintptr_t)at, len};

	if (process_vm_readv((pid_t)call->pid, &here, 1, &there, 1, 0) != (ssize_t)len)
		return false;
	/* Else the thread has gone, and another one may have its number. */
	if (ioctl(l->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->id) != 0)
		return false;
	return memcmp(text, l->path, len) == 0;
}

static bool reply(const struct lender *l, struct seccomp_notif_resp answer)
{
	union {
		struct seccomp_notif_resp answer;
		char space[LARGEST_NOTICE];
	} padded = {.answer = answer};

	/* ENOENT: a signal came, or the thread has gone. */
	return ioctl(l->listener, SECCOMP_IOCTL_NOTIF_SEND, &padded) == 0;
}

static bool give(const struct lender *l, uint64_t id)
{
	struct seccomp_notif_addfd gift = {
		.id = id,
		.flags = SECCOMP_ADDFD_FLAG_SEND,
		.srcfd = (uint32_t)l->file,
		.newfd_flags = O_CLOEXEC,
	};

	if (ioctl(l->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &gift) >= 0)
		return true;
	if (errno != EINVAL)
		return false;
	/* Before Linux 5.14 in two steps; a signal between them wastes a number. */
	gift.flags = 0;
	int fd = ioctl(l->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &gift);
	return fd >= 0 && reply(l, (struct seccomp_notif_resp){.id = id, .val = fd});
}

static void answer(struct lender *l)
{
	static union {
		struct seccomp_notif call;
		char space[LARGEST_NOTICE];
	} notice;

	l->asked.left--;
	memset(&notice, 0, sizeof notice); /* the kernel insists */
	/* Does not wait: poll saw a call, and one that has gone is ENOENT. */
	if (ioctl(l->listener, SECCOMP_IOCTL_NOTIF_RECV, &notice) != 0)
		return;
	if (l->file >= 0 && wants_file(l, &notice.call) && give(l, notice.call.id)) {
		stop_lending(l);
		return;
	}
	reply(l, (struct seccomp_notif_resp){.id = notice.call.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE});
}

void lender_serve(struct lender *l, short events)
{
	if (l->listener < 0) {
		receive(l);
	} else if (events & POLLIN) {
		answer(l);
	} else {
		/* Nobody is left who could ask. */
		close(l->listener);
		l->listener = -1;
		stop_lending(l);
	}
}
