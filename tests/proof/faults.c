/* SPDX-License-Identifier: MIT */

/*
 * Each call by which iou.c reaches the outside is made to fail, one after the other.
 *
 *     faults [-j PROCESSES] [-v] [-x]
 *         All of it, or (-x) up to the first failure. Ends with a line that counts the faults; -v
 *         names each.
 *     faults -r SCENARIO/RING/CALL/N/ERROR/MODE
 *         One of them, as a failure names it.
 *     faults -s SCENARIO
 *         Once, nothing injected from within: for strace, tests/proof/strace.sh.
 *
 * A scenario is a small program of API calls. It runs once to count its calls; then again in a
 * process of its own for the n-th call of each kind, each error that this call can give, and each
 * mode: once, a few times, from then on until the program has tried in vain twenty times, and for
 * good. The linker's --wrap puts this between iou.c and the real calls. What is checked: an op that
 * was taken has exactly one last callback, one that was refused none; an error is the one that was
 * injected, or the one that the manual names for it; afterwards the iou goes on to the end; and no
 * memory, descriptor or thread is left.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "iou.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MSEC UINT64_C(1000000)

#ifndef SYS_futex
#define SYS_futex SYS_futex_time64
#endif

/* ---- What to inject -------------------------------------------------------------------------- */

enum kind {
	ALLOC, THREAD, MMAP, MADVISE, AFFINITY, EVENTFD, TIMERFD, SETUP, REGISTER, ENTER,
	MULTISHOT, /* a multishot poll of the library's own: the kernel does not know that */
	SLEEP,     /* futex(2) returns early */
	CALL,      /* futex(2) wakes nobody: only in the scenario about that */
	N_KINDS, NOTHING
};
static const char *const kind_names[N_KINDS] = {
	"alloc", "thread", "mmap", "madvise", "affinity", "eventfd", "timerfd", "setup",
	"register", "enter", "multishot", "sleep", "call",
};

/* OTHER: every other one from there. HOLD: from then on until the program has tried in vain; STUCK:
 * for good. */
enum mode { ONCE, FEW, MANY, OTHER, HOLD, STUCK, N_MODES };
static const char *const mode_names[N_MODES] = {"once", "few", "many", "other", "hold", "stuck"};

/* Not errors, but ways in which io_uring_enter() does less than it was asked to. */
enum { HALF = 1000, NO_WAIT, TOO_OLD /* a kernel without IORING_FEAT_EXT_ARG */ };

typedef struct injection_t {
	enum kind kind; /* N_KINDS: nothing */
	unsigned nth;
	int error;
	enum mode mode;
} injection_t;

/* Shared with the process that runs the scenario. */
typedef struct report_t {
	unsigned n_calls[N_KINDS];
	unsigned n_faults;
} report_t;

static injection_t injection = {.kind = N_KINDS};
static report_t *report;
static atomic_uint n_called[N_KINDS];
static enum kind only = N_KINDS; /* what a scenario is about that is not for the other kinds */
static atomic_bool armed, lifted;
static atomic_int n_blocks, n_workers;
static const char *scenario_name = "";

/* The rings that a scenario runs on. */
#define ALL_NEWER_FEATURES (~((IORING_FEAT_EXT_ARG << 1) - 1))
static const struct {
	const char *name;
	unsigned setup_flags;
	uint64_t spin_ns;
	unsigned lacks; /* IORING_FEAT_* that its kernel does not say it has */
} rings[] = {
	{"own", 0, 0, 0},                                          /* the library's choice */
	{"plain", IORING_SETUP_SUBMIT_ALL, 0, ALL_NEWER_FEATURES}, /* as on older kernels */
	/* completions wait for an enter; and spinning */
	{"coop", IORING_SETUP_COOP_TASKRUN, 50000, 0},
	/* and no flag tells of them */
	{"defer", IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0, 0},
};
#define N_RINGS (sizeof(rings) / sizeof(*rings))
static unsigned on_ring;
static bool is_verbose, stops_early;

/* The error for this call, or 0. */
static int fault(enum kind kind)
{
	static const unsigned lengths[N_MODES] = {1, 3, 12, -1U, -1U, -1U};
	unsigned n;

	if (!atomic_load(&armed) || (kind != only && (only != N_KINDS || kind == CALL)))
		return 0;
	n = atomic_fetch_add(&n_called[kind], 1) + 1;
	if (kind != injection.kind || atomic_load(&lifted) || n < injection.nth ||
	    n - injection.nth >= lengths[injection.mode] ||
	    (injection.mode == OTHER && (n - injection.nth) % 2))
		return 0;
	__atomic_fetch_add(&report->n_faults, 1, __ATOMIC_RELAXED);
	return injection.error;
}

static const char *error_name(int error)
{
	static const char *const others[] = {"HALF", "NO_WAIT", "TOO_OLD"};

	return error >= HALF ? others[error - HALF] : strerrorname_np(error);
}

static const char *injection_name(void)
{
	static char name[128];

	if (injection.kind == N_KINDS)
		snprintf(name, sizeof(name), "%s/%s", scenario_name, rings[on_ring].name);
	else
		snprintf(name, sizeof(name), "%s/%s/%s/%u/%s/%s", scenario_name,
			 rings[on_ring].name, kind_names[injection.kind], injection.nth,
			 error_name(injection.error), mode_names[injection.mode]);
	return name;
}

__attribute__((noreturn)) static void failed(int line, const char *what)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "FAIL %s: tests/proof/faults.c:%d: %s\n",
			 injection_name(), line, what);

	_exit(write(STDERR_FILENO, text, (size_t)n) == n ? 1 : 2);
}

