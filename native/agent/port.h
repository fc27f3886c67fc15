/* The byte stream to the host: a virtio-serial port, or a vsock connection. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The kernel cuts one write(2) to a virtio port here. */
#define PORT_PIECE 32768

void port_open(void);
/* A vsock guest is Firecracker's, which ends on a reboot and not on a power-off. */
bool port_is_vsock(void);

bool port_can_read(void);
bool port_can_write(void);
/* Bytes moved; 0: not now. */
size_t port_read(uint8_t *bytes, size_t size);
size_t port_write(const uint8_t *bytes, size_t length);
