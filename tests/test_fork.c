/* SPDX-License-Identifier: MIT */

/* A fork while an iou has everything in flight: the child's copy is dead and harmless, the parent's goes on. */

#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
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
	busy->iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 2}); /* one of them is kept busy */
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

	/* The ring is shared memory: a child that could write to it could harm the parent. */
	EXPECT(mincore(busy->sqes, 1, there) == -1 && errno == ENOMEM);
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
START_TEST(a_child_does_no_harm)
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
START_TEST(a_childs_void_calls_end_it)
{
	void (*const calls[])(void *) = {child_queues, child_times, child_gives_back, child_sets_a_deadline};
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
START_TEST(a_child_of_an_unused_iou)
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
static void child_holds(void *data) { iou_hold(((busy_t *)data)->iou); iou_unhold(((busy_t *)data)->iou); }
static void child_unholds(void *data) { iou_unhold(((busy_t *)data)->iou); }
static void child_schedules(void *data) { iou_bh_schedule(((busy_t *)data)->bh); }
static void child_schedules_idle(void *data) { iou_bh_schedule_idle(((busy_t *)data)->bh); }
static void child_cancels_bh(void *data) { iou_bh_cancel(((busy_t *)data)->bh); }
static void child_only_deletes_bh(void *data) { iou_bh_delete(((busy_t *)data)->bh); }
static void child_posts(void *data) { EXPECT(iou_post(((busy_t *)data)->iou, on_nothing, NULL) == -EEXIST); }

static void (*const any_thread[])(void *) = {child_quits, child_holds, child_unholds, child_schedules,
					     child_schedules_idle, child_cancels_bh, child_only_deletes_bh, child_posts,
					     child_calls_all, child_calls_all_and_frees};
#define N_ANY_THREAD ((int)(sizeof(any_thread) / sizeof(any_thread[0])))

static bool is_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

/* What any thread may call does nothing in the child: the descriptors of both are one, and the parent's shows
 * nothing of it. _i: what the child does */
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

static int on_fork(void *data)
{
	int status;
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		EXPECT(iou_current() == the_busy->iou || iou_current() == NULL);
		call_all(the_busy);
		EXPECT(iou_free(the_busy->iou) == NULL); /* here too it is harmless */
		_exit(EXIT_SUCCESS);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	return on_call(data);
}

/* _i: the kind of callback that forks */
START_TEST(a_callback_forks)
{
	call_t call = {0};
	busy_t busy;

	the_busy = &busy;
	make_busy(&busy);
	make_ready(busy.iou, (kind_t)_i, on_fork, &call);
	finish_busy(&busy);
	ck_assert_int_eq(call.n, 1);
}
END_TEST

/* While the loop of another thread sleeps: the child's frees and calls wake nobody and take nothing. */
static pid_t loop_tid;
static uint64_t n_enters;

static void *run_loop(void *data)
{
	__atomic_store_n(&loop_tid, gettid(), __ATOMIC_RELEASE);
	EXPECT(iou_run(((busy_t *)data)->iou) == 0);
	n_enters = get_stats(((busy_t *)data)->iou).enters;
	return NULL;
}

START_TEST(a_fork_beside_a_sleeping_loop)
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
	ck_assert_uint_le(n_enters, 6); /* asleep for the timer, the bottom half and the unhold, one or two each */
	ck_assert_ptr_null(iou_free(busy.iou));
}
END_TEST

/* The parent frees while the child lives with its copy: peers see the end at once all the same. */
START_TEST(the_parent_frees_first)
{
	iou_t *iou = new_iou(4);
	int fds[2], go[2], ready[2], status;
	call_t call;
	pid_t pid;
	char c;

	new_socketpair(fds);
	new_pipe(go);
	new_pipe(ready);
	call_read(iou, &call, 0, fds[0]);
	flush(iou);
	pid = fork();
	ck_assert_int_ge(pid, 0);
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
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	close(fds[1]);
}
END_TEST

Suite *fork_suite(void)
{
	Suite *suite = suite_create("fork");
	TCase *tcase = TEST_CASE(suite, "fork", a_childs_void_calls_end_it, a_child_of_an_unused_iou,
				 a_fork_beside_a_sleeping_loop, the_parent_frees_first);

	tcase_add_loop_test(tcase, a_child_does_no_harm, 0, N_CHILDREN);
	tcase_add_loop_test(tcase, a_child_wakes_nobody, 0, N_ANY_THREAD);
	tcase_add_loop_test(tcase, a_callback_forks, 0, N_KINDS);
	return suite;
}