#define EXPECT(cond) \
	do { \
		if (!(cond)) \
			failed(__LINE__, #cond); \
	} while (0)

static void on_alarm(int sig)
{
	(void)sig;
	failed(0, "it hangs");
}


/* ---- The calls ------------------------------------------------------------------------------- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
int __real_posix_memalign(void **block, size_t align, size_t size);
void __real_free(void *block);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*func)(void *),
			  void *data);
int __real_pthread_join(pthread_t thread, void **result);
void *__real_mmap(void *address, size_t size, int prot, int flags, int fd, off_t offset);
int __real_madvise(void *address, size_t size, int advice);
int __real_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *cpus);
int __real_eventfd(unsigned count, int flags);
long __real_syscall(long number, ...);
int __real_nanosleep(const struct timespec *time, struct timespec *left);
int __real_timerfd_create(int clock, int flags);
int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
				      struct io_uring_params *params);
void __real_io_uring_queue_exit(struct io_uring *ring);
int __real_io_uring_register(unsigned fd, unsigned opcode, void *arg, unsigned n);
int __real_io_uring_enter2(unsigned fd, unsigned n, unsigned min, unsigned flags, sigset_t *arg,
			   size_t size);

static void *counted(void *block)
{
	if (block)
		atomic_fetch_add(&n_blocks, 1);
	return block;
}

/* These have their prototypes from above, less the __real. */
#define WRAP(type, name) type __wrap_##name; type __wrap_##name

static bool no_memory(void)
{
	int error = fault(ALLOC);

	if (error)
		errno = error;
	return error;
}

WRAP(void *, malloc(size_t size))
{
	return no_memory() ? NULL : counted(__real_malloc(size));
}

WRAP(void *, calloc(size_t n, size_t size))
{
	return no_memory() ? NULL : counted(__real_calloc(n, size));
}

WRAP(void *, aligned_alloc(size_t align, size_t size))
{
	return no_memory() ? NULL : counted(__real_aligned_alloc(align, size));
}

WRAP(int, posix_memalign(void **block, size_t align, size_t size))
{
	int error = no_memory() ? ENOMEM : __real_posix_memalign(block, align, size);

	if (!error)
		counted(*block);
	return error;
}

WRAP(void, free(void *block))
{
	if (block)
		atomic_fetch_sub(&n_blocks, 1);
	__real_free(block);
}

WRAP(int, pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*func)(void *),
			 void *data))
{
	int error = fault(THREAD);

	if (!error)
		error = __real_pthread_create(thread, attr, func, data);
	if (!error)
		atomic_fetch_add(&n_workers, 1);
	return error;
}

WRAP(int, pthread_join(pthread_t thread, void **result))
{
	atomic_fetch_sub(&n_workers, 1);
	return __real_pthread_join(thread, result);
}

/* errno and what tells of it, as system calls fail. */
#define FAIL_OR(kind, failure, call) \
	do { \
		int error_ = fault(kind); \
		if (error_) { \
			errno = error_; \
			return failure; \
		} \
		return call; \
	} while (0)

WRAP(void *, mmap(void *address, size_t size, int prot, int flags, int fd, off_t offset))
{
	FAIL_OR(MMAP, MAP_FAILED, __real_mmap(address, size, prot, flags, fd, offset));
}

WRAP(int, madvise(void *address, size_t size, int advice))
{
	FAIL_OR(MADVISE, -1, __real_madvise(address, size, advice));
}

WRAP(int, sched_getaffinity(pid_t pid, size_t size, cpu_set_t *cpus))
{
	FAIL_OR(AFFINITY, -1, __real_sched_getaffinity(pid, size, cpus));
}

WRAP(int, eventfd(unsigned count, int flags))
{
	FAIL_OR(EVENTFD, -1, __real_eventfd(count, flags));
}

static pthread_t main_thread;
static atomic_bool loop_sleeps;  /* in io_uring_enter(2) */
static atomic_bool owner_waits;  /* in futex(2), in iou_free() */
static atomic_int n_idle;        /* workers in futex(2) */
static bool visitors_linger;

/* The condition comes about soon, or never. */
#define AWAIT(cond) \
	do { \
		for (int i_ = 0; i_ < 50000 && !(cond); i_++) \
			__real_nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL); \
	} while (0)

static long sleep_on(void *word, unsigned value, const struct timespec *time)
{
	bool owner = pthread_equal(pthread_self(), main_thread);
	int error = fault(SLEEP);
	long ret;

	if (owner)
		atomic_store(&owner_waits, true);
	if (error) {
		errno = error;
		return -1;
	}
	atomic_fetch_add(&n_idle, !owner);
	ret = __real_syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, time);
	atomic_fetch_sub(&n_idle, !owner);
	return ret;
}

/* Who wakes more than one ends a pool, and could not try again. */
static long wake_up(void *word, int n)
{
	return n == 1 && fault(CALL) ? 0 : __real_syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n);
}

/* As where the counter of an eventfd is full: it is readable, and says EAGAIN. */
static long write_to(int fd, const void *data, size_t size)
{
	__real_syscall(SYS_write, fd, data, size);
	if (visitors_linger)
		AWAIT(atomic_load(&owner_waits));
	errno = EAGAIN;
	return -1;
}

WRAP(long, syscall(long number, ...))
{
	va_list list;
	void *word;
	long ret;
	int first, op;

	va_start(list, number);
	if (number == SYS_futex) {
		word = va_arg(list, void *);
		op = va_arg(list, int);
		EXPECT(op == FUTEX_WAIT_PRIVATE || op == FUTEX_WAKE_PRIVATE);
		first = va_arg(list, int);
		if (op == FUTEX_WAKE_PRIVATE)
			ret = wake_up(word, first);
		else
			ret = sleep_on(word, (unsigned)first, va_arg(list, struct timespec *));
	} else {
		EXPECT(number == SYS_write);
		first = va_arg(list, int);
		word = va_arg(list, void *);
		ret = write_to(first, word, va_arg(list, size_t));
	}
	va_end(list);
	return ret;
}

WRAP(int, timerfd_create(int clock, int flags))
{
	FAIL_OR(TIMERFD, -1, __real_timerfd_create(clock, flags));
}

/* The rings there are, for what is in their SQs. */
static struct io_uring_sq sqs[4];
static int sq_fds[4];

static void sq_note(const struct io_uring *ring)
{
	unsigned i = 0;

	while (sq_fds[i])
		EXPECT(++i < sizeof(sq_fds) / sizeof(*sq_fds));
	sqs[i] = ring->sq;
	if (!(ring->flags & IORING_SETUP_SQPOLL)) /* whose thread might be faster */
		sq_fds[i] = ring->ring_fd;
}

/* Before they are submitted: a multishot poll gets one flag more, which the kernel does not
 * know. */
static void spoil_polls(struct io_uring_sq *sq)
{
	for (unsigned i = *sq->khead; i != *sq->ktail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & sq->ring_mask];

		if (sqe->opcode != IORING_OP_POLL_ADD || sqe->len != IORING_POLL_ADD_MULTI)
			continue;
		if (sqe->user_data % 2 && fault(MULTISHOT)) /* an op's is its address */
			sqe->len |= 1U << 31;
	}
}

