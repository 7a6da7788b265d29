/* SPDX-License-Identifier: MIT */

/*
 * iou: one io_uring ring, pooled operations with closures, a few worker threads, one loop.
 * iou.h is the manual; this comment is the design.
 *
 *   pool --- iou_op_queue --> backlog --> SQ --> kernel --> CQ ---------------+
 *    ^   +-- iou_op_async --> job places --> workers --> done --> ended ------+  round_run():
 *    |   |   cancelled inside iou, or a chain that is too long --> ended -----+  take one item off,
 *    |   +-- iou_op_timer --> timers -----------------------------------------+  call one callback
 *    |   |   iou_post, iou_bh_schedule (any thread) --> mail --> line --------+
 *    +---+----------------- the callback has returned <-----------------------+
 *
 * "The kernel" may also be an engine, which looks like a ring of the kernel's: see the room ring.
 *
 * An op has one state, and is on one list (op->node) at most:
 *
 *   state    list           whose memory     meaning                        next
 *   FREE     free list      iou              nobody has it                  OWNED
 *   OWNED    none           program          taken, not queued              BACKLOG JOB TIMER FREE
 *   BACKLOG  backlog        iou              waits for room in the SQ       RING ENDED
 *   RING     a cancels' (1) iou and kernel   in the SQ or in the kernel     LAST HELD (2)
 *   HELD     a cancels' (1) iou and kernel   ended; a CQE names it still    LAST
 *   JOB      none           iou and worker   waits for a worker, or runs    ENDED
 *   TIMER    none (a heap)  iou              waits for its time             LAST ENDED
 *   ENDED    ended          iou              its result waits for delivery  LAST
 *   LAST     none           program          its last callback runs         FREE BACKLOG JOB TIMER
 *
 *   (1) or none. (2) Rarely BACKLOG, if the kernel interrupted it, or ENDED, if its chain was cut.
 *
 * Counts. Each pending op is counted once: in backlog.n, in ring_in_flight() or in ops.n_elsewhere.
 *
 * Rounds. Each source is a FIFO. A round takes the items that are there when it begins, at most
 * ROUND_MAX of each source. It takes one item off, then calls its callback. So if a callback fails,
 * quits or runs a nested loop, nothing is lost and nothing happens twice.
 *
 * Sleeping. The loop sleeps only in ring_enter(). Before it does, it sets `sleeping` and then looks
 * at all that another thread can change. A waker publishes its item and then looks at `sleeping`.
 * So one of the two sees the other (tests/proof/wake.pml is this protocol as a model).
 *
 * Threads. The loop thread alone uses iou_t. The exceptions are: atomics, the fields that never
 * change after iou_new(), and those that a lock guards, which say so. Locks are never nested, and
 * no user code runs under one.
 *
 * Rooms. A room keeps one type, and only its functions touch the fields of that type
 * (tests/programs/rooms.sh checks it). A room calls only the rooms above it.
 *   Parts, which never look inside iou_t: base, owner, op, timers, workers, ring, inbox, cancels,
 *     backlog, bell, loop
 *   The whole, and the rooms that use more than one part: iou, ops, jobs, cancelling, posts,
 *     submit, wait, embed, rounds, life, inspect
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#define IOU_BACKEND
#include "iou.h"

#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)   ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

/* Newer than liburing 2.3, the oldest that iou.c compiles with. */
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif
#ifndef IORING_FEAT_REG_REG_RING
#define IORING_FEAT_REG_REG_RING (1U << 13)
#endif
#ifndef IORING_REGISTER_USE_REGISTERED_RING
#define IORING_REGISTER_USE_REGISTERED_RING (1U << 31)
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 0x04
#endif
#ifndef SYS_futex /* 32-bit machines without a 32-bit time_t */
#define SYS_futex SYS_futex_time64
#endif
#define REGISTER_CLOCK          29
#define REGISTER_SEND_MSG_RING  31
#define REGISTER_RESIZE_RINGS   33
#define OPCODE_FIXED_FD_INSTALL 54
#define OPCODE_PIPE             62

/*
 * ==== base ======================================================================================
 *
 * Errors, the clock, waiting by futex, lists. Any thread, and no state of its own.
 */

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define COLD        __attribute__((cold, noinline))
#define NOINLINE    __attribute__((noinline))
#define INLINE_ALWAYS inline __attribute__((always_inline))
#define container_of(pointer, type, member) \
	((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#define NEVER      UINT64_MAX
#define NS_PER_SEC UINT64_C(1000000000)
#define NS_PER_MS  UINT64_C(1000000)
#define WAIT_MAX_NS ((uint64_t)INT64_MAX / 4) /* longest wait: the kernel's sums do not overflow */
/* The largest tv_sec of a timespec. */
#define SECONDS_MAX (sizeof(time_t) < 8 ? (uint64_t)INT32_MAX : (uint64_t)INT64_MAX)
#define ROUND_MAX  1024 /* items of each source that a round takes, delivers, expires or cancels */

/*
 * Atomics without order: the caller writes the object itself, holds the lock, needs a hint only, or
 * something else gives the order, which a comment says.
 */
#define RELAXED(object)            atomic_load_explicit(&(object), memory_order_relaxed)
#define RELAXED_SET(object, value) atomic_store_explicit(&(object), value, memory_order_relaxed)

__attribute__((noreturn)) static COLD void die_of_misuse(const char *function, const char *rule)
{
	char line[256];
	int n = snprintf(line, sizeof(line), "iou: %s: %s\n", function, rule);
	ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);

	(void)ignored;
	abort();
}

#define MUST(condition, rule) \
	do { \
		if (unlikely(!(condition))) \
			die_of_misuse(__func__, rule); \
	} while (0)

/* How calls that return a pointer fail. */
static COLD void *null_with_errno(int error)
{
	errno = error;
	return NULL;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static uint64_t add_ns(uint64_t a, uint64_t b) { return a + b < a ? NEVER : a + b; }
static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/*
 * The next three are system calls, not libc's functions, since those are cancellation points
 * (pthreads(7)) and no call of iou may be one.
 */
static void event_signal(int fd)
{
	const uint64_t one = 1;

	syscall(SYS_write, fd, &one, sizeof(one));
}

/* Sleep while *word has this value. May return early. */
static void futex_wait(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL);
}

/* Wake n threads. The word may be gone: the kernel only uses its address to find those threads. */
static void futex_wake(atomic_uint *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n);
}

/* Switch pthread cancellation off, around calls of libc that are cancellation points. */
static int thread_cancel_off(void)
{
	int state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	return state;
}

static void thread_cancel_restore(int state) { pthread_setcancelstate(state, NULL); }

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/*
 * The head of a circular list, or a node on one. A stack uses `next` alone. Nodes lie in unions:
 * without may_alias gcc 12 breaks the list functions at -O2.
 */
typedef struct node_t {
	struct node_t *next, *prev;
} __attribute__((may_alias)) node_t;

static void list_init(node_t *list) { list->next = list->prev = list; }
static bool list_empty(const node_t *list) { return list->next == list; }

static void list_append(node_t *list, node_t *node)
{
	node_t *last = list->prev; /* read once: see may_alias */

	node->prev = last;
	node->next = list;
	last->next = node;
	list->prev = node;
}

static void list_unlink(node_t *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
}

static uint64_t list_length(const node_t *list)
{
	uint64_t n = 0;

	for (const node_t *node = list->next; node != list; node = node->next)
		n++;
	return n;
}

/* Move all nodes of `from` to the end of `list`. */
static void list_splice(node_t *list, node_t *from)
{
	if (list_empty(from))
		return;
	from->next->prev = list->prev;
	from->prev->next = list;
	list->prev->next = from->next;
	list->prev = from->prev;
	list_init(from);
}

/*
 * ==== owner =====================================================================================
 *
 * Which thread may use an iou, and in which process.
 *
 * A thread has a number, given when it first asks. A process has one too: it stands in a page
 * that fork() wipes, so that a child does not have its parent's number. The owner's key is the
 * sum of both, so one comparison tells another thread and a forked child. The owner is the thread
 * that first flushes, runs or polls. An iou whose program chose no SINGLE_ISSUER is "handed": it
 * passes from thread to thread and has no owner.
 *
 * depth and runner tell whether a loop is active, for iou_bh_cancel() and iou_free(). Visitors are
 * threads inside iou_quit() or iou_unhold(), for which iou_free() waits. Any thread reads; only the
 * loop thread writes, but for n_visitors.
 */

#define NOBODY UINT64_MAX
#define FREE_WAITS (1U << 31)

typedef struct owner_t {
	_Atomic(uint64_t) key; /* of the loop thread: thread_key(); or NOBODY */
	uint64_t process;      /* that made the iou; never changes */
	uint64_t maker;        /* the number of the thread that made it; never changes */
	bool handed;           /* never changes */
	bool bound;            /* the ring is enabled, and the owner is known unless handed */
	atomic_uint depth;     /* active iou_run(), iou_poll() and iou_flush() calls; the loop's */
	_Atomic(uint64_t) runner; /* if handed: the number of the thread in these calls, or 0 */
	/* Threads inside iou_quit() or iou_unhold(), + FREE_WAITS. */
	_Alignas(64) atomic_uint n_visitors;
} owner_t;

static _Thread_local uint64_t this_thread; /* its number << 32; 0: none yet */
static atomic_ullong n_threads_numbered;
static _Atomic(uint64_t) *_Atomic process_page; /* NULL until it could be mapped */
static atomic_ullong n_processes;

/* False: no memory. Tried again by the next iou_new(). */
static bool process_init(void)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	_Atomic(uint64_t) *none = NULL;
	void *page;

	if (atomic_load(&process_page))
		return true;
	page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return false;
	if (madvise(page, size, MADV_WIPEONFORK) < 0 ||
	    !atomic_compare_exchange_strong(&process_page, &none, page))
		munmap(page, size); /* another thread may have been first */
	return atomic_load(&process_page);
}

/* This process's number; 0 in a forked child that has made no iou. An iou was made before. */
static uint64_t process_number(void)
{
	return atomic_load_explicit(atomic_load_explicit(&process_page, memory_order_relaxed),
				    memory_order_relaxed);
}

/* This process's number, which it gets here if it has none. */
static uint64_t process_enrol(void)
{
	_Atomic(uint64_t) *number = atomic_load(&process_page);
	uint64_t none = 0;

	if (!atomic_load(number))
		atomic_compare_exchange_strong(number, &none,
					       atomic_fetch_add(&n_processes, 1) + 1);
	return atomic_load(number);
}

static uint64_t thread_number(void)
{
	if (unlikely(!this_thread))
		this_thread = (atomic_fetch_add(&n_threads_numbered, 1) + 1) << 32;
	return this_thread;
}

/* Of this thread in this process. */
static uint64_t thread_key(void) { return thread_number() + process_number(); }

static void owner_init(owner_t *owner, bool handed)
{
	owner->process = process_enrol();
	owner->maker = thread_number();
	owner->handed = handed;
	atomic_init(&owner->key, NOBODY);
}

/* True in the process that made the iou. */
static bool owner_is_here(const owner_t *owner)
{
	return likely(process_number() == owner->process);
}

static bool owner_exists(const owner_t *owner) { return atomic_load(&owner->key) != NOBODY; }

static inline bool owner_is_this(const owner_t *owner)
{
	return likely(this_thread + process_number() ==
		      RELAXED(owner->key));
}

/* True on a thread that may use the iou. */
static inline bool owner_allows(const owner_t *owner)
{
	return owner_is_this(owner) ||
	       (RELAXED(owner->key) == NOBODY &&
		owner_is_here(owner));
}

/* True on the loop thread. If the iou is handed: on the thread that is inside its loop. */
static bool owner_is_looping(const owner_t *owner)
{
	return owner_is_this(owner) ||
	       (this_thread && owner_is_here(owner) &&
		RELAXED(owner->runner) == this_thread);
}

/* True in a forked child if the loop thread called fork(): then the memory is consistent. */
static bool owner_forked(const owner_t *owner)
{
	uint64_t key = atomic_load(&owner->key);

	if (key == NOBODY)
		return thread_number() == owner->maker && !(owner->handed && owner->bound);
	return thread_number() == (key & ~(uint64_t)UINT32_MAX);
}

static void owner_bind(owner_t *owner)
{
	owner->bound = true;
	if (!owner->handed)
		atomic_store(&owner->key, thread_key());
}

static bool owner_is_bound(const owner_t *owner) { return owner->bound; }
static bool owner_is_handed(const owner_t *owner) { return unlikely(owner->handed); }

/* How many loops of the iou are active, one within a callback of the other. */
static unsigned owner_depth(const owner_t *owner) { return owner->depth; }

/* True if depth changes under inbox.lock: no thread owns the iou. See iou_bh_cancel(). */
static bool owner_enters_locked(const owner_t *owner)
{
	return unlikely(owner->handed) && !owner->depth;
}

static void owner_enter(owner_t *owner)
{
	RELAXED_SET(owner->depth, owner->depth + 1);
	if (unlikely(owner->handed))
		RELAXED_SET(owner->runner, thread_number());
}

/* Pairs with iou_free() on another thread. */
static void owner_leave(owner_t *owner)
{
	if (unlikely(owner->handed) && owner->depth == 1)
		RELAXED_SET(owner->runner, 0);
	atomic_store_explicit(&owner->depth, owner->depth - 1, memory_order_release);
}

/* Another thread is in the middle of a call that may be the last before iou_free(). */
static void visitor_enter(owner_t *owner) { atomic_fetch_add(&owner->n_visitors, 1); }

/* The last time that this call touches the iou. */
static void visitor_leave(owner_t *owner)
{
	int saved = errno;

	if (atomic_fetch_sub(&owner->n_visitors, 1) == (FREE_WAITS | 1))
		futex_wake(&owner->n_visitors, 1);
	errno = saved;
}

static void visitors_wait(owner_t *owner)
{
	unsigned n = atomic_fetch_or(&owner->n_visitors, FREE_WAITS) | FREE_WAITS;

	for (; n != FREE_WAITS; n = atomic_load(&owner->n_visitors))
		futex_wait(&owner->n_visitors, n);
}

/*
 * ==== op ========================================================================================
 *
 * The record that the rooms pass to each other, and the pool that it comes from. The essay has its
 * states. Any room may read an op. These rooms write it:
 *
 *   pub.sqe, iou, index          this room, once
 *   pub.result, pub.flags        loop, before the callback
 *   cb, cb_data, state, bits     the room that the op is with, through op_accept() and the like
 *   cancel stage (in bits)       cancels, through cancel_set(); reset here when the op ends
 *   node                         the room whose list the op is on
 *   after_ns, timer, heap_index  timers
 *   job                          workers
 *   end                          this room, while the op is ENDED
 *   sqe                          the program; zeroed here
 *
 * A job and a timer keep their fields in the place of the node. So most ops come and go by the two
 * cache lines of op_t. Cache misses and stores cost more here than
 * instructions.
 *
 * An op carries its own SQE, which is copied into the SQ once there is room. So for the program
 * the SQ is never full, an op may be prepared early or given up, and a chain enters whole.
 */

#define LINKS     (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)
#define OURS      (IOSQE_IO_DRAIN | IOSQE_CQE_SKIP_SUCCESS) /* iou does these itself */
#define CHUNK_OPS 256
#define ENV_HEAD  16 /* bytes before an allocated environment; the last ones are its op's address */

enum op_state { OP_FREE, OP_LAST, OP_OWNED, OP_BACKLOG, OP_RING, OP_HELD, OP_JOB, OP_TIMER,
		OP_ENDED };

enum op_bits {
	OP_DEADLINE = 1,  /* iou_op_deadline() was called; after_ns has it until the op is queued */
	OP_EXPIRED = 2,   /* its deadline cancelled it */
	OP_CHAIN_END = 4, /* the chain ends here, whatever its link flag says */
	OP_CHAINED = 8,   /* in the ring, linked to another op: extra_t.chain */
	OP_CALLED = 16,   /* a callback of it runs; the outermost call gives the op back */
	OP_CANCEL = 224,  /* enum cancel_stage: three bits */
};

/* How far a cancel of an op has come: see the room cancels. */
enum cancel_stage {
	CANCEL_NONE = 0,
	CANCEL_BEHIND = 32,    /* wanted; another op of its chain comes before it */
	CANCEL_TO_SEND = 64,   /* on cancels.to_send */
	CANCEL_SENT = 96,      /* the CANCEL is in the SQ or kernel: the op's memory is needed */
	CANCEL_FOUND = 128,    /* the kernel found the op, whose CQE follows */
	CANCEL_RETRY = 160,    /* it did not: on to_retry, or on to_send again */
	CANCEL_OF_TIMER = 192, /* it was a timer: it is ENDED, and its callback not yet called */
};

enum op_env { ENV_NONE, ENV_SMALL, ENV_ALLOCATED };

/* [open] See above. Two cache lines, all that most ops need; the rest is in an extra_t. */
typedef struct op_t {
	_Alignas(64) iou_op_t pub;
	iou_t *iou;
	int (*cb)(void *cb_data);
	void *cb_data;
	union { /* by its state */
		node_t node;
		uint64_t after_ns; /* with OP_DEADLINE, until it is queued: queueing to deadline */
		struct {
			uint64_t seq; /* the order in which timers were started */
			uint64_t period_ns; /* 0: once */
		} timer;
		struct {
			int (*work)(void *work_data);
			uint64_t number; /* of its place: see workers */
		} job;
		struct {
			struct op_t *next;
			int result; /* not in pub: an outer callback may read its own there */
		} end;
	};
	uint8_t state;       /* enum op_state */
	uint8_t bits;        /* enum op_bits, and the cancel stage; 0 in most ops */
	uint8_t env;         /* enum op_env; a byte of its own, since a worker may write it */
	uint8_t index;       /* in its chunk */
	uint32_t heap_index; /* 0: in no heap */
	_Alignas(64) struct io_uring_sqe sqe;
} op_t;

/* [open] As op_t: cancels writes `chain`. */
typedef struct extra_t {
	union {
		struct {
			op_t *prev, *next; /* NULL if there is none, or it has ended */
		} chain; /* with OP_CHAINED */
		struct {
			int result;
			unsigned flags;
		} held; /* of an op that is HELD: its result */
	};
	bool needs_fence; /* of an op that is HELD: see cancel_fence() */
	op_t *op;     /* right before small_env: env_op() */
	_Alignas(16) char small_env[64]; /* the environment, or the pointer to an allocated one */
} extra_t;

/* Ops are never moved. iou_free() frees them. */
typedef struct chunk_t {
	struct chunk_t *next;
	size_t n_used;
	op_t ops[CHUNK_OPS];
	extra_t extras[CHUNK_OPS];
} chunk_t;

typedef struct ops_t {
	chunk_t *chunks;
	node_t *free;          /* a stack */
	size_t n_ops;          /* in all chunks */
	op_t *ended, **ended_end; /* a queue */
	uint64_t n_elsewhere;  /* ops that are HELD, JOB, TIMER or ENDED */
	uint64_t n_ended_in;   /* that ever entered `ended` */
	uint64_t n_ended_out;  /* that ever left it */
	uint64_t n_jobs;       /* that ever ended, cancelled ones too */
} ops_t;

_Static_assert(sizeof(op_t) == 128, "two cache lines");
_Static_assert(sizeof(op_t) + sizeof(extra_t) <= 224,
	       "an op, its environment and its heap entry are 240 bytes at most");
_Static_assert(offsetof(extra_t, small_env) == offsetof(extra_t, op) + sizeof(op_t *), "env_op()");
_Static_assert(CHUNK_OPS - 1 <= UINT8_MAX, "an op's index in its chunk");

#define FOR_EACH_OP(list, chunk, op) \
	for (chunk_t *chunk = (list)->chunks; chunk; chunk = chunk->next) \
		for (op_t *op = chunk->ops; op < chunk->ops + chunk->n_used; op++)

static op_t *op_at(node_t *node) { return container_of(node, op_t, node); }

static extra_t *op_extra(const op_t *op)
{
	const chunk_t *chunk = container_of(op - op->index, chunk_t, ops);

	return (extra_t *)&chunk->extras[op->index];
}

/*
 * The SQE as in a new op. The last callback of a ring op finds it so, since prepare helpers do not
 * clear all fields (liburing 2.7 and later).
 */
static inline void op_clear_sqe(op_t *op) { memset(&op->sqe, 0, sizeof(op->sqe)); }

static void ops_init(ops_t *ops) { ops->ended_end = &ops->ended; }

/* True if the pool has no op and no room for one: ops_grow() is due. */
static bool ops_full(const ops_t *ops)
{
	return !ops->free && (!ops->chunks || ops->chunks->n_used == CHUNK_OPS);
}

/* How many ops there will be after ops_grow(). */
static size_t ops_next_size(const ops_t *ops) { return ops->n_ops + CHUNK_OPS; }

static bool ops_grow(ops_t *ops)
{
	chunk_t *chunk = aligned_alloc(64, sizeof(*chunk));

	if (!chunk)
		return false;
	memset(chunk, 0, offsetof(chunk_t, ops)); /* the padding too: env_op() may look there */
	chunk->next = ops->chunks;
	ops->chunks = chunk;
	ops->n_ops += CHUNK_OPS;
	return true;
}

/* An op that was never used. */
static NOINLINE op_t *ops_make(ops_t *ops, iou_t *iou)
{
	chunk_t *chunk = ops->chunks;
	op_t *op = &chunk->ops[chunk->n_used];

	memcpy(&op->pub, &(iou_op_t){.sqe = &op->sqe}, sizeof(op->pub)); /* sqe is const */
	op->iou = iou;
	op->bits = 0;
	op->env = ENV_NONE;
	op->index = (uint8_t)chunk->n_used++;
	op->heap_index = 0;
	op_extra(op)->op = op;
	return op;
}

/* The pool is not full. */
static op_t *ops_take(ops_t *ops, iou_t *iou)
{
	op_t *op;

	if (likely(ops->free)) {
		op = op_at(ops->free);
		ops->free = op->node.next;
		ASAN_UNPOISON_MEMORY_REGION(&op->pub, sizeof(op->pub));
		ASAN_UNPOISON_MEMORY_REGION(&op->sqe, sizeof(op->sqe));
		ASAN_UNPOISON_MEMORY_REGION(op_extra(op)->small_env,
					    sizeof(op_extra(op)->small_env));
	} else {
		op = ops_make(ops, iou);
	}
	op->pub.result = 0;
	op->pub.flags = 0;
	op->state = OP_OWNED;
	op_clear_sqe(op);
	return op;
}

static void env_free(op_t *op)
{
	if (op->env == ENV_ALLOCATED)
		free(*(char **)op_extra(op)->small_env - ENV_HEAD);
	op->env = ENV_NONE;
}

static void ops_give_back(ops_t *ops, op_t *op)
{
	if (op->env)
		env_free(op);
	op->state = OP_FREE;
	op->bits = 0;
	op->node.next = ops->free;
	ops->free = &op->node;
	ASAN_POISON_MEMORY_REGION(&op->pub, sizeof(op->pub));
	ASAN_POISON_MEMORY_REGION(&op->sqe, sizeof(op->sqe));
	ASAN_POISON_MEMORY_REGION(op_extra(op)->small_env, sizeof(op_extra(op)->small_env));
}

static void ops_free(ops_t *ops)
{
	chunk_t *chunk;

	FOR_EACH_OP(ops, each, op)
		env_free(op);
	while ((chunk = ops->chunks)) {
		ops->chunks = chunk->next;
		free(chunk);
	}
}

static enum cancel_stage cancel_of(const op_t *op) { return op->bits & OP_CANCEL; }

static void cancel_set(op_t *op, enum cancel_stage stage)
{
	op->bits = (uint8_t)((op->bits & ~OP_CANCEL) | stage);
}

/* True if the op is the program's to queue or to give back. */
static bool op_is_programs(const op_t *op) { return op->state == OP_OWNED || op->state == OP_LAST; }

