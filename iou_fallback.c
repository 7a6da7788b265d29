/* SPDX-License-Identifier: MIT */

/*
 * iou_fallback: an io_uring without io_uring. It is a ring in user space behind iou_backend_t: it
 * takes the same SQEs and gives the same CQEs, by epoll and by threads of its own. It knows nothing
 * of iou_t. tests/proof/engine.c asks it and the kernel's ring the same questions.
 *
 *   SQ --> prepared: checked, and its parameters copied --> chain --> started
 *                                                                       | attempt, never blocking
 *      +----------------+-----------------+------------------+----------+
 *      v                v                 v                  v          |
 *   WAITING for fd   POOLED: a thread   LINED UP behind   TIMED: a      | it has a result
 *   (epoll)          works on it        another writer    timeout, or   |
 *      |                |               of its inode      a new try     |
 *      +-- attempt <----+-----------------+------------------+          v
 *          again                            ENDED (cancelled) --> CQE --> the next of its chain
 *
 * Requests. Each SQE becomes a req_t, which lives until its last CQE is in the CQ. All that a
 * request needs is part of it or comes with it, so that nothing fails for memory once an SQE was
 * taken. An SQE that there is no memory for stays in the SQ, and enter says so.
 *
 * Attempts. A request on anything that epoll takes is tried without blocking. If it must wait, it
 * waits for the descriptor; any event there is a hint only: the request is tried again. A request
 * on a file goes to a thread, if it cannot be done at once from the page cache.
 *
 * Threads. The thread that calls the functions of the ring uses everything here. The pool's threads
 * see the request that they work on, and the pool's own fields under its lock. The list of flickers
 * is the whole process's, with a lock of its own.
 *
 * Not done: a thread in the kernel is never interrupted. A read from a disk or a network file
 * system that hangs cannot be cancelled (-EALREADY), and close() waits for it. The kernel's own
 * ring does the same for most of these.
 *
 * Rooms, as in iou.c: base, lines, timers, pool, cq, waits, tables, groups, reqs, ops,
 * restrictions, engine, timeouts, cancels, run, enter, life. A room calls only the rooms above it.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#define IOU_BACKEND
#include "iou.h"

#include <limits.h>
#include <linux/falloc.h>
#include <linux/limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#ifndef STATX_TYPE /* musl before 1.2.4 */
#include <linux/stat.h>
#endif
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Newer than liburing 2.3, the oldest that this file compiles with; or than the C library. */
enum {
	OP_READ_MULTISHOT = 49, OP_WAITID = 50, OP_FTRUNCATE = 55, OP_BIND = 56, OP_LISTEN = 57,
	OP_EPOLL_WAIT = 59, OP_PIPE = 62, OP_END = 63
};
enum { PBUF_RING = 22, UNREGISTER_PBUF_RING = 23, PBUF_STATUS = 26 }; /* IORING_REGISTER_* */
#define SEND_ZC_REPORT_USAGE  (1U << 3)
#define NOTIF_USAGE_ZC_COPIED (1U << 31)
#define TIMEOUT_MULTISHOT (1U << 6)
#define CANCEL_USERDATA   (1U << 4)
#define CANCEL_OP         (1U << 5)
#define ACCEPT_DONTWAIT   (1U << 1)
#define ACCEPT_POLL_FIRST (1U << 2)
#define ENTER_NO_IOWAIT   (1U << 7)
#define FEAT_NO_IOWAIT    (1U << 17)
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif
#ifndef SPLICE_F_FD_IN_FIXED
#define SPLICE_F_FD_IN_FIXED (1U << 31)
#endif
#ifndef AT_STATX_DONT_SYNC
#define AT_STATX_DONT_SYNC 0x4000
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

/*
 * ==== base ======================================================================================
 *
 * Errors, clocks and lists. Any thread, and no state of its own.
 */

#define container_of(pointer, type, member) \
	((type *)(void *)((char *)(pointer) - offsetof(type, member)))
#define NEVER       UINT64_MAX
#define NS_PER_SEC  UINT64_C(1000000000)
#define NS_PER_MS   UINT64_C(1000000)
#define SECONDS_MAX (sizeof(time_t) < 8 ? (uint64_t)INT32_MAX : (uint64_t)INT64_MAX)

/* The result of a call that sets errno: >= 0, or -errno. */
static int result_of(long ret)
{
	if (ret < 0)
		return -errno;
	return ret > INT_MAX ? INT_MAX : (int)ret;
}

/* The call is unknown, or a filter refuses it: an older one will say if the error is its own. */
static bool call_is_missing(long error) { return error == ENOSYS || error == EPERM; }

static void *pointer_of(uint64_t address) { return (void *)(uintptr_t)address; }

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t sum_u64(uint64_t a, uint64_t b) { return a > NEVER - b ? NEVER : a + b; }

/* In nanoseconds, or NEVER if that is too far. Neither part is negative. */
static uint64_t ns_of(int64_t seconds, int64_t ns)
{
	if ((uint64_t)seconds > NEVER / NS_PER_SEC - 1)
		return NEVER;
	return sum_u64((uint64_t)seconds * NS_PER_SEC, (uint64_t)ns);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return now.tv_sec < 0 ? 0 : (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}

static void eventfd_ring(int fd)
{
	const uint64_t one = 1;

	syscall(SYS_write, fd, &one, sizeof(one)); /* it may be full: then it was rung */
}

typedef struct node_t {
	struct node_t *next, *prev;
} node_t;

static void list_init(node_t *list) { list->next = list->prev = list; }
static bool list_empty(const node_t *list) { return list->next == list; }

static void list_add(node_t *list, node_t *node)
{
	node->next = list;
	node->prev = list->prev;
	list->prev->next = node;
	list->prev = node;
}

/* Afterwards the node is a list of its own: it may be removed again. */
static void list_remove(node_t *node)
{
	node->next->prev = node->prev;
	node->prev->next = node->next;
	list_init(node);
}

static node_t *list_pop(node_t *list)
{
	node_t *node = list->next;

	if (node == list)
		return NULL;
	list_remove(node);
	return node;
}

/* Move all of `from` to the end of `list`. */
static void list_move(node_t *list, node_t *from)
{
	if (list_empty(from))
		return;
	from->next->prev = list->prev;
	list->prev->next = from->next;
	from->prev->next = list;
	list->prev = from->prev;
	list_init(from);
}

/*
 * ==== lines =====================================================================================
 *
 * Requests that have a number in common stand in one line, the oldest first; a table finds the
 * first of a line by that number. Used four times: requests by user_data, those that wait by
 * descriptor, those that write by inode, those with a thread by descriptor.
 *
 * A line is a circle of its members and needs no memory besides them: the first member also is the
 * line's place in the table. When it leaves, the next one becomes the first.
 */

typedef struct line_t {
	struct line_t *next, *prev; /* the circle; NULL: in no line */
	struct line_t *below;       /* of the first: the next line in its bucket */
	uint64_t key, key2;
	unsigned mask;              /* of the first: the line's, for its user */
	bool first;
} line_t;

typedef struct lines_t {
	line_t **buckets;
	size_t n_buckets; /* a power of two, or 0 */
	size_t n_lines;
} lines_t;

static line_t **lines_bucket(const lines_t *lines, uint64_t key, uint64_t key2)
{
	uint64_t hash = (key ^ key2 * UINT64_C(0xff51afd7ed558ccd)) * UINT64_C(0x9e3779b97f4a7c15);

	return &lines->buckets[(hash >> 32) & (lines->n_buckets - 1)];
}

static line_t *lines_find(const lines_t *lines, uint64_t key, uint64_t key2)
{
	line_t *line = lines->n_lines ? *lines_bucket(lines, key, key2) : NULL;

	while (line && (line->key != key || line->key2 != key2))
		line = line->below;
	return line;
}

static void lines_push(lines_t *lines, line_t *line)
{
	line_t **bucket = lines_bucket(lines, line->key, line->key2);

	line->first = true;
	line->below = *bucket;
	*bucket = line;
	lines->n_lines++;
}

static void lines_pull(lines_t *lines, line_t *line)
{
	line_t **place = lines_bucket(lines, line->key, line->key2);

	while (*place != line)
		place = &(*place)->below;
	*place = line->below;
	line->first = false;
	lines->n_lines--;
}

/* Returns the first of the line, which may be this one. */
static line_t *lines_join(lines_t *lines, line_t *line, uint64_t key, uint64_t key2)
{
	line_t *first = lines_find(lines, key, key2);

	line->key = key;
	line->key2 = key2;
	line->mask = 0;
	if (!first) {
		line->next = line->prev = line;
		lines_push(lines, line);
		return line;
	}
	line->next = first;
	line->prev = first->prev;
	first->prev->next = line;
	first->prev = line;
	return first;
}

static bool line_joined(const line_t *line) { return line->next; }
static line_t *line_next(const line_t *line) { return line->next; }

/* Add to the line's mask. Returns all of it. */
static unsigned line_widen(line_t *first, unsigned mask)
{
	first->mask |= mask;
	return first->mask;
}

/* Returns the line's new first, if this one was the first; else NULL. */
static line_t *lines_leave(lines_t *lines, line_t *line)
{
	line_t *heir = line->first && line->next != line ? line->next : NULL;

	if (line->first)
		lines_pull(lines, line);
	if (heir) {
		heir->mask = line->mask;
		lines_push(lines, heir);
	}
	line->next->prev = line->prev;
	line->prev->next = line->next;
	line->next = line->prev = NULL;
	return heir;
}

static unsigned line_length(const line_t *first)
{
	const line_t *line = first;
	unsigned n = 0;

	do
		n++;
	while ((line = line->next) != first);
	return n;
}

/* Room for n lines without long buckets. 0 or -ENOMEM, with nothing changed. */
static int lines_grow(lines_t *lines, size_t n)
{
	lines_t old = *lines;

	if (n <= old.n_buckets)
		return 0;
	lines->buckets = calloc(n, sizeof(*lines->buckets));
	if (!lines->buckets) {
		*lines = old;
		return -ENOMEM;
	}
	lines->n_buckets = n;
	lines->n_lines = 0;
	for (size_t i = 0; i < old.n_buckets; i++) {
		for (line_t *line = old.buckets[i], *below; line; line = below) {
			below = line->below;
			lines_push(lines, line);
		}
	}
	free(old.buckets);
	return 0;
}

static void lines_exit(lines_t *lines) { free(lines->buckets); }

/*
 * ==== timers ====================================================================================
 *
 * Due times on three clocks. Each clock has a pairing heap, whose nodes are parts of the requests,
 * and a timerfd that makes the epoll descriptor readable when the first one is due. The timerfds
 * are never read: they are in the epoll set by edge.
 */

enum { MONOTONIC, BOOTTIME, REALTIME, N_CLOCKS };

static const clockid_t clock_ids[N_CLOCKS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};

typedef struct due_t {
	struct due_t *child, *next;
	struct due_t *prev; /* the sibling to the left, or else the parent */
	uint64_t at_ns;
	uint64_t number;    /* among equal times the smaller one is first */
	unsigned clock;
	bool set;
} due_t;

typedef struct timers_t {
	due_t *roots[N_CLOCKS];
	int fds[N_CLOCKS];           /* timerfd, or -1 */
	uint64_t armed_ns[N_CLOCKS]; /* the time that it is set to, or NEVER */
	uint64_t n_started;
	int epoll;
	uint64_t epoll_data;         /* of the timerfds' events */
} timers_t;

static bool due_is_set(const due_t *due) { return due->set; }

static bool due_before(const due_t *a, const due_t *b)
{
	return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->number < b->number);
}

/* Of two heaps, one. */
static due_t *due_merge(due_t *a, due_t *b)
{
	due_t *root, *other;

	if (!a || !b)
		return a ? a : b;
	root = due_before(b, a) ? b : a;
	other = root == a ? b : a;
	other->prev = root;
	other->next = root->child;
	if (root->child)
		root->child->prev = other;
	root->child = other;
	root->next = root->prev = NULL;
	return root;
}

/* Of a row of siblings, one heap: merge them in pairs, then the pairs. */
static due_t *due_merge_row(due_t *row)
{
	due_t *pairs = NULL, *root = NULL;

	while (row) {
		due_t *a = row, *b = row->next;

		row = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = due_merge(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		due_t *pair = pairs;

		pairs = pair->next;
		pair->next = NULL;
		root = due_merge(root, pair);
	}
	return root;
}

/* Open this clock's timerfd, if that is still to be done. 0 or -errno. */
static int timers_need(timers_t *timers, unsigned clock)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET,
				    .data.u64 = timers->epoll_data};
	int fd, ret;

	if (timers->fds[clock] >= 0)
		return 0;
	fd = timerfd_create(clock_ids[clock], TFD_CLOEXEC | TFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	ret = result_of(epoll_ctl(timers->epoll, EPOLL_CTL_ADD, fd, &event));
	if (ret < 0) {
		close(fd);
		return ret;
	}
	timers->fds[clock] = fd;
	return 0;
}

static void timers_start(timers_t *timers, due_t *due, unsigned clock, uint64_t at_ns)
{
	due->child = due->next = due->prev = NULL;
	due->clock = clock;
	due->at_ns = at_ns;
	due->number = timers->n_started++;
	due->set = true;
	timers->roots[clock] = due_merge(timers->roots[clock], due);
}

static void timers_stop(timers_t *timers, due_t *due)
{
	due_t **root = &timers->roots[due->clock], *children;

	if (!due->set)
		return;
	due->set = false;
	children = due_merge_row(due->child);
	if (due == *root) {
		*root = children;
		return;
	}
	if (due->prev->child == due)
		due->prev->child = due->next;
	else
		due->prev->next = due->next;
	if (due->next)
		due->next->prev = due->prev;
	*root = due_merge(*root, children);
}

/* Take off one whose time has come, or NULL. */
static due_t *timers_next(timers_t *timers)
{
	for (unsigned i = 0; i < N_CLOCKS; i++) {
		due_t *due = timers->roots[i];

		if (due && due->at_ns != NEVER && due->at_ns <= clock_ns(clock_ids[i])) {
			timers_stop(timers, due);
			return due;
		}
	}
	return NULL;
}

/* The timerfds sent an event: whichever it was, set them all anew. */
static void timers_rang(timers_t *timers)
{
	for (unsigned i = 0; i < N_CLOCKS; i++)
		timers->armed_ns[i] = NEVER;
}

/*
 * Before a sleep, here or in a foreign loop: set the timerfds. limit_ns is one more time on the
 * monotonic clock. A timerfd that is set too early is left so: one event too many.
 */
static void timers_arm(timers_t *timers, uint64_t limit_ns)
{
	for (unsigned i = 0; i < N_CLOCKS; i++) {
		uint64_t ns = timers->roots[i] ? timers->roots[i]->at_ns : NEVER;
		struct itimerspec at = {0};

		if (i == MONOTONIC)
			ns = min_u64(ns, limit_ns);
		if (ns >= timers->armed_ns[i])
			continue;
		timers->armed_ns[i] = ns;
		at.it_value.tv_sec = (time_t)min_u64(ns / NS_PER_SEC, SECONDS_MAX);
		at.it_value.tv_nsec = (long)(ns % NS_PER_SEC) + !ns;
		timerfd_settime(timers->fds[i], TFD_TIMER_ABSTIME, &at, NULL);
	}
}

static void timers_init(timers_t *timers)
{
	timers->fds[BOOTTIME] = timers->fds[REALTIME] = timers->fds[MONOTONIC] = -1;
	timers_rang(timers);
}

static int timers_open(timers_t *timers, int epoll, uint64_t epoll_data)
{
	timers->epoll = epoll;
	timers->epoll_data = epoll_data;
	return timers_need(timers, MONOTONIC);
}

static void timers_exit(timers_t *timers)
{
	for (unsigned i = 0; i < N_CLOCKS; i++)
		if (timers->fds[i] >= 0)
			close(timers->fds[i]);
}

static bool timers_have_fd(const timers_t *timers, int fd)
{
	return fd == timers->fds[MONOTONIC] || fd == timers->fds[BOOTTIME] ||
	       fd == timers->fds[REALTIME];
}

/*
 * ==== pool ======================================================================================
 *
 * Threads for calls that may block: a bounded number of them, as the kernel has for files. They
 * start when they are needed and leave when they were idle for some seconds. The pool knows nothing
 * of requests: a job is a function to call, and has a result.
 *
 *   fresh (owner only) -- pool_kick --> queued --> a thread --> done -- pool_collect -->
 *
 * The bell is an eventfd in the owner's epoll set, by edge. A thread rings it when `done` was
 * empty, so one wake-up may stand for many jobs.
 */

#define POOL_IDLE_SECONDS 5

typedef struct job_t {
	node_t node;
	int (*work)(struct job_t *job);
	int result;
	enum { JOB_OUT, JOB_FRESH, JOB_QUEUED } place; /* the last two can be withdrawn */
} job_t;

typedef struct thread_t {
	struct pool_t *pool;
	pthread_t id;
	enum { NO_THREAD, RUNS, LEFT } state; /* LEFT: to be joined. Under the lock */
} thread_t;

typedef struct pool_t {
	node_t fresh;        /* of the owner, as the next four */
	unsigned n_places;   /* threads that there may ever be */
	unsigned n_max;      /* and at present */
	unsigned n_refused;  /* times in a row that a further thread could not be started */
	unsigned n_pauses;   /* kicks that still skip the attempt */
	thread_t *threads;   /* n_places; their states are under the lock */
	int bell;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t call;
	node_t queued, done;
	unsigned n_queued;
	unsigned n_threads;  /* that run */
	unsigned n_idle;     /* of these: sleep, or were called and have not arrived */
	unsigned n_starting; /* of these: not arrived for the first time */
	bool stop;
	atomic_bool some_done; /* a hint for the owner, who looks without the lock */
} pool_t;

static int job_result(const job_t *job) { return job->result; }

/* With the lock held: the next job, once there is one. NULL: the thread must leave. */
static job_t *pool_next(pool_t *pool)
{
	struct timespec until;
	int error = 0;

	while (list_empty(&pool->queued)) {
		if (pool->stop || error)
			return NULL;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += POOL_IDLE_SECONDS;
		pool->n_idle++;
		error = pthread_cond_timedwait(&pool->call, &pool->lock, &until);
		pool->n_idle--;
	}
	if (--pool->n_queued && pool->n_idle)
		pthread_cond_signal(&pool->call);
	return container_of(list_pop(&pool->queued), job_t, node);
}

/* With the lock held; it is released to ring. */
static void pool_give_back(pool_t *pool, job_t *job)
{
	bool ring = list_empty(&pool->done);

	list_add(&pool->done, &job->node);
	atomic_store_explicit(&pool->some_done, true, memory_order_relaxed);
	if (!ring)
		return;
	pthread_mutex_unlock(&pool->lock);
	eventfd_ring(pool->bell);
	pthread_mutex_lock(&pool->lock);
}

static void *pool_main(void *data)
{
	thread_t *self = data;
	pool_t *pool = self->pool;
	job_t *job;

	pthread_setname_np(pthread_self(), "iou-fallback");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_mutex_lock(&pool->lock);
	pool->n_starting--;
	while ((job = pool_next(pool))) {
		job->place = JOB_OUT;
		pthread_mutex_unlock(&pool->lock);
		job->result = job->work(job);
		pthread_mutex_lock(&pool->lock);
		pool_give_back(pool, job);
	}
	self->state = LEFT;
	pool->n_threads--;
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static int thread_state(thread_t *thread, pthread_mutex_t *lock)
{
	int state;

	pthread_mutex_lock(lock);
	state = (int)thread->state;
	pthread_mutex_unlock(lock);
	return state;
}

/* A place for a thread, or NULL. One that has left is joined: it is at its end. */
static thread_t *pool_place(pool_t *pool)
{
	for (unsigned i = 0; i < pool->n_places; i++) {
		thread_t *thread = &pool->threads[i];
		int state = thread_state(thread, &pool->lock);

		if (state == LEFT)
			pthread_join(thread->id, NULL);
		if (state != RUNS)
			return thread;
	}
	return NULL;
}

/* Threads block all signals but those that a fault of their own raises. */
static int pool_start(pool_t *pool)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	thread_t *thread = pool_place(pool);
	sigset_t all, old;
	int error;

	if (!thread)
		return -EAGAIN;
	sigfillset(&all);
	for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++)
		sigdelset(&all, faults[i]);
	thread->pool = pool;
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_mutex_lock(&pool->lock);
	thread->state = RUNS;
	pool->n_threads++;
	pool->n_starting++;
	pthread_mutex_unlock(&pool->lock);
	error = pthread_create(&thread->id, NULL, pool_main, thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!error)
		return 0;
	pthread_mutex_lock(&pool->lock);
	thread->state = NO_THREAD;
	pool->n_threads--;
	pool->n_starting--;
	pthread_mutex_unlock(&pool->lock);
	return -EAGAIN;
}

