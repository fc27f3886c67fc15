/* The inputs of the fuzzer, and what it demands of the agent's output. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* A connection's worth of frames, most of them right. The same seed makes the same. */
size_t make_input(unsigned seed, uint8_t *bytes, size_t size);

void check_reset(void);
/* What to keep if the next thing goes wrong. */
void check_input(const uint8_t *bytes, size_t size);
/* An agent that always has more to do would never sleep. */
void check_turns(int turns);
/* Aborts, with the reason on standard error, when the protocol is broken. */
void check_output(const uint8_t *bytes, size_t length);
