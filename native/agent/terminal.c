#define _GNU_SOURCE
#include "terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

bool terminal_resize(int master, uint64_t rows, uint64_t columns) {
    struct winsize size = {
        .ws_row = (unsigned short)(rows < UINT16_MAX ? rows : UINT16_MAX),
        .ws_col = (unsigned short)(columns < UINT16_MAX ? columns : UINT16_MAX),
    };
    return ioctl(master, TIOCSWINSZ, &size) == 0;
}

bool terminal_open(int *master, int *slave, uint64_t rows, uint64_t columns) {
    *master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (*master < 0) return false;
    /* By ioctl, for /dev/pts may be anything by now. */
    *slave = unlockpt(*master) == 0 ? ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    if (*slave >= 0 && terminal_resize(*master, rows, columns)) return true;
    if (*slave >= 0) close(*slave);
    close(*master);
    return false;
}

bool terminal_signal(int master, int signal) {
    pid_t group;
    /* Asked on the master, the kernel answers for the slave's session. */
    return ioctl(master, TIOCGPGRP, &group) == 0 && group > 1 && kill(-group, signal) == 0;
}
