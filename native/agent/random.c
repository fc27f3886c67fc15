#define _GNU_SOURCE
#include "random.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int device = -1;

void random_open(void) {
    device = open("/dev/urandom", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0) log_error("/dev/urandom: %m");
}

int random_add(const uint8_t *bytes, size_t length) {
    struct {
        int bits, size;
        uint8_t bytes[MAX_ENTROPY];
    } pool = {(int)length * 8, (int)length, {0}};
    if (length == 0 || length > MAX_ENTROPY) return EINVAL;
    memcpy(pool.bytes, bytes, length);
    /* Mixed in alone, it would count only at the generator's next reseeding, a minute later:
     * until then all copies of one guest would draw the same numbers. */
    return ioctl(device, RNDADDENTROPY, &pool) != 0 || ioctl(device, RNDRESEEDCRNG) != 0 ? errno : 0;
}

int random_take(void *bytes, size_t length) {
    /* Never waits, unlike getrandom(). */
    ssize_t n = read(device, bytes, length);
    return n == (ssize_t)length ? 0 : n < 0 ? errno : EIO;
}
