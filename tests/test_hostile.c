/* SPDX-License-Identifier: MIT */

/*
 * Surroundings that mean no good: what else may go on in a process, and what its administrator may
 * forbid. What is refused by seccomp and by limits is in test_life.c, forks in test_fork.c.
 */

#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

/* ---- Signals --------------------------------------------------------------------------------- */

/* A mixture that counts itself: bytes through a pipe, jobs, a ticking timer, posts from another
 * thread. */
typedef struct mixture_t {
	iou_t *iou;
	iou_op_t *reader, *writer, *job, *timer;
	int fds[2], n_reads, n_writes, n_jobs, n_ticks, n_posts;
	int to_do;
	bool interrupted; /* by signals, again and again */
	char in, out;
	pthread_t thread;
} mixture_t;

/* On a slow machine the kernel may not get an io-wq worker started between two signals: README,
 * "Storms of signals". */
static bool gave_up(const mixture_t *mix, const iou_op_t *op)
{
	return op->result == -ECANCELED && mix->interrupted && is_slow();
}

static int on_read(void *data);

static void queue_read(mixture_t *mix)
{
	io_uring_prep_read(mix->reader->sqe, mix->fds[0], &mix->in, 1, (uint64_t)-1);
	iou_op_queue(mix->iou, mix->reader, on_read, mix);
}

static int on_read(void *data)
{
	mixture_t *mix = data;

	if (!gave_up(mix, mix->reader)) {
		EXPECT(mix->reader->result == 1 && mix->in == (char)mix->n_reads);
		mix->n_reads++;
	}
	if (mix->n_reads < mix->to_do)
		queue_read(mix);
	return 0;
}

static int on_write(void *data);

static void queue_write(mixture_t *mix)
{
	mix->out = (char)mix->n_writes;
	io_uring_prep_write(mix->writer->sqe, mix->fds[1], &mix->out, 1, (uint64_t)-1);
	iou_op_queue(mix->iou, mix->writer, on_write, mix);
}

static int on_write(void *data)
{
	mixture_t *mix = data;

	if (!gave_up(mix, mix->writer)) {
		EXPECT(mix->writer->result == 1);
		mix->n_writes++;
	}
	if (mix->n_writes < mix->to_do)
		queue_write(mix);
	return 0;
}

static int on_job(void *data)
{
	mixture_t *mix = data;

	if (++mix->n_jobs == mix->to_do)
		return 0;
	return iou_op_async(mix->iou, mix->job, on_nothing, NULL, on_job, mix);
}

static int on_tick(void *data)
{
	mixture_t *mix = data;

	if (!(mix->timer->flags & IORING_CQE_F_MORE))
		return 0; /* cancelled */
	mix->n_ticks += mix->timer->result;
	if (mix->n_ticks >= mix->to_do / 20)
		EXPECT(iou_op_cancel(mix->iou, mix->timer) == 0);
	return 0;
}

static int on_post(void *data)
{
	((mixture_t *)data)->n_posts++;
	return 0;
}

static void *post_many(void *data)
{
	mixture_t *mix = data;

	for (int i = 0; i < mix->to_do; i++) {
		EXPECT(iou_post(mix->iou, on_post, mix) == 0);
		if (i % 8 == 0)
			sched_yield();
	}
	iou_unhold(mix->iou);
	return NULL;
}

static iou_op_t *take(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);

	EXPECT(op);
	return op;
}

static void mix_all(mixture_t *mix)
{
	mix->iou = iou_new(4);
	EXPECT(mix->iou && pipe2(mix->fds, O_CLOEXEC) == 0);
	mix->reader = take(mix->iou);
	queue_read(mix);
	mix->writer = take(mix->iou);
	queue_write(mix);
	mix->job = take(mix->iou);
	EXPECT(iou_op_async(mix->iou, mix->job, on_nothing, NULL, on_job, mix) == 0);
	mix->timer = take(mix->iou);
	iou_op_timer(mix->iou, mix->timer, MSEC, MSEC, on_tick, mix);
	iou_hold(mix->iou);
	EXPECT(pthread_create(&mix->thread, NULL, post_many, mix) == 0);
	EXPECT(iou_run(mix->iou) == 0);
	EXPECT(pthread_join(mix->thread, NULL) == 0);
	EXPECT(mix->n_reads == mix->to_do && mix->n_writes == mix->to_do &&
	       mix->n_jobs == mix->to_do);
	EXPECT(mix->n_posts == mix->to_do && mix->n_ticks >= mix->to_do / 20);
	EXPECT(iou_free(mix->iou) == NULL);
	close_pair(mix->fds);
}

/* A thousand signals a second: nothing of it is seen. */
START_TEST(a_storm_of_signals_does_no_harm)
{
	mixture_t mix = {.to_do = is_slow() ? 2000 : 20000, .interrupted = true};

	start_alarms(MSEC, NULL);
	mix_all(&mix);
	stop_alarms();
}
END_TEST

