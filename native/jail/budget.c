/* How much of something a hostile program may make us do in a while. */
#define _GNU_SOURCE
#include "jail.h"

#include <time.h>

bool budget_left(struct budget *b)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	uint64_t passed = ms - b->reckoned_ms, enough = (uint64_t)(b->burst / b->per_ms);

	b->left += (long)(passed < enough ? passed : enough) * b->per_ms;
	if (b->left > b->burst)
		b->left = b->burst;
	b->reckoned_ms = ms;
	return b->left > 0;
}
