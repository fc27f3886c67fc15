/* The room: a small read-only tmpfs as root, with exactly the given binds in it. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* The tmpfs is mounted over a folder that exists on every host and that no bind
 * comes from: what lies below it is out of sight while the room is built. */
static const char *const bases[] = {"/sys", "/mnt", "/srv", "/opt", "/proc"};

static struct bind devices[] = {
	{.source = "/dev/null", .dest = "/dev/null", .access = DEVICE},
	{.source = "/dev/urandom", .dest = "/dev/urandom", .access = DEVICE},
};
static const size_t devices_len = sizeof devices / sizeof *devices;

static bool is_below(const char *path, const char *folder)
{
	size_t len = strlen(folder);

	return strncmp(path, folder, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

static bool hides_a_source(const char *base, const struct options *o)
{
	for (size_t i = 0; i < o->binds_len; i++)
		if (is_below(o->binds[i].source, base))
			return true;
	return false;
}

static const char *mount_base(const struct options *o)
{
	const char *settings = "mode=0755,size=256k,nr_inodes=4096";

	for (size_t i = 0; i < sizeof bases / sizeof *bases; i++)
		if (!hides_a_source(bases[i], o) && mount("room", bases[i], "tmpfs", MS_NOSUID | MS_NODEV, settings) == 0)
			return bases[i];
	return NULL;
}

static bool inside(char *path, const char *base, const char *dest)
{
	return snprintf(path, PATH_MAX, "%s%s", base, dest) < PATH_MAX;
}

static int make_parents(char *path, size_t base_len)
{
	for (char *p = path + base_len + 1; (p = strchr(p, '/')) != NULL; p++) {
		*p = '\0';
		int r = mkdir(path, 0755);
		*p = '/';
		if (r != 0 && errno != EEXIST)
			return -1;
	}
	return 0;
}

static int make_parents_of(const char *base, const char *dest)
{
	char path[PATH_MAX];

	if (!inside(path, base, dest))
		return errno = ENAMETOOLONG, -1;
	return make_parents(path, strlen(base));
}

static int make_place(const char *base, const struct bind *b)
{
	char path[PATH_MAX];

	if (b->is_made)
		return 0;
	if (!inside(path, base, b->dest))
		return errno = ENAMETOOLONG, -1;
	if (b->is_directory) {
		if (mkdir(path, 0755) == 0 || errno == EEXIST)
			return 0;
		if (errno != ENOENT || make_parents(path, strlen(base)) != 0)
			return -1;
		return mkdir(path, 0755);
	}
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
	if (fd < 0 && errno == ENOENT && make_parents(path, strlen(base)) == 0)
		fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
	if (fd < 0)
		return -1;
	return close(fd);
}

/* With an own uid a device gets a node of its own, that this uid may open: the
 * host's /dev/kvm is often for root, or for a group, alone. */
static int make_node(const char *base, struct bind *b, const struct options *o)
{
	char path[PATH_MAX];
	struct stat st;

	if (stat(b->source, &st) != 0)
		return -1;
	if (!inside(path, base, b->dest))
		return errno = ENAMETOOLONG, -1;
	if (mknod(path, (st.st_mode & S_IFMT) | 0600, st.st_rdev) != 0)
		return -1;
	b->is_made = true;
	return chown(path, o->uid, o->gid);
}

/* A mount of its own, as the room's others take no devices. */
static bool make_nodes(const char *base, struct options *o)
{
	char path[PATH_MAX];

	if (!o->has_uid || !inside(path, base, "/dev") || mkdir(path, 0755) != 0)
		return false;
	if (mount("dev", path, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=4k,nr_inodes=64") != 0)
		return false;
	if (make_node(base, &devices[0], o) != 0) {
		/* Not in a user namespace, nor without CAP_MKNOD. */
		umount2(path, MNT_DETACH);
		return false;
	}
	for (size_t i = 1; i < devices_len; i++)
		if (make_node(base, &devices[i], o) != 0)
			failed("room", errno, "making %s", devices[i].dest);
	for (size_t i = 0; i < o->binds_len; i++)
		if (o->binds[i].access == DEVICE && make_parents_of(base, o->binds[i].dest) == 0 &&
		    make_node(base, &o->binds[i], o) != 0)
			failed("room", errno, "making %s", o->binds[i].dest);
	return true;
}

static int attach(const char *base, const struct bind *b)
{
	char path[PATH_MAX];

	if (b->is_made)
		return 0;
	if (!inside(path, base, b->dest))
		return errno = ENAMETOOLONG, -1;
	/* A folder's own submounts stay out; in a user namespace they are locked
	 * to it and the kernel takes only both. */
	if (mount(b->source, path, NULL, MS_BIND, NULL) == 0)
		return 0;
	if (errno == EINVAL && b->is_directory)
		return mount(b->source, path, NULL, MS_BIND | MS_REC, NULL);
	return -1;
}

static int set_attributes(const char *path, unsigned flags, uint64_t set, uint64_t clear)
{
	struct mount_attr attr = {.attr_set = set, .attr_clr = clear};

	return (int)syscall(SYS_mount_setattr, AT_FDCWD, path, flags, &attr, sizeof attr);
}

/* Before Linux 5.12: one mount at a time, and the flags it came with must be
 * given again, as a user namespace may not take them away. */
static int remount(const char *path, unsigned long flags)
{
	struct statvfs fs;

	if (statvfs(path, &fs) != 0)
		return -1;
	unsigned long kept = fs.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME | ST_RELATIME);
	return mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | kept | flags, NULL);
}

static int seal_each(const char *base, const struct bind *binds, size_t len)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < len; i++) {
		if (binds[i].is_made)
			continue;
		unsigned long flags = MS_NOSUID | (binds[i].access == READ_WRITE ? 0 : MS_RDONLY) |
				      (binds[i].access == DEVICE ? MS_NOEXEC : MS_NODEV);
		if (!inside(path, base, binds[i].dest) || remount(path, flags) != 0)
			return -1;
	}
	return 0;
}

