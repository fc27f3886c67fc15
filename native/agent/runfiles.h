/* The files in /run/nova: what says which guest this is, and how its programs are to run.
 *
 * They are made at boot and their descriptors stay open, so that CONFIGURE writes them without
 * looking up a path, copying a file up or waiting for a disk: in the copy of a guest whatever
 * the kernel does for the first time is slow. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum run_file { RUN_HOSTNAME, RUN_HOSTS, RUN_MACHINE_ID, RUN_BOOT_ID, RUN_GENERATION, RUN_ENVIRONMENT };

/* Makes them and binds those that have another name over it. */
void run_files_open(void);
/* In place: whoever has the file open or mapped sees the new bytes. 0 or an errno. */
int run_file_write(enum run_file file, const void *bytes, size_t length);
/* Its first bytes, at most `size`. */
size_t run_file_read(enum run_file file, void *bytes, size_t size);
int run_file_give(enum run_file file, uid_t uid, gid_t gid);
