/* The connection to the host: who holds the sandbox, and every frame's way to its stream. */
#pragma once

#include "frames.h"

#include <stdbool.h>
#include <stdint.h>

void connection_open(void);
void connection_up(void);
void connection_down(void);
bool connection_frame(const struct frame *frame);
/* Receives and sends what can be; true if there is more to do at once. */
bool connection_serve(void);
/* Whether all that was to be said has been written. */
bool connection_is_flushed(void);

/* Why a payload is wrong; the connection ends. Always false, to be returned. */
bool connection_fail(const char *sentence);
/* A REPLY for a request that no stream is made for. */
void connection_refuse(uint32_t stream, uint32_t status);
