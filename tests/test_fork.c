/* SPDX-License-Identifier: MIT */

/* A fork while an iou has everything in flight: the child's copy is dead and harmless, the parent's
 * goes on. */

#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* An iou with one of each kind under way. */
typedef struct busy_t {
	iou_t *iou;
	call_t read, timer, job, queued, posted, half;
	iou_bh_t *bh;
	iou_op_t *free_op;
	int fds[2], ring_fd;
	struct io_uring_sqe *sqes;
	sem_t job_may_end;
} busy_t;

static int busy_job(void *data)
{
	busy_t *busy = data;

	while (sem_wait(&busy->job_may_end) != 0)
		;
	return 5;
}

static void make_busy(busy_t *busy)
{
	memset(busy, 0, sizeof(*busy));
	sem_init(&busy->job_may_end, 0, 0);
	new_socketpair(busy->fds);
	/* one of them is kept busy */
	busy->iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 2});
	ck_assert_int_ge(iou_fd(busy->iou), 0);
	busy->ring_fd = iou_ring(busy->iou)->ring_fd;
	busy->sqes = iou_ring(busy->iou)->sq.sqes;
	call_read(busy->iou, &busy->read, 0, busy->fds[0]);
	flush(busy->iou);
	ck_assert_int_eq(iou_poll(busy->iou, 0), 0); /* armed all it arms */
	call_op(busy->iou, &busy->job, 1);
	start_job(busy->iou, busy->job.op, busy_job, busy, on_call, &busy->job);
	call_op(busy->iou, &busy->timer, 2);
	iou_op_timer(busy->iou, busy->timer.op, 5 * MSEC, 0, on_call, &busy->timer);
	io_uring_prep_nop(call_op(busy->iou, &busy->queued, 3));
	call_queue(busy->iou, &busy->queued);
	post(busy->iou, on_call, &busy->posted);
	busy->bh = new_bh(busy->iou, on_call, &busy->half);
	iou_bh_schedule(busy->bh);
	busy->free_op = new_op(busy->iou);
}

/* The parent completes everything, once. */
static void finish_busy(busy_t *busy)
{
	ck_assert_int_eq(write(busy->fds[1], "x", 1), 1);
	sem_post(&busy->job_may_end);
	run(busy->iou);
	ck_assert_int_eq(busy->read.result, 1);
	ck_assert_int_eq(busy->job.result, 5);
	ck_assert_int_eq(busy->timer.result, 1);
	ck_assert_int_eq(busy->queued.result, 0);
	ck_assert_int_eq(busy->read.n, 1);
	ck_assert_int_eq(busy->job.n, 1);
	ck_assert_int_eq(busy->timer.n, 1);
	ck_assert_int_eq(busy->queued.n, 1);
	ck_assert_int_eq(busy->posted.n, 1);
	ck_assert_int_eq(busy->half.n, 1);
	close_pair(busy->fds);
	sem_destroy(&busy->job_may_end);
	done(busy->iou);
}

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static int on_handler(iou_handler_t *handler)
{
	(void)handler;
	return 0;
}

/* Every call that does not end the program, in the child. */
static void call_all(busy_t *busy)
{
	iou_handler_t handler = {.cb = on_handler};
	iou_t *iou = busy->iou;

#define DEAD(call) EXPECT((call) == -EEXIST)
#define DEAD_NULL(call) \
	do { \
		errno = 0; \
		EXPECT((call) == NULL); \
		EXPECT(errno == EEXIST); \
	} while (0)
	DEAD(iou_flush(iou));
	DEAD(iou_run(iou));
	DEAD(iou_poll(iou, 0));
	DEAD(iou_poll(iou, -1));
	DEAD(iou_resize(iou, 8));
	DEAD(iou_async(iou, on_nothing, NULL, on_nothing, NULL));
	DEAD(iou_op_async(iou, busy->free_op, on_nothing, NULL, on_nothing, NULL));
	DEAD(iou_op_cancel(iou, busy->read.op));
	DEAD(iou_cancel_all(iou));
	DEAD(iou_add_sqe(iou, prep_nop, NULL, &handler));
	DEAD(iou_fd(iou));
	DEAD(iou_post(iou, on_nothing, NULL));
	DEAD_NULL(iou_op_new(iou));
	DEAD_NULL(iou_op_env(busy->free_op, 8));
	DEAD_NULL(iou_ring(iou));
	DEAD_NULL(iou_bh_new(iou, on_nothing, NULL));
	iou_quit(iou);
	iou_hold(iou);
	iou_unhold(iou);
	iou_unhold(iou);
	iou_bh_schedule(busy->bh);
	iou_bh_schedule_idle(busy->bh);
	iou_bh_cancel(busy->bh);
}