WRAP(int, io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
				     struct io_uring_params *params))
{
	int error = fault(SETUP), ret;

	if (error && error != TOO_OLD)
		return -error;
	ret = __real_io_uring_queue_init_params(entries, ring, params);
	params->features &= error ? ~IORING_FEAT_EXT_ARG : ~rings[on_ring].lacks;
	ring->features = params->features;
	if (ret == 0)
		sq_note(ring);
	return ret;
}

WRAP(void, io_uring_queue_exit(struct io_uring *ring))
{
	for (unsigned i = 0; i < sizeof(sq_fds) / sizeof(*sq_fds); i++)
		if (sq_fds[i] == ring->ring_fd)
			sq_fds[i] = 0;
	__real_io_uring_queue_exit(ring);
}

WRAP(int, io_uring_register(unsigned fd, unsigned opcode, const void *arg, unsigned n))
{
	int error = fault(REGISTER);

	return error ? -error : __real_io_uring_register(fd, opcode, (void *)(uintptr_t)arg, n);
}

WRAP(int, io_uring_enter2(unsigned fd, unsigned n, unsigned min, unsigned flags, sigset_t *arg,
			  size_t size))
{
	/* A signal is seen only by who waits. */
	int error = injection.error == EINTR && !min ? 0 : fault(ENTER);

	for (unsigned i = 0; i < sizeof(sq_fds) / sizeof(*sq_fds); i++)
		if (sq_fds[i])
			spoil_polls(&sqs[i]);
	atomic_store(&loop_sleeps, min > 0);
	if (error == HALF) /* as where the kernel has no memory for the request in the middle */
		return n < 2 ? -EAGAIN
			     : __real_io_uring_enter2(fd, n / 2, 0, flags & ~IORING_ENTER_GETEVENTS,
						      arg, size);
	if (error == NO_WAIT) { /* as a signal just after the last SQE was taken */
		int ret = __real_io_uring_enter2(fd, n, 0, flags, arg, size);

		return ret || !min ? ret : -EINTR;
	}
	return error ? -error : __real_io_uring_enter2(fd, n, min, flags, arg, size);
}

/* Naps between tries are not what is tested. */
WRAP(int, nanosleep(const struct timespec *time, struct timespec *left))
{
	(void)time, (void)left;
	return sched_yield();
}


/* ---- Programs -------------------------------------------------------------------------------- */

/* Something that was, or was not, accepted: exactly one last callback then. */
typedef struct item_t {
	iou_op_t *op; /* NULL: a post, or a short job */
	bool taken;
	int n_calls, n_last;
	int ret;      /* what the callback returns */
	int n_more;   /* the last callback queues it again so often, */
	int door;     /* by this door: 0 ring, 1 job, 2 timer */
	bool nests;   /* and runs the loop itself */
	iou_handler_t handler;
} item_t;

static item_t items[2048];
static unsigned n_items;
static bool ending;     /* iou_free() was called: no callback any more */
static bool hopeless;   /* the ring is out of reach */
static int n_tries;
static iou_t *the_iou;

static item_t *new_item(void)
{
	EXPECT(n_items < sizeof(items) / sizeof(*items));
	return &items[n_items++];
}

/* An error that this injection explains. Where it goes on and on, the program has it stopped. */
static bool is_explained(int error)
{
	if (++n_tries > 20 && injection.mode == HOLD)
		atomic_store(&lifted, true);
	switch (injection.kind) {
	case ALLOC:
	case MMAP:
	case MADVISE:
		return error == ENOMEM;
	case THREAD:
		return error == EAGAIN;
	case MULTISHOT:
	case SLEEP:
	case CALL:
		return false;
	case ENTER:
		return error == (injection.error == HALF || injection.error == NO_WAIT
					 ? EAGAIN
					 : injection.error);
	case N_KINDS: /* strace injects, and looks at the exit status only */
		return getenv("IOU_FAULTS_ERROR") &&
		       strstr(getenv("IOU_FAULTS_ERROR"), strerrorname_np(error));
	default:
		return error == (injection.error == TOO_OLD ? ENOSYS : injection.error);
	}
}

static int nothing(void *data)
{
	(void)data;
	return 0;
}

static int on_item(void *data);

static int some_work(void *data)
{
	(void)data;
	return 5;
}

static void queue_again(item_t *item)
{
	item->n_last--;
	switch (item->door) {
	case 1:
		if (iou_op_async(the_iou, item->op, some_work, NULL, on_item, item) < 0)
			item->n_last++; /* refused: that was the last, then */
		break;
	case 2:
		iou_op_timer(the_iou, item->op, 1000, 0, on_item, item);
		break;
	default:
		io_uring_prep_nop(item->op->sqe);
		iou_op_queue(the_iou, item->op, on_item, item);
	}
}

static int on_item(void *data)
{
	item_t *item = data;

	EXPECT(!ending && item->taken && !item->n_last);
	EXPECT(iou_current() == the_iou);
	item->n_calls++;
	if (item->op && item->op->flags & IORING_CQE_F_MORE)
		return 0;
	item->n_last++;
	if (item->n_more-- > 0)
		queue_again(item);
	if (item->nests) {
		int ret = item->n_calls % 2 ? iou_poll(the_iou, 0) : iou_flush(the_iou);

		EXPECT(ret >= 0 || ret == -77 || is_explained(-ret));
	}
	return item->ret;
}

static int on_handler(iou_handler_t *handler)
{
	return on_item((item_t *)(void *)((char *)handler - offsetof(item_t, handler)));
}

/* What failed once is tried again, and a failure kept for ever is none that passed. */
static bool fails_once(void)
{
	return injection.kind != N_KINDS && injection.mode == ONCE;
}

/* Try until it is there, or the program must do without. */
static iou_t *make(const iou_config_t *config)
{
	for (int i = 0; i < 40; i++) {
		the_iou = iou_new_with(config);
		if (the_iou) {
			EXPECT(injection.error != TOO_OLD || injection.mode == ONCE ||
			       injection.nth > 1);
			return the_iou;
		}
		EXPECT(is_explained(errno) && !(i && fails_once()));
	}
	return NULL;
}

static iou_t *make_of(unsigned entries)
{
	return make(&(iou_config_t){.entries = entries,
				    .workers = 3,
				    .setup_flags = rings[on_ring].setup_flags,
				    .spin_ns = rings[on_ring].spin_ns});
}

