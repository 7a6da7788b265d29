/* SPDX-License-Identifier: MIT */
#ifndef IOU_TESTS_HELPER_H
#define IOU_TESTS_HELPER_H

/*
 * What every suite uses. A suite is one file, test_<subject>.c, that exports <subject>_suite();
 * its cases are made with TEST_CASE, whose fixture checks after each test that no descriptor and no
 * thread is left. A test makes its iou with new_iou() and ends it with done(), which checks that
 * nothing is pending, neither in the library's count nor in the kernel's list.
 *
 * Include this file first: it sets the feature macros.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <check.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "iou.h"

/* ---- Suites ---------------------------------------------------------------------------------- */

/* All of them, in the order in which they run. -D'SUITES(X)=X(ops)' builds one alone. */
#ifndef SUITES
#define SUITES(X) \
	X(ops) X(ring) X(chains) X(cancel) X(deadline) X(env) \
	X(loop) X(rounds) X(nested) X(timer) X(post) X(bh) X(async) \
	X(life) X(threads) X(misuse) X(fork) X(embed) X(dialog) \
	X(restricted) X(stats) X(engine) \
	X(hostile)
#endif

#define DECLARE_SUITE(name) Suite *name##_suite(void);
SUITES(DECLARE_SUITE)

/* Seconds a test may take; CK_TIMEOUT_MULTIPLIER stretches it for slow surroundings. */
#define TEST_TIMEOUT 60

/* A case with the fixture below: TEST_CASE(suite, "name", test_a, test_b). Returns the TCase. */
#define TEST_CASE(suite, name, ...) ck_case(suite, name, (const TTest *[]){__VA_ARGS__, NULL})
TCase *ck_case(Suite *suite, const char *name, const TTest **tests);

/* The fixture: setup notes open descriptors and threads, teardown waits a moment for threads that
 * are just exiting, then checks that both are as before. io-wq's own threads are not counted: on
 * some kernels they belong to the thread that submitted and outlive the ring. Removes the scratch
 * folder. */
void ck_setup(void);
void ck_teardown(void);

/* Leave the test, saying why: SKIP("needs IORING_OP_SEND_ZC (6.0)"). Only in a test's own body. */
#define SKIP(why) \
	do { \
		ck_skip(__func__, why); \
		return; \
	} while (0)
void ck_skip(const char *func, const char *why);

/* ---- An iou in a test ------------------------------------------------------------------------ */

iou_t *new_iou(unsigned entries);
iou_t *new_iou_with(const iou_config_t *config);
/* With these setup_flags; or NULL where this kernel refuses them, which is asked itself and said by
 * name. */
#define NEW_IOU_OF(entries, setup_flags) ck_new_iou_of(__func__, entries, setup_flags)
iou_t *ck_new_iou_of(const char *func, unsigned entries, unsigned setup_flags);
iou_op_t *new_op(iou_t *iou);

/* True if ious of this process run on iou_fallback.c. */
bool on_fallback(void);
/* True if iou can have io_uring here. */
bool ring_works(void);
/* As io_uring_get_events(), which knows io_uring only: let completions come, and deliver none. */
void get_events(iou_t *iou);

/* Check that nothing is pending and that the kernel holds no op besides the library's own (the
 * wake-up, and the clock behind iou_fd() where that was called), then free it. By the thread that
 * owns it. */
void done(iou_t *iou);

/* Ops that the kernel has poll-armed for this iou's ring, the library's own wake-up included, or -1
 * where /proc does not tell. */
int n_polled(iou_t *iou);

/* iou_run() and iou_flush() that must return 0. */
void run(iou_t *iou);
void flush(iou_t *iou);

uint64_t n_pending(const iou_t *iou);

