/* What a program can do with a file that was lent to it to read (lend.c).
 *
 *     lent try|thread SHARED OTHER LOCKED   opens SHARED to read and write, in a thread or not,
 *                                           and prints as JSON what it could do with it
 *     lent time SHARED N                    the nanoseconds that opening /dev/null takes, before
 *                                           SHARED was opened to write and after it
 *     lent open N                           opens /dev/null N times; 0 is without end, in threads */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static const char *shared, *other, *locked;
static int fd = -1;
static char bytes[PAGE];

#define CALL(expression) ((expression) < 0 ? errno : 0)

static int opens(const char *path, int flags)
{
	int e, got = open(path, flags, 0600);

	if (got < 0)
		return errno;
	/* Open to write, for the kernel, whatever it was asked for? */
	e = (fcntl(got, F_GETFL) & 3) == O_RDONLY ? EROFS : 0;
	close(got);
	return e;
}

static int maps(int protection, int how)
{
	char *at = mmap(NULL, PAGE, protection, how, fd, 0);

	if (at == MAP_FAILED)
		return errno;
	if (protection & PROT_WRITE)
		at[0] = 'w';
	return CALL(munmap(at, PAGE));
}

/* what it was lent for */
static int open_to_write(void) { return CALL(fd = open(shared, O_RDWR)); }
static int is_read_only(void) { return (fcntl(fd, F_GETFL) & 3) == O_RDONLY ? 0 : EINVAL; }
static int is_closed_by_exec(void) { return fcntl(fd, F_GETFD) == FD_CLOEXEC ? 0 : EINVAL; }
static int starts_at_its_beginning(void) { return lseek(fd, 0, SEEK_CUR) == 0 ? 0 : EINVAL; }
static int read_it(void) { return pread(fd, bytes, PAGE, 0) == PAGE && bytes[0] == 's' ? 0 : EIO; }
static int map_it_privately(void) { return maps(PROT_READ | PROT_WRITE, MAP_PRIVATE); }
static int map_it_shared_to_read(void) { return maps(PROT_READ, MAP_SHARED); }

/* other files */
static int write_to_own_file(void)
{
	int own = open(other, O_RDWR);

	return own < 0 ? errno : CALL(pwrite(own, "o", 1, 0)) ? errno : CALL(close(own));
}
static int open_null(void) { return opens("/dev/null", O_RDWR); }

/* what it must not lead to */
static int write_it(void) { return CALL(write(fd, "x", 1)); }
static int pwrite_it(void) { return CALL(pwrite(fd, "x", 1, 0)); }
static int pwritev_it(void)
{
	struct iovec v = {"x", 1};
	return CALL(pwritev(fd, &v, 1, 0));
}
static int send_to_it(void) { return CALL(sendfile(fd, fd, NULL, 1)); }
static int copy_to_it(void)
{
	off_t from = 0, to = 1;
	return CALL(syscall(SYS_copy_file_range, fd, &from, fd, &to, 1, 0));
}
static int cut_it(void) { return CALL(ftruncate(fd, 0)); }
static int cut_by_name(void) { return CALL(truncate(shared, 0)); }
static int allocate_it(void) { return CALL(fallocate(fd, 0, 0, 2 * PAGE)); }
static int punch_it(void) { return CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE)); }
static int map_it_shared(void) { return maps(PROT_READ | PROT_WRITE, MAP_SHARED); }
static int map_it_and_ask_for_more(void)
{
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	return at == MAP_FAILED ? errno : CALL(mprotect(at, PAGE, PROT_READ | PROT_WRITE));
}
static int punch_it_through_a_map(void)
{
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	return at == MAP_FAILED ? errno : CALL(madvise(at, PAGE, MADV_REMOVE));
}
static int punch_it_through_a_private_map(void)
{
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	return at == MAP_FAILED ? errno : CALL(madvise(at, PAGE, MADV_REMOVE));
}
static int make_it_writable(void)
{
	if (fcntl(fd, F_SETFL, O_RDWR) < 0)
		return errno;
	return (fcntl(fd, F_GETFL) & 3) == O_RDONLY ? EINVAL : 0;
}
static int lock_it_to_write(void)
{
	struct flock l = {.l_type = F_WRLCK};
	return CALL(fcntl(fd, F_SETLK, &l));
}
static int flag_it(void)
{
	int flags = 0;
	return CALL(ioctl(fd, FS_IOC_SETFLAGS, &flags));
}
static int change_its_mode(void) { return CALL(fchmod(fd, 0666)); }
static int change_its_owner(void) { return CALL(fchown(fd, getuid(), getgid())); }
static int change_its_times(void) { return CALL(futimens(fd, NULL)); }
static int mark_it(void) { return CALL(fsetxattr(fd, "user.nova", "x", 1, 0)); }
static int change_mode_by_name(void) { return CALL(chmod(shared, 0666)); }
static int change_times_by_name(void) { return CALL(utimensat(AT_FDCWD, shared, NULL, 0)); }
static int link_it(void) { return CALL(linkat(fd, "", AT_FDCWD, "/nova-lent", AT_EMPTY_PATH)); }
static int remove_it(void) { return CALL(unlink(shared)); }
static int rename_it(void) { return CALL(rename(shared, "/nova-lent")); }

