/* SPDX-License-Identifier: MIT */
#ifndef IOU_TESTS_SIM_H
#define IOU_TESTS_SIM_H

/*
 * Deterministic simulation. iou.c, as it is, is linked with a fake kernel (kernel.c) and fake
 * threads (threads.c) by the linker's --wrap; one seed decides everything that either does. Random
 * programs of API calls (acts.c, callbacks.c) run on it, and a model of what iou promises (model.c)
 * looks at each callback, each SQE that reaches the kernel, and each time the loop goes to sleep.
 *
 * All runs in one thread of the system. The main program is the loop thread; workers, and two more
 * threads that post, schedule and quit, are coroutines that are stepped whenever the loop thread
 * calls something that is wrapped. The clock is virtual. A failure prints the run's seed, which
 * replays it.
 */

#undef _FORTIFY_SOURCE /* its longjmp refuses to change stacks */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "iou.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifndef SIM_ASAN
#define SIM_ASAN 0
#endif

#ifdef SIM_FINE /* atomics.c */
#undef SIM_FINE
#define SIM_FINE 1
#else
#define SIM_FINE 0
#endif

#ifndef ROUND_MAX /* as in iou.c, where it is less in some builds */
#define ROUND_MAX 1024
#endif

/* ---- Chance, failure, trace ------------------------------------------------------------------ */

extern uint64_t sim_random;  /* the generator's state: a counter, mixed on the way out */
extern uint64_t sim_seed;    /* of the run that is going on */
extern bool sim_tracing;
extern unsigned sim_n_steps; /* a bound on what one run may do */

static inline uint64_t random64(void)
{
	uint64_t x = sim_random += UINT64_C(0xb7e151628aed2a6b); /* digits of e, and of pi */

	x = (x ^ x >> 32) * UINT64_C(0x243f6a8885a308d3);
	x = (x ^ x >> 29) * UINT64_C(0x243f6a8885a308d3);
	return x ^ x >> 32;
}

/* 0 to n - 1 */
static inline unsigned pick(unsigned n)
{
	return (unsigned)((random64() >> 32) * n >> 32);
}

static inline bool one_in(unsigned n)
{
	return pick(n) == 0;
}

/* Bytes at random, none of them 0. */
static inline void dirty(void *memory, size_t size)
{
	for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
		uint64_t bytes = random64() | UINT64_C(0x0101010101010101);
		size_t n = size - i < sizeof(bytes) ? size - i : sizeof(bytes);

		memcpy((char *)memory + i, &bytes, n);
	}
}

void sim_fail(const char *file, int line, const char *format, ...)
	__attribute__((noreturn, cold, format(printf, 3, 4)));
void sim_trace(const char *format, ...) __attribute__((cold, format(printf, 1, 2)));

#define FAIL(...) sim_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond, ...) \
	do { \
		if (__builtin_expect(!(cond), 0)) \
			FAIL(__VA_ARGS__); \
	} while (0)
#define TRACE(...) \
	do { \
		if (__builtin_expect(sim_tracing, 0)) \
			sim_trace(__VA_ARGS__); \
	} while (0)

/* ---- The world: what kernel, threads and programs share (threads.c) ----------------------- */

#define NEVER UINT64_MAX

typedef struct world_t {
	/* between the start of a run and its end: else the wraps pass through */
	bool running;
	uint64_t now_ns;       /* the virtual clock */
	bool clock_stands;     /* reading it does not move it, */
	bool clock_is_coarse;  /* or seldom does, */
	unsigned tick_ns;      /* else by less than this */
	uint64_t events;       /* counts what happens, for before and after */
	unsigned faults;       /* how many more calls may fail */
	unsigned n_faults;     /* how many have */
	bool thread_refused;   /* pthread_create() was one of them */
	unsigned n_refused;    /* times in a row that it was, */
	unsigned n_starts;     /* and was called */
	bool wake_up_lost;     /* a worker's, and none has come since; */
	unsigned lost_poll;    /* n_polls was that then */
	unsigned n_polls;      /* iou_poll() calls, each of which begins a round */
	unsigned drops;        /* how many CQEs may be lost */
	unsigned n_allocs;     /* memory that iou holds */
	bool signals;          /* signals may arrive */
	bool in_signal;        /* one has */
	bool may_spin;         /* workers may look at the clock */
	bool posters;          /* the posting threads may start something */
	bool may_alloc;        /* the call that is going on may allocate, */
	bool may_cancel;       /* or is one in which the thread may be cancelled */
	unsigned step_one_in;  /* how often the others run while the loop thread computes */
} world_t;
extern world_t world;

