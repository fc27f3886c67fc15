/* The console: for what goes wrong where no host can be told. */
#pragma once

void log_open(void);
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says why, flushes the disk and powers the machine off. */
_Noreturn void log_fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