/* The descriptor for a surrounding loop, or a negative number where the program must do without. */
static int fd_of(iou_t *iou)
{
	int fd = -1;

	for (int i = 0; i < 40 && fd < 0; i++) {
		fd = iou_fd(iou);
		EXPECT(fd >= 0 || (is_explained(-fd) && !(i && fails_once())));
	}
	return fd;
}

/* An op and its item; NULL where there is no memory. */
static item_t *take(iou_t *iou)
{
	item_t *item = new_item();

	item->op = iou_op_new(iou);
	if (item->op)
		return item;
	EXPECT(is_explained(errno) && errno == ENOMEM);
	n_items--;
	memset(item, 0, sizeof(*item));
	return NULL;
}

static void queue(iou_t *iou, item_t *item)
{
	item->taken = true;
	iou_op_queue(iou, item->op, on_item, item);
}

static item_t *nop(iou_t *iou, unsigned flags)
{
	item_t *item = take(iou);

	if (!item)
		return NULL;
	io_uring_prep_nop(item->op->sqe);
	item->op->sqe->flags = (uint8_t)flags;
	queue(iou, item);
	return item;
}

static item_t *read_from(iou_t *iou, int fd, char *byte, unsigned flags)
{
	item_t *item = take(iou);

	if (!item)
		return NULL;
	io_uring_prep_read(item->op->sqe, fd, byte, 1, 0);
	item->op->sqe->flags = (uint8_t)flags;
	queue(iou, item);
	return item;
}

static item_t *timer(iou_t *iou, uint64_t after_ns, uint64_t period_ns)
{
	item_t *item = take(iou);

	if (!item)
		return NULL;
	item->taken = true;
	iou_op_timer(iou, item->op, after_ns, period_ns, on_item, item);
	return item;
}

static item_t *job(iou_t *iou, int (*work)(void *))
{
	item_t *item = take(iou);
	int ret;

	if (!item)
		return NULL;
	item->taken = true;
	ret = iou_op_async(iou, item->op, work, NULL, on_item, item);
	if (ret < 0) {
		EXPECT(is_explained(-ret) && ret == -EAGAIN);
		item->taken = false;
		iou_op_free(iou, item->op);
	}
	return item;
}

static void short_job(iou_t *iou)
{
	item_t *item = new_item();
	int ret;

	item->taken = true;
	ret = iou_async(iou, some_work, NULL, on_item, item);
	if (ret < 0) {
		EXPECT(is_explained(-ret) && (ret == -EAGAIN || ret == -ENOMEM));
		item->taken = false;
	}
}

static void post(iou_t *iou)
{
	item_t *item = new_item();
	int ret;

	item->taken = true;
	ret = iou_post(iou, on_item, item);
	if (ret < 0) {
		EXPECT(is_explained(-ret) && ret == -ENOMEM);
		item->taken = false;
	}
}

static void cancel(iou_t *iou, const item_t *item)
{
	if (item && item->taken && !item->n_last) {
		int ret = iou_op_cancel(iou, item->op);

		EXPECT(ret == 0 || ret == -EALREADY);
	}
}

/* Run it as a program would that does not give up: to its end, unless the ring is lost. */
static void finish(iou_t *iou)
{
	for (int i = 0; i < 60; i++) {
		int ret = iou_run(iou);

		if (ret == 0)
			return;
		EXPECT(ret == -77 || is_explained(-ret)); /* -77: a callback's own */
	}
	EXPECT(injection.mode == STUCK || injection.error == EBADR);
	hopeless = true;
}

static void flush(iou_t *iou)
{
	int ret = iou_flush(iou);

	EXPECT(ret == 0 || (ret < 0 && is_explained(-ret)));
}

static bool all_ended(void)
{
	for (unsigned i = 0; i < n_items; i++)
		if (items[i].taken && !items[i].n_last)
			return false;
	return true;
}

/* Nothing may be left over; then the end. */
static void end(iou_t *iou)
{
	iou_stats_t stats;

	iou_stats(iou, &stats);
	if (!hopeless) {
		EXPECT(stats.pending == 0 && stats.backlog == 0);
		EXPECT(all_ended());
	}
	ending = true;
	EXPECT(iou_free(iou) == NULL);
}