static void pool_add(pool_t *pool, job_t *job, int (*work)(job_t *job))
{
	job->work = work;
	job->place = JOB_FRESH;
	list_add(&pool->fresh, &job->node);
}

/* Start threads until each queued job has one, as far as possible. */
static void pool_widen(pool_t *pool, unsigned n_wanted)
{
	if (pool->n_pauses) {
		pool->n_pauses--;
		return;
	}
	while (n_wanted--) {
		if (pool_start(pool) == 0) {
			pool->n_refused = 0;
			continue;
		}
		pool->n_pauses = (1U << pool->n_refused) - 1;
		pool->n_refused += pool->n_refused < 10;
		return;
	}
}

/* Without any thread the jobs come back with -EAGAIN. */
static void pool_refuse(pool_t *pool)
{
	pthread_mutex_lock(&pool->lock);
	while (!pool->n_threads && pool->n_queued) {
		job_t *job = container_of(list_pop(&pool->queued), job_t, node);

		pool->n_queued--;
		job->place = JOB_OUT;
		job->result = -EAGAIN;
		pool_give_back(pool, job);
	}
	pthread_mutex_unlock(&pool->lock);
}

/* Hand the jobs that were added to the threads. */
static void pool_kick(pool_t *pool)
{
	unsigned n_wanted, n_threads;

	if (list_empty(&pool->fresh))
		return;
	pthread_mutex_lock(&pool->lock);
	for (node_t *node = pool->fresh.next; node != &pool->fresh; node = node->next) {
		container_of(node, job_t, node)->place = JOB_QUEUED;
		pool->n_queued++;
	}
	list_move(&pool->queued, &pool->fresh);
	n_wanted = pool->n_idle + pool->n_starting;
	n_wanted = pool->n_queued > n_wanted ? pool->n_queued - n_wanted : 0;
	n_threads = pool->n_threads;
	if (pool->n_idle)
		pthread_cond_signal(&pool->call);
	pthread_mutex_unlock(&pool->lock);
	if (n_threads + n_wanted > pool->n_max)
		n_wanted = pool->n_max > n_threads ? pool->n_max - n_threads : 0;
	if (!n_threads)
		pool->n_pauses = 0;
	pool_widen(pool, n_wanted);
	if (!n_threads)
		pool_refuse(pool);
}

/* True: no thread has touched the job, and none will. */
static bool pool_withdraw(pool_t *pool, job_t *job)
{
	bool waits;

	pthread_mutex_lock(&pool->lock);
	waits = job->place != JOB_OUT;
	pool->n_queued -= job->place == JOB_QUEUED;
	if (waits)
		list_remove(&job->node);
	job->place = JOB_OUT;
	pthread_mutex_unlock(&pool->lock);
	return waits;
}

/* Move the jobs that are done to a list. */
static void pool_collect(pool_t *pool, node_t *list)
{
	if (!atomic_load_explicit(&pool->some_done, memory_order_relaxed))
		return;
	pthread_mutex_lock(&pool->lock);
	list_move(list, &pool->done);
	atomic_store_explicit(&pool->some_done, false, memory_order_relaxed);
	pthread_mutex_unlock(&pool->lock);
}

/* As IORING_REGISTER_IOWQ_MAX_WORKERS, with one kind of threads: zeros only ask. */
static int pool_limit(pool_t *pool, unsigned limits[2])
{
	unsigned n_max = pool->n_max;

	if (limits[0])
		pool->n_max = limits[0] < pool->n_places ? limits[0] : pool->n_places;
	limits[0] = limits[1] = n_max;
	return 0;
}

static unsigned pool_cpus(void)
{
	cpu_set_t set;
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		n = CPU_COUNT(&set);
	return n > 0 ? (unsigned)n : 1;
}

static void pool_init(pool_t *pool)
{
	pool->bell = -1;
	list_init(&pool->fresh);
	list_init(&pool->queued);
	list_init(&pool->done);
}

static int pool_open(pool_t *pool, int epoll, uint64_t epoll_data)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = epoll_data};
	pthread_condattr_t monotonic;

	pool->n_max = pool->n_places = 4 * pool_cpus();
	pool->threads = calloc(pool->n_places, sizeof(*pool->threads));
	if (!pool->threads)
		return -ENOMEM;
	pool->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->bell < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, pool->bell, &event) < 0)
		return -errno;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->call, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return 0;
}

/* Drop the jobs that wait, and wait for those that run. */
static void pool_stop(pool_t *pool)
{
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pool->n_queued = 0;
	list_init(&pool->queued);
	pthread_cond_broadcast(&pool->call);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->n_places; i++)
		if (thread_state(&pool->threads[i], &pool->lock) != NO_THREAD)
			pthread_join(pool->threads[i].id, NULL);
	pthread_cond_destroy(&pool->call);
	pthread_mutex_destroy(&pool->lock);
}

static bool pool_has_fd(const pool_t *pool, int fd) { return fd == pool->bell; }

static void pool_exit(pool_t *pool)
{
	if (pool->bell >= 0)
		close(pool->bell);
	free(pool->threads);
}

/*
 * ==== cq ========================================================================================
 *
 * The completion queue. If it is full, completions wait in a list, and IORING_SQ_CQ_OVERFLOW is
 * set; enter with GETEVENTS moves them. A last completion waits in its request's memory, so none is
 * ever lost. One with IORING_CQE_F_MORE does not wait: its multishot request ends instead.
 */

typedef struct late_t {
	node_t node;
	uint64_t user_data;
	int result;
	unsigned flags; /* with IORING_CQE_F_MORE: the request's last one comes after it */
} late_t;

typedef struct cq_t {
	unsigned head, tail, mask, n_entries, flags, n_lost;
	struct io_uring_cqe *cqes;
	unsigned *sq_flags;
	node_t late;
	int eventfd;  /* IORING_REGISTER_EVENTFD's, or -1: written once for each batch of CQEs */
	bool signals; /* CQEs were posted since the last write */
} cq_t;

static unsigned cq_ready(const cq_t *cq)
{
	return cq->tail - __atomic_load_n(&cq->head, __ATOMIC_ACQUIRE);
}

static bool cq_has_room(const cq_t *cq) { return cq_ready(cq) < cq->n_entries; }

static void cq_fill(cq_t *cq, uint64_t user_data, int result, unsigned flags)
{
	struct io_uring_cqe *cqe = &cq->cqes[cq->tail & cq->mask];

	cqe->user_data = user_data;
	cqe->res = result;
	cqe->flags = flags;
	cq->signals = true;
	__atomic_store_n(&cq->tail, cq->tail + 1, __ATOMIC_RELEASE);
}

/* True: the CQE is in the queue. False: it waits, in *late, or if that is NULL nothing was done. */
static bool cq_post(cq_t *cq, late_t *late, uint64_t user_data, int result, unsigned flags)
{
	if (list_empty(&cq->late) && cq_has_room(cq)) {
		cq_fill(cq, user_data, result, flags);
		return true;
	}
	if (late) {
		late->user_data = user_data;
		late->result = result;
		late->flags = flags;
		list_add(&cq->late, &late->node);
		__atomic_or_fetch(cq->sq_flags, IORING_SQ_CQ_OVERFLOW, __ATOMIC_RELAXED);
	}
	return false;
}

static bool late_is_last(const late_t *late) { return !(late->flags & IORING_CQE_F_MORE); }

/* Move one that waits into the queue. Returns it, or NULL. */
static late_t *cq_flush(cq_t *cq)
{
	late_t *late;

	if (list_empty(&cq->late) || !cq_has_room(cq))
		return NULL;
	late = container_of(list_pop(&cq->late), late_t, node);
	cq_fill(cq, late->user_data, late->result, late->flags);
	if (list_empty(&cq->late))
		__atomic_and_fetch(cq->sq_flags, ~IORING_SQ_CQ_OVERFLOW, __ATOMIC_RELAXED);
	return late;
}

/* At the end of a call: signal the CQEs that it posted, as the kernel does. */
static void cq_signal(cq_t *cq)
{
	unsigned flags = __atomic_load_n(&cq->flags, __ATOMIC_RELAXED);

	if (cq->signals && cq->eventfd >= 0 && !(flags & IORING_CQ_EVENTFD_DISABLED))
		eventfd_ring(cq->eventfd);
	cq->signals = false;
}

static void cq_close_eventfd(cq_t *cq)
{
	if (cq->eventfd >= 0)
		close(cq->eventfd);
	cq->eventfd = -1;
}

/* A descriptor of its own: the program may close the other. fd -1: no longer. 0 or -errno. */
static int cq_set_eventfd(cq_t *cq, int fd)
{
	if ((fd < 0) == (cq->eventfd < 0))
		return fd < 0 ? -ENXIO : -EBUSY;
	cq_close_eventfd(cq);
	if (fd < 0)
		return 0;
	cq->eventfd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	cq->signals = false;
	return cq->eventfd < 0 ? -errno : 0;
}

static unsigned cq_size(const cq_t *cq) { return cq->n_entries; }

static void cq_init(cq_t *cq, unsigned *sq_flags)
{
	cq->eventfd = -1;
	cq->sq_flags = sq_flags;
	list_init(&cq->late);
}

static int cq_open(cq_t *cq, unsigned n_entries)
{
	cq->n_entries = n_entries;
	cq->mask = n_entries - 1;
	cq->cqes = calloc(n_entries, sizeof(struct io_uring_cqe));
	return cq->cqes ? 0 : -ENOMEM;
}

static void cq_exit(cq_t *cq)
{
	cq_close_eventfd(cq);
	free(cq->cqes);
}

/* The queue as liburing sees it. */
static void cq_show(cq_t *cq, struct io_uring_cq *shown)
{
	shown->khead = &cq->head;
	shown->ktail = &cq->tail;
	shown->kflags = &cq->flags;
	shown->koverflow = &cq->n_lost;
	shown->kring_mask = &cq->mask;
	shown->kring_entries = &cq->n_entries;
	shown->cqes = cq->cqes;
	shown->ring_mask = cq->mask;
	shown->ring_entries = cq->n_entries;
}

/*
 * ==== waits =====================================================================================
 *
 * Who waits for which descriptor. One epoll entry for each descriptor, by edge, with the union of
 * what its line waits for.
 *
 * A number may have been closed and used again since the last wait. So each wait sets the entry
 * anew, which also makes epoll report what is ready by then: nothing is missed between an attempt
 * and the wait. An entry that nobody waits for stays until it sends an event.
 */

#define WAITS_EVENTS 128 /* of one look into the epoll set */

typedef struct waits_t {
	int epoll;
	bool no_pwait2;
	lines_t lines;
} waits_t;

static void waits_init(waits_t *waits) { waits->epoll = -1; }

static int waits_open(waits_t *waits)
{
	waits->epoll = epoll_create1(EPOLL_CLOEXEC);
	return waits->epoll < 0 ? -errno : 0;
}

static void waits_exit(waits_t *waits)
{
	if (waits->epoll >= 0)
		close(waits->epoll);
	lines_exit(&waits->lines);
}

static int waits_grow(waits_t *waits, size_t n) { return lines_grow(&waits->lines, n); }
static int waits_fd(const waits_t *waits) { return waits->epoll; }

/* True if waits_look() can sleep for a while by itself. */
static bool waits_has_timeout(const waits_t *waits) { return !waits->no_pwait2; }

static int waits_set(const waits_t *waits, int fd, unsigned mask)
{
	struct epoll_event event = {.events = mask | EPOLLET, .data.u64 = (unsigned)fd};

	for (unsigned n = 0; n < 4; n++) { /* twice, if something beside us uses the number */
		int operation = n % 2 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

		if (epoll_ctl(waits->epoll, operation, fd, &event) == 0)
			return 0;
		if (errno != (n % 2 ? EEXIST : ENOENT))
			break;
	}
	return -errno;
}

/* 0, or -errno and nothing done: -EPERM if epoll does not take this kind. */
static int waits_add(waits_t *waits, line_t *line, int fd, unsigned mask)
{
	line_t *first = lines_join(&waits->lines, line, (unsigned)fd, 0);
	int ret;

	ret = waits_set(waits, fd, line_widen(first, mask));
	if (ret < 0)
		lines_leave(&waits->lines, line);
	return ret;
}

static void waits_remove(waits_t *waits, line_t *line) { lines_leave(&waits->lines, line); }

/* The first that waits for the descriptor of an event, or NULL; and how many do. */
static line_t *waits_line(const waits_t *waits, const struct epoll_event *event, unsigned *n)
{
	line_t *first = lines_find(&waits->lines, event->data.u64, 0);

	*n = first ? line_length(first) : 0;
	return first;
}

/* No event of this descriptor any more. */
static void waits_forget(const waits_t *waits, int fd)
{
	struct epoll_event unused = {0};

	epoll_ctl(waits->epoll, EPOLL_CTL_DEL, fd, &unused);
}

/* Events, at most for ns (NEVER: until there is one). Needs Linux 5.11 to wait for a while. */
static int waits_look(waits_t *waits, struct epoll_event *events, uint64_t ns, const void *mask)
{
	struct {
		int64_t seconds, ns;
	} time = {(int64_t)(ns / NS_PER_SEC), (int64_t)(ns % NS_PER_SEC)};
	int ret;

	if (ns == 0 || ns == NEVER)
		return result_of(syscall(SYS_epoll_pwait, waits->epoll, events, WAITS_EVENTS,
					 ns ? -1 : 0, mask, _NSIG / 8));
	ret = result_of(syscall(SYS_epoll_pwait2, waits->epoll, events, WAITS_EVENTS, &time, mask,
				_NSIG / 8));
	waits->no_pwait2 = ret < 0 && call_is_missing(-ret);
	return waits->no_pwait2 ? 0 : ret;
}

/*
 * ==== tables ====================================================================================
 *
 * Registered files and buffers. A slot of the file table has a descriptor of its own, so the
 * program may close its one. It is closed when it has left the table and no request uses it.
 */

typedef struct fixed_t {
	int fd;
	unsigned n_uses; /* the table, and requests */
} fixed_t;

typedef struct tables_t {
	fixed_t **files;
	unsigned n_files;
	unsigned first, end; /* the slots that are given away; end 0: all */
	struct iovec *buffers;
	unsigned n_buffers;
} tables_t;

static int fixed_fd(const fixed_t *fixed) { return fixed->fd; }

static void fixed_drop(fixed_t *fixed)
{
	if (--fixed->n_uses)
		return;
	syscall(SYS_close, fixed->fd);
	free(fixed);
}

/* What is in the slot, or NULL. */
static fixed_t *files_at(const tables_t *tables, unsigned slot)
{
	return slot < tables->n_files ? tables->files[slot] : NULL;
}

/* The same, with one use more. */
static fixed_t *files_use(const tables_t *tables, unsigned slot)
{
	fixed_t *fixed = files_at(tables, slot);

	if (fixed)
		fixed->n_uses++;
	return fixed;
}

/* Put the descriptor into the slot, which takes it over. fd -1: empty the slot. 0 or -ENOMEM. */
static int files_put(tables_t *tables, unsigned slot, int fd)
{
	fixed_t *fixed = fd < 0 ? NULL : malloc(sizeof(*fixed));

	if (fd >= 0 && !fixed) {
		syscall(SYS_close, fd);
		return -ENOMEM;
	}
	if (fixed)
		*fixed = (fixed_t){fd, 1};
	if (tables->files[slot])
		fixed_drop(tables->files[slot]);
	tables->files[slot] = fixed;
	return 0;
}

/* The first empty slot of those that are given away, or -ENFILE. */
static int files_find_empty(const tables_t *tables)
{
	unsigned end = tables->end ? tables->end : tables->n_files;

	for (unsigned i = tables->first; i < end; i++)
		if (!tables->files[i])
			return (int)i;
	return -ENFILE;
}

/* A direct descriptor, for an SQE's file_index: the slot + 1, or IORING_FILE_INDEX_ALLOC. */
static int files_install(tables_t *tables, unsigned file_index, int fd)
{
	bool any = file_index == IORING_FILE_INDEX_ALLOC;
	int slot = any ? files_find_empty(tables) : (int)(file_index - 1), ret = 0;

	if (!tables->n_files)
		ret = any ? -ENFILE : -ENXIO;
	else if (slot < 0 || (unsigned)slot >= tables->n_files)
		ret = any ? slot : -EINVAL;
	if (ret < 0) {
		syscall(SYS_close, fd);
		return ret;
	}
	ret = files_put(tables, (unsigned)slot, fd);
	return ret < 0 ? ret : any ? slot : 0;
}

/* 0, or -errno: -ENXIO (no table), -EINVAL, -EBADF (it is empty). */
static int files_close(tables_t *tables, unsigned slot)
{
	if (!tables->n_files)
		return -ENXIO;
	if (slot >= tables->n_files)
		return -EINVAL;
	return tables->files[slot] ? files_put(tables, slot, -1) : -EBADF;
}

/* 0, -ENXIO (no table), or -EINVAL: not all of n slots are in it. */
static int table_check(unsigned n_slots, unsigned from, unsigned n)
{
	if (!n_slots)
		return -ENXIO;
	return n > n_slots || from > n_slots - n ? -EINVAL : 0;
}

/* fd: a descriptor, -1 (empty the slot) or IORING_REGISTER_FILES_SKIP. 0 or -errno. */
static int files_set(tables_t *tables, unsigned slot, int fd)
{
	int own;

	if (fd == IORING_REGISTER_FILES_SKIP)
		return 0;
	own = fd == -1 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return fd != -1 && own < 0 ? -errno : files_put(tables, slot, own);
}

/* How many were set, or the first one's error. *error: that of the one after them. */
static int files_update(tables_t *tables, unsigned from, const int *fds, unsigned n, int *error)
{
	unsigned i;

	*error = table_check(tables->n_files, from, n);
	if (*error)
		return *error;
	for (i = 0; i < n; i++) {
		*error = files_set(tables, from + i, fds[i]);
		if (*error)
			break;
	}
	return i ? (int)i : *error;
}

static int files_unregister(tables_t *tables)
{
	if (!tables->n_files)
		return -ENXIO;
	for (unsigned i = 0; i < tables->n_files; i++)
		files_put(tables, i, -1);
	free(tables->files);
	tables->files = NULL;
	tables->n_files = tables->first = tables->end = 0;
	return 0;
}

/* fds NULL: all slots are empty. */
static int files_register(tables_t *tables, const int *fds, unsigned n)
{
	int ret = 0;

	if (tables->n_files)
		return -EBUSY;
	if (!n)
		return -EINVAL;
	if (n > 1U << 15)
		return -EMFILE;
	tables->files = calloc(n, sizeof(*tables->files));
	if (!tables->files)
		return -ENOMEM;
	tables->n_files = n;
	if (fds)
		files_update(tables, 0, fds, n, &ret);
	if (ret)
		files_unregister(tables);
	return ret;
}

static int files_give_away(tables_t *tables, unsigned first, unsigned n)
{
	if (table_check(tables->n_files, first, n))
		return -EINVAL;
	tables->first = first;
	tables->end = first + n;
	return 0;
}

