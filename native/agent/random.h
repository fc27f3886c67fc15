/* The kernel's random numbers. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MAX_ENTROPY 512

void random_open(void);
/* Mixes bytes in, at most MAX_ENTROPY, counts them, and reseeds the generator. 0 or an errno. */
int random_add(const uint8_t *bytes, size_t length);
/* 0 or an errno. */
int random_take(void *bytes, size_t length);