static void prep_nothing(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static void scenario_ring(void)
{
	iou_t *iou = make_of(4);
	char bytes[4] = "abc";
	int fds[2];
	item_t *item;

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	for (int i = 0; i < 12; i++)
		nop(iou, 0);
	read_from(iou, fds[0], &bytes[0], 0);
	if ((item = take(iou))) {
		io_uring_prep_write(item->op->sqe, fds[1], bytes, 2, 0);
		EXPECT(iou_op_env(item->op, 20));
		queue(iou, item);
	}
	nop(iou, IOSQE_IO_LINK);
	nop(iou, IOSQE_IO_LINK);
	nop(iou, 0);
	flush(iou);
	read_from(iou, -1, &bytes[1], IOSQE_IO_HARDLINK); /* fails, and yet the next starts */
	nop(iou, 0);
	for (int i = 0; i < 6; i++)
		nop(iou, i < 5 ? IOSQE_IO_LINK : 0); /* too long */
	finish(iou);
	nop(iou, 0);
	nop(iou, IOSQE_IO_DRAIN);
	nop(iou, IOSQE_CQE_SKIP_SUCCESS);
	if ((item = take(iou)) && !iou_op_env(item->op, 5000)) {
		EXPECT(is_explained(errno));
		iou_op_free(iou, item->op);
	} else if (item) {
		EXPECT(iou_op_env(item->op, 1) == NULL && errno == EEXIST);
		io_uring_prep_nop(item->op->sqe);
		queue(iou, item);
	}
	item = new_item();
	item->handler.cb = on_handler;
	item->taken = iou_add_sqe(iou, prep_nothing, NULL, &item->handler) == 0;
	finish(iou);
	for (int i = 0; i < 20; i++) /* the same ops again, without their environments */
		nop(iou, 0);
	finish(iou);
	end(iou);
	close(fds[0]);
	close(fds[1]);
}

static void scenario_cancel(void)
{
	iou_t *iou = make_of(8);
	char bytes[16];
	int fds[2];
	item_t *item[8];

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	timer(iou, MSEC, 0);
	timer(iou, MSEC / 2, 0);
	item[0] = timer(iou, 1000, MSEC / 4);
	item[1] = read_from(iou, fds[0], &bytes[1], 0);
	if ((item[2] = take(iou))) { /* ended by its deadline */
		io_uring_prep_read(item[2]->op->sqe, fds[0], &bytes[2], 1, 0);
		iou_op_deadline(iou, item[2]->op, MSEC);
		queue(iou, item[2]);
	}
	item[3] = read_from(iou, fds[0], &bytes[3], IOSQE_IO_LINK);
	item[4] = read_from(iou, fds[0], &bytes[4], IOSQE_IO_LINK);
	item[5] = read_from(iou, fds[0], &bytes[5], 0);
	flush(iou);
	item[6] = read_from(iou, fds[0], &bytes[6], 0);
	cancel(iou, item[6]); /* in the backlog, unless it could not be flushed */
	cancel(iou, item[1]);
	cancel(iou, item[5]); /* behind another of its chain */
	cancel(iou, item[3]);
	for (int i = 0; i < 4; i++) {
		int ret = iou_poll(iou, (int64_t)MSEC);

		EXPECT(ret >= 0 || is_explained(-ret));
	}
	cancel(iou, item[0]);
	read_from(iou, fds[0], &bytes[7], IOSQE_ASYNC);
	item[7] = read_from(iou, fds[0], &bytes[8], IOSQE_IO_HARDLINK);
	read_from(iou, fds[0], &bytes[9], 0);
	flush(iou);
	timer(iou, UINT64_MAX, 0);
	EXPECT(iou_cancel_all(iou) == 0);
	finish(iou);
	end(iou);
	close(fds[0]);
	close(fds[1]);
}

static int slow_work(void *data)
{
	struct timespec time = {.tv_nsec = 200000};

	(void)data;
	return clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static void scenario_jobs(void)
{
	iou_t *iou = make_of(8);
	item_t *item;

	if (!iou)
		return;
	for (int i = 0; i < 6; i++)
		job(iou, slow_work);
	for (int i = 0; i < 3; i++)
		short_job(iou);
	item = job(iou, slow_work);
	if ((item = take(iou))) {
		iou_op_deadline(iou, item->op, 1000);
		item->taken = iou_op_async(iou, item->op, slow_work, NULL, on_item, item) == 0;
		if (!item->taken)
			iou_op_free(iou, item->op);
	}
	nop(iou, 0);
	item = job(iou, slow_work);
	cancel(iou, item);
	finish(iou);
	for (int i = 0; i < 4; i++) { /* one at a time: the loop sleeps and is woken */
		job(iou, slow_work);
		finish(iou);
	}
	/* one that could not be started is tried again */
	for (int i = 0; i < 40 && n_workers < 3; i++) {
		for (int j = 0; j < 6; j++)
			job(iou, slow_work);
		finish(iou);
	}
	EXPECT(n_workers == 3 || injection.kind != THREAD || injection.mode >= HOLD);
	end(iou);
}

static void *poster(void *data)
{
	iou_bh_t **bhs = data;

	for (int i = 0; i < 8; i++) {
		slow_work(NULL);
		errno = 0;
		if (bhs[0])
			iou_bh_schedule(bhs[0]);
		if (bhs[1])
			iou_bh_schedule_idle(bhs[1]);
		EXPECT(errno == 0);
	}
	iou_unhold(the_iou);
	return NULL;
}

static void scenario_threads(void)
{
	iou_t *iou = make_of(8);
	iou_bh_t *bhs[3];
	pthread_t thread;
	bool threaded;

	if (!iou)
		return;
	for (int i = 0; i < 3; i++) {
		bhs[i] = iou_bh_new(iou, nothing, NULL);
		EXPECT(bhs[i] || (errno == ENOMEM && is_explained(errno)));
	}
	for (int i = 0; i < 8; i++)
		post(iou);
	iou_hold(iou);
	threaded = __real_pthread_create(&thread, NULL, poster, bhs) == 0;
	EXPECT(threaded || injection.kind == N_KINDS); /* strace may refuse it */
	if (!threaded)
		poster(bhs);
	nop(iou, 0);
	timer(iou, MSEC, 0);
	finish(iou);
	if (threaded)
		EXPECT(__real_pthread_join(thread, NULL) == 0);
	iou_bh_delete(bhs[0]);
	if (bhs[1])
		iou_bh_schedule(bhs[1]);
	EXPECT(iou_quit(iou) == 0);
	finish(iou);
	finish(iou);
	end(iou);
}

static void *visit(void *data)
{
	atomic_bool *inside = data;

	AWAIT(atomic_load(&loop_sleeps));
	atomic_store(inside, true);
	errno = 0;
	iou_unhold(the_iou); /* stays in its write until the main thread waits for it */
	EXPECT(errno == 0);
	atomic_store(inside, false);
	return NULL;
}

/* iou_free() waits for another thread's last call to end, asleep. */
static void scenario_visitors(void)
{
	only = SLEEP;
	for (int i = 0; i < 4; i++) {
		iou_t *iou = make_of(4);
		atomic_bool inside = false;
		pthread_t thread;

		if (!iou)
			return;
		atomic_store(&loop_sleeps, false);
		atomic_store(&owner_waits, false);
		visitors_linger = true;
		iou_hold(iou);
		EXPECT(__real_pthread_create(&thread, NULL, visit, &inside) == 0);
		finish(iou);
		EXPECT(atomic_load(&inside) && !atomic_load(&owner_waits));
		end(iou);
		EXPECT(atomic_load(&owner_waits));
		EXPECT(__real_pthread_join(thread, NULL) == 0);
		visitors_linger = ending = false;
	}
}

/* A poll that could not be multishot: after some that were not, it is tried again. */
static void scenario_rewatch(void)
{
	iou_t *iou;
	iou_stats_t stats = {0};

	only = MULTISHOT;
	iou = make_of(4);
	for (int i = 0; i < 1000 && stats.wakeups < 80; i++) {
		job(iou, slow_work); /* the loop sleeps and is woken */
		finish(iou);
		iou_stats(iou, &stats);
	}
	EXPECT(stats.wakeups >= 80);
	EXPECT(report->n_faults == 0 || n_called[MULTISHOT] > 1);
	end(iou);
}

/* One of the calls for a worker gets lost: its job may be late, but the next one calls again. */
static void scenario_lost(void)
{
	iou_t *iou;

	only = NOTHING;
	iou = make_of(4);
	while (n_workers < 3)
		job(iou, slow_work);
	finish(iou);
	only = CALL;
	for (int i = 0; i < 3; i++) {
		AWAIT(atomic_load(&n_idle) == n_workers);
		job(iou, slow_work);
		while (!all_ended())
			if (iou_poll(iou, (int64_t)MSEC * 5) == 0)
				job(iou, slow_work);
	}
	end(iou);
}

/* In another's loop: poll(2) on iou_fd(). */
static void scenario_embed(void)
{
	iou_t *iou = make_of(4);
	char bytes[8];
	int fds[2], fd;
	iou_stats_t stats;

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	fd = fd_of(iou);
	for (int i = 0; i < 6; i++)
		nop(iou, 0);
	for (int i = 0; i < 3; i++)
		read_from(iou, fds[0], &bytes[i], 0);
	timer(iou, MSEC, 0);
	job(iou, slow_work);
	post(iou);
	for (int i = 0; i < 100 && fd >= 0; i++) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		int ret = poll(&pfd, 1, 20000);

		/* Whatever there is makes it readable; and task work interrupts a poll(2). */
		EXPECT(ret == 1 || (ret < 0 && errno == EINTR) || n_tries);
		ret = iou_poll(iou, 0);
		EXPECT(ret >= 0 || is_explained(-ret));
		if (i == 0)
			EXPECT(write(fds[1], "abc", 3) == 3);
		iou_stats(iou, &stats);
		if (stats.pending == 0)
			break;
		if (ret == -EBADR || ret == -EBADF || ret == -EPERM)
			break;
	}
	EXPECT(fd >= 0 || write(fds[1], "abc", 3) == 3);
	if (injection.kind == ENTER && injection.mode == STUCK)
		EXPECT(write(fds[1], "abc", 3) == 3);
	iou_cancel_all(iou);
	finish(iou);
	end(iou);
	close(fds[0]);
	close(fds[1]);
}

/* The kernel gives 20 completions for an enter; whoever waits on iou_fd() has to learn of the
 * rest. */
static void scenario_burst(void)
{
	enum { N_READS = 50 };
	iou_t *iou = make_of(64);
	char bytes[N_READS];
	int fds[2], fd;

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	fd = fd_of(iou);
	for (int i = 0; i < N_READS; i++)
		read_from(iou, fds[0], &bytes[i], 0);
	flush(iou);
	EXPECT(write(fds[1], bytes, N_READS) == N_READS);
	for (int i = 0; i < 100 && fd >= 0 && !all_ended() && !n_tries; i++) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		int ret = poll(&pfd, 1, 20000);

		EXPECT(ret == 1 || (ret < 0 && errno == EINTR));
		ret = iou_poll(iou, 0);
		EXPECT(ret >= 0 || is_explained(-ret));
	}
	finish(iou);
	end(iou);
	close(fds[0]);
	close(fds[1]);
}

