/* Pseudo-terminals. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

bool terminal_open(int *master, int *slave, uint64_t rows, uint64_t columns);
bool terminal_resize(int master, uint64_t rows, uint64_t columns);
/* To the foreground process group; false: there is none. */
bool terminal_signal(int master, int signal);