static int buffer_check(const struct iovec *buffer)
{
	if (!buffer->iov_base)
		return buffer->iov_len ? -EFAULT : 0;
	return !buffer->iov_len || buffer->iov_len > 1 << 30 ? -EFAULT : 0;
}

/* As files_update(). */
static int buffers_update(tables_t *tables, unsigned from, const struct iovec *buffers, unsigned n)
{
	int ret = table_check(tables->n_buffers, from, n);
	unsigned i;

	if (ret)
		return ret;
	for (i = 0; i < n && (ret = buffer_check(&buffers[i])) == 0; i++)
		tables->buffers[from + i] = buffers[i];
	return i ? (int)i : ret;
}

static int buffers_unregister(tables_t *tables)
{
	if (!tables->n_buffers)
		return -ENXIO;
	free(tables->buffers);
	tables->buffers = NULL;
	tables->n_buffers = 0;
	return 0;
}

/* buffers NULL: all slots are empty. */
static int buffers_register(tables_t *tables, const struct iovec *buffers, unsigned n)
{
	int ret;

	if (tables->n_buffers)
		return -EBUSY;
	if (!n || n > 1U << 14)
		return -EINVAL;
	tables->buffers = calloc(n, sizeof(*tables->buffers));
	if (!tables->buffers)
		return -ENOMEM;
	tables->n_buffers = n;
	ret = buffers ? buffers_update(tables, 0, buffers, n) : (int)n;
	if (ret == (int)n)
		return 0;
	buffers_unregister(tables);
	return ret < 0 ? ret : -EFAULT;
}

/* True if these bytes lie in the registered buffer. */
static bool buffers_have(const tables_t *tables, unsigned slot, uint64_t address, uint64_t size)
{
	uint64_t begin, length;

	if (slot >= tables->n_buffers)
		return false;
	begin = (uintptr_t)tables->buffers[slot].iov_base;
	length = tables->buffers[slot].iov_len;
	return length && address >= begin && size <= length && address - begin <= length - size;
}

static void tables_exit(tables_t *tables)
{
	files_unregister(tables);
	buffers_unregister(tables);
}

/*
 * ==== groups ====================================================================================
 *
 * Provided buffers: groups of them, each a ring in the program's memory or a queue of the engine's.
 */

typedef struct buffer_t { /* [open] */
	uint64_t address;
	unsigned size;
	uint16_t id;
} buffer_t;

typedef struct group_t {
	struct group_t *next;
	uint16_t id;
	struct io_uring_buf_ring *ring; /* NULL: the queue */
	uint16_t head, mask;            /* of the ring */
	buffer_t *queue;
	size_t first, n, n_places;      /* of the queue */
} group_t;

typedef struct groups_t {
	group_t *groups;
} groups_t;

static group_t *groups_find(const groups_t *groups, uint16_t id)
{
	group_t *group = groups->groups;

	while (group && group->id != id)
		group = group->next;
	return group;
}

static group_t *groups_add(groups_t *groups, uint16_t id)
{
	group_t *group = calloc(1, sizeof(*group));

	if (!group)
		return NULL;
	group->id = id;
	group->next = groups->groups;
	groups->groups = group;
	return group;
}

static void groups_remove(groups_t *groups, group_t *group)
{
	group_t **place = &groups->groups;

	while (*place != group)
		place = &(*place)->next;
	*place = group->next;
	free(group->queue);
	free(group);
}

/* Room for n more. 0 or -ENOMEM. */
static int group_grow(group_t *group, size_t n)
{
	size_t size = group->n_places ? group->n_places : 16;
	buffer_t *queue;

	while (size < group->n + n)
		size *= 2;
	if (size == group->n_places)
		return 0;
	queue = malloc(size * sizeof(*queue));
	if (!queue)
		return -ENOMEM;
	for (size_t i = 0; i < group->n; i++)
		queue[i] = group->queue[(group->first + i) & (group->n_places - 1)];
	free(group->queue);
	group->queue = queue;
	group->first = 0;
	group->n_places = size;
	return 0;
}

/* n buffers of this size one after another, numbered from `from`. 0 or -errno. */
static int groups_provide(groups_t *groups, uint16_t id, uint64_t address, unsigned size,
			  unsigned n, unsigned from)
{
	group_t *group = groups_find(groups, id);

	if (!n || n > 65536 || !size)
		return -EINVAL;
	if (from + n > 65536)
		return -EINVAL;
	if (!group)
		group = groups_add(groups, id);
	if (group && group->ring)
		return -EINVAL;
	if (!group || group_grow(group, n) < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		group->queue[(group->first + group->n++) & (group->n_places - 1)] =
			(buffer_t){address + (uint64_t)i * size, size, (uint16_t)(from + i)};
	return 0;
}

/* Take at most n away. How many, or -errno. */
static int groups_take_away(groups_t *groups, uint16_t id, unsigned n)
{
	group_t *group = groups_find(groups, id);

	if (!n || n > 65536)
		return -EINVAL;
	if (!group)
		return -ENOENT;
	if (group->ring)
		return -EINVAL;
	if (n > group->n)
		n = (unsigned)group->n;
	group->n -= n;
	group->first += n;
	return (int)n;
}

/* The next buffer of the group. 0 or -ENOBUFS. */
static int groups_select(const groups_t *groups, uint16_t id, buffer_t *buffer)
{
	group_t *group = groups_find(groups, id);
	const struct io_uring_buf *entry;

	if (!group || (!group->ring && !group->n))
		return -ENOBUFS;
	if (!group->ring) {
		*buffer = group->queue[group->first++ & (group->n_places - 1)];
		group->n--;
		return 0;
	}
	if (__atomic_load_n(&group->ring->tail, __ATOMIC_ACQUIRE) == group->head)
		return -ENOBUFS;
	entry = &((struct io_uring_buf *)group->ring)[group->head++ & group->mask];
	*buffer = (buffer_t){entry->addr, entry->len, entry->bid};
	return 0;
}

/* It was not needed: it is the next one again. */
static void groups_give_back(const groups_t *groups, uint16_t id, const buffer_t *buffer)
{
	group_t *group = groups_find(groups, id);

	if (!group)
		return; /* unregistered meanwhile */
	if (group->ring) {
		group->head--;
	} else if (group->n < group->n_places) {
		group->queue[--group->first & (group->n_places - 1)] = *buffer;
		group->n++;
	}
}

/* struct io_uring_buf_reg, whose members have other names in newer headers. */
typedef struct buf_reg_t {
	uint64_t address;
	uint32_t n_entries;
	uint16_t id, flags;
	uint64_t zero[3];
} buf_reg_t;

static int groups_add_ring(groups_t *groups, const buf_reg_t *reg)
{
	group_t *group = groups_find(groups, reg->id);
	unsigned n = reg->n_entries;

	if (reg->flags || reg->zero[0] || reg->zero[1] || reg->zero[2] || !n || n & (n - 1) ||
	    n > 32768)
		return -EINVAL;
	if (!reg->address)
		return -EFAULT;
	if (group && (group->ring || group->n))
		return -EEXIST;
	if (!group)
		group = groups_add(groups, reg->id);
	if (!group)
		return -ENOMEM;
	group->ring = pointer_of(reg->address);
	group->mask = (uint16_t)(n - 1);
	group->head = 0;
	return 0;
}

static int groups_remove_ring(groups_t *groups, const buf_reg_t *reg)
{
	group_t *group = groups_find(groups, reg->id);

	if (!group)
		return -ENOENT;
	if (!group->ring)
		return -EINVAL;
	groups_remove(groups, group);
	return 0;
}

/* Where the engine will take the next buffer of a ring. */
static int groups_tell_head(const groups_t *groups, uint32_t status[10])
{
	const group_t *group = groups_find(groups, (uint16_t)status[0]);

	if (!group)
		return -ENOENT;
	if (!group->ring)
		return -EINVAL;
	status[1] = group->head;
	return 0;
}

static void groups_exit(groups_t *groups)
{
	while (groups->groups)
		groups_remove(groups, groups->groups);
}

_Static_assert(sizeof(buf_reg_t) == sizeof(struct io_uring_buf_reg), "the kernel's layout");

/*
 * ==== reqs ======================================================================================
 *
 * Requests and their memory: slabs, which come with room in the tables of lines. A request is
 * open to all rooms; each uses the part that is its own.
 */

enum { NOT_PENDING, WAITING, POOLED, LINED_UP, TIMED }; /* see the first comment */

/* [open] The parts are their rooms'; the rest is whoever handles the request. */
typedef struct req_t {
	node_t node;         /* pending, started, ended, or free */
	node_t counted;      /* timeouts that count completions */
	line_t by_key;       /* user_data, while it is pending */
	line_t by_fd;        /* while WAITING */
	line_t by_inode;     /* while it writes a file, or waits for its turn */
	line_t by_file;      /* while a thread needs its descriptor, or a CLOSE waits for that */
	due_t due;           /* TIMED */
	job_t job;           /* POOLED */
	late_t late;         /* its last CQE */
	late_t late_first;   /* of a zero-copy send, the one before */
	struct req_t *next;  /* of its chain */
	struct req_t *limit; /* the LINK_TIMEOUT linked to it */
	struct req_t *limits;/* of a LINK_TIMEOUT: what it is linked to */
	struct io_uring_sqe sqe;
	int state;
	int result;          /* of a prepared one that cannot start, or of an ended one */
	bool multishot;
	bool cancelled;      /* while a thread worked on it */
	bool tried;          /* the first attempt was made */
	bool positioned;     /* a file's offset is given */
	bool owns_fd;        /* kept_fd is open */
	int kept_fd;
	fixed_t *fixed;      /* the registered file that it works on: sqe.fd is its descriptor */
	fixed_t *fixed_in;   /* that it reads from, of a splice */
	int wait_fd;         /* what an attempt wants to wait for, */
	unsigned wait_mask;  /* and how */
	unsigned n_later;    /* attempts put off */
	bool begun;          /* it was its turn: it did not end with its chain before */
	buffer_t buffer;     /* the provided one that was chosen last, */
	struct iovec one;    /* and the part of it that is asked for */
	uint64_t n_asked;    /* bytes of a provided buffer at most; 0: all of it */
	unsigned cqe_flags;  /* IORING_CQE_F_BUFFER, and which */
	struct iovec *iov;   /* what is still to be transferred */
	unsigned n_iov;
	uint64_t n_wanted, n_done; /* bytes */
	struct msghdr message;
	uint64_t ns;         /* of a timeout */
	uint64_t left;       /* its completions to count, or times to fire; 0: no limit */
	void *parameters;    /* copied: in `space`, or allocated */
	uint64_t space[16];  /* not zeroed */
} req_t;

typedef struct slab_t {
	struct slab_t *next;
	size_t n;
	req_t reqs[];
} slab_t;

typedef struct reqs_t {
	slab_t *slabs;
	node_t free;
	size_t n;
} reqs_t;

/* Forget what the request refers to. */
static void req_clear(req_t *req)
{
	if (req->parameters != req->space)
		free(req->parameters);
	if (req->owns_fd)
		close(req->kept_fd);
	if (req->fixed)
		fixed_drop(req->fixed);
	if (req->fixed_in)
		fixed_drop(req->fixed_in);
	req->fixed = req->fixed_in = NULL;
	req->parameters = NULL;
	req->owns_fd = false;
}

static int reqs_grow(reqs_t *reqs, size_t n)
{
	slab_t *slab = calloc(1, sizeof(*slab) + n * sizeof(req_t));

	if (!slab)
		return -ENOMEM;
	slab->n = n;
	slab->next = reqs->slabs;
	reqs->slabs = slab;
	reqs->n += n;
	for (size_t i = 0; i < n; i++)
		list_add(&reqs->free, &slab->reqs[i].node);
	return 0;
}

static void reqs_init(reqs_t *reqs) { list_init(&reqs->free); }
static bool reqs_left(const reqs_t *reqs) { return !list_empty(&reqs->free); }
static size_t reqs_size(const reqs_t *reqs) { return reqs->n; }

static req_t *req_new(reqs_t *reqs)
{
	req_t *req = container_of(list_pop(&reqs->free), req_t, node);

	memset(req, 0, offsetof(req_t, space));
	list_init(&req->node);
	list_init(&req->counted);
	return req;
}

/* Back to the front: the next one is the one used last. */
static void req_free(reqs_t *reqs, req_t *req)
{
	req_clear(req);
	list_remove(&req->node);
	list_add(reqs->free.next, &req->node);
}

static void reqs_exit(reqs_t *reqs)
{
	for (slab_t *slab = reqs->slabs, *next; slab; slab = next) {
		next = slab->next;
		for (size_t i = 0; i < slab->n; i++)
			req_clear(&slab->reqs[i]);
		free(slab);
	}
}

/* Room for its parameters; once for a request. NULL: no memory. */
static void *req_space(req_t *req, size_t size)
{
	req->parameters = size <= sizeof(req->space) ? (void *)req->space : malloc(size);
	return req->parameters;
}

/*
 * ==== ops =======================================================================================
 *
 * What each opcode does, for one request, without the engine:
 *
 *   prepare  checks fields, and copies parameters. 0, an error, or NO_MEMORY
 *   attempt  on the owner's thread, never blocks
 *   work     on a thread, may block; an opcode without an attempt starts with it
 *
 * The latter two return the result, or what to do instead: see the next enum.
 */

enum {
	GO_WAIT = -5000, /* wait for wait_mask on wait_fd, then attempt again */
	GO_THREAD,       /* let a thread work on it */
	GO_LATER,        /* attempt again after a while */
	NO_MEMORY,
};

#define TRANSFER_MAX 0x7ffff000u /* the kernel's limit */
#define STREAM_FLAGS 0x3fu       /* RWF_HIPRI to RWF_NOAPPEND: others are for files alone */

static int wait_for(req_t *req, int fd, unsigned mask)
{
	req->wait_fd = fd;
	req->wait_mask = mask;
	return GO_WAIT;
}

/* The ready bits of these; POLLNVAL for a bad descriptor. */
static unsigned ready_bits(int fd, unsigned mask)
{
	struct pollfd poll_fd = {.fd = fd, .events = (short)mask};
	struct timespec zero = {0};

	if (fd < 0)
		return POLLNVAL;
	return ppoll(&poll_fd, 1, &zero, NULL) > 0 ? (unsigned short)poll_fd.revents : 0;
}

/*
 * O_NONBLOCK for the time of one call. Threads may have one descriptor in common (a listener, say):
 * so the first of them sets the flag, and the last one takes it away.
 */
typedef struct flicker_t {
	node_t node;
	int fd;
	int flags; /* to be restored; -1: nothing to restore */
} flicker_t;

static pthread_mutex_t flickers_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the list */
static node_t flickers = {&flickers, &flickers};

/* A forked child has one thread, which is not in here. */
static void flickers_forget(void)
{
	pthread_mutex_init(&flickers_lock, NULL);
	list_init(&flickers);
}

static void flickers_open(void) { pthread_atfork(NULL, NULL, flickers_forget); }

/* Another one of this descriptor, or NULL. With the lock held. */
static const flicker_t *flicker_beside(const flicker_t *flicker)
{
	for (node_t *node = flickers.next; node != &flickers; node = node->next) {
		const flicker_t *other = container_of(node, flicker_t, node);

		if (other != flicker && other->fd == flicker->fd)
			return other;
	}
	return NULL;
}

static int nonblock_flags(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || flags & O_NONBLOCK || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -1;
	return flags;
}

static void nonblock_set(flicker_t *flicker, int fd)
{
	const flicker_t *other;

	flicker->fd = fd;
	pthread_mutex_lock(&flickers_lock);
	other = flicker_beside(flicker);
	flicker->flags = other ? other->flags : nonblock_flags(fd);
	list_add(&flickers, &flicker->node);
	pthread_mutex_unlock(&flickers_lock);
}

/* Keeps errno. */
static void nonblock_restore(flicker_t *flicker)
{
	int error = errno;

	pthread_mutex_lock(&flickers_lock);
	list_remove(&flicker->node);
	if (flicker->flags >= 0 && !flicker_beside(flicker))
		fcntl(flicker->fd, F_SETFL, flicker->flags);
	pthread_mutex_unlock(&flickers_lock);
	errno = error;
}

typedef struct file_t { /* [open] */
	unsigned mode;
	uint64_t device, inode, size;
} file_t;

/* What the descriptor is. Asks no server (NFS, FUSE), so it does not block. 0 or -errno. */
static int file_ask(int fd, file_t *file)
{
	struct statx statx = {0};
	struct stat old;

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
		    STATX_TYPE | STATX_INO | STATX_SIZE, &statx) == 0) {
		*file = (file_t){statx.stx_mode, makedev(statx.stx_dev_major, statx.stx_dev_minor),
				 statx.stx_ino, statx.stx_size};
		return 0;
	}
	if (errno == EBADF || fstat(fd, &old) < 0)
		return -errno;
	*file = (file_t){old.st_mode, old.st_dev, old.st_ino, (uint64_t)old.st_size};
	return 0;
}

/* True for what a thread must handle: files, block devices, directories. */
static bool file_blocks(const file_t *file)
{
	return S_ISREG(file->mode) || S_ISBLK(file->mode) || S_ISDIR(file->mode);
}

/* False: a stream, whose reads and writes must not come to a thread behind something else. */
static bool file_has_order(const file_t *file, bool is_transfer)
{
	return file_blocks(file) || (is_transfer && S_ISCHR(file->mode));
}

/* ---- Buffers ---- */

/* Note that n bytes were transferred: move on in req->iov. */
static void iov_advance(req_t *req, size_t n)
{
	req->n_done += n;
	while (req->n_iov && n >= req->iov->iov_len) {
		n -= req->iov->iov_len;
		req->iov++;
		req->n_iov--;
	}
	if (req->n_iov) {
		req->iov->iov_base = (char *)req->iov->iov_base + n;
		req->iov->iov_len -= n;
	}
}

/* Copy n iovecs behind `extra` bytes of other parameters. */
static int iov_copy(req_t *req, const struct iovec *iov, size_t n, size_t extra)
{
	char *space;

	if (n > IOV_MAX)
		return -EINVAL;
	space = req_space(req, extra + n * sizeof(*iov) + 1);
	if (!space)
		return NO_MEMORY;
	req->iov = (struct iovec *)(void *)(space + extra);
	req->n_iov = (unsigned)n;
	if (n)
		memcpy(req->iov, iov, n * sizeof(*iov));
	for (size_t i = 0; i < n; i++)
		req->n_wanted = sum_u64(req->n_wanted, req->iov[i].iov_len);
	req->n_wanted = min_u64(req->n_wanted, TRANSFER_MAX);
	return 0;
}

/* ---- READ, WRITE, READV, WRITEV ---- */

static bool rw_writes(const req_t *req)
{
	return req->sqe.opcode == IORING_OP_WRITE || req->sqe.opcode == IORING_OP_WRITEV ||
	       req->sqe.opcode == IORING_OP_WRITE_FIXED;
}

static int rw_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	bool selects = sqe->flags & IOSQE_BUFFER_SELECT;
	struct iovec one = {pointer_of(sqe->addr), (size_t)min_u64(sqe->len, TRANSFER_MAX)};
	bool is_vector = sqe->opcode == IORING_OP_READV || sqe->opcode == IORING_OP_WRITEV;

	req->positioned = sqe->off != NEVER;
	req->multishot = sqe->opcode == OP_READ_MULTISHOT;
	if ((req->multishot && (!selects || sqe->addr || sqe->len)) ||
	    (is_vector && selects && sqe->len != 1))
		return -EINVAL;
	if (is_vector)
		return iov_copy(req, pointer_of(sqe->addr), sqe->len, 0);
	return iov_copy(req, &one, 1, 0);
}

/* Without flags it needs no preadv2, which some filters refuse. */
static long rw_call(const req_t *req, unsigned flags)
{
	static const long calls[2][3] = {{SYS_readv, SYS_preadv, SYS_preadv2},
					 {SYS_writev, SYS_pwritev, SYS_pwritev2}};
	int64_t at = req->positioned ? (int64_t)(req->sqe.off + req->n_done) : -1;

	return syscall(calls[rw_writes(req)][flags ? 2 : req->positioned], req->sqe.fd, req->iov,
		       (long)req->n_iov, (long)at, (long)(at >> 32), (int)flags);
}

