/* SPDX-License-Identifier: MIT */

/*
 * iou: one io_uring ring, pooled operations with closures, a few worker threads, one loop.
 * iou.h is the manual. This comment is the design; the sections below follow it.
 *
 *     op pool ── iou_op_queue ──► backlog ──► SQ ──► kernel ──► CQ ───────────────┐
 *       ▲    ├── iou_op_async ──► pool.jobs ──► workers ──► pool.done ──────────┐│
 *       │    │   cancelled in iou, or a chain too long ───────────────► ended ◄──┘┤  round_run(): one item
 *       │    ├── iou_op_timer ──► timers (a heap; deadlines have another) ────────┤  off its queue, one
 *       │    │   iou_post, iou_bh_schedule ──► mail ──► inbox, idle ──────────────┤  callback
 *       └────┴──────────────────────── the callback returned ◄────────────────────┘
 *
 * An op has one state, and is on one list (op->node) at most:
 *
 *     FREE     the free list          iou's       BACKLOG  backlog                  iou's
 *     OWNED    none                   program's   RING     none, or lane or asked   iou's and the kernel's
 *     LAST     none; in its last      program's   HELD     none, or lane            iou's
 *              callback                           JOB      none; pool.jobs or .done  iou's (a worker has a job_t)
 *                                                 TIMER    none; in a heap          iou's
 *                                                 ENDED    ended                    iou's
 *
 * What a job or a timer keeps lies in the place of its op's node. Most ops come and go by the two cache lines of op_t, with
 * few stores: those, and lines that are not in the cache, are what an op costs, more than its instructions.
 *
 * An op carries its own SQE, copied into the SQ when there is room. So the SQ is never full for the program,
 * ops may be prepared early, abandoned or queued again, and chains enter whole.
 *
 * Rounds. Each source is a FIFO with a count of all that ever went in or out. A round takes what was there when it began,
 * at most ROUND_MAX of each source. One item is taken off (a CQE is counted as reaped), then its callback is called.
 * So an error, a quit or a nested loop in the middle loses nothing and repeats nothing.
 *
 * Sleeping. Only enter() sleeps, and only after doze() has set `sleeping` and looked at everything that another
 * thread can change. A waker first publishes what it has, then looks at `sleeping`: one of the two sees the
 * other (tests/wake.pml is this protocol as a model). The waker that clears `sleeping` writes the eventfd, which
 * the ring watches with a multishot poll. That poll is no op, writes no memory, and is armed again whenever
 * it ended: by an overflow, or by a cancel-any of the program's.
 *
 * Cancelling. A CANCEL SQE names its op by address, so the op's memory must not be another's when the kernel looks:
 * an op that completed meanwhile is HELD until the cancel's own CQE is there (as is one that may_notify()). cancel_of()
 * says where the request is:
 *     NONE ──► LANE (to be sent) ──► SENT ──► ASKED (the kernel answered; where it found nothing, sent again later)
 *     NONE ──► WANTED (behind another op of its chain: the kernel cannot find it) ──► LANE once it starts
 *
 * Other loops. iou_fd() is an eventfd which the ring signals. Outside of enter(), `sleeping` says how it stands: AWAKE, it
 * is readable (or not in use); RESTING, nothing is to be done, and whoever changes that rings it. That holds in callbacks
 * too. rest() brings it about, at the end of each poll.
 *
 * Threads. All of iou_t is the loop thread's, but for the atomics, what pool.lock and bhs_lock guard (see pool_t), and the
 * fields that never change after iou_new. Locks are never nested, and no user code runs under one.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

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
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

/* Newer than the liburing that we build with at the oldest. */
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
#define OPCODE_FIXED_FD_INSTALL 54
#define OPCODE_PIPE             62

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#define NEVER         UINT64_MAX
#define NOBODY        UINT64_MAX
#define NS_PER_SEC    UINT64_C(1000000000)
#define NS_PER_MS     UINT64_C(1000000)
#define LONGEST_NS    ((uint64_t)INT64_MAX / 4)  /* a wait, so that the kernel's sums do not overflow */
#define SECONDS_MAX   (sizeof(time_t) < 8 ? (uint64_t)INT32_MAX : (uint64_t)INT64_MAX) /* of a timespec */
#define LINKS         (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)
#define OURS          (IOSQE_IO_DRAIN | IOSQE_CQE_SKIP_SUCCESS) /* not passed on */
#define SLAB_SIZE     4096
#define ENV_HEAD      16 /* before an allocated environment: the way back to its op */
#define SHORTAGES_MAX 8   /* fruitless tries, with naps of 1 to 64 ms between them, before the program is told */
#define RETRY_MAX_NS  (128 * NS_PER_MS)
#define SPIN_LEAST_NS 2000
#define WORKERS_MAX   32768
#define WORKER_SPIN_NS 50000
#define SQPOLL_NAP_NS 20000
#define WATCH_SINGLE    64 /* polls without multishot, where that was refused, before it is tried again */
#define ROUND_MAX     1024 /* how much of each source a round takes over, delivers, expires and cancels */

__attribute__((noreturn, cold, noinline)) static void misuse(const char *function, const char *rule)
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
			misuse(__func__, rule); \
	} while (0)

/* What the calls that return a pointer say. */
__attribute__((cold, noinline)) static void *refuse(int error)
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

static uint64_t add_ns(uint64_t a, uint64_t b)
{
	return a + b < a ? NEVER : a + b;
}

static uint64_t at_most(uint64_t n, uint64_t most)
{
	return n < most ? n : most;
}

/* These are no cancellation points (pthreads(7)), as write(2) and the waits of libc are. */
static void event_ring(int fd)
{
	const uint64_t one = 1;

	syscall(SYS_write, fd, &one, sizeof(one));
}

/* Sleep as long as *word has that value. May return early. */
static void futex_wait(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL);
}

/* The word need not exist any more: its address is but the key by which the kernel finds those that wait. */
static void futex_wake(atomic_uint *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n);
}

/* Nor shall close(2) and nanosleep(2) be, in iou_new(), iou_resize() and iou_free(). Returns what to give to cancel_allow(). */
static int cancel_defer(void)
{
	int state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	return state;
}

static void cancel_allow(int state)
{
	pthread_setcancelstate(state, NULL);
}


/* ---- Types ----------------------------------------------------------------------------------- */

/* A circular list's head, or a node on one; a stack uses `next` alone. It lies within other types and is reached
 * through either: may_alias, since gcc 12 is misled otherwise (the test of a chain too long fails at -O2). */
typedef struct node_t {
	struct node_t *next, *prev;
} __attribute__((may_alias)) node_t;

enum op_state { OP_FREE, OP_LAST, OP_OWNED, OP_BACKLOG, OP_RING, OP_HELD, OP_JOB, OP_TIMER, OP_ENDED };

enum op_bits {
	OP_DEADLINE = 1,  /* iou_op_deadline() was called; before queueing, after_ns says when it is due */
	OP_EXPIRED = 2,   /* cancelled by its deadline */
	OP_CHAIN_END = 4, /* its link flag no longer holds what was queued after it */
	OP_CHAINED = 8,   /* in the ring, linked to another: extra_t.chain tells which */
	OP_CALLED = 16,   /* a callback of it is running: the outermost one releases it */
	OP_CANCEL = 224,  /* enum op_cancel: three bits */
};

enum op_cancel {
	CANCEL_NONE, CANCEL_WANTED = 32, CANCEL_LANE = 64, CANCEL_SENT = 96, CANCEL_ASKED = 128,
	CANCEL_TIMER = 160, /* a timer's, not yet delivered */
};

enum op_env { ENV_NONE, ENV_SMALL, ENV_ALLOCATED };

/* Two cache lines, all that most ops need; the rest is in an extra_t. */
typedef struct op_t {
	_Alignas(64) iou_op_t pub;
	iou_t *iou;
	int (*cb)(void *cb_data);
	void *cb_data;
	union { /* by its state */
		node_t node;
		uint64_t after_ns; /* the program's, with OP_DEADLINE: how long after queueing */
		struct {
			uint64_t seq; /* the order in which timers were started */
			uint64_t period_ns;
		} timer;
		struct {
			int (*work)(void *work_data);
			uint64_t number; /* of its job_t */
		} job;
		struct {
			struct op_t *next; /* on `ended` */
			int result; /* not in pub: a callback of the op may still be running, that reads its own */
		} end;
	};
	uint8_t state;       /* enum op_state */
	uint8_t bits;        /* enum op_bits: 0 in most */
	uint8_t env;         /* enum op_env; not with the others, since a worker may write it */
	uint8_t index;       /* in its chunk */
	uint32_t heap_index; /* 0: not in the heap */
	_Alignas(64) struct io_uring_sqe sqe;
} op_t;

typedef struct extra_t {
	union {
		struct {
			op_t *prev, *next; /* NULL where the neighbour has ended */
		} chain; /* with OP_CHAINED */
		struct {
			int result;
			unsigned flags;
		} held; /* of an op that is HELD: what it ended with */
	};
	bool fences; /* of an op that is HELD: one cancel more is to be sent before it can be delivered */
	op_t *op;    /* stands right before small_env: iou_op_of() */
	_Alignas(16) char small_env[64]; /* the environment, or the pointer to it; that has the way back before it too */
} extra_t;

#define CHUNK_OPS 256

/* Chunks are walked to find all ops; never moved, freed by iou_free(). */
typedef struct chunk_t {
	struct chunk_t *next;
	size_t n_used;
	op_t ops[CHUNK_OPS];
	extra_t extras[CHUNK_OPS];
} chunk_t;

typedef struct heap_entry_t {
	_Alignas(16) uint64_t due_ns; /* on 32 bits too, four are a cache line */
	op_t *op;
} heap_entry_t;

typedef struct heap_t {
	heap_entry_t *entries; /* room for each op */
	size_t end, size;
} heap_t;

/* Something for the inbox: a post, or part of a bottom half (cb NULL). */
typedef struct entry_t {
	node_t node;
	uint64_t seq; /* loop thread's: when it was taken */
	int (*cb)(void *cb_data);
	void *cb_data;
} entry_t;

/* Posts lie side by side, so that the loop finds the next in the cache. Aligned to its size, so that an entry leads to
 * it, and its address and the number of entries taken are one word, iou->mail.post_cursor. */
typedef struct slab_t {
	size_t n_back; /* entries delivered or dropped: the loop thread's, once whoever renewed has published the slab */
	entry_t entries[(SLAB_SIZE - sizeof(size_t)) / sizeof(entry_t)];
} slab_t;

#define SLAB_ENTRIES (sizeof(((slab_t *)NULL)->entries) / sizeof(entry_t))

/* A queue that any thread appends to, and that the loop takes from, the oldest first: see mail_push(). What each post takes
 * lies in a cache line that the loop does not write to while it takes. */
typedef struct mail_t {
	_Alignas(64) _Atomic(node_t *) last;
	atomic_int sleeping;   /* enum sleep; pairs with `last`, pool.n_done, quit and holds: see doze(), wake() */
	/* The slab that posts are taken from, + how many were. Its exchanges pair with each other: who takes an entry sees
	 * what whoever renewed the slab saw and did. The same word again is the same state, so ABA does no harm. */
	atomic_uintptr_t post_cursor;
	_Atomic(slab_t *) spare_slab; /* exchanged, which pairs: who takes it out is its only owner */
	_Alignas(64) node_t *first; /* the loop's; or the stub, which stands in while there is none */
	node_t stub;
} mail_t;

enum bh_bits {
	BH_SCHEDULED = 1,
	BH_IDLE = 2,    /* to run when nothing else does */
	BH_QUEUED = 4,  /* its entry is in the mail, or linked, or about to be pushed by who set it */
	BH_DELETED = 8, /* the loop frees it when it comes to it */
};

struct iou_bh_t {
	entry_t entry;
	iou_t *iou;
	int (*cb)(void *cb_data);
	void *cb_data;
	atomic_uint bits;
	bool linked;    /* its entry is on `inbox`; loop thread's */
	bool idles;     /* it is on `idle`; loop thread's. Its entry may be queued at the same time */
	node_t in_idle;
	node_t in_bhs;
};

/* A ring, and how this thread reaches it. */
typedef struct ring_t {
	struct io_uring io;
	unsigned flags;       /* IORING_SETUP_* it was made with */
	unsigned enter_flags; /* IORING_ENTER_REGISTERED_RING where enter_fd is an index of that kind */
	int enter_fd;
	unsigned head;        /* the SQ's, when we last looked */
	unsigned cq_base;     /* n_reaped minus the CQ's head */
	bool must_get;        /* CQEs may wait in the kernel and nothing tells */
	bool unwoken;         /* SQPOLL: its thread may be asleep, and waking it failed */
} ring_t;

/* A descriptor that the ring watches for the library, with a poll that is no op. */
typedef struct watch_t {
	int fd;
	bool armed;
	unsigned n_single; /* how often it is armed without IORING_POLL_ADD_MULTI, which was refused (before 5.13) */
} watch_t;

#define FREE_WAITS (1U << 31)

enum { UD_WAKE = 1, UD_CLOCK = 3, UD_VOID = 5, UD_CANCEL = 1 /* | op */ };

enum stage { AT_NONE, AT_TIMERS, AT_INBOX, AT_ENDED, AT_CQES };

/* What one call of round_run() may deliver: what there was when it began. */
typedef struct round_t {
	bool quits;       /* iou_run()'s: iou_quit() ends it */
	uint8_t stage;    /* enum stage: what it is delivering */
	int n_calls;
	uint64_t now_ns;  /* timers due by then, started before timer_seq */
	uint64_t timer_seq;
	uint64_t inbox_seq;
	uint64_t n_ended, n_cqes; /* bounds of the counts of what was delivered */
	unsigned n_deadlines, n_timers, n_entries; /* how many more of these it may take */
} round_t;

/* A job in its place, and what became of it: all that a worker sees. So an op stays in the cache of the loop's CPU. */
typedef struct job_t {
	op_t *op; /* NULL: withdrawn */
	int (*work)(void *work_data);
	void *work_data;
} job_t;

typedef struct done_t {
	op_t *op;
	int result;
} done_t;

/*
 * The worker pool knows nothing of the ring: it takes jobs, and gives back what they returned.
 * Two circular arrays of `size` places, numbered by counts that only grow: jobs[n_taken .. n_queued) wait for a
 * worker, done[n_collected .. n_done) for the loop. Without the lock, the loop writes jobs from n_queued up to `limit`,
 * and reads what is done; workers read and write under it.
 */
typedef struct pool_t {
	/* The loop's: */
	_Alignas(64) atomic_ullong n_queued; /* pairs with n_idle: who goes to sleep looks here again */
	uint64_t n_collected;
	uint64_t limit;       /* of n_queued: the places up to there are known to be free */
	uint64_t n_rounds;    /* of the loop's; and that of its last call of a worker */
	uint64_t called_round;
	unsigned n_threads;
	unsigned max;         /* threads there may be */
	unsigned n_refused;   /* times in a row that one more could not be started, */
	unsigned n_pauses;    /* and how many chances to try again are let go by */
	pthread_t *threads;
	/* Read by all for each job, and rarely written: */
	_Alignas(64) job_t *jobs; /* and `done` behind it: one block */
	done_t *done;
	uint64_t size;        /* a power of 2, or 0 as long as there is no op */
	void (*notify)(struct pool_t *pool); /* called by a worker that gave something back */
	uint64_t process;     /* that it was made in: see worker_main() */
	atomic_uint n_idle;   /* workers that sleep, or are about to */
	atomic_uint n_looking; /* workers that found no job and look once more, or are starting */
	atomic_uint n_calls;  /* an idle worker sleeps as long as this stays what it was */
	atomic_bool calling;  /* one was woken that is not yet there: it wakes the next */
	atomic_bool stop;
	bool spins;           /* look for jobs before sleeping */
	/* The workers': */
	_Alignas(64) pthread_mutex_t lock; /* guards the arrays, but for the loop's part; n_seen, n_taken, n_done */
	uint64_t n_seen;      /* of n_queued; reading that one takes its cache line from the loop */
	atomic_ullong n_taken;
	_Alignas(64) atomic_ullong n_done; /* pairs with `sleeping`; the loop reads it without the lock */
} pool_t;

/* How a waker reaches the loop: not needed; by the watched eventfd; by the program, which waits on iou_fd(). */
enum sleep { AWAKE, ASLEEP, RESTING };

struct iou_t {
	ring_t ring;
	unsigned setup_flags; /* the program's choice, or 0 */
	bool broken;          /* a CQE was lost (-EBADR) */
	bool barrier;         /* what was sent last was drained: nothing more before it has ended */
	bool bound;           /* the ring is enabled, and its owner known unless `handed` */
	bool handed;          /* the program hands it from thread to thread: no owner */
	bool ending;          /* in iou_free(): nothing is called back, descriptors that ops return are closed */
	bool others_cancel;   /* the program has sent a CANCEL of its own: an op may end by it */
	atomic_uint depth;    /* iou_run() and iou_poll() calls active; pairs with iou_free() on another thread */
	_Atomic(uint64_t) runner; /* of one that is handed: this_thread of the thread in those calls, or 0 */
	unsigned n_runs;      /* iou_run() calls active */
	unsigned n_shortages; /* fruitless enters in a row */
	round_t cut;          /* ended in the middle; the next round delivers the rest of it first. Or AT_NONE */
	int refused;          /* what the kernel answered to a poll or cancel of the library's own that it will not do; or 0 */
	_Atomic(uint64_t) owner; /* a thread_key(), or NOBODY (yet) */
	uint64_t process;     /* that it was made in */
	uint64_t maker;       /* the this_thread of who made it */