static bool op_is_linked(const op_t *op)
{
	return (op->sqe.flags & LINKS) && !(op->bits & OP_CHAIN_END);
}

/* From the program to iou. */
static void op_accept(op_t *op, enum op_state state, int (*cb)(void *), void *cb_data)
{
	op->cb = cb;
	op->cb_data = cb_data;
	op->state = (uint8_t)state;
}

/* An op that is counted in n_elsewhere ends without a CQE: `ended` delivers it. */
static void ops_end(ops_t *ops, op_t *op, int result)
{
	if (result == -ECANCELED && op->bits & OP_EXPIRED)
		result = -ETIME;
	ops->n_jobs += op->state == OP_JOB;
	cancel_set(op, CANCEL_NONE);
	op->state = OP_ENDED;
	op->end.next = NULL;
	op->end.result = result;
	*ops->ended_end = op;
	ops->ended_end = &op->end.next;
	ops->n_ended_in++;
}

/* As ops_end(), for an op of the backlog or the SQ that is not counted there any more. */
static void ops_end_unsent(ops_t *ops, op_t *op, int result)
{
	ops->n_elsewhere++;
	op_clear_sqe(op);
	ops_end(ops, op, result);
}

/* The op has ended, but a CQE that names it is to come: its memory must not be another op's yet. */
static void ops_hold(ops_t *ops, op_t *op, int result, unsigned flags, bool needs_fence)
{
	op->state = OP_HELD;
	ops->n_elsewhere++;
	op_extra(op)->held.result = result;
	op_extra(op)->held.flags = flags;
	op_extra(op)->needs_fence = needs_fence;
}

/* Stop counting a pending op: its last callback follows. */
static inline void ops_count_last(ops_t *ops, const op_t *op)
{
	ops->n_elsewhere -= op->state != OP_RING;
}

static bool ops_ended_ready(const ops_t *ops) { return ops->ended; }

/* The value of n_ended_out once the ops that are ENDED now, `most` at most, are delivered. */
static uint64_t ops_ended_bound(const ops_t *ops, uint64_t most)
{
	return min_u64(ops->n_ended_in, ops->n_ended_out + most);
}

/* Take off the one that ended first. NULL: `bound` ops were delivered. */
static op_t *ops_ended_next(ops_t *ops, uint64_t bound)
{
	op_t *op = ops->ended;

	if (ops->n_ended_out >= bound)
		return NULL;
	ops->ended = op->end.next;
	if (!ops->ended)
		ops->ended_end = &ops->ended;
	ops->n_ended_out++;
	return op;
}

/* An op was accepted as a job or a timer. */
static void ops_count_elsewhere(ops_t *ops) { ops->n_elsewhere++; }

static uint64_t ops_elsewhere(const ops_t *ops) { return ops->n_elsewhere; }
static void ops_stats(const ops_t *ops, iou_stats_t *stats) { stats->jobs = ops->n_jobs; }

#ifdef IOU_DEBUG
/* Counts the ops of each state, and those in a heap. */
static void ops_check(const ops_t *ops, uint64_t n[OP_ENDED + 1], uint64_t *n_in_heaps)
{
	uint64_t n_ended = 0;

	FOR_EACH_OP(ops, chunk, op) {
		n[op->state]++;
		*n_in_heaps += op->heap_index > 0;
		MUST(op->state != OP_TIMER || op->heap_index, "a timer");
	}
	for (op_t *op = ops->ended; op; op = op->end.next, n_ended++)
		MUST(op->state == OP_ENDED && (!cancel_of(op) || cancel_of(op) == CANCEL_OF_TIMER),
		     "an op that ended");
	MUST(n[OP_ENDED] == n_ended && n_ended == ops->n_ended_in - ops->n_ended_out,
	     "their count");
	MUST(ops->n_elsewhere == n[OP_HELD] + n[OP_JOB] + n[OP_TIMER] + n[OP_ENDED],
	     "ops elsewhere");
}
#endif

static void *env_make(op_t *op, size_t size)
{
	char *block;

	if (size <= sizeof(op_extra(op)->small_env)) {
		op->env = ENV_SMALL;
		return memset(op_extra(op)->small_env, 0, sizeof(op_extra(op)->small_env));
	}
	block = size <= PTRDIFF_MAX - ENV_HEAD ? calloc(1, size + ENV_HEAD) : NULL;
	if (!block)
		return NULL;
	block += ENV_HEAD;
	((op_t **)(void *)block)[-1] = op;
	op->env = ENV_ALLOCATED;
	*(char **)op_extra(op)->small_env = block;
	return block;
}

/* The op of an environment; NULL if env is not one. Reads only the word before env and the op. */
static op_t *env_op(const void *env)
{
	op_t *op = ((op_t *const *)env)[-1];

	return op && (uintptr_t)op % _Alignof(op_t) == 0 &&
	       (op->env == ENV_SMALL ? env == op_extra(op)->small_env :
		op->env == ENV_ALLOCATED && env == *(char **)op_extra(op)->small_env) ? op : NULL;
}

static NOINLINE bool sqe_is_zero(op_t *op)
{
	static const struct io_uring_sqe zero;

	op->sqe.user_data = 0; /* iou's */
	return memcmp(&op->sqe, &zero, sizeof(zero)) == 0;
}

/*
 * False: nothing was prepared since the op was new, or since its last callback began. (volatile: a
 * load that is wider than the program's last store would have to wait for that store.)
 */
static inline bool sqe_is_prepared(op_t *op)
{
	const volatile struct io_uring_sqe *sqe = &op->sqe;

	return likely(sqe->opcode || sqe->fd) || !sqe_is_zero(op);
}

static bool op_is_zero_copy(const op_t *op)
{
	return op->sqe.opcode == IORING_OP_SEND_ZC || op->sqe.opcode == IORING_OP_SENDMSG_ZC;
}

/* With many ops in flight, most of an op's cost is waiting for its memory. Takes any address. */
static inline void op_prefetch(uint64_t address)
{
	__builtin_prefetch((const void *)(uintptr_t)address);
	__builtin_prefetch((const void *)(uintptr_t)(address + 64));
}

/* "READ fd 3". Opcodes newer than liburing 2.3 are numbers: its headers do not have their names. */
static const char *op_describe(const op_t *op, char *text, size_t size)
{
#define NAME(opcode) [IORING_OP_##opcode] = #opcode
	static const char *const names[] = {
		NAME(NOP), NAME(READV), NAME(WRITEV), NAME(FSYNC), NAME(READ_FIXED),
		NAME(WRITE_FIXED), NAME(POLL_ADD), NAME(POLL_REMOVE), NAME(SYNC_FILE_RANGE),
		NAME(SENDMSG), NAME(RECVMSG), NAME(TIMEOUT), NAME(TIMEOUT_REMOVE), NAME(ACCEPT),
		NAME(ASYNC_CANCEL), NAME(LINK_TIMEOUT), NAME(CONNECT), NAME(FALLOCATE),
		NAME(OPENAT), NAME(CLOSE), NAME(FILES_UPDATE), NAME(STATX), NAME(READ), NAME(WRITE),
		NAME(FADVISE), NAME(MADVISE), NAME(SEND), NAME(RECV), NAME(OPENAT2),
		NAME(EPOLL_CTL), NAME(SPLICE), NAME(PROVIDE_BUFFERS), NAME(REMOVE_BUFFERS),
		NAME(TEE), NAME(SHUTDOWN), NAME(RENAMEAT), NAME(UNLINKAT), NAME(MKDIRAT),
		NAME(SYMLINKAT), NAME(LINKAT), NAME(MSG_RING), NAME(FSETXATTR), NAME(SETXATTR),
		NAME(FGETXATTR), NAME(GETXATTR), NAME(SOCKET), NAME(URING_CMD), NAME(SEND_ZC),
		NAME(SENDMSG_ZC),
	};
#undef NAME
	unsigned opcode = op->sqe.opcode;

	if (opcode < sizeof(names) / sizeof(*names))
		snprintf(text, size, "%s fd %d", names[opcode], op->sqe.fd);
	else
		snprintf(text, size, "opcode %u fd %d", opcode, op->sqe.fd);
	return text;
}

/* Misuse of an op. The message adds its kind and its callback. */
__attribute__((noreturn)) static COLD void die_of_op(const char *function, const op_t *op,
						     const char *rule)
{
	char text[200], name[64] = "";

	if (op->state == OP_JOB || op->state == OP_TIMER)
		snprintf(name, sizeof(name), "%s", op->state == OP_JOB ? "job" : "timer");
	else if (op->state != OP_ENDED && op->state != OP_FREE)
		op_describe(op, name, sizeof(name));
	snprintf(text, sizeof(text), "%s (%s%scallback %p)", rule, name, *name ? ", " : "",
		 (void *)(uintptr_t)op->cb);
	die_of_misuse(function, text);
}

/* It is pending, or was given back. */
__attribute__((noreturn)) static COLD void die_of_state(const char *function, const op_t *op)
{
	if (op->state != OP_FREE)
		die_of_op(function, op, strcmp(function, "iou_op_free") ?
			  "op is queued already" : "op is still queued: cancel it first");
	if (op->cb)
		die_of_op(function, op,
			  "op was given back, since its last callback did not queue it again");
	die_of_misuse(function, "op was given back by iou_op_free");
}

#define MUST_OP(owner, op) \
	do { \
		MUST(op, "op is NULL"); \
		MUST((op)->iou == (owner), "op of another iou"); \
	} while (0)

/* The op is the program's to queue or to give back, or the condition holds. */
#define MUST_HAVE_OP(owner, op, condition) \
	do { \
		MUST_OP(owner, op); \
		if (unlikely(!op_is_programs(op)) && !(condition)) \
			die_of_state(__func__, op); \
	} while (0)

/*
 * ==== timers ====================================================================================
 *
 * Two heaps of due times: one of timers, one of the deadlines of ring ops and jobs, apart so that
 * no timer waits for deadlines. Loop thread only.
 *
 * Each is a 4-ary heap that keeps four siblings in one cache line: the root is entry 3, and the
 * children of entry i begin at 4(i - 2). There is room for each op, so starting needs no memory.
 */

#define HEAP_ROOT 3

typedef struct heap_entry_t {
	_Alignas(16) uint64_t due_ns; /* on 32 bits too, four entries are a cache line */
	op_t *op;
} heap_entry_t;

typedef struct heap_t {
	heap_entry_t *entries;
	size_t end;  /* behind the last entry */
	size_t size; /* of the array */
} heap_t;

typedef struct timers_t {
	heap_t timers, deadlines;
	uint64_t n_started; /* timers, ever: the next one's seq */
	uint64_t n_expired; /* timers, ever */
} timers_t;

static bool heap_reserve(heap_t *heap, size_t n_ops)
{
	size_t size = heap->size ? heap->size : 512;
	heap_entry_t *entries, *old = heap->entries;

	if (n_ops + HEAP_ROOT <= heap->size)
		return true;
	while (size < n_ops + HEAP_ROOT)
		size *= 2;
	entries = aligned_alloc(64, size * sizeof(*entries));
	if (!entries)
		return false;
	if (heap->end > HEAP_ROOT)
		memcpy(entries + HEAP_ROOT, old + HEAP_ROOT,
		       (heap->end - HEAP_ROOT) * sizeof(*entries));
	heap->entries = entries;
	heap->size = size;
	free(old);
	return true;
}

static op_t *heap_first(const heap_t *heap) { return heap->entries[HEAP_ROOT].op; }

static uint64_t heap_due_ns(const heap_t *heap)
{
	return heap->end == HEAP_ROOT ? NEVER : heap->entries[HEAP_ROOT].due_ns;
}

/* Timers that are due at the same time fire in the order in which they were started. */
static uint64_t heap_seq(const op_t *op) { return op->state == OP_TIMER ? op->timer.seq : 0; }

static bool heap_before(const heap_entry_t *a, const heap_entry_t *b)
{
	return a->due_ns < b->due_ns ||
	       (unlikely(a->due_ns == b->due_ns) && heap_seq(a->op) < heap_seq(b->op));
}

static void heap_put(heap_t *heap, size_t i, heap_entry_t entry)
{
	heap->entries[i] = entry;
	entry.op->heap_index = (uint32_t)i;
}

/* Find the entry's place from i towards the root; larger entries move down. Returns the place. */
static size_t heap_rise(heap_t *heap, size_t i, heap_entry_t entry)
{
	while (i > HEAP_ROOT) {
		size_t parent = i / 4 + 2;

		if (!heap_before(&entry, &heap->entries[parent]))
			break;
		heap_put(heap, i, heap->entries[parent]);
		i = parent;
	}
	return i;
}

/* As heap_rise(), towards the leaves; smaller entries move up. */
static size_t heap_sink(heap_t *heap, size_t i, heap_entry_t entry)
{
	for (;;) {
		size_t child = 4 * (i - 2), end = child + 4 < heap->end ? child + 4 : heap->end;
		size_t least = child;

		if (child >= heap->end)
			return i;
		while (++child < end)
			if (heap_before(&heap->entries[child], &heap->entries[least]))
				least = child;
		if (!heap_before(&heap->entries[least], &entry))
			return i;
		heap_put(heap, i, heap->entries[least]);
		i = least;
	}
}

/* Put the op at its place for that due time, wherever it was before. */
static void heap_set(heap_t *heap, op_t *op, uint64_t due_ns)
{
	heap_entry_t entry = {due_ns, op};
	size_t i = op->heap_index ? op->heap_index : heap->end++;

	heap_put(heap, heap_sink(heap, heap_rise(heap, i, entry), entry), entry);
}

static void heap_remove(heap_t *heap, op_t *op)
{
	heap_entry_t last = heap->entries[--heap->end];

	if (last.op != op)
		heap_put(heap, heap_sink(heap, heap_rise(heap, op->heap_index, last), last), last);
	op->heap_index = 0;
}

static NOINLINE void heap_start(heap_t *heap, op_t *op, uint64_t after_ns)
{
	heap_set(heap, op, add_ns(now_ns(), after_ns));
}

static void timers_init(timers_t *timers)
{
	timers->timers.end = timers->deadlines.end = HEAP_ROOT;
}

static void timers_free(timers_t *timers)
{
	free(timers->timers.entries);
	free(timers->deadlines.entries);
}

static bool timers_reserve(timers_t *timers, size_t n_ops)
{
	return heap_reserve(&timers->timers, n_ops) && heap_reserve(&timers->deadlines, n_ops);
}

/* True if there is any timer or deadline. Both ends are 3 or more: their OR is 3 if both are. */
static bool timers_any(const timers_t *timers)
{
	return unlikely((timers->timers.end | timers->deadlines.end) != HEAP_ROOT);
}

/* When the first of them is due; NEVER if there is none. */
static uint64_t timers_due_ns(const timers_t *timers)
{
	return min_u64(heap_due_ns(&timers->timers), heap_due_ns(&timers->deadlines));
}

/* Start a timer, or start it anew. */
static void timer_start(timers_t *timers, op_t *op, uint64_t after_ns, uint64_t period_ns)
{
	op->timer.seq = timers->n_started++;
	op->timer.period_ns = period_ns;
	heap_start(&timers->timers, op, after_ns);
}

static void timer_stop(timers_t *timers, op_t *op) { heap_remove(&timers->timers, op); }

/* The seq of the next timer that is started: those with a smaller one were there before. */
static uint64_t timers_next_seq(const timers_t *timers) { return timers->n_started; }

/* Move the first timer to its next due time, or take it off. Returns its expirations since then. */
static int timer_expire(timers_t *timers, op_t *op, uint64_t due_ns, uint64_t at_ns)
{
	uint64_t period_ns = op->timer.period_ns, n;

	timers->n_expired++;
	if (!period_ns) {
		heap_remove(&timers->timers, op);
		return 1;
	}
	n = (at_ns - due_ns) / period_ns; /* missed, beside this one */
	heap_set(&timers->timers, op, add_ns(due_ns + n * period_ns, period_ns));
	return n < INT_MAX ? (int)n + 1 : INT_MAX;
}

/*
 * Take the first timer that is due at at_ns and whose seq is below before_seq, or NULL. *n is how
 * often it expired. If it is periodic, it still has a heap_index.
 */
static op_t *timers_next(timers_t *timers, uint64_t at_ns, uint64_t before_seq, int *n)
{
	uint64_t due_ns = heap_due_ns(&timers->timers);
	op_t *op;

	if (due_ns > at_ns)
		return NULL;
	op = heap_first(&timers->timers);
	if (op->timer.seq >= before_seq)
		return NULL;
	*n = timer_expire(timers, op, due_ns, at_ns);
	return op;
}

static void deadline_set(op_t *op, uint64_t after_ns)
{
	op->bits |= OP_DEADLINE;
	op->after_ns = after_ns;
}

/* The op is queued now. */
static void deadline_start(timers_t *timers, op_t *op, uint64_t after_ns)
{
	heap_start(&timers->deadlines, op, after_ns);
}

/* The op has ended. */
static void deadline_stop(timers_t *timers, op_t *op)
{
	if (op->heap_index)
		heap_remove(&timers->deadlines, op);
}

/* Take off the next op whose deadline has passed; NULL if there is none. */
static op_t *deadlines_next(timers_t *timers, uint64_t at_ns)
{
	op_t *op;

	if (heap_due_ns(&timers->deadlines) > at_ns)
		return NULL;
	op = heap_first(&timers->deadlines);
	heap_remove(&timers->deadlines, op);
	return op;
}

/* When that op is due; NEVER if it has neither timer nor deadline, or is never due. */
static uint64_t op_due_ns(const timers_t *timers, const op_t *op)
{
	const heap_t *heap = op->state == OP_TIMER ? &timers->timers : &timers->deadlines;

	return op->heap_index ? heap->entries[op->heap_index].due_ns : NEVER;
}

static void timers_stats(const timers_t *timers, iou_stats_t *stats)
{
	stats->timers = timers->n_expired;
}

#ifdef IOU_DEBUG
/* Every entry is in its place, and due no sooner than the one above it. Returns how many. */
static uint64_t heap_check(const heap_t *heap, bool of_timers)
{
	for (size_t i = HEAP_ROOT; i < heap->end; i++) {
		const op_t *op = heap->entries[i].op;

		MUST(op->heap_index == i && (op->state == OP_TIMER) == of_timers, "a heap");
		MUST(i == HEAP_ROOT || !heap_before(&heap->entries[i], &heap->entries[i / 4 + 2]),
		     "a heap's order");
	}
	return heap->end - HEAP_ROOT;
}

static uint64_t timers_check(const timers_t *timers)
{
	return heap_check(&timers->timers, true) + heap_check(&timers->deadlines, false);
}
#endif

/*
 * ==== workers ===================================================================================
 *
 * The worker pool. It knows nothing of the ring: it takes jobs, and gives back their results.
 *
 * Two circular arrays of `size` places, whose numbers only grow:
 *
 *   jobs[n_taken .. n_queued)     wait for a worker
 *   done[n_collected .. n_done)   wait for the loop
 *
 * Without the lock, the loop writes places from n_queued up to `limit` and reads those of `done`.
 * Workers read and write both arrays under the lock.
 *
 * Sleep. An idle worker counts itself in n_idle, looks for a job once more, and sleeps on n_calls.
 * A thread that queues a job, or leaves one, then reads n_idle. If need be it changes n_calls and
 * wakes one worker. One woken worker at a time is under way (`calling`); it wakes the next if jobs
 * remain. If a worker does not arrive, the first job of the next round wakes one again.
 */

#define WORKERS_MAX    32768
#define WORKER_SPIN_NS 50000 /* about as long as being woken takes */

/* A job in its place: all that a worker sees, so that the op stays in the cache of the loop. */
typedef struct job_t {
	op_t *op; /* NULL: withdrawn */
	int (*work)(void *work_data);
	void *work_data;
} job_t;

typedef struct done_t {
	op_t *op;
	int result;
} done_t;

typedef struct workers_t {
	/* Written by the loop: */
	_Alignas(64) atomic_ullong n_queued; /* pairs with n_idle: workers look here before sleep */
	uint64_t n_collected;
	uint64_t limit;        /* n_queued may go up to here: these places are known to be free */
	uint64_t n_rounds;     /* the loop's rounds */
	uint64_t called_round; /* n_rounds when it last called a worker */
	unsigned n_threads;
	unsigned max;          /* threads there may be; never changes */
	unsigned n_refused;    /* times in a row that a further thread could not be started */
	unsigned n_pauses;     /* calls of workers_widen() that still skip the attempt */
	pthread_t *threads;
	/* Read by all for each job, rarely written: */
	_Alignas(64) job_t *jobs; /* one block with `done` */
	done_t *done;
	uint64_t size;         /* a power of two, or 0 while there is no op */
	void (*notify)(struct workers_t *workers); /* a worker calls it after giving back a job */
	uint64_t process;      /* that the pool was made in */
	atomic_uint n_idle;    /* workers that sleep or are about to */
	atomic_uint n_looking; /* workers that found no job and look once more, or are starting */
	atomic_uint n_calls;   /* futex: idle workers sleep on it; each call changes it */
	atomic_bool calling;   /* a worker was called and has not arrived */
	atomic_bool stop;
	bool spins;            /* look for jobs for a while before sleeping; never changes */
	/* Written by workers: */
	_Alignas(64) pthread_mutex_t lock; /* of the arrays, n_seen and n_taken */
	uint64_t n_seen;       /* n_queued when a worker last looked: a look costs a cache line */
	atomic_ullong n_taken;
	_Alignas(64) atomic_ullong n_done; /* pairs with inbox.sleeping; read without the lock */
} workers_t;

static job_t *job_at(const workers_t *workers, uint64_t number)
{
	return &workers->jobs[number & (workers->size - 1)];
}

/* With the lock held: true if there is a job, which is at n_taken then. */
static bool workers_have_job(workers_t *workers)
{
	uint64_t n_taken = RELAXED(workers->n_taken);

	for (;; RELAXED_SET(workers->n_taken, ++n_taken)) {
		if (n_taken == workers->n_seen)
			workers->n_seen = atomic_load(&workers->n_queued);
		if (n_taken == workers->n_seen)
			return false;
		if (job_at(workers, n_taken)->op)
			return true;
	}
}

/*
 * Choose to wake an idle worker, unless one is on its way already (`again`: even then). With the
 * lock held, so that a worker that is counted as idle does sleep. True: worker_wake() must follow
 * without the lock, since the worker takes it first of all.
 */
static bool worker_call(workers_t *workers, bool again)
{
	if (!atomic_load(&workers->n_idle) || (atomic_load(&workers->calling) && !again))
		return false;
	atomic_store(&workers->calling, true);
	atomic_fetch_add(&workers->n_calls, 1);
	return true;
}

static void worker_wake(workers_t *workers) { futex_wake(&workers->n_calls, 1); }

/* With the lock held, and a job there. True: worker_wake() must follow, for the next job. */
static bool job_take(workers_t *workers, job_t *job)
{
	uint64_t n_taken = RELAXED(workers->n_taken);

	*job = *job_at(workers, n_taken);
	RELAXED_SET(workers->n_taken, n_taken + 1);
	return unlikely(atomic_load(&workers->n_idle)) && workers_have_job(workers) &&
	       worker_call(workers, false);
}

static void worker_spin(workers_t *workers)
{
	uint64_t until_ns = now_ns() + WORKER_SPIN_NS;

	do
		cpu_pause();
	while (atomic_load(&workers->n_queued) == RELAXED(workers->n_taken) &&
	       !atomic_load(&workers->stop) && now_ns() < until_ns);
}