/* n bytes came at once. The rest of a file's may need the disk. */
static int rw_took(req_t *req, size_t n)
{
	file_t file;
	off_t at;

	if (req->n_done + n >= req->n_wanted || file_ask(req->sqe.fd, &file) < 0 ||
	    !(S_ISREG(file.mode) || S_ISBLK(file.mode))) {
		req->n_done += n;
		return (int)req->n_done;
	}
	at = req->positioned ? (off_t)(req->sqe.off + req->n_done + n) :
			       lseek(req->sqe.fd, 0, SEEK_CUR);
	iov_advance(req, n);
	if (!rw_writes(req) && S_ISREG(file.mode) && (uint64_t)at >= file.size)
		return (int)req->n_done;
	return GO_THREAD;
}

/* A socket of a kernel that knows no RWF_NOWAIT for it (before 6.5). */
static long rw_socket(const req_t *req)
{
	struct msghdr message = {.msg_iov = req->iov, .msg_iovlen = req->n_iov};

	return rw_writes(req) ? sendmsg(req->sqe.fd, &message, MSG_DONTWAIT) :
				recvmsg(req->sqe.fd, &message, MSG_DONTWAIT);
}

static long rw_nonblock(const req_t *req, unsigned flags)
{
	flicker_t flicker;
	long ret;

	nonblock_set(&flicker, req->sqe.fd);
	ret = rw_call(req, flags);
	nonblock_restore(&flicker);
	return ret;
}

/* A terminal: once it is ready, as the kernel does. Another process may share its O_NONBLOCK. */
static long rw_terminal(const req_t *req)
{
	return rw_writes(req) ? rw_nonblock(req, 0) : rw_call(req, 0);
}

/* It does not know RWF_NOWAIT: by its kind. */
static int rw_by_kind(req_t *req)
{
	unsigned mask = rw_writes(req) ? POLLOUT : POLLIN, flags = (unsigned)req->sqe.rw_flags;
	int fd = req->sqe.fd;
	bool terminal;
	file_t file;
	long ret = file_ask(fd, &file);

	if (ret < 0)
		return (int)ret;
	if (file_blocks(&file) && (file.size || ready_bits(fd, mask)))
		return GO_THREAD;
	if (file_blocks(&file)) /* some files of procfs and tracefs have no size, and must wait */
		return wait_for(req, fd, mask);
	if (flags & ~STREAM_FLAGS)
		return -EOPNOTSUPP;
	if (S_ISSOCK(file.mode) && req->sqe.off && req->sqe.off != NEVER)
		return -ESPIPE;
	if ((S_ISCHR(file.mode) || S_ISFIFO(file.mode)) && !ready_bits(fd, mask))
		return wait_for(req, fd, mask); /* a FIFO without a writer yet is not at its end */
	terminal = S_ISCHR(file.mode) && isatty(fd);
	if (S_ISCHR(file.mode) && !terminal)
		return GO_THREAD; /* it is ready, or cannot tell */
	req->positioned = false;
	ret = S_ISSOCK(file.mode) ? rw_socket(req) :
	      terminal		  ? rw_terminal(req) :
				    rw_nonblock(req, flags);
	if (ret < 0 && errno == EAGAIN)
		return wait_for(req, fd, mask);
	if (ret < 0)
		return req->n_done ? (int)req->n_done : -errno;
	if (terminal && rw_writes(req) && req->n_done + (size_t)ret < req->n_wanted) {
		iov_advance(req, (size_t)ret); /* a terminal takes all */
		return wait_for(req, fd, mask);
	}
	return (int)req->n_done + (int)ret;
}

/* True for a file with O_DIRECT: with RWF_NOWAIT too, the call waits for the disk. */
static bool rw_is_direct(const req_t *req)
{
	int flags = fcntl(req->sqe.fd, F_GETFL);
	file_t file;

	return flags >= 0 && flags & O_DIRECT && file_ask(req->sqe.fd, &file) == 0 &&
	       file_blocks(&file);
}

/* Such a read is for what can be polled alone. */
static bool rw_is_multishot_of_file(const req_t *req)
{
	file_t file;

	return req->sqe.opcode == OP_READ_MULTISHOT && file_ask(req->sqe.fd, &file) == 0 &&
	       file_blocks(&file);
}

static int rw_attempt(req_t *req)
{
	unsigned flags = (unsigned)req->sqe.rw_flags;
	bool nowait = flags & RWF_NOWAIT;
	file_t file;
	long ret;

	if (req->sqe.off > (uint64_t)INT64_MAX && req->positioned)
		return -EINVAL;
	if (!nowait && rw_is_direct(req))
		return GO_THREAD;
	ret = rw_call(req, flags | RWF_NOWAIT);
	if (ret < 0 && errno == ESPIPE && req->positioned) {
		if (req->sqe.off && (file_ask(req->sqe.fd, &file) < 0 || S_ISSOCK(file.mode)))
			return -ESPIPE;
		req->positioned = false;
		ret = rw_call(req, flags | RWF_NOWAIT);
	}
	if (ret >= 0)
		return rw_took(req, (size_t)ret);
	if (errno == EAGAIN && !nowait)
		return wait_for(req, req->sqe.fd, rw_writes(req) ? POLLOUT : POLLIN);
	if ((errno == EOPNOTSUPP || call_is_missing(errno)) && !nowait)
		return rw_by_kind(req);
	return req->n_done ? (int)req->n_done : -errno;
}

static int rw_work(req_t *req)
{
	int ret = result_of(rw_call(req, (unsigned)req->sqe.rw_flags));

	if (ret == -ESPIPE && req->positioned) {
		req->positioned = false;
		ret = result_of(rw_call(req, (unsigned)req->sqe.rw_flags));
	}
	if (ret < 0)
		return req->n_done ? (int)req->n_done : ret;
	return (int)req->n_done + ret;
}

/* ---- SEND, RECV, SENDMSG, RECVMSG ---- */

static bool msg_sends(const req_t *req)
{
	return req->sqe.opcode != IORING_OP_RECV && req->sqe.opcode != IORING_OP_RECVMSG;
}

static bool msg_is_zero_copy(const req_t *req)
{
	return req->sqe.opcode == IORING_OP_SEND_ZC || req->sqe.opcode == IORING_OP_SENDMSG_ZC;
}

/* The flags in ioprio that fit the opcode. */
static bool msg_flags_fit(const req_t *req)
{
	unsigned known = IORING_RECVSEND_POLL_FIRST;
	bool is_multishot = req->sqe.ioprio & IORING_RECV_MULTISHOT;

	if (msg_is_zero_copy(req))
		known |= IORING_RECVSEND_FIXED_BUF | SEND_ZC_REPORT_USAGE;
	if (!msg_sends(req))
		known |= IORING_RECV_MULTISHOT;
	return !(req->sqe.ioprio & ~known) &&
	       !(is_multishot && (!(req->sqe.flags & IOSQE_BUFFER_SELECT) ||
				  req->sqe.msg_flags & MSG_WAITALL));
}

/* All three: a message's head, its address and its buffers. */
static int msg_copy(req_t *req, const struct msghdr *from)
{
	size_t n_name = msg_sends(req) && from->msg_name ? from->msg_namelen : 0;
	size_t extra = (n_name + 15) & ~(size_t)15;
	int ret;

	if (n_name > sizeof(struct sockaddr_storage))
		return -EINVAL;
	if (from->msg_iovlen > IOV_MAX)
		return -EMSGSIZE;
	if (req->sqe.flags & IOSQE_BUFFER_SELECT && from->msg_iovlen > 1)
		return -EINVAL;
	ret = iov_copy(req, from->msg_iov, from->msg_iovlen, extra);
	if (ret)
		return ret;
	req->message = *from;
	req->message.msg_flags = 0;
	if (n_name)
		req->message.msg_name = memcpy(req->parameters, from->msg_name, n_name);
	return 0;
}

static int msg_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	bool with_head = sqe->opcode == IORING_OP_SENDMSG || sqe->opcode == IORING_OP_RECVMSG ||
			 sqe->opcode == IORING_OP_SENDMSG_ZC;
	struct iovec iov = {pointer_of(sqe->addr), (size_t)min_u64(sqe->len, TRANSFER_MAX)};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (!msg_flags_fit(req))
		return -EINVAL;
	req->multishot = !msg_sends(req) && sqe->ioprio & IORING_RECV_MULTISHOT;
	if (with_head)
		return msg_copy(req, pointer_of(sqe->addr));
	if (msg_sends(req)) {
		message.msg_name = pointer_of(sqe->addr2);
		message.msg_namelen = message.msg_name ? sqe->addr_len : 0;
	} else if (sqe->addr2 || sqe->file_index) {
		return -EINVAL;
	}
	return msg_copy(req, &message);
}

/* RECVMSG: what the call says besides the data. */
static void msg_answer(const req_t *req, const struct msghdr *message)
{
	struct msghdr *to = pointer_of(req->sqe.addr);

	if (to->msg_name)
		to->msg_namelen = message->msg_namelen;
	if (!req->n_done)
		to->msg_controllen = message->msg_controllen;
	to->msg_flags = message->msg_flags;
}

/* True if MSG_WAITALL asks for more than came. */
static bool msg_goes_on(const req_t *req, size_t n)
{
	int type = 0;
	socklen_t size = sizeof(type);

	if (!(req->sqe.msg_flags & MSG_WAITALL) || !n || req->n_done + n >= req->n_wanted)
		return false;
	getsockopt(req->sqe.fd, SOL_SOCKET, SO_TYPE, &type, &size);
	return type == SOCK_STREAM || type == SOCK_SEQPACKET;
}

static int msg_wait(req_t *req)
{
	unsigned mask = msg_sends(req) ? POLLOUT : POLLIN;

	if (req->sqe.msg_flags & MSG_DONTWAIT)
		return req->n_done ? (int)req->n_done : -EAGAIN;
	return wait_for(req, req->sqe.fd, mask | (req->sqe.msg_flags & MSG_ERRQUEUE ? POLLERR : 0));
}

/* 0 if the socket can send without a copy: as in the kernel, a socket of TCP or UDP. */
static int msg_zero_copy_error(const req_t *req)
{
	int domain = 0;
	socklen_t size = sizeof(domain);

	if (getsockopt(req->sqe.fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
		return -errno;
	return domain == AF_INET || domain == AF_INET6 ? 0 : -EOPNOTSUPP;
}

/* A multishot RECVMSG: head, address, control data and payload go into the provided buffer. */
static int msg_attempt_multi(req_t *req)
{
	struct io_uring_recvmsg_out out = {0};
	size_t n_name = req->message.msg_namelen, n_control = req->message.msg_controllen;
	size_t n_head = sizeof(out) + n_name + n_control;
	char *base = req->one.iov_base;
	struct iovec payload = {base + n_head, req->one.iov_len - n_head};
	struct msghdr message = {.msg_name = n_name ? base + sizeof(out) : NULL,
				 .msg_namelen = (socklen_t)n_name,
				 .msg_iov = &payload,
				 .msg_iovlen = 1,
				 .msg_control = n_control ? base + sizeof(out) + n_name : NULL,
				 .msg_controllen = n_control};
	ssize_t ret;

	if (req->one.iov_len < n_head)
		return -EFAULT;
	ret = recvmsg(req->sqe.fd, &message, (int)req->sqe.msg_flags | MSG_DONTWAIT);
	if (ret < 0)
		return errno == EAGAIN ? msg_wait(req) : -errno;
	out.namelen = message.msg_namelen;
	out.controllen = (__u32)message.msg_controllen;
	out.payloadlen = (__u32)ret;
	out.flags = (__u32)message.msg_flags;
	memcpy(base, &out, sizeof(out));
	req->multishot = ret > 0; /* the end of a stream: this is the last one */
	return (int)(n_head + min_u64((uint64_t)ret, payload.iov_len));
}

static int msg_attempt(req_t *req)
{
	int flags = (int)req->sqe.msg_flags | MSG_DONTWAIT;
	struct msghdr message = req->message;
	ssize_t ret;

	if (req->sqe.ioprio & IORING_RECVSEND_POLL_FIRST && !req->tried) {
		req->tried = true;
		return msg_wait(req);
	}
	if (msg_is_zero_copy(req) && (ret = msg_zero_copy_error(req)) < 0)
		return (int)ret;
	if (req->multishot && req->sqe.opcode == IORING_OP_RECVMSG)
		return msg_attempt_multi(req);
	for (;;) {
		message.msg_iov = req->iov;
		message.msg_iovlen = req->n_iov;
		ret = msg_sends(req) ? sendmsg(req->sqe.fd, &message, flags | MSG_NOSIGNAL) :
				       recvmsg(req->sqe.fd, &message, flags);
		if (ret < 0 && errno == EAGAIN)
			return msg_wait(req);
		if (ret < 0)
			return req->n_done ? (int)req->n_done : -errno;
		if (req->sqe.opcode == IORING_OP_RECVMSG)
			msg_answer(req, &message);
		if (!msg_goes_on(req, (size_t)ret))
			break;
		iov_advance(req, (size_t)ret);
		/* control data went with the first part */
		req->message.msg_control = message.msg_control = NULL;
		req->message.msg_controllen = message.msg_controllen = 0;
	}
	return (int)req->n_done + (int)ret;
}

/* ---- ACCEPT, CONNECT, BIND, LISTEN, SHUTDOWN, SOCKET, PIPE ---- */

/* A direct descriptor cannot be close-on-exec. */
static bool direct_fits(const req_t *req, unsigned flags, unsigned cloexec)
{
	return !req->sqe.file_index || !(flags & cloexec);
}

static int accept_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	unsigned known = IORING_ACCEPT_MULTISHOT | ACCEPT_DONTWAIT | ACCEPT_POLL_FIRST;

	req->multishot = sqe->ioprio & IORING_ACCEPT_MULTISHOT;
	if (sqe->ioprio & ~known || sqe->accept_flags & ~(unsigned)(SOCK_CLOEXEC | SOCK_NONBLOCK) ||
	    (req->multishot && (sqe->ioprio & ACCEPT_DONTWAIT ||
				(sqe->file_index && sqe->file_index != IORING_FILE_INDEX_ALLOC))) ||
	    !direct_fits(req, sqe->accept_flags, SOCK_CLOEXEC))
		return -EINVAL;
	return 0;
}

static int accept_attempt(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	flicker_t flicker;
	int ret;

	if (sqe->ioprio & ACCEPT_POLL_FIRST && !req->tried) {
		req->tried = true;
		return wait_for(req, sqe->fd, POLLIN);
	}
	nonblock_set(&flicker, sqe->fd);
	ret = result_of(syscall(SYS_accept4, sqe->fd, pointer_of(sqe->addr), pointer_of(sqe->addr2),
				sqe->accept_flags));
	nonblock_restore(&flicker);
	if (ret == -EAGAIN && !(sqe->ioprio & ACCEPT_DONTWAIT))
		return wait_for(req, sqe->fd, POLLIN);
	return ret;
}

/* CONNECT and BIND */
static int address_prepare(req_t *req)
{
	if (req->sqe.off > sizeof(struct sockaddr_storage))
		return -EINVAL;
	if (!req_space(req, sizeof(struct sockaddr_storage)))
		return NO_MEMORY;
	if (req->sqe.off)
		memcpy(req->parameters, pointer_of(req->sqe.addr), (size_t)req->sqe.off);
	return 0;
}

static int connect_attempt(req_t *req)
{
	int fd = req->sqe.fd, ret;
	flicker_t flicker;

	nonblock_set(&flicker, fd);
	ret = result_of(syscall(SYS_connect, fd, req->parameters, (socklen_t)req->sqe.off));
	nonblock_restore(&flicker);
	if (ret == -EINPROGRESS || (ret == -EALREADY && req->tried)) {
		req->tried = true;
		return wait_for(req, fd, POLLOUT);
	}
	if (ret == -EISCONN && req->tried)
		return 0;
	if (ret == -EAGAIN && flicker.flags >= 0)
		return GO_LATER; /* AF_UNIX: the backlog is full; nothing tells when it is not */
	return ret;
}

static int bind_attempt(req_t *req)
{
	return result_of(bind(req->sqe.fd, req->parameters, (socklen_t)req->sqe.off));
}

static int listen_attempt(req_t *req)
{
	return result_of(listen(req->sqe.fd, (int)req->sqe.len));
}

static int shutdown_attempt(req_t *req)
{
	return result_of(shutdown(req->sqe.fd, (int)req->sqe.len));
}

static int socket_prepare(req_t *req)
{
	return direct_fits(req, (unsigned)req->sqe.off, SOCK_CLOEXEC) ? 0 : -EINVAL;
}

static int socket_attempt(req_t *req)
{
	return result_of(socket(req->sqe.fd, (int)req->sqe.off, (int)req->sqe.len));
}

static int pipe_prepare(req_t *req)
{
	return direct_fits(req, (unsigned)req->sqe.rw_flags, O_CLOEXEC) ? 0 : -EINVAL;
}

static int pipe_attempt(req_t *req)
{
	return result_of(pipe2(pointer_of(req->sqe.addr), (int)req->sqe.rw_flags));
}

/* ---- POLL_ADD, EPOLL_CTL, NOP ---- */

#define POLL_BITS 0x27ffu /* POLLIN to POLLMSG, and POLLRDHUP */

static unsigned poll_mask(const struct io_uring_sqe *sqe)
{
	unsigned bits = sqe->poll32_events;

#if __BYTE_ORDER == __BIG_ENDIAN
	bits = bits << 16 | bits >> 16;
#endif
	return bits & POLL_BITS;
}

static int poll_prepare(req_t *req)
{
	if (req->sqe.len & ~IORING_POLL_ADD_MULTI)
		return -EINVAL;
	req->multishot = req->sqe.len & IORING_POLL_ADD_MULTI;
	return 0;
}

static int poll_attempt(req_t *req)
{
	unsigned mask = poll_mask(&req->sqe);
	unsigned bits = req->multishot ? 0 : ready_bits(req->sqe.fd, mask);

	if (bits & POLLNVAL)
		return -EBADF;
	return bits ? (int)bits : wait_for(req, req->sqe.fd, mask);
}

/* epoll does not take it: it is always ready, and by no event. */
static int poll_file(req_t *req)
{
	unsigned bits = ready_bits(req->sqe.fd, poll_mask(&req->sqe));

	return bits ? (int)bits : -EINVAL;
}

static int epoll_ctl_prepare(req_t *req)
{
	if (!req_space(req, sizeof(struct epoll_event)))
		return NO_MEMORY;
	if (req->sqe.len != EPOLL_CTL_DEL)
		memcpy(req->parameters, pointer_of(req->sqe.addr), sizeof(struct epoll_event));
	return 0;
}

static int epoll_ctl_attempt(req_t *req)
{
	return result_of(epoll_ctl(req->sqe.fd, (int)req->sqe.len, (int)req->sqe.off,
				   req->parameters));
}

static int nop_attempt(req_t *req)
{
	(void)req;
	return 0;
}

/* ---- OPENAT, OPENAT2, CLOSE ---- */

struct how { /* struct open_how, which old headers lack */
	uint64_t flags, mode, resolve;
};

static int open_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	const char *path = pointer_of(sqe->addr);
	size_t size = strlen(path) + 1;
	struct how *how;

	if (sqe->opcode == IORING_OP_OPENAT2 && sqe->len < sizeof(*how))
		return -EINVAL;
	how = req_space(req, sizeof(*how) + size);
	if (!how)
		return NO_MEMORY;
	memcpy(how + 1, path, size);
	*how = (struct how){(unsigned)sqe->open_flags, sqe->len, 0};
	if (sqe->opcode == IORING_OP_OPENAT2)
		memcpy(how, pointer_of(sqe->off), sizeof(*how));
	return direct_fits(req, (unsigned)how->flags, O_CLOEXEC) ? 0 : -EINVAL;
}

