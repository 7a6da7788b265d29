/* SPDX-License-Identifier: MIT */
#ifndef BENCH_RAW_H
#define BENCH_RAW_H

/* The bare ring that the raw contenders use: what liburing's man pages recommend for one thread. */

#include <fcntl.h>
#include <liburing.h>

#include "bench.h"

/* `more`: further flags, for kernels that take one of the first two choices. */
static inline void raw_ring_open_with(struct io_uring *ring, unsigned entries, unsigned more)
{
	static const unsigned choices[] = {
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
		0,
	};
	int ret = -EINVAL;

	for (unsigned i = 0; i < 3 && ret == -EINVAL; i++) {
		struct io_uring_params params = {.flags = choices[i] ? choices[i] | more : 0};

		ret = io_uring_queue_init_params(entries, ring, &params);
	}
	must(ret, "io_uring_queue_init_params");
}

static inline void raw_ring_open(struct io_uring *ring, unsigned entries)
{
	raw_ring_open_with(ring, entries, 0);
}

#endif
