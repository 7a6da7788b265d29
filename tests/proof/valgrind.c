/* SPDX-License-Identifier: MIT */

/*
 * Valgrind (3.19 at least) does not know that io_uring_enter(2) blocks: it lets no other thread run
 * meanwhile, and a loop that waits for a worker waits for ever. So under it a wait is cut into
 * slices.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#define SLICE_NS 1000000

int __real_io_uring_enter2(unsigned fd, unsigned n, unsigned min, unsigned flags, sigset_t *arg,
			   size_t size);
int __wrap_io_uring_enter2(unsigned fd, unsigned n, unsigned min, unsigned flags, sigset_t *arg,
			   size_t size);

int __wrap_io_uring_enter2(unsigned fd, unsigned n, unsigned min, unsigned flags, sigset_t *arg,
			   size_t size)
{
	struct __kernel_timespec slice = {0}, *left = NULL;
	struct io_uring_getevents_arg args = {.ts = (uintptr_t)&slice};
	bool last = false;

	if (!(flags & IORING_ENTER_GETEVENTS) || !min)
		return __real_io_uring_enter2(fd, n, min, flags, arg, size);
	if (flags & IORING_ENTER_EXT_ARG)
		left = (void *)(uintptr_t)((struct io_uring_getevents_arg *)(void *)arg)->ts;
	for (unsigned long long passed_ns = 0;; passed_ns += SLICE_NS) {
		unsigned long long left_ns = ~0ULL;
		int ret;

		if (left)
			left_ns = (unsigned long long)left->tv_sec * 1000000000 +
				  (unsigned long long)left->tv_nsec - passed_ns;
		last = left_ns <= SLICE_NS;
		slice.tv_nsec = last ? (long long)left_ns : SLICE_NS;
		ret = __real_io_uring_enter2(fd, n, min, flags | IORING_ENTER_EXT_ARG,
					     (sigset_t *)(void *)&args, sizeof(args));
		if (ret != -ETIME || last)
			return ret;
		n = 0;
		sched_yield();
	}
}