static void mix_in_child(void *data)
{
	mix_all(data);
}

/* Returns how often it was stopped before it ended. */
static int stop_and_continue(int to_do)
{
	mixture_t mix = {.to_do = to_do, .interrupted = true};
	int status, n = 0;
	pid_t pid = fork();

	if (pid == 0) {
		mix_in_child(&mix);
		_exit(0);
	}
	ck_assert_int_gt(pid, 0);
	for (;;) {
		ck_assert_int_eq(kill(pid, SIGSTOP), 0);
		ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
		if (!WIFSTOPPED(status))
			break;
		n++;
		ck_assert_int_eq(kill(pid, SIGCONT), 0);
		nap();
		if (n == 50) {
			ck_assert_int_eq(waitpid(pid, &status, 0), pid);
			break;
		}
	}
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0,
		      "it ended with %x after %d stops", (unsigned)status, n);
	return n;
}

/* Stopped and continued, as by a shell: nothing of it is seen. On a busy machine it may be over
 * before. */
START_TEST(being_stopped_and_continued_does_no_harm)
{
	int n = 0;

	for (int i = 0; i < 20 && n < 5; i++)
		n = stop_and_continue(is_slow() ? 1000 : 10000);
	ck_assert_int_ge(n, 1);
}
END_TEST

static _Noreturn void open_in_child(const char *fifo, int ready)
{
	iou_t *iou = iou_new(4);
	call_t call;

	EXPECT(iou);
	io_uring_prep_openat(call_op(iou, &call, 0), AT_FDCWD, fifo, O_RDONLY, 0);
	call.op->sqe->flags |= IOSQE_ASYNC;
	call_queue(iou, &call);
	EXPECT(iou_flush(iou) == 0);
	EXPECT(write(ready, "", 1) == 1);
	EXPECT(iou_run(iou) == 0);
	EXPECT(call.n == 1);
	iou_free(iou);
	_exit(call.result < 0 ? -call.result : 0);
}

/* What waits in io-wq is interrupted by a stop (-ERESTARTSYS), and has to go on as a system call
 * would. */
START_TEST(an_op_in_io_wq_goes_on_after_a_stop)
{
	const char *fifo = new_fifo("stopped");
	int ready[2], status, fd;
	char byte;
	pid_t pid;

	new_pipe(ready);
	pid = fork();
	if (pid == 0)
		open_in_child(fifo, ready[1]);
	ck_assert_int_gt(pid, 0);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	for (int i = 0; i < 20; i++) {
		nap();
		ck_assert_int_eq(kill(pid, SIGSTOP), 0);
		ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
		if (WIFEXITED(status) && WEXITSTATUS(status) == EINTR && !kernel_at_least(6, 18)) {
			close_pair(ready);
			SKIP("this kernel says -EINTR of what is to be started again (6.12 does)");
		}
		ck_assert_msg(WIFSTOPPED(status), "after %d stops: %s", i,
			      strerror(WEXITSTATUS(status)));
		ck_assert_int_eq(kill(pid, SIGCONT), 0);
	}
	fd = open(fifo, O_WRONLY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "it ended with %x",
		      (unsigned)status);
	close(fd);
	close_pair(ready);
}
END_TEST

/* ---- Descriptors ----------------------------------------------------------------------------- */

/* A program that is executed inherits none of iou's. */
START_TEST(exec_inherits_nothing)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};
	char line[512];
	int n = 0;
	FILE *ls;

	ck_assert_int_ge(iou_fd(iou), 0);
	make_ready(iou, JOB, on_call, &call);
	make_ready(iou, CQE, on_call, &call);
	ls = popen("ls -l /proc/self/fd", "re");
	ck_assert_ptr_nonnull(ls);
	while (fgets(line, sizeof(line), ls)) {
		n++;
		ck_assert_msg(!strstr(line, "anon_inode"), "%s", line);
	}
	ck_assert_int_eq(pclose(ls), 0);
	ck_assert_int_gt(n, 3);
	run(iou);
	done(iou);
}
END_TEST

static int n_called;

static int count(void *data)
{
	(void)data;
	n_called++;
	return 0;
}

/* What a daemon does that closes all descriptors, forgetting whose they are. */
static void close_the_ring(void *data)
{
	bool used_before = *(bool *)data;
	iou_t *iou = iou_new(4);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	int ret = 0;

	EXPECT(op);
	if (used_before)
		EXPECT(iou_run(iou) == 0);
	close(iou_ring(iou)->ring_fd);
	nop_queue(iou, op, count, NULL);
	for (int i = 0; i < 3 && !n_called; i++) {
		ret = iou_run(iou);
		EXPECT(ret == 0 ? n_called == 1 : ret == -EBADF);
	}
	/* else the kernel still reaches it by its registered index, since 5.18 */
	EXPECT(used_before || ret == -EBADF || strcmp(iou_engine_name(iou), "fallback") == 0);
	EXPECT(get_stats(iou).enters <= 10); /* it does not try for ever */
	EXPECT(iou_free(iou) == NULL);
}