/* One round after the other until cond holds; fails the test after 20 s. */
#define POLL_UNTIL(iou, cond) \
	do { \
		uint64_t until_ns_ = now_ns() + 20 * SECOND; \
		while (!(cond)) { \
			int n_ = iou_poll(iou, (int64_t)SECOND); \
			ck_assert_msg(n_ >= 0, "iou_poll: %s", strerror(-n_)); \
			ck_assert_msg(now_ns() < until_ns_, "waited in vain for " #cond); \
		} \
	} while (0)

/* Wait without the loop, for what other threads or the kernel do; fails the test after 20 s. */
#define WAIT_UNTIL(cond) \
	do { \
		uint64_t until_ns_ = now_ns() + 20 * SECOND; \
		while (!(cond)) { \
			ck_assert_msg(now_ns() < until_ns_, "waited in vain for " #cond); \
			nap(); \
		} \
	} while (0)
void nap(void); /* a millisecond */

/* True once the thread (gettid) sleeps, in whatever: a lock of the C library's will do. */
bool thread_sleeps(pid_t tid);
/* True once it sleeps in the kernel's wait for completions, or in the one of a surrounding loop. */
bool loop_sleeps(pid_t tid);
/* Workers of the kernel's that sleep inside an op; -1 if nothing tells: no /proc, the fallback. */
int n_io_wq_blocked(void);

/* The eventfd that wakes the only iou of this test; the test has opened no other before it. */
int wake_eventfd(void);
/* The one behind iou_fd(): opened last. */
int bell_eventfd(void);
/* Its counter, or -1 where /proc does not tell. */
int64_t eventfd_count(int fd);
/* As full as it gets: the next write fails with EAGAIN. */
void fill_eventfd(int fd);

/* ---- Recording what callbacks saw ------------------------------------------------------------ */

/* A closure to pass as cb_data with on_call: it notes the op's result and flags, and its own id in
 * the order of all calls, then returns `ret`. op NULL: only counted (a post, a short job). */
typedef struct call_t {
	iou_op_t *op;
	int id;
	int ret;        /* what the callback returns */
	int n;          /* times called */
	int n_last;     /* times called without IORING_CQE_F_MORE */
	int result;     /* of the latest call */
	unsigned flags; /* of the latest call */
} call_t;

#define MAX_ORDER 65536
extern int order[MAX_ORDER]; /* ids of the calls, in the order they ran */
extern int n_order;

int on_call(void *call);

/* Take an op for the call: *call is reset, its op and id set. Returns the op's sqe. */
struct io_uring_sqe *call_op(iou_t *iou, call_t *call, int id);

/* Queue the call's op on the ring with on_call. */
void call_queue(iou_t *iou, call_t *call);

/* Prepare the op as a NOP and queue it on the ring: the first time, and again in a callback. */
void nop_queue(iou_t *iou, iou_op_t *op, int (*cb)(void *cb_data), void *cb_data);

/* A callback, or a job, that does nothing and returns 0. */
int on_nothing(void *data);

/* ---- Clock, kernel, files -------------------------------------------------------------------- */

#define USEC   UINT64_C(1000)
#define MSEC   UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
uint64_t now_ns(void);
struct __kernel_timespec kernel_time(uint64_t ns);

/* Does this engine know the opcode? */
bool have_op(iou_t *iou, int opcode);
/* For features that no probe tells. Distributions port features back: only to skip, never to
 * expect. */
bool kernel_at_least(int major, int minor);

/* A folder for this test, removed by the teardown; and the path of a name in it (a static
 * buffer). */
const char *scratch(void);
const char *scratch_path(const char *name);
/* A file in it, or a FIFO, whose open blocks in io-wq until the other side opens it. */
void write_file(const char *path, const void *data, size_t size);
const char *new_fifo(const char *name);

void new_pipe(int fds[2]);       /* close-on-exec */
void new_socketpair(int fds[2]); /* AF_UNIX, stream */
void new_tcp_pair(int fds[2]);   /* connected over loopback */
void close_pair(const int fds[2]);

/* Memory that the kernel wrote behind valgrind's back. */
void ck_defined(const void *data, size_t size);

/* Write to a page that may not be written: a fault, of which memcheck says nothing. */
void touch_badly(volatile char *page);

/* True under ASan, TSan or valgrind, whose malloc does not obey RLIMIT_AS. */
bool is_watched(void);
/* True there, and with IOU_TEST_SLOW=1: for tests whose size should shrink. */
bool is_slow(void);
bool is_tsan(void);

/* True with IOU_TEST_FULL=1 in the environment: tests that are scaled down run at full size. */
bool is_full(void);

/* ---- Things to deliver ----------------------------------------------------------------------- */

/* The kinds of callback, in the order of a round. ENDED: an op that ended inside iou. */
typedef enum kind_t { TIMER, POST, BH, JOB, ENDED, CQE, N_KINDS } kind_t;
extern const char *const kind_names[N_KINDS];

/* Make one of a kind ready: the next round delivers it, by calling cb(data). On the loop thread;
 * makes it the owner. A bottom half is made for it, and left to iou_free(). Returns its op, if it
 * has one. */
iou_op_t *make_ready(iou_t *iou, kind_t kind, int (*cb)(void *cb_data), void *cb_data);

/* The same without waiting for it to be ready and without a flush; never ENDED. */
iou_op_t *start(iou_t *iou, kind_t kind, int (*cb)(void *cb_data), void *cb_data);

/* Calls that must be taken. */
void post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data);
iou_bh_t *new_bh(iou_t *iou, int (*cb)(void *cb_data), void *cb_data);
void start_job(iou_t *iou, iou_op_t *op, int (*work)(void *work_data), void *work_data,
	       int (*cb)(void *cb_data), void *cb_data);
iou_stats_t get_stats(const iou_t *iou);

/* A read of one byte from fd, whose callback is on_call(call). */
void call_read(iou_t *iou, call_t *call, int id, int fd);

/* ---- Other threads, other processes ---------------------------------------------------------- */

/* As ck_assert(), where Check's own does not work: in other threads and in forked children. */
#define EXPECT(cond) \
	do { \
		if (!(cond)) \
			expect_failed(__FILE__, __LINE__, #cond); \
	} while (0)
_Noreturn void expect_failed(const char *file, int line, const char *cond);

pthread_t start_thread(void *(*func)(void *data), void *data);
void join_thread(pthread_t thread);
/* Run func(data) on a thread of its own and wait for its end. */
void in_thread(void (*func)(void *data), void *data);

/* fork(). A child that hangs ends by SIGALRM. */
pid_t fork_child(void);

/* waitpid(). Returns the child's wait status. */
int wait_child(pid_t pid);

/* Run func(data) in a forked child. Returns its wait status; what it wrote to stdout and stderr is
 * in said[size]. */
int in_child(void (*func)(void *data), void *data, char *said, size_t size);
/* The same, where the child must end well; shows what it said if not. */
void in_good_child(void (*func)(void *data), void *data);

uint64_t thread_cpu_ns(void);  /* CPU time of this thread */
uint64_t process_cpu_ns(void); /* CPU time of this process */
int n_threads(const char *name); /* threads of this process with that name */

/* A random number below n, from a seed that the caller keeps. */
unsigned random_below(uint64_t *seed, unsigned n);

/* SIGALRM at this interval, with a handler that calls func (NULL: nothing) until stop_alarms(). */
void start_alarms(uint64_t interval_ns, void (*func)(void));
void stop_alarms(void);

/* ---- Blocking, starving ---------------------------------------------------------------------- */

/* A job that runs until its gate is opened; gate_job(gate) is its work. A gate opens for one job at
 * a time. */
typedef struct gate_t {
	sem_t entered, open;
	int result; /* what the job returns */
} gate_t;

void gate_init(gate_t *gate);
int gate_job(void *gate);
void gate_wait(gate_t *gate); /* until a job is in it */
void gate_open(gate_t *gate);

/* Queue the jobs that keep all of `n` workers busy with the gate, and wait until they do:
 * on_nothing is called back for each. Then open the gate n times. */
void block_workers(iou_t *iou, gate_t *gate, int n);
void unblock_workers(gate_t *gate, int n);

/* From starve() to feed() no allocation works, not the smallest. Nothing of Check's may be called
 * in between. */
void starve(void);
void feed(void);

#endif
