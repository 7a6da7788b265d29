/* SPDX-License-Identifier: MIT */

/*
 * A finer grain. Here iou.c is compiled with -fsanitize=thread. At each atomic operation the
 * compiler then calls one of these functions, in place of TSan's own library. The other threads may
 * run there, so they come between any two steps of the lock-free parts. Plain accesses cost a call
 * and do nothing. All orders are sequentially consistent here: for weaker ones there is TSan
 * itself.
 */

#include "sim.h"

/* The names are the compiler's. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#ifdef __clang__
#pragma clang diagnostic ignored "-Wmissing-prototypes"
#pragma clang diagnostic ignored "-Wincompatible-library-redeclaration"
#else
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
#endif

#define NOTHING(name, ...) \
	void name(__VA_ARGS__); \
	void name(__VA_ARGS__) \
	{ \
	}

NOTHING(__tsan_init, void)
NOTHING(__tsan_func_entry, void *pc __attribute__((unused)))
NOTHING(__tsan_func_exit, void)

#define UNUSED __attribute__((unused))
NOTHING(__tsan_read_range, void *at UNUSED, unsigned long size UNUSED)
NOTHING(__tsan_write_range, void *at UNUSED, unsigned long size UNUSED)

#define ACCESS(name) NOTHING(__tsan_##name, void *at UNUSED)
#define ACCESSES(size) \
	ACCESS(read##size) ACCESS(unaligned_read##size) \
	ACCESS(write##size) ACCESS(unaligned_write##size) \
	ACCESS(volatile_read##size) ACCESS(unaligned_volatile_read##size) \
	ACCESS(volatile_write##size) ACCESS(unaligned_volatile_write##size)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

#define ATOMIC(bits, type, name, call, ...) \
	type __tsan_atomic##bits##_##name(volatile type *at, __VA_ARGS__); \
	type __tsan_atomic##bits##_##name(volatile type *at, __VA_ARGS__) \
	{ \
		type value; \
		(void)order; \
		sim_point(); \
		value = call; \
		sim_point(); \
		return value; \
	}
#define FETCH(bits, type, name) \
	ATOMIC(bits, type, fetch_##name, __atomic_fetch_##name(at, with, __ATOMIC_SEQ_CST), \
	       type with, int order)
#define COMPARE(bits, type, kind) \
	int __tsan_atomic##bits##_compare_exchange_##kind(volatile type *at, type *want, \
							  type with, int order, int order2); \
	int __tsan_atomic##bits##_compare_exchange_##kind(volatile type *at, type *want, \
							  type with, int order, int order2) \
	{ \
		int done; \
		(void)order; \
		(void)order2; \
		sim_point(); \
		done = __atomic_compare_exchange_n(at, want, with, 0, __ATOMIC_SEQ_CST, \
						   __ATOMIC_SEQ_CST); \
		sim_point(); \
		return done; \
	}
/* clang's form: what stood there is returned. */
#define COMPARE_VAL(bits, type) \
	type __tsan_atomic##bits##_compare_exchange_val(volatile type *at, type want, type with, \
							int order, int order2); \
	type __tsan_atomic##bits##_compare_exchange_val(volatile type *at, type want, type with, \
							int order, int order2) \
	{ \
		(void)order; \
		(void)order2; \
		sim_point(); \
		__atomic_compare_exchange_n(at, &want, with, 0, __ATOMIC_SEQ_CST, \
					    __ATOMIC_SEQ_CST); \
		sim_point(); \
		return want; \
	}
#define ATOMICS(bits, type) \
	ATOMIC(bits, type, load, __atomic_load_n(at, __ATOMIC_SEQ_CST), int order) \
	ATOMIC(bits, type, exchange, __atomic_exchange_n(at, with, __ATOMIC_SEQ_CST), \
	       type with, int order) \
	FETCH(bits, type, add) FETCH(bits, type, sub) FETCH(bits, type, and) FETCH(bits, type, or) \
	FETCH(bits, type, xor) \
	COMPARE(bits, type, strong) COMPARE(bits, type, weak) COMPARE_VAL(bits, type) \
	void __tsan_atomic##bits##_store(volatile type *at, type with, int order); \
	void __tsan_atomic##bits##_store(volatile type *at, type with, int order) \
	{ \
		(void)order; \
		sim_point(); \
		__atomic_store_n(at, with, __ATOMIC_SEQ_CST); \
		sim_point(); \
	}
ATOMICS(8, unsigned char)
ATOMICS(16, unsigned short)
ATOMICS(32, unsigned int)
ATOMICS(64, unsigned long)

void __tsan_atomic_thread_fence(int order);
void __tsan_atomic_thread_fence(int order)
{
	(void)order;
	sim_point();
}

NOTHING(__tsan_atomic_signal_fence, int order __attribute__((unused)))