static void child_calls_all(void *data)
{
	call_all(data);
}

static void child_frees(void *data)
{
	busy_t *busy = data;
	unsigned char there[1];

	/* io_uring's is shared memory: a child that could write to it could harm the parent. */
	EXPECT(strcmp(iou_engine_name(busy->iou), "fallback") == 0 ||
	       (mincore(busy->sqes, 1, there) == -1 && errno == ENOMEM));
	EXPECT(fcntl(busy->ring_fd, F_GETFD) >= 0);
	EXPECT(iou_free(busy->iou) == NULL);
	EXPECT(fcntl(busy->ring_fd, F_GETFD) == -1);
}

static void child_calls_all_and_frees(void *data)
{
	busy_t *busy = data;

	call_all(busy);
	/* New maps may lie where the ring was: freeing must not take them away. */
	char *maps[64];

	for (int i = 0; i < 64; i++) {
		maps[i] = mmap(NULL, 4096U * (unsigned)(1 + i % 8), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		EXPECT(maps[i] != MAP_FAILED);
		memset(maps[i], i, 4096U * (unsigned)(1 + i % 8));
	}
	EXPECT(iou_free(busy->iou) == NULL);
	for (int i = 0; i < 64; i++)
		EXPECT(maps[i][0] == i && maps[i][4095] == i);
}

/* TSan allows no threads in the child of a process that has some. */
static bool has_kind(int kind)
{
	return kind != ENDED && (kind != JOB || !is_tsan());
}

/* An iou of the child's own works. */
static void child_makes_its_own(void *data)
{
	busy_t *busy = data;
	call_t calls[N_KINDS] = {{0}};
	iou_t *iou;

	EXPECT(iou_free(busy->iou) == NULL);
	iou = iou_new(4);
	EXPECT(iou != NULL);
	for (int kind = 0; kind < N_KINDS; kind++)
		if (has_kind(kind))
			start(iou, (kind_t)kind, on_call, &calls[kind]);
	EXPECT(iou_run(iou) == 0);
	for (int kind = 0; kind < N_KINDS; kind++)
		EXPECT(calls[kind].n == has_kind(kind));
	EXPECT(iou_free(iou) == NULL);
}

static void child_deletes_bh(void *data)
{
	busy_t *busy = data;

	iou_bh_delete(busy->bh);
	EXPECT(iou_free(busy->iou) == NULL);
}

static void (*const children[])(void *) = {child_calls_all, child_frees, child_calls_all_and_frees,
					   child_makes_its_own, child_deletes_bh};
#define N_CHILDREN ((int)(sizeof(children) / sizeof(children[0])))

/* _i: what the child does */
START_TEST(a_forked_child_does_no_harm)
{
	busy_t busy;

	make_busy(&busy);
	in_good_child(children[_i], &busy);
	ck_assert_int_eq(busy.job.n + busy.read.n + busy.posted.n, 0);
	finish_busy(&busy);
}
END_TEST

static void child_queues(void *data)
{
	busy_t *busy = data;

	iou_op_queue(busy->iou, busy->free_op, on_nothing, NULL);
}

static void child_times(void *data)
{
	busy_t *busy = data;

	iou_op_timer(busy->iou, busy->free_op, 1, 1, on_nothing, NULL);
}

static void child_gives_back(void *data)
{
	busy_t *busy = data;

	iou_op_free(busy->iou, busy->free_op);
}

static void child_sets_a_deadline(void *data)
{
	busy_t *busy = data;

	iou_op_deadline(busy->iou, busy->free_op, 1);
}

/* Calls that return nothing are misuse in the child, as from a wrong thread. */
START_TEST(the_void_calls_of_a_child_end_it)
{
	void (*const calls[])(void *) = {child_queues, child_times, child_gives_back,
					 child_sets_a_deadline};
	char said[1024];
	busy_t busy;
	int status;

	make_busy(&busy);
	for (int i = 0; i < 4; i++) {
		status = in_child(calls[i], &busy, said, sizeof(said));
		ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
		ck_assert_msg(strncmp(said, "iou: iou_op_", 12) == 0, "%s", said);
	}
	finish_busy(&busy);
}
END_TEST

/* Before its first run too. */
START_TEST(a_child_inherits_an_unused_iou)
{
	busy_t busy = {.iou = new_iou(4)};
	call_t call = {0};

	busy.free_op = new_op(busy.iou);
	busy.read.op = busy.free_op;
	busy.bh = new_bh(busy.iou, on_nothing, NULL);
	in_good_child(child_calls_all_and_frees, &busy);
	iou_op_free(busy.iou, busy.free_op);
	start(busy.iou, CQE, on_call, &call);
	run(busy.iou);
	ck_assert_int_eq(call.n, 1);
	done(busy.iou);
}
END_TEST

/* A parent's iou that is at rest: its descriptor quiet, a read in flight. */
static void child_quits(void *data) { iou_quit(((busy_t *)data)->iou); }
static void child_holds(void *data)
{
	iou_hold(((busy_t *)data)->iou);
	iou_unhold(((busy_t *)data)->iou);
}
static void child_unholds(void *data) { iou_unhold(((busy_t *)data)->iou); }
static void child_schedules(void *data) { iou_bh_schedule(((busy_t *)data)->bh); }
static void child_schedules_idle(void *data) { iou_bh_schedule_idle(((busy_t *)data)->bh); }
static void child_cancels_bh(void *data) { iou_bh_cancel(((busy_t *)data)->bh); }
static void child_only_deletes_bh(void *data) { iou_bh_delete(((busy_t *)data)->bh); }
static void child_posts(void *data)
{
	EXPECT(iou_post(((busy_t *)data)->iou, on_nothing, NULL) == -EEXIST);
}

static void (*const any_thread[])(void *) = {child_quits,	    child_holds,
					     child_unholds,	    child_schedules,
					     child_schedules_idle,  child_cancels_bh,
					     child_only_deletes_bh, child_posts,
					     child_calls_all,	    child_calls_all_and_frees};
#define N_ANY_THREAD ((int)(sizeof(any_thread) / sizeof(any_thread[0])))

static bool is_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

/* What any thread may call does nothing in the child: the descriptors of both are one, and the
 * parent's shows nothing of it. _i: what the child does */
START_TEST(a_child_wakes_nobody)
{
	busy_t busy = {.iou = new_iou(4)};
	int fd = iou_fd(busy.iou), wake_fd = wake_eventfd();
	int64_t count;

	ck_assert_int_ge(fd, 0);
	new_socketpair(busy.fds);
	call_read(busy.iou, &busy.read, 0, busy.fds[0]);
	busy.bh = new_bh(busy.iou, on_call, &busy.half);
	busy.free_op = new_op(busy.iou);
	for (int i = 0; i < 20 && is_readable(fd); i++)
		ck_assert_int_eq(iou_poll(busy.iou, 0), 0);
	ck_assert(!is_readable(fd));
	count = eventfd_count(wake_fd);
	in_good_child(any_thread[_i], &busy);
	ck_assert(!is_readable(fd));
	ck_assert_int_eq(eventfd_count(wake_fd), count);
	ck_assert_int_eq(iou_poll(busy.iou, 0), 0);
	iou_op_free(busy.iou, busy.free_op);
	ck_assert_int_eq(write(busy.fds[1], "x", 1), 1);
	run(busy.iou);
	ck_assert_int_eq(busy.read.result, 1);
	ck_assert_int_eq(busy.half.n, 0);
	close_pair(busy.fds);
	done(busy.iou);
}
END_TEST

static busy_t *the_busy;

static int on_fork_and_free(void *data)
{
	pid_t pid = fork_child();

	if (pid == 0) {
		EXPECT(iou_current() == the_busy->iou || iou_current() == NULL);
		call_all(the_busy);
		EXPECT(iou_free(the_busy->iou) == NULL); /* here too it is harmless */
		_exit(EXIT_SUCCESS);
	}
	ck_assert_int_eq(wait_child(pid), 0);
	return on_call(data);
}

/* _i: the kind of callback that forks */
START_TEST(a_callback_forks)
{
	call_t call = {0};
	busy_t busy;

	the_busy = &busy;
	make_busy(&busy);
	make_ready(busy.iou, (kind_t)_i, on_fork_and_free, &call);
	finish_busy(&busy);
	ck_assert_int_eq(call.n, 1);
}
END_TEST

/* While the loop of another thread sleeps: the child's frees and calls wake nobody and take
 * nothing. */
static pid_t loop_tid;
static uint64_t n_enters;

static void *run_loop(void *data)
{
	__atomic_store_n(&loop_tid, gettid(), __ATOMIC_RELEASE);
	EXPECT(iou_run(((busy_t *)data)->iou) == 0);
	n_enters = get_stats(((busy_t *)data)->iou).enters;
	return NULL;
}

START_TEST(a_thread_forks_beside_a_sleeping_loop)
{
	pthread_t thread;
	call_t timer;
	busy_t busy = {.iou = new_iou(4)};
	int wake_fd = wake_eventfd();
	int64_t count;
	pid_t tid;

	busy.free_op = new_op(busy.iou);
	busy.read.op = busy.free_op;
	busy.bh = new_bh(busy.iou, on_call, &busy.half);
	call_op(busy.iou, &timer, 0);
	iou_op_timer(busy.iou, timer.op, 50 * MSEC, 0, on_call, &timer);
	iou_hold(busy.iou);
	thread = start_thread(run_loop, &busy);
	WAIT_UNTIL((tid = __atomic_load_n(&loop_tid, __ATOMIC_ACQUIRE)));
	WAIT_UNTIL(loop_sleeps(tid));
	count = eventfd_count(wake_fd);
	for (int i = 0; i < N_ANY_THREAD; i++)
		in_good_child(any_thread[i], &busy);
	ck_assert_int_eq(eventfd_count(wake_fd), count);
	iou_bh_schedule(busy.bh);
	iou_unhold(busy.iou);
	join_thread(thread);
	ck_assert_int_eq(timer.n, 1);
	ck_assert_int_eq(busy.half.n, 1);
	/* asleep for the timer, the bottom half and the unhold, one or two each */
	ck_assert_uint_le(n_enters, 6);
	ck_assert_ptr_null(iou_free(busy.iou));
}
END_TEST

/* The parent frees while the child lives with its copy: peers see the end at once all the same. */
START_TEST(a_child_outlives_the_parents_free)
{
	iou_t *iou = new_iou(4);
	int fds[2], go[2], ready[2];
	call_t call;
	pid_t pid;
	char c;

	new_socketpair(fds);
	new_pipe(go);
	new_pipe(ready);
	call_read(iou, &call, 0, fds[0]);
	flush(iou);
	pid = fork_child();
	if (pid == 0) {
		close_pair(fds);
		close(go[1]);
		close_pair(ready);
		EXPECT(read(go[0], &c, 1) == 0);
		EXPECT(iou_free(iou) == NULL);
		_exit(EXIT_SUCCESS);
	}
	close(ready[1]);
	ck_assert_int_eq(read(ready[0], &c, 1), 0); /* the child has closed its own */
	close(ready[0]);
	close(fds[0]);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_int_eq(call.n, 0);
	ck_assert_int_eq(recv(fds[1], &c, 1, MSG_DONTWAIT), 0);
	close_pair(go);
	ck_assert_int_eq(wait_child(pid), 0);
	close(fds[1]);
}
END_TEST

/* ---- A child that goes on where it was forked ------------------------------------------------ */

static pid_t parent;
static int *n_in_child; /* shared memory: callbacks and jobs of the parent's that ran in a child */
static bool is_child;
static void (*in_the_child)(void); /* what it does before it goes on; NULL: nothing */
static iou_t *the_iou;

static void begin_forking(void (*func)(void))
{
	parent = getpid();
	in_the_child = func;
	n_in_child =
		mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(n_in_child, MAP_FAILED);
	fflush(NULL); /* what is in buffers is not the child's */
}

static void end_forking(void)
{
	ck_assert_int_eq(*n_in_child, 0);
	munmap(n_in_child, sizeof(int));
}

/* Returns the child's wait status, or in the child -1. */
static int fork_here(void)
{
	pid_t pid = fork_child();

	if (pid > 0)
		return wait_child(pid);
	is_child = true;
	if (in_the_child)
		in_the_child();
	return -1;
}

/* A callback of the parent's. */
static int on_other(void *data)
{
	*n_in_child += getpid() != parent;
	return on_call(data);
}

/* Forks when it is called first. A last callback then follows one that was none. */
static int on_fork(void *data)
{
	call_t *call = data;
	int status, fd = iou_fd(the_iou), wake_fd = wake_eventfd();
	int64_t count = eventfd_count(fd), wake_count = eventfd_count(wake_fd);
	bool readable = is_readable(fd);

	if (call->n > 0)
		return on_call(call);
	status = fork_here();
	if (status < 0)
		return 0;
	ck_assert_msg(status == 0, "the child ended with status %#x", (unsigned)status);
	/* they are the child's too, but not its to touch */
	ck_assert_int_eq(eventfd_count(fd), count);
	ck_assert_int_eq(eventfd_count(wake_fd), wake_count);
	ck_assert(is_readable(fd) == readable);
	on_call(call);
	if (call->op && call->flags & IORING_CQE_F_MORE)
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
	return 0;
}

/* Besides the kinds that helper.h has: an idle bottom half, a timer that ticks, a multishot op, a
 * completion in the program's own memory, the short form of a job. */
enum { IDLE = N_KINDS, TICK, MULTISHOT, HANDLER, SHORT_JOB, N_FORKING };

static call_t fork_call;

static int on_fork_handler(iou_handler_t *handler)
{
	(void)handler;
	return on_fork(&fork_call);
}

/* A callback of that kind will fork. event_fd is ready. */
static void start_forking(int kind, int event_fd)
{
	static iou_handler_t handler = {.cb = on_fork_handler};

	fork_call = (call_t){.op = NULL};
	if (kind == TICK || kind == MULTISHOT)
		call_op(the_iou, &fork_call, 0);
	switch (kind) {
	case IDLE:
		iou_bh_schedule_idle(new_bh(the_iou, on_fork, &fork_call));
		break;
	case TICK:
		iou_op_timer(the_iou, fork_call.op, 0, 3600 * SECOND, on_fork, &fork_call);
		break;
	case MULTISHOT:
		io_uring_prep_poll_multishot(fork_call.op->sqe, event_fd, POLLIN);
		iou_op_queue(the_iou, fork_call.op, on_fork, &fork_call);
		break;
	case HANDLER:
		ck_assert_int_eq(iou_add_sqe(the_iou, prep_nop, NULL, &handler), 0);
		break;
	case SHORT_JOB:
		ck_assert_int_eq(iou_async(the_iou, on_nothing, NULL, on_fork, &fork_call), 0);
		break;
	default:
		make_ready(the_iou, (kind_t)kind, on_fork, &fork_call);
	}
}

/* How the loop runs that calls it: by itself, in a callback of its own, in one of another iou. */
enum { RUN, POLL, RUN_IN_CALLBACK, POLL_IN_CALLBACK, RUN_IN_OTHER, POLL_IN_OTHER, N_WAYS };

static int turn(int way)
{
	return way % 2 == RUN ? iou_run(the_iou) : iou_poll(the_iou, -1);
}

/* Runs an inner loop until the fork is over. */
static int on_outer(void *data)
{
	int way = *(int *)data, ret;

	while (!fork_call.n_last) {
		ret = turn(way);
		if (is_child) {
			EXPECT(ret == -EEXIST);
			return 0;
		}
		ck_assert_int_ge(ret, 0);
	}
	return 0;
}

static _Noreturn void end_child(iou_t *outer, int ret)
{
	EXPECT(ret == -EEXIST);
	EXPECT(iou_current() == NULL);
	EXPECT(iou_run(the_iou) == -EEXIST && iou_poll(the_iou, 0) == -EEXIST);
	EXPECT(iou_run(outer) == -EEXIST && iou_poll(outer, -1) == -EEXIST);
	EXPECT(iou_free(the_iou) == NULL && (outer == the_iou || iou_free(outer) == NULL));
	EXPECT(*n_in_child == 0);
	_exit(EXIT_SUCCESS);
}

/* In the child nothing of this goes on; in the parent all of it, once. */
static void fork_in_callback(int kind, int way)
{
	call_t calls[2 * N_KINDS] = {{0}};
	int event_fd, ret;
	iou_t *outer;

	the_iou = new_iou_with(&(iou_config_t){.entries = 8, .workers = 2});
	ck_assert_int_ge(iou_fd(the_iou), 0);
	event_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	outer = way == RUN_IN_OTHER || way == POLL_IN_OTHER ? new_iou(4) : the_iou;
	if (way > POLL)
		post(outer, on_outer, &way);
	for (int i = 0; i < N_KINDS; i++)
		make_ready(the_iou, (kind_t)i, on_other, &calls[i]);
	start_forking(kind, event_fd);
	for (int i = 0; i < N_KINDS; i++)
		make_ready(the_iou, (kind_t)i, on_other, &calls[N_KINDS + i]);
	do {
		ret = way > POLL ? iou_run(outer) : turn(way);
		if (is_child)
			end_child(outer, ret);
		ck_assert_int_ge(ret, 0);
	} while (!fork_call.n_last);
	run(the_iou);
	for (int i = 0; i < 2 * N_KINDS; i++)
		ck_assert_int_eq(calls[i].n, 1);
	close(event_fd);
	done(the_iou);
	if (outer != the_iou)
		done(outer);
}

static void make_another(void)
{
	call_t calls[N_KINDS] = {{0}};
	iou_t *iou = iou_new(4);

	EXPECT(iou != NULL);
	for (int kind = 0; kind < N_KINDS; kind++)
		if (has_kind(kind))
			start(iou, (kind_t)kind, on_call, &calls[kind]);
	EXPECT(iou_run(iou) == 0);
	for (int kind = 0; kind < N_KINDS; kind++)
		EXPECT(calls[kind].n == has_kind(kind));
	EXPECT(iou_free(iou) == NULL);
	EXPECT(iou_run(the_iou) == -EEXIST); /* still */
}

static void fork_again(void)
{
	pid_t pid = fork_child();

	if (pid > 0)
		EXPECT(wait_child(pid) == 0);
}

static _Noreturn void free_and_exit(void)
{
	EXPECT(iou_post(the_iou, on_nothing, NULL) == -EEXIST);
	EXPECT(iou_free(the_iou) == NULL);
	EXPECT(*n_in_child == 0);
	_exit(EXIT_SUCCESS);
}

/* The child's callback returns, at once or after something else, or it ends in it. */
static void (*const before_returning[])(void) = {NULL, make_another, fork_again, free_and_exit};

/* _i: the kind of the callback that forks */
START_TEST(a_child_returns_from_a_callback)
{
	for (int i = 0; i < 4; i++) {
		begin_forking(before_returning[i]);
		for (int way = 0; way < N_WAYS; way++)
			fork_in_callback(_i, way);
		end_forking();
	}
}
END_TEST

/* ---- A fork in a job ------------------------------------------------------------------------- */

static gate_t fork_gate, other_gate;

static int other_job(void *data)
{
	__atomic_fetch_add(n_in_child, getpid() != parent, __ATOMIC_RELAXED);
	return on_nothing(data);
}

static int fork_in_job(void *data)
{
	int status;

	gate_job(&fork_gate);
	status = fork_here();
	if (status < 0)
		return 0;
	*(int *)data = status;
	return 7;
}

/* LeakSanitizer asks. A child without the other threads' stacks seems to leak what they refer
 * to. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
	return is_child;
}

static void free_in_job(void)
{
	EXPECT(iou_run(the_iou) == -EEXIST && iou_op_new(the_iou) == NULL);
	iou_quit(the_iou);
	free_and_exit();
}

/* Its thread ends, and with that the child, as by exit(0); or it ends in the job. _i: which of
 * them */
START_TEST(a_child_returns_from_a_job)
{
	enum { N = 10 };
	call_t job, others = {0};

	begin_forking(_i ? free_in_job : NULL);
	for (unsigned workers = 1; workers <= 2; workers++) {
		int status = -1;

		gate_init(&fork_gate);
		gate_init(&other_gate);
		others = (call_t){.n = 0};
		the_iou = new_iou_with(&(iou_config_t){.entries = 8, .workers = workers});
		call_op(the_iou, &job, 0);
		start_job(the_iou, job.op, fork_in_job, &status, on_call, &job);
		gate_wait(&fork_gate);
		if (workers == 2) /* which is in the middle of a job then */
			block_workers(the_iou, &other_gate, 1);
		for (int i = 0; i < N; i++)
			start_job(the_iou, new_op(the_iou), other_job, NULL, on_call, &others);
		gate_open(&fork_gate);
		unblock_workers(&other_gate, 1);
		run(the_iou);
		ck_assert_msg(status == 0, "the child ended with status %#x", (unsigned)status);
		ck_assert_int_eq(job.result, 7);
		ck_assert_int_eq(others.n, N);
		done(the_iou);
	}
	end_forking();
}
END_TEST

/* ---- A fork beside a busy loop --------------------------------------------------------------- */

/* A loop that never sleeps for long, and a thread that gives it more. */
typedef struct traffic_t {
	iou_t *iou;
	iou_op_t *nop, *job, *tick;
	iou_bh_t *bh;
	int ring_fd;
	bool stop;          /* set by the thread that forks */
	int n_forks, n_max; /* of callbacks that do */
	long n_posted, n_delivered;
} traffic_t;

static traffic_t traffic;

static bool stops(void)
{
	return __atomic_load_n(&traffic.stop, __ATOMIC_RELAXED);
}

static int on_traffic_nop(void *data)
{
	if (!stops())
		nop_queue(traffic.iou, traffic.nop, on_traffic_nop, data);
	return 0;
}

static int on_traffic_job(void *data)
{
	return stops() ? 0
		       : iou_op_async(traffic.iou, traffic.job, on_nothing, NULL, on_traffic_job,
				      data);
}

static int on_traffic_post(void *data)
{
	free(data);
	__atomic_fetch_add(&traffic.n_delivered, 1, __ATOMIC_RELAXED);
	return 0;
}

/* Posts, and bottom halves that come and go; not many more than are delivered, since a child has to
 * copy what it frees. */
static void *give_traffic(void *data)
{
	while (!stops()) {
		if (traffic.n_posted - __atomic_load_n(&traffic.n_delivered, __ATOMIC_RELAXED) <
		    3000) {
			iou_bh_t *bh = new_bh(traffic.iou, on_nothing, NULL);

			for (int i = 0; i < 10; i++, traffic.n_posted++)
				post(traffic.iou, on_traffic_post, malloc(64));
			iou_bh_schedule(bh);
			iou_bh_delete(bh);
		}
		iou_bh_schedule_idle(traffic.bh);
		iou_bh_schedule(traffic.bh);
		iou_bh_cancel(traffic.bh);
	}
	iou_unhold(traffic.iou);
	return data;
}

static void *run_traffic(void *data)
{
	int ret = iou_run(traffic.iou);

	if (is_child) {
		EXPECT(ret == -EEXIST);
		EXPECT(iou_free(traffic.iou) == NULL);
		EXPECT(fcntl(traffic.ring_fd, F_GETFD) == -1);
		_exit(EXIT_SUCCESS);
	}
	EXPECT(ret == 0);
	return data;
}

static void begin_traffic(unsigned setup_flags)
{
	traffic = (traffic_t){.iou = new_iou_with(&(iou_config_t){
				      .entries = 8, .workers = 2, .setup_flags = setup_flags})};
	traffic.ring_fd = iou_ring(traffic.iou)->ring_fd;
	traffic.bh = new_bh(traffic.iou, on_nothing, NULL);
	traffic.nop = new_op(traffic.iou);
	traffic.job = new_op(traffic.iou);
	traffic.tick = new_op(traffic.iou);
	on_traffic_nop(NULL);
	ck_assert_int_eq(on_traffic_job(NULL), 0);
	iou_hold(traffic.iou);
}

static void end_traffic(pthread_t giver)
{
	__atomic_store_n(&traffic.stop, true, __ATOMIC_RELAXED);
	join_thread(giver);
}

static void free_traffic(void)
{
	EXPECT(iou_post(traffic.iou, on_nothing, NULL) == -EEXIST);
	EXPECT(iou_free(traffic.iou) == NULL);
	EXPECT(fcntl(traffic.ring_fd, F_GETFD) == -1);
	_exit(EXIT_SUCCESS);
}

/* Bytes, or always 0 where the C library does not tell. */
static size_t n_allocated(void)
{
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 33)
	return mallinfo2().uordblks;
#endif
#endif
	return 0;
}