START_TEST(the_ring_is_closed_behind_its_back)
{
	bool used_before = _i;

	in_good_child(close_the_ring, &used_before);
}
END_TEST

/* ---- What is for the whole system: only in a machine of one's own ---------------------------- */

static const char sysctl_path[] = "/proc/sys/kernel/io_uring_disabled";

static bool disable(char how)
{
	int fd = open(sysctl_path, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, &how, 1) == 1;

	if (fd >= 0)
		close(fd);
	return good;
}

static void become_nobody(void)
{
	EXPECT(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 &&
	       setresuid(65534, 65534, 65534) == 0);
}

static void refused(void *as_nobody)
{
	iou_t *iou;

	if (as_nobody)
		become_nobody();
	errno = 0;
	iou = iou_new_with(&(iou_config_t){.engine = IOU_ENGINE_RING});
	EXPECT(!iou && errno == EPERM);
	iou = iou_new(4);
	EXPECT(iou && strcmp(iou_engine_name(iou), "fallback") == 0);
	iou_free(iou);
}

static void granted(void *data)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.engine = IOU_ENGINE_RING});

	(void)data;
	EXPECT(iou && iou_run(iou) == 0);
	iou_free(iou);
}

START_TEST(a_sysctl_disables_io_uring)
{
	iou_t *iou = new_iou(4);
	call_t call;

	if (access(sysctl_path, W_OK) != 0) {
		done(iou);
		SKIP("needs kernel.io_uring_disabled (6.6)");
	}
	ck_assert(disable('1'));
	in_good_child(refused, iou); /* as nobody */
	in_good_child(granted, NULL);
	ck_assert(disable('2'));
	in_good_child(refused, NULL);
	io_uring_prep_nop(call_op(iou, &call, 0)); /* one that is there goes on */
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert(disable('0'));
	in_good_child(granted, NULL);
	done(iou);
}
END_TEST

static void set_clock(int64_t by_seconds)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	now.tv_sec += by_seconds;
	ck_assert_int_eq(clock_settime(CLOCK_REALTIME, &now), 0);
}

/* An hour forward and two back, while timers, deadlines and a poll of iou_fd() wait: none is early,
 * all come. */
START_TEST(setting_the_clock_moves_no_timer)
{
	static const int64_t jumps[] = {3600, -7200, 3600};
	uint64_t wait_ns = 300 * MSEC;
	iou_t *iou = new_iou(4);

	for (unsigned i = 0; i < sizeof(jumps) / sizeof(jumps[0]); i++) {
		uint64_t began_ns = now_ns();
		call_t timer, late;
		int fds[2];
		char byte;

		new_pipe(fds);
		call_op(iou, &timer, 0);
		iou_op_timer(iou, timer.op, wait_ns, 0, on_call, &timer);
		io_uring_prep_read(call_op(iou, &late, 1), fds[0], &byte, 1, 0);
		iou_op_deadline(iou, late.op, wait_ns);
		call_queue(iou, &late);
		flush(iou);
		set_clock(jumps[i]);
		if (i == 1) {
			struct pollfd pollfd = {.fd = iou_fd(iou), .events = POLLIN};

			while (now_ns() - began_ns < wait_ns) {
				ck_assert_int_ge(iou_poll(iou, 0), 0);
				ck_assert_int_ge(poll(&pollfd, 1, 10000), 0);
			}
		}
		run(iou);
		ck_assert_uint_ge(now_ns() - began_ns, wait_ns);
		ck_assert_int_eq(timer.result, 1);
		ck_assert_int_eq(late.result, -ETIME);
		close(fds[0]);
		close(fds[1]);
	}
	done(iou);
}
END_TEST

Suite *hostile_suite(void)
{
	Suite *suite = suite_create("hostile");

	TEST_CASE(suite, "signals", a_storm_of_signals_does_no_harm,
		  being_stopped_and_continued_does_no_harm, an_op_in_io_wq_goes_on_after_a_stop);
	TEST_CASE(suite, "descriptors", exec_inherits_nothing);
	tcase_add_loop_test(TEST_CASE(suite, "closed", NULL), the_ring_is_closed_behind_its_back, 0,
			    2);
	if (getenv("IOU_TEST_OWN_MACHINE"))
		TEST_CASE(suite, "machine", a_sysctl_disables_io_uring,
			  setting_the_clock_moves_no_timer);
	return suite;
}