void threads_reset(void);
/* A place at which the others may run. */
void sim_point(void);
/* Let another thread run a little: false when none can. */
bool threads_step(void);
/* When the next sleeping job wakes. */
uint64_t threads_due_ns(void);
/* True while the caller is not the loop thread. */
bool on_other_thread(void);
/* The number of the thread: 0 the loop, 1 and 2 the posting threads, 3 and up workers. */
unsigned thread_number(void);
/* Sleep, in a job, until the virtual clock says so or *flag is set. */
void thread_sleep(uint64_t until_ns, const bool *flag);
/* Workers there are, and those of them that wait for a job. */
unsigned threads_n_workers(void), threads_n_free(void);
/* A wake-up that was lost comes after all. */
void threads_find_lost(void);
/* Check that the thread cannot be cancelled here, but in a few calls of the loop thread. */
void thread_cancel_point(const char *function);
/* Has the loop thread the cancel state that it had? */
bool threads_may_cancel(void);
/* Run the others until cond(); the run fails when that cannot come true. */
void threads_until(bool (*cond)(const void *data), const void *data, const char *what);
/* Check that no worker is left. */
void threads_check_end(void);
/* Give back what iou holds, where it may not do that itself. */
void threads_free_all(void);
/* What a posting thread does when told to (callbacks.c); and telling one. */
void poster_act(unsigned number);
bool poster_start(bool forced);
bool posters_idle(void);
/* What a signal handler does that interrupts the loop thread, anywhere in iou (callbacks.c). */
void signal_arrives(void);

/* Decide whether this call fails, at a chance of one in n, while there are faults left. */
bool fault(unsigned n);

/* ---- The fake kernel (kernel.c) ----------------------------------------------------------- */

/* What a program's descriptor does is in its number. */
enum {
	FD_READY = 100, /* completes while it is submitted */
	FD_SOON,        /* completes some time */
	FD_TIME,        /* completes after a time */
	FD_IDLE,        /* completes when fed */
	FD_SHORT,       /* completes with less than asked, and breaks its chain */
	FD_BAD,         /* -EBADF */
	FD_WQ,          /* runs in io-wq until fed; a cancel interrupts it */
	FD_WQ_QUEUED,   /* waits in io-wq's queue until fed; a cancel takes it out */
	FD_WQ_HARD,     /* runs in io-wq for a time; a cancel does not stop it */
	FD_END,
	FD_FAKE = 1000, /* descriptors that the fake kernel gave out */
};

void kernel_reset(void);
/* Let one thing happen in the kernel: false when nothing can. */
bool kernel_step(void);
uint64_t kernel_due_ns(void);
/* Feed one idle op of the program: false when there is none. */
bool kernel_feed(void);
/* What a system call of the loop thread does beside: run its task work. */
void kernel_entered(void);
/* Is the descriptor readable? The loop thread looks, outside iou. */
bool kernel_readable(int fd);
void kernel_close_of_program(int fd);
/* write(2) as a bare system call, by any thread. */
long kernel_write(int fd, const void *data, size_t size);
/* SQEs of iou's own that a restriction refused; has the ring any, and of polls? */
unsigned kernel_n_refused(void);
bool kernel_refuses(void), kernel_refuses_poll(void);
/* Was a ring closed with ops in flight, since nothing was allowed that could end them? */
bool kernel_left_ops(void);
/* The smallest SQ that there was in this run; the SQEs that the last enter was to submit; and all
 * that were taken. */
unsigned kernel_sq_entries_min(void);
unsigned kernel_n_entered(void);
bool kernel_enter_was_short(void);
uint64_t kernel_n_taken(void);
/* Cancels of iou's own. */
uint64_t kernel_n_cancels(void);
/* Times that another thread, or a signal, wrote an eventfd. */
uint64_t kernel_n_wakes(void);
void kernel_check_end(void);
/* Is an op there which was asked to end, can be, and was not? */
bool kernel_forgot_cancel(unsigned op);
bool kernel_holds(unsigned op);
/* Does iou wait for a timeout of its own, before it delivers what ended as that? */
bool kernel_fences(uint64_t user_data);
const char *kernel_where(unsigned op);

/* ---- The model (model.c) --------------------------------------------------------------------- */

/* The kernel's side of it. `op` is the number that the program put in the SQE's last word; 0: iou's
 * own. */
void model_taken(unsigned op, const struct io_uring_sqe *sqe, unsigned previous, bool linked);
void model_chain_cut(unsigned last);
void model_dropped(unsigned op);
bool model_is_broken(void);
/* What the program was given as iou_fd(), or -1. */
int model_bell(void);
void model_supply_is_short(bool is_short);
void model_cancel_seen(uint64_t user_data);
void model_own_in_chain(unsigned previous);
void model_chain_left_open(unsigned previous);
void model_posted(unsigned op, int res, unsigned flags);
void model_cancel_hits(unsigned op, bool by_iou);
bool model_room(unsigned op);
/* The loop thread is about to sleep: with nothing ready, one hopes. */
void model_sleeps(bool for_ever, uint64_t until_ns);
/* Nothing will happen by itself: make something happen, if it is but to let an op or a job end. */
void model_rescue(void);
bool model_help(void);

#endif
