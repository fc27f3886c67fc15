/* nova-jail: runs one program (QEMU) in an empty room.
 *
 * Two processes. The *supervisor* stays outside with the identity it was
 * started with; it is one thread and does little: it makes the child, copies
 * the child's output into logs of bounded size, kills the child when the owner
 * goes, and tells how it ended. The *child* builds the room around itself,
 * gives up every privilege and becomes the program.
 *
 *   main.c        entry: --check, --help or a run
 *   options.c     the command line
 *   supervisor.c  the process outside
 *   child.c       the order of steps inside, up to exec
 *   namespaces.c  which namespaces can be had, and the user map
 *   room.c        the new root
 *   privileges.c  ids, capabilities, limits, descriptors
 *   seccomp.c     the system calls that QEMU never needs
 *   lend.c        a file that the program opens to write, and gets to read
 *   landlock.c    the second wall around files and, without namespaces, the first
 *   cgroup.c      memory, process and CPU limits
 *   log.c         logs that cannot fill a disk
 *   budget.c      how much a hostile program may make the supervisor do
 *   report.c      the status line and the notes the child sends out
 *   check.c       what this host can give
 */
#ifndef NOVA_JAIL_H
#define NOVA_JAIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
	MAX_BINDS = 512,
	MAX_FDS = 64,
	MAX_ENV = 128,
	MAX_GROUPS = 16,
	MAX_CGROUPS = 8,
	MAX_SETTINGS = 8,
	MAX_LIMITS = 16,
	MAX_CONSOLES = 4,
	EXIT_OURS = 125, /* the jail's own failure, as `nova` and the shells have it */
};

enum access { READ_ONLY, READ_WRITE, DEVICE };

struct bind {
	const char *source;
	const char *dest;
	enum access access;
	bool is_directory;
	bool is_made; /* a device node, made and not bound */
};

struct limit {
	int resource;
	struct rlimit value;
};

struct cgroup {
	const char *dir;
	char *settings[MAX_SETTINGS]; /* FILE=VALUE */
	size_t settings_len;
	bool made;
};

struct console {
	int fd; /* the number the program sees */
	const char *path;
};

struct options {
	struct bind binds[MAX_BINDS];
	size_t binds_len;
	int keep[MAX_FDS];
	size_t keep_len;
	int hold[MAX_FDS];
	size_t hold_len;
	char *env[MAX_ENV + 1];
	size_t env_len;
	gid_t groups[MAX_GROUPS];
	size_t groups_len;
	struct cgroup cgroups[MAX_CGROUPS];
	size_t cgroups_len;
	struct limit limits[MAX_LIMITS];
	size_t limits_len;
	struct console consoles[MAX_CONSOLES];
	size_t consoles_len;
	const char *hostname;
	const char *open_read_only; /* of a read-only bind, as the program sees it */
	const char *log;
	const char *pid_file;
	const char *oom_score_adj;
	int owner_fd;
	int status_fd;
	bool has_uid;
	uid_t uid;
	gid_t gid;
	bool allow_fork;
	bool strict;
	bool check;
	char **program; /* argv of the program, ends with NULL */
};

/* options.c */
void options_parse(struct options *o, int argc, char **argv);
int options_largest_fd(const struct options *o);

/* report.c: what the child tells the supervisor, one note per write(2) and
 * smaller than PIPE_BUF, so that notes never mix. */
enum note_kind { NOTE_REDUCED, NOTE_FAILED };

struct note {
	int32_t kind;
	int32_t error;
	char name[28];
	char text[220];
};

void report_open(int status_fd, bool strict);
void report_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_to(int note_fd); /* in the child: from here on notes go to this pipe */
void report_forward(const struct note *n);
/* A part cannot be had: told, and gone on without; in strict mode it is the end. */
void reduced(const char *name, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The end: told, and exit. */
_Noreturn void failed(const char *stage, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* namespaces.c */
struct space {
	const char *name;
	unsigned long flag;
};
extern const struct space spaces[];
extern const size_t spaces_len;
bool has_capability(int capability);
pid_t raw_clone(unsigned long flags);
int trial(unsigned long flags); /* 0, or the errno that making these namespaces gives */
int trial_run(unsigned long flags, int (*inside)(void)); /* the same, then the errno inside() returns */
unsigned long namespaces_wanted(void);
unsigned long namespaces_possible(unsigned long wanted); /* reports each one that is missing */
void namespaces_map_ids(pid_t child, const struct options *o);

/* room.c */
bool room_build(struct options *o); /* false: there is none, and that was reported */
bool room_missing(const char *why, int error);
int room_trial(void);

/* privileges.c */
void limits_apply(const struct options *o);
void identity_decide(struct options *o); /* in the supervisor: can it have the uid it was given? */
bool identity_is_useful(const struct options *o); /* in the child, when it has no room */
void privileges_drop(const struct options *o, bool own_uid);
void supervisor_privileges_drop(const struct options *o);
void identity_resemble(const struct options *o); /* the supervisor may look into the program */
void identity_return(void);
void close_all_but(const int *keep, size_t keep_len);

/* seccomp.c */
void seccomp_install(const struct options *o);
int seccomp_listen(void); /* a filter that puts calls which open to read and write to the descriptor it returns */

/* budget.c */
struct budget {
	long left;
	long per_ms;
	long burst;
	uint64_t reckoned_ms;
};
bool budget_left(struct budget *b); /* takes the time that has passed into account; the caller takes from `left` */

/* lend.c */
struct lender {
	const char *path;
	int socket;   /* until the child has sent the two below */
	int file;     /* until it was lent */
	int listener; /* where the program's calls come in */
	struct budget asked;
};
void lend_open(const char *path, int socket); /* in the child, in its room */
void lend_install(int socket);                /* in the child, last before exec */
int lend_trial(void);
void lender_start(struct lender *l, const char *path, int socket); /* from here on in the supervisor */
bool lender_can_look(pid_t program);
int lender_source(const struct lender *l); /* -1: it has nothing to do any more */
bool lender_may_answer(struct lender *l);  /* false: the program has asked enough for now */
void lender_serve(struct lender *l, short events);

/* landlock.c */
int landlock_abi(void);
void landlock_install(const struct options *o, bool has_room);

/* child.c */
struct child_fds {
	int go;     /* one byte says: maps and cgroup are ready; end of file: the supervisor died */
	int notes;  /* close-on-exec: its end of file means that exec worked */
	int output; /* stdout and stderr, or -1 */
	int lend;   /* socket for what lend.c hands out, or -1 */
	int console[MAX_CONSOLES];
};
_Noreturn void child_run(struct options *o, const struct child_fds *fds, unsigned long made);

/* supervisor.c */
int supervise(struct options *o);

/* cgroup.c */
void cgroups_enter(struct options *o, pid_t child);
bool cgroups_killed(const struct options *o); /* for want of memory */
void cgroups_leave(struct options *o);

/* log.c */
struct log;
struct log *log_open(const char *path, int source_fd);
int log_source(const struct log *l);
bool log_may_take(struct log *l); /* false: it has had its share for now */
bool log_copy(struct log *l); /* false at the end of the source */
void log_drain(struct log *l);

/* check.c */
int check_print(void);

#endif
