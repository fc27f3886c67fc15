/* Landlock: the second wall around files, signals and sockets inside the room;
 * the first one on a host where no room can be built. Needs no privilege. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From <linux/landlock.h>, whose older versions know fewer fields. */
struct ruleset {
	uint64_t files, tcp, scoped;
};

struct __attribute__((packed)) path_rule {
	uint64_t allowed;
	int32_t parent;
};

enum {
	CREATE_VERSION = 1,
	RULE_PATH_BENEATH = 1,
	FS_EXECUTE = 1 << 0,
	FS_WRITE_FILE = 1 << 1,
	FS_READ_FILE = 1 << 2,
	FS_READ_DIR = 1 << 3,
	FS_ALL_V1 = (1 << 13) - 1,
	FS_REFER = 1 << 13,    /* ABI 2 */
	FS_TRUNCATE = 1 << 14, /* ABI 3 */
	TCP_BIND_CONNECT = 3,  /* ABI 4 */
	SCOPE_SOCKETS_SIGNALS = 3, /* ABI 6 */
	FOR_FILES = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE,
};

int landlock_abi(void)
{
	return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_VERSION);
}

static uint64_t files_handled(int abi)
{
	return FS_ALL_V1 | (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0);
}

static void allow(int ruleset, const char *path, uint64_t access)
{
	struct stat st;
	int fd = open(path, O_PATH | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) != 0)
		failed("landlock", errno, "%s", path);
	if (!S_ISDIR(st.st_mode))
		access &= FOR_FILES;
	struct path_rule rule = {.allowed = access, .parent = fd};
	if (syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0) != 0)
		failed("landlock", errno, "a rule for %s", path);
	close(fd);
}

void landlock_install(const struct options *o, bool has_room)
{
	const uint64_t read_only = FS_EXECUTE | FS_READ_FILE | FS_READ_DIR;
	int abi = landlock_abi();

	if (abi < 1)
		return; /* where it would have been the only wall, room_missing said so */
	struct ruleset handled = {
		.files = files_handled(abi),
		.tcp = abi >= 4 ? TCP_BIND_CONNECT : 0,
		.scoped = abi >= 6 ? SCOPE_SOCKETS_SIGNALS : 0,
	};
	/* Older kernels refuse a longer structure unless its tail is zero. */
	int ruleset = (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
	if (ruleset < 0)
		failed("landlock", errno, "making the rules");
	if (has_room)
		allow(ruleset, "/", read_only);
	for (size_t i = 0; i < o->binds_len; i++) {
		const struct bind *b = &o->binds[i];
		const char *path = has_room ? b->dest : b->source;

		if (b->access != READ_ONLY)
			allow(ruleset, path, handled.files);
		else if (!has_room)
			allow(ruleset, path, read_only);
	}
	allow(ruleset, "/dev/null", FS_READ_FILE | FS_WRITE_FILE);
	allow(ruleset, "/dev/urandom", FS_READ_FILE);
	if (syscall(SYS_landlock_restrict_self, ruleset, 0) != 0)
		failed("landlock", errno, "putting the rules on");
	close(ruleset);
}