/* The next job, once there is one. False: the worker must end. It was counted as looking. */
static bool worker_wait(workers_t *workers, job_t *job)
{
	bool stop, call = false;

	if (workers->spins)
		worker_spin(workers);
	pthread_mutex_lock(&workers->lock);
	atomic_fetch_sub(&workers->n_looking, 1); /* before the last look: see workers_queue() */
	while (!workers_have_job(workers) && !atomic_load(&workers->stop)) {
		unsigned n_calls = atomic_load(&workers->n_calls);

		atomic_fetch_add(&workers->n_idle, 1);
		if (!workers_have_job(workers)) {
			pthread_mutex_unlock(&workers->lock);
			futex_wait(&workers->n_calls, n_calls);
			pthread_mutex_lock(&workers->lock);
			atomic_store(&workers->calling, false);
		}
		atomic_fetch_sub(&workers->n_idle, 1);
	}
	stop = atomic_load(&workers->stop);
	if (!stop)
		call = job_take(workers, job);
	pthread_mutex_unlock(&workers->lock);
	if (call)
		worker_wake(workers);
	return !stop;
}

/* Give one back and take the next. False: there is none, and the worker is counted as looking. */
static bool worker_swap(workers_t *workers, job_t *job, int result)
{
	uint64_t n_done;
	bool more, call = false;

	pthread_mutex_lock(&workers->lock);
	more = workers_have_job(workers);
	if (!more)
		atomic_fetch_add(&workers->n_looking, 1); /* the loop may queue one now */
	n_done = RELAXED(workers->n_done);
	workers->done[n_done & (workers->size - 1)] = (done_t){job->op, result};
	atomic_store(&workers->n_done, n_done + 1);
	if (more)
		call = job_take(workers, job);
	pthread_mutex_unlock(&workers->lock);
	if (call)
		worker_wake(workers);
	return more;
}

static void *worker_main(void *data)
{
	workers_t *workers = data;
	job_t job;
	bool more;

	pthread_setname_np(pthread_self(), "iou-worker");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	while (worker_wait(workers, &job)) {
		do {
			int result = job.work(job.work_data);

			if (unlikely(process_number() != workers->process))
				return NULL; /* the job forked, and this is the child */
			more = worker_swap(workers, &job, result);
			workers->notify(workers);
		} while (more);
	}
	return NULL;
}

/* A worker blocks all signals but those that a fault of its own raises. */
static int worker_start(workers_t *workers)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	sigset_t all, old;
	int error;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++)
		sigdelset(&all, faults[i]);
	atomic_fetch_add(&workers->n_looking, 1);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&workers->threads[workers->n_threads], NULL, worker_main, workers);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (error)
		atomic_fetch_sub(&workers->n_looking, 1);
	else
		workers->n_threads++;
	return -error;
}

/*
 * One more worker. If it cannot be started, the others carry on; each failure costs a stack and a
 * system call, so after failures in a row it is tried less and less often.
 */
static void workers_widen(workers_t *workers)
{
	if (workers->n_pauses) {
		workers->n_pauses--;
	} else if (worker_start(workers) == 0) {
		workers->n_refused = 0;
	} else {
		workers->n_pauses = (1U << workers->n_refused) - 1;
		workers->n_refused += workers->n_refused < 10;
	}
}

/* True if there is a job that no worker is free for, or on its way to. */
static bool workers_fall_short(workers_t *workers)
{
	uint64_t n_queued = RELAXED(workers->n_queued), i;
	unsigned n_free;

	pthread_mutex_lock(&workers->lock);
	workers_have_job(workers); /* passes over withdrawn jobs, once for all */
	n_free = atomic_load(&workers->n_idle) + atomic_load(&workers->n_looking);
	for (i = RELAXED(workers->n_taken); i != n_queued; i++)
		if (job_at(workers, i)->op && !n_free--)
			break;
	pthread_mutex_unlock(&workers->lock);
	return i != n_queued;
}

/* Move everything to this block, which may be the old one, without the withdrawn jobs' places. */
static void workers_move(workers_t *workers, job_t *jobs, uint64_t size)
{
	done_t *done = (done_t *)(jobs + size);
	uint64_t n_queued = RELAXED(workers->n_queued), n_taken, end, i;

	pthread_mutex_lock(&workers->lock);
	n_taken = end = RELAXED(workers->n_taken);
	for (i = n_taken; i != n_queued; i++) {
		job_t job = *job_at(workers, i);

		if (!job.op)
			continue;
		job.op->job.number = end;
		jobs[end++ & (size - 1)] = job;
	}
	for (i = workers->n_collected; i != RELAXED(workers->n_done); i++)
		done[i & (size - 1)] = workers->done[i & (workers->size - 1)];
	atomic_store(&workers->n_queued, end);
	workers->n_seen = end;
	workers->limit = n_taken + size;
	workers->jobs = jobs;
	workers->done = done;
	workers->size = size;
	pthread_mutex_unlock(&workers->lock);
}

/* Room for n_ops jobs, and an eighth more for withdrawn ones, so that workers_move() is rare. */
static bool workers_reserve(workers_t *workers, size_t n_ops)
{
	job_t *old = workers->jobs, *jobs;
	uint64_t size = workers->size ? workers->size : 512;

	while (size < n_ops + n_ops / 8)
		size *= 2;
	if (size == workers->size)
		return true;
	jobs = malloc(size * (sizeof(job_t) + sizeof(done_t)));
	if (!jobs)
		return false;
	workers_move(workers, jobs, size);
	free(old);
	return true;
}

static void workers_begin_round(workers_t *workers) { workers->n_rounds++; }

/* -EAGAIN: there is no worker and none can be started. */
static int workers_queue(workers_t *workers, op_t *op, int (*work)(void *work_data),
			 void *work_data)
{
	uint64_t n_queued;
	bool call;

	if (unlikely(!workers->n_threads) && worker_start(workers) < 0)
		return -EAGAIN;
	if (unlikely(RELAXED(workers->n_queued) == workers->limit))
		workers_move(workers, workers->jobs, workers->size);
	n_queued = RELAXED(workers->n_queued);
	op->job.work = work;
	op->job.number = n_queued;
	*job_at(workers, n_queued) = (job_t){op, work, work_data};
	atomic_store(&workers->n_queued, n_queued + 1);
	if (atomic_load(&workers->n_idle) && !atomic_load(&workers->n_looking) &&
	    (!atomic_load(&workers->calling) || workers->called_round != workers->n_rounds)) {
		workers->called_round = workers->n_rounds;
		pthread_mutex_lock(&workers->lock);
		call = worker_call(workers, true);
		pthread_mutex_unlock(&workers->lock);
		if (call)
			worker_wake(workers);
	}
	if (unlikely(workers->n_threads < workers->max) && workers_fall_short(workers))
		workers_widen(workers);
	return 0;
}

static bool job_is_taken(const workers_t *workers, const op_t *op)
{
	return op->job.number < RELAXED(workers->n_taken);
}

/* False: a worker has the job already. */
static bool job_withdraw(workers_t *workers, op_t *op)
{
	bool taken;

	pthread_mutex_lock(&workers->lock);
	taken = job_is_taken(workers, op);
	if (!taken)
		job_at(workers, op->job.number)->op = NULL;
	pthread_mutex_unlock(&workers->lock);
	return !taken;
}

/* True if workers gave back something that the loop has not collected. */
static bool workers_ready(const workers_t *workers)
{
	return workers->n_collected != atomic_load(&workers->n_done);
}

/* The count of jobs given back: workers_collect() goes up to it. */
static uint64_t workers_done_bound(const workers_t *workers)
{
	return atomic_load_explicit(&workers->n_done, memory_order_acquire);
}

/* Take off the job that was given back first; NULL if all up to the bound were taken. */
static op_t *workers_collect(workers_t *workers, uint64_t bound, int *result)
{
	const done_t *done;

	if (workers->n_collected == bound)
		return NULL;
	done = &workers->done[workers->n_collected++ & (workers->size - 1)];
	*result = done->result;
	return done->op;
}