/* The end in the middle of it all. */
static void scenario_free(void)
{
	iou_t *iou = make_of(8);
	static char bytes[64];
	static int made[2];
	int fds[2], pair[2];
	item_t *item;

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	for (int i = 0; i < 20; i++)
		read_from(iou, fds[0], &bytes[i], i % 5 == 3 ? IOSQE_IO_LINK : 0);
	read_from(iou, pair[0], &bytes[20], 0);
	read_from(iou, pair[0], &bytes[21], IOSQE_ASYNC);
	if ((item = take(iou))) {
		io_uring_prep_openat(item->op->sqe, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC, 0);
		queue(iou, item);
	}
	/* IORING_OP_PIPE, newer than some liburing; where it is unknown it fails */
	if ((item = take(iou))) {
		io_uring_prep_rw(62, item->op->sqe, 0, made, 0, 0);
		item->op->sqe->rw_flags = O_CLOEXEC;
		queue(iou, item);
	}
	timer(iou, MSEC, MSEC);
	for (int i = 0; i < 6; i++)
		job(iou, slow_work);
	flush(iou);
	for (int i = 0; i < 150; i++) /* more than lie in one page */
		post(iou);
	for (int i = 0; i < 3; i++) {
		iou_bh_t *bh = iou_bh_new(iou, nothing, NULL);

		if (bh && i)
			iou_bh_schedule(bh);
	}
	for (int i = 0; i < 4; i++)
		read_from(iou, fds[0], &bytes[22 + i], 0);
	if ((item = take(iou)))
		EXPECT(iou_op_env(item->op, 1000) || is_explained(errno));
	ending = true;
	EXPECT(iou_free(iou) == NULL);
	EXPECT(write(fds[1], "0123456789", 10) == 10 && write(pair[1], "0123456789", 10) == 10);
	for (unsigned i = 0; i < sizeof(bytes) && injection.kind != ENTER; i++)
		EXPECT(bytes[i] == 0); /* nothing is written after it */
	for (int i = 0; i < 2; i++) {
		close(fds[i]);
		close(pair[i]);
	}
}

static void with_config(const iou_config_t *config)
{
	iou_t *iou = make(config);
	char byte;
	int fds[2];

	if (!iou)
		return;
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	for (int i = 0; i < 10; i++)
		nop(iou, 0);
	job(iou, slow_work);
	flush(iou);
	cancel(iou, read_from(iou, fds[0], &byte, 0));
	read_from(iou, fds[0], &byte, 0);
	EXPECT(write(fds[1], "x", 1) == 1);
	finish(iou);
	end(iou);
	ending = false;
	close(fds[0]);
	close(fds[1]);
}

static void scenario_handed(void)
{
	with_config(&(iou_config_t){.entries = 4, .setup_flags = IORING_SETUP_SUBMIT_ALL});
	with_config(&(iou_config_t){.setup_flags =
					    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG});
}

static void scenario_owned(void)
{
	with_config(&(iou_config_t){
		.entries = 4, .setup_flags = IORING_SETUP_SINGLE_ISSUER, .spin_ns = MSEC / 5});
	with_config(&(iou_config_t){.entries = 4,
				    .setup_flags = IORING_SETUP_SINGLE_ISSUER |
						   IORING_SETUP_DEFER_TASKRUN});
}

static void scenario_sqpoll(void)
{
	with_config(&(iou_config_t){.entries = 4, .setup_flags = IORING_SETUP_SQPOLL});
}