/* openat2 is Linux 5.6's; without it, what openat can do. */
static int open_call(const req_t *req, const char *path, struct how *how)
{
	int ret = -ENOSYS;

	if (req->sqe.opcode == IORING_OP_OPENAT2)
		ret = result_of(syscall(SYS_openat2, req->sqe.fd, path, how, sizeof(*how)));
	else
		how->resolve = 0;
	if (!call_is_missing(-ret) || (ret == -EPERM && how->resolve))
		return ret;
	if (how->resolve || how->flags >> 32 ||
	    (req->sqe.opcode == IORING_OP_OPENAT2 && how->mode &&
	     !(how->flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)))))
		return -EINVAL;
	return result_of(openat(req->sqe.fd, path, (int)how->flags, (mode_t)how->mode));
}

static bool path_is_fifo(int dir, const char *path)
{
	struct stat stat;

	return fstatat(dir, path, &stat, 0) == 0 && S_ISFIFO(stat.st_mode);
}

/*
 * A FIFO opened for reading: has somebody opened it for writing? poll() does not say; tee() does:
 * without a writer it finds the end, else it would have to wait. It consumes nothing.
 */
static bool fifo_has_writer(int fd)
{
	int scratch[2];
	bool writer = true;

	if (ready_bits(fd, POLLIN) || pipe2(scratch, O_CLOEXEC) < 0)
		return true;
	writer = tee(fd, scratch[1], 1, SPLICE_F_NONBLOCK) != 0;
	close(scratch[0]);
	close(scratch[1]);
	return writer;
}

/* It is open, with O_NONBLOCK. */
static int open_finish(req_t *req, int fd, bool waits, unsigned flags)
{
	file_t file;

	if (waits && (flags & O_ACCMODE) == O_RDONLY && file_ask(fd, &file) == 0 &&
	    S_ISFIFO(file.mode) && !fifo_has_writer(fd)) {
		req->kept_fd = fd;
		req->owns_fd = true;
		return GO_LATER;
	}
	req->owns_fd = false;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return fd;
}

/*
 * A FIFO must not block the thread until its other end is opened, and nothing tells when that is.
 * So it is opened with O_NONBLOCK, which is cleared at once, and tried again if it has to wait. The
 * kernel's ring does not wait either, unless IOSQE_ASYNC, O_CREAT or O_TRUNC asks for it.
 */