static int workers_init(workers_t *workers, unsigned max, bool spins,
			void (*notify)(workers_t *workers))
{
	cpu_set_t cpus;

	if (!max)
		max = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ?
		      (unsigned)CPU_COUNT(&cpus) : (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	workers->max = max < WORKERS_MAX ? max : WORKERS_MAX;
	workers->spins = spins;
	workers->notify = notify;
	workers->process = process_number();
	workers->threads = calloc(workers->max, sizeof(*workers->threads));
	if (!workers->threads)
		return -ENOMEM;
	pthread_mutex_init(&workers->lock, NULL);
	return 0;
}

/* End the workers after the jobs that run. No job may be waiting. */
static void workers_stop(workers_t *workers)
{
	pthread_mutex_lock(&workers->lock);
	atomic_store(&workers->stop, true);
	atomic_fetch_add(&workers->n_calls, 1);
	pthread_mutex_unlock(&workers->lock);
	futex_wake(&workers->n_calls, INT_MAX);
	while (workers->n_threads)
		pthread_join(workers->threads[--workers->n_threads], NULL);
}

/* In a forked child the lock may be held by a thread that is not there: it is left alone. */
static void workers_free(workers_t *workers, bool is_copy)
{
	if (!is_copy)
		pthread_mutex_destroy(&workers->lock);
	free(workers->jobs);
	free(workers->threads);
}

/*
 * ==== ring ======================================================================================
 *
 * The ring: opening it, its SQ and CQ, entering it, and the two descriptors that it watches for the
 * library. It is the kernel's io_uring, or that of an engine, which looks like it (iou_backend_t in
 * iou.h). Loop thread only. No other room calls io_uring_*(), but for helpers that prepare an SQE.
 *
 * Counts only grow, but for n_sent, so that an op costs few of them. Other numbers follow:
 *
 *   ops in the SQ or the kernel = n_sent - (n_reaped - n_other_cqes - n_more_cqes)
 *   CQEs of the program's ops   = n_reaped - n_other_cqes
 *   the CQ's head               = n_reaped - cq_base, in 32 bits
 *
 * user_data of an SQE is the op's address. Odd values are the library's own: UD_WAKE, UD_CLOCK,
 * UD_VOID, or for a CANCEL its op's address | UD_CANCEL.
 */

#define SQPOLL_NAP_NS 20000
#define WATCH_SINGLE  64 /* polls without multishot, once that was refused, before a new try */

enum { UD_WAKE = 1, UD_CLOCK = 3, UD_VOID = 5, UD_CANCEL = 1 };

enum { SUBMIT = 1, WAIT = 2 }; /* for ring_enter() */

/*
 * A descriptor that the ring watches by a poll that is no op. The poll is multishot: one CQE for
 * each write, and the counter need not be read. It is armed again whenever it has ended: by an
 * overflow, or by a cancel of the program's that hits any op.
 */
typedef struct watch_t {
	int fd; /* or -1 */
	bool armed;
	unsigned n_single; /* polls still to send without multishot (before 5.13) */
} watch_t;

typedef struct ring_t {
	struct io_uring io;
	const iou_backend_t *engine; /* NULL: the kernel; never changes after iou_new() */
	size_t n_reserved;     /* ops that there may be */
	unsigned wanted_flags; /* the program's IORING_SETUP_*, or 0; never changes */
	unsigned flags;        /* IORING_SETUP_* that it was made with */
	unsigned enter_flags;  /* IORING_ENTER_REGISTERED_RING if enter_fd is a registered index */
	int enter_fd;          /* the ring's descriptor, or its registered index */
	unsigned n_refused;    /* times in a row that a registered descriptor was refused, */
	unsigned n_pauses;     /* and calls to skip before it is tried again; UINT_MAX: never */
	unsigned sq_seen;      /* the SQ's head after the last enter */
	unsigned cq_base;      /* see above */
	bool must_get;         /* CQEs may wait in the kernel, and no flag tells */
	bool unwoken;          /* SQPOLL: its thread may sleep, and waking it failed */
	bool broken;           /* the kernel lost a CQE (-EBADR) */
	bool chain_cut;        /* the last enter took a part of the SQEs: of a chain, perhaps */
	uint64_t n_sent;       /* ops put into the SQ, minus those taken back from it */
	uint64_t n_reaped;     /* CQEs */
	uint64_t n_other_cqes;   /* of these: CQEs that complete no op of the program's */
	uint64_t n_more_cqes;  /* of these: not the last one of its op */
	uint64_t n_enters;     /* io_uring_enter(2) calls */
	uint64_t n_failed;     /* of these: failed, or left SQEs, or SQPOLL took some */
	uint64_t n_taken;      /* SQEs that the kernel took */
	watch_t wake;          /* an eventfd: other threads write it to wake the loop */
	watch_t clock;         /* a timerfd behind iou_fd(), or -1 */
} ring_t;

/* ---- The seam to an engine ---- */

/* iou_fallback.c's, if that file is linked; or NULL. */
static const iou_backend_t *engine_linked(void)
{
	return &iou_fallback;
}

static int ring_register(const ring_t *ring, unsigned opcode, const void *arg, unsigned n)
{
	if (unlikely(ring->engine))
		return ring->engine->reg((struct io_uring *)&ring->io, opcode, arg, n);
	return io_uring_register((unsigned)ring->io.ring_fd, opcode, arg, n);
}

static int ring_enter_call(ring_t *ring, unsigned n, unsigned min, unsigned flags, void *arg,
			   size_t size)
{
	if (unlikely(ring->engine))
		return ring->engine->enter(&ring->io, n, min, flags, arg, size);
	return io_uring_enter2((unsigned)ring->enter_fd, n, min, flags, arg, size);
}

static void ring_exit(ring_t *ring)
{
	if (ring->engine)
		ring->engine->close(&ring->io);
	else
		io_uring_queue_exit(&ring->io);
}

/* ---- Opening and closing ---- */

static int ring_try(struct io_uring *io, unsigned entries, unsigned flags)
{
	struct io_uring_params params;
	int ret;

	for (unsigned n = 0;; n++) {
		params = (struct io_uring_params){.flags = flags | IORING_SETUP_CLAMP};
		ret = io_uring_queue_init_params(entries, io, &params);
		if (ret != -ENOMEM || n == 6)
			break;
		/* The kernel gives back the memory of a closed ring a little later. */
		nanosleep(&(struct timespec){.tv_nsec = (long)(NS_PER_MS << n)}, NULL);
	}
	if (ret < 0)
		return ret;
	if (!(params.features & IORING_FEAT_EXT_ARG)) {
		io_uring_queue_exit(io);
		return -ENOSYS;
	}
	return 0;
}

/* True if these errors say that io_uring is refused as such. */
static bool is_refusal(int ret) { return ret == -EPERM || ret == -ENOSYS || ret == -EACCES; }

/* Is register allowed? Unregistering an eventfd when there is none (-ENXIO) has no effect. */
static int ring_probe_register(const struct io_uring *io)
{
	int ret = io_uring_register((unsigned)io->ring_fd, IORING_UNREGISTER_EVENTFD, NULL, 0);

	return ret == -ENXIO ? 0 : ret;
}

/*
 * Are enter and register allowed (seccomp)? An enter says -EBADFD if the ring is disabled. *usable
 * is false if register is refused, and the ring needs it to be enabled.
 */
static int ring_probe(const struct io_uring *io, unsigned flags, bool *usable)
{
	int ret = io_uring_enter2((unsigned)io->ring_fd, 0, 0, 0, NULL, _NSIG / 8);

	if (ret < 0 && ret != -EBADFD)
		return ret;
	*usable = !(flags & IORING_SETUP_R_DISABLED) || ring_probe_register(io) >= 0;
	return 0;
}

/*
 * The best ring that the kernel grants: with the program's flags, or with the library's choice,
 * and with fewer and fewer of these.
 */
static int ring_open_kernel(ring_t *ring, unsigned entries)
{
	const unsigned all = IORING_SETUP_SUBMIT_ALL, wanted = ring->wanted_flags;
	const unsigned one = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED;
	const unsigned lazy = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	const unsigned defer = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	const unsigned own[] = {all | one | defer, all | one | lazy, all | lazy, all, 0};
	const unsigned given[] = {wanted & IORING_SETUP_SINGLE_ISSUER ? wanted | one : wanted,
				  wanted};
	const unsigned *flags = wanted ? given : own;
	unsigned n = wanted ? 2 : sizeof(own) / sizeof(*own);
	bool usable = false;
	int ret = -EINVAL;

	for (; n && !usable; n--, flags++) {
		int error = ring_try(&ring->io, entries, *flags);

		if (error == -EINVAL)
			continue;
		ret = error;
		if (ret < 0)
			return ret;
		ret = ring_probe(&ring->io, *flags, &usable);
		if (ret < 0 || !usable)
			io_uring_queue_exit(&ring->io);
		if (ret < 0)
			return ret;
		ring->flags = *flags;
	}
	if (!usable)
		return ret < 0 ? ret : -EPERM;
	io_uring_ring_dontfork(&ring->io);
	return 0;
}

/* Whatever the flags: completions wait in an engine until it is entered. */
static int ring_open_engine(ring_t *ring, unsigned entries)
{
	struct io_uring_params params = {.flags = ring->wanted_flags | IORING_SETUP_CLAMP |
						  IORING_SETUP_R_DISABLED};
	int ret = ring->engine->open(entries, &ring->io, &params);

	if (ret < 0)
		return ret;
	ring->flags = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED;
	ret = ring->engine->reserve(&ring->io, ring->n_reserved);
	if (ret < 0)
		ring->engine->close(&ring->io);
	return ret;
}

/* Memory for so many SQEs in flight: the kernel needs none of the program's. */
static bool ring_reserve(ring_t *ring, size_t n)
{
	if (ring->engine && ring->engine->reserve(&ring->io, n) < 0)
		return false;
	ring->n_reserved = n;
	return true;
}

/* Leaves the counts alone. */
static int ring_open(ring_t *ring, unsigned entries)
{
	int ret = ring->engine ? ring_open_engine(ring, entries) : ring_open_kernel(ring, entries);

	if (ret < 0)
		return ret;
	ring->enter_fd = ring->io.ring_fd;
	ring->enter_flags = ring->n_refused = ring->n_pauses = 0;
	ring->sq_seen = *ring->io.sq.khead;
	ring->must_get = (ring->flags & (IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN)) &&
			 !(ring->flags & IORING_SETUP_TASKRUN_FLAG);
	ring->unwoken = false;
	return 0;
}

/* An iou's first ring: the kernel's, or an engine's if that is wanted or io_uring is refused. */
static int ring_choose(ring_t *ring, unsigned entries, unsigned kind)
{
	const iou_backend_t *engine = engine_linked();
	int ret = -ENOSYS;

	if (kind == IOU_ENGINE_AUTO && engine)
		kind = engine->wanted();
	if (kind != IOU_ENGINE_FALLBACK) {
		bool alone = !engine || kind == IOU_ENGINE_RING ||
			     ring->wanted_flags & IORING_SETUP_SQPOLL;

		ret = ring_open(ring, entries);
		if (alone || (ret < 0 && !is_refusal(ret)))
			return ret;
		if (ret >= 0 && !is_refusal(ring_probe_register(&ring->io)))
			return ret;
		if (ret >= 0)
			io_uring_queue_exit(&ring->io); /* it could not register anything */
	}
	if (!engine)
		return ret;
	ring->engine = engine;
	return ring_open(ring, entries);
}

static const char *ring_engine_name(const ring_t *ring)
{
	return ring->engine ? ring->engine->name : "io_uring";
}

/*
 * A registered ring descriptor (5.18) saves a little on each enter. It belongs to the thread, which
 * may have 16. If there is none left, it is tried again, less and less often. Not if the kernel
 * knows none (-EINVAL): an older one first waits for all that is in flight.
 */
static void ring_register_fd(ring_t *ring)
{
	struct io_uring_rsrc_update index = {.offset = -1U, .data = (unsigned)ring->io.ring_fd};
	int ret;

	if (ring->enter_flags || ring->n_pauses) {
		ring->n_pauses -= ring->n_pauses && ring->n_pauses != UINT_MAX;
		return;
	}
	ret = ring_register(ring, IORING_REGISTER_RING_FDS, &index, 1);
	if (ret == 1) {
		ring->enter_fd = (int)index.offset;
		ring->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	ring->n_refused += ret != 1 && ring->n_refused < 10;
	ring->n_pauses = ret == -EINVAL ? UINT_MAX : (1U << ring->n_refused) - 1;
}

/* Enable the ring, and make this thread its submitter. */
static int ring_bind(ring_t *ring, bool handed)
{
	int ret = 0;

	if (ring->flags & IORING_SETUP_R_DISABLED)
		ret = ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
	if (ret < 0)
		return ret;
	ring->flags &= ~IORING_SETUP_R_DISABLED;
	if (!handed)
		ring_register_fd(ring);
	return 0;
}

/*
 * By the owner, with nothing in flight: also let go of registered files and buffers at once. Else
 * the kernel does so some time later.
 */
static void ring_close(ring_t *ring, bool by_owner, bool idle)
{
	struct io_uring_rsrc_update index = {.offset = (unsigned)ring->enter_fd};

	if (by_owner && idle) {
		ring_register(ring, IORING_UNREGISTER_FILES, NULL, 0);
		if (ring->io.features & IORING_FEAT_RSRC_TAGS) /* else it waits for the watches */
			ring_register(ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
	}
	if (by_owner && ring->enter_flags)
		ring_register(ring, IORING_UNREGISTER_RING_FDS, &index, 1);
	ring_exit(ring);
}

static struct io_uring *ring_io(ring_t *ring) { return &ring->io; }
static bool ring_is_sqpoll(const ring_t *ring) { return ring->flags & IORING_SETUP_SQPOLL; }

/* True if completions wait in the kernel until the loop enters it. */
static bool ring_defers(const ring_t *ring) { return ring->flags & IORING_SETUP_DEFER_TASKRUN; }

static bool ring_cut_chain(const ring_t *ring) { return unlikely(ring->chain_cut); }
static bool ring_is_broken(const ring_t *ring) { return ring->broken; }

/* Ask the kernel to cancel everything, without an SQE: restrictions may refuse those. */
static int ring_cancel_all(const ring_t *ring)
{
	struct io_uring_sync_cancel_reg all = {
		.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL,
		.timeout = {.tv_nsec = 100 * (long long)NS_PER_MS}};
	int ret = ring_register(ring, IORING_REGISTER_SYNC_CANCEL, &all, 1);

	return ret == -ENOENT || ret == -ETIME || ret == -EALREADY || ret == -EINTR ? 0 : ret;
}

/* ---- Counts ---- */

static uint64_t ring_in_flight(const ring_t *ring)
{
	return ring->n_sent - (ring->n_reaped - ring->n_other_cqes - ring->n_more_cqes);
}

/* The CQE reaped last is the library's own, or ends no op. */
static void ring_count_other(ring_t *ring) { ring->n_other_cqes++; }

/* The CQE reaped last is not the last one of its op. */
static void ring_count_more(ring_t *ring) { ring->n_more_cqes++; }

/* An op is no longer in the ring, without a CQE that is counted. */
static void ring_count_back(ring_t *ring) { ring->n_sent--; }

static uint64_t ring_n_sent(const ring_t *ring) { return ring->n_sent; }
static uint64_t ring_n_enters(const ring_t *ring) { return ring->n_enters; }

/* Grows with each CQE, and with each enter after which completions may be left in the kernel. */
static uint64_t ring_activity(const ring_t *ring) { return ring->n_reaped + ring->n_failed; }

/* ---- The SQ ---- */

static unsigned sq_head(const ring_t *ring)
{
	return __atomic_load_n(ring->io.sq.khead, __ATOMIC_ACQUIRE); /* SQPOLL's thread moves it */
}

static bool sq_empty(const ring_t *ring) { return ring->io.sq.sqe_tail == sq_head(ring); }
static unsigned sq_size(const ring_t *ring) { return ring->io.sq.ring_entries; }

static unsigned sq_room(const ring_t *ring)
{
	return ring->io.sq.ring_entries - (ring->io.sq.sqe_tail - sq_head(ring));
}

/* The SQ slot n places behind the tail. */
static struct io_uring_sqe *sq_slot(const ring_t *ring, unsigned n)
{
	return &ring->io.sq.sqes[(ring->io.sq.sqe_tail + n) & ring->io.sq.ring_mask];
}

/* The next n slots have been filled with ops. */
static void sq_add_ops(ring_t *ring, unsigned n)
{
	ring->io.sq.sqe_tail += n;
	ring->n_sent += n;
}

/*
 * The kernel took a chain's first SQEs only. Take back the i-th of the rest, and leave a NOP in its
 * slot. Returns its op, or NULL behind the chain's end. *linked is kept from call to call.
 */
static op_t *sq_take_back(ring_t *ring, unsigned i, bool *linked)
{
	struct io_uring_sq *sq = &ring->io.sq;
	unsigned at = ring->sq_seen + i;
	struct io_uring_sqe *sqe = &sq->sqes[at & sq->ring_mask];
	op_t *op = (op_t *)(uintptr_t)sqe->user_data;

	if (i == 0)
		*linked = sq->sqes[(at - 1) & sq->ring_mask].flags & LINKS;
	if (!*linked || at == sq->sqe_tail) {
		ring->chain_cut = false;
		return NULL;
	}
	*linked = sqe->flags & LINKS;
	memset(sqe, 0, sizeof(*sqe)); /* IORING_OP_NOP */
	sqe->user_data = UD_VOID;
	ring->n_sent--;
	return op;
}

/* For an SQE of the library's own: zero, whatever the slot held before. There is room. */
static struct io_uring_sqe *sq_next_own(ring_t *ring)
{
	struct io_uring_sqe *sqe = memset(sq_slot(ring, 0), 0, sizeof(*sqe));

	ring->io.sq.sqe_tail++;
	return sqe;
}

static unsigned sq_flags(const ring_t *ring)
{
	return __atomic_load_n(ring->io.sq.kflags, __ATOMIC_RELAXED);
}

/* True if a flag of the kernel's says that completions wait for an enter. */
static bool sq_flags_tell(const ring_t *ring)
{
	return sq_flags(ring) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* True if SQEs are left that the kernel will not take without an enter. */
static bool sq_needs_enter(const ring_t *ring)
{
	return ring_is_sqpoll(ring) ? ring->unwoken : !sq_empty(ring);
}

/* ---- The CQ ---- */

static unsigned cq_head(const ring_t *ring) { return (unsigned)ring->n_reaped - ring->cq_base; }

static unsigned cq_ready(const ring_t *ring)
{
	return __atomic_load_n(ring->io.cq.ktail, __ATOMIC_ACQUIRE) - cq_head(ring);
}

/* True if the CQ is half full: time to reap, before it overflows. */
static bool cq_half_full(const ring_t *ring)
{
	return cq_ready(ring) >= ring->io.cq.ring_entries / 2;
}

/* The value of n_reaped once the CQEs that are there now, `most` at most, are reaped. */
static uint64_t cq_bound(const ring_t *ring, uint64_t most)
{
	return ring->n_reaped + min_u64(cq_ready(ring), most);
}

static uint64_t cq_n_reaped(const ring_t *ring) { return ring->n_reaped; }

/* The CQE n places behind the next one. */
static const struct io_uring_cqe *cq_at(const ring_t *ring, unsigned n)
{
	return &ring->io.cq.cqes[(ring->n_reaped + n) & ring->io.cq.ring_mask];
}

static void cq_count(ring_t *ring) { ring->n_reaped++; }

/* Return the slots of the reaped CQEs to the kernel. */
static void cq_publish(ring_t *ring)
{
	__atomic_store_n(ring->io.cq.khead, cq_head(ring), __ATOMIC_RELEASE);
}

/*
 * The ring is new; its watches are not armed. n_reaped skips to a number that differs from the CQ's
 * head by a multiple of the CQ's size, so that it finds a CQE's slot. n_left CQEs are left in the
 * ring before it, all of them the library's own: they count as reaped.
 */
static void ring_start(ring_t *ring, unsigned n_left)
{
	unsigned head = *ring->io.cq.khead;
	unsigned gap = (head - n_left - (unsigned)ring->n_reaped) & ring->io.cq.ring_mask;
	uint64_t n_skipped = n_left + (uint64_t)gap;

	ring->n_reaped += n_skipped;
	ring->n_other_cqes += n_skipped;
	ring->cq_base = (unsigned)ring->n_reaped - head;
	ring->wake.armed = ring->clock.armed = false;
}

/* ---- Entering ---- */

/* SQPOLL: its thread takes the SQEs. It may have to be woken, or waited for. */
static unsigned ring_sqpoll_flags(ring_t *ring)
{
	/* The tail before the flag (io_uring_setup(2)); an exchange, since TSan knows no fences. */
	__atomic_exchange_n(ring->io.sq.ktail, ring->io.sq.sqe_tail, __ATOMIC_SEQ_CST);
	ring->unwoken = sq_flags(ring) & IORING_SQ_NEED_WAKEUP; /* until the enter has succeeded */
	return (ring->unwoken ? IORING_ENTER_SQ_WAKEUP : 0) |
	       (sq_room(ring) ? 0 : IORING_ENTER_SQ_WAIT);
}

/* The system call. If it waits: until there is a CQE, or it is until_ns. */
static int ring_call(ring_t *ring, unsigned n, bool wait, unsigned flags, uint64_t until_ns)
{
	struct __kernel_timespec ts;
	struct io_uring_getevents_arg arg;
	uint64_t at_ns, ns;

	if (!wait || until_ns == NEVER)
		return ring_enter_call(ring, n, wait, flags, NULL, _NSIG / 8);
	at_ns = now_ns();
	ns = until_ns > at_ns ? min_u64(until_ns - at_ns, WAIT_MAX_NS) : 0;
	ts = (struct __kernel_timespec){(int64_t)(ns / NS_PER_SEC), (long long)(ns % NS_PER_SEC)};
	arg = (struct io_uring_getevents_arg){.ts = (uintptr_t)&ts};
	return ring_enter_call(ring, n, 1, flags | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
}

/*
 * The one place that enters the kernel. Submits the SQ, fetches completions, and
 * sleeps until there is a CQE or it is until_ns. Returns 0 or -errno; an error loses nothing.
 * If the kernel takes the first SQEs only, a chain may be cut in two: see ring_cut_chain().
 */
static int ring_enter(ring_t *ring, unsigned what, uint64_t until_ns)
{
	unsigned head = ring->sq_seen, n = what & SUBMIT ? ring->io.sq.sqe_tail - head : 0, taken;
	unsigned flags = 0;
	bool wait = what & WAIT;
	int ret;

	cq_publish(ring);
	__atomic_store_n(ring->io.sq.ktail, ring->io.sq.sqe_tail, __ATOMIC_RELEASE);
	if (unlikely(ring_is_sqpoll(ring))) {
		n = 0;
		flags = ring_sqpoll_flags(ring);
	}
	if (wait || ring->must_get || sq_flags_tell(ring))
		flags |= IORING_ENTER_GETEVENTS;
	if (!n && !flags)
		return 0;
	flags |= ring->enter_flags;
	if (wait && ring->io.features & IORING_FEAT_NO_IOWAIT)
		flags |= IORING_ENTER_NO_IOWAIT;
	ret = ring_call(ring, n, wait, flags, until_ns);
	ring->n_enters++;
	if (unlikely(ring->unwoken))
		ring->unwoken = ret < 0;
	ring->sq_seen = sq_head(ring);
	taken = ring->sq_seen - head; /* also if an error came after these */
	ring->n_taken += taken;
	if (likely(taken == n) && ret >= 0)
		return 0;
	ring->n_failed++;
	ring->chain_cut = taken && taken < n;
	if (ret == -EBADR)
		ring->broken = true;
	if (taken || ret == -EINTR || ret == -ETIME)
		return ret == -EBADR ? ret : 0;
	return ret < 0 ? ret : -EAGAIN;
}

/* SQPOLL: let its thread take the SQEs. It may need this CPU, and have a lower priority. */
static void ring_wait_for_sqpoll(const ring_t *ring)
{
	if (ring_is_sqpoll(ring) && !sq_empty(ring))
		nanosleep(&(struct timespec){.tv_nsec = SQPOLL_NAP_NS}, NULL);
}

/* ---- Watches ---- */

static bool watch_lacks_poll(const watch_t *watch) { return watch->fd >= 0 && !watch->armed; }

static bool watches_lack_poll(const ring_t *ring)
{
	return watch_lacks_poll(&ring->wake) || watch_lacks_poll(&ring->clock);
}

/* False: the SQ has no room. */
static bool watch_send(ring_t *ring, watch_t *watch, uint64_t user_data)
{
	struct io_uring_sqe *sqe;

	if (!watch_lacks_poll(watch))
		return true;
	if (!sq_room(ring))
		return false;
	sqe = sq_next_own(ring);
	io_uring_prep_poll_add(sqe, watch->fd, POLLIN);
	sqe->len = watch->n_single ? 0 : IORING_POLL_ADD_MULTI;
	sqe->user_data = user_data;
	watch->armed = true;
	return true;
}

static bool watches_send(ring_t *ring)
{
	return watch_send(ring, &ring->wake, UD_WAKE) && watch_send(ring, &ring->clock, UD_CLOCK);
}

/* A CQE of a watch. Returns an error that the program must be told: the loop cannot sleep. */
static int watch_reap(ring_t *ring, uint64_t user_data, int result, unsigned flags)
{
	watch_t *watch = user_data == UD_WAKE ? &ring->wake : &ring->clock;
	eventfd_t ignored;

	if (flags & IORING_CQE_F_MORE)
		return 0;
	watch->armed = false;
	eventfd_read(watch->fd, &ignored); /* reset, so that the next poll waits for a new write */
	if (watch->n_single)
		watch->n_single--;
	else if (result == -EINVAL)
		watch->n_single = WATCH_SINGLE;
	return result >= 0 || result == -ECANCELED || watch->n_single == WATCH_SINGLE ? 0 : result;
}

/* The eventfd that wakes the loop. */
static int watch_open_wake(ring_t *ring)
{
	ring->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ring->wake.fd < 0 ? -errno : 0;
}

/* The timerfd behind iou_fd(). */
static int watch_open_clock(ring_t *ring)
{
	if (ring->clock.fd < 0)
		ring->clock.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return ring->clock.fd < 0 ? -errno : 0;
}

/*
 * NEVER disarms it. A time_t of 32 bits cuts far times: the loop wakes early then and sets it anew.
 */
static void watch_set_clock(const ring_t *ring, uint64_t due_ns)
{
	time_t seconds = (time_t)min_u64(due_ns / NS_PER_SEC, SECONDS_MAX);
	struct itimerspec at = {0};

	if (due_ns != NEVER)
		at.it_value = (struct timespec){seconds, (long)(due_ns % NS_PER_SEC)};
	timerfd_settime(ring->clock.fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static int watch_wake_fd(const ring_t *ring) { return ring->wake.fd; }

static void watches_close(const ring_t *ring)
{
	if (ring->wake.fd >= 0)
		close(ring->wake.fd);
	if (ring->clock.fd >= 0)
		close(ring->clock.fd);
}

static void ring_init(ring_t *ring, unsigned wanted_flags)
{
	ring->wanted_flags = wanted_flags;
	ring->wake.fd = ring->clock.fd = -1;
}

/* ---- The eventfd that the ring signals ---- */

static int ring_set_eventfd(const ring_t *ring, int fd)
{
	return ring_register(ring, IORING_REGISTER_EVENTFD, &fd, 1);
}

/* The descriptor of an engine's ring, or -1. */
static int ring_engine_fd(const ring_t *ring) { return ring->engine ? ring->io.ring_fd : -1; }

/* True if completions may wait in the kernel, and nothing signals them. */
static bool ring_is_silent(const ring_t *ring) { return ring->must_get && !ring->engine; }

/* 1 or 0, or -errno. */
static int ring_supports(const ring_t *ring, unsigned opcode)
{
	enum { N_OPS = UINT8_MAX + 1 };
	uint64_t memory[(sizeof(struct io_uring_probe) +
			 N_OPS * sizeof(struct io_uring_probe_op)) / sizeof(uint64_t)];
	struct io_uring_probe *probe = memset(memory, 0, sizeof(memory));
	int ret = ring_register(ring, IORING_REGISTER_PROBE, probe, N_OPS);

	if (ret < 0)
		return ret;
	return opcode <= probe->last_op && probe->ops[opcode].flags & IO_URING_OP_SUPPORTED;
}

/* Register it anew. By the ring's registered index, if there is one: a quarter cheaper. */
static int ring_renew_eventfd(const ring_t *ring, int fd)
{
	bool by_index = ring->enter_flags && ring->io.features & IORING_FEAT_REG_REG_RING;
	unsigned of = (unsigned)(by_index ? ring->enter_fd : ring->io.ring_fd);
	unsigned flag = by_index ? IORING_REGISTER_USE_REGISTERED_RING : 0;
	int ret = io_uring_register(of, IORING_UNREGISTER_EVENTFD | flag, NULL, 0);

	if (ret >= 0 || ret == -ENXIO)
		ret = io_uring_register(of, IORING_REGISTER_EVENTFD | flag, &fd, 1);
	return ret;
}

static void ring_mute_eventfd(ring_t *ring, bool mute)
{
	io_uring_cq_eventfd_toggle(&ring->io, !mute);
}

/* True if an eventfd can be registered without waiting for all that is in flight (5.18). */
static bool ring_takes_eventfd_late(const ring_t *ring)
{
	return ring->io.features & IORING_FEAT_LINKED_FILE;
}

static void ring_stats(const ring_t *ring, iou_stats_t *stats)
{
	stats->enters = ring->n_enters;
	stats->submitted = ring->n_taken;
	stats->completed = ring->n_reaped - ring->n_other_cqes;
}

/*
 * ==== inbox =====================================================================================
 *
 * Posts and bottom halves from other threads, and how these threads wake the loop. Any thread
 * posts, schedules and wakes; the loop takes.
 *
 *   mail   a queue that any thread appends to. The loop takes from it, the oldest first
 *   line   entries taken from the mail, in the order in which they will be called
 *   idle   bottom halves that run when nothing else does
 *   slabs  memory of posts, side by side, so that the loop finds the next one in the cache
 *
 * `sleeping` says how a waker reaches the loop. The waker that sets it to AWAKE rings.
 *
 *   AWAKE     not needed: the loop runs, or iou_fd() is readable
 *   ASLEEP    by the eventfd that the ring watches: the loop sleeps in ring_enter()
 *   RESTING   by iou_fd(): the program waits for it in a loop of its own
 */

#define SLAB_SIZE 4096

enum sleep { AWAKE, ASLEEP, RESTING };

/* A post, or the part of a bottom half that stands in the queue (cb is NULL). */
typedef struct entry_t {
	node_t node;
	uint64_t seq; /* its number in the line; the loop's */
	int (*cb)(void *cb_data);
	void *cb_data;
} entry_t;

/*
 * Aligned to its size. So an entry leads to its slab, and a slab's address and the number of
 * entries taken from it are one word: inbox.post_cursor.
 */
typedef struct slab_t {
	size_t n_back; /* entries called or dropped; the loop's once the slab is published */
	entry_t entries[(SLAB_SIZE - sizeof(size_t)) / sizeof(entry_t)];
} slab_t;

#define SLAB_ENTRIES (sizeof(((slab_t *)NULL)->entries) / sizeof(entry_t))

enum bh_bits {
	BH_SCHEDULED = 1,
	BH_IDLE = 2,    /* scheduled to run when nothing else does */
	BH_QUEUED = 4,  /* its entry is in the mail or line, or is being pushed by who set this */
	BH_DELETED = 8, /* the loop frees it when it takes its entry */
};

struct iou_bh_t {
	entry_t entry;
	iou_t *iou;
	int (*cb)(void *cb_data);
	void *cb_data;
	atomic_uint bits; /* enum bh_bits */
	bool lined;       /* its entry is in the line; the loop's */
	bool idles;       /* it is on `idle`, and may be queued too; the loop's */
	node_t in_idle;
	node_t in_bhs;
};

/* First the line that posting threads write, then the loop's own line. */
typedef struct inbox_t {
	_Alignas(64) _Atomic(node_t *) last; /* of the mail */
	atomic_int sleeping; /* enum sleep; pairs with last, workers.n_done, loop.quit, .n_holds */
	/*
	 * The slab that posts are taken from, + how many were. Its exchanges pair with each
	 * other: taking an entry acquires the contents of the slab. ABA is harmless: an equal word
	 * is an equal state.
	 */
	atomic_uintptr_t post_cursor;
	_Atomic(slab_t *) spare_slab; /* exchanged, so who takes it out is its only owner */
	/* The loop's: */
	_Alignas(64) node_t *first; /* of the mail; or the stub, which stands in if it is empty */
	node_t stub;
	node_t line, idle;
	uint64_t n_lined;    /* entries that ever entered the line: the next one's seq */
	uint64_t n_called;   /* posts and bottom halves, ever */
	int wake_fd;         /* for ASLEEP: a copy of ring.wake.fd; never changes */
	atomic_int fd;       /* for RESTING: a copy of bell.fd, or -1; set before RESTING */
	/* Rarely written by others: */
	atomic_ullong n_wakeups;
	pthread_mutex_t lock; /* guards bhs; line and idle too while no thread owns the iou */
	node_t bhs;          /* all of them, for iou_free() */
} inbox_t;

_Static_assert(sizeof(slab_t) <= SLAB_SIZE && SLAB_ENTRIES < SLAB_SIZE,
	       "a slab, and a count within its alignment");
_Static_assert(__atomic_always_lock_free(sizeof(uint64_t), 0), "signal handlers use such atomics");

/* ---- Waking ---- */

/*
 * After publishing an item for the loop. The seq_cst load pairs with inbox_set_sleep(): either the
 * loop sees the item, or this thread sees the loop asleep.
 */
static void inbox_wake(inbox_t *inbox)
{
	int saved = errno;
	enum sleep was;

	if (likely(atomic_load(&inbox->sleeping) == AWAKE))
		return;
	was = (enum sleep)atomic_exchange(&inbox->sleeping, AWAKE);
	if (was == AWAKE)
		return;
	atomic_fetch_add_explicit(&inbox->n_wakeups, 1, memory_order_relaxed);
	event_signal(was == ASLEEP ? inbox->wake_fd : RELAXED(inbox->fd));
	errno = saved;
}

static NOINLINE void inbox_touch_fd(inbox_t *inbox)
{
	if (atomic_load(&inbox->sleeping) != AWAKE &&
	    atomic_exchange(&inbox->sleeping, AWAKE) != AWAKE)
		event_signal(RELAXED(inbox->fd));
}

static inline bool inbox_has_fd(const inbox_t *inbox) { return unlikely(RELAXED(inbox->fd) >= 0); }

/* The loop thread changed something: make iou_fd() readable, if it is in use. */
static inline void inbox_touch(inbox_t *inbox)
{
	if (inbox_has_fd(inbox))
		inbox_touch_fd(inbox);
}

static enum sleep inbox_sleep(inbox_t *inbox) { return (enum sleep)RELAXED(inbox->sleeping); }

/* True if wakers need not do anything. */
static bool inbox_is_awake(inbox_t *inbox) { return atomic_load(&inbox->sleeping) == AWAKE; }

/* Make iou_fd() readable. */
static void inbox_signal_fd(inbox_t *inbox)
{
	atomic_store(&inbox->sleeping, AWAKE);
	event_signal(RELAXED(inbox->fd));
}

static void inbox_set_wake_fd(inbox_t *inbox, int fd) { inbox->wake_fd = fd; }

/* iou_fd() is in use from now on. */
static void inbox_set_fd(inbox_t *inbox, int fd) { RELAXED_SET(inbox->fd, fd); }

/* A fence. The caller then looks for all that a waker may have published before. */
static void inbox_set_sleep(inbox_t *inbox, enum sleep sleep)
{
	atomic_store(&inbox->sleeping, sleep);
}

/* No fence: at worst a waker writes to the eventfd once without need. */
static void inbox_set_awake(inbox_t *inbox) { RELAXED_SET(inbox->sleeping, AWAKE); }

/*
 * The loop slept in the kernel, where wakers write to wake_fd. If it was RESTING before, and one
 * woke it, write to iou_fd() too.
 */
static void inbox_end_sleep(inbox_t *inbox, enum sleep before)
{
	if (likely(before == AWAKE))
		inbox_set_awake(inbox);
	else if (atomic_exchange(&inbox->sleeping, RESTING) == AWAKE)
		inbox_touch_fd(inbox);
}

/* ---- Mail ---- */

/*
 * A queue without locks (Vyukov's). A push first exchanges `last`, then links the node before.
 * Between both steps the nodes behind cannot be reached. The loop does not wait for that: the
 * pushing thread wakes it afterwards.
 */
static void mail_push(inbox_t *inbox, node_t *node)
{
	node_t *before;

	__atomic_store_n(&node->next, NULL, __ATOMIC_RELAXED);
	before = atomic_exchange(&inbox->last, node);
	__atomic_store_n(&before->next, node, __ATOMIC_SEQ_CST); /* pairs with mail_after() */
}

static node_t *mail_after(const node_t *node)
{
	return __atomic_load_n(&node->next, __ATOMIC_SEQ_CST);
}

/* Take the oldest one off. NULL: there is none, or none can be reached yet. */
static node_t *mail_next(inbox_t *inbox)
{
	node_t *first = inbox->first, *next = mail_after(first), *last;

	if (first == &inbox->stub) {
		if (!next)
			return NULL;
		inbox->first = first = next;
		next = mail_after(first);
	}
	if (!next) { /* the last one: the stub takes its place, unless another came behind it now */
		__atomic_store_n(&inbox->stub.next, NULL, __ATOMIC_RELAXED);
		last = first;
		next = atomic_compare_exchange_strong(&inbox->last, &last, &inbox->stub) ?
		       &inbox->stub : mail_after(first);
	}
	if (!next)
		return NULL;
	inbox->first = next;
	return first;
}

/* True if one can be taken. */
static inline bool mail_ready(inbox_t *inbox)
{
	if (likely(inbox->first == &inbox->stub))
		return unlikely(mail_after(&inbox->stub) != NULL);
	return mail_after(inbox->first) || inbox->first == atomic_load(&inbox->last);
}

/* True if there is none, not even one that cannot be reached yet. */
static bool mail_empty(inbox_t *inbox)
{
	return inbox->first == &inbox->stub && atomic_load(&inbox->last) == &inbox->stub;
}

/* ---- Slabs ---- */

static slab_t *slab_at(uintptr_t address) { return (slab_t *)(address - address % SLAB_SIZE); }

/* Keep one as a spare, so that posts at a moderate pace need no memory. */
static void slab_free(inbox_t *inbox, slab_t *slab)
{
	free(atomic_exchange(&inbox->spare_slab, slab));
}

/* Put a new slab in the place of this one. Returns the cursor now; 0: no memory. */
static NOINLINE uintptr_t slab_renew(inbox_t *inbox, uintptr_t cursor)
{
	slab_t *slab = atomic_exchange(&inbox->spare_slab, NULL);
	void *memory; /* aligned_alloc() takes multiples only; glibc needs some bytes beside it */

	if (!slab && posix_memalign(&memory, SLAB_SIZE, sizeof(*slab)) == 0)
		slab = memory;
	if (!slab)
		return 0;
	slab->n_back = 0;
	if (atomic_compare_exchange_strong(&inbox->post_cursor, &cursor, (uintptr_t)slab))
		return (uintptr_t)slab;
	slab_free(inbox, slab); /* another thread was first */
	return cursor;
}

/*
 * Any thread. The slab may be freed until this thread owns an entry of it: it is not read before.
 */
static entry_t *entry_take(inbox_t *inbox)
{
	/* May be stale: the exchange below checks it. */
	uintptr_t cursor = RELAXED(inbox->post_cursor);
	entry_t *entry;

	do {
		while (unlikely(cursor % SLAB_SIZE == SLAB_ENTRIES)) {
			cursor = slab_renew(inbox, cursor);
			if (!cursor)
				return NULL;
		}
	} while (!atomic_compare_exchange_weak(&inbox->post_cursor, &cursor, cursor + 1));
	entry = &slab_at(cursor)->entries[cursor % SLAB_SIZE];
	/* The next ones are in the cache of the loop's CPU: else a post costs threefold. */
	__builtin_prefetch((void *)((uintptr_t)entry + 4 * sizeof(*entry)), 1);
	return entry;
}

/* The loop's. */
static void entry_free(inbox_t *inbox, entry_t *entry)
{
	slab_t *slab = slab_at((uintptr_t)entry);

	if (++slab->n_back == SLAB_ENTRIES)
		slab_free(inbox, slab);
}

static entry_t *entry_at(node_t *node) { return container_of(node, entry_t, node); }

/* Any thread. */
static void inbox_push(inbox_t *inbox, entry_t *entry)
{
	mail_push(inbox, &entry->node);
	inbox_wake(inbox);
}

/* Any thread. A post. */
static void entry_push(inbox_t *inbox, entry_t *entry, int (*cb)(void *cb_data), void *cb_data)
{
	entry->cb = cb;
	entry->cb_data = cb_data;
	inbox_push(inbox, entry);
}

/* ---- Bottom halves ---- */

static iou_bh_t *bh_of(entry_t *entry) { return container_of(entry, iou_bh_t, entry); }

static iou_bh_t *bh_make(inbox_t *inbox, iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	iou_bh_t *bh = calloc(1, sizeof(*bh));

	if (!bh)
		return NULL;
	bh->iou = iou;
	bh->cb = cb;
	bh->cb_data = cb_data;
	pthread_mutex_lock(&inbox->lock);
	list_append(&inbox->bhs, &bh->in_bhs);
	pthread_mutex_unlock(&inbox->lock);
	return bh;
}

static iou_t *bh_iou(const iou_bh_t *bh) { return bh->iou; }

static void bh_free(inbox_t *inbox, iou_bh_t *bh)
{
	pthread_mutex_lock(&inbox->lock);
	list_unlink(&bh->in_bhs);
	pthread_mutex_unlock(&inbox->lock);
	free(bh);
}

static void bh_leave_idle(iou_bh_t *bh)
{
	if (bh->idles)
		list_unlink(&bh->in_idle);
	bh->idles = false;
}

/* Its entry left the mail: true if the bottom half now waits on `idle` (BH_QUEUED is cleared). */
static bool bh_will_idle(iou_bh_t *bh)
{
	unsigned bits = atomic_load(&bh->bits);

	while ((bits & (BH_SCHEDULED | BH_IDLE | BH_DELETED)) == BH_IDLE)
		if (atomic_compare_exchange_weak(&bh->bits, &bits, bits & ~(unsigned)BH_QUEUED))
			return true;
	return false;
}

/* Any thread. The one that sets BH_QUEUED pushes the entry. False: it was deleted before. */
static bool bh_set(inbox_t *inbox, iou_bh_t *bh, unsigned bits)
{
	unsigned was = atomic_fetch_or(&bh->bits, bits | BH_QUEUED);

	if (unlikely(was & BH_DELETED))
		return false;
	if (!(was & BH_QUEUED))
		inbox_push(inbox, &bh->entry);
	return true;
}

static bool bh_is_deleted(const iou_bh_t *bh) { return atomic_load(&bh->bits) & BH_DELETED; }

/* ---- The line ---- */

static void line_append(inbox_t *inbox, entry_t *entry)
{
	entry->seq = inbox->n_lined++;
	list_append(&inbox->line, &entry->node);
}

static void line_append_bh(inbox_t *inbox, iou_bh_t *bh)
{
	bh_leave_idle(bh);
	bh->lined = true;
	line_append(inbox, &bh->entry);
}

/* Take entries from the mail, at most so many. */
static void inbox_take(inbox_t *inbox, uint64_t most)
{
	for (node_t *node; most && (node = mail_next(inbox)); most--) {
		entry_t *entry = entry_at(node);
		iou_bh_t *bh = entry->cb ? NULL : bh_of(entry);

		if (!bh) {
			line_append(inbox, entry);
		} else if (!bh_will_idle(bh)) {
			line_append_bh(inbox, bh);
		} else if (!bh->idles) {
			list_append(&inbox->idle, &bh->in_idle);
			bh->idles = true;
		}
	}
}

/* There is nothing else to do: idle bottom halves join the line. */
static void inbox_take_idle(inbox_t *inbox)
{
	for (unsigned n = 0; n < ROUND_MAX && !list_empty(&inbox->idle); n++) {
		iou_bh_t *bh = container_of(inbox->idle.next, iou_bh_t, in_idle);

		if (atomic_fetch_or(&bh->bits, BH_QUEUED) & BH_QUEUED)
			bh_leave_idle(bh); /* it was scheduled just now, and comes with the mail */
		else
			line_append_bh(inbox, bh);
	}
}

/* The loop's. Off the line or `idle`: when it is scheduled again, it gets a new place. */
static void bh_unqueue(inbox_t *inbox, iou_bh_t *bh)
{
	unsigned bits = BH_SCHEDULED | BH_IDLE;

	if (atomic_load(&bh->bits) & BH_QUEUED && !bh->lined)
		inbox_take(inbox, UINT64_MAX);
	bh_leave_idle(bh);
	if (bh->lined) {
		list_unlink(&bh->entry.node);
		bh->lined = false;
		bits |= BH_QUEUED;
	}
	atomic_fetch_and(&bh->bits, ~bits);
}

/*
 * From another thread: it keeps its place, in line or idle, until the loop comes to it. (The loop
 * does not sleep while a bottom half is idle.)
 */
static void bh_unschedule(iou_bh_t *bh)
{
	atomic_fetch_and(&bh->bits, ~(unsigned)(BH_SCHEDULED | BH_IDLE));
}

/* Take one off the line. Returns its callback; NULL if it was cancelled or deleted meanwhile. */
static int (*line_take(inbox_t *inbox, entry_t *entry, void **cb_data))(void *)
{
	int (*cb)(void *) = entry->cb;
	iou_bh_t *bh;
	unsigned bits;

	list_unlink(&entry->node);
	if (cb) {
		*cb_data = entry->cb_data;
		entry_free(inbox, entry);
		return cb;
	}
	bh = bh_of(entry);
	bh->lined = false;
	*cb_data = bh->cb_data;
	bits = atomic_fetch_and(&bh->bits, ~(unsigned)(BH_SCHEDULED | BH_IDLE | BH_QUEUED));
	if (bits & BH_DELETED) {
		bh_free(inbox, bh);
		return NULL;
	}
	return bits & (BH_SCHEDULED | BH_IDLE) ? bh->cb : NULL;
}

/* Take off the next one whose seq is below the bound. False: there is none. */
static bool line_next(inbox_t *inbox, uint64_t bound, int (**cb)(void *), void **cb_data)
{
	entry_t *entry = entry_at(inbox->line.next);

	if (list_empty(&inbox->line) || entry->seq >= bound)
		return false;
	*cb = line_take(inbox, entry, cb_data);
	inbox->n_called += *cb != NULL;
	return true;
}

static bool line_ready(const inbox_t *inbox) { return !list_empty(&inbox->line); }

/* The seq of the next entry: those in the line now have smaller ones. */
static uint64_t line_bound(const inbox_t *inbox) { return inbox->n_lined; }

static bool idle_ready(const inbox_t *inbox) { return unlikely(!list_empty(&inbox->idle)); }

/* True if there is anything that will be called some time. */
static bool inbox_pending(inbox_t *inbox)
{
	return line_ready(inbox) || !list_empty(&inbox->idle) || !mail_empty(inbox);
}

/* ---- Life ---- */

static void inbox_init(inbox_t *inbox)
{
	inbox->first = &inbox->stub;
	atomic_init(&inbox->last, &inbox->stub);
	atomic_init(&inbox->post_cursor, SLAB_ENTRIES); /* of no slab */
	list_init(&inbox->line);
	list_init(&inbox->idle);
	list_init(&inbox->bhs);
	pthread_mutex_init(&inbox->lock, NULL);
	inbox->wake_fd = -1;
	atomic_init(&inbox->fd, -1);
}

/* Drop everything that waits to be called; the bottom halves themselves stay. */
static void inbox_drop(inbox_t *inbox)
{
	inbox_take(inbox, UINT64_MAX);
	while (!list_empty(&inbox->idle))
		bh_leave_idle(container_of(inbox->idle.next, iou_bh_t, in_idle));
	while (!list_empty(&inbox->line)) {
		entry_t *entry = entry_at(inbox->line.next);

		list_unlink(&entry->node);
		if (entry->cb)
			entry_free(inbox, entry);
	}
}

/*
 * After inbox_drop(). In a forked child another thread may have held the lock while it changed
 * bhs: then these are left to the end of the process.
 */
static void inbox_free(inbox_t *inbox, bool is_copy)
{
	uintptr_t cursor = atomic_load(&inbox->post_cursor);
	bool intact = !is_copy || pthread_mutex_trylock(&inbox->lock) == 0;

	for (node_t *node = inbox->bhs.next, *next; intact && node != &inbox->bhs; node = next) {
		next = node->next;
		free(container_of(node, iou_bh_t, in_bhs));
	}
	if (!is_copy)
		pthread_mutex_destroy(&inbox->lock);
	if (cursor % SLAB_SIZE != SLAB_ENTRIES)
		free(slab_at(cursor));
	free(atomic_load(&inbox->spare_slab));
}

static void inbox_lock(inbox_t *inbox) { pthread_mutex_lock(&inbox->lock); }
static void inbox_unlock(inbox_t *inbox) { pthread_mutex_unlock(&inbox->lock); }

static void inbox_stats(const inbox_t *inbox, iou_stats_t *stats)
{
	stats->posts = inbox->n_called;
	stats->wakeups = RELAXED(inbox->n_wakeups);
}

/* How many are in the line or idle. */
static uint64_t inbox_length(const inbox_t *inbox)
{
	return list_length(&inbox->line) + list_length(&inbox->idle);
}

/*
 * ==== cancels ===================================================================================
 *
 * Cancelling ops that the kernel has, and the chains that such ops stand in. Loop thread only.
 *
 * A CANCEL names its op by address. So while one is out, the op's memory must not become another
 * op's: an op that ends meanwhile is HELD until the CANCEL's own CQE is there. The stages:
 *
 *   NONE ──► TO_SEND ──► SENT ──┬► FOUND: its CQE follows
 *    │          ▲          ▲      └► RETRY: not found, or only interrupted; sent again
 *    └► BEHIND ─┘          └─────────┘ a little later
 *
 * BEHIND: the op stands behind another one of its chain, where the kernel does not find it. Its
 * cancel is sent when that one has ended.
 *
 * To find an op, the kernel walks through one of a few lists of all ops in flight. With many
 * thousands of these, a cancel takes a tenth of a millisecond and more. So cancels are sent in
 * shares that take about one millisecond.
 */

#define RETRY_MAX_NS (128 * NS_PER_MS)

typedef struct cancels_t {
	node_t to_send;         /* cancels to send, the oldest first */
	node_t to_retry;        /* cancels to send again at retry_due_ns */
	uint64_t n_out;        /* CANCELs and fences in the SQ or the kernel */
	uint64_t retry_due_ns; /* if to_retry is not empty */
	uint64_t retry_ns;     /* the pause before that: 1 to 128 ms */
	unsigned share;        /* CANCELs that one enter may send, 1 to ROUND_MAX; adapted */
} cancels_t;

static void cancels_init(cancels_t *cancels)
{
	list_init(&cancels->to_send);
	list_init(&cancels->to_retry);
	cancels->retry_ns = NS_PER_MS;
	cancels->share = 8;
}

/* True if there is one to send. */
static bool cancels_ready(const cancels_t *cancels)
{
	return unlikely(!list_empty(&cancels->to_send));
}

/* When those on to_retry are sent again; NEVER if there is none. */
static uint64_t cancels_due_ns(const cancels_t *cancels)
{
	return list_empty(&cancels->to_retry) ? NEVER : cancels->retry_due_ns;
}

static bool cancels_in_flight(const cancels_t *cancels) { return cancels->n_out; }

/* True if a CANCEL was or will be sent, so that a CQE may tell of it. */
static bool cancel_is_under_way(const op_t *op)
{
	enum cancel_stage stage = cancel_of(op);

	return stage != CANCEL_NONE && stage != CANCEL_BEHIND && stage != CANCEL_OF_TIMER;
}

static void cancel_later(cancels_t *cancels, op_t *op)
{
	cancel_set(op, CANCEL_TO_SEND);
	list_append(&cancels->to_send, &op->node);
}

/*
 * Cancel an op in the ring. -EALREADY: an earlier op of its chain runs, and the CANCEL is sent once
 * that has ended.
 */
static int cancel_in_ring(cancels_t *cancels, op_t *op)
{
	if (op->bits & OP_CHAINED && op_extra(op)->chain.prev) {
		cancel_set(op, CANCEL_BEHIND);
		return -EALREADY;
	}
	if (cancel_of(op) == CANCEL_NONE || cancel_of(op) == CANCEL_BEHIND)
		cancel_later(cancels, op);
	return 0;
}

/* Note that op follows prev in a chain; NULL: op is its first. */
static void chain_join(op_t *op, op_t *prev)
{
	op->bits |= OP_CHAINED;
	op_extra(op)->chain.prev = prev;
	op_extra(op)->chain.next = NULL;
	if (prev)
		op_extra(prev)->chain.next = op;
}

/* It runs, so nothing before it holds it up any more. */
static void chain_begin(cancels_t *cancels, op_t *op)
{
	op_t *prev = op_extra(op)->chain.prev;

	if (!prev)
		return;
	op_extra(prev)->chain.next = op_extra(op)->chain.prev = NULL;
	if (cancel_of(op) == CANCEL_BEHIND)
		cancel_in_ring(cancels, op);
}

/* It no longer holds up the rest of its chain. */
static void chain_leave(cancels_t *cancels, op_t *op)
{
	op_t *prev = op_extra(op)->chain.prev, *next = op_extra(op)->chain.next;

	op->bits &= (uint8_t)~OP_CHAINED;
	if (prev)
		op_extra(prev)->chain.next = next;
	if (next) {
		op_extra(next)->chain.prev = prev;
		if (!prev && cancel_of(next) == CANCEL_BEHIND)
			cancel_in_ring(cancels, next);
	}
}

/* If none is under way any more, the next retry comes soon again. */
static void cancels_calm(cancels_t *cancels)
{
	if (list_empty(&cancels->to_send) && list_empty(&cancels->to_retry) && !cancels->n_out)
		cancels->retry_ns = NS_PER_MS;
}

/* The kernel has done with the op: it leaves its chain and the lists here. */
static void cancels_forget(cancels_t *cancels, op_t *op)
{
	if (op->bits & OP_CHAINED)
		chain_leave(cancels, op);
	if (cancel_of(op) == CANCEL_TO_SEND || cancel_of(op) == CANCEL_RETRY)
		list_unlink(&op->node);
	if (cancel_of(op) != CANCEL_NONE)
		cancels_calm(cancels);
}

/*
 * A fence is a request whose CQE comes after a notification that may be on its way. A zero-copy
 * send that failed with its chain needs one: its CQE lacks F_MORE, yet on 6.18 a notification may
 * follow. An async cancel through io-wq comes late enough. SQPOLL's thread works off its own queue
 * first: there it is a timeout of 1 ns.
 */
static void fence_prepare(const ring_t *ring, struct io_uring_sqe *sqe, op_t *op)
{
	static struct __kernel_timespec soon = {.tv_nsec = 1};

	if (ring_is_sqpoll(ring)) {
		io_uring_prep_timeout(sqe, &soon, 0, 0);
	} else {
		io_uring_prep_cancel64(sqe, (uintptr_t)op, 0);
		sqe->flags = IOSQE_ASYNC;
	}
}

/* Send a fence for a HELD op. Its CANCEL is not out. */
static void cancel_fence(cancels_t *cancels, op_t *op)
{
	op_extra(op)->needs_fence = false;
	cancel_later(cancels, op);
}

/* Follows ops_hold(). */
static void cancels_hold(cancels_t *cancels, op_t *op)
{
	if (cancel_of(op) != CANCEL_SENT)
		cancel_fence(cancels, op);
}

static void cancel_send(cancels_t *cancels, ring_t *ring, op_t *op)
{
	struct io_uring_sqe *sqe = sq_next_own(ring);

	list_unlink(&op->node);
	cancel_set(op, CANCEL_SENT);
	cancels->n_out++;
	if (op->state == OP_HELD)
		fence_prepare(ring, sqe, op);
	else
		io_uring_prep_cancel64(sqe, (uintptr_t)op, 0);
	sqe->user_data = (uintptr_t)op | UD_CANCEL;
}

/* Put a share of the cancels into the SQ. False: some are left. */
static bool cancels_send(cancels_t *cancels, ring_t *ring)
{
	for (unsigned n = 0; !list_empty(&cancels->to_send); n++) {
		if (n == cancels->share || !sq_room(ring))
			return false;
		cancel_send(cancels, ring, op_at(cancels->to_send.next));
	}
	return true;
}

/* Adapt the share: sending the last one took took_ns. */
static void cancels_pace(cancels_t *cancels, uint64_t took_ns)
{
	if (took_ns > 2 * NS_PER_MS && cancels->share > 1)
		cancels->share /= 2;
	else if (took_ns < NS_PER_MS / 2 && cancels->share < ROUND_MAX)
		cancels->share *= 2;
}

/* If it is time: ask again, with longer and longer pauses. */
static void cancels_retry(cancels_t *cancels)
{
	if (likely(list_empty(&cancels->to_retry)) || cancels->retry_due_ns > now_ns())
		return;
	list_splice(&cancels->to_send, &cancels->to_retry);
	cancels->retry_ns = min_u64(cancels->retry_ns * 2, RETRY_MAX_NS);
}

/* The kernel's answer, of an op that has not ended. */
static void cancel_answered(cancels_t *cancels, op_t *op, int result)
{
	if (result >= 0) {
		cancel_set(op, CANCEL_FOUND);
		return;
	}
	cancel_set(op, CANCEL_RETRY);
	if (list_empty(&cancels->to_retry))
		cancels->retry_due_ns = add_ns(now_ns(), cancels->retry_ns);
	list_append(&cancels->to_retry, &op->node);
}

/*
 * The CQE of a CANCEL or a fence. Returns the op if it was held for that and may be delivered
 * now. *error: a restriction refuses cancels, which the program must be told.
 */
static op_t *cancels_reap(cancels_t *cancels, uint64_t user_data, int result, int *error)
{
	op_t *op = (op_t *)(uintptr_t)(user_data & ~(uint64_t)UD_CANCEL);

	cancels->n_out--;
	if (op->state != OP_HELD) {
		cancel_answered(cancels, op, result);
		*error = result == -EACCES ? result : 0;
		return NULL;
	}
	if (op_extra(op)->needs_fence) {
		cancel_fence(cancels, op);
		return NULL;
	}
	cancels_calm(cancels);
	return op;
}

#ifdef IOU_DEBUG
/* Each op on the list is in the ring or held, at one of two stages. Returns how many there are. */
static uint64_t cancels_check_list(node_t *list, enum cancel_stage stage)
{
	for (node_t *node = list->next; node != list; node = node->next) {
		op_t *op = op_at(node);

		MUST(op->state == OP_RING || op->state == OP_HELD, "its op");
		MUST(node->next->prev == node, "a list");
		MUST(cancel_of(op) == stage || cancel_of(op) == CANCEL_RETRY, "a cancel");
	}
	return list_length(list);
}

static void cancels_check(cancels_t *cancels, uint64_t n_ring, uint64_t n_held)
{
	uint64_t n = cancels_check_list(&cancels->to_send, CANCEL_TO_SEND);

	MUST(n_held <= cancels->n_out + n, "ops held");
	n += cancels_check_list(&cancels->to_retry, CANCEL_RETRY);
	MUST(n <= n_ring + n_held, "cancels");
}
#endif

/*
 * ==== backlog ===================================================================================
 *
 * Queued ops that wait for room in the SQ, in a FIFO without bound. A chain enters the SQ whole.
 * Drained ops are the library's own work: IOSQE_IO_DRAIN is not passed on, since the kernel's way
 * slows down everything in the ring. Loop thread only.
 */

typedef struct backlog_t {
	node_t queue;
	uint64_t n;
	uint64_t n_max;     /* the most there were; not always up to date: see backlog_most() */
	bool barrier;       /* a drained chain was sent: nothing follows before it has ended */
	bool sent_cancel;   /* the program once sent a CANCEL, so that any op may end by it */
} backlog_t;

enum sent { SENT, NO_ROOM, BARRED };

static void backlog_init(backlog_t *backlog) { list_init(&backlog->queue); }
static bool backlog_empty(const backlog_t *backlog) { return list_empty(&backlog->queue); }
static uint64_t backlog_length(const backlog_t *backlog) { return backlog->n; }

static uint64_t backlog_most(const backlog_t *backlog)
{
	return backlog->n > backlog->n_max ? backlog->n : backlog->n_max;
}

static void backlog_append(backlog_t *backlog, op_t *op)
{
	list_append(&backlog->queue, &op->node);
	backlog->n++;
}

static op_t *backlog_first(const backlog_t *backlog) { return op_at(backlog->queue.next); }

static op_t *backlog_take(backlog_t *backlog, node_t *node)
{
	list_unlink(node);
	backlog->n--;
	return op_at(node);
}

/*
 * The kernel interrupted the op: put it back to the front, as if it had never been sent. Its CQE
 * completed nothing, and it is not in the ring any more.
 */
static void backlog_put_back(backlog_t *backlog, ring_t *ring, op_t *op)
{
	ring_count_other(ring);
	ring_count_back(ring);
	op->state = OP_BACKLOG;
	list_append(backlog->queue.next, &op->node);
	backlog->n++;
}

/* Ops queued after this belong to another chain. */
static void backlog_end_chain(backlog_t *backlog)
{
	if (!backlog_empty(backlog) && op_is_linked(op_at(backlog->queue.prev)))
		op_at(backlog->queue.prev)->bits |= OP_CHAIN_END;
}

/* The op and those linked after it end. Those before it become a chain of their own. */
static void backlog_cancel(backlog_t *backlog, ops_t *ops, op_t *op)
{
	node_t *before = op->node.prev, *next = &op->node;
	bool linked;

	backlog->n_max = backlog_most(backlog);
	if (before != &backlog->queue && op_is_linked(op_at(before)))
		op_at(before)->bits |= OP_CHAIN_END;
	do {
		node_t *node = next;

		next = node->next;
		op = backlog_take(backlog, node);
		linked = op_is_linked(op);
		ops_end_unsent(ops, op, -ECANCELED);
	} while (linked && next != &backlog->queue);
}

/* The length of the chain at the front, and all its flags together. */
static unsigned chain_length(const backlog_t *backlog, uint8_t *flags)
{
	op_t *op = backlog_first(backlog);
	unsigned n = 1;

	for (*flags = op->sqe.flags; op_is_linked(op) && op->node.next != &backlog->queue; n++) {
		op = op_at(op->node.next);
		*flags |= op->sqe.flags;
	}
	return n;
}

/* True if a drained chain is under way, or this one must wait for all others. */
static bool backlog_is_barred(const backlog_t *backlog, const ring_t *ring, uint8_t flags)
{
	return (backlog->barrier || flags & IOSQE_IO_DRAIN) && ring_in_flight(ring);
}

/* True if the front could be sent now, if there is room. */
static bool backlog_ready(const backlog_t *backlog, const ring_t *ring)
{
	uint8_t flags;

	if (backlog_empty(backlog))
		return false;
	chain_length(backlog, &flags);
	return !backlog_is_barred(backlog, ring, flags);
}

/*
 * Copy plain ops from the front into the SQ, `room` at most. Stops at the first that is linked,
 * drained, skips its CQE, or is a CANCEL.
 */
static void backlog_send_plain(backlog_t *backlog, ring_t *ring, unsigned room)
{
	node_t *node = backlog->queue.next;
	unsigned n;

	for (n = 0; n < room && node != &backlog->queue; n++) {
		op_t *op = op_at(node);

		if (unlikely(op->sqe.flags & (LINKS | OURS) ||
			     op->sqe.opcode == IORING_OP_ASYNC_CANCEL))
			break;
		*sq_slot(ring, n) = op->sqe;
		op->state = OP_RING;
		node = node->next;
	}
	backlog->queue.next = node;
	node->prev = &backlog->queue;
	backlog->n -= n;
	sq_add_ops(ring, n);
}

/* Send the chain at the front (or an op that is not plain): the whole of it, or nothing. */
static enum sent backlog_send_chain(backlog_t *backlog, ring_t *ring, ops_t *ops)
{
	op_t *prev = NULL, *op;
	uint8_t flags;
	unsigned n = chain_length(backlog, &flags);
	struct io_uring_sqe *sqe;

	if (n > sq_size(ring)) {
		while (n--)
			ops_end_unsent(ops, backlog_take(backlog, backlog->queue.next), -E2BIG);
		return SENT;
	}
	if (backlog_is_barred(backlog, ring, flags))
		return BARRED;
	if (sq_room(ring) < n)
		return NO_ROOM;
	backlog->barrier = flags & IOSQE_IO_DRAIN;
	do {
		op = backlog_take(backlog, backlog->queue.next);
		sqe = sq_slot(ring, 0);
		*sqe = op->sqe;
		sqe->flags &= (uint8_t)~OURS;
		op->state = OP_RING;
		backlog->sent_cancel |= sqe->opcode == IORING_OP_ASYNC_CANCEL;
		chain_join(op, prev);
		sq_add_ops(ring, 1);
		prev = op;
	} while (--n);
	sqe->flags &= (uint8_t)~LINKS;
	return SENT;
}

/* Fill the SQ. True: there is more, and only room is missing. */
static bool backlog_send(backlog_t *backlog, ring_t *ring, ops_t *ops)
{
	if (backlog_empty(backlog))
		return false;
	backlog->n_max = backlog_most(backlog);
	do {
		enum sent sent;

		if (unlikely(backlog->barrier)) {
			if (ring_in_flight(ring))
				return false;
			backlog->barrier = false;
		}
		backlog_send_plain(backlog, ring, sq_room(ring));
		if (backlog_empty(backlog))
			return false;
		sent = backlog_send_chain(backlog, ring, ops);
		if (sent != SENT)
			return sent == NO_ROOM;
	} while (!backlog_empty(backlog));
	return false;
}

static bool backlog_sent_cancel(const backlog_t *backlog) { return backlog->sent_cancel; }

#ifdef IOU_DEBUG
static void backlog_check(const backlog_t *backlog, uint64_t n)
{
	MUST(n == backlog->n && list_length(&backlog->queue) == n, "the backlog");
}
#endif

/*
 * ==== bell ======================================================================================
 *
 * The eventfd behind iou_fd(), which the ring signals with each CQE. Loop thread only.
 *
 *   CLEAN   registered; the kernel signals the next completion. STALE once it may have done so
 *   STALE   the signal may have been used up: on some kernels a completion that an eventfd (6.18)
 *           or a timerfd (6.12) causes is signalled only once for each registration. CLEAN or DEAF
 *           when embed_settle() has registered it again
 *   DEAF    registering failed: iou_fd() stays readable, and each embed_settle() tries again
 */

enum bell_state { BELL_CLEAN, BELL_STALE, BELL_DEAF };

/* Why iou itself, not the kernel, made the descriptor readable at the last embed_settle(). */
enum own_signal {
	OWN_NONE,
	OWN_FOR_MORE,  /* a poll has something to do */
	OWN_FOR_KERNEL /* completions may wait in the kernel unseen: a poll must enter it */
};

typedef struct bell_t {
	int fd;                 /* the eventfd, or -1 */
	int set;                /* with an engine: an epoll set of fd and the ring's one; or -1 */
	uint8_t state;          /* enum bell_state */
	uint8_t own_signal;     /* enum own_signal */
	uint64_t seen_activity; /* ring_activity() at the last rest */
	uint64_t seen_enters;   /* ring_n_enters() when own was set */
	uint64_t clock_due_ns;  /* the timerfd's setting, or NEVER */
} bell_t;

static void bell_init(bell_t *bell)
{
	bell->fd = bell->set = -1;
	bell->clock_due_ns = NEVER;
}

static void bell_close(const bell_t *bell)
{
	if (bell->fd >= 0)
		close(bell->fd);
	if (bell->set >= 0)
		close(bell->set);
}

/* The eventfd, which wakers write. */
static int bell_fd(const bell_t *bell) { return bell->fd; }

/* The descriptor that the program waits for. */
static int bell_program_fd(const bell_t *bell) { return bell->set >= 0 ? bell->set : bell->fd; }

/* Add a descriptor to the set. 0 or -errno. */
static int bell_add(const bell_t *bell, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(bell->set, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/*
 * Open the eventfd if there is none. An engine's ring has a descriptor that becomes readable
 * (ring_fd, else -1): with one, the program waits for both, in a set.
 */
static int bell_open(bell_t *bell, int ring_fd)
{
	bool is_new = bell->fd < 0;
	int ret = 0;

	if (is_new) /* readable at first, so that a poll arms the watches */
		bell->fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	if (bell->fd < 0)
		return -errno;
	if (ring_fd < 0)
		return 0;
	if (is_new) {
		bell->set = epoll_create1(EPOLL_CLOEXEC);
		ret = bell->set < 0 ? -errno : bell_add(bell, bell->fd);
	}
	return ret < 0 ? ret : bell_add(bell, ring_fd);
}

/* Open it if that is still to be done, and register it with this ring. Mute until iou_fd(). */
static int bell_register(bell_t *bell, ring_t *ring, bool mute)
{
	bell_t opened = *bell;
	int ret = bell_open(&opened, ring_engine_fd(ring));

	if (ret >= 0)
		ret = ring_set_eventfd(ring, opened.fd);
	if (ret >= 0) {
		*bell = opened;
		ring_mute_eventfd(ring, mute);
	} else if (bell->fd < 0) {
		bell_close(&opened);
	}
	return ret;
}

/* True if OWN_FOR_KERNEL holds, and nothing has entered the kernel since. */
static bool bell_is_blind(const bell_t *bell, const ring_t *ring)
{
	return bell->own_signal == OWN_FOR_KERNEL && ring_n_enters(ring) == bell->seen_enters;
}

/* Make the descriptor unreadable. True: the kernel has signalled it, or may have. */
static bool bell_read(bell_t *bell, const ring_t *ring)
{
	eventfd_t n_signals = 0;
	bool news;

	eventfd_read(bell->fd, &n_signals);
	news = n_signals > (bell->own_signal != OWN_NONE) ||
	       ring_activity(ring) != bell->seen_activity;
	bell->seen_activity = ring_activity(ring);
	if (news && bell->state == BELL_CLEAN)
		bell->state = BELL_STALE;
	return news;
}

/* True if completions may come that the kernel will not signal. Other rings signal each. */
static bool bell_needs_renewal(const bell_t *bell, const ring_t *ring, bool expects)
{
	return ring_defers(ring) && ring_engine_fd(ring) < 0 && bell->state != BELL_CLEAN &&
	       (expects || bell->state == BELL_DEAF);
}

static int bell_renew(bell_t *bell, const ring_t *ring)
{
	int ret = ring_renew_eventfd(ring, bell->fd);

	bell->state = ret < 0 ? BELL_DEAF : BELL_CLEAN;
	return ret;
}

static bool bell_is_deaf(const bell_t *bell) { return bell->state == BELL_DEAF; }

static void bell_set_own(bell_t *bell, const ring_t *ring, enum own_signal own)
{
	bell->own_signal = (uint8_t)own;
	bell->seen_enters = ring_n_enters(ring);
}

static void bell_set_clock(bell_t *bell, const ring_t *ring, uint64_t due_ns)
{
	if (due_ns != bell->clock_due_ns)
		watch_set_clock(ring, due_ns);
	bell->clock_due_ns = due_ns;
}

/*
 * ==== loop ======================================================================================
 *
 * The loop's own data: active runs, an unfinished round, a refusal to report, holds, the quit flag.
 * Loop thread only, but for the last two, which any thread changes.
 */

enum stage { AT_NONE, AT_TIMERS, AT_INBOX, AT_ENDED, AT_CQES };

/* [open] The room rounds fills it. The bounds of a round: counts of its sources. */
typedef struct round_t {
	bool quits;          /* iou_quit() ends it: it is iou_run()'s */
	uint8_t stage;       /* enum stage: the source that it delivers now; AT_NONE: done */
	int n_calls;         /* callbacks called */
	uint64_t at_ns;      /* timers due by then */
	uint64_t timer_seq;  /* timers with a smaller seq */
	uint64_t entry_bound, ended_bound, cqe_bound;
	unsigned n_deadlines, n_timers, n_entries; /* how many more of these it may take */
} round_t;

typedef struct loop_t {
	round_t unfinished;   /* a round that ended early: the next one starts with it */
	unsigned n_runs;      /* active iou_run() calls */
	unsigned n_shortages; /* fruitless enters in a row */
	int refusal;          /* error of the library's own poll or cancel, to be told; or 0 */
	bool ending;          /* iou_free(): nothing is called back */
	uint64_t spin_ns, spin_max_ns; /* look for completions so long before sleeping; 0: not */
	/* Written by any thread: */
	_Alignas(64) atomic_bool quit;
	atomic_llong n_holds;
} loop_t;

#define SHORTAGES_MAX 8 /* enters in vain, with pauses of 2 to 64 ms, until the program is told */
#define SPIN_MIN_NS   2000

static void loop_init(loop_t *loop, uint64_t spin_ns)
{
	loop->spin_max_ns = spin_ns;
	loop->spin_ns = min_u64(spin_ns, SPIN_MIN_NS);
}

/* The kernel refused a request of iou's own (watch, cancel, eventfd): the program must be told. */
static void loop_refuse(loop_t *loop, int error) { loop->refusal = error; }

static int loop_refusal(const loop_t *loop) { return loop->refusal; }

static int loop_take_refusal(loop_t *loop)
{
	int error = loop->refusal;

	loop->refusal = 0;
	return error;
}

static bool loop_is_ending(const loop_t *loop) { return unlikely(loop->ending); }

static void loop_set_ending(loop_t *loop)
{
	loop->ending = true;
	loop->refusal = 0; /* of a watch, which is not needed any more */
}

/* After an enter in vain: true if it may be tried again, false if the program must be told. */
static bool loop_may_retry(loop_t *loop) { return loop->n_shortages++ < SHORTAGES_MAX; }

static void loop_forget_shortages(loop_t *loop) { loop->n_shortages = 0; }

/* How long to pause after the last one: it doubles each time. */
static uint64_t loop_pause_ns(const loop_t *loop)
{
	return NS_PER_MS << (loop->n_shortages < 6 ? loop->n_shortages : 6);
}

static uint64_t loop_spin_ns(const loop_t *loop) { return loop->spin_ns; }

/* Twice as long the next time if a completion came while it looked, else half. */
static void loop_adapt_spin(loop_t *loop, bool found)
{
	uint64_t max_ns = loop->spin_max_ns;
	uint64_t min_ns = max_ns / 64 > SPIN_MIN_NS ? max_ns / 64 : SPIN_MIN_NS;
	uint64_t ns = found ? add_ns(loop->spin_ns, loop->spin_ns) : loop->spin_ns / 2;

	loop->spin_ns = min_u64(ns > min_ns ? ns : min_ns, max_ns);
}

/* Any thread. */
static void loop_ask_quit(loop_t *loop) { atomic_store(&loop->quit, true); }

static bool loop_must_quit(loop_t *loop) { return atomic_load(&loop->quit); }
static void loop_begin_run(loop_t *loop) { loop->n_runs++; }

/* A quit ends all runs, the outermost last. */
static void loop_end_run(loop_t *loop)
{
	if (--loop->n_runs == 0)
		atomic_store(&loop->quit, false);
}

/* True if the round may call the next callback. */
static inline bool loop_goes_on(loop_t *loop, const round_t *round, int ret)
{
	return likely(ret >= 0) &&
	       !(unlikely(RELAXED(loop->quit)) && round->quits);
}

/* Any thread, as the next one. */
static void loop_hold(loop_t *loop) { atomic_fetch_add(&loop->n_holds, 1); }

/* Returns how many holds there were before. */
static long long loop_unhold(loop_t *loop) { return atomic_fetch_sub(&loop->n_holds, 1); }

static long long loop_n_holds(loop_t *loop) { return atomic_load(&loop->n_holds); }

/* The round ended early: the next one continues it. */
static void loop_keep_unfinished(loop_t *loop, const round_t *round) { loop->unfinished = *round; }

/* False: nothing was left. */
static bool loop_take_unfinished(loop_t *loop, round_t *round)
{
	if (likely(!loop->unfinished.stage))
		return false;
	*round = loop->unfinished;
	loop->unfinished.stage = AT_NONE;
	return true;
}

/*
 * ==== iou =======================================================================================
 *
 * The whole. Its members are the parts above, one each; a part's own functions change it. The
 * rooms from here on work with more than one part.
 */

/* [open] A function that iou_free() calls last: see the room life. */
typedef struct hook_t {
	struct hook_t *next;
	void (*fn)(void *data);
	void *data;
} hook_t;

struct iou_t {
	ring_t ring;
	loop_t loop;
	owner_t owner;
	ops_t ops;
	backlog_t backlog;
	cancels_t cancels;
	timers_t timers;
	bell_t bell;
	workers_t workers;
	inbox_t inbox;
	hook_t *hooks; /* of iou_at_free(), the latest first; the room life's */
};

static _Thread_local iou_t *current_iou; /* whose callback this thread runs */

/* How calls of the loop thread begin: those that return nothing, and those that return an int. */
#define MUST_OWN(iou) \
	do { \
		MUST(iou, "iou is NULL"); \
		MUST(owner_allows(&(iou)->owner), \
		     "called from a thread that does not own the iou"); \
	} while (0)

#define CHECK_OWN(iou, valid) \
	do { \
		if (unlikely(!(iou) || !(valid))) \
			return -EINVAL; \
		if (unlikely(!owner_allows(&(iou)->owner))) \
			return -EEXIST; \
	} while (0)

static bool is_here(const iou_t *iou) { return owner_is_here(&iou->owner); }

/* The invariants of the parts, while there are not too many ops. Before and after each round. */
static void iou_check(iou_t *iou)
{
#ifdef IOU_DEBUG
	uint64_t n[OP_ENDED + 1] = {0}, n_in_heaps = 0;

	if (ops_next_size(&iou->ops) > 1300)
		return;
	ops_check(&iou->ops, n, &n_in_heaps);
	MUST(n_in_heaps == timers_check(&iou->timers), "the heaps");
	MUST(n[OP_RING] == ring_in_flight(&iou->ring), "ops in the ring");
	backlog_check(&iou->backlog, n[OP_BACKLOG]);
	cancels_check(&iou->cancels, n[OP_RING], n[OP_HELD]);
#else
	(void)iou;
#endif
}

/* Ops between their queueing and their last callback. */
static uint64_t n_pending(const iou_t *iou)
{
	return backlog_length(&iou->backlog) + ring_in_flight(&iou->ring) +
	       ops_elsewhere(&iou->ops);
}

/* True if another thread has published something that the loop has not taken. */
static inline bool others_ready(iou_t *iou)
{
	return mail_ready(&iou->inbox) || workers_ready(&iou->workers);
}

/*
 * ==== ops =======================================================================================
 *
 * Ops as the program has them: taking one, giving it back, its environment, queueing it for the
 * ring. Loop thread only, but for the environment of a job's op.
 */

/* Room for more ops, also in the heaps and the pool: so nothing later needs memory. */
static COLD bool iou_grow(iou_t *iou)
{
	size_t n_ops = ops_next_size(&iou->ops);

	return timers_reserve(&iou->timers, n_ops) && workers_reserve(&iou->workers, n_ops) &&
	       ring_reserve(&iou->ring, n_ops) && ops_grow(&iou->ops);
}

iou_op_t *iou_op_new(iou_t *iou)
{
	if (unlikely(!iou || !owner_allows(&iou->owner)))
		return null_with_errno(iou ? EEXIST : EINVAL);
	if (unlikely(ops_full(&iou->ops)) && !iou_grow(iou))
		return null_with_errno(ENOMEM);
	return &ops_take(&iou->ops, iou)->pub;
}

void iou_op_free(iou_t *iou, iou_op_t *pub)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	if (!op)
		return;
	MUST_HAVE_OP(iou, op, false);
	op->cb = NULL; /* if it is used later, the message can say that it was given back here */
	if (op->bits & OP_CALLED)
		op->state = OP_FREE; /* it goes back to the pool when its callback returns */
	else
		ops_give_back(&iou->ops, op);
}

/* The rare cases of iou_op_queue(), out of line. */
static NOINLINE void op_queued(iou_t *iou, op_t *op, uint64_t after_ns)
{
	if (op->bits & OP_DEADLINE)
		deadline_start(&iou->timers, op, after_ns);
	inbox_touch(&iou->inbox);
}

void iou_op_queue(iou_t *iou, iou_op_t *pub, int (*cb)(void *cb_data), void *cb_data)
{
	op_t *op = (op_t *)pub;
	uint64_t after_ns;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, false);
	MUST(cb, "cb is NULL");
	MUST(sqe_is_prepared(op), "op is not prepared: its SQE is zero (a NOP's fd is -1)");
	after_ns = op->after_ns; /* the node takes its place */
	op_accept(op, OP_BACKLOG, cb, cb_data);
	op->sqe.user_data = (uintptr_t)op;
	backlog_append(&iou->backlog, op);
	if (unlikely(op->bits & OP_DEADLINE || inbox_has_fd(&iou->inbox)))
		op_queued(iou, op, after_ns);
}

void *iou_op_env(iou_op_t *pub, size_t size)
{
	op_t *op = (op_t *)pub;
	void *env;

	if (!op)
		return null_with_errno(EINVAL);
	if (op->state == OP_JOB ? !is_here(op->iou) : !owner_allows(&op->iou->owner))
		return null_with_errno(EEXIST);
	MUST(op->state != OP_FREE, "op was given back");
	if (op->env)
		return null_with_errno(EEXIST);
	env = env_make(op, size);
	return env ? env : null_with_errno(ENOMEM);
}

iou_op_t *iou_op_of(const void *env)
{
	op_t *op;

	if (!env)
		return null_with_errno(EINVAL);
	/* Of a pointer's alignment only: calloc() may align to 8 (32-bit ARM). */
	op = (uintptr_t)env % _Alignof(op_t *) == 0 ? env_op(env) : NULL;
	MUST(op, "not an environment, or not that of an op any more");
	return &op->pub;
}

void iou_op_deadline(iou_t *iou, iou_op_t *pub, uint64_t after_ns)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, false);
	deadline_set(op, after_ns);
}

static int on_handler(void *cb_data)
{
	op_t *op = cb_data;
	iou_handler_t *handler = *(iou_handler_t **)op_extra(op)->small_env;

	handler->result = op->pub.result;
	handler->flags = op->pub.flags;
	return handler->cb(handler);
}

int iou_add_sqe(iou_t *iou, void (*prep_sqe)(struct io_uring_sqe *sqe, void *opaque), void *opaque,
		iou_handler_t *handler)
{
	iou_op_t *op;
	iou_handler_t **env;

	CHECK_OWN(iou, prep_sqe && handler && handler->cb);
	op = iou_op_new(iou);
	if (!op)
		return -ENOMEM;
	env = iou_op_env(op, sizeof(*env)); /* small: it needs no memory */
	*env = handler;
	prep_sqe(op->sqe, opaque);
	MUST(sqe_is_prepared((op_t *)op), "prep_sqe left the SQE zero (a NOP's fd is -1)");
	iou_op_queue(iou, op, on_handler, op);
	return 0;
}

/*
 * ==== jobs ======================================================================================
 *
 * The other doors that an op may leave by: the workers and the clock. Loop thread only.
 */

int iou_op_async(iou_t *iou, iou_op_t *pub, int (*work)(void *work_data), void *work_data,
		 int (*cb)(void *cb_data), void *cb_data)
{
	op_t *op = (op_t *)pub;
	uint64_t after_ns;
	uint8_t was;
	int ret;

	CHECK_OWN(iou, op && work && cb);
	MUST_HAVE_OP(iou, op, false);
	was = op->state;
	after_ns = op->after_ns; /* the job takes its place */
	op_accept(op, OP_JOB, cb, cb_data);
	ret = workers_queue(&iou->workers, op, work, work_data);
	if (ret < 0) {
		op->state = was;
		return ret;
	}
	ops_count_elsewhere(&iou->ops);
	if (unlikely(op->bits & OP_DEADLINE))
		deadline_start(&iou->timers, op, after_ns);
	inbox_touch(&iou->inbox);
	return 0;
}

/* Jobs that workers gave back, `most` at most, have ended. */
static void jobs_collect(iou_t *iou, uint64_t most)
{
	uint64_t bound = workers_done_bound(&iou->workers);
	op_t *op;
	int result;

	for (; most && (op = workers_collect(&iou->workers, bound, &result)); most--) {
		op->bits &= (uint8_t)~OP_EXPIRED; /* too late: it keeps its result */
		ops_end(&iou->ops, op, result);
	}
}

/* The environment of an op of iou_async(). */
typedef struct short_job_t {
	int (*async_cb)(void *async_cb_data);
	void *async_cb_data;
	int (*completion_cb)(void *completion_cb_data);
	void *completion_cb_data;
	bool ran;
} short_job_t;

static int short_job_work(void *work_data)
{
	short_job_t *short_job = work_data;

	short_job->ran = true;
	return short_job->async_cb(short_job->async_cb_data);
}

/* An error of the job's is the callback's too, unless that returns one of its own. */
static int on_short_job(void *cb_data)
{
	short_job_t *short_job = cb_data;
	int result = env_op(short_job)->pub.result;
	int ret = short_job->completion_cb(short_job->completion_cb_data);

	return ret >= 0 && result < 0 && short_job->ran ? result : ret;
}

int iou_async(iou_t *iou, int (*async_cb)(void *async_cb_data), void *async_cb_data,
	      int (*completion_cb)(void *completion_cb_data), void *completion_cb_data)
{
	iou_op_t *op;
	short_job_t *env;
	int ret;

	CHECK_OWN(iou, async_cb && completion_cb);
	op = iou_op_new(iou);
	if (!op)
		return -ENOMEM;
	env = iou_op_env(op, sizeof(*env)); /* small: it needs no memory */
	*env = (short_job_t){async_cb, async_cb_data, completion_cb, completion_cb_data, false};
	ret = iou_op_async(iou, op, short_job_work, env, on_short_job, env);
	if (ret < 0)
		iou_op_free(iou, op);
	return ret;
}

/* The program's own function, behind the library's of iou_async() and iou_add_sqe(). */
static void *op_function(const op_t *op, bool work)
{
	const void *env = op_extra(op)->small_env;
	const short_job_t *short_job = env;
	iou_handler_t *const *handler = env;

	if (op->cb == on_short_job)
		return (void *)(uintptr_t)(work ? short_job->async_cb : short_job->completion_cb);
	if (op->cb == on_handler)
		return (void *)(uintptr_t)(*handler)->cb;
	return (void *)(uintptr_t)(work ? op->job.work : op->cb);
}

void iou_op_timer(iou_t *iou, iou_op_t *pub, uint64_t after_ns, uint64_t period_ns,
		  int (*cb)(void *cb_data), void *cb_data)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, op->state == OP_TIMER || cancel_of(op) == CANCEL_OF_TIMER);
	MUST(cb, "cb is NULL");
	if (op_is_programs(op)) {
		op->state = OP_TIMER;
		op->bits &= OP_CALLED; /* a timer has no deadline */
		ops_count_elsewhere(&iou->ops);
	}
	op_accept(op, op->state, cb, cb_data);
	if (op->state != OP_TIMER) /* cancelled, and not yet delivered: only the callback changes */
		return;
	timer_start(&iou->timers, op, after_ns, period_ns);
	inbox_touch(&iou->inbox);
}

/*
 * ==== cancelling ================================================================================
 *
 * Cancelling an op in any state; a deadline that expires cancels too. Loop thread only.
 */

static int op_cancel(iou_t *iou, op_t *op)
{
	switch (op->state) {
	case OP_BACKLOG:
		backlog_cancel(&iou->backlog, &iou->ops, op);
		return 0;
	case OP_RING:
		return cancel_in_ring(&iou->cancels, op);
	case OP_JOB:
		if (!job_withdraw(&iou->workers, op))
			return -EALREADY;
		ops_end(&iou->ops, op, -ECANCELED);
		return 0;
	case OP_TIMER:
		timer_stop(&iou->timers, op);
		ops_end(&iou->ops, op, -ECANCELED);
		cancel_set(op, CANCEL_OF_TIMER);
		return 0;
	case OP_HELD:
	case OP_ENDED:
		return 0;
	default:
		return -EINVAL;
	}
}

/* Cancel the next op whose deadline has passed. False: there is none. */
static bool deadline_expire(iou_t *iou, uint64_t at_ns)
{
	op_t *op = deadlines_next(&iou->timers, at_ns);

	if (!op)
		return false;
	if (cancel_of(op) == CANCEL_NONE)
		op->bits |= OP_EXPIRED;
	op_cancel(iou, op);
	return true;
}

int iou_op_cancel(iou_t *iou, iou_op_t *pub)
{
	op_t *op = (op_t *)pub;
	int ret;

	CHECK_OWN(iou, op);
	MUST(op->iou == iou, "op of another iou");
	jobs_collect(iou, UINT64_MAX); /* jobs that finished before come before it */
	ret = op_cancel(iou, op);
	inbox_touch(&iou->inbox);
	return ret;
}

int iou_cancel_all(iou_t *iou)
{
	CHECK_OWN(iou, true);
	jobs_collect(iou, UINT64_MAX);
	while (!backlog_empty(&iou->backlog)) /* in the order in which they were queued */
		op_cancel(iou, backlog_first(&iou->backlog));
	FOR_EACH_OP(&iou->ops, chunk, op)
		op_cancel(iou, op);
	inbox_touch(&iou->inbox);
	return 0;
}

/*
 * ==== posts =====================================================================================
 *
 * Calls for any thread: posts, bottom halves, quit, holds.
 */

int iou_post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	entry_t *entry;

	if (!iou || !cb)
		return -EINVAL;
	if (!is_here(iou))
		return -EEXIST;
	entry = entry_take(&iou->inbox);
	if (!entry)
		return -ENOMEM;
	entry_push(&iou->inbox, entry, cb, cb_data);
	return 0;
}

iou_bh_t *iou_bh_new(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	iou_bh_t *bh;

	if (!iou || !cb || !is_here(iou))
		return null_with_errno(iou && cb ? EEXIST : EINVAL);
	bh = bh_make(&iou->inbox, iou, cb, cb_data);
	return bh ? bh : null_with_errno(ENOMEM);
}

static void bh_change(iou_bh_t *bh, unsigned bits, const char *function)
{
	if (unlikely(!bh))
		die_of_misuse(function, "bh is NULL");
	if (is_here(bh_iou(bh)) && unlikely(!bh_set(&bh_iou(bh)->inbox, bh, bits)))
		die_of_misuse(function, "bh was deleted");
}

void iou_bh_schedule(iou_bh_t *bh)
{
	bh_change(bh, BH_SCHEDULED, __func__);
}

void iou_bh_schedule_idle(iou_bh_t *bh)
{
	bh_change(bh, BH_IDLE, __func__);
}

/*
 * On the loop thread: off the line. On another thread: only marked. If no thread owns the iou (it
 * has not run, or is handed), the lock keeps a loop from starting, and depth tells whether one
 * runs.
 */
void iou_bh_cancel(iou_bh_t *bh)
{
	iou_t *iou;

	MUST(bh, "bh is NULL");
	iou = bh_iou(bh);
	if (!is_here(iou))
		return;
	MUST(!bh_is_deleted(bh), "bh was deleted");
	if (owner_is_looping(&iou->owner)) {
		bh_unqueue(&iou->inbox, bh);
	} else if (owner_exists(&iou->owner)) {
		bh_unschedule(bh);
	} else {
		inbox_lock(&iou->inbox);
		if (!owner_exists(&iou->owner) && !owner_depth(&iou->owner))
			bh_unqueue(&iou->inbox, bh);
		else
			bh_unschedule(bh);
		inbox_unlock(&iou->inbox);
	}
}

void iou_bh_delete(iou_bh_t *bh)
{
	if (bh)
		bh_change(bh, BH_DELETED, __func__);
}

int iou_quit(iou_t *iou)
{
	if (!iou)
		return -EINVAL;
	if (!is_here(iou))
		return -EEXIST;
	visitor_enter(&iou->owner);
	loop_ask_quit(&iou->loop);
	inbox_wake(&iou->inbox);
	visitor_leave(&iou->owner);
	return 0;
}

void iou_hold(iou_t *iou)
{
	MUST(iou, "iou is NULL");
	if (is_here(iou))
		loop_hold(&iou->loop);
}

void iou_unhold(iou_t *iou)
{
	long long before;

	MUST(iou, "iou is NULL");
	if (!is_here(iou))
		return;
	visitor_enter(&iou->owner);
	before = loop_unhold(&iou->loop);
	MUST(before > 0, "more often than iou_hold");
	if (before == 1)
		inbox_wake(&iou->inbox);
	visitor_leave(&iou->owner); /* iou_free() may follow at once */
}

/*
 * ==== submit ====================================================================================
 *
 * Filling the SQ and entering the kernel: the library's polls, then cancels, then the backlog. Loop
 * thread only.
 */

static bool is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

/* True if the watches must be armed: the loop may sleep, or the program waits for iou_fd(). */
static bool watches_needed(const iou_t *iou, bool may_sleep)
{
	return watches_lack_poll(&iou->ring) && (may_sleep || inbox_has_fd(&iou->inbox)) &&
	       !loop_is_ending(&iou->loop) && !loop_refusal(&iou->loop);
}

/* Fill the SQ; with cancels, a share of them. True: there is more. */
static bool submit_fill(iou_t *iou, bool may_sleep, bool cancels)
{
	backlog_end_chain(&iou->backlog);
	cancels_retry(&iou->cancels);
	if (unlikely(watches_needed(iou, may_sleep)) && !watches_send(&iou->ring))
		return true;
	if (cancels_ready(&iou->cancels) && cancels && !cancels_send(&iou->cancels, &iou->ring))
		return true;
	return backlog_send(&iou->backlog, &iou->ring, &iou->ops);
}

/* True if there is something that submit_fill() could put into an empty SQ. */
static bool submit_has_more(const iou_t *iou)
{
	return cancels_ready(&iou->cancels) || watches_lack_poll(&iou->ring) ||
	       backlog_ready(&iou->backlog, &iou->ring);
}

/*
 * The kernel took the first part of a chain only, and runs it as a chain of its own: the rest must
 * not run. Its SQEs become NOPs.
 */
static COLD void submit_cut_chain(iou_t *iou)
{
	bool linked;
	op_t *op;

	for (unsigned i = 0; (op = sq_take_back(&iou->ring, i, &linked)); i++) {
		cancels_forget(&iou->cancels, op);
		ops_end_unsent(&iou->ops, op, -ECANCELED);
	}
}

static int submit_enter(iou_t *iou, unsigned what, uint64_t until_ns)
{
	int ret = ring_enter(&iou->ring, what, until_ns);

	if (ring_cut_chain(&iou->ring))
		submit_cut_chain(iou);
	return ret;
}

/* After a shortage: pause, until a completion or the next try. 0: try again. */
static COLD int submit_pause(iou_t *iou, int error)
{
	int ret;

	if (!loop_may_retry(&iou->loop)) {
		loop_forget_shortages(&iou->loop);
		return error;
	}
	ret = submit_enter(iou, WAIT, add_ns(now_ns(), loop_pause_ns(&iou->loop)));
	return is_shortage(ret) ? 0 : ret;
}

/*
 * ==== wait ======================================================================================
 *
 * Is anything pending, is anything ready, when is the next time; and the one function that submits
 * and sleeps. Loop thread only.
 */

/* True if something will be called some time: iou_run() goes on. */
static inline bool wait_is_pending(iou_t *iou)
{
	return n_pending(iou) || loop_n_holds(&iou->loop) > 0 || inbox_pending(&iou->inbox);
}

/* When the clock has something for the loop. */
static uint64_t wait_due_ns(const iou_t *iou)
{
	uint64_t due_ns = timers_any(&iou->timers) ? timers_due_ns(&iou->timers) : NEVER;

	return min_u64(due_ns, cancels_due_ns(&iou->cancels));
}

/* True if something can be delivered now. Idle bottom halves wait until nothing can. */
static bool wait_is_ready(iou_t *iou)
{
	return cq_ready(&iou->ring) || ops_ended_ready(&iou->ops) || line_ready(&iou->inbox) ||
	       others_ready(iou) ||
	       (timers_any(&iou->timers) && timers_due_ns(&iou->timers) <= now_ns());
}

/* True if something is pending, no quit was asked for, and there is no error to tell. */
static bool wait_may_sleep(iou_t *iou, bool quits)
{
	return wait_is_pending(iou) && !(quits && loop_must_quit(&iou->loop)) &&
	       !loop_refusal(&iou->loop);
}

/* Announce how to wake the loop, then look for mail. False: some came. The caller sets it back. */
static bool wait_doze(iou_t *iou, enum sleep sleep)
{
	inbox_set_sleep(&iou->inbox, sleep);
	return !others_ready(iou);
}

/* Look for completions for a while, before sleeping. */
static COLD void wait_spin(iou_t *iou, bool quits, uint64_t until_ns)
{
	bool found;

	until_ns = min_u64(until_ns, add_ns(now_ns(), loop_spin_ns(&iou->loop)));
	do {
		cpu_pause();
		if (ring_engine_fd(&iou->ring) >= 0) /* it completes nothing by itself */
			submit_enter(iou, 0, 0);
		found = cq_ready(&iou->ring) || others_ready(iou) || sq_flags_tell(&iou->ring);
	} while (!found && wait_may_sleep(iou, quits) && now_ns() < until_ns);
	loop_adapt_spin(&iou->loop, found);
}

/* Enter the kernel and sleep there until something is ready, or until then. */
static int wait_sleep(iou_t *iou, bool quits, uint64_t until_ns)
{
	enum sleep before = inbox_sleep(&iou->inbox);
	bool sleeps = wait_doze(iou, ASLEEP) && wait_may_sleep(iou, quits);
	int ret = submit_enter(iou, sleeps ? SUBMIT | WAIT : SUBMIT, until_ns);

	inbox_end_sleep(&iou->inbox, before);
	return ret;
}

/*
 * Submit queued ops: all of them, or a round's share. If nothing is ready then, sleep until
 * something is, or until until_ns (0: do not sleep). Returns 0 or -errno.
 */
static int wait_submit(iou_t *iou, bool quits, uint64_t until_ns)
{
	const uint64_t n_sent = ring_n_sent(&iou->ring);
	bool may_spin = loop_spin_ns(&iou->loop), cancels = true;

	for (;;) {
		uint64_t began_ns = cancels_ready(&iou->cancels) && cancels ? now_ns() : 0;
		bool left = submit_fill(iou, until_ns, cancels);
		bool more = left || cancels_ready(&iou->cancels);
		bool wait = until_ns && !more && !wait_is_ready(iou) && !idle_ready(&iou->inbox);
		uint64_t due_ns = wait ? min_u64(until_ns, wait_due_ns(iou)) : 0;
		int ret;

		if (wait && may_spin && submit_enter(iou, SUBMIT, 0) == 0) {
			may_spin = false;
			wait_spin(iou, quits, due_ns);
			continue;
		}
		ret = wait ? wait_sleep(iou, quits, due_ns) : submit_enter(iou, SUBMIT, 0);
		if (unlikely(more && began_ns))
			cancels_pace(&iou->cancels, now_ns() - began_ns);
		if (likely(ret == 0))
			loop_forget_shortages(&iou->loop);
		else if (!is_shortage(ret))
			return ret;
		else if (wait_is_ready(iou) || (!until_ns && loop_may_retry(&iou->loop)))
			return 0;
		else if ((ret = submit_pause(iou, ret)))
			return ret;
		else
			continue;
		more |= !ring_is_sqpoll(&iou->ring) && !sq_empty(&iou->ring); /* one was bad */
		if (!more || cq_half_full(&iou->ring) ||
		    ring_n_sent(&iou->ring) >= n_sent + ROUND_MAX)
			return 0;
		if (cancels_ready(&iou->cancels)) { /* a share was sent: now the rest */
			if (cancels ? backlog_empty(&iou->backlog) : !left)
				return 0;
			cancels = false;
		}
		ring_wait_for_sqpoll(&iou->ring);
	}
}

/*
 * ==== embed =====================================================================================
 *
 * iou_fd(): an iou in a foreign loop. Whenever a call of iou returns, and while callbacks run, one
 * of two holds:
 *
 *   AWAKE     (inbox.sleeping) the descriptor is readable
 *   RESTING   a poll has nothing to do. These make the descriptor readable: the kernel, for each
 *             CQE; the timerfd, through a CQE of its watch; another thread, by inbox_wake(); the
 *             loop thread, by inbox_touch()
 *
 * Loop thread only.
 */

/*
 * The round has CQEs, so the kernel need not signal the descriptor again. It has signalled it, or
 * will: on a ring that defers before the CQE can be seen, on others after that. There the mute may
 * come in between, so the library signals it too.
 */
static void embed_wake(iou_t *iou)
{
	ring_mute_eventfd(&iou->ring, true);
	if (ring_defers(&iou->ring))
		inbox_set_awake(&iou->inbox);
	else
		inbox_touch(&iou->inbox);
}

/* True if a poll has work that no later event will announce. */
static bool embed_has_more(iou_t *iou)
{
	return submit_has_more(iou) || sq_needs_enter(&iou->ring) || idle_ready(&iou->inbox) ||
	       wait_is_ready(iou) || sq_flags_tell(&iou->ring);
}

/* Make sure that the kernel signals the next completion. True: some may have come meanwhile. */
static bool embed_renew(iou_t *iou)
{
	bool expects = ring_in_flight(&iou->ring) || wait_due_ns(iou) != NEVER;

	if (!bell_needs_renewal(&iou->bell, &iou->ring, expects))
		return false;
	if (bell_renew(&iou->bell, &iou->ring) == -EACCES)
		loop_refuse(&iou->loop, -EACCES); /* by a restriction: the next poll tells */
	return true;
}

/*
 * At the end of each call that may have found or left work: submit ops that callbacks queued (an
 * error is told by the next poll), then make iou_fd() readable if a poll has work, else set
 * RESTING.
 */
static NOINLINE void embed_settle(iou_t *iou)
{
	enum own_signal own = OWN_NONE;
	bool news;

	if (submit_has_more(iou))
		wait_submit(iou, false, 0);
	if (inbox_is_awake(&iou->inbox) &&
	    (bell_is_blind(&iou->bell, &iou->ring) || embed_has_more(iou)))
		return; /* it is readable, and should be */
	news = bell_read(&iou->bell, &iou->ring);
	news |= embed_renew(iou);
	bell_set_clock(&iou->bell, &iou->ring, wait_due_ns(iou));
	ring_mute_eventfd(&iou->ring, false); /* before wait_doze(), which is a fence */
	if (news && ring_is_silent(&iou->ring))
		own = OWN_FOR_KERNEL;
	else if (bell_is_deaf(&iou->bell) || !wait_doze(iou, RESTING) || embed_has_more(iou))
		own = OWN_FOR_MORE;
	bell_set_own(&iou->bell, &iou->ring, own);
	if (own != OWN_NONE)
		inbox_signal_fd(&iou->inbox);
}

int iou_fd(iou_t *iou)
{
	int ret;

	CHECK_OWN(iou, true);
	if (inbox_has_fd(&iou->inbox))
		return bell_program_fd(&iou->bell);
	ret = watch_open_clock(&iou->ring);
	if (ret >= 0 && bell_fd(&iou->bell) < 0)
		ret = bell_register(&iou->bell, &iou->ring, false);
	if (ret < 0)
		return ret;
	ring_mute_eventfd(&iou->ring, false);
	inbox_set_fd(&iou->inbox, bell_fd(&iou->bell));
	return bell_program_fd(&iou->bell);
}

/*
 * ==== rounds ====================================================================================
 *
 * Rounds: submit, sleep if nothing is ready, deliver. The order of a round is the contract's:
 * timers, posts and bottom halves, ops that ended inside iou (jobs are among these), CQEs. Loop
 * thread only.
 */

/*
 * The one place that calls the program. If the callback forked and this is the child, nothing more
 * of the parent's may be done here: -EEXIST ends the round.
 */
static int round_call(iou_t *iou, round_t *round, int (*cb)(void *cb_data), void *cb_data)
{
	int ret;

	round->n_calls++;
	ret = cb(cb_data);
	return is_here(iou) ? ret : -EEXIST;
}

/* A callback of an op that runs within no other callback of that op: it gives the op back. */
static INLINE_ALWAYS int deliver_outermost(iou_t *iou, round_t *round, op_t *op)
{
	int ret;

	op->bits |= OP_CALLED;
	ret = round_call(iou, round, op->cb, op->cb_data);
	if (likely(op->state <= OP_LAST)) /* or OP_FREE: the callback gave it back */
		ops_give_back(&iou->ops, op);
	else
		op->bits &= (uint8_t)~OP_CALLED;
	return ret;
}

/* A callback of an op within another one of that op, which keeps its own result and flags. */
static NOINLINE int deliver_nested(iou_t *iou, round_t *round, op_t *op, int result, unsigned flags)
{
	const int outer_result = op->pub.result;
	const unsigned outer_flags = op->pub.flags;
	int ret;

	op->pub.result = result;
	op->pub.flags = flags;
	ret = round_call(iou, round, op->cb, op->cb_data);
	op->pub.result = outer_result;
	op->pub.flags = outer_flags;
	return ret;
}

static INLINE_ALWAYS int deliver_op(iou_t *iou, round_t *round, op_t *op, int result,
				    unsigned flags)
{
	if (likely(!(flags & IORING_CQE_F_MORE))) {
		ops_count_last(&iou->ops, op);
		op->state = OP_LAST;
		if (unlikely(op->bits)) {
			deadline_stop(&iou->timers, op);
			op->bits &= OP_CALLED;
		}
	}
	if (unlikely(op->bits & OP_CALLED))
		return deliver_nested(iou, round, op, result, flags);
	op->pub.result = result;
	op->pub.flags = flags;
	return deliver_outermost(iou, round, op);
}

static int deliver_timers(iou_t *iou, round_t *round)
{
	op_t *op;
	int ret = 0, n;

	while (round->n_deadlines && deadline_expire(iou, round->at_ns))
		round->n_deadlines--;
	for (; loop_goes_on(&iou->loop, round, ret) && round->n_timers; round->n_timers--) {
		op = timers_next(&iou->timers, round->at_ns, round->timer_seq, &n);
		if (!op)
			break;
		ret = deliver_op(iou, round, op, n, op->heap_index ? IORING_CQE_F_MORE : 0);
	}
	return ret;
}

static int deliver_line(iou_t *iou, round_t *round)
{
	int (*cb)(void *);
	void *cb_data;
	int ret = 0;

	for (; loop_goes_on(&iou->loop, round, ret) && round->n_entries; round->n_entries--) {
		if (!line_next(&iou->inbox, round->entry_bound, &cb, &cb_data))
			break;
		if (cb)
			ret = round_call(iou, round, cb, cb_data);
	}
	return ret;
}

static int deliver_ended(iou_t *iou, round_t *round)
{
	op_t *op;
	int ret = 0;

	while (loop_goes_on(&iou->loop, round, ret) &&
	       (op = ops_ended_next(&iou->ops, round->ended_bound)))
		ret = deliver_op(iou, round, op, op->end.result, 0);
	return ret;
}

/* The result as the program sees it: inner codes of the kernel and of io-wq mean a cancel. */
static int program_result(const op_t *op, int result)
{
	if (likely(result >= 0))
		return result;
	if ((result <= -512 && result >= -516) || (result == -EINTR && cancel_is_under_way(op)))
		result = -ECANCELED;
	return result == -ECANCELED && op->bits & OP_EXPIRED ? -ETIME : result;
}

/*
 * True if the process was stopped and continued, which interrupted an op in io-wq (-ERESTARTSYS
 * and the like): it must be sent again. Not if it is in a chain, which has gone on, nor if the
 * program may have cancelled it.
 */
static bool was_interrupted(const iou_t *iou, const op_t *op, int result)
{
	if (result > -512 || result < -514 || op->bits & OP_CHAINED)
		return false;
	return !cancel_of(op) && !backlog_sent_cancel(&iou->backlog) &&
	       op->sqe.opcode != IORING_OP_POLL_ADD && op->sqe.opcode != IORING_OP_TIMEOUT;
}

/* True if a notification may follow a CQE without F_MORE: see fence_prepare(). */
static bool may_notify(const op_t *op, int result)
{
	return unlikely(result < 0 && op->bits & OP_CHAINED && op_is_zero_copy(op));
}

/* A CQE of the library's own. Returns an op that was held for it, and may be delivered now. */
static op_t *reap_own(iou_t *iou, uint64_t user_data, int result, unsigned flags)
{
	op_t *op = NULL;
	int error = 0;

	ring_count_other(&iou->ring);
	if (user_data == UD_WAKE || user_data == UD_CLOCK)
		error = watch_reap(&iou->ring, user_data, result, flags);
	else if (user_data > UD_VOID)
		op = cancels_reap(&iou->cancels, user_data, result, &error);
	if (error && (user_data > UD_VOID || !loop_is_ending(&iou->loop)))
		loop_refuse(&iou->loop, error);
	return op;
}

/* The last CQE of an op. False: the op is not delivered now. */
static bool reap_last(iou_t *iou, op_t *op, int result, unsigned flags)
{
	bool notifies = may_notify(op, result);

	if (unlikely(was_interrupted(iou, op, result))) {
		backlog_put_back(&iou->backlog, &iou->ring, op);
		return false;
	}
	cancels_forget(&iou->cancels, op);
	if (likely(!notifies && cancel_of(op) != CANCEL_SENT))
		return true;
	ops_hold(&iou->ops, op, result, flags, notifies);
	cancels_hold(&iou->cancels, op);
	return false;
}

/* musl's CMSG_NXTHDR() compares a size with a difference of pointers; clang warns of it. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare"
static void close_messages(const struct msghdr *message)
{
	struct msghdr *m = (struct msghdr *)message;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(m); part; part = CMSG_NXTHDR(m, part)) {
		size_t size = part->cmsg_len > CMSG_LEN(0) ? part->cmsg_len - CMSG_LEN(0) : 0;
		int fd;

		if (part->cmsg_level != SOL_SOCKET ||
		    (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != SCM_PIDFD))
			continue;
		for (size_t i = 0; i < size / sizeof(fd); i++) {
			memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
			close(fd);
		}
	}
}
#pragma GCC diagnostic pop

/*
 * In iou_free(): nobody else will close the descriptors that an op returns. (Those of a multishot
 * RECVMSG lie in a buffer that only the program and the kernel know.)
 */
static void op_close_result(const op_t *op, int result)
{
	if (result < 0 || op->sqe.file_index)
		return;
	switch (op->sqe.opcode) {
	case OPCODE_PIPE:
		close(((const int *)(uintptr_t)op->sqe.addr)[0]);
		close(((const int *)(uintptr_t)op->sqe.addr)[1]);
		break;
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
	case IORING_OP_ACCEPT:
	case IORING_OP_SOCKET:
	case OPCODE_FIXED_FD_INSTALL:
		close(result);
		break;
	case IORING_OP_RECVMSG:
		if (!(op->sqe.ioprio & IORING_RECV_MULTISHOT))
			close_messages((const struct msghdr *)(uintptr_t)op->sqe.addr);
	}
}

/* A CQE that is not the plain case of deliver_cqes(). */
static NOINLINE int deliver_other(iou_t *iou, round_t *round, uint64_t user_data, int result,
				  unsigned flags)
{
	op_t *op = (op_t *)(uintptr_t)user_data;

	if (user_data & 1 || !user_data) {
		op = reap_own(iou, user_data, result, flags);
		if (!op)
			return 0;
		result = op_extra(op)->held.result;
		flags = op_extra(op)->held.flags;
	} else if (op->state == OP_HELD) { /* the notification */
		ring_count_other(&iou->ring);
		return 0;
	} else if (!(flags & IORING_CQE_F_MORE)) {
		if (!reap_last(iou, op, result, flags))
			return 0;
	} else {
		ring_count_more(&iou->ring);
		if (op->bits & OP_CHAINED && op_is_zero_copy(op))
			chain_leave(&iou->cancels, op); /* the next one has started */
		else if (op->bits & OP_CHAINED)
			chain_begin(&iou->cancels, op);
	}
	if (loop_is_ending(&iou->loop))
		op_close_result(op, result);
	result = program_result(op, result);
	if (!(flags & IORING_CQE_F_MORE))
		op_clear_sqe(op);
	return deliver_op(iou, round, op, result, flags);
}

/*
 * Most CQEs end a plain op. This path stores as little as possible: stores are most of its cost.
 * The kernel gets the CQ's slots back at the end and before each enter; or one by one if it may
 * post CQEs meanwhile.
 */
static int deliver_cqes(iou_t *iou, round_t *round)
{
	int ret = 0;

	while (loop_goes_on(&iou->loop, round, ret) && cq_n_reaped(&iou->ring) < round->cqe_bound) {
		const struct io_uring_cqe *cqe = cq_at(&iou->ring, 0);
		uint64_t user_data = cqe->user_data;
		op_t *op = (op_t *)(uintptr_t)user_data;

		op_prefetch(cq_at(&iou->ring, 1)->user_data);
		if (unlikely(!ring_defers(&iou->ring)))
			cq_publish(&iou->ring);
		cq_count(&iou->ring);
		if (unlikely(user_data & 1 || !user_data || cqe->flags & IORING_CQE_F_MORE ||
			     cqe->res < 0 || op->bits)) {
			ret = deliver_other(iou, round, user_data, cqe->res, cqe->flags);
			continue;
		}
		memcpy(&op->pub.result, &cqe->res, sizeof(cqe->res) + sizeof(cqe->flags));
		op_clear_sqe(op);
		op->state = OP_LAST;
		ret = deliver_outermost(iou, round, op);
	}
	if (likely(ret != -EEXIST || is_here(iou))) /* a forked child does not map the ring */
		cq_publish(&iou->ring);
	return ret;
}

/* Bound the round: the items that are ready now, at most ROUND_MAX of each source. */
static void round_begin(iou_t *iou, round_t *round)
{
	if (others_ready(iou)) {
		inbox_take(&iou->inbox, ROUND_MAX);
		jobs_collect(iou, ROUND_MAX);
	}
	if (idle_ready(&iou->inbox) && !wait_is_ready(iou))
		inbox_take_idle(&iou->inbox);
	round->stage = AT_CQES;
	if (timers_any(&iou->timers) || line_ready(&iou->inbox) || ops_ended_ready(&iou->ops)) {
		round->stage = AT_TIMERS;
		round->at_ns = timers_any(&iou->timers) ? now_ns() : 0;
		round->timer_seq = timers_next_seq(&iou->timers);
		round->entry_bound = line_bound(&iou->inbox);
		round->n_deadlines = round->n_timers = round->n_entries = ROUND_MAX;
		round->ended_bound = ops_ended_bound(&iou->ops, ROUND_MAX);
	}
	round->cqe_bound = cq_bound(&iou->ring, ROUND_MAX);
}

/* A stage is over. True: the round ends early, and the next one goes on there. */
static inline bool round_stops(iou_t *iou, round_t *round, int ret, enum stage stage)
{
	round->stage = stage;
	return unlikely(!loop_goes_on(&iou->loop, round, ret));
}

/* Deliver the rest of the round. (As a loop over the stages it costs 12 instructions more.) */
static int round_deliver(iou_t *iou, round_t *round)
{
	enum stage from = round->stage;
	int ret;

	if (from <= AT_TIMERS) {
		ret = deliver_timers(iou, round);
		if (round_stops(iou, round, ret, AT_TIMERS))
			return ret;
	}
	if (from <= AT_INBOX) {
		ret = deliver_line(iou, round);
		if (round_stops(iou, round, ret, AT_INBOX))
			return ret;
	}
	if (from <= AT_ENDED) {
		ret = deliver_ended(iou, round);
		if (round_stops(iou, round, ret, AT_ENDED))
			return ret;
	}
	ret = deliver_cqes(iou, round);
	if (!round_stops(iou, round, ret, AT_CQES))
		round->stage = AT_NONE;
	return ret;
}

/*
 * First the rest of an earlier round. If that called nothing, a new round. So a callback that ends
 * each round at itself holds up no other source.
 */
static int round_deliver_all(iou_t *iou, round_t *round, bool quits)
{
	if (loop_take_unfinished(&iou->loop, round)) {
		int ret;

		round->quits = quits;
		round->n_calls = 0;
		ret = round_deliver(iou, round);
		if (round->stage || round->n_calls)
			return ret;
	}
	round->quits = quits;
	round->n_calls = 0;
	round_begin(iou, round);
	return round_deliver(iou, round);
}

/*
 * One round. Sleeps until until_ns if nothing is ready (0: does not sleep). Returns the number of
 * callbacks called, or an error: a callback's, or the kernel's if nothing was ready.
 */
static int round_run(iou_t *iou, bool quits, uint64_t until_ns)
{
	round_t round;
	iou_t *outer = current_iou;
	int ret;

	iou_check(iou);
	workers_begin_round(&iou->workers);
	ret = wait_submit(iou, quits, ring_is_broken(&iou->ring) ? 0 : until_ns);
	if (unlikely(ring_is_broken(&iou->ring)))
		ret = -EBADR;
	if (likely(ret >= 0) || wait_is_ready(iou)) {
		if (inbox_has_fd(&iou->inbox) && cq_ready(&iou->ring))
			embed_wake(iou);
		current_iou = iou;
		ret = round_deliver_all(iou, &round, quits);
		if (unlikely(round.stage))
			loop_keep_unfinished(&iou->loop, &round);
		current_iou = outer;
		if (ret >= 0)
			ret = round.n_calls;
	}
	iou_check(iou);
	return ret;
}

/*
 * Return a noted refusal to the program: from a run or poll that did nothing and would sleep now.
 */
static COLD int iou_tell_refusal(iou_t *iou, int ret, bool may_sleep)
{
	bool waits = inbox_has_fd(&iou->inbox) || (may_sleep && wait_is_pending(iou));

	if (ret || wait_is_ready(iou) || idle_ready(&iou->inbox) || !waits)
		return ret;
	return loop_take_refusal(&iou->loop);
}

/* The first flush, run or poll: the ring is enabled, and becomes this thread's. */
static COLD int iou_bind(iou_t *iou)
{
	int ret = ring_bind(&iou->ring, owner_is_handed(&iou->owner));

	if (ret < 0)
		return ret;
	inbox_lock(&iou->inbox); /* see iou_bh_cancel() */
	owner_bind(&iou->owner);
	inbox_unlock(&iou->inbox);
	return 0;
}

static inline int iou_own(iou_t *iou)
{
	return likely(owner_is_bound(&iou->owner)) ? 0 : iou_bind(iou);
}

static void iou_enter(iou_t *iou)
{
	bool locked = owner_enters_locked(&iou->owner);

	if (locked)
		inbox_lock(&iou->inbox); /* see iou_bh_cancel() */
	owner_enter(&iou->owner);
	if (locked)
		inbox_unlock(&iou->inbox);
}

static void iou_leave(iou_t *iou)
{
	if (inbox_has_fd(&iou->inbox) && is_here(iou))
		embed_settle(iou);
	owner_leave(&iou->owner);
}

int iou_flush(iou_t *iou)
{
	bool more;
	int ret;

	CHECK_OWN(iou, true);
	ret = iou_own(iou);
	if (ret < 0)
		return ret;
	do {
		more = submit_fill(iou, false, true);
		ret = submit_enter(iou, SUBMIT, 0);
		if (is_shortage(ret))
			ret = submit_pause(iou, ret);
		else if (ret == 0)
			loop_forget_shortages(&iou->loop);
		ring_wait_for_sqpoll(&iou->ring);
	} while (ret == 0 && (more || !sq_empty(&iou->ring)));
	if (inbox_has_fd(&iou->inbox)) {
		iou_enter(iou); /* embed_settle() looks into the inbox: see iou_bh_cancel() */
		iou_leave(iou);
	}
	return ret;
}

int iou_run(iou_t *iou)
{
	int ret;

	CHECK_OWN(iou, true);
	ret = iou_own(iou);
	if (ret < 0)
		return ret;
	if (!owner_is_handed(&iou->owner))
		ring_register_fd(&iou->ring);
	loop_begin_run(&iou->loop);
	iou_enter(iou);
	while (!loop_must_quit(&iou->loop) && wait_is_pending(iou)) {
		ret = round_run(iou, true, NEVER);
		if (unlikely(loop_refusal(&iou->loop)))
			ret = iou_tell_refusal(iou, ret, true);
		if (ret < 0)
			break;
	}
	loop_end_run(&iou->loop);
	iou_leave(iou);
	return ret < 0 ? ret : 0;
}

int iou_poll(iou_t *iou, int64_t timeout_ns)
{
	uint64_t until_ns = timeout_ns < 0 ? NEVER : 0;
	int ret;

	CHECK_OWN(iou, true);
	ret = iou_own(iou);
	if (ret < 0)
		return ret;
	if (timeout_ns > 0)
		until_ns = add_ns(now_ns(), (uint64_t)timeout_ns);
	iou_enter(iou);
	do {
		ret = round_run(iou, false, until_ns);
		if (unlikely(loop_refusal(&iou->loop)))
			ret = iou_tell_refusal(iou, ret, until_ns);
	} while (ret == 0 && until_ns && wait_is_pending(iou) &&
		 (until_ns == NEVER || now_ns() < until_ns));
	if (inbox_has_fd(&iou->inbox) && ret > 0 && submit_has_more(iou)) {
		/* Submit ops that callbacks queued, and deliver those that end at once. */
		int more = round_run(iou, false, 0);

		ret = more < 0 ? more : ret + more;
	}
	iou_leave(iou);
	return ret;
}

iou_t *iou_current(void)
{
	return current_iou;
}

/*
 * ==== life ======================================================================================
 *
 * Making an iou, resizing its ring, freeing it; also the copy of one in a forked child. iou.h says
 * which thread may.
 */

static bool config_is_valid(const iou_config_t *config)
{
	static const uint64_t zero[sizeof(config->reserved) / sizeof(uint64_t)];
	const unsigned known = IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
			       IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			       IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			       IORING_SETUP_SQPOLL;

	return config && !(config->setup_flags & ~known) && config->engine <= IOU_ENGINE_FALLBACK &&
	       memcmp(config->reserved, zero, sizeof(zero)) == 0;
}

/* A worker gave back a job. */
static void wake_by_worker(workers_t *workers)
{
	inbox_wake(&container_of(workers, iou_t, workers)->inbox);
}

static iou_t *iou_alloc(const iou_config_t *config)
{
	size_t size = (sizeof(iou_t) + 63) / 64 * 64;
	unsigned flags = config->setup_flags;
	iou_t *iou = process_init() ? aligned_alloc(64, size) : NULL;

	if (!iou)
		return NULL;
	memset(iou, 0, size);
	ring_init(&iou->ring, flags);
	loop_init(&iou->loop, config->spin_ns);
	owner_init(&iou->owner, flags && !(flags & IORING_SETUP_SINGLE_ISSUER));
	ops_init(&iou->ops);
	backlog_init(&iou->backlog);
	cancels_init(&iou->cancels);
	timers_init(&iou->timers);
	bell_init(&iou->bell);
	if (workers_init(&iou->workers, config->workers, config->spin_ns, wake_by_worker) < 0) {
		free(iou);
		return NULL;
	}
	inbox_init(&iou->inbox);
	return iou;
}

/*
 * In mirror order, once no worker is there. Not `ops`: the kernel may still use the memory that ops
 * name. A copy is a forked child's.
 */
static void iou_dealloc(iou_t *iou, bool ops, bool is_copy)
{
	hook_t *hook, *next = iou->hooks;

	workers_free(&iou->workers, is_copy);
	inbox_drop(&iou->inbox);
	inbox_free(&iou->inbox, is_copy);
	timers_free(&iou->timers);
	if (ops)
		ops_free(&iou->ops);
	free(iou);
	while ((hook = next)) {
		next = hook->next;
		if (!is_copy)
			hook->fn(hook->data);
		free(hook);
	}
}

static void iou_close_fds(const iou_t *iou)
{
	watches_close(&iou->ring);
	bell_close(&iou->bell);
}

static iou_t *iou_make(const iou_config_t *config)
{
	iou_t *iou;
	int ret;

	if (!config_is_valid(config))
		return null_with_errno(EINVAL);
	iou = iou_alloc(config);
	if (!iou)
		return null_with_errno(ENOMEM);
	ret = watch_open_wake(&iou->ring);
	if (ret >= 0)
		ret = ring_choose(&iou->ring, config->entries ? config->entries : 64,
				  config->engine);
	if (ret < 0) {
		iou_close_fds(iou);
		iou_dealloc(iou, true, false);
		return null_with_errno(-ret);
	}
	ring_start(&iou->ring, 0);
	inbox_set_wake_fd(&iou->inbox, watch_wake_fd(&iou->ring));
	if (!ring_takes_eventfd_late(&iou->ring))
		bell_register(&iou->bell, &iou->ring, true);
	return iou;
}

iou_t *iou_new_with(const iou_config_t *config)
{
	int state = thread_cancel_off();
	iou_t *iou = iou_make(config);

	thread_cancel_restore(state);
	return iou;
}

iou_t *iou_new(unsigned entries)
{
	iou_config_t config = {.entries = entries};

	if (!entries)
		return null_with_errno(EINVAL);
	return iou_new_with(&config);
}

static int on_nothing(void *cb_data)
{
	(void)cb_data;
	return 0;
}

/* True if the kernel may still use an op. */
static bool iou_is_in_flight(const iou_t *iou)
{
	return ring_in_flight(&iou->ring) || cancels_in_flight(&iou->cancels);
}

/* The ring is broken, and a round did nothing. True: wait a little for further CQEs. */
static bool iou_awaits_lost(iou_t *iou)
{
	return submit_enter(iou, WAIT, add_ns(now_ns(), 100 * NS_PER_MS)) != -EBADF &&
	       cq_ready(&iou->ring);
}

/* Wait until the kernel has let go of every op. False: it is out of reach, or has lost one. */
static bool iou_drain(iou_t *iou)
{
	for (unsigned n_errors = 0; iou_is_in_flight(iou);) {
		int ret = round_run(iou, false, NEVER), refusal = loop_take_refusal(&iou->loop);

		if (refusal && ring_in_flight(&iou->ring) && ring_cancel_all(&iou->ring) < 0 &&
		    !wait_is_ready(iou))
			return false;
		if (ret == -EBADR && n_errors++ < 1000 && iou_awaits_lost(iou))
			continue;
		if (ret < 0 && !(is_shortage(ret) && n_errors++ < 4))
			return false;
	}
	return true;
}

static void iou_destroy(iou_t *iou)
{
	bool by_owner = owner_allows(&iou->owner), drained;

	visitors_wait(&iou->owner);
	loop_set_ending(&iou->loop);
	FOR_EACH_OP(&iou->ops, chunk, op) {
		op->cb = on_nothing;
		op_cancel(iou, op); /* so its CQE is no plain one: op_close_result() sees it */
	}
	submit_fill(iou, false, true);
	submit_enter(iou, SUBMIT, 0); /* the cancels, before waiting for jobs */
	workers_stop(&iou->workers);
	inbox_drop(&iou->inbox);
	drained = iou_drain(iou);
	ring_close(&iou->ring, by_owner, drained);
	iou_close_fds(iou);
	iou_dealloc(iou, drained, false);
}

/*
 * In a forked child: the ring's memory is not mapped, and the other threads are the parent's. If
 * another thread than the loop's forked, the memory may be half changed, and is left alone.
 */
static void iou_destroy_copy(iou_t *iou)
{
	close(ring_io(&iou->ring)->ring_fd);
	iou_close_fds(iou);
	if (owner_forked(&iou->owner))
		iou_dealloc(iou, true, true);
}

iou_t *iou_free(iou_t *iou)
{
	int state;

	if (!iou)
		return NULL;
	if (is_here(iou)) {
		unsigned depth = owner_depth(&iou->owner); /* first: the others are the loop's */

		MUST(!depth || !owner_is_looping(&iou->owner), "not within a callback");
		if (depth || (!owner_allows(&iou->owner) && iou_is_in_flight(iou)))
			return null_with_errno(EEXIST);
	}
	state = thread_cancel_off();
	if (is_here(iou))
		iou_destroy(iou);
	else
		iou_destroy_copy(iou);
	thread_cancel_restore(state);
	return NULL;
}

/* Put a new ring in the place of the old one. After an error the old one stays. */
static int iou_replace_ring(iou_t *iou, unsigned entries)
{
	ring_t fresh = iou->ring, old = iou->ring;
	int ret = ring_open(&fresh, entries);

	if (ret < 0)
		return ret;
	if (owner_is_bound(&iou->owner))
		ret = ring_bind(&fresh, owner_is_handed(&iou->owner));
	if (ret >= 0 && bell_fd(&iou->bell) >= 0)
		ret = bell_register(&iou->bell, &fresh, !inbox_has_fd(&iou->inbox));
	if (ret < 0) {
		ring_close(&fresh, true, true);
		return ret;
	}
	ring_start(&fresh, cq_ready(&old));
	iou->ring = fresh; /* before the old one is closed: a forked child closes this one */
	ring_close(&old, true, true);
	loop_take_refusal(&iou->loop); /* restrictions are the old ring's */
	inbox_touch(&iou->inbox); /* the next poll arms the watches */
	return 0;
}

int iou_resize(iou_t *iou, unsigned entries)
{
	int ret, state;

	CHECK_OWN(iou, entries);
	if (iou_is_in_flight(iou))
		return -EBUSY;
	state = thread_cancel_off();
	ret = iou_replace_ring(iou, entries);
	thread_cancel_restore(state);
	return ret;
}

int iou_at_free(iou_t *iou, void (*fn)(void *data), void *data)
{
	hook_t *hook;

	CHECK_OWN(iou, fn);
	hook = malloc(sizeof(*hook));
	if (!hook)
		return -ENOMEM;
	*hook = (hook_t){iou->hooks, fn, data};
	iou->hooks = hook;
	return 0;
}

/* True if iou's own work rests on it. */
static bool register_is_ours(const iou_t *iou, unsigned opcode)
{
	switch (opcode) {
	case IORING_REGISTER_ENABLE_RINGS:
	case IORING_REGISTER_RING_FDS:
	case IORING_UNREGISTER_RING_FDS:
	case IORING_REGISTER_SYNC_CANCEL:
	case REGISTER_CLOCK:
	case REGISTER_SEND_MSG_RING:
	case REGISTER_RESIZE_RINGS:
		return true;
	case IORING_REGISTER_EVENTFD:
	case IORING_REGISTER_EVENTFD_ASYNC:
	case IORING_UNREGISTER_EVENTFD:
		return inbox_has_fd(&iou->inbox);
	default:
		return opcode & IORING_REGISTER_USE_REGISTERED_RING;
	}
}

int iou_register(iou_t *iou, unsigned opcode, const void *arg, unsigned nr_args)
{
	CHECK_OWN(iou, !register_is_ours(iou, opcode));
	return ring_register(&iou->ring, opcode, arg, nr_args);
}

const char *iou_engine_name(const iou_t *iou)
{
	return iou ? ring_engine_name(&iou->ring) : null_with_errno(EINVAL);
}

int iou_opcode_supported(iou_t *iou, unsigned opcode)
{
	CHECK_OWN(iou, true);
	return ring_supports(&iou->ring, opcode);
}

struct io_uring *iou_ring(iou_t *iou)
{
	if (!iou || !owner_allows(&iou->owner))
		return null_with_errno(iou ? EEXIST : EINVAL);
	return ring_io(&iou->ring);
}

/*
 * ==== inspect ===================================================================================
 *
 * iou_stats() and iou_dump(). Loop thread only.
 */

void iou_stats(const iou_t *iou, iou_stats_t *stats)
{
	MUST_OWN(iou);
	MUST(stats, "stats is NULL");
	memset(stats, 0, sizeof(*stats));
	ring_stats(&iou->ring, stats);
	timers_stats(&iou->timers, stats);
	inbox_stats(&iou->inbox, stats);
	ops_stats(&iou->ops, stats);
	stats->pending = n_pending(iou);
	stats->backlog = backlog_length(&iou->backlog);
	stats->backlog_max = backlog_most(&iou->backlog);
}

static void dump_op(iou_t *iou, op_t *op, FILE *out)
{
	static const char *const where[] = {
		[OP_BACKLOG] = "backlog", [OP_RING] = "ring", [OP_HELD] = "done",
		[OP_TIMER] = "timer", [OP_ENDED] = "done",
	};
	uint64_t at_ns = now_ns(), due_ns = op_due_ns(&iou->timers, op);
	char text[64];

	if (op_is_programs(op) || op->state == OP_FREE)
		return;
	if (op->state == OP_JOB) {
		fprintf(out, "%s: work %p",
			job_is_taken(&iou->workers, op) ? "worker" : "job queue",
			op_function(op, true));
	} else {
		fprintf(out, "%s:", where[op->state]);
		if (op->state == OP_ENDED)
			fprintf(out, " result %d", op->end.result);
		else if (op->state != OP_TIMER)
			fprintf(out, " %s", op_describe(op, text, sizeof(text)));
		if (cancel_of(op))
			fprintf(out, " cancelled");
	}
	if (due_ns != NEVER)
		fprintf(out, " due in %.3f ms",
			due_ns > at_ns ? (double)(due_ns - at_ns) / 1e6 : 0.0);
	else if (op->heap_index)
		fprintf(out, " due never");
	fprintf(out, " callback %p\n", op_function(op, false));
}

void iou_dump(const iou_t *shown, FILE *out)
{
	iou_t *iou = (iou_t *)shown; /* items from other threads are taken in first */
	uint64_t n_entries;

	MUST_OWN(iou);
	MUST(out, "out is NULL");
	jobs_collect(iou, UINT64_MAX);
	inbox_lock(&iou->inbox); /* see iou_bh_cancel() */
	inbox_take(&iou->inbox, UINT64_MAX);
	n_entries = inbox_length(&iou->inbox);
	inbox_unlock(&iou->inbox);
	FOR_EACH_OP(&iou->ops, chunk, op)
		dump_op(iou, op, out);
	fprintf(out, "%s: %llu ops pending, %lld holds", ring_engine_name(&iou->ring),
		(unsigned long long)n_pending(iou), loop_n_holds(&iou->loop));
	if (n_entries)
		fprintf(out, ", %llu posts and bottom halves", (unsigned long long)n_entries);
	fprintf(out, "\n");
}

#define VERSION_TEXT_(a, b, c) #a "." #b "." #c
#define VERSION_TEXT(a, b, c) VERSION_TEXT_(a, b, c)

const char *iou_version(void)
{
	return VERSION_TEXT(IOU_VERSION_MAJOR, IOU_VERSION_MINOR, IOU_VERSION_PATCH);
}