/* other ways to open it */
static int open_again(void) { return opens(shared, O_RDWR); }
static int open_by_another_name(void)
{
	char name[PAGE];
	snprintf(name, sizeof name, "/%s", shared);
	return opens(name, O_RDWR);
}
static int open_to_write_only(void) { return opens(shared, O_WRONLY); }
static int open_to_append(void) { return opens(shared, O_RDWR | O_APPEND); }
static int open_and_cut(void) { return opens(shared, O_RDWR | O_TRUNC); }
static int open_or_make(void) { return opens(shared, O_RDWR | O_CREAT); }
static int open_by_new_call(void)
{
	struct { uint64_t flags, mode, resolve; } how = {.flags = O_RDWR};
	return CALL(syscall(SYS_openat2, AT_FDCWD, shared, &how, sizeof how));
}
static int reopen(const char *folder)
{
	char name[64];
	snprintf(name, sizeof name, "%s/%d", folder, fd);
	return opens(name, O_RDWR);
}
static int reopen_in_proc(void) { return reopen("/proc/self/fd"); }
static int reopen_in_dev(void) { return reopen("/dev/fd"); }
static int open_its_memory(void) { return opens("/proc/self/mem", O_RDWR); }
static int open_locked_file(void) { return opens(locked, O_RDWR); }
static int open_nothing(void) { return opens("/no/such/file", O_RDWR); }
static int open_bad_address(void) { return CALL(syscall(SYS_openat, AT_FDCWD, (void *)8, O_RDWR)); }

static const struct attempt {
	const char *name;
	int (*try)(void);
} attempts[] = {
#define A(name) {#name, name}
	A(open_to_write), A(is_read_only), A(is_closed_by_exec), A(starts_at_its_beginning), A(read_it),
	A(map_it_privately), A(map_it_shared_to_read), A(write_to_own_file), A(open_null), A(write_it), A(pwrite_it),
	A(pwritev_it), A(send_to_it), A(copy_to_it), A(cut_it), A(cut_by_name), A(allocate_it), A(punch_it),
	A(map_it_shared), A(map_it_and_ask_for_more), A(punch_it_through_a_map), A(punch_it_through_a_private_map),
	A(make_it_writable), A(lock_it_to_write), A(flag_it), A(change_its_mode), A(change_its_owner),
	A(change_its_times), A(mark_it), A(change_mode_by_name), A(change_times_by_name), A(link_it), A(remove_it),
	A(rename_it), A(open_again), A(open_by_another_name), A(open_to_write_only), A(open_to_append), A(open_and_cut),
	A(open_or_make), A(open_by_new_call), A(reopen_in_proc), A(reopen_in_dev),
	A(open_its_memory), A(open_locked_file), A(open_nothing), A(open_bad_address),
};

static void *try_all(void *nothing)
{
	size_t len = sizeof attempts / sizeof *attempts;

	printf("{\n");
	for (size_t i = 0; i < len; i++) {
		int e = attempts[i].try();

		printf("  \"%s\": {\"got\": %s, \"errno\": %d}%s\n", attempts[i].name, e == 0 ? "true" : "false", e,
		       i + 1 < len ? "," : "");
	}
	printf("}\n");
	return nothing;
}

static long measure(long times)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (long i = 0; i < times; i++)
		close(open("/dev/null", O_RDWR));
	clock_gettime(CLOCK_MONOTONIC, &to);
	return ((to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec) / times;
}

static void *open_without_end(void *nothing)
{
	for (;;)
		measure(1);
	return nothing;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	pthread_t thread[4];

	if (argc == 5) {
		shared = argv[2];
		other = argv[3];
		locked = argv[4];
	}
	if (strcmp(mode, "try") == 0 && argc == 5) {
		try_all(NULL);
	} else if (strcmp(mode, "thread") == 0 && argc == 5) {
		pthread_create(&thread[0], NULL, try_all, NULL);
		pthread_join(thread[0], NULL);
	} else if (strcmp(mode, "time") == 0 && argc == 4) {
		long before = measure(atol(argv[3]));
		close(open(argv[2], O_RDWR));
		printf("%ld %ld\n", before, measure(atol(argv[3])));
	} else if (strcmp(mode, "open") == 0 && argc == 3 && atol(argv[2]) > 0) {
		measure(atol(argv[2]));
	} else if (strcmp(mode, "open") == 0 && argc == 3) {
		for (int i = 0; i < 4; i++)
			pthread_create(&thread[i], NULL, open_without_end, NULL);
		pthread_join(thread[0], NULL);
	} else {
		return 64;
	}
	return 0;
}