static int open_work(req_t *req)
{
	struct how how = *(struct how *)req->parameters;
	const char *path = (const char *)((struct how *)req->parameters + 1);
	unsigned flags = (unsigned)how.flags;
	bool waits = req->sqe.flags & IOSQE_ASYNC || flags & (O_CREAT | O_TRUNC);
	int fd;

	if (req->owns_fd)
		return open_finish(req, req->kept_fd, waits, flags);
	if (flags & (O_PATH | O_DIRECTORY | O_NONBLOCK) ||
	    (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return open_call(req, path, &how);
	how.flags |= O_NONBLOCK;
	fd = open_call(req, path, &how);
	if (fd >= 0)
		return open_finish(req, fd, waits, flags);
	if (fd == -ENXIO && waits && path_is_fifo(req->sqe.fd, path))
		return GO_LATER;
	if (fd == -EWOULDBLOCK && !path_is_fifo(req->sqe.fd, path)) {
		how.flags = flags; /* somebody's lease of the file must be broken first */
		fd = open_call(req, path, &how);
	}
	return fd;
}

static int close_prepare(req_t *req)
{
	return req->sqe.file_index && req->sqe.fd ? -EINVAL : 0;
}

/* The last close of a file may write to a server; that of anything else does not block. */
static int close_attempt(req_t *req)
{
	file_t file;

	if (file_ask(req->sqe.fd, &file) == 0 && file_blocks(&file))
		return GO_THREAD;
	return result_of(syscall(SYS_close, req->sqe.fd));
}

static int close_work(req_t *req) { return result_of(syscall(SYS_close, req->sqe.fd)); }

/* ---- Paths ---- */

/* One path, at sqe->addr; STATX may have none. */
static int path_prepare(req_t *req)
{
	const char *path = pointer_of(req->sqe.addr);
	size_t size;

	if (req->sqe.opcode == IORING_OP_UNLINKAT &&
	    req->sqe.unlink_flags & ~(unsigned)AT_REMOVEDIR)
		return -EINVAL;
	if (!path)
		return 0;
	size = strlen(path) + 1;
	if (!req_space(req, size))
		return NO_MEMORY;
	memcpy(req->parameters, path, size);
	return 0;
}

/* Two, the second at sqe->addr2. It is req->message.msg_name then. */
static int paths_prepare(req_t *req)
{
	const char *old = pointer_of(req->sqe.addr), *new = pointer_of(req->sqe.addr2);
	size_t n_old = strlen(old) + 1, n_new = strlen(new) + 1;
	char *space = req_space(req, n_old + n_new);

	if (!space)
		return NO_MEMORY;
	memcpy(space, old, n_old);
	req->message.msg_name = memcpy(space + n_old, new, n_new);
	return 0;
}

static struct statx_timestamp statx_time(const struct timespec *time)
{
	return (struct statx_timestamp){.tv_sec = time->tv_sec, .tv_nsec = (unsigned)time->tv_nsec};
}

/* Without statx(2), which some old filters refuse: what stat knows. */
static int statx_by_stat(const req_t *req, struct statx *to)
{
	const int known = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
	int flags = (int)req->sqe.statx_flags & known;
	struct stat stat;

	if (fstatat(req->sqe.fd, req->parameters, &stat, flags) < 0)
		return -errno;
	*to = (struct statx){
		.stx_mask = STATX_BASIC_STATS,
		.stx_blksize = (unsigned)stat.st_blksize,
		.stx_nlink = (unsigned)stat.st_nlink,
		.stx_uid = stat.st_uid,
		.stx_gid = stat.st_gid,
		.stx_mode = (uint16_t)stat.st_mode,
		.stx_ino = stat.st_ino,
		.stx_size = (uint64_t)stat.st_size,
		.stx_blocks = (uint64_t)stat.st_blocks,
		.stx_atime = statx_time(&stat.st_atim),
		.stx_ctime = statx_time(&stat.st_ctim),
		.stx_mtime = statx_time(&stat.st_mtim),
		.stx_rdev_major = major(stat.st_rdev),
		.stx_rdev_minor = minor(stat.st_rdev),
		.stx_dev_major = major(stat.st_dev),
		.stx_dev_minor = minor(stat.st_dev),
	};
	return 0;
}

static int statx_work(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	int ret = result_of(syscall(SYS_statx, sqe->fd, req->parameters, sqe->statx_flags, sqe->len,
				    pointer_of(sqe->off)));

	return call_is_missing(-ret) ? statx_by_stat(req, pointer_of(sqe->off)) : ret;
}

static int unlinkat_work(req_t *req)
{
	return result_of(unlinkat(req->sqe.fd, req->parameters, (int)req->sqe.unlink_flags));
}

static int mkdirat_work(req_t *req)
{
	return result_of(mkdirat(req->sqe.fd, req->parameters, (mode_t)req->sqe.len));
}

static int renameat_work(req_t *req)
{
	return result_of(syscall(SYS_renameat2, req->sqe.fd, req->parameters, (int)req->sqe.len,
				 req->message.msg_name, req->sqe.rename_flags));
}

static int symlinkat_work(req_t *req)
{
	return result_of(symlinkat(req->parameters, req->sqe.fd, req->message.msg_name));
}

static int linkat_work(req_t *req)
{
	return result_of(linkat(req->sqe.fd, req->parameters, (int)req->sqe.len,
				req->message.msg_name, (int)req->sqe.hardlink_flags));
}

/* ---- Files ---- */

static int fsync_prepare(req_t *req)
{
	return req->sqe.fsync_flags & ~IORING_FSYNC_DATASYNC ? -EINVAL : 0;
}

static int fsync_work(req_t *req)
{
	return result_of(req->sqe.fsync_flags ? fdatasync(req->sqe.fd) : fsync(req->sqe.fd));
}

static int fallocate_work(req_t *req)
{
	return result_of(fallocate(req->sqe.fd, (int)req->sqe.len, (off_t)req->sqe.off,
				   (off_t)req->sqe.addr));
}

static int ftruncate_work(req_t *req)
{
	return result_of(ftruncate(req->sqe.fd, (off_t)req->sqe.off));
}

static int fadvise_work(req_t *req)
{
	off_t size = (off_t)(req->sqe.addr ? req->sqe.addr : req->sqe.len);

	return -posix_fadvise(req->sqe.fd, (off_t)req->sqe.off, size, (int)req->sqe.fadvise_advice);
}

static int madvise_work(req_t *req)
{
	size_t size = (size_t)(req->sqe.off ? req->sqe.off : req->sqe.len);

	return result_of(madvise(pointer_of(req->sqe.addr), size, (int)req->sqe.fadvise_advice));
}

static int sync_range_work(req_t *req)
{
	return result_of(sync_file_range(req->sqe.fd, (off_t)req->sqe.off, (off_t)req->sqe.len,
					 req->sqe.sync_range_flags));
}

/* ---- SPLICE, TEE ---- */

static int splice_prepare(req_t *req)
{
	const unsigned known = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT |
			       SPLICE_F_FD_IN_FIXED;

	req->n_wanted = req->sqe.len;
	if (req->sqe.opcode == IORING_OP_TEE && (req->sqe.off || req->sqe.splice_off_in))
		return -EINVAL;
	if (req->sqe.splice_flags & ~known)
		return -EINVAL;
	return 0;
}

static long splice_call(const req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	off_t off_in = (off_t)sqe->splice_off_in, off_out = (off_t)sqe->off;
	unsigned flags = (sqe->splice_flags & ~SPLICE_F_FD_IN_FIXED) | SPLICE_F_NONBLOCK;

	if (sqe->opcode == IORING_OP_TEE)
		return tee(sqe->splice_fd_in, sqe->fd, sqe->len, flags);
	return splice(sqe->splice_fd_in, off_in == -1 ? NULL : &off_in, sqe->fd,
		      off_out == -1 ? NULL : &off_out, sqe->len, flags);
}

/* Both sides are ready, and are made not to block. On a thread if one of them is a file. */
static int splice_work(req_t *req)
{
	int in = req->sqe.splice_fd_in, out = req->sqe.fd, ret;
	flicker_t at_in, at_out;
	bool nowait = req->sqe.splice_flags & SPLICE_F_NONBLOCK;

	if (!req->sqe.len)
		return 0;
	if (!ready_bits(in, POLLIN))
		return nowait ? -EAGAIN : wait_for(req, in, POLLIN);
	if (!ready_bits(out, POLLOUT))
		return nowait ? -EAGAIN : wait_for(req, out, POLLOUT);
	nonblock_set(&at_in, in);
	nonblock_set(&at_out, out);
	ret = result_of(splice_call(req));
	nonblock_restore(&at_out);
	nonblock_restore(&at_in);
	return ret == -EAGAIN && !nowait ? GO_LATER : ret;
}

static int splice_attempt(req_t *req)
{
	file_t in, out;

	if (file_ask(req->sqe.fd, &out) < 0 || file_ask(req->sqe.splice_fd_in, &in) < 0)
		return -EBADF;
	return file_blocks(&in) || file_blocks(&out) ? GO_THREAD : splice_work(req);
}

/* ---- FSETXATTR, SETXATTR, FGETXATTR, GETXATTR ---- */

static bool xattr_sets(const req_t *req)
{
	return req->sqe.opcode == IORING_OP_FSETXATTR || req->sqe.opcode == IORING_OP_SETXATTR;
}

static bool xattr_has_path(const req_t *req)
{
	return req->sqe.opcode == IORING_OP_SETXATTR || req->sqe.opcode == IORING_OP_GETXATTR;
}

/* Its name, its path, and the value that is to be set. */
static int xattr_prepare(req_t *req)
{
	const char *name = pointer_of(req->sqe.addr);
	const char *path = xattr_has_path(req) ? pointer_of(req->sqe.addr3) : "";
	size_t n_name = strlen(name) + 1, n_path = strlen(path) + 1;
	size_t n_value = xattr_sets(req) ? req->sqe.len : 0;
	char *space;

	if (req->sqe.xattr_flags && !xattr_sets(req))
		return -EINVAL;
	if (n_value > XATTR_SIZE_MAX)
		return -E2BIG;
	space = req_space(req, n_name + n_path + n_value);
	if (!space)
		return NO_MEMORY;
	memcpy(space, name, n_name);
	req->message.msg_name = memcpy(space + n_name, path, n_path);
	req->message.msg_control = space + n_name + n_path;
	if (n_value)
		memcpy(space + n_name + n_path, pointer_of(req->sqe.addr2), n_value);
	return 0;
}

static int xattr_work(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	const char *name = req->parameters, *path = req->message.msg_name;

	switch (sqe->opcode) {
	case IORING_OP_FSETXATTR:
		return result_of(fsetxattr(sqe->fd, name, req->message.msg_control, sqe->len,
					   (int)sqe->xattr_flags));
	case IORING_OP_SETXATTR:
		return result_of(setxattr(path, name, req->message.msg_control, sqe->len,
					  (int)sqe->xattr_flags));
	case IORING_OP_FGETXATTR:
		return result_of(fgetxattr(sqe->fd, name, pointer_of(sqe->addr2), sqe->len));
	default:
		return result_of(getxattr(path, name, pointer_of(sqe->addr2), sqe->len));
	}
}

/* ---- WAITID, EPOLL_WAIT ---- */

static int waitid_prepare(req_t *req)
{
	const unsigned known = WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT |
			       __WNOTHREAD | __WCLONE | __WALL;

	return req->sqe.rw_flags || req->sqe.file_index & ~known ? -EINVAL : 0;
}

/* The end of one process makes its pidfd readable (5.3); nothing tells of other changes. */
static int waitid_attempt(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	unsigned options = sqe->file_index;
	siginfo_t info = {0};

	if (waitid((idtype_t)sqe->len, (id_t)sqe->fd, &info, (int)(options | WNOHANG)) < 0)
		return -errno;
	if (info.si_pid || options & WNOHANG) {
		if (sqe->addr2)
			memcpy(pointer_of(sqe->addr2), &info, sizeof(info));
		return 0;
	}
	if (sqe->len != P_PID || options & (WSTOPPED | WCONTINUED))
		return GO_LATER;
	if (!req->owns_fd) {
		req->kept_fd = (int)syscall(SYS_pidfd_open, sqe->fd, 0);
		req->owns_fd = req->kept_fd >= 0;
	}
	return req->owns_fd ? wait_for(req, req->kept_fd, POLLIN) : GO_LATER;
}

static int epoll_wait_attempt(req_t *req)
{
	int n = result_of(epoll_wait(req->sqe.fd, pointer_of(req->sqe.addr), (int)req->sqe.len, 0));

	return n ? n : wait_for(req, req->sqe.fd, POLLIN);
}

/* ---- Timeouts and cancels: checks only, the rest needs the engine ---- */

static int time_copy(req_t *req, uint64_t address)
{
	const struct __kernel_timespec *time = pointer_of(address);

	if (time->tv_sec < 0 || time->tv_nsec < 0)
		return -EINVAL;
	req->ns = ns_of(time->tv_sec, time->tv_nsec);
	return 0;
}

static int timeout_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	const unsigned known = IORING_TIMEOUT_ABS | IORING_TIMEOUT_CLOCK_MASK |
			       IORING_TIMEOUT_ETIME_SUCCESS | TIMEOUT_MULTISHOT;
	unsigned flags = sqe->timeout_flags;
	bool is_limit = sqe->opcode == IORING_OP_LINK_TIMEOUT;

	req->multishot = flags & TIMEOUT_MULTISHOT;
	req->left = sqe->off;
	if (sqe->len != 1 || flags & ~known || (is_limit && (sqe->off || req->multishot)) ||
	    (flags & IORING_TIMEOUT_CLOCK_MASK) == IORING_TIMEOUT_CLOCK_MASK ||
	    (req->multishot && flags & IORING_TIMEOUT_ABS))
		return -EINVAL;
	return time_copy(req, sqe->addr);
}

static int timeout_remove_prepare(req_t *req)
{
	unsigned flags = req->sqe.timeout_flags;
	const unsigned known = IORING_TIMEOUT_UPDATE_MASK | IORING_TIMEOUT_ABS |
			       IORING_TIMEOUT_CLOCK_MASK;

	if (!(flags & IORING_TIMEOUT_UPDATE_MASK))
		return flags ? -EINVAL : 0;
	if (flags & ~known || (flags & IORING_TIMEOUT_CLOCK_MASK) == IORING_TIMEOUT_CLOCK_MASK)
		return -EINVAL;
	return time_copy(req, req->sqe.addr2);
}

static int cancel_prepare(req_t *req)
{
	const unsigned flags = req->sqe.cancel_flags;
	const unsigned known = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_FD |
			       IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_FD_FIXED |
			       CANCEL_USERDATA | CANCEL_OP;

	if (flags & ~known || (flags & IORING_ASYNC_CANCEL_ANY &&
			       flags & (IORING_ASYNC_CANCEL_FD | CANCEL_OP)))
		return -EINVAL;
	return 0;
}

static int poll_remove_prepare(req_t *req)
{
	const struct io_uring_sqe *sqe = &req->sqe;
	unsigned updates = IORING_POLL_UPDATE_EVENTS | IORING_POLL_UPDATE_USER_DATA;

	if (sqe->len & ~(updates | IORING_POLL_ADD_MULTI) || sqe->len == IORING_POLL_ADD_MULTI ||
	    (!(sqe->len & IORING_POLL_UPDATE_USER_DATA) && sqe->off) ||
	    (!(sqe->len & IORING_POLL_UPDATE_EVENTS) && sqe->poll32_events))
		return -EINVAL;
	return 0;
}

/* ---- The table ---- */

/* SQE fields that an opcode does not use must be zero. */
enum { OFF = 1, ADDR = 2, LEN = 4, FLAGS = 8, BUF = 16, INDEX = 32, FD = 64 };

/* What else holds for an opcode. */
enum {
	PRIO = 1,      /* it uses ioprio */
	FILE_OP = 2,   /* sqe->fd is a descriptor that it works on */
	SELECT = 4,    /* it could take a provided buffer */
	SHORT = 8,     /* less than was asked for breaks its link */
	ORDERED = 16,  /* changes of one file are made one after another */
	ENGINE = 32,   /* the engine's own */
	REGISTERED = 64, /* its buffer is a part of a registered one */
	DIRECT = 128,  /* its result can go into the file table */
};

typedef struct op_t { /* [open] */
	int (*prepare)(req_t *req);
	int (*attempt)(req_t *req);
	int (*work)(req_t *req);
	unsigned char zero, traits;
} op_t;

static const op_t ops[OP_END] = {
	[IORING_OP_NOP] = {NULL, nop_attempt, NULL, FLAGS, 0},
	[IORING_OP_READ] = {rw_prepare, rw_attempt, rw_work, 0, PRIO | FILE_OP | SELECT | SHORT},
	[IORING_OP_READV] = {rw_prepare, rw_attempt, rw_work, 0, PRIO | FILE_OP | SELECT | SHORT},
	[IORING_OP_WRITE] = {rw_prepare, rw_attempt, rw_work, 0, PRIO | FILE_OP | SHORT | ORDERED},
	[IORING_OP_WRITEV] = {rw_prepare, rw_attempt, rw_work, 0, PRIO | FILE_OP | SHORT | ORDERED},
	[IORING_OP_READ_FIXED] = {rw_prepare, rw_attempt, rw_work, 0,
				  PRIO | FILE_OP | SHORT | REGISTERED},
	[IORING_OP_WRITE_FIXED] = {rw_prepare, rw_attempt, rw_work, 0,
				   PRIO | FILE_OP | SHORT | ORDERED | REGISTERED},
	[IORING_OP_SEND] = {msg_prepare, msg_attempt, NULL, 0, PRIO | FILE_OP},
	[IORING_OP_RECV] = {msg_prepare, msg_attempt, NULL, 0, PRIO | FILE_OP | SELECT},
	[IORING_OP_SENDMSG] = {msg_prepare, msg_attempt, NULL, OFF | INDEX, PRIO | FILE_OP},
	[IORING_OP_SEND_ZC] = {msg_prepare, msg_attempt, NULL, 0, PRIO | FILE_OP},
	[IORING_OP_SENDMSG_ZC] = {msg_prepare, msg_attempt, NULL, OFF | INDEX, PRIO | FILE_OP},
	[OP_READ_MULTISHOT] = {rw_prepare, rw_attempt, rw_work, 0, PRIO | FILE_OP | SELECT},
	[IORING_OP_PROVIDE_BUFFERS] = {NULL, NULL, NULL, FLAGS | INDEX, ENGINE},
	[IORING_OP_REMOVE_BUFFERS] = {NULL, NULL, NULL, OFF | ADDR | LEN | FLAGS | INDEX, ENGINE},
	[IORING_OP_FSETXATTR] = {xattr_prepare, NULL, xattr_work, BUF | INDEX, FILE_OP},
	[IORING_OP_SETXATTR] = {xattr_prepare, NULL, xattr_work, BUF | INDEX, 0},
	[IORING_OP_FGETXATTR] = {xattr_prepare, NULL, xattr_work, BUF | INDEX, FILE_OP},
	[IORING_OP_GETXATTR] = {xattr_prepare, NULL, xattr_work, BUF | INDEX, 0},
	[OP_WAITID] = {waitid_prepare, waitid_attempt, NULL, ADDR | BUF, 0},
	[OP_EPOLL_WAIT] = {NULL, epoll_wait_attempt, NULL, OFF | FLAGS | BUF | INDEX, FILE_OP},
	[IORING_OP_RECVMSG] = {msg_prepare, msg_attempt, NULL, OFF | INDEX,
			       PRIO | FILE_OP | SELECT},
	[IORING_OP_ACCEPT] = {accept_prepare, accept_attempt, NULL, LEN | BUF,
			      PRIO | FILE_OP | DIRECT},
	[IORING_OP_FILES_UPDATE] = {NULL, NULL, NULL, FLAGS | BUF | INDEX, ENGINE},
	[IORING_OP_CONNECT] = {address_prepare, connect_attempt, NULL, LEN | FLAGS | BUF | INDEX,
			       FILE_OP},
	[OP_BIND] = {address_prepare, bind_attempt, NULL, LEN | FLAGS | BUF | INDEX, FILE_OP},
	[OP_LISTEN] = {NULL, listen_attempt, NULL, OFF | ADDR | FLAGS | BUF | INDEX, FILE_OP},
	[IORING_OP_SHUTDOWN] = {NULL, shutdown_attempt, NULL, OFF | ADDR | FLAGS | BUF | INDEX,
				FILE_OP},
	[IORING_OP_SOCKET] = {socket_prepare, socket_attempt, NULL, ADDR | FLAGS | BUF, DIRECT},
	[OP_PIPE] = {pipe_prepare, pipe_attempt, NULL, FD | OFF, DIRECT},
	[IORING_OP_POLL_ADD] = {poll_prepare, poll_attempt, NULL, OFF | ADDR | BUF, FILE_OP},
	[IORING_OP_POLL_REMOVE] = {poll_remove_prepare, NULL, NULL, BUF | INDEX, ENGINE},
	[IORING_OP_EPOLL_CTL] = {epoll_ctl_prepare, epoll_ctl_attempt, NULL, BUF | INDEX, 0},
	[IORING_OP_TIMEOUT] = {timeout_prepare, NULL, NULL, BUF | INDEX, ENGINE},
	[IORING_OP_LINK_TIMEOUT] = {timeout_prepare, NULL, NULL, BUF | INDEX, ENGINE},
	[IORING_OP_TIMEOUT_REMOVE] = {timeout_remove_prepare, NULL, NULL, LEN | BUF | INDEX,
				      ENGINE},
	[IORING_OP_ASYNC_CANCEL] = {cancel_prepare, NULL, NULL, OFF | INDEX, ENGINE},
	[IORING_OP_OPENAT] = {open_prepare, NULL, open_work, BUF, DIRECT},
	[IORING_OP_OPENAT2] = {open_prepare, NULL, open_work, BUF, DIRECT},
	[IORING_OP_CLOSE] = {close_prepare, close_attempt, close_work,
			     OFF | ADDR | LEN | FLAGS | BUF, 0},
	[IORING_OP_STATX] = {path_prepare, NULL, statx_work, BUF | INDEX, 0},
	[IORING_OP_UNLINKAT] = {path_prepare, NULL, unlinkat_work, OFF | LEN | BUF | INDEX, 0},
	[IORING_OP_MKDIRAT] = {path_prepare, NULL, mkdirat_work, OFF | FLAGS | BUF | INDEX, 0},
	[IORING_OP_RENAMEAT] = {paths_prepare, NULL, renameat_work, BUF | INDEX, 0},
	[IORING_OP_SYMLINKAT] = {paths_prepare, NULL, symlinkat_work, LEN | FLAGS | BUF | INDEX, 0},
	[IORING_OP_LINKAT] = {paths_prepare, NULL, linkat_work, BUF | INDEX, 0},
	[IORING_OP_FSYNC] = {fsync_prepare, NULL, fsync_work, ADDR | BUF | INDEX, FILE_OP},
	[IORING_OP_FALLOCATE] = {NULL, NULL, fallocate_work, FLAGS | BUF | INDEX,
				 FILE_OP | ORDERED},
	[OP_FTRUNCATE] = {NULL, NULL, ftruncate_work, ADDR | LEN | FLAGS | BUF | INDEX,
			  FILE_OP | ORDERED},
	[IORING_OP_FADVISE] = {NULL, NULL, fadvise_work, BUF | INDEX, FILE_OP},
	[IORING_OP_MADVISE] = {NULL, NULL, madvise_work, BUF | INDEX, 0},
	[IORING_OP_SYNC_FILE_RANGE] = {NULL, NULL, sync_range_work, ADDR | BUF | INDEX, FILE_OP},
	[IORING_OP_SPLICE] = {splice_prepare, splice_attempt, splice_work, BUF, FILE_OP | SHORT},
	[IORING_OP_TEE] = {splice_prepare, splice_attempt, splice_work, BUF, FILE_OP | SHORT},
};

/* NULL: not known. */
static const op_t *op_of(const req_t *req)
{
	const op_t *op = &ops[req->sqe.opcode < OP_END ? req->sqe.opcode : 0];

	return req->sqe.opcode < OP_END && (op->attempt || op->work || op->traits) ? op : NULL;
}

static bool op_is_known(unsigned opcode)
{
	return opcode < OP_END && (ops[opcode].attempt || ops[opcode].work || ops[opcode].traits);
}

static unsigned sqe_used(const struct io_uring_sqe *sqe)
{
	return (sqe->off ? OFF : 0u) | (sqe->addr ? ADDR : 0u) | (sqe->len ? LEN : 0u) |
	       (sqe->rw_flags ? FLAGS : 0u) | (sqe->buf_index ? BUF : 0u) |
	       (sqe->file_index ? INDEX : 0u) | (sqe->fd ? FD : 0u);
}

/* 0, an error that the whole chain fails for, or NO_MEMORY. refused: by the ring's restrictions. */
static int op_prepare(req_t *req, bool refused)
{
	const unsigned known = IOSQE_FIXED_FILE | IOSQE_IO_LINK | IOSQE_IO_HARDLINK | IOSQE_ASYNC |
			       IOSQE_BUFFER_SELECT;
	const op_t *op = op_of(req);

	if (!op || req->sqe.flags & ~known)
		return -EINVAL;
	if (refused)
		return -EACCES;
	if (req->sqe.personality ||
	    sqe_used(&req->sqe) & op->zero || (req->sqe.ioprio && !(op->traits & PRIO)))
		return -EINVAL;
	if (req->sqe.flags & IOSQE_BUFFER_SELECT && !(op->traits & SELECT))
		return -EOPNOTSUPP;
	return op->prepare ? op->prepare(req) : 0;
}

/* True if this result breaks a link. */
static bool op_failed(const req_t *req, int result)
{
	if (req->sqe.opcode == IORING_OP_TIMEOUT && result == -ETIME)
		return !(req->sqe.timeout_flags & IORING_TIMEOUT_ETIME_SUCCESS);
	if (result < 0)
		return true;
	if (ops[req->sqe.opcode].prepare == msg_prepare)
		return req->sqe.msg_flags & MSG_WAITALL && (uint64_t)result < req->n_wanted;
	return ops[req->sqe.opcode].traits & SHORT && (uint64_t)result != req->n_wanted;
}

/*
 * ==== restrictions ==============================================================================
 *
 * IORING_REGISTER_RESTRICTIONS: what a ring refuses once it is enabled, with -EACCES.
 */

typedef struct restrictions_t {
	bool given, in_force;
	uint64_t opcodes, register_opcodes; /* allowed: a bit for each */
	unsigned flags, required_flags;     /* of an SQE */
} restrictions_t;

static bool restrictions_add(restrictions_t *allow, const struct io_uring_restriction *item)
{
	switch (item->opcode) {
	case IORING_RESTRICTION_REGISTER_OP:
		allow->register_opcodes |= UINT64_C(1) << (item->register_op & 63);
		return item->register_op < 64;
	case IORING_RESTRICTION_SQE_OP:
		allow->opcodes |= UINT64_C(1) << (item->sqe_op & 63);
		return item->sqe_op < OP_END;
	case IORING_RESTRICTION_SQE_FLAGS_ALLOWED:
		allow->flags = item->sqe_flags;
		return true;
	case IORING_RESTRICTION_SQE_FLAGS_REQUIRED:
		allow->required_flags = item->sqe_flags;
		return true;
	default:
		return false;
	}
}

/* 0, -EBUSY or -EINVAL. */
static int restrictions_set(restrictions_t *restrictions, const struct io_uring_restriction *items,
			    unsigned n)
{
	restrictions_t fresh = {.given = true};

	if (restrictions->given)
		return -EBUSY;
	for (unsigned i = 0; i < n; i++)
		if (!restrictions_add(&fresh, &items[i]))
			return -EINVAL;
	*restrictions = fresh;
	return 0;
}

static void restrictions_enforce(restrictions_t *restrictions)
{
	restrictions->in_force = restrictions->given;
}

static bool restrictions_refuse(const restrictions_t *restrictions, const struct io_uring_sqe *sqe)
{
	unsigned required = restrictions->required_flags;

	return restrictions->in_force &&
	       (sqe->opcode >= OP_END || !(restrictions->opcodes >> sqe->opcode & 1) ||
		(sqe->flags & required) != required ||
		sqe->flags & ~(restrictions->flags | required));
}

static bool restrictions_refuse_register(const restrictions_t *restrictions, unsigned opcode)
{
	return restrictions->in_force &&
	       (opcode >= 64 || !(restrictions->register_opcodes >> opcode & 1));
}

/*
 * ==== engine ====================================================================================
 *
 * The whole. Here: pending requests, their ends and their chains.
 *
 * Two lists keep all calls flat: `started` holds requests to be attempted, which a chain's next
 * member is put on; `ended` holds cancelled ones, whose CQEs come behind that of the cancel.
 */

typedef struct engine_t { /* [open] to the rooms below */
	unsigned sq_head, sq_tail, sq_flags, n_dropped; /* sq_head first: io->sq.khead finds it */
	unsigned sq_mask, n_sq;
	unsigned *array;
	struct io_uring_sqe *sqes;
	bool disabled;
	restrictions_t restrictions;
	tables_t tables;
	groups_t groups;
	pid_t process;
	uint64_t n_completed; /* CQEs, those of timeouts not counted */
	node_t pending, started, ended, counted;
	cq_t cq;
	waits_t waits;
	timers_t timers;
	pool_t pool;
	reqs_t reqs;
	lines_t keys, inodes, files;
	req_t *chain, *chain_end; /* being submitted */
	bool chain_is_bad;
} engine_t;

enum { EVENT_BELL = -1, EVENT_TIMER = -2 }; /* instead of a descriptor */

static req_t *req_of(node_t *node) { return container_of(node, req_t, node); }

/* The last CQE. */
static void req_post(engine_t *engine, req_t *req, int result)
{
	list_remove(&req->node);
	engine->n_completed += req->sqe.opcode != IORING_OP_TIMEOUT;
	if (cq_post(&engine->cq, &req->late, req->sqe.user_data, result, req->cqe_flags))
		req_free(&engine->reqs, req);
	else
		req_clear(req);
}

/* A zero-copy send has two: its result, then the notice that its buffer is free. */
static int req_post_first(engine_t *engine, req_t *req, int result)
{
	cq_post(&engine->cq, &req->late_first, req->sqe.user_data, result, IORING_CQE_F_MORE);
	req->cqe_flags = IORING_CQE_F_NOTIF;
	return req->sqe.ioprio & SEND_ZC_REPORT_USAGE && result >= 0 ? (int)NOTIF_USAGE_ZC_COPIED :
								       0;
}

/* One more CQE. False, and nothing done, if the CQ is full: then this must be the last one. */
static bool req_post_more(engine_t *engine, const req_t *req, int result)
{
	if (!cq_post(&engine->cq, NULL, req->sqe.user_data, result,
		     IORING_CQE_F_MORE | req->cqe_flags))
		return false;
	engine->n_completed += req->sqe.opcode != IORING_OP_TIMEOUT;
	return true;
}

/* The time that a timeout means. Relative ones never jump with the wall clock. */
static uint64_t req_due_ns(const req_t *req, unsigned *clock)
{
	unsigned flags = req->sqe.timeout_flags;

	*clock = flags & IORING_TIMEOUT_BOOTTIME ? BOOTTIME : MONOTONIC;
	if (flags & IORING_TIMEOUT_ABS && flags & IORING_TIMEOUT_REALTIME)
		*clock = REALTIME;
	return flags & IORING_TIMEOUT_ABS ? req->ns : sum_u64(clock_ns(clock_ids[*clock]), req->ns);
}

static int req_set_timer(engine_t *engine, req_t *req)
{
	unsigned clock;
	uint64_t at_ns = req_due_ns(req, &clock);
	int ret = timers_need(&engine->timers, clock);

	if (ret < 0 && req->sqe.opcode == IORING_OP_LINK_TIMEOUT) { /* it must not be lost */
		uint64_t now_ns = clock_ns(clock_ids[clock]);

		at_ns = at_ns > now_ns ? at_ns - now_ns : 0;
		at_ns = sum_u64(clock_ns(CLOCK_MONOTONIC), at_ns);
		clock = MONOTONIC;
		ret = 0;
	}
	if (ret == 0)
		timers_start(&engine->timers, &req->due, clock, at_ns);
	return ret;
}

/* It waits for something now. The time of a linked timeout starts with the first wait. */
static void req_pend(engine_t *engine, req_t *req, int state)
{
	if (!line_joined(&req->by_key)) {
		list_add(&engine->pending, &req->node);
		lines_join(&engine->keys, &req->by_key, req->sqe.user_data, 0);
		if (req->limit && !due_is_set(&req->limit->due))
			req_set_timer(engine, req->limit);
	}
	req->state = state;
}

static int job_work(job_t *job)
{
	req_t *req = container_of(job, req_t, job);

	return ops[req->sqe.opcode].work(req);
}

/*
 * Choose a provided buffer for it, if it wants one. 0, or -ENOBUFS; GO_WAIT: one that has received
 * misses a buffer only when there is something to receive.
 */
static int req_select(engine_t *engine, req_t *req)
{
	bool has_received = req->cqe_flags;
	uint64_t size;

	if (!(req->sqe.flags & IOSQE_BUFFER_SELECT))
		return 0;
	req->cqe_flags = 0;
	if (groups_select(&engine->groups, req->sqe.buf_group, &req->buffer) < 0)
		return has_received && !ready_bits(req->sqe.fd, POLLIN) ?
			       wait_for(req, req->sqe.fd, POLLIN) : -ENOBUFS;
	size = req->n_asked ? min_u64(req->n_asked, req->buffer.size) : req->buffer.size;
	req->one = (struct iovec){pointer_of(req->buffer.address), (size_t)size};
	req->iov = &req->one;
	req->n_iov = 1;
	req->n_wanted = size;
	req->n_done = 0;
	return 0;
}

/* The buffer that was chosen is the program's again when the CQE says so. */
static void req_consume(req_t *req)
{
	if (req->sqe.flags & IOSQE_BUFFER_SELECT)
		req->cqe_flags = IORING_CQE_F_BUFFER |
				 (unsigned)req->buffer.id << IORING_CQE_BUFFER_SHIFT;
}

/* After an attempt: the buffer that was chosen for it is used, or is the next one again. */
static void req_selected(engine_t *engine, req_t *req, int ret)
{
	if (ret > 0 || (ret == 0 && ops[req->sqe.opcode].prepare == rw_prepare))
		req_consume(req);
	else if (req->sqe.flags & IOSQE_BUFFER_SELECT)
		groups_give_back(&engine->groups, req->sqe.buf_group, &req->buffer);
}

/* From now until it ends, a CLOSE of its descriptor waits: the number would be another file's. */
static void req_keep_file(engine_t *engine, req_t *req)
{
	if (ops[req->sqe.opcode].traits & FILE_OP && !line_joined(&req->by_file))
		lines_join(&engine->files, &req->by_file, (unsigned)req->sqe.fd, 0);
}

/* A buffer that a thread may write to is used up, whatever comes of it. */
static void req_use_thread(engine_t *engine, req_t *req)
{
	req->result = req_select(engine, req);
	if (req->result) {
		list_remove(&req->node);
		list_add(&engine->ended, &req->node);
		return;
	}
	req_consume(req);
	req_keep_file(engine, req);
	pool_add(&engine->pool, &req->job, job_work);
	req_pend(engine, req, POOLED);
}

/* It needs its descriptor no more: a CLOSE may be next. */
static void req_leave_file(engine_t *engine, req_t *req)
{
	line_t *heir = line_joined(&req->by_file) ? lines_leave(&engine->files, &req->by_file) :
						    NULL;

	if (heir && container_of(heir, req_t, by_file)->sqe.opcode == IORING_OP_CLOSE)
		req_use_thread(engine, container_of(heir, req_t, by_file));
}

/* It leaves the line of its inode: the next one's turn. */
static void req_leave_inode(engine_t *engine, req_t *req)
{
	line_t *heir;

	if (!line_joined(&req->by_inode))
		return;
	heir = lines_leave(&engine->inodes, &req->by_inode);
	if (heir)
		req_use_thread(engine, container_of(heir, req_t, by_inode));
}

/* It waits for nothing any more; no thread has it. */
static void req_unwait(engine_t *engine, req_t *req)
{
	if (line_joined(&req->by_fd))
		waits_remove(&engine->waits, &req->by_fd);
	timers_stop(&engine->timers, &req->due);
	list_remove(&req->counted);
	req->state = NOT_PENDING;
}

static void req_unpend(engine_t *engine, req_t *req)
{
	req_unwait(engine, req);
	req_leave_inode(engine, req);
	req_leave_file(engine, req);
	if (line_joined(&req->by_key))
		lines_leave(&engine->keys, &req->by_key);
	list_remove(&req->node);
}

/* One that never started ends, with its linked timeout. */
static void req_drop(engine_t *engine, req_t *req, int result)
{
	req_t *limit = req->limit;

	req_post(engine, req, result);
	if (limit) {
		timers_stop(&engine->timers, &limit->due);
		req_post(engine, limit, limit->result ? limit->result : -ECANCELED);
	}
}

/* It ends, and its chain goes on or breaks. */
static void req_finish(engine_t *engine, req_t *req, int result)
{
	bool breaks = op_failed(req, result) && !(req->sqe.flags & IOSQE_IO_HARDLINK);
	req_t *next = req->next;

	req_unpend(engine, req);
	if (msg_is_zero_copy(req) && req->begun)
		result = req_post_first(engine, req, result);
	req_drop(engine, req, result);
	if (next && !breaks)
		list_add(&engine->started, &next->node);
	while (next && breaks) {
		req_t *dropped = next;

		next = next->next;
		req_drop(engine, dropped, -ECANCELED);
	}
}

/* What a request has come to when it is cancelled. */
static int req_cancelled(const req_t *req) { return req->n_done ? (int)req->n_done : -ECANCELED; }

/* Ask a pending request to end. 0: it will. -EALREADY: when the thread is done with it. */
static int req_cancel(engine_t *engine, req_t *req)
{
	if (req->state == POOLED && !pool_withdraw(&engine->pool, &req->job)) {
		req->cancelled = true;
		return -EALREADY;
	}
	req_unpend(engine, req);
	req->result = req_cancelled(req);
	list_add(&engine->ended, &req->node);
	return 0;
}

/* The pending request with this user_data and opcode, or NULL. */
static req_t *engine_find(const engine_t *engine, uint64_t user_data, unsigned opcode)
{
	line_t *first = lines_find(&engine->keys, user_data, 0), *line = first;

	if (!first)
		return NULL;
	do {
		req_t *req = container_of(line, req_t, by_key);

		if (req->sqe.opcode == opcode)
			return req;
	} while ((line = line_next(line)) != first);
	return NULL;
}

/* Memory for n requests in all. 0 or -ENOMEM. */
static int engine_reserve(engine_t *engine, size_t n)
{
	size_t n_there = reqs_size(&engine->reqs), size = n_there ? n_there : 64;

	while (size < n)
		size *= 2;
	if (size == n_there)
		return 0;
	if (lines_grow(&engine->keys, size) < 0 || lines_grow(&engine->inodes, size) < 0 ||
	    lines_grow(&engine->files, size) < 0 || waits_grow(&engine->waits, size) < 0)
		return -ENOMEM;
	return reqs_grow(&engine->reqs, size - n_there);
}

/* A request's memory, or NULL. */
static req_t *engine_new_req(engine_t *engine)
{
	if (!reqs_left(&engine->reqs) && engine_reserve(engine, reqs_size(&engine->reqs) + 1) < 0)
		return NULL;
	return req_new(&engine->reqs);
}

/*
 * ==== timeouts ==================================================================================
 *
 * TIMEOUT, LINK_TIMEOUT, TIMEOUT_REMOVE, and attempts that were put off.
 */

static int timeout_start(engine_t *engine, req_t *req)
{
	int ret = req_set_timer(engine, req);

	if (ret < 0)
		return ret;
	req_pend(engine, req, TIMED);
	if (req->left && !req->multishot) {
		req->left += engine->n_completed;
		list_add(&engine->counted, &req->counted);
	}
	return GO_WAIT;
}

/* Attempt again after 1 ms, 2 ms, ... 64 ms. */
static void later_start(engine_t *engine, req_t *req)
{
	uint64_t ns = NS_PER_MS << (req->n_later < 6 ? req->n_later : 6);

	req->n_later++;
	timers_start(&engine->timers, &req->due, MONOTONIC, clock_ns(CLOCK_MONOTONIC) + ns);
	req_pend(engine, req, TIMED);
}

/* The kernel's order: first the timeout's CQE, then the one that took too long. */
static void limit_fire(engine_t *engine, req_t *limit)
{
	req_t *req = limit->limits;
	int ret = req_cancel(engine, req);

	req->limit = NULL;
	req_post(engine, limit, ret ? ret : -ETIME);
}

static void timeout_fire(engine_t *engine, req_t *req)
{
	bool last = !req->multishot || (req->left && --req->left == 0);

	if (last || !req_post_more(engine, req, -ETIME))
		req_finish(engine, req, -ETIME);
	else
		req_set_timer(engine, req);
}

/* End the timeouts that counted enough completions. True if there was one. */
static bool timeouts_count(engine_t *engine)
{
	for (node_t *node = engine->counted.next; node != &engine->counted; node = node->next) {
		req_t *req = container_of(node, req_t, counted);

		if ((int64_t)(engine->n_completed - req->left) < 0)
			continue;
		req_finish(engine, req, 0);
		return true;
	}
	return false;
}

/* The LINK_TIMEOUT with this user_data that runs, or NULL. */
static req_t *limit_find(const engine_t *engine, uint64_t user_data)
{
	for (node_t *node = engine->pending.next; node != &engine->pending; node = node->next) {
		req_t *limit = req_of(node)->limit;

		if (limit && due_is_set(&limit->due) && limit->sqe.user_data == user_data)
			return limit;
	}
	return NULL;
}

static int timeout_remove(engine_t *engine, req_t *req)
{
	unsigned flags = req->sqe.timeout_flags;
	bool is_limit = flags & IORING_LINK_TIMEOUT_UPDATE;
	req_t *timeout = is_limit ? limit_find(engine, req->sqe.addr) :
				    engine_find(engine, req->sqe.addr, IORING_OP_TIMEOUT);
	int ret = 0;

	if (!timeout)
		return -ENOENT;
	if (!(flags & IORING_TIMEOUT_UPDATE_MASK))
		return req_cancel(engine, timeout);
	if (!is_limit && flags & IORING_TIMEOUT_ABS &&
	    timeout->sqe.timeout_flags & IORING_TIMEOUT_REALTIME)
		ret = timers_need(&engine->timers, REALTIME);
	if (ret < 0)
		return ret; /* with nothing changed */
	timers_stop(&engine->timers, &timeout->due);
	list_remove(&timeout->counted);
	timeout->ns = req->ns;
	timeout->sqe.timeout_flags &= ~IORING_TIMEOUT_ABS;
	timeout->sqe.timeout_flags |= flags & IORING_TIMEOUT_ABS;
	if (!timeout->multishot)
		timeout->left = 0;
	return req_set_timer(engine, timeout);
}

/*
 * ==== cancels ===================================================================================
 *
 * ASYNC_CANCEL and IORING_REGISTER_SYNC_CANCEL. Requests are matched by user_data, descriptor
 * number or opcode. Those that their chain has not started, and linked timeouts, never match.
 */

typedef struct match_t {
	unsigned flags;
	uint64_t user_data;
	int fd;
	unsigned opcode;
	const fixed_t *fixed; /* what `fd` is in the file table */
} match_t;

static bool match_req(const match_t *match, const req_t *req)
{
	bool by_key = !(match->flags & (IORING_ASYNC_CANCEL_FD | CANCEL_OP)) ||
		      match->flags & CANCEL_USERDATA;

	if (match->flags & IORING_ASYNC_CANCEL_ANY)
		return true;
	if (match->flags & IORING_ASYNC_CANCEL_FD &&
	    (!(ops[req->sqe.opcode].traits & FILE_OP) || req->fixed != match->fixed ||
	     (!req->fixed && req->sqe.fd != match->fd)))
		return false;
	if (match->flags & CANCEL_OP && req->sqe.opcode != match->opcode)
		return false;
	return !by_key || req->sqe.user_data == match->user_data;
}

/* By user_data alone, the usual case, without a look at all requests. */
static int cancel_by_key(engine_t *engine, const match_t *match, bool all)
{
	line_t *line = lines_find(&engine->keys, match->user_data, 0), *next;
	unsigned n = line ? line_length(line) : 0;
	int ret = 0, n_found = (int)n;

	for (; n--; line = next) {
		next = line_next(line);
		ret = req_cancel(engine, container_of(line, req_t, by_key));
		if (!all)
			return ret;
	}
	return all ? n_found : -ENOENT;
}

static int cancel_matching(engine_t *engine, match_t *match)
{
	bool by_slot = match->flags & IORING_ASYNC_CANCEL_FD_FIXED;
	bool all = match->flags & (IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY);
	const unsigned other = IORING_ASYNC_CANCEL_FD | IORING_ASYNC_CANCEL_ANY | CANCEL_OP;
	int n_found = 0;

	if (by_slot)
		match->fixed = files_at(&engine->tables, (unsigned)match->fd);
	if (match->flags & IORING_ASYNC_CANCEL_FD &&
	    (by_slot ? !match->fixed : fcntl(match->fd, F_GETFD) < 0))
		return -EBADF;
	if (!(match->flags & other))
		return cancel_by_key(engine, match, all);
	for (node_t *node = engine->pending.next, *next; node != &engine->pending; node = next) {
		int ret;

		next = node->next;
		if (!match_req(match, req_of(node)))
			continue;
		ret = req_cancel(engine, req_of(node));
		n_found++;
		if (!all)
			return ret;
	}
	return all ? n_found : -ENOENT;
}

static int cancel_start(engine_t *engine, const req_t *req)
{
	match_t match = {req->sqe.cancel_flags, req->sqe.addr, req->sqe.fd, req->sqe.len, NULL};

	return cancel_matching(engine, &match);
}

/*
 * ==== run =======================================================================================
 *
 * Requests start, wait, are attempted again, and end.
 */

/* It changes a file, or reads at its position: one after another. */
static bool req_is_ordered(const req_t *req)
{
	return ops[req->sqe.opcode].traits & ORDERED ||
	       (ops[req->sqe.opcode].attempt == rw_attempt && !req->positioned);
}

/*
 * Changes of one inode, and reads that move a file's position, are made one after another, in the
 * order of their start. True: others are before it, and it waits for its turn. Asked before an
 * attempt (`only_behind`: it does not open a line) and before a thread takes it.
 */
static bool req_line_up(engine_t *engine, req_t *req, bool only_behind)
{
	file_t file;

	if (!req_is_ordered(req) || line_joined(&req->by_inode) ||
	    (only_behind && !engine->inodes.n_lines) || file_ask(req->sqe.fd, &file) < 0 ||
	    !file_has_order(&file, ops[req->sqe.opcode].attempt == rw_attempt))
		return false;
	if (only_behind && !lines_find(&engine->inodes, file.inode, file.device))
		return false;
	if (lines_join(&engine->inodes, &req->by_inode, file.inode, file.device) == &req->by_inode)
		return false;
	req_keep_file(engine, req);
	req_pend(engine, req, LINED_UP);
	return true;
}

/* True: threads need the descriptor, and its CLOSE waits for them. Later ones do not delay it. */
static bool close_lines_up(engine_t *engine, req_t *req)
{
	if (!lines_find(&engine->files, (unsigned)req->sqe.fd, 0))
		return false;
	lines_join(&engine->files, &req->by_file, (unsigned)req->sqe.fd, 0);
	req_pend(engine, req, LINED_UP);
	return true;
}

/* An attempt says what to do. GO_WAIT: done, it waits. Else its result. */
static int req_settle(engine_t *engine, req_t *req, int ret)
{
	if (ret == GO_WAIT) {
		ret = waits_add(&engine->waits, &req->by_fd, req->wait_fd, req->wait_mask);
		if (ret == 0) {
			req_pend(engine, req, WAITING);
			return GO_WAIT;
		}
		if (ret == -EPERM && req->sqe.opcode == IORING_OP_POLL_ADD)
			return poll_file(req);
		if (ret == -EPERM && ops[req->sqe.opcode].work)
			ret = GO_THREAD;
	}
	if (ret == GO_THREAD && req->sqe.opcode == OP_READ_MULTISHOT)
		return -EBADFD;
	if (ret == GO_THREAD) {
		if (!req_line_up(engine, req, false))
			req_use_thread(engine, req);
		return GO_WAIT;
	}
	if (ret == GO_LATER) {
		later_start(engine, req);
		return GO_WAIT;
	}
	return ret;
}

/* Two direct descriptors; their slots go where the two descriptors were. */
static int req_install_pipe(engine_t *engine, const req_t *req)
{
	const bool any = req->sqe.file_index == IORING_FILE_INDEX_ALLOC;
	int *fds = pointer_of(req->sqe.addr), ret = 0;

	for (unsigned i = 0; i < 2 && ret >= 0; i++) {
		ret = files_install(&engine->tables, req->sqe.file_index + (any ? 0 : i), fds[i]);
		if (ret < 0 && i == 0)
			syscall(SYS_close, fds[1]);
		else if (ret < 0)
			files_close(&engine->tables, (unsigned)fds[0]);
		else
			fds[i] = any ? ret : (int)(req->sqe.file_index - 1 + i);
	}
	return ret < 0 ? ret : 0;
}

/* A result as the program sees it: a direct descriptor goes into the file table. */
static int req_result(engine_t *engine, const req_t *req, int ret)
{
	if (ret < 0 || !req->sqe.file_index || !(ops[req->sqe.opcode].traits & DIRECT))
		return ret;
	return req->sqe.opcode == OP_PIPE ?
		       req_install_pipe(engine, req) :
		       files_install(&engine->tables, req->sqe.file_index, ret);
}

static int req_attempt_once(engine_t *engine, req_t *req)
{
	const op_t *op = &ops[req->sqe.opcode];
	int ret = op->attempt ? req_select(engine, req) : GO_THREAD;

	if (ret)
		return ret;
	ret = op->attempt(req);
	req_selected(engine, req, ret);
	return req_result(engine, req, ret);
}

/* A multishot one goes on until it must wait, or ends: also with 0, the end of what it reads. */
static int req_attempt(engine_t *engine, req_t *req)
{
	bool reads = req->sqe.flags & IOSQE_BUFFER_SELECT;
	int ret = req_attempt_once(engine, req);

	while (ret >= reads && req->multishot && req_post_more(engine, req, ret))
		ret = req_attempt_once(engine, req);
	return ret;
}

/* It waits for nothing. Attempt it, until it ends or waits. */
static void req_run(engine_t *engine, req_t *req)
{
	int ret = req_settle(engine, req, req_attempt(engine, req));

	if (ret != GO_WAIT)
		req_finish(engine, req, ret);
}

/* The poll stands with its new mask and user_data; then it is started anew. */
static int poll_update(engine_t *engine, const req_t *req, req_t **again)
{
	req_t *poll = engine_find(engine, req->sqe.addr, IORING_OP_POLL_ADD);

	if (!poll)
		return -ENOENT;
	if (!(req->sqe.len & (IORING_POLL_UPDATE_EVENTS | IORING_POLL_UPDATE_USER_DATA)))
		return req_cancel(engine, poll);
	req_unpend(engine, poll);
	if (req->sqe.len & IORING_POLL_UPDATE_EVENTS)
		poll->sqe.poll32_events = req->sqe.poll32_events;
	if (req->sqe.len & IORING_POLL_UPDATE_USER_DATA)
		poll->sqe.user_data = req->sqe.off;
	*again = poll;
	return 0;
}

/* FILES_UPDATE. With IORING_FILE_INDEX_ALLOC each descriptor becomes the number of its slot. */
static int files_update_start(engine_t *engine, const req_t *req)
{
	int *fds = pointer_of(req->sqe.addr), ret = 0;
	unsigned i;

	if (!req->sqe.len)
		return -EINVAL;
	if (req->sqe.off != IORING_FILE_INDEX_ALLOC)
		return files_update(&engine->tables, (unsigned)req->sqe.off, fds, req->sqe.len,
				    &ret);
	for (i = 0; i < req->sqe.len; i++) {
		int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);

		ret = fd < 0 ? -errno :
			       files_install(&engine->tables, IORING_FILE_INDEX_ALLOC, fd);
		if (ret < 0)
			break;
		fds[i] = ret;
	}
	return i ? (int)i : ret;
}

