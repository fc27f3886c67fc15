#define _GNU_SOURCE
#include "log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

static int kmsg = -1;

void log_open(void) {
    kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);
}

static void say(const char *format, va_list arguments) {
    /* Level 3 (error): the kernel shows levels below 4 on the console even with `quiet`. */
    char line[512];
    int n = snprintf(line, sizeof line, "<3>nova-agent: ");
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, arguments);
    if (m < 0) return;
    n += m < (int)sizeof line - n - 1 ? m : (int)sizeof line - n - 2;
    line[n++] = '\n';
    if (kmsg >= 0 && write(kmsg, line, (size_t)n) >= 0) return;
    if (write(STDERR_FILENO, line + 3, (size_t)n - 3) < 0) return; /* nowhere left to say it */
}

void log_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void log_fatal(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}