	node_t backlog;
	node_t lane, asked; /* cancels: to be sent; to be sent again at retry_due_ns */
	op_t *ended, **ended_end;
	node_t inbox, idle;   /* entries taken from the mail, in line; bottom halves that run when nothing else does */
	/* How many ops are where follows from these: see n_backlog(), n_ring(), n_pending(). So most cost two counts. */
	uint64_t n_queued;    /* that entered the backlog, but for those that ended on their way, without a CQE */
	uint64_t n_sent;      /* of those, the ones that left it for the SQ, and did not come back: see op_unsend() */
	uint64_t n_reaped;    /* CQEs: each ends an op, but for the next two kinds */
	uint64_t n_own_cqes;  /* of no op, or of one that is sent again; and what cq_start() skips */
	uint64_t n_more_cqes; /* not an op's last */
	uint64_t n_elsewhere; /* pending ops that are neither in the backlog nor in the ring */
	uint64_t n_cancels;   /* CANCEL SQEs out; an op that is HELD has one out, or on the lane */
	uint64_t n_ended_in, n_ended_out;
	uint64_t n_backlog_max;
	uint64_t inbox_seq, timer_seq;
	uint64_t retry_due_ns, retry_ns; /* when `asked` is asked again */
	unsigned cancel_share; /* how many cancels are sent at once: see cancel_pace() */

	chunk_t *chunks;
	node_t *free_ops;
	size_t n_ops;          /* in all chunks */
	heap_t timers, deadlines; /* apart, so that no timer waits for deadlines */

	int fd;                /* iou_fd(): bell, once it was asked for; or -1 */
	int bell;              /* the eventfd that is registered with the ring, or -1 */
	watch_t wake, clock;   /* the eventfd that wakers write; the timerfd behind iou_fd() */
	uint64_t clock_due_ns; /* what the timerfd is set to */
	uint64_t n_rested;     /* n_reaped when rest() looked last */
	bool rang;             /* rest() made the descriptor readable */
	bool blind;            /* it did so for what may wait in the kernel unseen, and enter() was not called since */
	bool stale;            /* the eventfd was signalled, perhaps, since it was registered */
	bool deaf;             /* registering it failed */
	uint64_t spin_ns, spin_max_ns;
	iou_stats_t stats;
	pool_t pool;

	/* Rarely written by others: */
	atomic_bool quit;
	atomic_llong n_holds;
	atomic_uint n_visitors; /* threads inside iou_quit() or iou_unhold(): iou_free() waits for them, with FREE_WAITS set */
	atomic_ullong n_wakeups;
	pthread_mutex_t bhs_lock; /* guards bhs; and the inbox, as long as no thread owns the iou: see iou_bh_cancel() */
	node_t bhs;
	mail_t mail; /* and what posts are made of */
};

_Static_assert(sizeof(op_t) == 128, "two cache lines");
_Static_assert(sizeof(op_t) + sizeof(extra_t) <= 224, "an op, its environment and its heap entry are 240 bytes at most");
_Static_assert(offsetof(extra_t, small_env) == offsetof(extra_t, op) + sizeof(op_t *), "iou_op_of()");
_Static_assert(__atomic_always_lock_free(sizeof(uint64_t), 0), "signal handlers use such atomics");
_Static_assert(CHUNK_OPS - 1 <= UINT8_MAX, "an op's index in its chunk");
_Static_assert(sizeof(slab_t) <= SLAB_SIZE && SLAB_ENTRIES < SLAB_SIZE, "a slab, and a count within its alignment");

static _Thread_local uint64_t this_thread;  /* its number << 32; 0: none yet */
static _Thread_local iou_t *current_iou;    /* whose callback runs */
static atomic_ullong n_threads_numbered;

/* One page that fork() wipes: a copy of an iou in a child does not match it any more. NULL until it could be mapped. */
static _Atomic(uint64_t) *_Atomic process_page;
static atomic_ullong n_processes;

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
	if (madvise(page, size, MADV_WIPEONFORK) < 0 || !atomic_compare_exchange_strong(&process_page, &none, page))
		munmap(page, size); /* perhaps another thread was first */
	return atomic_load(&process_page);
}

/* This process's number, or 0 where it has made no iou. */
static uint64_t process_number(void)
{
	return atomic_load_explicit(atomic_load_explicit(&process_page, memory_order_relaxed), memory_order_relaxed);
}

/* The same, and it gets one. */
static uint64_t process_enrol(void)
{
	_Atomic(uint64_t) *number = atomic_load(&process_page);
	uint64_t none = 0;

	if (!atomic_load(number))
		atomic_compare_exchange_strong(number, &none, atomic_fetch_add(&n_processes, 1) + 1);
	return atomic_load(number);
}

static uint64_t thread_number(void)
{
	if (unlikely(!this_thread))
		this_thread = (atomic_fetch_add(&n_threads_numbered, 1) + 1) << 32;
	return this_thread;
}

/* Of this thread in this process: what an iou's owner is known by. */
static uint64_t thread_key(void)
{
	return thread_number() + process_number();
}

/* In the process that made it? */
static bool is_here(const iou_t *iou)
{
	return likely(process_number() == iou->process);
}

static inline bool is_owner(const iou_t *iou)
{
	return likely(this_thread + process_number() == atomic_load_explicit(&iou->owner, memory_order_relaxed));
}

/* On the thread that may use it? */
static inline bool is_mine(const iou_t *iou)
{
	return is_owner(iou) || (atomic_load_explicit(&iou->owner, memory_order_relaxed) == NOBODY && is_here(iou));
}

/* On its loop's thread? If the iou is handed: on the thread that is in its loop, in whatever callback. */
static bool is_loops(const iou_t *iou)
{
	return is_owner(iou) || (this_thread && is_here(iou) &&
				 atomic_load_explicit(&iou->runner, memory_order_relaxed) == this_thread);
}

/* How the calls of the loop thread begin: those that return nothing, and those that return an int. */
#define MUST_OWN(iou) \
	do { \
		MUST(iou, "iou is NULL"); \
		MUST(is_mine(iou), "called from a thread that does not own the iou"); \
	} while (0)

#define CHECK_OWN(iou, valid) \
	do { \
		if (unlikely(!(iou) || !(valid))) \
			return -EINVAL; \
		if (unlikely(!is_mine(iou))) \
			return -EEXIST; \
	} while (0)


/* ---- Lists ----------------------------------------------------------------------------------- */

static void list_init(node_t *list)
{
	list->next = list->prev = list;
}

static bool list_empty(const node_t *list)
{
	return list->next == list;
}

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

static op_t *op_at(node_t *node)
{
	return container_of(node, op_t, node);
}

/* Move all nodes from one list to the end of another. */
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


/* ---- Op pool --------------------------------------------------------------------------------- */

static extra_t *extra(const op_t *op)
{
	const chunk_t *chunk = container_of(op - op->index, chunk_t, ops);

	return (extra_t *)&chunk->extras[op->index];
}

static bool heap_reserve(heap_t *heap, size_t n_ops);
static bool pool_reserve(pool_t *pool, size_t n_ops);

/* A new chunk, and room in the heaps and among the jobs for its ops, so that nothing later needs memory. */
static bool pool_grow(iou_t *iou)
{
	size_t n_ops = iou->n_ops + CHUNK_OPS;
	chunk_t *chunk;

	if (!heap_reserve(&iou->timers, n_ops) || !heap_reserve(&iou->deadlines, n_ops) ||
	    !pool_reserve(&iou->pool, n_ops))
		return false;
	chunk = aligned_alloc(64, sizeof(*chunk));
	if (!chunk)
		return false;
	chunk->next = iou->chunks;
	chunk->n_used = 0;
	iou->chunks = chunk;
	iou->n_ops = n_ops;
	return true;
}

/* One that was never used, where none was given back. */
static __attribute__((noinline)) op_t *op_make(iou_t *iou)
{
	chunk_t *chunk;
	op_t *op;

	if (!iou->chunks || iou->chunks->n_used == CHUNK_OPS)
		if (!pool_grow(iou))
			return NULL;
	chunk = iou->chunks;
	op = &chunk->ops[chunk->n_used];
	memcpy(&op->pub, &(iou_op_t){.sqe = &op->sqe}, sizeof(op->pub)); /* sqe is const: for the program */
	op->iou = iou;
	op->bits = 0;
	op->env = ENV_NONE;
	op->index = (uint8_t)chunk->n_used++;
	op->heap_index = 0;
	extra(op)->op = op;
	return op;
}

/* A ring op's last callback finds a clean SQE, as in a new op: prepare helpers do not clear all fields (liburing 2.7). */
static inline void sqe_clear(op_t *op)
{
	memset(&op->sqe, 0, sizeof(op->sqe));
}

static op_t *op_take(iou_t *iou)
{
	op_t *op;

	if (likely(iou->free_ops)) {
		op = op_at(iou->free_ops);
		iou->free_ops = op->node.next;
		ASAN_UNPOISON_MEMORY_REGION(&op->pub, sizeof(op->pub));
		ASAN_UNPOISON_MEMORY_REGION(&op->sqe, sizeof(op->sqe));
		ASAN_UNPOISON_MEMORY_REGION(extra(op)->small_env, sizeof(extra(op)->small_env));
	} else {
		op = op_make(iou);
		if (!op)
			return NULL;
	}
	op->pub.result = 0;
	op->pub.flags = 0;
	op->state = OP_OWNED;
	sqe_clear(op);
	return op;
}

static void env_free(op_t *op)
{
	if (op->env == ENV_ALLOCATED)
		free(*(char **)extra(op)->small_env - ENV_HEAD);
	op->env = ENV_NONE;
}

static void op_release(iou_t *iou, op_t *op)
{
	if (op->env)
		env_free(op);
	op->state = OP_FREE;
	op->bits = 0;
	op->node.next = iou->free_ops;
	iou->free_ops = &op->node;
	ASAN_POISON_MEMORY_REGION(&op->pub, sizeof(op->pub));
	ASAN_POISON_MEMORY_REGION(&op->sqe, sizeof(op->sqe));
	ASAN_POISON_MEMORY_REGION(extra(op)->small_env, sizeof(extra(op)->small_env));
}

static enum op_cancel cancel_of(const op_t *op)
{
	return op->bits & OP_CANCEL;
}

static void cancel_set(op_t *op, enum op_cancel cancel)
{
	op->bits = (uint8_t)((op->bits & ~OP_CANCEL) | cancel);
}

/* From the program to iou, by one of the doors. */
static void op_accept(op_t *op, enum op_state state, int (*cb)(void *), void *cb_data)
{
	op->cb = cb;
	op->cb_data = cb_data;
	op->state = (uint8_t)state;
}

/* Its end came about inside iou, not by a CQE: it is delivered from `ended`. */
static void op_end(op_t *op, int result)
{
	iou_t *iou = op->iou;

	if (result == -ECANCELED && op->bits & OP_EXPIRED)
		result = -ETIME;
	iou->stats.jobs += op->state == OP_JOB;
	cancel_set(op, CANCEL_NONE);
	op->state = OP_ENDED;
	op->end.next = NULL;
	op->end.result = result;
	*iou->ended_end = op;
	iou->ended_end = &op->end.next;
	iou->n_ended_in++;
}

/* Take the one off that ended first. */
static op_t *ended_next(iou_t *iou)
{
	op_t *op = iou->ended;

	iou->ended = op->end.next;
	if (!iou->ended)
		iou->ended_end = &iou->ended;
	iou->n_ended_out++;
	return op;
}

/* The same for one in the backlog or the SQ. */
static void op_end_unsent(op_t *op, int result)
{
	iou_t *iou = op->iou;

	iou->n_queued--;
	iou->n_sent -= op->state == OP_RING;
	iou->n_elsewhere++;
	sqe_clear(op);
	op_end(op, result);
}

/* With many ops in flight, most of what an op costs is waiting for its memory. Any address will do. */
static inline void prefetch_op(uint64_t address)
{
	__builtin_prefetch((const void *)(uintptr_t)address);
	__builtin_prefetch((const void *)(uintptr_t)(address + 64));
}

static bool op_is_programs(const op_t *op)
{
	return op->state == OP_OWNED || op->state == OP_LAST;
}

static uint64_t n_backlog(const iou_t *iou)
{
	return iou->n_queued - iou->n_sent;
}

/* In the SQ or the kernel. */
static uint64_t n_ring(const iou_t *iou)
{
	return iou->n_sent - (iou->n_reaped - iou->n_own_cqes - iou->n_more_cqes);
}

/* From their door to their last callback. */
static uint64_t n_pending(const iou_t *iou)
{
	return n_backlog(iou) + n_ring(iou) + iou->n_elsewhere;
}

static const char *opcode_name(unsigned opcode)
{
	static const char *const names[] = {
		"NOP", "READV", "WRITEV", "FSYNC", "READ_FIXED", "WRITE_FIXED", "POLL_ADD", "POLL_REMOVE", "SYNC_FILE_RANGE",
		"SENDMSG", "RECVMSG", "TIMEOUT", "TIMEOUT_REMOVE", "ACCEPT", "ASYNC_CANCEL", "LINK_TIMEOUT", "CONNECT",
		"FALLOCATE", "OPENAT", "CLOSE", "FILES_UPDATE", "STATX", "READ", "WRITE", "FADVISE", "MADVISE", "SEND", "RECV",
		"OPENAT2", "EPOLL_CTL", "SPLICE", "PROVIDE_BUFFERS", "REMOVE_BUFFERS", "TEE", "SHUTDOWN", "RENAMEAT",
		"UNLINKAT", "MKDIRAT", "SYMLINKAT", "LINKAT", "MSG_RING", "FSETXATTR", "SETXATTR", "FGETXATTR", "GETXATTR",
		"SOCKET", "URING_CMD", "SEND_ZC", "SENDMSG_ZC", "READ_MULTISHOT", "WAITID", "FUTEX_WAIT", "FUTEX_WAKE",
		"FUTEX_WAITV", "FIXED_FD_INSTALL", "FTRUNCATE", "BIND", "LISTEN", "RECV_ZC", "EPOLL_WAIT", "READV_FIXED",
		"WRITEV_FIXED", "PIPE",
	};

	return opcode < sizeof(names) / sizeof(*names) ? names[opcode] : "?";
}

/* The program called `function` with an op that it may not use so. The line names the op as far as it is known. */
__attribute__((noreturn, cold, noinline)) static void misuse_of_op(const char *function, const op_t *op, const char *rule)
{
	char text[200], door[64];

	if (op->state == OP_JOB || op->state == OP_TIMER || op->state == OP_ENDED || op->state == OP_FREE)
		snprintf(door, sizeof(door), "%s", op->state == OP_JOB ? "job, " : op->state == OP_TIMER ? "timer, " : "");
	else
		snprintf(door, sizeof(door), "%s fd %d, ", opcode_name(op->sqe.opcode), op->sqe.fd);
	snprintf(text, sizeof(text), "%s (%scallback %p)", rule, door, (void *)(uintptr_t)op->cb);
	misuse(function, text);
}

#define FOR_EACH_OP(iou, chunk, op) \
	for (chunk_t *chunk = (iou)->chunks; chunk; chunk = chunk->next) \
		for (op_t *op = chunk->ops; op < chunk->ops + chunk->n_used; op++)


/* ---- Timers ---------------------------------------------------------------------------------- */

/*
 * A 4-ary heap of due times, kept so that four siblings are one cache line: the root is entry 3, the
 * children of i begin at 4(i - 2). One for timers, and one for the deadlines of ring ops and jobs.
 */
#define HEAP_ROOT 3

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
		memcpy(entries + HEAP_ROOT, old + HEAP_ROOT, (heap->end - HEAP_ROOT) * sizeof(*entries));
	heap->entries = entries;
	heap->size = size;
	free(old);
	return true;
}

static bool heap_empty(const heap_t *heap)
{
	return heap->end == HEAP_ROOT;
}

static uint64_t heap_due_ns(const heap_t *heap)
{
	return heap_empty(heap) ? NEVER : heap->entries[HEAP_ROOT].due_ns;
}

/* The order among equal due times, which only that of timers matters for. */
static uint64_t heap_seq(const op_t *op)
{
	return op->state == OP_TIMER ? op->timer.seq : 0;
}

static bool heap_before(const heap_entry_t *a, const heap_entry_t *b)
{
	return a->due_ns < b->due_ns || (unlikely(a->due_ns == b->due_ns) && heap_seq(a->op) < heap_seq(b->op));
}

static void heap_put(heap_t *heap, size_t i, heap_entry_t entry)
{
	heap->entries[i] = entry;
	entry.op->heap_index = (uint32_t)i;
}

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