static bool own_fd(const engine_t *engine, int fd)
{
	return fd == waits_fd(&engine->waits) || pool_has_fd(&engine->pool, fd) ||
	       timers_have_fd(&engine->timers, fd);
}

/* The opcodes that are the engine's own. *again: to be run after this one has ended. */
static int req_start_own(engine_t *engine, req_t *req, req_t **again)
{
	switch (req->sqe.opcode) {
	case IORING_OP_TIMEOUT:
		return timeout_start(engine, req);
	case IORING_OP_TIMEOUT_REMOVE:
		return timeout_remove(engine, req);
	case IORING_OP_ASYNC_CANCEL:
		return cancel_start(engine, req);
	case IORING_OP_POLL_REMOVE:
		return poll_update(engine, req, again);
	case IORING_OP_FILES_UPDATE:
		return files_update_start(engine, req);
	case IORING_OP_PROVIDE_BUFFERS:
		return groups_provide(&engine->groups, req->sqe.buf_group, req->sqe.addr,
				      req->sqe.len, (unsigned)req->sqe.fd, (unsigned)req->sqe.off);
	case IORING_OP_REMOVE_BUFFERS:
		return groups_take_away(&engine->groups, req->sqe.buf_group,
					(unsigned)req->sqe.fd);
	default:
		return -EINVAL; /* a LINK_TIMEOUT that is linked to nothing */
	}
}

/* Find the registered files and buffers that it names. 0, or its error. */
static int req_resolve(engine_t *engine, req_t *req)
{
	unsigned traits = ops[req->sqe.opcode].traits;
	bool splices = ops[req->sqe.opcode].attempt == splice_attempt;

	if (req->sqe.flags & IOSQE_FIXED_FILE && traits & FILE_OP) {
		req->fixed = files_use(&engine->tables, (unsigned)req->sqe.fd);
		if (!req->fixed)
			return -EBADF;
		req->sqe.fd = fixed_fd(req->fixed);
	}
	if (splices && req->sqe.splice_flags & SPLICE_F_FD_IN_FIXED) {
		req->fixed_in = files_use(&engine->tables, (unsigned)req->sqe.splice_fd_in);
		if (!req->fixed_in)
			return -EBADF;
		req->sqe.splice_fd_in = fixed_fd(req->fixed_in);
	}
	if (rw_is_multishot_of_file(req))
		return -EBADFD;
	if (req->sqe.flags & IOSQE_BUFFER_SELECT)
		req->n_asked = req->n_wanted;
	if (msg_is_zero_copy(req) && req->sqe.ioprio & IORING_RECVSEND_FIXED_BUF)
		traits |= REGISTERED;
	if (traits & REGISTERED && !buffers_have(&engine->tables, req->sqe.buf_index,
						 req->sqe.addr, req->sqe.len))
		return -EFAULT;
	return 0;
}

/* CLOSE: of a slot, or of a descriptor that is the engine's own. 0: neither. */
static int close_start(engine_t *engine, const req_t *req, bool *done)
{
	*done = req->sqe.file_index || own_fd(engine, req->sqe.fd);
	if (req->sqe.file_index)
		return files_close(&engine->tables, req->sqe.file_index - 1);
	return *done ? -EBADF : 0;
}

/* It is this one's turn in its chain. */
static void req_start(engine_t *engine, req_t *req)
{
	bool closes = req->sqe.opcode == IORING_OP_CLOSE, done = true;
	req_t *again = NULL;
	int ret;

	if (ops[req->sqe.opcode].traits & ENGINE) {
		ret = req_start_own(engine, req, &again);
	} else if (closes) {
		ret = close_start(engine, req, &done);
	} else {
		req->begun = true;
		ret = req_resolve(engine, req);
		done = ret != 0;
	}
	if (!done && !(closes ? close_lines_up(engine, req) : req_line_up(engine, req, true)))
		req_run(engine, req);
	if (done && ret != GO_WAIT)
		req_finish(engine, req, ret);
	if (again)
		req_run(engine, again);
}

/* Until nothing is left to do at once. */
static void engine_pump(engine_t *engine)
{
	node_t *node;

	do {
		while ((node = list_pop(&engine->ended)) || (node = list_pop(&engine->started))) {
			if (req_of(node)->result)
				req_finish(engine, req_of(node), req_of(node)->result);
			else
				req_start(engine, req_of(node));
		}
	} while (timeouts_count(engine));
	pool_kick(&engine->pool);
}

/* ---- What happened ---- */

/* A multishot poll: each event is a CQE. */
static void poll_event(engine_t *engine, req_t *req, unsigned bits)
{
	bits &= poll_mask(&req->sqe) | POLLERR | POLLHUP;
	if (bits && !req_post_more(engine, req, (int)bits))
		req_finish(engine, req, (int)bits);
}