/* The loop may have been about to free something itself: that is left (ASan looks, too). */
static void free_beside_the_loop(void)
{
	size_t n_before = n_allocated();

	EXPECT(iou_free(traffic.iou) == NULL);
	EXPECT(n_allocated() == n_before);
	EXPECT(traffic.tick->result == 0);
	EXPECT(fcntl(traffic.ring_fd, F_GETFD) == -1);
	_exit(EXIT_SUCCESS);
}

static int n_to_fork(void)
{
	return is_slow() ? 10 : 50;
}

static int on_running(void *running)
{
	return sem_post(running);
}

/* Forked by the thread that made it, while another one runs it. _i: by one that owns it, or handed
 * on */
START_TEST(a_child_frees_what_another_thread_runs)
{
	pthread_t giver, runner;
	sem_t running;

	sem_init(&running, 0, 0);
	begin_traffic(_i ? IORING_SETUP_CLAMP : 0);
	begin_forking(free_beside_the_loop);
	post(traffic.iou, on_running, &running);
	runner = start_thread(run_traffic, NULL);
	sem_wait(&running);
	giver = start_thread(give_traffic, NULL);
	for (int i = 0; i < n_to_fork(); i++) {
		int status = fork_here();

		ck_assert_msg(status == 0, "child %d ended with status %#x", i, (unsigned)status);
	}
	end_traffic(giver);
	join_thread(runner);
	ck_assert_int_eq(traffic.n_delivered, traffic.n_posted);
	end_forking();
	sem_destroy(&running);
	ck_assert_ptr_null(iou_free(traffic.iou));
}
END_TEST