static int loosen(const char *base, const struct bind *binds, size_t len)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < len; i++) {
		if (binds[i].access == READ_ONLY || binds[i].is_made)
			continue;
		uint64_t clear = binds[i].access == DEVICE ? MOUNT_ATTR_NODEV : MOUNT_ATTR_RDONLY;
		uint64_t set = binds[i].access == DEVICE ? MOUNT_ATTR_NOEXEC : 0;
		if (!inside(path, base, binds[i].dest) || set_attributes(path, 0, set, clear) != 0)
			return -1;
	}
	return 0;
}

/* Read-only, nosuid, nodev for all in one call; then what was asked for back. */
static int seal(const char *base, const struct options *o, bool has_nodes)
{
	/* The mount with the nodes is, for its flags, a device like those bound. */
	const struct bind nodes = {.dest = "/dev", .access = DEVICE};

	if (set_attributes(base, AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0) == 0) {
		if (loosen(base, o->binds, o->binds_len) != 0 || loosen(base, &nodes, has_nodes) != 0)
			return -1;
		return loosen(base, devices, devices_len);
	}
	if (errno != ENOSYS && errno != EPERM)
		return -1;
	if (seal_each(base, o->binds, o->binds_len) != 0 || seal_each(base, devices, devices_len) != 0 ||
	    seal_each(base, &nodes, has_nodes) != 0)
		return -1;
	return remount(base, MS_RDONLY | MS_NOSUID | MS_NODEV);
}

/* All places first: once a host's folder is bound, making one below it would
 * make it on the host. */
static void fill(const char *base, const struct bind *binds, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (make_place(base, &binds[i]) != 0)
			failed("room", errno, "making the place for %s", binds[i].dest);
}

static void attach_all(const char *base, const struct bind *binds, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (attach(base, &binds[i]) != 0)
			failed("bind", errno, "%s", binds[i].source);
}

static int enter(const char *base)
{
	if (chdir(base) != 0)
		return -1;
	/* Old and new root on one spot: no folder for the old one is needed in the room. */
	if (syscall(SYS_pivot_root, ".", ".") == 0)
		return umount2(".", MNT_DETACH) != 0 ? -1 : chdir("/");
	/* A host that runs from its initramfs, whose root cannot be exchanged: it is
	 * covered, and without CAP_SYS_CHROOT there is no way below. */
	if (errno != EINVAL || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0)
		return -1;
	return chdir("/");
}

static const char *begin(const struct options *o)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		return NULL;
	return mount_base(o);
}

bool room_missing(const char *why, int error)
{
	const char *wall = landlock_abi() < 1 ? "only file permissions keep the host's files" : "landlock alone keeps the host's files";

	reduced("room", error, "%s; %s", why, wall);
	return false;
}

bool room_build(struct options *o)
{
	mode_t mask = umask(0);
	const char *base = begin(o);

	umask(mask);
	if (base == NULL)
		return room_missing("nothing can be mounted here", errno);
	umask(0022);
	bool has_nodes = make_nodes(base, o);
	fill(base, o->binds, o->binds_len);
	fill(base, devices, devices_len);
	attach_all(base, o->binds, o->binds_len);
	attach_all(base, devices, devices_len);
	if (seal(base, o, has_nodes) != 0)
		failed("room", errno, "making the room read-only");
	if (enter(base) != 0)
		failed("room", errno, "pivot_root");
	return true;
}

/* For --check, in a child with namespaces of its own. */
int room_trial(void)
{
	static const struct options none;
	char path[PATH_MAX];
	const char *base = begin(&none);

	if (base == NULL)
		return errno;
	if (make_place(base, &devices[0]) != 0 || attach(base, &devices[0]) != 0)
		return errno;
	if (!inside(path, base, devices[0].dest) || remount(path, MS_RDONLY | MS_NOSUID | MS_NOEXEC) != 0)
		return errno;
	return enter(base) == 0 ? 0 : errno;
}