static void req_event(engine_t *engine, req_t *req, unsigned bits)
{
	unsigned mask = req->wait_mask;
	int ret, fd = req->wait_fd;

	if (req->sqe.opcode == IORING_OP_POLL_ADD && req->multishot) {
		poll_event(engine, req, bits);
		return;
	}
	if (!(bits & (mask | POLLERR | POLLHUP)))
		return;
	ret = req_attempt(engine, req);
	if (ret == GO_WAIT && req->wait_fd == fd && req->wait_mask == mask)
		return;
	req_unwait(engine, req);
	ret = req_settle(engine, req, ret);
	if (ret != GO_WAIT)
		req_finish(engine, req, ret);
}

static void engine_event(engine_t *engine, const struct epoll_event *event)
{
	int fd = (int)event->data.u64;
	line_t *line, *next;
	unsigned n;

	if (event->data.u64 == (uint64_t)EVENT_BELL)
		return;
	if (event->data.u64 == (uint64_t)EVENT_TIMER) {
		timers_rang(&engine->timers);
		return;
	}
	line = waits_line(&engine->waits, event, &n);
	if (!line && !own_fd(engine, fd)) /* a file that lives on may have had a number of ours */
		waits_forget(&engine->waits, fd);
	for (; n--; line = next) {
		next = line_next(line);
		req_event(engine, container_of(line, req_t, by_fd), event->events);
	}
}

static void engine_jobs(engine_t *engine)
{
	node_t done, *node;

	list_init(&done);
	pool_collect(&engine->pool, &done);
	while ((node = list_pop(&done))) {
		req_t *req = container_of(node, req_t, job.node);
		int ret = job_result(&req->job);

		if (req->cancelled && (ret == GO_WAIT || ret == GO_THREAD || ret == GO_LATER))
			ret = req_cancelled(req);
		ret = req_settle(engine, req, req_result(engine, req, ret));
		if (ret != GO_WAIT)
			req_finish(engine, req, ret);
	}
}

static void engine_timers(engine_t *engine)
{
	due_t *due;

	while ((due = timers_next(&engine->timers))) {
		req_t *req = container_of(due, req_t, due);

		if (req->sqe.opcode == IORING_OP_TIMEOUT)
			timeout_fire(engine, req);
		else if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT)
			limit_fire(engine, req);
		else
			req_run(engine, req);
	}
}

/*
 * ==== enter =====================================================================================
 *
 * Submitting, and waiting for completions.
 */

/* The chain is whole: start it. If a member is bad, all end, in their order. */
static void chain_start(engine_t *engine)
{
	req_t *req = engine->chain, *next;

	engine->chain = engine->chain_end = NULL;
	if (!req)
		return;
	if (!engine->chain_is_bad)
		list_add(&engine->started, &req->node);
	for (; engine->chain_is_bad && req; req = next) {
		next = req->next;
		req_drop(engine, req, req->result ? req->result : -ECANCELED);
	}
	engine->chain_is_bad = false;
	engine_pump(engine);
}

/* A LINK_TIMEOUT belongs to the request before it and is no member itself. */
static void chain_add(engine_t *engine, req_t *req)
{
	req_t *end = engine->chain_end;

	if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT && !req->result) {
		if (end && !end->limit && end->sqe.opcode != IORING_OP_LINK_TIMEOUT) {
			end->limit = req;
			req->limits = end;
			return;
		}
		req->result = -EINVAL;
	}
	engine->chain_is_bad |= req->result != 0;
	if (end)
		end->next = req;
	else
		engine->chain = req;
	engine->chain_end = req;
}

/* Take n SQEs, bad ones too. Returns how many, or -EAGAIN: there is no memory for the first. */
static int engine_submit(engine_t *engine, unsigned n)
{
	unsigned n_taken = 0, n_there;
	req_t *req;

	n_there = __atomic_load_n(&engine->sq_tail, __ATOMIC_ACQUIRE) - engine->sq_head;
	n = n < n_there ? n : n_there;
	while (n_taken < n && (req = engine_new_req(engine))) {
		req->sqe = engine->sqes[engine->sq_head & engine->sq_mask];
		req->result = op_prepare(req, restrictions_refuse(&engine->restrictions,
								  &req->sqe));
		if (req->result == NO_MEMORY) {
			req_free(&engine->reqs, req);
			break;
		}
		n_taken++;
		__atomic_store_n(&engine->sq_head, engine->sq_head + 1, __ATOMIC_RELEASE);
		chain_add(engine, req);
		if (!(req->sqe.flags & (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)))
			chain_start(engine);
	}
	chain_start(engine); /* one that is still open ends here */
	return n_taken || !n ? (int)n_taken : -EAGAIN;
}

static void engine_flush(engine_t *engine)
{
	late_t *late;

	while ((late = cq_flush(&engine->cq)))
		if (late_is_last(late))
			req_free(&engine->reqs, container_of(late, req_t, late));
}

/* One look at everything, which may sleep until until_ns. Returns the look's error, or 0. */
static int engine_look(engine_t *engine, uint64_t until_ns, const void *mask)
{
	struct epoll_event events[WAITS_EVENTS];
	uint64_t now_ns = until_ns && until_ns != NEVER ? clock_ns(CLOCK_MONOTONIC) : 0;
	uint64_t ns = until_ns == NEVER ? NEVER : until_ns > now_ns ? until_ns - now_ns : 0;
	int n;

	if (ns && ns != NEVER && !waits_has_timeout(&engine->waits)) {
		timers_arm(&engine->timers, until_ns);
		ns = NEVER;
	} else if (ns) {
		timers_arm(&engine->timers, NEVER);
	}
	n = waits_look(&engine->waits, events, ns, mask);
	for (int i = 0; i < n; i++)
		engine_event(engine, &events[i]);
	engine_jobs(engine);
	engine_timers(engine);
	engine_pump(engine);
	engine_flush(engine);
	return n < 0 ? n : 0;
}

/* Fetch completions, until there are `min` or it is until_ns. */
static int engine_get(engine_t *engine, unsigned min, uint64_t until_ns, const void *mask)
{
	int ret;

	engine_flush(engine);
	do {
		bool sleep = cq_ready(&engine->cq) < min;

		ret = engine_look(engine, sleep ? until_ns : 0, mask);
		if (cq_ready(&engine->cq) >= min)
			return 0;
	} while (ret == 0 && (until_ns == NEVER || clock_ns(CLOCK_MONOTONIC) < until_ns));
	return ret ? ret : -ETIME;
}

#define RESERVED 64 /* requests beside those that were asked for: cancels, watches */

static engine_t *engine_of(const struct io_uring *io)
{
	return container_of(io->sq.khead, engine_t, sq_head);
}

static int engine_wait(engine_t *engine, unsigned min, unsigned flags, const void *arg, size_t size)
{
	struct io_uring_getevents_arg args = {.sigmask = (uintptr_t)arg};
	const struct __kernel_timespec *time;
	uint64_t until_ns = NEVER;

	if (flags & IORING_ENTER_EXT_ARG) {
		if (size != sizeof(args))
			return -EINVAL;
		memcpy(&args, arg, sizeof(args));
	}
	time = pointer_of(args.ts);
	if (time && (time->tv_sec < 0 || time->tv_nsec < 0))
		return -EINVAL;
	if (time)
		until_ns = sum_u64(clock_ns(CLOCK_MONOTONIC), ns_of(time->tv_sec, time->tv_nsec));
	if (min > cq_size(&engine->cq))
		min = cq_size(&engine->cq);
	return engine_get(engine, min, until_ns, pointer_of(args.sigmask));
}

static int fallback_enter(struct io_uring *io, unsigned n, unsigned min, unsigned flags, void *arg,
			  size_t size)
{
	const unsigned known = IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP |
			       IORING_ENTER_SQ_WAIT | IORING_ENTER_EXT_ARG | ENTER_NO_IOWAIT;
	engine_t *engine = engine_of(io);
	int n_taken = 0, ret = 0, cancel;

	if (flags & ~known)
		return -EINVAL;
	if (engine->disabled)
		return -EBADFD;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	if (n)
		n_taken = engine_submit(engine, n);
	if (flags & IORING_ENTER_GETEVENTS && n_taken >= 0 && (unsigned)n_taken == n)
		ret = engine_wait(engine, min, flags, arg, size);
	else if (flags & IORING_ENTER_GETEVENTS)
		engine_look(engine, 0, NULL);
	timers_arm(&engine->timers, NEVER);
	cq_signal(&engine->cq);
	pthread_setcancelstate(cancel, NULL);
	return n_taken ? n_taken : ret;
}

/*
 * ==== life ======================================================================================
 *
 * Opening, registering, closing.
 */

/* Release what was made, in a forked child too: its copies of the descriptors, and its memory. */
static void engine_free(engine_t *engine)
{
	reqs_exit(&engine->reqs);
	tables_exit(&engine->tables);
	groups_exit(&engine->groups);
	pool_exit(&engine->pool);
	timers_exit(&engine->timers);
	waits_exit(&engine->waits);
	lines_exit(&engine->keys);
	lines_exit(&engine->inodes);
	lines_exit(&engine->files);
	cq_exit(&engine->cq);
	free(engine->sqes);
	free(engine->array);
	free(engine);
}

static void engine_init(engine_t *engine, unsigned n, unsigned flags)
{
	engine->n_sq = n;
	engine->sq_mask = n - 1;
	engine->disabled = flags & IORING_SETUP_R_DISABLED;
	engine->process = getpid();
	list_init(&engine->pending);
	list_init(&engine->started);
	list_init(&engine->ended);
	list_init(&engine->counted);
	cq_init(&engine->cq, &engine->sq_flags);
	waits_init(&engine->waits);
	timers_init(&engine->timers);
	pool_init(&engine->pool);
	reqs_init(&engine->reqs);
}

/* Memory and descriptors. 0 or -errno. */
static int engine_make(engine_t *engine, unsigned n_cq)
{
	int epoll, ret;

	engine->sqes = calloc(engine->n_sq, sizeof(*engine->sqes));
	engine->array = calloc(engine->n_sq, sizeof(*engine->array));
	if (!engine->sqes || !engine->array || cq_open(&engine->cq, n_cq) < 0 ||
	    engine_reserve(engine, 1) < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < engine->n_sq; i++)
		engine->array[i] = i;
	ret = waits_open(&engine->waits);
	if (ret < 0)
		return ret;
	epoll = waits_fd(&engine->waits);
	ret = timers_open(&engine->timers, epoll, (uint64_t)EVENT_TIMER);
	return ret < 0 ? ret : pool_open(&engine->pool, epoll, (uint64_t)EVENT_BELL);
}

/* Both queues, as liburing sees them. */
static void engine_show(engine_t *engine, struct io_uring *io, const struct io_uring_params *params)
{
	memset(io, 0, sizeof(*io));
	io->sq.khead = &engine->sq_head;
	io->sq.ktail = &engine->sq_tail;
	io->sq.kflags = &engine->sq_flags;
	io->sq.kdropped = &engine->n_dropped;
	io->sq.kring_mask = &engine->sq_mask;
	io->sq.kring_entries = &engine->n_sq;
	io->sq.array = engine->array;
	io->sq.sqes = engine->sqes;
	io->sq.ring_mask = engine->sq_mask;
	io->sq.ring_entries = engine->n_sq;
	cq_show(&engine->cq, &io->cq);
	io->flags = params->flags;
	io->features = params->features;
	io->ring_fd = io->enter_ring_fd = waits_fd(&engine->waits);
}

/* The next power of two, if that is allowed; else 0. */
static unsigned round_entries(unsigned n, unsigned most, unsigned flags)
{
	unsigned size = 1;

	if (!n || (n > most && !(flags & IORING_SETUP_CLAMP)))
		return 0;
	while (size < n && size < most)
		size *= 2;
	return size;
}

/* The kernel's rules. The flags change nothing here. */
static bool setup_flags_fit(unsigned flags)
{
	const unsigned lazy = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN;

	return !(flags & IORING_SETUP_TASKRUN_FLAG && !(flags & lazy)) &&
	       !(flags & IORING_SETUP_DEFER_TASKRUN && !(flags & IORING_SETUP_SINGLE_ISSUER));
}

static int fallback_open(unsigned entries, struct io_uring *io, struct io_uring_params *params)
{
	const unsigned known = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED |
			       IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
			       IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER |
			       IORING_SETUP_DEFER_TASKRUN;
	unsigned n_sq = round_entries(entries, 32768, params->flags), n_cq = 2 * n_sq;
	engine_t *engine;
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int ret, cancel;

	if (params->flags & IORING_SETUP_CQSIZE)
		n_cq = round_entries(params->cq_entries, 65536, params->flags);
	if (params->flags & ~known || !n_sq || n_cq < n_sq || !setup_flags_fit(params->flags))
		return -EINVAL;
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	engine_init(engine, n_sq, params->flags);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_once(&once, flickers_open);
	ret = engine_make(engine, n_cq);
	if (ret < 0)
		engine_free(engine);
	pthread_setcancelstate(cancel, NULL);
	if (ret < 0)
		return ret;
	params->sq_entries = n_sq;
	params->cq_entries = n_cq;
	params->features = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_RW_CUR_POS |
			   IORING_FEAT_FAST_POLL | IORING_FEAT_POLL_32BITS | IORING_FEAT_EXT_ARG |
			   IORING_FEAT_LINKED_FILE | IORING_FEAT_RSRC_TAGS | FEAT_NO_IOWAIT;
	engine_show(engine, io, params);
	return 0;
}

static void fallback_close(struct io_uring *io)
{
	engine_t *engine = engine_of(io);
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	if (engine->process == getpid()) /* a forked child has no threads */
		pool_stop(&engine->pool);
	engine_free(engine);
	pthread_setcancelstate(cancel, NULL);
}

static int fallback_reserve(struct io_uring *io, size_t n)
{
	return engine_reserve(engine_of(io), n + RESERVED);
}

/* probe: all zero, with room for n opcodes. */
static int register_probe(struct io_uring_probe *probe, unsigned n)
{
	const unsigned char *bytes = (const unsigned char *)probe;

	if (n > UINT8_MAX + 1)
		return -EINVAL;
	n = n < OP_END ? n : OP_END;
	for (size_t i = 0; i < sizeof(*probe) + n * sizeof(probe->ops[0]); i++)
		if (bytes[i])
			return -EINVAL;
	probe->last_op = OP_END - 1;
	probe->ops_len = (__u8)n;
	for (unsigned i = 0; i < n; i++) {
		probe->ops[i].op = (__u8)i;
		probe->ops[i].flags = op_is_known(i) ? IO_URING_OP_SUPPORTED : 0;
	}
	return 0;
}

static int register_sync_cancel(engine_t *engine, const struct io_uring_sync_cancel_reg *cancel)
{
	match_t match = {cancel->flags & ~CANCEL_OP, cancel->addr, cancel->fd, 0, NULL};
	int state, ret;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	ret = cancel_matching(engine, &match);
	engine_pump(engine);
	cq_signal(&engine->cq);
	pthread_setcancelstate(state, NULL);
	return ret;
}

/* Files and buffers by the newer calls, whose argument says more. Tags are not supported. */
static int register_rsrc(tables_t *tables, unsigned opcode, const void *arg, unsigned size)
{
	struct io_uring_rsrc_register fresh = {0};
	struct io_uring_rsrc_update2 update = {0};
	bool updates = opcode == IORING_REGISTER_FILES_UPDATE2 ||
		       opcode == IORING_REGISTER_BUFFERS_UPDATE;
	void *data;
	int error;

	if (size != (updates ? sizeof(update) : sizeof(fresh)))
		return -EINVAL;
	memcpy(updates ? (void *)&update : (void *)&fresh, arg, size);
	data = pointer_of(updates ? update.data : fresh.data);
	if (update.resv || update.resv2 || update.tags || fresh.resv2 || fresh.tags ||
	    fresh.flags & ~IORING_RSRC_REGISTER_SPARSE || (fresh.flags && fresh.data))
		return -EINVAL;
	switch (opcode) {
	case IORING_REGISTER_FILES2:
		return files_register(tables, data, fresh.nr);
	case IORING_REGISTER_BUFFERS2:
		return buffers_register(tables, data, fresh.nr);
	case IORING_REGISTER_FILES_UPDATE2:
		return files_update(tables, update.offset, data, update.nr, &error);
	default:
		return buffers_update(tables, update.offset, data, update.nr);
	}
}

static int register_tables(tables_t *tables, unsigned opcode, const void *arg, unsigned n)
{
	const struct io_uring_files_update *update = arg;
	const struct io_uring_file_index_range *range = arg;
	int error;

	switch (opcode) {
	case IORING_REGISTER_FILES:
		return files_register(tables, arg, n);
	case IORING_UNREGISTER_FILES:
		return files_unregister(tables);
	case IORING_REGISTER_FILES_UPDATE:
		return files_update(tables, update->offset, pointer_of(update->fds), n, &error);
	case IORING_REGISTER_FILE_ALLOC_RANGE:
		return files_give_away(tables, range->off, range->len);
	case IORING_REGISTER_BUFFERS:
		return buffers_register(tables, arg, n);
	case IORING_UNREGISTER_BUFFERS:
		return buffers_unregister(tables);
	case IORING_REGISTER_FILES2:
	case IORING_REGISTER_FILES_UPDATE2:
	case IORING_REGISTER_BUFFERS2:
	case IORING_REGISTER_BUFFERS_UPDATE:
		return register_rsrc(tables, opcode, arg, n);
	default:
		return -EINVAL;
	}
}

static int fallback_reg(struct io_uring *io, unsigned opcode, const void *arg, unsigned n)
{
	engine_t *engine = engine_of(io);

	if (restrictions_refuse_register(&engine->restrictions, opcode))
		return -EACCES;
	switch (opcode) {
	case IORING_REGISTER_ENABLE_RINGS:
		if (!engine->disabled)
			return -EBADFD;
		engine->disabled = false;
		restrictions_enforce(&engine->restrictions);
		return 0;
	case IORING_REGISTER_RESTRICTIONS:
		return engine->disabled ? restrictions_set(&engine->restrictions, arg, n) : -EBADFD;
	case IORING_REGISTER_IOWQ_MAX_WORKERS:
		return n == 2 ? pool_limit(&engine->pool, (unsigned *)(uintptr_t)arg) : -EINVAL;
	case IORING_REGISTER_PROBE:
		return register_probe((struct io_uring_probe *)(uintptr_t)arg, n);
	case PBUF_RING:
		return n == 1 ? groups_add_ring(&engine->groups, arg) : -EINVAL;
	case UNREGISTER_PBUF_RING:
		return n == 1 ? groups_remove_ring(&engine->groups, arg) : -EINVAL;
	case PBUF_STATUS:
		return n == 1 ? groups_tell_head(&engine->groups, (uint32_t *)(uintptr_t)arg) :
				-EINVAL;
	case IORING_REGISTER_SYNC_CANCEL:
		return register_sync_cancel(engine, arg);
	case IORING_REGISTER_EVENTFD:
		return n == 1 ? cq_set_eventfd(&engine->cq, *(const int *)arg) : -EINVAL;
	case IORING_UNREGISTER_EVENTFD:
		return cq_set_eventfd(&engine->cq, -1);
	default:
		return register_tables(&engine->tables, opcode, arg, n);
	}
}

/* What the user wants, for a program that leaves the choice. */
static unsigned fallback_wanted(void)
{
	const char *name = secure_getenv("IOU_ENGINE");

	if (name && strcmp(name, "ring") == 0)
		return IOU_ENGINE_RING;
	return name && strcmp(name, "fallback") == 0 ? IOU_ENGINE_FALLBACK : IOU_ENGINE_AUTO;
}

const iou_backend_t iou_fallback = {
	.name = "fallback",
	.open = fallback_open,
	.close = fallback_close,
	.reserve = fallback_reserve,
	.enter = fallback_enter,
	.reg = fallback_reg,
	.wanted = fallback_wanted,
};
