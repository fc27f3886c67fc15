/* Every operation, each in the file of its concern. */
#pragma once

#include "stream.h"

extern const struct operation exec_operation, read_operation, write_operation, list_operation,
    remove_operation, watch_operation, connect_operation, processes_operation;

/* Those that are over at once: an errno, or 0 with fields for the reply. */
int do_configure(struct fields request, struct builder *reply);
int do_metrics(struct fields request, struct builder *reply);
int do_clock(struct fields request, struct builder *reply);
int do_entropy(struct fields request, struct builder *reply);
int do_shutdown(struct fields request, struct builder *reply);
int do_signal(struct fields request, struct builder *reply);
int do_resize(struct fields request, struct builder *reply);
int do_stat(struct fields request, struct builder *reply);
int do_mkdir(struct fields request, struct builder *reply);
int do_rename(struct fields request, struct builder *reply);
int do_chmod(struct fields request, struct builder *reply);
int do_symlink(struct fields request, struct builder *reply);
int do_readlink(struct fields request, struct builder *reply);
int do_truncate(struct fields request, struct builder *reply);
int do_utime(struct fields request, struct builder *reply);
int do_chown(struct fields request, struct builder *reply);