static size_t heap_sink(heap_t *heap, size_t i, heap_entry_t entry)
{
	for (;;) {
		size_t child = 4 * (i - 2), end = child + 4 < heap->end ? child + 4 : heap->end, least = child;

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

/* Its time begins now: a timer's, or the deadline of an op that is being queued. */
__attribute__((noinline)) static void clock_start(op_t *op, uint64_t after_ns)
{
	iou_t *iou = op->iou;

	heap_set(op->state == OP_TIMER ? &iou->timers : &iou->deadlines, op, add_ns(now_ns(), after_ns));
}

/* Is there any timer or deadline? */
static bool clock_runs(const iou_t *iou)
{
	return unlikely((iou->timers.end | iou->deadlines.end) != HEAP_ROOT); /* neither is less */
}

/* When the first of them is due. */
static uint64_t clock_due_ns(const iou_t *iou)
{
	return at_most(heap_due_ns(&iou->timers), heap_due_ns(&iou->deadlines));
}

/* The timer at the root is due: on to its next time, or off the heap. Returns its expirations since the last. */
static int timer_expire(op_t *op, uint64_t due_ns, uint64_t at_ns)
{
	heap_t *timers = &op->iou->timers;
	uint64_t period_ns = op->timer.period_ns, n;

	if (!period_ns) {
		heap_remove(timers, op);
		return 1;
	}
	n = (at_ns - due_ns) / period_ns; /* missed, beside this one */
	heap_set(timers, op, add_ns(due_ns + n * period_ns, period_ns));
	return n < INT_MAX ? (int)n + 1 : INT_MAX;
}


/* ---- Cancelling ------------------------------------------------------------------------------ */

static bool is_linked(const op_t *op)
{
	return (op->sqe.flags & LINKS) && !(op->bits & OP_CHAIN_END);
}

static bool job_withdraw(pool_t *pool, op_t *op);

static void note_backlog(iou_t *iou)
{
	if (n_backlog(iou) > iou->n_backlog_max)
		iou->n_backlog_max = n_backlog(iou);
}

/* In the backlog: the op and those linked after it end; those before it are a chain of their own. */
static void cancel_in_backlog(op_t *op)
{
	iou_t *iou = op->iou;
	node_t *before = op->node.prev, *next = &op->node;
	bool linked;

	note_backlog(iou);
	if (before != &iou->backlog && is_linked(op_at(before)))
		op_at(before)->bits |= OP_CHAIN_END;
	do {
		op = op_at(next);
		next = op->node.next;
		linked = is_linked(op);
		list_unlink(&op->node);
		op_end_unsent(op, -ECANCELED);
	} while (linked && next != &iou->backlog);
}

static void cancel_later(op_t *op)
{
	cancel_set(op, CANCEL_LANE);
	list_append(&op->iou->lane, &op->node);
}

static int cancel_in_ring(op_t *op)
{
	if (op->bits & OP_CHAINED && extra(op)->chain.prev) {
		cancel_set(op, CANCEL_WANTED);
		return -EALREADY;
	}
	if (cancel_of(op) <= CANCEL_WANTED)
		cancel_later(op);
	return 0;
}

static int cancel_job(op_t *op)
{
	if (!job_withdraw(&op->iou->pool, op))
		return -EALREADY;
	op_end(op, -ECANCELED);
	return 0;
}

static int cancel(op_t *op)
{
	switch (op->state) {
	case OP_BACKLOG:
		cancel_in_backlog(op);
		return 0;
	case OP_RING:
		return cancel_in_ring(op);
	case OP_JOB:
		return cancel_job(op);
	case OP_TIMER:
		heap_remove(&op->iou->timers, op);
		op_end(op, -ECANCELED);
		cancel_set(op, CANCEL_TIMER);
		return 0;
	case OP_HELD:
	case OP_ENDED:
		return 0;
	default:
		return -EINVAL;
	}
}

/* The first of the deadlines has passed. */
static void deadline_expire(iou_t *iou)
{
	op_t *op = iou->deadlines.entries[HEAP_ROOT].op;

	heap_remove(&iou->deadlines, op);
	if (cancel_of(op) == CANCEL_NONE)
		op->bits |= OP_EXPIRED;
	cancel(op);
}

/* Is there a cancel to be sent? */
static bool cancel_waits(const iou_t *iou)
{
	return !list_empty(&iou->lane);
}

/* The kernel answered a CANCEL. Where it did not find the op, or only interrupted it, ask again later. */
static void cancel_answered(op_t *op, int result)
{
	iou_t *iou = op->iou;

	cancel_set(op, CANCEL_ASKED);
	if (result >= 0) {
		list_init(&op->node); /* its CQE follows */
		return;
	}
	if (result == -EACCES)
		iou->refused = result; /* by a restriction: tell the program too */
	if (list_empty(&iou->asked))
		iou->retry_due_ns = add_ns(now_ns(), iou->retry_ns);
	list_append(&iou->asked, &op->node);
}

/* Time to ask again, less and less often. */
static void cancel_again(iou_t *iou)
{
	if (iou->retry_due_ns > now_ns())
		return;
	list_splice(&iou->lane, &iou->asked);
	iou->retry_ns = iou->retry_ns < RETRY_MAX_NS ? iou->retry_ns * 2 : RETRY_MAX_NS;
}

/* It holds up the rest of its chain no longer. */
static void leave_chain(op_t *op)
{
	op_t *prev = extra(op)->chain.prev, *next = extra(op)->chain.next;

	op->bits &= (uint8_t)~OP_CHAINED;
	if (prev)
		extra(prev)->chain.next = next;
	if (next) {
		extra(next)->chain.prev = prev;
		if (!prev && cancel_of(next) == CANCEL_WANTED)
			cancel_in_ring(next);
	}
}

/* The kernel has done with the op: leave its chain and the lists of cancels. */
static void leave_ring(iou_t *iou, op_t *op)
{
	if (op->bits & OP_CHAINED)
		leave_chain(op);
	if (cancel_of(op) == CANCEL_LANE || cancel_of(op) == CANCEL_ASKED) {
		list_unlink(&op->node);
		if (!cancel_waits(iou) && list_empty(&iou->asked) && !iou->n_cancels)
			iou->retry_ns = NS_PER_MS;
	}
}


/* ---- Ring ------------------------------------------------------------------------------------ */

static int ring_try(struct io_uring *io, unsigned entries, unsigned flags)
{
	struct io_uring_params params;
	int ret;

	for (unsigned n = 0;; n++) {
		params = (struct io_uring_params){.flags = flags | IORING_SETUP_CLAMP};
		ret = io_uring_queue_init_params(entries, io, &params);
		if (ret != -ENOMEM || n == 6)
			break;
		/* The memory of a ring just closed is given back a little later. */
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

/* Can it be reached? A disabled ring answers an enter with -EBADFD; and taking away an eventfd that is not there is a
 * register call that changes nothing. *usable is false where only register is refused. */
static int ring_probe(const struct io_uring *io, unsigned flags, bool *usable)
{
	int ret = io_uring_enter2((unsigned)io->ring_fd, 0, 0, 0, NULL, _NSIG / 8);

	if (ret < 0 && ret != -EBADFD)
		return ret;
	*usable = true;
	if (flags & IORING_SETUP_R_DISABLED) {
		ret = io_uring_register((unsigned)io->ring_fd, IORING_UNREGISTER_EVENTFD, NULL, 0);
		*usable = ret >= 0 || ret == -ENXIO;
	}
	return 0;
}

/* The best ring that the kernel grants: the program's flags, or our own choice, with less and less. */
static int ring_open(ring_t *ring, unsigned entries, unsigned setup_flags)
{
	const unsigned all = IORING_SETUP_SUBMIT_ALL, one = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED;
	const unsigned lazy = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	const unsigned own[] = {all | one | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, all | one | lazy,
				all | lazy, all, 0};
	const unsigned given[] = {setup_flags & IORING_SETUP_SINGLE_ISSUER ? setup_flags | one : setup_flags, setup_flags};
	const unsigned *flags = setup_flags ? given : own;
	unsigned n = setup_flags ? 2 : sizeof(own) / sizeof(*own);
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
	ring->enter_fd = ring->io.ring_fd;
	ring->enter_flags = 0;
	ring->head = *ring->io.sq.khead;
	ring->must_get = (ring->flags & (IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN)) &&
			 !(ring->flags & IORING_SETUP_TASKRUN_FLAG);
	ring->unwoken = false;
	return 0;
}

/* Enable it, and make this thread its submitter. A registered ring fd (5.18) saves a little on each enter. */
static int ring_bind(ring_t *ring, bool handed)
{
	struct io_uring_rsrc_update index = {.offset = -1U, .data = (unsigned)ring->io.ring_fd};

	if (ring->flags & IORING_SETUP_R_DISABLED) {
		int ret = io_uring_register((unsigned)ring->io.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

		if (ret < 0)
			return ret;
		ring->flags &= ~IORING_SETUP_R_DISABLED;
	}
	if (!handed && io_uring_register((unsigned)ring->io.ring_fd, IORING_REGISTER_RING_FDS, &index, 1) == 1) {
		ring->enter_fd = (int)index.offset;
		ring->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	return 0;
}

/* By the owner: with nothing in flight, also let go of what is registered at once. Else the kernel does so some time later. */
static void ring_close(ring_t *ring, bool by_owner, bool idle)
{
	struct io_uring_rsrc_update index = {.offset = (unsigned)ring->enter_fd};
	unsigned fd = (unsigned)ring->io.ring_fd;

	if (by_owner && idle) {
		io_uring_register(fd, IORING_UNREGISTER_FILES, NULL, 0);
		if (ring->io.features & IORING_FEAT_RSRC_TAGS) /* before 5.13 it would wait for the library's own polls */
			io_uring_register(fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	}
	if (by_owner && ring->enter_flags)
		io_uring_register(fd, IORING_UNREGISTER_RING_FDS, &index, 1);
	io_uring_queue_exit(&ring->io);
}

static unsigned sq_head(const iou_t *iou)
{
	return __atomic_load_n(iou->ring.io.sq.khead, __ATOMIC_ACQUIRE); /* SQPOLL's thread moves it */
}

static unsigned cq_head(const iou_t *iou)
{
	return (unsigned)iou->n_reaped - iou->ring.cq_base;
}

static unsigned cq_ready(const iou_t *iou)
{
	return __atomic_load_n(iou->ring.io.cq.ktail, __ATOMIC_ACQUIRE) - cq_head(iou);
}

/* The one that is reaped when n_reaped is that: see cq_start(). */
static const struct io_uring_cqe *cqe_at(const iou_t *iou, uint64_t number)
{
	return &iou->ring.io.cq.cqes[number & iou->ring.io.cq.ring_mask];
}

/* CQEs come from this ring now; those left in the one before were the library's own. n_reaped goes on at a number that is
 * the CQ's head but for a multiple of its size, so that it finds a CQE's place. */
static void cq_start(iou_t *iou, ring_t *ring, unsigned n_left)
{
	unsigned head = *ring->io.cq.khead;
	uint64_t n_skipped = n_left + ((head - n_left - (unsigned)iou->n_reaped) & ring->io.cq.ring_mask);

	iou->n_reaped += n_skipped;
	iou->n_own_cqes += n_skipped;
	ring->cq_base = (unsigned)iou->n_reaped - head;
}

/* Their places are the kernel's again. */
static void publish_reaped(iou_t *iou)
{
	__atomic_store_n(iou->ring.io.cq.khead, cq_head(iou), __ATOMIC_RELEASE);
}

static unsigned sq_flags(const iou_t *iou)
{
	return __atomic_load_n(iou->ring.io.sq.kflags, __ATOMIC_RELAXED);
}

static unsigned sq_room(const iou_t *iou)
{
	return iou->ring.io.sq.ring_entries - (iou->ring.io.sq.sqe_tail - sq_head(iou));
}

static struct io_uring_sqe *sq_slot(const iou_t *iou, unsigned i)
{
	return &iou->ring.io.sq.sqes[i & iou->ring.io.sq.ring_mask];
}

/* The next slot of the SQ, which has room. */
static struct io_uring_sqe *sq_next(iou_t *iou)
{
	return sq_slot(iou, iou->ring.io.sq.sqe_tail++);
}

/* The same for an SQE of the library's own: zero, whatever the slot held before. */
static struct io_uring_sqe *sq_next_clean(iou_t *iou)
{
	return memset(sq_next(iou), 0, sizeof(struct io_uring_sqe));
}

static bool watch_lacks(const watch_t *watch)
{
	return watch->fd >= 0 && !watch->armed;
}

static bool watch_send(iou_t *iou, watch_t *watch, uint64_t user_data)
{
	struct io_uring_sqe *sqe;

	if (!watch_lacks(watch))
		return true;
	if (!sq_room(iou))
		return false;
	sqe = sq_next_clean(iou);
	io_uring_prep_poll_add(sqe, watch->fd, POLLIN);
	sqe->len = watch->n_single ? 0 : IORING_POLL_ADD_MULTI;
	sqe->user_data = user_data;
	watch->armed = true;
	return true;
}

/* Multishot: one CQE for each write, and the counter need not be read. When it ended, start clean. */
static void watch_reap(iou_t *iou, watch_t *watch, int result, unsigned flags)
{
	eventfd_t ignored;

	if (flags & IORING_CQE_F_MORE)
		return;
	watch->armed = false;
	eventfd_read(watch->fd, &ignored);
	if (watch->n_single)
		watch->n_single--;
	else if (result == -EINVAL)
		watch->n_single = WATCH_SINGLE;
	if (result < 0 && result != -ECANCELED && watch->n_single != WATCH_SINGLE && !iou->ending)
		iou->refused = result; /* the loop cannot sleep: nothing would wake it */
}

/* A request whose CQE comes behind a notification that is on its way: see may_notify(). What io-wq completes does, but for
 * SQPOLL, whose thread works off its own queue: there it is what a timer of the kernel's puts into that queue. */
static void prep_fence(const iou_t *iou, struct io_uring_sqe *sqe, op_t *op)
{
	static struct __kernel_timespec soon = {.tv_nsec = 1};

	if (iou->ring.flags & IORING_SETUP_SQPOLL) {
		io_uring_prep_timeout(sqe, &soon, 0, 0);
	} else {
		io_uring_prep_cancel64(sqe, (uintptr_t)op, 0);
		sqe->flags = IOSQE_ASYNC;
	}
}

static void cancel_send(iou_t *iou, op_t *op)
{
	struct io_uring_sqe *sqe = sq_next_clean(iou);

	list_unlink(&op->node);
	cancel_set(op, CANCEL_SENT);
	iou->n_cancels++;
	if (op->state == OP_HELD)
		prep_fence(iou, sqe, op);
	else
		io_uring_prep_cancel64(sqe, (uintptr_t)op, 0);
	sqe->user_data = (uintptr_t)op | UD_CANCEL;
}

static struct io_uring_sqe *op_send(iou_t *iou, op_t *op)
{
	struct io_uring_sqe *sqe = sq_next(iou);

	*sqe = op->sqe;
	list_unlink(&op->node);
	op->state = OP_RING;
	iou->n_sent++;
	return sqe;
}

/* The ops at the backlog's front up to one of which something is to be noted, or to the SQ's end. */
static void plain_send(iou_t *iou, unsigned room)
{
	struct io_uring_sq *sq = &iou->ring.io.sq;
	node_t *node = iou->backlog.next;
	unsigned tail = sq->sqe_tail, n;

	for (n = 0; n < room && node != &iou->backlog; n++) {
		op_t *op = op_at(node);

		if (unlikely(op->sqe.flags & (LINKS | OURS) || op->sqe.opcode == IORING_OP_ASYNC_CANCEL))
			break;
		sq->sqes[tail++ & sq->ring_mask] = op->sqe;
		op->state = OP_RING;
		node = node->next;
	}
	iou->backlog.next = node;
	node->prev = &iou->backlog;
	sq->sqe_tail = tail;
	iou->n_sent += n;
}

enum sent { SENT, NO_ROOM, BARRED };

/* Length, and all flags together, of the chain at the backlog's front. */
static unsigned chain_length(const iou_t *iou, uint8_t *flags)
{
	op_t *op = op_at(iou->backlog.next);
	unsigned n = 1;

	for (*flags = op->sqe.flags; is_linked(op) && op->node.next != &iou->backlog; n++) {
		op = op_at(op->node.next);
		*flags |= op->sqe.flags;
	}
	return n;
}

/* The chain (or the op that plain_send() leaves) at the backlog's front: whole, or not at all. */
static enum sent chain_send(iou_t *iou)
{
	op_t *prev = NULL, *op;
	uint8_t flags;
	unsigned n = chain_length(iou, &flags);
	struct io_uring_sqe *sqe;

	if (n > iou->ring.io.sq.ring_entries) {
		while (n--) {
			op = op_at(iou->backlog.next);
			list_unlink(&op->node);
			op_end_unsent(op, -E2BIG);
		}
		return SENT;
	}
	if (flags & IOSQE_IO_DRAIN && n_ring(iou))
		return BARRED;
	if (sq_room(iou) < n)
		return NO_ROOM;
	iou->barrier = flags & IOSQE_IO_DRAIN;
	do {
		op = op_at(iou->backlog.next);
		sqe = op_send(iou, op);
		sqe->flags &= (uint8_t)~OURS;
		iou->others_cancel |= sqe->opcode == IORING_OP_ASYNC_CANCEL;
		op->bits |= OP_CHAINED;
		extra(op)->chain.prev = prev;
		extra(op)->chain.next = NULL;
		if (prev)
			extra(prev)->chain.next = op;
		prev = op;
	} while (--n);
	sqe->flags &= (uint8_t)~LINKS;
	return SENT;
}

/* To find an op that is to be cancelled, the kernel walks through one of a few lists of all that are in flight. With many
 * thousands of these, a cancel takes a tenth of a millisecond and more: so that many are sent at once as take about one. */
static void cancel_pace(iou_t *iou, uint64_t took_ns)
{
	if (took_ns > 2 * NS_PER_MS && iou->cancel_share > 1)
		iou->cancel_share /= 2;
	else if (took_ns < NS_PER_MS / 2 && iou->cancel_share < ROUND_MAX)
		iou->cancel_share *= 2;
}

/* Fill the SQ: the library's polls, cancels (a share of them, if any), then the backlog. True: there is more. */
static bool fill(iou_t *iou, bool may_sleep, bool cancels)
{
	unsigned room, n_cancels;

	if (!list_empty(&iou->backlog) && is_linked(op_at(iou->backlog.prev))) /* what is queued later is another chain */
		op_at(iou->backlog.prev)->bits |= OP_CHAIN_END;
	if (!list_empty(&iou->asked))
		cancel_again(iou);
	if (unlikely(watch_lacks(&iou->wake) || watch_lacks(&iou->clock)) && (may_sleep || iou->fd >= 0) && !iou->ending &&
	    !iou->refused)
		if (!watch_send(iou, &iou->wake, UD_WAKE) || !watch_send(iou, &iou->clock, UD_CLOCK))
			return true;
	room = sq_room(iou);
	for (n_cancels = 0; unlikely(cancel_waits(iou)) && cancels; n_cancels++, room--) {
		if (!room || n_cancels == iou->cancel_share)
			return true;
		cancel_send(iou, op_at(iou->lane.next));
	}
	if (list_empty(&iou->backlog))
		return false;
	note_backlog(iou);
	do {
		enum sent sent;

		if (unlikely(iou->barrier)) {
			if (n_ring(iou))
				return false;
			iou->barrier = false;
		}
		plain_send(iou, room);
		if (list_empty(&iou->backlog))
			return false;
		sent = chain_send(iou);
		if (sent != SENT)
			return sent == NO_ROOM;
		room = sq_room(iou);
	} while (!list_empty(&iou->backlog));
	return false;
}

/* Is there something that fill() would put into the SQ? */
static bool may_fill(const iou_t *iou)
{
	uint8_t flags;

	if (cancel_waits(iou) || watch_lacks(&iou->wake) || watch_lacks(&iou->clock))
		return true;
	if (list_empty(&iou->backlog) || (n_ring(iou) && iou->barrier))
		return false;
	chain_length(iou, &flags);
	return !(n_ring(iou) && flags & IOSQE_IO_DRAIN);
}

/* The kernel took a chain's first part only, and ran it as a chain of its own: the rest must not run. */
static void cut_chain(iou_t *iou, unsigned head)
{
	bool linked = sq_slot(iou, head - 1)->flags & LINKS;

	for (; linked && head != iou->ring.io.sq.sqe_tail; head++) {
		struct io_uring_sqe *sqe = sq_slot(iou, head);
		op_t *op = (op_t *)(uintptr_t)sqe->user_data;

		linked = sqe->flags & LINKS;
		memset(sqe, 0, sizeof(*sqe)); /* IORING_OP_NOP */
		sqe->user_data = UD_VOID;
		leave_ring(iou, op);
		op_end_unsent(op, -ECANCELED);
	}
}

static bool is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

/* SQPOLL: its thread takes the SQ; it may have to be woken, or waited for. */
static unsigned sqpoll_flags(iou_t *iou, unsigned *n)
{
	*n = 0;
	/* The tail before the flag (io_uring_setup(2)); an exchange, since TSan knows no fences. */
	__atomic_exchange_n(iou->ring.io.sq.ktail, iou->ring.io.sq.sqe_tail, __ATOMIC_SEQ_CST);
	iou->ring.unwoken = sq_flags(iou) & IORING_SQ_NEED_WAKEUP; /* until that is done */
	return (iou->ring.unwoken ? IORING_ENTER_SQ_WAKEUP : 0) | (sq_room(iou) ? 0 : IORING_ENTER_SQ_WAIT);
}

enum { SUBMIT = 1, WAIT = 2 };

/*
 * The one place that enters the kernel: submits the SQ, sees to what waits in the kernel, and sleeps until there is a
 * CQE or it is until_ns. Returns 0 or -errno; nothing is lost by an error.
 */
static int enter(iou_t *iou, unsigned what, uint64_t until_ns)
{
	unsigned head = iou->ring.head, taken, n = what & SUBMIT ? iou->ring.io.sq.sqe_tail - head : 0, flags = 0;
	bool wait = what & WAIT;
	struct __kernel_timespec ts;
	struct io_uring_getevents_arg arg;
	int ret;

	publish_reaped(iou);
	__atomic_store_n(iou->ring.io.sq.ktail, iou->ring.io.sq.sqe_tail, __ATOMIC_RELEASE);
	if (unlikely(iou->ring.flags & IORING_SETUP_SQPOLL))
		flags = sqpoll_flags(iou, &n);
	if (wait || iou->ring.must_get || sq_flags(iou) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
		flags |= IORING_ENTER_GETEVENTS;
	if (!n && !flags)
		return 0;
	flags |= iou->ring.enter_flags;
	if (wait && iou->ring.io.features & IORING_FEAT_NO_IOWAIT)
		flags |= IORING_ENTER_NO_IOWAIT;
	if (wait && until_ns != NEVER) {
		uint64_t at_ns = now_ns(), ns = until_ns > at_ns ? until_ns - at_ns : 0;

		ns = ns < LONGEST_NS ? ns : LONGEST_NS;
		ts = (struct __kernel_timespec){(int64_t)(ns / NS_PER_SEC), (long long)(ns % NS_PER_SEC)};
		arg = (struct io_uring_getevents_arg){.ts = (uintptr_t)&ts};
		ret = io_uring_enter2((unsigned)iou->ring.enter_fd, n, 1, flags | IORING_ENTER_EXT_ARG, (sigset_t *)(void *)&arg,
				      sizeof(arg));
	} else {
		ret = io_uring_enter2((unsigned)iou->ring.enter_fd, n, wait, flags, NULL, _NSIG / 8);
	}
	iou->stats.enters++;
	iou->blind = false;
	if (unlikely(iou->ring.unwoken))
		iou->ring.unwoken = ret < 0;
	iou->ring.head = sq_head(iou);
	taken = iou->ring.head - head; /* also where an error came after it */
	iou->stats.submitted += taken;
	if (likely(taken == n) && ret >= 0)
		return 0;
	iou->n_rested = NEVER; /* what waits in the kernel was not fetched, for all we know: see rest() */
	if (taken && taken < n)
		cut_chain(iou, head + taken);
	if (ret == -EBADR)
		iou->broken = true;
	if (taken || ret == -EINTR || ret == -ETIME)
		return ret == -EBADR ? ret : 0;
	return ret < 0 ? ret : -EAGAIN;
}

/* SQPOLL: let its thread run, which may need this CPU and may have less of a claim to it, to take what is in the SQ. */
static void sqpoll_wait(const iou_t *iou)
{
	if (iou->ring.flags & IORING_SETUP_SQPOLL && iou->ring.io.sq.sqe_tail != sq_head(iou))
		nanosleep(&(struct timespec){.tv_nsec = SQPOLL_NAP_NS}, NULL);
}

/* A slower way out of a shortage: some rest, which a completion ends. */
static int nap(iou_t *iou)
{
	unsigned shift = iou->n_shortages < 6 ? iou->n_shortages : 6;
	int ret = enter(iou, WAIT, add_ns(now_ns(), NS_PER_MS << shift));

	return is_shortage(ret) ? 0 : ret;
}


/* ---- Workers --------------------------------------------------------------------------------- */

static void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static job_t *job_at(const pool_t *pool, uint64_t number)
{
	return &pool->jobs[number & (pool->size - 1)];
}

/* With the lock held: is there a job? Then it is at n_taken. Looks at n_queued before it says no. */
static bool has_job(pool_t *pool)
{
	uint64_t n_taken = atomic_load_explicit(&pool->n_taken, memory_order_relaxed);

	for (;; atomic_store_explicit(&pool->n_taken, ++n_taken, memory_order_relaxed)) {
		if (n_taken == pool->n_seen)
			pool->n_seen = atomic_load(&pool->n_queued);
		if (n_taken == pool->n_seen)
			return false;
		if (job_at(pool, n_taken)->op)
			return true;
	}
}

/* With the lock held, so that a worker that is counted as idle does sleep: call one, unless one is on its way, which calls
 * the next. True: wake it once the lock is free, which is the first thing that it wants. */
static bool worker_call(pool_t *pool, bool again)
{
	if (!atomic_load(&pool->n_idle) || (atomic_load(&pool->calling) && !again))
		return false;
	atomic_store(&pool->calling, true);
	atomic_fetch_add(&pool->n_calls, 1);
	return true;
}

static void worker_wake(pool_t *pool)
{
	futex_wake(&pool->n_calls, 1);
}

/* With the lock held, and a job there. True: wake a worker for the next one, as above. */
static bool job_take(pool_t *pool, job_t *job)
{
	uint64_t n_taken = atomic_load_explicit(&pool->n_taken, memory_order_relaxed);

	*job = *job_at(pool, n_taken);
	atomic_store_explicit(&pool->n_taken, n_taken + 1, memory_order_relaxed);
	return unlikely(atomic_load(&pool->n_idle)) && has_job(pool) && worker_call(pool, false);
}

/* Before sleeping: look for a job for about as long as being woken for it would take. */
static void worker_spin(pool_t *pool)
{
	uint64_t until_ns = now_ns() + WORKER_SPIN_NS;

	do
		spin_pause();
	while (atomic_load(&pool->n_queued) == atomic_load_explicit(&pool->n_taken, memory_order_relaxed) &&
	       !atomic_load(&pool->stop) && now_ns() < until_ns);
}

/* The next job, once there is one. False: it is time to go. The worker was counted as looking, and is no more. */
static bool worker_wait(pool_t *pool, job_t *job)
{
	bool stop, call = false;

	if (pool->spins)
		worker_spin(pool);
	pthread_mutex_lock(&pool->lock);
	atomic_fetch_sub(&pool->n_looking, 1); /* and look once more: see job_queue() */
	while (!has_job(pool) && !atomic_load(&pool->stop)) {
		unsigned n_calls = atomic_load(&pool->n_calls);

		atomic_fetch_add(&pool->n_idle, 1);
		if (!has_job(pool)) {
			pthread_mutex_unlock(&pool->lock);
			futex_wait(&pool->n_calls, n_calls);
			pthread_mutex_lock(&pool->lock);
			atomic_store(&pool->calling, false);
		}
		atomic_fetch_sub(&pool->n_idle, 1);
	}
	stop = atomic_load(&pool->stop);
	if (!stop)
		call = job_take(pool, job);
	pthread_mutex_unlock(&pool->lock);
	if (call)
		worker_wake(pool);
	return !stop;
}

/* Give one back and take the next. False: there is none; the worker is looking. */
static bool worker_swap(pool_t *pool, job_t *job, int result)
{
	uint64_t n_done;
	bool more, call = false;

	pthread_mutex_lock(&pool->lock);
	more = has_job(pool);
	if (!more)
		atomic_fetch_add(&pool->n_looking, 1); /* for what the loop queues when it sees this one */
	n_done = atomic_load_explicit(&pool->n_done, memory_order_relaxed);
	pool->done[n_done & (pool->size - 1)] = (done_t){job->op, result};
	atomic_store(&pool->n_done, n_done + 1);
	if (more)
		call = job_take(pool, job);
	pthread_mutex_unlock(&pool->lock);
	if (call)
		worker_wake(pool);
	return more;
}

static void *worker_main(void *data)
{
	pool_t *pool = data;
	job_t job;
	bool more;

	pthread_setname_np(pthread_self(), "iou-worker");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	while (worker_wait(pool, &job)) {
		do {
			int result = job.work(job.work_data);

			if (unlikely(process_number() != pool->process))
				return NULL; /* the job forked, and this is the child: the pool is the parent's */
			more = worker_swap(pool, &job, result);
			pool->notify(pool);
		} while (more);
	}
	return NULL;
}

/* One more worker, all signals blocked but those that a fault of its own raises. Loop thread only. */
static int worker_start(pool_t *pool)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	sigset_t all, old;
	int error;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&pool->threads[pool->n_threads], NULL, worker_main, pool);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!error)
		pool->n_threads++;
	return -error;
}

static int pool_add_worker(pool_t *pool)
{
	int ret;

	atomic_fetch_add(&pool->n_looking, 1);
	ret = worker_start(pool);
	if (ret < 0)
		atomic_fetch_sub(&pool->n_looking, 1);
	return ret;
}

/* The same beside those there are, which carry on without it. After failures in a row, each of which costs a stack and a
 * system call, it is tried less and less often. */
static void pool_widen(pool_t *pool)
{
	if (pool->n_pauses) {
		pool->n_pauses--;
	} else if (pool_add_worker(pool) == 0) {
		pool->n_refused = 0;
	} else {
		pool->n_pauses = (1U << pool->n_refused) - 1;
		pool->n_refused += pool->n_refused < 10;
	}
}

/* Is there a job for which nobody is free, nor on his way? */
static bool lacks_worker(pool_t *pool)
{
	uint64_t n_queued = atomic_load_explicit(&pool->n_queued, memory_order_relaxed), i;
	unsigned n_free;

	pthread_mutex_lock(&pool->lock);
	n_free = atomic_load(&pool->n_idle) + atomic_load(&pool->n_looking);
	for (i = atomic_load_explicit(&pool->n_taken, memory_order_relaxed); i != n_queued; i++)
		if (job_at(pool, i)->op && !n_free--)
			break;
	pthread_mutex_unlock(&pool->lock);
	return i != n_queued;
}

/* All that is there moves to this block (which may be the old one), close together: the places of those withdrawn are
 * free again. */
static void pool_move(pool_t *pool, job_t *jobs, uint64_t size)
{
	done_t *done = (done_t *)(jobs + size);
	uint64_t n_queued = atomic_load_explicit(&pool->n_queued, memory_order_relaxed), n_taken, end, i;

	pthread_mutex_lock(&pool->lock);
	n_taken = end = atomic_load_explicit(&pool->n_taken, memory_order_relaxed);
	for (i = n_taken; i != n_queued; i++) {
		job_t job = *job_at(pool, i);

		if (!job.op)
			continue;
		job.op->job.number = end;
		jobs[end++ & (size - 1)] = job;
	}
	for (i = pool->n_collected; i != atomic_load_explicit(&pool->n_done, memory_order_relaxed); i++)
		done[i & (size - 1)] = pool->done[i & (pool->size - 1)];
	atomic_store(&pool->n_queued, end);
	pool->n_seen = end;
	pool->limit = n_taken + size;
	pool->jobs = jobs;
	pool->done = done;
	pool->size = size;
	pthread_mutex_unlock(&pool->lock);
}

/* Places for as many jobs, and some for those withdrawn, so that pool_move() pays. */
static bool pool_reserve(pool_t *pool, size_t n_ops)
{
	job_t *old = pool->jobs, *jobs;
	uint64_t size = pool->size ? pool->size : 512;

	while (size < n_ops + n_ops / 8)
		size *= 2;
	if (size == pool->size)
		return true;
	jobs = malloc(size * (sizeof(job_t) + sizeof(done_t)));
	if (!jobs)
		return false;
	pool_move(pool, jobs, size);
	free(old);
	return true;
}

/* -EAGAIN where there is no worker at all. */
static int job_queue(pool_t *pool, op_t *op, void *work_data)
{
	uint64_t n_queued;
	bool call;

	if (unlikely(!pool->n_threads) && pool_add_worker(pool) < 0)
		return -EAGAIN;
	if (unlikely(atomic_load_explicit(&pool->n_queued, memory_order_relaxed) == pool->limit))
		pool_move(pool, pool->jobs, pool->size);
	n_queued = atomic_load_explicit(&pool->n_queued, memory_order_relaxed);
	*job_at(pool, n_queued) = (job_t){op, op->job.work, work_data};
	op->job.number = n_queued;
	atomic_store(&pool->n_queued, n_queued + 1);
	/* Once a round a call is repeated: what got lost of it costs some time, and no more. */
	if (atomic_load(&pool->n_idle) && !atomic_load(&pool->n_looking) &&
	    (!atomic_load(&pool->calling) || pool->called_round != pool->n_rounds)) {
		pool->called_round = pool->n_rounds;
		pthread_mutex_lock(&pool->lock);
		call = worker_call(pool, true);
		pthread_mutex_unlock(&pool->lock);
		if (call)
			worker_wake(pool);
	}
	if (unlikely(pool->n_threads < pool->max) && lacks_worker(pool))
		pool_widen(pool);
	return 0;
}

/* With the lock held. */
static bool job_is_queued(const pool_t *pool, const op_t *op)
{
	return op->job.number >= atomic_load_explicit(&pool->n_taken, memory_order_relaxed);
}

/* Unless a worker has it already. */
static bool job_withdraw(pool_t *pool, op_t *op)
{
	bool queued;

	pthread_mutex_lock(&pool->lock);
	queued = job_is_queued(pool, op);
	if (queued)
		job_at(pool, op->job.number)->op = NULL;
	pthread_mutex_unlock(&pool->lock);
	return queued;
}

/* What workers gave back and the loop has not collected. */
static bool pool_has_done(const pool_t *pool)
{
	return pool->n_collected != atomic_load(&pool->n_done);
}

static int pool_init(pool_t *pool, unsigned max, bool spins, void (*notify)(pool_t *pool))
{
	cpu_set_t cpus;

	if (!max)
		max = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (unsigned)CPU_COUNT(&cpus)
								     : (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	pool->max = max < WORKERS_MAX ? max : WORKERS_MAX;
	pool->spins = spins;
	pool->notify = notify;
	pool->process = process_number();
	pool->threads = calloc(pool->max, sizeof(*pool->threads));
	if (!pool->threads)
		return -ENOMEM;
	pthread_mutex_init(&pool->lock, NULL);
	return 0;
}

/* Waits for the running jobs. None is queued any more. */
static void pool_stop(pool_t *pool)
{
	pthread_mutex_lock(&pool->lock);
	atomic_store(&pool->stop, true);
	atomic_fetch_add(&pool->n_calls, 1);
	pthread_mutex_unlock(&pool->lock);
	futex_wake(&pool->n_calls, INT_MAX);
	while (pool->n_threads)
		pthread_join(pool->threads[--pool->n_threads], NULL);
}

static void pool_free(pool_t *pool)
{
	free(pool->jobs);
	free(pool->threads);
}

static void pool_exit(pool_t *pool)
{
	pthread_mutex_destroy(&pool->lock);
	pool_free(pool);
}


/* ---- Inbox ----------------------------------------------------------------------------------- */

/* After publishing something for the loop: the seq_cst load pairs with the store in doze(), so either the loop
 * sees what was published, or this sees it asleep. */
static void wake(iou_t *iou)
{
	int saved = errno;
	enum sleep was;

	if (likely(atomic_load(&iou->mail.sleeping) == AWAKE))
		return;
	was = (enum sleep)atomic_exchange(&iou->mail.sleeping, AWAKE);
	if (was == AWAKE)
		return;
	atomic_fetch_add_explicit(&iou->n_wakeups, 1, memory_order_relaxed);
	event_ring(was == ASLEEP ? iou->wake.fd : iou->fd);
	errno = saved;
}

/*
 * A queue without locks (Vyukov's): whoever pushes takes the place of `last`, then links its node to the one before. In
 * between, nothing behind that gap can be taken; the loop does not wait for it, but is woken again by whoever closes it.
 */
static void mail_push(mail_t *mail, node_t *node)
{
	node_t *before;

	__atomic_store_n(&node->next, NULL, __ATOMIC_RELAXED);
	before = atomic_exchange(&mail->last, node);
	__atomic_store_n(&before->next, node, __ATOMIC_SEQ_CST); /* pairs with mail_next(), and with doze() */
}

static node_t *mail_after(const node_t *node)
{
	return __atomic_load_n(&node->next, __ATOMIC_SEQ_CST);
}

/* Take the oldest one off. NULL: there is none, or it cannot be reached yet. Loop thread only. */
static node_t *mail_next(mail_t *mail)
{
	node_t *first = mail->first, *next = mail_after(first), *last;

	if (first == &mail->stub) {
		if (!next)
			return NULL;
		mail->first = first = next;
		next = mail_after(first);
	}
	if (!next) { /* the last one: the stub takes its place, unless somebody has just come behind it */
		__atomic_store_n(&mail->stub.next, NULL, __ATOMIC_RELAXED);
		last = first;
		next = atomic_compare_exchange_strong(&mail->last, &last, &mail->stub) ? &mail->stub : mail_after(first);
	}
	if (!next)
		return NULL;
	mail->first = next;
	return first;
}

/* Is there one that can be taken? */
static inline bool mail_ready(mail_t *mail)
{
	if (likely(mail->first == &mail->stub))
		return unlikely(mail_after(&mail->stub) != NULL);
	return mail_after(mail->first) || mail->first == atomic_load(&mail->last);
}

/* None, nor one that cannot be reached yet? */
static bool mail_empty(mail_t *mail)
{
	return mail->first == &mail->stub && atomic_load(&mail->last) == &mail->stub;
}

static void mail_init(mail_t *mail)
{
	mail->first = &mail->stub;
	atomic_init(&mail->last, &mail->stub);
}

/* Something that another thread published and the loop has not taken. */
static inline bool has_mail(iou_t *iou)
{
	return mail_ready(&iou->mail) || pool_has_done(&iou->pool);
}

/* Set `sleeping`, then look: false if something came meanwhile. Who called sets it back. */
static bool doze(iou_t *iou, enum sleep how)
{
	atomic_store(&iou->mail.sleeping, how);
	return !has_mail(iou);
}

/* The loop thread changed something: make iou_fd() readable, unless it is (outside of enter(), AWAKE says so). */
__attribute__((noinline)) static void touch_fd(iou_t *iou)
{
	if (atomic_load(&iou->mail.sleeping) != AWAKE && atomic_exchange(&iou->mail.sleeping, AWAKE) != AWAKE)
		event_ring(iou->fd);
}

static inline void touch(iou_t *iou)
{
	if (unlikely(iou->fd >= 0))
		touch_fd(iou);
}

static void inbox_push(iou_t *iou, entry_t *entry)
{
	mail_push(&iou->mail, &entry->node);
	wake(iou);
}

static slab_t *slab_at(uintptr_t address)
{
	return (slab_t *)(address - address % SLAB_SIZE);
}

/* Keep one, so that posts at a moderate pace need no memory. */
static void slab_free(iou_t *iou, slab_t *slab)
{
	free(atomic_exchange(&iou->mail.spare_slab, slab));
}

/* A new slab in place of that one. False: no memory. */
static __attribute__((noinline)) bool slab_renew(iou_t *iou, uintptr_t *cursor)
{
	slab_t *slab = atomic_exchange(&iou->mail.spare_slab, NULL);
	void *memory; /* not aligned_alloc(), which takes whole multiples: glibc needs some bytes between two of them */

	if (!slab && posix_memalign(&memory, SLAB_SIZE, sizeof(*slab)) == 0)
		slab = memory;
	if (!slab)
		return false;
	slab->n_back = 0;
	if (atomic_compare_exchange_strong(&iou->mail.post_cursor, cursor, (uintptr_t)slab))
		*cursor = (uintptr_t)slab;
	else
		slab_free(iou, slab); /* another thread was first */
	return true;
}

/* Any thread. A slab is never looked into before an entry of it is one's own: it may be gone. */
static entry_t *entry_take(iou_t *iou)
{
	uintptr_t cursor = atomic_load_explicit(&iou->mail.post_cursor, memory_order_relaxed); /* a guess */
	entry_t *entry;

	do {
		while (unlikely(cursor % SLAB_SIZE == SLAB_ENTRIES))
			if (!slab_renew(iou, &cursor))
				return NULL;
	} while (!atomic_compare_exchange_weak(&iou->mail.post_cursor, &cursor, cursor + 1));
	entry = &slab_at(cursor)->entries[cursor % SLAB_SIZE];
	/* The next ones are in the cache of the loop's CPU: without this, a post takes three times as long. */
	__builtin_prefetch((void *)((uintptr_t)entry + 4 * sizeof(*entry)), 1);
	return entry;
}

/* Loop thread only. */
static void entry_free(iou_t *iou, entry_t *entry)
{
	slab_t *slab = slab_at((uintptr_t)entry);

	if (++slab->n_back == SLAB_ENTRIES)
		slab_free(iou, slab);
}

static iou_bh_t *bh_of(entry_t *entry)
{
	return container_of(entry, iou_bh_t, entry);
}

static entry_t *entry_at(node_t *node)
{
	return container_of(node, entry_t, node);
}

static void bh_rouse(iou_bh_t *bh)
{
	if (bh->idles)
		list_unlink(&bh->in_idle);
	bh->idles = false;
}

/* Taken from the mail: does it wait to run when nothing else does? Then its entry is free to be queued again. */
static bool bh_idles(iou_bh_t *bh)
{
	unsigned bits = atomic_load(&bh->bits);

	while ((bits & (BH_SCHEDULED | BH_IDLE | BH_DELETED)) == BH_IDLE)
		if (atomic_compare_exchange_weak(&bh->bits, &bits, bits & ~(unsigned)BH_QUEUED))
			return true;
	return false;
}

static void inbox_append(iou_t *iou, entry_t *entry)
{
	entry->seq = iou->inbox_seq++;
	list_append(&iou->inbox, &entry->node);
}

/* Take so many entries from the mail at most. */
static void inbox_take(iou_t *iou, uint64_t most)
{
	for (node_t *node; most && (node = mail_next(&iou->mail)); most--) {
		entry_t *entry = entry_at(node);
		iou_bh_t *bh = entry->cb ? NULL : bh_of(entry);

		if (bh && bh_idles(bh)) {
			if (!bh->idles)
				list_append(&iou->idle, &bh->in_idle);
			bh->idles = true;
			continue;
		}
		if (bh) {
			bh_rouse(bh);
			bh->linked = true;
		}
		inbox_append(iou, entry);
	}
}

/* There is nothing else to do: bottom halves that wait for that are in line now. */
static void inbox_take_idle(iou_t *iou)
{
	for (unsigned n = 0; n < ROUND_MAX && !list_empty(&iou->idle); n++) {
		iou_bh_t *bh = container_of(iou->idle.next, iou_bh_t, in_idle);

		bh_rouse(bh);
		if (atomic_fetch_or(&bh->bits, BH_QUEUED) & BH_QUEUED)
			continue; /* it was scheduled just now, and comes with the mail */
		bh->linked = true;
		inbox_append(iou, &bh->entry);
	}
}

/* Off the line, whatever place it has there, so that it gets a new one when it is scheduled again. */
static void bh_unqueue(iou_bh_t *bh)
{
	iou_t *iou = bh->iou;
	unsigned bits = BH_SCHEDULED | BH_IDLE;

	if (atomic_load(&bh->bits) & BH_QUEUED && !bh->linked)
		inbox_take(iou, UINT64_MAX);
	bh_rouse(bh);
	if (bh->linked) {
		list_unlink(&bh->entry.node);
		bh->linked = false;
		bits |= BH_QUEUED;
	}
	atomic_fetch_and(&bh->bits, ~bits);
}

/* A worker gave back a job. */
static void notify_loop(pool_t *pool)
{
	wake(container_of(pool, iou_t, pool));
}

/* Jobs that workers gave back, at most so many, have ended. */
static void take_done(iou_t *iou, uint64_t most)
{
	pool_t *pool = &iou->pool;
	uint64_t n_done = atomic_load_explicit(&pool->n_done, memory_order_acquire);

	for (; pool->n_collected != n_done && most; pool->n_collected++, most--) {
		const done_t *done = &pool->done[pool->n_collected & (pool->size - 1)];

		done->op->bits &= (uint8_t)~OP_EXPIRED; /* too late: it keeps its result */
		op_end(done->op, done->result);
	}
}

static void bh_free(iou_bh_t *bh)
{
	pthread_mutex_lock(&bh->iou->bhs_lock);
	list_unlink(&bh->in_bhs);
	pthread_mutex_unlock(&bh->iou->bhs_lock);
	free(bh);
}


/* ---- Loop ------------------------------------------------------------------------------------ */

#ifdef IOU_DEBUG
/* Every entry is where it belongs, and due no sooner than the one above it. Returns how many there are. */
static uint64_t check_heap(const heap_t *heap, bool of_timers)
{
	for (size_t i = HEAP_ROOT; i < heap->end; i++) {
		const op_t *op = heap->entries[i].op;

		MUST(op->heap_index == i && (op->state == OP_TIMER) == of_timers, "a heap");
		MUST(i == HEAP_ROOT || !heap_before(&heap->entries[i], &heap->entries[i / 4 + 2]), "a heap's order");
	}
	return heap->end - HEAP_ROOT;
}

/* Each op on the list is in the ring, or held behind its cancel, which is at that stage. Returns how many there are. */
static uint64_t check_cancels(node_t *list, enum op_cancel cancel, enum op_cancel or_cancel)
{
	for (node_t *node = list->next; node != list; node = node->next) {
		op_t *op = op_at(node);

		MUST((op->state == OP_RING || op->state == OP_HELD) && node->next->prev == node, "a list");
		MUST(cancel_of(op) == cancel || cancel_of(op) == or_cancel, "a cancel");
	}
	return list_length(list);
}

/* What the top of this file says of states, lists and counters. Each round, while there are not too many ops. */
static void check(iou_t *iou)
{
	uint64_t n[OP_ENDED + 1] = {0}, n_heap = 0, n_ended = 0;

	if (iou->n_ops > 1000)
		return;
	FOR_EACH_OP(iou, chunk, op) {
		n[op->state]++;
		n_heap += op->heap_index > 0;
		MUST(op->state != OP_TIMER || op->heap_index, "a timer");
	}
	MUST(n_heap == check_heap(&iou->timers, true) + check_heap(&iou->deadlines, false), "the heaps");
	MUST(n[OP_BACKLOG] == n_backlog(iou) && list_length(&iou->backlog) == n_backlog(iou), "the backlog");
	MUST(n[OP_RING] == n_ring(iou), "ops in the ring");
	for (op_t *op = iou->ended; op; op = op->end.next, n_ended++)
		MUST(op->state == OP_ENDED && (!cancel_of(op) || cancel_of(op) == CANCEL_TIMER), "an op that ended");
	MUST(n[OP_ENDED] == n_ended && n_ended == iou->n_ended_in - iou->n_ended_out, "ops that ended");
	MUST(check_cancels(&iou->lane, CANCEL_LANE, CANCEL_ASKED) + check_cancels(&iou->asked, CANCEL_ASKED, CANCEL_ASKED) <=
	     n_ring(iou) + n[OP_HELD], "cancels");
	MUST(n[OP_HELD] <= iou->n_cancels + list_length(&iou->lane), "ops held");
	MUST(iou->n_elsewhere == n[OP_HELD] + n[OP_JOB] + n[OP_TIMER] + n[OP_ENDED], "ops elsewhere");
}
#else
#define check(iou) ((void)(iou))
#endif

static inline bool is_pending(iou_t *iou)
{
	return n_pending(iou) || atomic_load(&iou->n_holds) > 0 || !list_empty(&iou->inbox) || !list_empty(&iou->idle) ||
	       !mail_empty(&iou->mail);
}

/* Is there something to deliver? Idle bottom halves wait for the contrary. */
static bool is_ready(iou_t *iou)
{
	return cq_ready(iou) || iou->ended || !list_empty(&iou->inbox) || has_mail(iou) ||
	       (clock_runs(iou) && clock_due_ns(iou) <= now_ns());
}

/* Is there something to wait for, no quit, and nothing to be told that the kernel refused? */
static bool may_wait(iou_t *iou, bool quits)
{
	return is_pending(iou) && !(quits && atomic_load(&iou->quit)) && !iou->refused;
}

/* When the clock has something for the loop. */
static uint64_t next_due_ns(const iou_t *iou)
{
	uint64_t due_ns = clock_runs(iou) ? clock_due_ns(iou) : NEVER;

	return list_empty(&iou->asked) ? due_ns : at_most(due_ns, iou->retry_due_ns);
}

static void spin_adapt(iou_t *iou, uint64_t ns)
{
	uint64_t max_ns = iou->spin_max_ns, least_ns = max_ns / 64 > SPIN_LEAST_NS ? max_ns / 64 : SPIN_LEAST_NS;

	ns = ns > least_ns ? ns : least_ns;
	iou->spin_ns = ns < max_ns ? ns : max_ns;
}

/* Look for completions for a while, before sleeping: twice as long the next time if one came, else half. */
static void spin(iou_t *iou, bool quits, uint64_t until_ns)
{
	uint64_t spin_until_ns = add_ns(now_ns(), iou->spin_ns);
	bool found;

	if (until_ns > spin_until_ns)
		until_ns = spin_until_ns;
	do {
		spin_pause();
		found = cq_ready(iou) || has_mail(iou) || sq_flags(iou) & IORING_SQ_TASKRUN;
	} while (!found && may_wait(iou, quits) && now_ns() < until_ns);
	spin_adapt(iou, found ? add_ns(iou->spin_ns, iou->spin_ns) : iou->spin_ns / 2);
}

/* The kernel could not take or give anything for now. 0: try again. */
static int shortage(iou_t *iou, int error)
{
	if (iou->n_shortages++ < SHORTAGES_MAX)
		return nap(iou);
	iou->n_shortages = 0;
	return error;
}

/* The loop has slept: back to what it was before. Who woke it has not written to iou_fd(). */
static void sleep_end(iou_t *iou, enum sleep before)
{
	if (likely(before == AWAKE))
		atomic_store_explicit(&iou->mail.sleeping, AWAKE, memory_order_relaxed);
	else if (atomic_exchange(&iou->mail.sleeping, RESTING) == AWAKE)
		touch_fd(iou);
}

/* Submit what is queued, or a round's share of it. Where nothing is ready then, sleep until something is: until until_ns
 * (0: do not). */
static int submit(iou_t *iou, bool quits, uint64_t until_ns)
{
	const uint64_t n_sent = iou->n_sent;
	bool may_spin = iou->spin_max_ns, cancels = true;

	for (;;) {
		uint64_t began_ns = unlikely(cancel_waits(iou)) && cancels ? now_ns() : 0;
		bool left = fill(iou, until_ns, cancels), more = left || cancel_waits(iou);
		bool wait = until_ns && !more && !is_ready(iou) && list_empty(&iou->idle);
		enum sleep before = (enum sleep)atomic_load_explicit(&iou->mail.sleeping, memory_order_relaxed);
		uint64_t due_ns = wait ? at_most(until_ns, next_due_ns(iou)) : 0;
		int ret;

		if (wait && may_spin && enter(iou, SUBMIT, 0) == 0) {
			may_spin = false;
			spin(iou, quits, due_ns);
			continue;
		}
		if (wait) {
			wait = doze(iou, ASLEEP) && may_wait(iou, quits);
			ret = enter(iou, wait ? SUBMIT | WAIT : SUBMIT, due_ns);
			sleep_end(iou, before);
		} else {
			ret = enter(iou, SUBMIT, 0);
		}
		if (unlikely(more && began_ns))
			cancel_pace(iou, now_ns() - began_ns);
		if (likely(ret == 0))
			iou->n_shortages = 0;
		else if (!is_shortage(ret))
			return ret;
		else if (is_ready(iou) || (!until_ns && iou->n_shortages++ < SHORTAGES_MAX))
			return 0;
		else if ((ret = shortage(iou, ret)))
			return ret;
		else
			continue;
		more |= !(iou->ring.flags & IORING_SETUP_SQPOLL) && iou->ring.head != iou->ring.io.sq.sqe_tail;
		if (!more || iou->n_sent - n_sent >= ROUND_MAX || cq_ready(iou) >= iou->ring.io.cq.ring_entries / 2)
			return 0;
		if (unlikely(cancel_waits(iou))) { /* a share of them was sent: now what they shall not hold up */
			if (cancels ? list_empty(&iou->backlog) : !left)
				return 0;
			cancels = false;
		}
		sqpoll_wait(iou);
	}
}

static bool goes_on(iou_t *iou, const round_t *round, int ret)
{
	return likely(ret >= 0) && !(unlikely(atomic_load_explicit(&iou->quit, memory_order_relaxed)) && round->quits);
}

/* The one place that calls user code. If that forked, and this is the child, nothing more of the parent's is to be done here. */
static int call(iou_t *iou, round_t *round, int (*cb)(void *cb_data), void *cb_data)
{
	int ret;

	round->n_calls++;
	ret = cb(cb_data);
	return is_here(iou) ? ret : -EEXIST;
}

/* The callback of an op that runs in no other of the same op: so it is this one's to release. */
static inline __attribute__((always_inline)) int deliver_outermost(iou_t *iou, round_t *round, op_t *op)
{
	int ret;

	op->bits |= OP_CALLED;
	ret = call(iou, round, op->cb, op->cb_data);
	if (likely(op->state <= OP_LAST)) /* or given back in the callback: OP_FREE */
		op_release(iou, op);
	else
		op->bits &= (uint8_t)~OP_CALLED;
	return ret;
}

/* The callback of an op of which another one is running, which will release it, and reads its own result until then. */
static __attribute__((noinline)) int deliver_nested(iou_t *iou, round_t *round, op_t *op, int result, unsigned flags)
{
	const int outer_result = op->pub.result;
	const unsigned outer_flags = op->pub.flags;
	int ret;

	op->pub.result = result;
	op->pub.flags = flags;
	ret = call(iou, round, op->cb, op->cb_data);
	op->pub.result = outer_result;
	op->pub.flags = outer_flags;
	return ret;
}

static inline __attribute__((always_inline)) int deliver(iou_t *iou, round_t *round, op_t *op, int result,
							    unsigned flags)
{
	if (likely(!(flags & IORING_CQE_F_MORE))) {
		iou->n_elsewhere -= op->state != OP_RING;
		op->state = OP_LAST;
		if (unlikely(op->bits)) {
			if (op->heap_index)
				heap_remove(&iou->deadlines, op);
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
	int ret = 0;

	for (; round->n_deadlines && heap_due_ns(&iou->deadlines) <= round->now_ns; round->n_deadlines--)
		deadline_expire(iou);
	for (; goes_on(iou, round, ret) && round->n_timers && heap_due_ns(&iou->timers) <= round->now_ns; round->n_timers--) {
		op_t *op = iou->timers.entries[HEAP_ROOT].op;
		int n;

		if (op->timer.seq >= round->timer_seq)
			break;
		n = timer_expire(op, heap_due_ns(&iou->timers), round->now_ns);
		iou->stats.timers++;
		ret = deliver(iou, round, op, n, op->heap_index ? IORING_CQE_F_MORE : 0);
	}
	return ret;
}

/* Off the inbox. Returns the callback to call, or NULL where it was cancelled or deleted meanwhile. */
static int (*inbox_next(iou_t *iou, entry_t *entry, void **cb_data))(void *)
{
	int (*cb)(void *) = entry->cb;
	iou_bh_t *bh;
	unsigned bits;

	list_unlink(&entry->node);
	if (cb) {
		*cb_data = entry->cb_data;
		entry_free(iou, entry);
		return cb;
	}
	bh = bh_of(entry);
	bh->linked = false;
	*cb_data = bh->cb_data;
	bits = atomic_fetch_and(&bh->bits, ~(unsigned)(BH_SCHEDULED | BH_IDLE | BH_QUEUED));
	if (bits & BH_DELETED) {
		bh_free(bh);
		return NULL;
	}
	return bits & (BH_SCHEDULED | BH_IDLE) ? bh->cb : NULL;
}

static int deliver_inbox(iou_t *iou, round_t *round)
{
	int ret = 0;

	for (; goes_on(iou, round, ret) && round->n_entries && !list_empty(&iou->inbox); round->n_entries--) {
		entry_t *entry = entry_at(iou->inbox.next);
		int (*cb)(void *);
		void *cb_data;

		if (entry->seq >= round->inbox_seq)
			break;
		cb = inbox_next(iou, entry, &cb_data);
		if (!cb)
			continue;
		iou->stats.posts++;
		ret = call(iou, round, cb, cb_data);
	}
	return ret;
}

static int deliver_ended(iou_t *iou, round_t *round)
{
	int ret = 0;

	while (goes_on(iou, round, ret) && iou->n_ended_out < round->n_ended) {
		op_t *op = ended_next(iou);

		ret = deliver(iou, round, op, op->end.result, 0);
	}
	return ret;
}

/* What a result means to the program: io-wq's and the kernel's inner codes are a cancel's. */
static int op_result(const op_t *op, int result)
{
	if (likely(result >= 0))
		return result;
	if ((result <= -512 && result >= -516) || (result == -EINTR && cancel_of(op) >= CANCEL_LANE))
		result = -ECANCELED;
	return result == -ECANCELED && op->bits & OP_EXPIRED ? -ETIME : result;
}

/* The process was stopped and continued: what waited in io-wq was interrupted, to be started again (-ERESTARTSYS and the
 * like). In a chain it is too late for that; and if the program may have cancelled it, it has ended. */
static bool is_interrupted(const iou_t *iou, const op_t *op, int result)
{
	bool cancelled = cancel_of(op) || iou->others_cancel || op->sqe.opcode == IORING_OP_POLL_ADD ||
			 op->sqe.opcode == IORING_OP_TIMEOUT;

	return result <= -512 && result >= -514 && !cancelled && !(op->bits & OP_CHAINED);
}

/* Back to the front of the backlog, as if it had not been sent. */
static void op_unsend(iou_t *iou, op_t *op)
{
	iou->n_own_cqes++;
	iou->n_sent--;
	op->state = OP_BACKLOG;
	list_append(iou->backlog.next, &op->node);
}

static bool is_zero_copy(const op_t *op)
{
	return op->sqe.opcode == IORING_OP_SEND_ZC || op->sqe.opcode == IORING_OP_SENDMSG_ZC;
}

/* A zero-copy send that fails with its chain, before it began: its CQE lacks F_MORE, yet a notification may follow (6.18).
 * That one is on its way by then, in a queue of the kernel's that a cancel by io-wq comes behind. */
static bool may_notify(const op_t *op, int result)
{
	return unlikely(result < 0 && op->bits & OP_CHAINED && is_zero_copy(op));
}

static void op_fence(op_t *op)
{
	extra(op)->fences = false;
	cancel_later(op); /* see prep_fence() */
}

/* It has ended, but its memory must not be another's yet. */
static void op_hold(iou_t *iou, op_t *op, int result, unsigned flags, bool may_notify)
{
	op->state = OP_HELD;
	iou->n_elsewhere++;
	extra(op)->held.result = result;
	extra(op)->held.flags = flags;
	extra(op)->fences = may_notify;
	if (cancel_of(op) != CANCEL_SENT)
		op_fence(op);
}

/* A CQE of the library's own. Returns the op that waited for it, if one did. */
static op_t *reap_own(iou_t *iou, uint64_t user_data, int result, unsigned flags)
{
	op_t *op = (op_t *)(uintptr_t)(user_data & ~(uint64_t)UD_CANCEL);

	iou->n_own_cqes++;
	if (user_data == UD_WAKE) {
		watch_reap(iou, &iou->wake, result, flags);
	} else if (user_data == UD_CLOCK) {
		watch_reap(iou, &iou->clock, result, flags);
	} else if (user_data > UD_VOID) {
		iou->n_cancels--;
		if (op->state != OP_HELD)
			cancel_answered(op, result);
		else if (extra(op)->fences)
			op_fence(op);
		else
			return op;
	}
	return NULL;
}

/* musl's CMSG_NXTHDR() compares a size with a difference of pointers, and clang warns where it is used. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare"
static void close_messages(const struct msghdr *message)
{
	struct msghdr *m = (struct msghdr *)message;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(m); part; part = CMSG_NXTHDR(m, part)) {
		size_t n = part->cmsg_len > CMSG_LEN(0) ? (part->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
		int fd;

		if (part->cmsg_level != SOL_SOCKET || (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != SCM_PIDFD))
			continue;
		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
			close(fd);
		}
	}
}
#pragma GCC diagnostic pop

/* While the iou ends: descriptors that an op returns have no other owner. (Those that a multishot RECVMSG returns lie in a
 * buffer which only the program and the kernel know.) */
static void close_result(const op_t *op, int result)
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

/* A completion of the program's that is not the plain case below. */
__attribute__((noinline)) static int deliver_other(iou_t *iou, round_t *round, uint64_t user_data, int result,
						   unsigned flags)
{
	op_t *op = (op_t *)(uintptr_t)user_data;

	if (user_data & 1 || !user_data) {
		op = reap_own(iou, user_data, result, flags);
		if (!op)
			return 0;
		result = extra(op)->held.result;
		flags = extra(op)->held.flags;
	} else if (op->state == OP_HELD) { /* the notification */
		iou->n_own_cqes++;
		return 0;
	} else if (!(flags & IORING_CQE_F_MORE)) {
		bool notifies = may_notify(op, result);

		if (unlikely(is_interrupted(iou, op, result))) {
			op_unsend(iou, op);
			return 0;
		}
		leave_ring(iou, op);
		if (notifies || cancel_of(op) == CANCEL_SENT) {
			op_hold(iou, op, result, flags, notifies);
			return 0;
		}
	} else {
		iou->n_more_cqes++;
		if (op->bits & OP_CHAINED && is_zero_copy(op))
			leave_chain(op); /* it has sent: the next one starts before the notification */
	}
	if (unlikely(iou->ending))
		close_result(op, result);
	result = op_result(op, result);
	if (!(flags & IORING_CQE_F_MORE))
		sqe_clear(op);
	return deliver(iou, round, op, result, flags);
}

/*
 * Most CQEs end a plain op, which is done here with as few stores as can be: they are most of what an op costs. The kernel
 * is told what was reaped at the end and before each enter, or one by one where it may post CQEs meanwhile.
 */
static int deliver_cqes(iou_t *iou, round_t *round)
{
	int ret = 0;

	while (goes_on(iou, round, ret) && iou->n_reaped < round->n_cqes) {
		const struct io_uring_cqe *cqe = cqe_at(iou, iou->n_reaped);
		uint64_t user_data = cqe->user_data;
		op_t *op = (op_t *)(uintptr_t)user_data;

		prefetch_op(cqe_at(iou, iou->n_reaped + 1)->user_data);
		if (unlikely(!(iou->ring.flags & IORING_SETUP_DEFER_TASKRUN)))
			publish_reaped(iou);
		iou->n_reaped++;
		if (unlikely(user_data & 1 || !user_data || cqe->flags & IORING_CQE_F_MORE || cqe->res < 0 ||
			     op->bits)) {
			ret = deliver_other(iou, round, user_data, cqe->res, cqe->flags);
			continue;
		}
		memcpy(&op->pub.result, &cqe->res, sizeof(cqe->res) + sizeof(cqe->flags));
		sqe_clear(op);
		op->state = OP_LAST;
		ret = deliver_outermost(iou, round, op);
	}
	if (likely(ret != -EEXIST || is_here(iou))) /* a child does not have the ring's memory */
		publish_reaped(iou);
	return ret;
}

/* What is ready now is this round's, but for what is beyond its share; what comes later is the next one's. */
static void round_begin(iou_t *iou, round_t *round, bool quits)
{
	if (has_mail(iou)) {
		inbox_take(iou, ROUND_MAX);
		take_done(iou, ROUND_MAX);
	}
	if (unlikely(!list_empty(&iou->idle)) && !is_ready(iou))
		inbox_take_idle(iou);
	round->quits = quits;
	round->n_calls = 0;
	round->stage = AT_CQES;
	if (clock_runs(iou) || !list_empty(&iou->inbox) || iou->ended) {
		round->stage = AT_TIMERS;
		round->now_ns = clock_runs(iou) ? now_ns() : 0; /* NEVER is later */
		round->timer_seq = iou->timer_seq;
		round->inbox_seq = iou->inbox_seq;
		round->n_deadlines = round->n_timers = round->n_entries = ROUND_MAX;
		round->n_ended = at_most(iou->n_ended_in, iou->n_ended_out + ROUND_MAX);
	}
	round->n_cqes = iou->n_reaped + at_most(cq_ready(iou), ROUND_MAX);
}

/* Does the round end in this stage? Then that is where it goes on. */
static inline bool stops(iou_t *iou, round_t *round, int ret, enum stage stage)
{
	round->stage = stage;
	return unlikely(!goes_on(iou, round, ret));
}

/* Deliver what is left of the round, in the order that iou.h promises. */
static int round_deliver(iou_t *iou, round_t *round)
{
	enum stage from = round->stage;
	int ret;

	if (from <= AT_TIMERS) {
		ret = deliver_timers(iou, round);
		if (stops(iou, round, ret, AT_TIMERS))
			return ret;
	}
	if (from <= AT_INBOX) {
		ret = deliver_inbox(iou, round);
		if (stops(iou, round, ret, AT_INBOX))
			return ret;
	}
	if (from <= AT_ENDED) {
		ret = deliver_ended(iou, round);
		if (stops(iou, round, ret, AT_ENDED))
			return ret;
	}
	ret = deliver_cqes(iou, round);
	if (!stops(iou, round, ret, AT_CQES))
		round->stage = AT_NONE;
	return ret;
}

/* A callback that ends each round at itself holds up no other source: first comes what was left of a round cut off. */
static int deliver_all(iou_t *iou, round_t *round, bool quits)
{
	int ret;

	if (unlikely(iou->cut.stage)) {
		*round = iou->cut;
		round->quits = quits;
		round->n_calls = 0;
		iou->cut.stage = AT_NONE;
		ret = round_deliver(iou, round);
		if (round->stage || round->n_calls)
			return ret;
	}
	round_begin(iou, round, quits);
	return round_deliver(iou, round);
}

/* There are CQEs, so the kernel has made iou_fd() readable, and need not do so again before it was read. */
static void bell_rang(iou_t *iou)
{
	atomic_store_explicit(&iou->mail.sleeping, AWAKE, memory_order_relaxed);
	io_uring_cq_eventfd_toggle(&iou->ring.io, false);
}

/* What the kernel refuses of the library's own is told by a call that did nothing, where the next one would sleep, or the
 * program does on iou_fd(). Until then it is not tried again, and the loop does not sleep. */
__attribute__((cold, noinline)) static int refused_take(iou_t *iou, int ret, bool may_sleep)
{
	int error = iou->refused;

	if (ret || is_ready(iou) || !list_empty(&iou->idle) || !(iou->fd >= 0 || (may_sleep && is_pending(iou))))
		return ret;
	iou->refused = 0;
	return error;
}

/* Submit, sleep if nothing is ready, deliver. Returns the number of callbacks run, or an error: a callback's, or
 * the kernel's where nothing was ready. */
static int round_run(iou_t *iou, bool quits, uint64_t until_ns)
{
	round_t round;
	iou_t *outer = current_iou;
	int ret;

	check(iou);
	iou->pool.n_rounds++;
	ret = submit(iou, quits, iou->broken ? 0 : until_ns);
	if (unlikely(iou->broken))
		ret = -EBADR;
	if (likely(ret >= 0) || is_ready(iou)) {
		if (unlikely(iou->fd >= 0) && cq_ready(iou))
			bell_rang(iou);
		current_iou = iou;
		ret = deliver_all(iou, &round, quits);
		if (unlikely(round.stage))
			iou->cut = round;
		current_iou = outer;
		if (ret >= 0)
			ret = round.n_calls;
	}
	check(iou);
	return ret;
}

/* First flush, run or poll: the ring is enabled, and this thread's. */
static int own(iou_t *iou)
{
	int ret;

	if (likely(iou->bound))
		return 0;
	ret = ring_bind(&iou->ring, iou->handed);
	if (ret < 0)
		return ret;
	iou->bound = true;
	if (!iou->handed) {
		pthread_mutex_lock(&iou->bhs_lock); /* see iou_bh_cancel() */
		atomic_store(&iou->owner, thread_key());
		pthread_mutex_unlock(&iou->bhs_lock);
	}
	return 0;
}

/* The timerfd behind iou_fd() is set to what is due next. */
static void clock_set(iou_t *iou)
{
	uint64_t due_ns = next_due_ns(iou), seconds = due_ns / NS_PER_SEC;
	struct itimerspec at = {0};

	if (due_ns == iou->clock_due_ns)
		return;
	if (due_ns != NEVER) /* where time_t has 32 bits, the far ones too early: then the loop looks again */
		at.it_value = (struct timespec){(time_t)(seconds < SECONDS_MAX ? seconds : SECONDS_MAX),
						(long)(due_ns % NS_PER_SEC)};
	timerfd_settime(iou->clock.fd, TFD_TIMER_ABSTIME, &at, NULL);
	iou->clock_due_ns = due_ns;
}

/* Does the SQ hold something that the kernel will not take of itself? */
static bool sq_waits(const iou_t *iou)
{
	return iou->ring.flags & IORING_SETUP_SQPOLL ? iou->ring.unwoken : iou->ring.io.sq.sqe_tail != sq_head(iou);
}

/* Does a poll have something to do, that nothing will tell of later? */
static bool has_more(iou_t *iou)
{
	return may_fill(iou) || sq_waits(iou) || !list_empty(&iou->idle) || is_ready(iou) ||
	       sq_flags(iou) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Of completions that another eventfd's write (6.18) or a timerfd (6.12) brings about, only the first makes the ring signal
 * its eventfd. So that is registered anew whenever it was signalled, if something is to come by it. */
static void bell_renew(iou_t *iou)
{
	const ring_t *ring = &iou->ring;
	bool by_index = ring->enter_flags && ring->io.features & IORING_FEAT_REG_REG_RING; /* a quarter cheaper */
	unsigned fd = (unsigned)(by_index ? ring->enter_fd : ring->io.ring_fd);
	unsigned flag = by_index ? IORING_REGISTER_USE_REGISTERED_RING : 0;

	int ret = io_uring_register(fd, IORING_UNREGISTER_EVENTFD | flag, NULL, 0);

	if (ret >= 0 || ret == -ENXIO)
		ret = io_uring_register(fd, IORING_REGISTER_EVENTFD | flag, &iou->fd, 1);
	iou->deaf = iou->stale = ret < 0;
	if (ret == -EACCES)
		iou->refused = ret; /* by a restriction: the next poll tells */
}

/* At the end of each call that may have left or found something to do, where iou_fd() is in use: submit what is queued,
 * and make the descriptor readable, or see to it that whatever comes will. */
static void rest(iou_t *iou)
{
	eventfd_t n_rung = 0;
	bool news;

	if (may_fill(iou))
		submit(iou, false, 0); /* what callbacks queued; an error is the next poll's to tell */
	if (atomic_load(&iou->mail.sleeping) == AWAKE && (iou->blind || has_more(iou)))
		return; /* it is readable */
	eventfd_read(iou->fd, &n_rung);
	news = n_rung > iou->rang || iou->n_reaped != iou->n_rested; /* the kernel has signalled, or might have */
	iou->n_rested = iou->n_reaped;
	iou->stale |= news;
	if (iou->ring.flags & IORING_SETUP_DEFER_TASKRUN && iou->stale &&
	    (n_ring(iou) || iou->deaf || next_due_ns(iou) != NEVER)) {
		bell_renew(iou);
		news = true;
	}
	clock_set(iou);
	io_uring_cq_eventfd_toggle(&iou->ring.io, true); /* before doze(), which is a fence, and has_more() */
	/* Where no flag tells of what is left in the kernel, the program polls once more, until nothing comes. */
	iou->blind = news && iou->ring.must_get;
	iou->rang = iou->deaf || iou->blind || !doze(iou, RESTING) || has_more(iou);
	if (iou->rang) {
		atomic_store(&iou->mail.sleeping, AWAKE);
		event_ring(iou->fd);
	}
}

/* Of one that is handed: the thread in its loop is told from others under the lock: see iou_bh_cancel(). */
static __attribute__((noinline)) void begin_unowned(iou_t *iou)
{
	pthread_mutex_lock(&iou->bhs_lock);
	atomic_store_explicit(&iou->depth, 1, memory_order_relaxed);
	atomic_store_explicit(&iou->runner, thread_number(), memory_order_relaxed);
	pthread_mutex_unlock(&iou->bhs_lock);
}

static void begin_loop(iou_t *iou)
{
	if (unlikely(iou->handed) && !iou->depth)
		begin_unowned(iou);
	else /* the count is written by this thread alone */
		atomic_store_explicit(&iou->depth, iou->depth + 1, memory_order_relaxed);
}

static __attribute__((noinline)) void end_watched(iou_t *iou)
{
	if (iou->fd >= 0 && is_here(iou))
		rest(iou);
	if (iou->handed && iou->depth == 1)
		atomic_store_explicit(&iou->runner, 0, memory_order_relaxed);
}

static void end_loop(iou_t *iou)
{
	if (unlikely(iou->fd >= 0 || iou->handed))
		end_watched(iou);
	atomic_store_explicit(&iou->depth, iou->depth - 1, memory_order_release);
}


/* ---- Life ------------------------------------------------------------------------------------ */

iou_t *iou_new(unsigned entries)
{
	iou_config_t config = {.entries = entries};

	if (!entries)
		return refuse(EINVAL);
	return iou_new_with(&config);
}

static bool config_valid(const iou_config_t *config)
{
	static const uint64_t zero[sizeof(config->reserved) / sizeof(uint64_t)];
	const unsigned known = IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
			       IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			       IORING_SETUP_SQPOLL;

	return config && !(config->setup_flags & ~known) && !config->reserved0 &&
	       memcmp(config->reserved, zero, sizeof(zero)) == 0;
}

/* What is in the inbox or waits for it, but for the bottom halves themselves. */
static void free_posts(iou_t *iou)
{
	inbox_take(iou, UINT64_MAX);
	while (!list_empty(&iou->idle))
		bh_rouse(container_of(iou->idle.next, iou_bh_t, in_idle));
	while (!list_empty(&iou->inbox)) {
		entry_t *entry = entry_at(iou->inbox.next);

		list_unlink(&entry->node);
		if (entry->cb)
			entry_free(iou, entry);
	}
}

/* All memory of its own; the ops too, unless the kernel may still use what they refer to. */
static void free_memory(iou_t *iou, bool ops)
{
	uintptr_t cursor = atomic_load(&iou->mail.post_cursor);
	chunk_t *chunk;

	if (cursor % SLAB_SIZE != SLAB_ENTRIES)
		free(slab_at(cursor));
	free(atomic_load(&iou->mail.spare_slab));
	if (ops) {
		FOR_EACH_OP(iou, each, op)
			env_free(op);
		while ((chunk = iou->chunks)) {
			iou->chunks = chunk->next;
			free(chunk);
		}
	}
	free(iou->timers.entries);
	free(iou->deadlines.entries);
	free(iou);
}

static void free_bhs(iou_t *iou)
{
	for (node_t *node = iou->bhs.next, *next; node != &iou->bhs; node = next) {
		next = node->next;
		free(container_of(node, iou_bh_t, in_bhs));
	}
}

static void close_fds(const iou_t *iou)
{
	if (iou->wake.fd >= 0)
		close(iou->wake.fd);
	if (iou->clock.fd >= 0)
		close(iou->clock.fd);
	if (iou->bell >= 0)
		close(iou->bell);
}

/* In mirror order, once no worker is there. */
static void destroy(iou_t *iou, bool ring, bool by_owner, bool idle)
{
	if (ring)
		ring_close(&iou->ring, by_owner, idle);
	close_fds(iou);
	pool_exit(&iou->pool);
	free_posts(iou);
	free_bhs(iou);
	pthread_mutex_destroy(&iou->bhs_lock);
	free_memory(iou, idle);
}

/* In a child that was forked: the ring's memory is not mapped, and the threads are the parent's. What another thread than
 * the loop's found when it forked may have been half changed, and is left to the end of the process. */
static void destroy_copy(iou_t *iou)
{
	uint64_t owner = atomic_load(&iou->owner);

	close(iou->ring.io.ring_fd);
	close_fds(iou);
	if (thread_number() != (owner == NOBODY ? iou->maker : owner & ~(uint64_t)UINT32_MAX) || (iou->handed && iou->bound))
		return;
	pool_free(&iou->pool);
	free_posts(iou);
	if (pthread_mutex_trylock(&iou->bhs_lock) == 0) /* else another thread was changing them */
		free_bhs(iou);
	free_memory(iou, true);
}

/* The eventfd behind iou_fd(), with the ring's. Silent until it was asked for. */
static int bell_register(iou_t *iou, ring_t *ring)
{
	int bell = iou->bell, ret;

	if (bell < 0)
		bell = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); /* readable: the first poll arms the watches */
	if (bell < 0)
		return -errno;
	ret = io_uring_register((unsigned)ring->io.ring_fd, IORING_REGISTER_EVENTFD, &bell, 1);
	if (ret >= 0)
		iou->bell = bell;
	else if (iou->bell < 0)
		close(bell);
	if (ret >= 0)
		io_uring_cq_eventfd_toggle(&ring->io, iou->fd >= 0);
	return ret;
}

static iou_t *iou_alloc(const iou_config_t *config)
{
	size_t size = (sizeof(iou_t) + 63) / 64 * 64;
	iou_t *iou;

	iou = process_init() ? aligned_alloc(64, size) : NULL;
	if (!iou)
		return NULL;
	memset(iou, 0, size);
	list_init(&iou->backlog);
	list_init(&iou->lane);
	list_init(&iou->asked);
	mail_init(&iou->mail);
	list_init(&iou->inbox);
	list_init(&iou->idle);
	list_init(&iou->bhs);
	iou->ended_end = &iou->ended;
	iou->process = process_enrol();
	iou->maker = thread_number();
	atomic_init(&iou->owner, NOBODY);
	iou->setup_flags = config->setup_flags;
	iou->handed = config->setup_flags && !(config->setup_flags & IORING_SETUP_SINGLE_ISSUER);
	iou->fd = iou->bell = iou->clock.fd = iou->wake.fd = -1;
	iou->timers.end = iou->deadlines.end = HEAP_ROOT;
	iou->clock_due_ns = NEVER;
	atomic_init(&iou->mail.post_cursor, SLAB_ENTRIES); /* of no slab */
	iou->retry_ns = NS_PER_MS;
	iou->cancel_share = 8;
	iou->spin_max_ns = config->spin_ns;
	iou->spin_ns = config->spin_ns < SPIN_LEAST_NS ? config->spin_ns : SPIN_LEAST_NS;
	return iou;
}

static iou_t *make(const iou_config_t *config)
{
	iou_t *iou;
	int ret;

	if (!config_valid(config))
		return refuse(EINVAL);
	iou = iou_alloc(config);
	if (!iou || pool_init(&iou->pool, config->workers, config->spin_ns, notify_loop) < 0) {
		free(iou);
		errno = ENOMEM;
		return NULL;
	}
	pthread_mutex_init(&iou->bhs_lock, NULL);
	iou->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = iou->wake.fd < 0 ? -errno : ring_open(&iou->ring, config->entries ? config->entries : 64, config->setup_flags);
	if (ret < 0) {
		destroy(iou, false, false, true);
		return refuse(-ret);
	}
	cq_start(iou, &iou->ring, 0);
	if (!(iou->ring.io.features & IORING_FEAT_LINKED_FILE))
		bell_register(iou, &iou->ring); /* before 5.18 that would wait for all that is in flight: so not in iou_fd() */
	return iou;
}

iou_t *iou_new_with(const iou_config_t *config)
{
	int state = cancel_defer();
	iou_t *iou = make(config);

	cancel_allow(state);
	return iou;
}

static int on_nothing(void *cb_data)
{
	(void)cb_data;
	return 0;
}

/* Cancel what is in flight without an SQE, where a restriction refuses those. */
static int cancel_in_kernel(iou_t *iou)
{
	struct io_uring_sync_cancel_reg all = {.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL,
					       .timeout = {.tv_nsec = 100 * (long long)NS_PER_MS}};
	int ret = io_uring_register((unsigned)iou->ring.io.ring_fd, IORING_REGISTER_SYNC_CANCEL, &all, 1);

	return ret == -ENOENT || ret == -ETIME || ret == -EALREADY || ret == -EINTR ? 0 : ret; /* perhaps once more */
}

/* Wait until the kernel has let go of every op. False: it cannot be reached any more, or lost one. */
static bool drain(iou_t *iou)
{
	for (unsigned n_errors = 0; n_ring(iou) || iou->n_cancels;) {
		int ret = round_run(iou, false, NEVER), refused = iou->refused;

		iou->refused = 0;
		if (refused && n_ring(iou) && cancel_in_kernel(iou) < 0 && !is_ready(iou))
			return false;
		if (ret == -EBADR && n_errors++ < 1000 && enter(iou, WAIT, add_ns(now_ns(), 100 * NS_PER_MS)) != -EBADF &&
		    cq_ready(iou))
			continue;
		if (ret < 0 && !(is_shortage(ret) && n_errors++ < 4))
			return false;
	}
	return true;
}

/* Threads that are in the middle of iou_quit() or iou_unhold(): this was not to be missed, and is the last touch of theirs. */
static void visitor_enter(iou_t *iou)
{
	atomic_fetch_add(&iou->n_visitors, 1);
}

static void visitor_leave(iou_t *iou)
{
	int saved = errno;

	if (atomic_fetch_sub(&iou->n_visitors, 1) == (FREE_WAITS | 1))
		futex_wake(&iou->n_visitors, 1);
	errno = saved;
}

static void visitors_wait(iou_t *iou)
{
	unsigned n = atomic_fetch_or(&iou->n_visitors, FREE_WAITS) | FREE_WAITS;

	for (; n != FREE_WAITS; n = atomic_load(&iou->n_visitors))
		futex_wait(&iou->n_visitors, n);
}

static void end(iou_t *iou)
{
	bool owner = is_mine(iou), drained;

	visitors_wait(iou);
	iou->ending = true;
	iou->refused = 0; /* of a poll, which is not needed any more */
	FOR_EACH_OP(iou, chunk, op) {
		op->cb = on_nothing;
		cancel(op); /* so that each completion goes by deliver_other() */
	}
	fill(iou, false, true);
	enter(iou, SUBMIT, 0); /* the cancels, before waiting for jobs */
	pool_stop(&iou->pool);
	free_posts(iou);
	drained = drain(iou);
	destroy(iou, true, owner, drained);
}

iou_t *iou_free(iou_t *iou)
{
	int state;

	if (!iou)
		return NULL;
	if (is_here(iou)) {
		MUST(!iou->depth || !is_loops(iou), "not within a callback");
		if (iou->depth || (!is_mine(iou) && (n_ring(iou) || iou->n_cancels))) /* depth: it may be asleep in iou_run() */
			return refuse(EEXIST);
	}
	state = cancel_defer();
	if (is_here(iou))
		end(iou);
	else
		destroy_copy(iou);
	cancel_allow(state);
	return NULL;
}

/* A new ring in the place of the old one, which has nothing in flight; or an error, and the old one stays. */
static int ring_replace(iou_t *iou, unsigned entries)
{
	ring_t fresh, old = iou->ring;
	int ret;

	ret = ring_open(&fresh, entries, iou->setup_flags);
	if (ret < 0)
		return ret;
	if (iou->bound)
		ret = ring_bind(&fresh, iou->handed);
	if (ret >= 0 && iou->bell >= 0)
		ret = bell_register(iou, &fresh);
	if (ret < 0) {
		ring_close(&fresh, true, true);
		return ret;
	}
	cq_start(iou, &fresh, cq_ready(iou));
	iou->ring = fresh; /* before the old one's descriptor is closed, which a child would close again */
	ring_close(&old, true, true);
	iou->wake.armed = iou->clock.armed = false;
	iou->refused = 0; /* restrictions are the old ring's */
	touch(iou); /* the next poll arms them */
	return 0;
}

int iou_resize(iou_t *iou, unsigned entries)
{
	int ret, state;

	CHECK_OWN(iou, entries);
	if (n_ring(iou) || iou->n_cancels)
		return -EBUSY;
	state = cancel_defer();
	ret = ring_replace(iou, entries);
	cancel_allow(state);
	return ret;
}

struct io_uring *iou_ring(iou_t *iou)
{
	if (!iou || !is_mine(iou))
		return refuse(iou ? EEXIST : EINVAL);
	return &iou->ring.io;
}


/* ---- Ops ------------------------------------------------------------------------------------- */

#define MUST_OP(iou, op) \
	do { \
		MUST(op, "op is NULL"); \
		MUST((op)->iou == (iou), "op of another iou"); \
	} while (0)

/* Neither queued, nor in a callback that is not its last, nor given back. */
__attribute__((noreturn, cold, noinline)) static void misuse_of_state(const char *function, const op_t *op)
{
	if (op->state != OP_FREE)
		misuse_of_op(function, op, strcmp(function, "iou_op_free") ? "op is queued already" :
									     "op is still queued: cancel it first");
	if (op->cb)
		misuse_of_op(function, op, "op was given back, since its last callback did not queue it again");
	misuse(function, "op was given back by iou_op_free");
}

/* And it is the program's to queue or to give back, or the condition holds. */
#define MUST_HAVE_OP(iou, op, condition) \
	do { \
		MUST_OP(iou, op); \
		if (unlikely(!op_is_programs(op)) && !(condition)) \
			misuse_of_state(__func__, op); \
	} while (0)

iou_op_t *iou_op_new(iou_t *iou)
{
	op_t *op;

	if (unlikely(!iou || !is_mine(iou)))
		return refuse(iou ? EEXIST : EINVAL);
	op = op_take(iou);
	if (unlikely(!op))
		return refuse(ENOMEM);
	return &op->pub;
}

void iou_op_free(iou_t *iou, iou_op_t *pub)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	if (!op)
		return;
	MUST_HAVE_OP(iou, op, false);
	op->cb = NULL; /* so that one which is used later is known to have been given back here */
	if (op->bits & OP_CALLED)
		op->state = OP_FREE; /* released when its callback returns */
	else
		op_release(iou, op);
}

static __attribute__((noinline)) bool sqe_is_zero(op_t *op)
{
	static const struct io_uring_sqe zero;

	op->sqe.user_data = 0; /* iou's */
	return memcmp(&op->sqe, &zero, sizeof(zero)) == 0;
}

/* False: it is a new op's SQE, or one that was not prepared again in the last callback. (volatile: a load that is wider than
 * what the program has just stored would wait for that.) */
static inline bool sqe_is_prepared(op_t *op)
{
	const volatile struct io_uring_sqe *sqe = &op->sqe;

	return likely(sqe->opcode || sqe->fd) || !sqe_is_zero(op);
}

/* The rarer consequences: out of line, for a short way through iou_op_queue(). */
static __attribute__((noinline)) void queued(op_t *op, uint64_t after_ns)
{
	if (op->bits & OP_DEADLINE)
		clock_start(op, after_ns);
	touch(op->iou);
}

void iou_op_queue(iou_t *iou, iou_op_t *pub, int (*cb)(void *cb_data), void *cb_data)
{
	op_t *op = (op_t *)pub;
	uint64_t after_ns;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, false);
	MUST(cb, "cb is NULL");
	MUST(sqe_is_prepared(op), "op is not prepared: its SQE is zero (a NOP's fd is -1)");
	op_accept(op, OP_BACKLOG, cb, cb_data);
	after_ns = op->after_ns; /* the node is in its place from now on */
	op->sqe.user_data = (uintptr_t)op;
	list_append(&iou->backlog, &op->node);
	iou->n_queued++;
	if (unlikely(op->bits & OP_DEADLINE || iou->fd >= 0))
		queued(op, after_ns);
}

void *iou_op_env(iou_op_t *pub, size_t size)
{
	op_t *op = (op_t *)pub;
	char *block;

	if (!op)
		return refuse(EINVAL);
	if (op->state == OP_JOB ? !is_here(op->iou) : !is_mine(op->iou))
		return refuse(EEXIST);
	MUST(op->state != OP_FREE, "op was given back");
	if (op->env)
		return refuse(EEXIST);
	if (size <= sizeof(extra(op)->small_env)) {
		op->env = ENV_SMALL;
		return memset(extra(op)->small_env, 0, sizeof(extra(op)->small_env));
	}
	block = size <= PTRDIFF_MAX - ENV_HEAD ? calloc(1, size + ENV_HEAD) : NULL;
	if (!block)
		return refuse(ENOMEM);
	block += ENV_HEAD;
	((op_t **)(void *)block)[-1] = op;
	op->env = ENV_ALLOCATED;
	*(char **)extra(op)->small_env = block;
	return block;
}

/* Right before it stands the pointer to its op, which knows it too. Looks at no more than that, for what is none. */
static op_t *env_op(const void *env)
{
	op_t *op = ((op_t *const *)env)[-1];

	return op && (uintptr_t)op % _Alignof(op_t) == 0 &&
	       (op->env == ENV_SMALL ? env == extra(op)->small_env :
		op->env == ENV_ALLOCATED && env == *(char **)extra(op)->small_env) ? op : NULL;
}

iou_op_t *iou_op_of(const void *env)
{
	op_t *op;

	if (!env)
		return refuse(EINVAL);
	op = (uintptr_t)env % _Alignof(op_t *) == 0 ? env_op(env) : NULL; /* calloc() may align to 8 (32-bit ARM) */
	MUST(op, "not an environment, or not that of an op any more");
	return &op->pub;
}

int iou_op_async(iou_t *iou, iou_op_t *pub, int (*work)(void *work_data), void *work_data, int (*cb)(void *cb_data),
		 void *cb_data)
{
	op_t *op = (op_t *)pub;
	uint64_t after_ns;
	uint8_t was;
	int ret;

	CHECK_OWN(iou, op && work && cb);
	MUST_HAVE_OP(iou, op, false);
	was = op->state;
	after_ns = op->after_ns;
	op_accept(op, OP_JOB, cb, cb_data);
	op->job.work = work;
	ret = job_queue(&iou->pool, op, work_data);
	if (ret < 0) {
		op->state = was;
		op->after_ns = after_ns;
		return ret;
	}
	iou->n_elsewhere++;
	if (unlikely(op->bits & OP_DEADLINE))
		clock_start(op, after_ns);
	touch(iou);
	return 0;
}

/* What iou_async() keeps in its op's environment. */
typedef struct short_job_t {
	int (*async_cb)(void *async_cb_data);
	void *async_cb_data;
	int (*completion_cb)(void *completion_cb_data);
	void *completion_cb_data;
	bool ran;
} short_job_t;

static int run_short_job(void *work_data)
{
	short_job_t *job = work_data;

	job->ran = true;
	return job->async_cb(job->async_cb_data);
}

static int on_short_job(void *cb_data)
{
	short_job_t *job = cb_data;
	int result = ((op_t *const *)(void *)job)[-1]->pub.result, ret = job->completion_cb(job->completion_cb_data);

	return ret >= 0 && result < 0 && job->ran ? result : ret;
}

int iou_async(iou_t *iou, int (*async_cb)(void *async_cb_data), void *async_cb_data,
	      int (*completion_cb)(void *completion_cb_data), void *completion_cb_data)
{
	iou_op_t *op;
	int ret;

	CHECK_OWN(iou, async_cb && completion_cb);
	op = iou_op_new(iou);
	if (!op)
		return -ENOMEM;
	short_job_t *job = iou_op_env(op, sizeof(*job)); /* small */

	*job = (short_job_t){async_cb, async_cb_data, completion_cb, completion_cb_data, false};
	ret = iou_op_async(iou, op, run_short_job, job, on_short_job, job);
	if (ret < 0)
		iou_op_free(iou, op);
	return ret;
}

void iou_op_timer(iou_t *iou, iou_op_t *pub, uint64_t after_ns, uint64_t period_ns, int (*cb)(void *cb_data), void *cb_data)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, op->state == OP_TIMER || cancel_of(op) == CANCEL_TIMER);
	MUST(cb, "cb is NULL");
	if (op_is_programs(op)) {
		op_accept(op, OP_TIMER, cb, cb_data);
		op->bits &= OP_CALLED;
		iou->n_elsewhere++;
	}
	op->cb = cb;
	op->cb_data = cb_data;
	if (cancel_of(op) == CANCEL_TIMER)
		return;
	op->timer.seq = iou->timer_seq++;
	op->timer.period_ns = period_ns;
	clock_start(op, after_ns);
	touch(iou);
}

void iou_op_deadline(iou_t *iou, iou_op_t *pub, uint64_t after_ns)
{
	op_t *op = (op_t *)pub;

	MUST_OWN(iou);
	MUST_HAVE_OP(iou, op, false);
	op->bits |= OP_DEADLINE;
	op->after_ns = after_ns;
}

int iou_op_cancel(iou_t *iou, iou_op_t *pub)
{
	op_t *op = (op_t *)pub;
	int ret;

	CHECK_OWN(iou, op);
	MUST(op->iou == iou, "op of another iou");
	take_done(iou, UINT64_MAX); /* what ended before comes before */
	ret = cancel(op);
	touch(iou);
	return ret;
}

int iou_cancel_all(iou_t *iou)
{
	CHECK_OWN(iou, true);
	take_done(iou, UINT64_MAX);
	while (!list_empty(&iou->backlog)) /* in the order in which they were queued */
		cancel_in_backlog(op_at(iou->backlog.next));
	FOR_EACH_OP(iou, chunk, op)
		cancel(op);
	touch(iou);
	return 0;
}

static int on_handler(void *cb_data)
{
	op_t *op = cb_data;
	iou_handler_t *handler = *(iou_handler_t **)extra(op)->small_env;

	handler->result = op->pub.result;
	handler->flags = op->pub.flags;
	return handler->cb(handler);
}

int iou_add_sqe(iou_t *iou, void (*prep_sqe)(struct io_uring_sqe *sqe, void *opaque), void *opaque, iou_handler_t *handler)
{
	iou_op_t *op;
	iou_handler_t **env;

	CHECK_OWN(iou, prep_sqe && handler && handler->cb);
	op = iou_op_new(iou);
	if (!op)
		return -ENOMEM;
	env = iou_op_env(op, sizeof(*env)); /* small */
	*env = handler;
	prep_sqe(op->sqe, opaque);
	MUST(sqe_is_prepared((op_t *)op), "prep_sqe left the SQE zero (a NOP's fd is -1)");
	iou_op_queue(iou, op, on_handler, op);
	return 0;
}


/* ---- The loop's calls ------------------------------------------------------------------------ */

int iou_flush(iou_t *iou)
{
	bool more;
	int ret;

	CHECK_OWN(iou, true);
	ret = own(iou);
	if (ret < 0)
		return ret;
	do {
		more = fill(iou, false, true);
		ret = enter(iou, SUBMIT, 0);
		if (is_shortage(ret))
			ret = shortage(iou, ret);
		else if (ret == 0)
			iou->n_shortages = 0;
		sqpoll_wait(iou);
	} while (ret == 0 && (more || iou->ring.io.sq.sqe_tail != sq_head(iou)));
	if (unlikely(iou->fd >= 0)) {
		begin_loop(iou); /* the inbox is looked into: see iou_bh_cancel() */
		end_loop(iou);
	}
	return ret;
}

int iou_run(iou_t *iou)
{
	int ret;

	CHECK_OWN(iou, true);
	ret = own(iou);
	if (ret < 0)
		return ret;
	iou->n_runs++;
	begin_loop(iou);
	while (!atomic_load(&iou->quit) && is_pending(iou)) {
		ret = round_run(iou, true, NEVER);
		if (unlikely(iou->refused))
			ret = refused_take(iou, ret, true);
		if (ret < 0)
			break;
	}
	if (--iou->n_runs == 0)
		atomic_store(&iou->quit, false);
	end_loop(iou);
	return ret < 0 ? ret : 0;
}

int iou_quit(iou_t *iou)
{
	if (!iou)
		return -EINVAL;
	if (!is_here(iou))
		return -EEXIST;
	visitor_enter(iou);
	atomic_store(&iou->quit, true);
	wake(iou);
	visitor_leave(iou);
	return 0;
}

int iou_poll(iou_t *iou, int64_t timeout_ns)
{
	uint64_t until_ns = timeout_ns < 0 ? NEVER : 0;
	int ret;

	CHECK_OWN(iou, true);
	ret = own(iou);
	if (ret < 0)
		return ret;
	if (timeout_ns > 0)
		until_ns = add_ns(now_ns(), (uint64_t)timeout_ns);
	begin_loop(iou);
	do {
		ret = round_run(iou, false, until_ns);
		if (unlikely(iou->refused))
			ret = refused_take(iou, ret, until_ns);
	} while (ret == 0 && until_ns && is_pending(iou) && (until_ns == NEVER || now_ns() < until_ns));
	if (unlikely(iou->fd >= 0) && ret > 0 && may_fill(iou)) { /* what callbacks queued, and what that comes to at once */
		int more = round_run(iou, false, 0);

		ret = more < 0 ? more : ret + more;
	}
	end_loop(iou);
	return ret;
}

int iou_fd(iou_t *iou)
{
	int ret;

	CHECK_OWN(iou, true);
	if (iou->fd >= 0)
		return iou->fd;
	if (iou->clock.fd < 0)
		iou->clock.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (iou->clock.fd < 0)
		return -errno;
	ret = iou->bell < 0 ? bell_register(iou, &iou->ring) : 0;
	if (ret < 0)
		return ret;
	io_uring_cq_eventfd_toggle(&iou->ring.io, true);
	return iou->fd = iou->bell;
}

iou_t *iou_current(void)
{
	return current_iou;
}

void iou_hold(iou_t *iou)
{
	MUST(iou, "iou is NULL");
	if (is_here(iou))
		atomic_fetch_add(&iou->n_holds, 1);
}

void iou_unhold(iou_t *iou)
{
	long long before;

	MUST(iou, "iou is NULL");
	if (!is_here(iou))
		return;
	visitor_enter(iou);
	before = atomic_fetch_sub(&iou->n_holds, 1);
	MUST(before > 0, "more often than iou_hold");
	if (before == 1)
		wake(iou);
	visitor_leave(iou); /* iou_free() may follow at once */
}


/* ---- From other threads ---------------------------------------------------------------------- */

int iou_post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	entry_t *entry;

	if (!iou || !cb)
		return -EINVAL;
	if (!is_here(iou))
		return -EEXIST;
	entry = entry_take(iou);
	if (!entry)
		return -ENOMEM;
	entry->cb = cb;
	entry->cb_data = cb_data;
	inbox_push(iou, entry);
	return 0;
}

iou_bh_t *iou_bh_new(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	iou_bh_t *bh;

	if (!iou || !cb || !is_here(iou))
		return refuse(iou && cb ? EEXIST : EINVAL);
	bh = calloc(1, sizeof(*bh));
	if (!bh)
		return refuse(ENOMEM);
	bh->iou = iou;
	bh->cb = cb;
	bh->cb_data = cb_data;
	pthread_mutex_lock(&iou->bhs_lock);
	list_append(&iou->bhs, &bh->in_bhs);
	pthread_mutex_unlock(&iou->bhs_lock);
	return bh;
}

/* Set the bits; who sets BH_QUEUED pushes it. */
static void bh_set(iou_bh_t *bh, unsigned bits, const char *function)
{
	iou_t *iou;
	unsigned was;

	if (unlikely(!bh))
		misuse(function, "bh is NULL");
	iou = bh->iou;
	if (!is_here(iou))
		return;
	was = atomic_fetch_or(&bh->bits, bits | BH_QUEUED);
	if (unlikely(was & BH_DELETED))
		misuse(function, "bh was deleted");
	if (!(was & BH_QUEUED))
		inbox_push(iou, &bh->entry);
}

void iou_bh_schedule(iou_bh_t *bh)
{
	bh_set(bh, BH_SCHEDULED, __func__);
}

void iou_bh_schedule_idle(iou_bh_t *bh)
{
	bh_set(bh, BH_IDLE, __func__);
}

/* On another thread than the loop's: the entry keeps its place. One that idles is queued, so that the loop takes it off. */
static void bh_cancel_only(iou_bh_t *bh)
{
	unsigned was = atomic_fetch_and(&bh->bits, ~(unsigned)(BH_SCHEDULED | BH_IDLE));

	if ((was & (BH_IDLE | BH_QUEUED)) == BH_IDLE)
		bh_set(bh, 0, "iou_bh_cancel");
}

void iou_bh_cancel(iou_bh_t *bh)
{
	iou_t *iou;

	MUST(bh, "bh is NULL");
	iou = bh->iou;
	if (!is_here(iou))
		return;
	MUST(!(atomic_load(&bh->bits) & BH_DELETED), "bh was deleted");
	if (is_loops(iou)) {
		bh_unqueue(bh);
	} else if (atomic_load(&iou->owner) != NOBODY) {
		bh_cancel_only(bh);
	} else { /* no thread's yet, or handed on: as long as no loop runs, the lock keeps the threads apart */
		pthread_mutex_lock(&iou->bhs_lock);
		if (atomic_load(&iou->owner) == NOBODY && !iou->depth)
			bh_unqueue(bh);
		else
			bh_cancel_only(bh);
		pthread_mutex_unlock(&iou->bhs_lock);
	}
}

void iou_bh_delete(iou_bh_t *bh)
{
	if (bh)
		bh_set(bh, BH_DELETED, __func__);
}


/* ---- Looking inside -------------------------------------------------------------------------- */

void iou_stats(const iou_t *iou, iou_stats_t *stats)
{
	MUST_OWN(iou);
	MUST(stats, "stats is NULL");
	*stats = iou->stats;
	stats->completed = iou->n_reaped - iou->n_own_cqes;
	stats->pending = n_pending(iou);
	stats->backlog = n_backlog(iou);
	stats->backlog_max = stats->backlog > iou->n_backlog_max ? stats->backlog : iou->n_backlog_max;
	stats->wakeups = atomic_load_explicit(&iou->n_wakeups, memory_order_relaxed);
}

/* The program's own function, behind the library's in iou_async() and iou_add_sqe(). */
static void *function_of(const op_t *op, bool work)
{
	const short_job_t *job = (const short_job_t *)(const void *)extra(op)->small_env;
	iou_handler_t *const *handler = (iou_handler_t *const *)(const void *)extra(op)->small_env;

	if (op->cb == on_short_job)
		return (void *)(uintptr_t)(work ? job->async_cb : job->completion_cb);
	if (op->cb == on_handler)
		return (void *)(uintptr_t)(*handler)->cb;
	return (void *)(uintptr_t)(work ? op->job.work : op->cb);
}

static void dump_op(iou_t *iou, op_t *op, FILE *out)
{
	static const char *const where[] = {
		[OP_BACKLOG] = "backlog", [OP_RING] = "ring", [OP_HELD] = "done", [OP_TIMER] = "timer", [OP_ENDED] = "done",
	};
	const heap_t *heap = op->state == OP_TIMER ? &iou->timers : &iou->deadlines;
	uint64_t at_ns = now_ns(), due_ns = op->heap_index ? heap->entries[op->heap_index].due_ns : NEVER;
	bool queued;

	if (op_is_programs(op) || op->state == OP_FREE)
		return;
	if (op->state == OP_JOB) {
		pthread_mutex_lock(&iou->pool.lock);
		queued = job_is_queued(&iou->pool, op);
		pthread_mutex_unlock(&iou->pool.lock);
		fprintf(out, "%s: work %p", queued ? "job queue" : "worker", function_of(op, true));
	} else {
		fprintf(out, "%s:", where[op->state]);
		if (op->state == OP_ENDED)
			fprintf(out, " result %d", op->end.result);
		else if (op->state != OP_TIMER)
			fprintf(out, " %s fd %d", opcode_name(op->sqe.opcode), op->sqe.fd);
		if (cancel_of(op))
			fprintf(out, " cancelled");
	}
	if (due_ns != NEVER)
		fprintf(out, " due in %.3f ms", due_ns > at_ns ? (double)(due_ns - at_ns) / 1e6 : 0.0);
	else if (op->heap_index)
		fprintf(out, " due never");
	fprintf(out, " callback %p\n", function_of(op, false));
}

void iou_dump(const iou_t *shown, FILE *out)
{
	iou_t *iou = (iou_t *)shown; /* what came from other threads is taken in first */
	uint64_t n_entries;

	MUST_OWN(iou);
	MUST(out, "out is NULL");
	take_done(iou, UINT64_MAX);
	pthread_mutex_lock(&iou->bhs_lock); /* see iou_bh_cancel() */
	inbox_take(iou, UINT64_MAX);
	n_entries = list_length(&iou->inbox) + list_length(&iou->idle);
	pthread_mutex_unlock(&iou->bhs_lock);
	FOR_EACH_OP(iou, chunk, op)
		dump_op(iou, op, out);
	fprintf(out, "%llu ops pending, %lld holds", (unsigned long long)n_pending(iou), atomic_load(&iou->n_holds));
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