/* More completions than the CQ holds. */
static void scenario_overflow(void)
{
	iou_t *iou = make_of(2);
	char bytes[16];
	int fds[2], event = __real_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	item_t *item;

	if (!iou) {
		close(event);
		return;
	}
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	for (int i = 0; i < 16; i++)
		read_from(iou, fds[0], &bytes[i], 0);
	if ((item = take(iou))) {
		io_uring_prep_poll_multishot(item->op->sqe, event, POLLIN);
		queue(iou, item);
	}
	flush(iou);
	EXPECT(write(fds[1], "0123456789abcdef", 16) == 16);
	for (int i = 0; i < 20; i++) {
		nop(iou, 0);
		eventfd_write(event, 1);
	}
	for (int i = 0; i < 6; i++) {
		int ret = iou_poll(iou, (int64_t)MSEC / 4);

		EXPECT(ret >= 0 || is_explained(-ret));
		eventfd_write(event, 1);
	}
	cancel(iou, item);
	EXPECT(iou_cancel_all(iou) == 0);
	finish(iou);
	end(iou);
	close(fds[0]);
	close(fds[1]);
	close(event);
}

/* Loops in callbacks, ops that go round by all doors, errors in the middle. */
static void scenario_nested(void)
{
	iou_t *iou = make_of(4);
	item_t *item;

	if (!iou)
		return;
	for (int i = 0; i < 12; i++) {
		item = i % 3 == 2 ? job(iou, some_work) : i % 3 ? timer(iou, 1000, 0) : nop(iou, 0);
		if (!item)
			continue;
		item->n_more = i % 4;
		item->door = i / 4;
		item->nests = i % 2;
		item->ret = i % 5 == 4 ? -77 : 0;
	}
	for (int i = 0; i < 40 && !all_ended(); i++)
		finish(iou);
	end(iou);
}

static void scenario_resize(void)
{
	iou_t *iou = make_of(2);
	int ret;

	if (!iou)
		return;
	for (unsigned entries = 1; entries < 64; entries *= 4) {
		for (int i = 0; i < 5; i++)
			nop(iou, 0);
		job(iou, slow_work);
		if (entries == 4) {
			ret = iou_fd(iou);
			EXPECT(ret >= 0 || is_explained(-ret));
		}
		ret = iou_resize(iou, entries);
		EXPECT(ret == 0 || is_explained(-ret));
		finish(iou);
		if (hopeless)
			break;
		ret = iou_resize(iou, entries * 2);
		EXPECT(ret == 0 || is_explained(-ret));
		job(iou, slow_work);
		finish(iou);
	}
	end(iou);
}

static const struct {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	{"ring", scenario_ring},
	{"cancel", scenario_cancel},
	{"jobs", scenario_jobs},
	{"threads", scenario_threads},
	{"embed", scenario_embed},
	{"free", scenario_free},
	{"overflow", scenario_overflow},
	{"nested", scenario_nested},
	{"resize", scenario_resize},
	{"burst", scenario_burst},
	{"lost", scenario_lost},
	{"visitors", scenario_visitors},
	{"rewatch", scenario_rewatch},
	{"handed", scenario_handed},
	{"owned", scenario_owned},
	{"sqpoll", scenario_sqpoll},
};
#define N_SCENARIOS (sizeof(scenarios) / sizeof(*scenarios))
/* Those before make their ring as they are told to. */
#define N_ON_ANY_RING 13


/* ---- Going through them ---------------------------------------------------------------------- */

