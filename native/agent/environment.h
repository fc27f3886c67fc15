/* The arguments and the environment of a program. */
#pragma once

#include "fields.h"
#include "user.h"

/* CONFIGURE's; what it does not name stays as it is. `is_new` becomes true where that may change
 * anything. 0 or an errno. */
int environment_set_defaults(struct fields request, bool *is_new);
const char *environment_default_cwd(void);
/* Writes the default user's environment to RUN_ENVIRONMENT. 0 or an errno. */
int environment_publish(void);

struct arguments {
    char **argv, **environment;
    const char *search;
    size_t argc;
    void *memory; /* all of it, to be freed */
};

/* 0 or an errno. */
int arguments_build(struct fields request, const struct user *user, bool terminal, struct arguments *arguments);