static int on_traffic_tick(void *data)
{
	int status = fork_here();

	if (status < 0)
		return 0; /* to run_traffic() */
	if (status)
		fprintf(stderr, "the child ended with status %#x\n", (unsigned)status);
	EXPECT(status == 0);
	if (++traffic.n_forks < traffic.n_max)
		iou_op_timer(traffic.iou, traffic.tick, 10 * USEC, 0, on_traffic_tick, data);
	else
		__atomic_store_n(&traffic.stop, true, __ATOMIC_RELAXED);
	return 0;
}

/* Forked by the loop's thread, while another one is somewhere in a call. */
START_TEST(a_child_frees_what_another_thread_posts_to)
{
	pthread_t giver;

	begin_traffic(0);
	begin_forking(NULL);
	traffic.n_max = n_to_fork();
	iou_op_timer(traffic.iou, traffic.tick, 0, 0, on_traffic_tick, NULL);
	giver = start_thread(give_traffic, NULL);
	run_traffic(NULL);
	end_traffic(giver);
	ck_assert_int_eq(traffic.n_delivered, traffic.n_posted);
	end_forking();
	done(traffic.iou);
}
END_TEST

/* Before it belongs to anyone: its maker's child frees it. */
START_TEST(a_child_frees_what_nobody_runs_yet)
{
	pthread_t giver;

	begin_traffic(0);
	begin_forking(free_traffic);
	giver = start_thread(give_traffic, NULL);
	for (int i = 0; i < n_to_fork(); i++) {
		int status = fork_here();

		ck_assert_msg(status == 0, "child %d ended with status %#x", i, (unsigned)status);
	}
	end_traffic(giver);
	run(traffic.iou);
	ck_assert_int_eq(traffic.n_delivered, traffic.n_posted);
	end_forking();
	iou_op_free(traffic.iou, traffic.tick);
	done(traffic.iou);
}
END_TEST

Suite *fork_suite(void)
{
	Suite *suite = suite_create("fork");
	TCase *tcase = TEST_CASE(
		suite, "fork", the_void_calls_of_a_child_end_it, a_child_inherits_an_unused_iou,
		a_thread_forks_beside_a_sleeping_loop, a_child_outlives_the_parents_free);

	tcase_add_loop_test(tcase, a_forked_child_does_no_harm, 0, N_CHILDREN);
	tcase_add_loop_test(tcase, a_child_wakes_nobody, 0, N_ANY_THREAD);
	tcase_add_loop_test(tcase, a_callback_forks, 0, N_KINDS);
	tcase_add_loop_test(tcase, a_child_returns_from_a_callback, 0, N_FORKING);
	tcase_add_loop_test(tcase, a_child_returns_from_a_job, 0, 2);
	tcase = TEST_CASE(suite, "beside", a_child_frees_what_another_thread_posts_to,
			  a_child_frees_what_nobody_runs_yet);
	tcase_add_loop_test(tcase, a_child_frees_what_another_thread_runs, 0, 2);
	return suite;
}