static int n_open(void)
{
	int n = 0;

	for (int fd = 0; fd < 64; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* In the process of its own. */
__attribute__((noreturn)) static void run_scenario(unsigned which)
{
	int n_before = n_open();
	/* Where the kernel could not be reached for good, it may still use what the ops refer to:
	 * they are not freed. */
	bool may_leak =
		injection.kind == ENTER && (injection.mode >= HOLD || injection.error == EBADR);

	scenario_name = scenarios[which].name;
	main_thread = pthread_self();
	signal(SIGALRM, on_alarm);
	alarm(getenv("IOU_FAULTS_TIMEOUT") ? (unsigned)atoi(getenv("IOU_FAULTS_TIMEOUT")) : 120);
	atomic_store(&armed, true);
	scenarios[which].run();
	atomic_store(&armed, false);
	alarm(0);
	EXPECT(n_workers == 0);
	EXPECT(n_open() == n_before);
	EXPECT(n_blocks == 0 || (may_leak && !lifted && n_blocks > 0));
	for (unsigned kind = 0; kind < N_KINDS; kind++)
		report->n_calls[kind] = n_called[kind];
	_exit(0);
}

/* Run one injection. True if all was well. */
static bool run_one(unsigned which, injection_t what)
{
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	injection = what;
	pid = fork();
	if (pid == 0)
		run_scenario(which);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	scenario_name = scenarios[which].name;
	if (pid < 0 || WIFSIGNALED(status))
		fprintf(stderr, "FAIL %s: %s\n", injection_name(),
			pid < 0 ? "fork" : strsignal(WTERMSIG(status)));
	return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* What each kind of call can give, and how. */
static const struct {
	enum kind kind;
	int error;
	unsigned modes;
} table[] = {
#define M(mode) (1U << (mode))
#define ALL (M(ONCE) | M(FEW) | M(MANY) | M(HOLD) | M(STUCK))
	{ALLOC, ENOMEM, M(ONCE) | M(FEW) | M(OTHER) | M(HOLD) | M(STUCK)},
	{THREAD, EAGAIN, M(ONCE) | M(FEW) | M(OTHER) | M(HOLD) | M(STUCK)},
	{THREAD, ENOMEM, M(ONCE)},
	{MMAP, ENOMEM, M(ONCE) | M(FEW) | M(STUCK)},
	{MADVISE, EINVAL, M(ONCE) | M(FEW) | M(STUCK)},
	{MADVISE, ENOMEM, M(ONCE)},
	{AFFINITY, EINVAL, M(ONCE)},
	{EVENTFD, EMFILE, M(ONCE) | M(FEW) | M(STUCK)},
	{EVENTFD, ENFILE, M(ONCE)},
	{EVENTFD, ENOMEM, M(ONCE)},
	{TIMERFD, EMFILE, M(ONCE) | M(FEW) | M(STUCK)},
	{TIMERFD, ENOMEM, M(ONCE)},
	{SETUP, ENOMEM, M(ONCE) | M(FEW) | M(MANY) | M(STUCK)},
	{SETUP, EINVAL, M(ONCE) | M(FEW) | M(STUCK)}, /* an older kernel */
	{SETUP, EMFILE, M(ONCE) | M(STUCK)},
	{SETUP, ENFILE, M(ONCE)},
	{SETUP, EPERM, M(ONCE) | M(STUCK)},
	{SETUP, ENOSYS, M(ONCE) | M(STUCK)},
	{SETUP, TOO_OLD, M(ONCE) | M(STUCK)},
	{REGISTER, ENOMEM, M(ONCE) | M(FEW) | M(HOLD)},
	{REGISTER, EINVAL, M(ONCE) | M(HOLD)},
	{REGISTER, EPERM, M(ONCE) | M(HOLD)},
	{REGISTER, EBUSY, M(ONCE)},
	{REGISTER, ENOSYS, M(HOLD)},
	{ENTER, EINTR, M(ONCE) | M(FEW) | M(MANY) | M(OTHER)},
	{ENTER, EAGAIN, ALL},
	{ENTER, EBUSY, ALL},
	{ENTER, ENOMEM, ALL},
	{ENTER, HALF, M(ONCE) | M(FEW) | M(MANY)},
	{ENTER, NO_WAIT, M(ONCE) | M(FEW) | M(MANY) | M(OTHER)},
	{ENTER, EBADR, M(ONCE) | M(FEW)},
	{ENTER, EBADF, M(STUCK)},
	{ENTER, EPERM, M(STUCK)},
	{MULTISHOT, EINVAL, M(ONCE) | M(FEW) | M(OTHER) | M(STUCK)}, /* an older kernel */
	{SLEEP, EINTR, M(ONCE) | M(FEW) | M(MANY) | M(OTHER)},
	{SLEEP, EAGAIN, M(ONCE)},
	{CALL, EINVAL, M(ONCE) | M(FEW)}, /* no error: it is not made */
};

typedef struct sums_t {
	atomic_uint next;     /* rows of work taken */
	atomic_uint n_points; /* runs in which a fault was injected */
	atomic_uint n_faults; /* calls that failed */
	atomic_uint n_failed;
	atomic_uint per_kind[N_KINDS];
} sums_t;

/* All injections of one row of the table into one scenario. */
static void run_row(sums_t *sums, unsigned which, unsigned row, unsigned n_calls)
{
	for (enum mode mode = ONCE; mode < N_MODES; mode++) {
		if (!(table[row].modes & M(mode)))
			continue;
		for (unsigned nth = 1; nth <= n_calls && !(stops_early && sums->n_failed); nth++) {
			bool good = run_one(
				which, (injection_t){table[row].kind, nth, table[row].error, mode});

			atomic_fetch_add(&sums->n_failed, !good);
			if (!report->n_faults)
				continue;
			if (is_verbose)
				printf("%s: %u\n", injection_name(), report->n_faults);
			atomic_fetch_add(&sums->n_points, 1);
			atomic_fetch_add(&sums->n_faults, report->n_faults);
			atomic_fetch_add(&sums->per_kind[table[row].kind], 1);
		}
	}
}

static void run_rows(sums_t *sums)
{
	const unsigned n_rows = sizeof(table) / sizeof(*table);
	unsigned job_number;

	while ((job_number = atomic_fetch_add(&sums->next, 1)) < n_rows * N_SCENARIOS * N_RINGS) {
		if (stops_early && sums->n_failed)
			return;
		unsigned which = job_number / n_rows % N_SCENARIOS, row = job_number % n_rows;

		on_ring = job_number / n_rows / N_SCENARIOS;
		if (on_ring && which >= N_ON_ANY_RING)
			continue;
		if (!run_one(which, (injection_t){.kind = N_KINDS})) {
			atomic_fetch_add(&sums->n_failed, 1);
			continue;
		}
		run_row(sums, which, row, report->n_calls[table[row].kind]);
	}
}

static void *shared(size_t size)
{
	void *memory =
		__real_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		perror("faults");
		exit(2);
	}
	return memory;
}

static int run_all(int n_processes)
{
	sums_t *sums = shared(sizeof(*sums));

	for (int i = 0; i < n_processes; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			report = shared(sizeof(*report));
			run_rows(sums);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
	for (unsigned kind = 0; kind < N_KINDS; kind++)
		printf("  %-9s %6u\n", kind_names[kind], sums->per_kind[kind]);
	printf("check-faults: %u fault points in %zu programs, %u calls failed, "
	       "%u of them badly handled\n",
	       sums->n_points, N_SCENARIOS, sums->n_faults, sums->n_failed);
	return sums->n_failed != 0 || sums->n_points == 0;
}

static int find(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	fprintf(stderr, "faults: what is '%s'?\n", name);
	exit(2);
}

static unsigned find_scenario(const char *name)
{
	const char *names[N_SCENARIOS];

	for (unsigned i = 0; i < N_SCENARIOS; i++)
		names[i] = scenarios[i].name;
	return (unsigned)find(name, names, N_SCENARIOS);
}

static int replay(char *text)
{
	const char *part[6] = {0};
	injection_t what;
	int error;

	for (int i = 0; i < 6; i++)
		part[i] = strtok(i ? NULL : text, "/");
	if (!part[5])
		return 2;
	while (strcmp(rings[on_ring].name, part[1]) != 0)
		if (++on_ring == N_RINGS)
			return 2;
	for (error = 1; error <= TOO_OLD; error++)
		if (error_name(error) && strcmp(error_name(error), part[4]) == 0)
			break;
	what = (injection_t){(enum kind)find(part[2], kind_names, N_KINDS), (unsigned)atoi(part[3]),
			     error, (enum mode)find(part[5], mode_names, N_MODES)};
	injection = what;
	run_scenario(find_scenario(part[0]));
}

int main(int argc, char **argv)
{
	int option, n_processes = 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	report = shared(sizeof(*report));
	while ((option = getopt(argc, argv, "j:r:s:vx")) != -1) {
		switch (option) {
		case 'j':
			n_processes = atoi(optarg);
			break;
		case 'x':
			stops_early = true;
			break;
		case 'v':
			is_verbose = true;
			break;
		case 'r':
			return replay(optarg);
		case 's':
			run_scenario(find_scenario(optarg));
		default:
			return 2;
		}
	}
	return run_all(n_processes);
}
