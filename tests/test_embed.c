/* SPDX-License-Identifier: MIT */

/* iou_fd(): an iou inside another event loop, driven by nothing but its descriptor. */

#include "helper.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#ifdef HAVE_GLIB
#include <glib-unix.h>
#endif

/* An iou in an epoll set. */
typedef struct host_t {
	iou_t *iou;
	int epoll_fd;
	int n_polls; /* times iou_poll() was called */
	int fds[2];
} host_t;

static void new_host_of(host_t *host, iou_t *iou)
{
	struct epoll_event event = {.events = EPOLLIN};
	int fd;

	host->iou = iou;
	host->n_polls = 0;
	new_socketpair(host->fds);
	host->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	ck_assert_int_ge(host->epoll_fd, 0);
	fd = iou_fd(host->iou);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(epoll_ctl(host->epoll_fd, EPOLL_CTL_ADD, fd, &event), 0);
}

static void new_host(host_t *host)
{
	new_host_of(host, new_iou(4));
}

static void end_host(host_t *host)
{
	close(host->epoll_fd);
	close_pair(host->fds);
	done(host->iou);
}

static int wait_for(host_t *host, int timeout_ms)
{
	struct epoll_event event;
	int n;

	do
		n = epoll_wait(host->epoll_fd, &event, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n;
}

/* What the surrounding loop does: wait for the descriptor, then poll without waiting. */
static void turn(host_t *host)
{
	ck_assert_msg(wait_for(host, 20000) == 1, "the descriptor does not become readable");
	host->n_polls++;
	ck_assert_int_ge(iou_poll(host->iou, 0), 0);
}

/* Turns until it is quiet: soon, where there is nothing to do. */
static void settle(host_t *host)
{
	for (int i = 0; wait_for(host, 0) == 1; i++) {
		ck_assert_msg(i < 20, "it stays readable");
		turn(host);
	}
}

#define TURN_UNTIL(host, cond) \
	do { \
		while (!(cond)) \
			turn(host); \
	} while (0)

/* ---- Each source by itself ------------------------------------------------------------------- */

/* _i: the kind. Started from outside, with no other call than the turns; again after it was
 * quiet. */
START_TEST(iou_fd_drives_each_kind)
{
	host_t host;

	new_host(&host);
	for (int i = 0; i < 20; i++) {
		call_t call = {0};

		if (_i == ENDED)
			make_ready(host.iou, ENDED, on_call, &call);
		else
			start(host.iou, (kind_t)_i, on_call, &call);
		TURN_UNTIL(&host, call.n);
		ck_assert_int_eq(call.n, 1);
		if (i % 2)
			settle(&host);
	}
	end_host(&host);
}
END_TEST

typedef struct again_t {
	iou_t *iou;
	iou_op_t *op;
	int n;
} again_t;

static int on_again(void *data)
{
	again_t *again = data;

	if (++again->n < 100)
		nop_queue(again->iou, again->op, on_again, again);
	return 0;
}

/* What a callback queues is left to the next round, and nothing else would bring that about. */
START_TEST(iou_fd_tells_of_what_callbacks_queue)
{
	again_t again = {.n = 0};
	host_t host;

	new_host(&host);
	again.iou = host.iou;
	again.op = new_op(host.iou);
	nop_queue(host.iou, again.op, on_again, &again);
	TURN_UNTIL(&host, again.n == 100);
	settle(&host);
	end_host(&host);
}
END_TEST

static pid_t loop_tid;

typedef struct wake_t {
	host_t *host;
	kind_t kind;
	iou_bh_t *bh;
	call_t call;
	bool idle;
} wake_t;

/* On another thread, once the surrounding loop sleeps in epoll_wait(). */
static int wake_it(void *data)
{
	wake_t *wake = data;

	WAIT_UNTIL(loop_sleeps(loop_tid));
	if (wake->kind == CQE)
		EXPECT(write(wake->host->fds[1], "x", 1) == 1);
	else if (wake->kind == POST)
		post(wake->host->iou, on_call, &wake->call);
	else if (wake->kind == BH && wake->idle)
		iou_bh_schedule_idle(wake->bh);
	else if (wake->kind == BH)
		iou_bh_schedule(wake->bh);
	return 0;
}

static void *wake_thread(void *data)
{
	wake_it(data);
	return NULL;
}

/* _i: the kind. What happens elsewhere while the surrounding loop sleeps wakes it. */
START_TEST(iou_fd_wakes_the_surrounding_loop)
{
	wake_t wake = {.kind = (kind_t)_i};
	pthread_t thread = 0;
	host_t host;

	new_host(&host);
	loop_tid = gettid();
	wake.host = &host;
	wake.bh = new_bh(host.iou, on_call, &wake.call);
	for (int i = 0; i < 10; i++) {
		wake.call = (call_t){0};
		wake.idle = i % 2;
		if (_i == CQE)
			call_read(host.iou, &wake.call, 0, host.fds[0]);
		else if (_i == TIMER)
			iou_op_timer(host.iou, new_op(host.iou), 5 * MSEC, 0, on_call, &wake.call);
		else if (_i == JOB)
			thread = 0;
		settle(&host);
		if (_i == JOB)
			start_job(host.iou, new_op(host.iou), wake_it, &wake, on_call, &wake.call);
		else if (_i != TIMER)
			thread = start_thread(wake_thread, &wake);
		TURN_UNTIL(&host, wake.call.n);
		ck_assert_int_eq(wake.call.n, 1);
		if (_i != JOB && _i != TIMER)
			join_thread(thread);
	}
	settle(&host);
	end_host(&host);
}
END_TEST

static void *write_eventfd(void *data)
{
	uint64_t one = 1;

	WAIT_UNTIL(loop_sleeps(loop_tid));
	EXPECT(write(*(int *)data, &one, sizeof(one)) == sizeof(one));
	return NULL;
}

/* An eventfd that the program waits for through the ring. Its write may not signal another eventfd
 * at once, and kernels from 6.11 on do it one single time. */
START_TEST(an_eventfd_of_the_program_wakes)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	pthread_t thread;
	uint64_t value;
	host_t host;
	call_t call;

	new_host(&host);
	loop_tid = gettid();
	for (int i = 0; i < 5; i++) {
		io_uring_prep_read(call_op(host.iou, &call, 0), fd, &value, sizeof(value), 0);
		call_queue(host.iou, &call);
		settle(&host);
		thread = start_thread(write_eventfd, &fd);
		TURN_UNTIL(&host, call.n);
		join_thread(thread);
		ck_assert_int_eq(call.result, sizeof(value));
	}
	close(fd);
	end_host(&host);
}
END_TEST

/* ---- Timers ---------------------------------------------------------------------------------- */

START_TEST(iou_fd_becomes_readable_when_a_timer_is_due)
{
	uint64_t began_ns;
	call_t call, far;
	host_t host;

	new_host(&host);
	settle(&host);
	call_op(host.iou, &far, 1);
	iou_op_timer(host.iou, far.op, 100 * SECOND, 0, on_call, &far);
	settle(&host);
	began_ns = now_ns();
	call_op(host.iou, &call, 0); /* one that is due earlier, with no round in between */
	iou_op_timer(host.iou, call.op, 20 * MSEC, 0, on_call, &call);
	TURN_UNTIL(&host, call.n);
	ck_assert_uint_ge(now_ns() - began_ns, 20 * MSEC);
	ck_assert_int_le(host.n_polls, 14);

	call_op(host.iou, &call, 0);
	iou_op_timer(host.iou, call.op, 100 * SECOND, 0, on_call, &call);
	settle(&host);
	iou_op_timer(host.iou, call.op, 5 * MSEC, 0, on_call, &call); /* moved to an earlier time */
	TURN_UNTIL(&host, call.n);
	do { /* on a busy machine it may be due at once */
		call_op(host.iou, &call, 0);
		iou_op_timer(host.iou, call.op, 5 * MSEC, 0, on_call, &call);
		settle(&host);
	} while (call.n);
	began_ns = now_ns();
	iou_op_timer(host.iou, call.op, 30 * MSEC, 0, on_call, &call); /* and to a later one */
	TURN_UNTIL(&host, call.n);
	ck_assert_uint_ge(now_ns() - began_ns, 30 * MSEC);

	call_op(host.iou, &call, 0);
	iou_op_timer(host.iou, call.op, UINT64_MAX, 1, on_call, &call);
	settle(&host);
	ck_assert_int_eq(iou_op_cancel(host.iou, call.op), 0);
	TURN_UNTIL(&host, call.n);
	ck_assert_int_eq(call.result, -ECANCELED);
	settle(&host);
	ck_assert_int_eq(iou_op_cancel(host.iou, far.op), 0);
	TURN_UNTIL(&host, far.n);
	end_host(&host);
}
END_TEST

/* A periodic timer wakes as often as it ticks, not more. */
START_TEST(iou_fd_is_quiet_between_ticks)
{
	call_t call;
	host_t host;

	new_host(&host);
	settle(&host);
	call_op(host.iou, &call, 0);
	iou_op_timer(host.iou, call.op, 4 * MSEC, 4 * MSEC, on_call, &call);
	host.n_polls = 0;
	TURN_UNTIL(&host, call.n == 20);
	ck_assert_int_le(host.n_polls, 3 * 20 + 5);
	ck_assert_int_eq(iou_op_cancel(host.iou, call.op), 0);
	TURN_UNTIL(&host, call.n_last);
	end_host(&host);
}
END_TEST

/* Seconds that 32 bits do not hold, with a sign or without: a timer that moves there is seen
 * neither at once nor when it was due before. */
START_TEST(far_timers_leave_iou_fd_quiet)
{
	call_t call;
	host_t host;

	new_host(&host);
	for (int bits = 30; bits <= 34; bits++) {
		do { /* on a busy machine it may be due before it is moved */
			call_op(host.iou, &call, 0);
			iou_op_timer(host.iou, call.op, 50 * MSEC, 0, on_call, &call);
			settle(&host);
		} while (call.n);
		iou_op_timer(host.iou, call.op, (UINT64_C(1) << bits) * SECOND + 50 * MSEC, 0,
			     on_call, &call);
		settle(&host);
		ck_assert_msg(wait_for(&host, 100) == 0,
			      "readable with a timer that is due in 2^%d s", bits);
		ck_assert_int_eq(iou_op_cancel(host.iou, call.op), 0);
		TURN_UNTIL(&host, call.n);
		ck_assert_int_eq(call.result, -ECANCELED);
	}
	end_host(&host);
}
END_TEST

/* ---- Readable and quiet ---------------------------------------------------------------------- */

START_TEST(iou_fd_is_quiet_when_idle)
{
	host_t host;
	call_t read;

	new_host(&host);
	settle(&host); /* it starts readable */
	for (int i = 0; i < 5; i++) {
		ck_assert_int_eq(iou_poll(host.iou, 0), 0);
		settle(&host);
	}
	call_read(host.iou, &read, 0, host.fds[0]); /* still to be submitted */
	ck_assert_int_eq(wait_for(&host, 0), 1);
	settle(&host); /* in flight, nothing to do */
	nap();
	ck_assert_int_eq(wait_for(&host, 5), 0);
	ck_assert_int_eq(iou_op_cancel(host.iou, read.op), 0); /* a cancel is something to submit */
	TURN_UNTIL(&host, read.n);
	ck_assert_int_eq(read.result, -ECANCELED);
	settle(&host);
	end_host(&host);
}
END_TEST

START_TEST(iou_fd_stays_readable_while_there_is_more)
{
	call_t calls[2 * N_KINDS] = {{0}}, idle = {0}, first = {0};
	host_t host;

	new_host(&host);
	settle(&host);
	iou_bh_schedule_idle(new_bh(host.iou, on_call, &idle));
	post(host.iou, on_call, &first);
	turn(&host);
	ck_assert_int_eq(first.n, 1);
	TURN_UNTIL(&host, idle.n); /* the idle one had to wait for the next round */
	for (int i = 0; i < 2 * N_KINDS; i++) {
		/* each error ends a poll, with the rest still to be delivered */
		calls[i].ret = -1 - i;
		make_ready(host.iou, (kind_t)(i / 2), on_call, &calls[i]);
	}
	for (int i = 0; i < 2 * N_KINDS; i++) {
		ck_assert_int_eq(wait_for(&host, 20000), 1);
		ck_assert_int_eq(iou_poll(host.iou, 0), -1 - i);
	}
	settle(&host);
	end_host(&host);
}
END_TEST

/* Calls from outside that leave something for iou_poll(), one by one, each to a descriptor that is
 * quiet. */
START_TEST(iou_fd_notices_a_job_with_a_deadline)
{
	host_t host;
	gate_t gate;
	call_t call;

	new_host_of(&host, new_iou_with(&(iou_config_t){.entries = 4, .workers = 1}));
	gate_init(&gate);
	block_workers(host.iou, &gate, 1);
	settle(&host);
	call_op(host.iou, &call, 0);
	iou_op_deadline(host.iou, call.op, 20 * MSEC);
	start_job(host.iou, call.op, on_nothing, NULL, on_call, &call);
	TURN_UNTIL(&host, call.n); /* the worker does not come to it */
	ck_assert_int_eq(call.result, -ETIME);
	unblock_workers(&gate, 1);
	TURN_UNTIL(&host, n_pending(host.iou) == 0);
	end_host(&host);
}
END_TEST

START_TEST(iou_fd_notices_a_cancel_all)
{
	host_t host;
	call_t read;

	new_host(&host);
	call_read(host.iou, &read, 0, host.fds[0]);
	settle(&host);
	ck_assert_int_eq(iou_cancel_all(host.iou), 0);
	ck_assert_int_eq(wait_for(&host, 0), 1);
	TURN_UNTIL(&host, read.n);
	ck_assert_int_eq(read.result, -ECANCELED);
	settle(&host);
	end_host(&host);
}
END_TEST

/* The new ring does not watch the clock before it was polled. Many times, since the end of the old
 * one may show on the descriptor by itself. */
START_TEST(iou_fd_notices_a_resize)
{
	host_t host;
	call_t timer;

	new_host(&host);
	call_op(host.iou, &timer, 0);
	iou_op_timer(host.iou, timer.op, 50 * MSEC, 0, on_call, &timer);
	for (int i = 0; i < 20; i++) {
		settle(&host);
		ck_assert_int_eq(iou_resize(host.iou, 8), 0);
		ck_assert_int_eq(wait_for(&host, 0), 1);
	}
	TURN_UNTIL(&host, timer.n);
	settle(&host);
	end_host(&host);
}
END_TEST

/* And after iou_run() and iou_flush(), with no poll in between, a post is. */
START_TEST(iou_fd_notices_a_post_after_a_run)
{
	call_t call = {0};
	host_t host;
	int n_quiet = 0;

	new_host(&host);
	for (int i = 1; i <= 20; i++) {
		settle(&host);
		start(host.iou, CQE, on_call, &call);
		if (i % 2)
			flush(host.iou);
		run(host.iou);
		ck_assert_int_eq(call.n, 2 * i - 1);
		n_quiet += wait_for(&host, 0) == 0;
		post(host.iou, on_call, &call);
		ck_assert_int_eq(wait_for(&host, 0), 1);
		TURN_UNTIL(&host, call.n == 2 * i);
	}
	/* Where no flag tells of what the kernel still has, it is polled once more. */
	ck_assert(n_quiet > 0 || !(iou_ring(host.iou)->flags & IORING_SETUP_TASKRUN_FLAG));
	settle(&host);
	end_host(&host);
}
END_TEST

/* Asked for late: with completions there, ops in flight and timers running already. */
START_TEST(iou_fd_may_be_asked_for_late)
{
	for (int i = 0; i < N_KINDS; i++) {
		host_t host = {.iou = new_iou(4)};
		struct epoll_event event = {.events = EPOLLIN};
		call_t call = {0}, read;

		new_socketpair(host.fds);
		call_read(host.iou, &read, 1, host.fds[0]);
		flush(host.iou);
		make_ready(host.iou, (kind_t)i, on_call, &call);
		host.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		ck_assert_int_eq(epoll_ctl(host.epoll_fd, EPOLL_CTL_ADD, iou_fd(host.iou), &event),
				 0);
		TURN_UNTIL(&host, call.n);
		ck_assert_int_eq(write(host.fds[1], "x", 1), 1);
		TURN_UNTIL(&host, read.n);
		settle(&host);
		end_host(&host);
	}
}
END_TEST

START_TEST(iou_fd_is_the_same_across_a_resize)
{
	host_t host;
	int fd;

	new_host(&host);
	fd = iou_fd(host.iou);
	for (unsigned i = 0; i < 8; i++) {
		call_t call = {0}, read;

		ck_assert_int_eq(iou_fd(host.iou), fd);
		if (i % 2)
			start(host.iou, CQE, on_call, &call); /* queued before, submitted after */
		ck_assert_int_eq(iou_resize(host.iou, 2U << i), 0);
		if (i % 2 == 0)
			start(host.iou, (kind_t)(i % 4), on_call, &call);
		TURN_UNTIL(&host, call.n);
		call_read(host.iou, &read, 0, host.fds[0]);
		settle(&host);
		ck_assert_int_eq(write(host.fds[1], "x", 1), 1);
		TURN_UNTIL(&host, read.n);
		settle(&host);
	}
	end_host(&host);
}
END_TEST

static void *write_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	EXPECT(write(*(int *)data, "x", 1) == 1);
	return NULL;
}

/* With the descriptor there, iou_run() and iou_poll() sleep and wake as ever. */
START_TEST(run_and_poll_wake_beside_iou_fd)
{
	pthread_t thread;
	call_t calls[N_KINDS] = {{0}}, timer, read;
	host_t host;

	new_host(&host);
	loop_tid = gettid();
	for (int i = 0; i < 10; i++) {
		call_read(host.iou, &read, 0, host.fds[0]);
		thread = start_thread(write_to_the_sleeper, &host.fds[1]);
		if (i % 2)
			run(host.iou);
		else
			ck_assert_int_eq(iou_poll(host.iou, (int64_t)(20 * SECOND)), 1);
		join_thread(thread);
		ck_assert_int_eq(read.n, 1);
	}
	for (int kind = 0; kind < N_KINDS; kind++)
		if (kind != ENDED)
			start(host.iou, (kind_t)kind, on_call, &calls[kind]);
	call_op(host.iou, &timer, 0);
	iou_op_timer(host.iou, timer.op, 10 * MSEC, 0, on_call, &timer);
	run(host.iou);
	for (int kind = 0; kind < N_KINDS; kind++)
		ck_assert_int_eq(calls[kind].n, kind != ENDED);
	settle(&host);
	end_host(&host);
}
END_TEST

/* ---- A mixture, driven for a while ----------------------------------------------------------- */

typedef struct mix_t {
	host_t host;
	iou_op_t *read_op, *job_op, *timer_op;
	iou_bh_t *bh;
	int n_max, n[N_KINDS];
	char byte;
} mix_t;

static int on_mix_read(void *data);

static void queue_mix_read(mix_t *mix)
{
	io_uring_prep_read(mix->read_op->sqe, mix->host.fds[0], &mix->byte, 1, 0);
	ck_assert_int_eq(write(mix->host.fds[1], "x", 1), 1);
	iou_op_queue(mix->host.iou, mix->read_op, on_mix_read, mix);
}

static int on_mix_read(void *data)
{
	mix_t *mix = data;

	ck_assert_int_eq(mix->read_op->result, 1);
	if (++mix->n[CQE] < mix->n_max)
		queue_mix_read(mix);
	return 0;
}

static int on_mix_timer(void *data)
{
	mix_t *mix = data;

	if (++mix->n[TIMER] < mix->n_max)
		iou_op_timer(mix->host.iou, mix->timer_op, (uint64_t)mix->n[TIMER] % 3 * 50 * USEC,
			     0, on_mix_timer, mix);
	return 0;
}

static int on_mix_post(void *data)
{
	((mix_t *)data)->n[POST]++;
	return 0;
}

static int on_mix_bh(void *data)
{
	mix_t *mix = data;

	if (++mix->n[BH] < mix->n_max)
		iou_bh_schedule(mix->bh);
	return 0;
}

static int mix_job(void *data)
{
	mix_t *mix = data;

	post(mix->host.iou, on_mix_post, mix);
	return 0;
}

static int on_mix_job(void *data)
{
	mix_t *mix = data;

	if (++mix->n[JOB] < mix->n_max)
		start_job(mix->host.iou, mix->job_op, mix_job, mix, on_mix_job, mix);
	return 0;
}

static void start_mix(mix_t *mix, int n_max)
{
	iou_t *iou = mix->host.iou;

	mix->n_max = n_max;
	mix->read_op = new_op(iou);
	mix->job_op = new_op(iou);
	mix->timer_op = new_op(iou);
	mix->bh = new_bh(iou, on_mix_bh, mix);
	queue_mix_read(mix);
	iou_op_timer(iou, mix->timer_op, 0, 0, on_mix_timer, mix);
	start_job(iou, mix->job_op, mix_job, mix, on_mix_job, mix);
	iou_bh_schedule(mix->bh);
}

static bool mix_done(const mix_t *mix)
{
	for (int kind = 0; kind < N_KINDS; kind++)
		if (kind != ENDED && mix->n[kind] < mix->n_max)
			return false;
	return true;
}

START_TEST(epoll_drives_a_mixture)
{
	mix_t mix = {.n_max = 0};

	new_host(&mix.host);
	start_mix(&mix, is_slow() ? 200 : 2000);
	TURN_UNTIL(&mix.host, mix_done(&mix));
	settle(&mix.host);
	end_host(&mix.host);
}
END_TEST

/* On each kind of ring; the kernel signals their completions in other ways. */
START_TEST(epoll_drives_every_ring)
{
	static const unsigned flags[] = {
		IORING_SETUP_CLAMP,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SQPOLL,
	};

	for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		iou_t *iou = NEW_IOU_OF(4, flags[i]);
		mix_t mix = {.n_max = 0};

		if (!iou)
			continue;
		new_host_of(&mix.host, iou);
		start_mix(&mix, 200);
		TURN_UNTIL(&mix.host, mix_done(&mix));
		end_host(&mix.host);
	}
}
END_TEST

/* SQPOLL's thread takes what is queued when it comes to it; till then there is nothing to do. */
START_TEST(iou_fd_is_quiet_until_sqpoll_has_taken_the_sq)
{
	iou_t *iou = NEW_IOU_OF(4, IORING_SETUP_SQPOLL);
	host_t host;

	if (!iou)
		return;
	new_host_of(&host, iou);
	settle(&host);
	for (int i = 0; i < 50; i++) {
		call_t call = {0};

		host.n_polls = 0;
		start(iou, CQE, on_call, &call);
		TURN_UNTIL(&host, call.n);
		settle(&host);
		ck_assert_int_le(host.n_polls, 6);
	}
	end_host(&host);
}
END_TEST

/* Restrictions that let it register its eventfd, but not anew: a poll says so, as it cannot be
 * silent. */
START_TEST(a_poll_tells_that_iou_fd_is_refused_its_eventfd)
{
	struct io_uring_restriction allowed[] = {
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_RECV},
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_POLL_ADD},
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_ASYNC_CANCEL},
		{.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_EVENTFD},
	};
	iou_t *iou = NEW_IOU_OF(4, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	host_t host;
	char byte;
	iou_op_t *op;
	int n_refused = 0;

	if (!iou)
		return;
	if (on_fallback()) {
		iou_free(iou);
		SKIP("needs io_uring, whose eventfd must be registered again");
	}
	ck_assert_int_eq(iou_register(iou, IORING_REGISTER_RESTRICTIONS, allowed, 4), 0);
	new_host_of(&host, iou);
	op = new_op(iou);
	io_uring_prep_recv(op->sqe, host.fds[0], &byte, 1, 0);
	iou_op_queue(iou, op, on_nothing, NULL);
	for (int i = 0; i < 10 && wait_for(&host, 0) == 1; i++) {
		int n = iou_poll(iou, 0);

		ck_assert_msg(n == 0 || n == -EACCES, "iou_poll: %d", n);
		n_refused += n == -EACCES;
	}
	ck_assert_int_ge(n_refused, 5);
	close(host.epoll_fd);
	close_pair(host.fds);
	iou_free(iou);
}
END_TEST

/* Two in one set; and one inside another, which polls its descriptor through its own ring. */
START_TEST(several_ious_share_a_surrounding_loop)
{
	mix_t mixes[2] = {{.n_max = 0}, {.n_max = 0}};
	struct epoll_event event = {.events = EPOLLIN}, events[2];

	for (int i = 0; i < 2; i++) {
		new_host(&mixes[i].host);
		start_mix(&mixes[i], 300);
		event.data.u32 = (unsigned)i;
		ck_assert_int_eq(epoll_ctl(mixes[0].host.epoll_fd,
					   i ? EPOLL_CTL_ADD : EPOLL_CTL_MOD,
					   iou_fd(mixes[i].host.iou), &event),
				 0);
	}
	while (!mix_done(&mixes[0]) || !mix_done(&mixes[1])) {
		int n = epoll_wait(mixes[0].host.epoll_fd, events, 2, 20000);

		if (n < 0 && errno == EINTR)
			continue;
		ck_assert_int_gt(n, 0);
		for (int i = 0; i < n; i++)
			ck_assert_int_ge(iou_poll(mixes[events[i].data.u32].host.iou, 0), 0);
	}
	end_host(&mixes[0].host);
	end_host(&mixes[1].host);
}
END_TEST

typedef struct outer_t {
	iou_t *iou;
	iou_op_t *op;
	mix_t mix;
} outer_t;

static int on_inner_readable(void *data);

static void queue_inner_poll(outer_t *outer)
{
	io_uring_prep_poll_add(outer->op->sqe, iou_fd(outer->mix.host.iou), POLLIN);
	iou_op_queue(outer->iou, outer->op, on_inner_readable, outer);
}

static int on_inner_readable(void *data)
{
	outer_t *outer = data;

	ck_assert_int_gt(outer->op->result, 0);
	ck_assert_int_ge(iou_poll(outer->mix.host.iou, 0), 0);
	if (!mix_done(&outer->mix))
		queue_inner_poll(outer);
	return 0;
}

START_TEST(an_iou_drives_another)
{
	outer_t outer = {.iou = new_iou(4)};

	outer.op = new_op(outer.iou);
	new_host(&outer.mix.host);
	start_mix(&outer.mix, 300);
	queue_inner_poll(&outer);
	run(outer.iou);
	ck_assert(mix_done(&outer.mix));
	end_host(&outer.mix.host);
	done(outer.iou);
}
END_TEST

#ifdef HAVE_GLIB

static int n_glib_polls;

static gboolean on_glib(gint fd, GIOCondition condition, gpointer data)
{
	mix_t *mix = data;

	(void)fd, (void)condition;
	n_glib_polls++;
	ck_assert_int_ge(iou_poll(mix->host.iou, 0), 0);
	return G_SOURCE_CONTINUE;
}

static gboolean on_glib_tick(gpointer data)
{
	*(bool *)data = true;
	return G_SOURCE_REMOVE;
}

static void attach(GSource *source, GMainContext *context, GSourceFunc func, void *data)
{
	g_source_set_callback(source, func, data, NULL);
	g_source_attach(source, context);
}

START_TEST(glib_drives_a_mixture)
{
	GMainContext *context = g_main_context_new();
	mix_t mix = {.n_max = 0};
	bool ticked = false;
	GSource *source, *tick;

	new_host(&mix.host);
	start_mix(&mix, is_slow() ? 200 : 2000);
	source = g_unix_fd_source_new(iou_fd(mix.host.iou), G_IO_IN);
	attach(source, context, (GSourceFunc)(void (*)(void))on_glib, &mix);
	while (!mix_done(&mix))
		g_main_context_iteration(context, TRUE);
	/* Idle, GLib's own sources alone turn its loop. */
	n_glib_polls = 0;
	tick = g_timeout_source_new(30);
	attach(tick, context, on_glib_tick, &ticked);
	while (!ticked)
		g_main_context_iteration(context, TRUE);
	ck_assert_int_le(n_glib_polls, 5);
	g_source_destroy(source);
	g_source_unref(source);
	g_source_unref(tick);
	g_main_context_unref(context);
	end_host(&mix.host);
}
END_TEST

#else

START_TEST(glib_drives_a_mixture)
{
	SKIP("needs glib-2.0");
}
END_TEST

#endif

/* ---- What the kernel tells of once only ------------------------------------------------------ */

/* Both read one eventfd. Who comes second finds nothing: it was woken, but no completion came of
 * that. */
START_TEST(two_ious_share_an_eventfd)
{
	host_t host[2];
	call_t call[2];
	uint64_t value[2];
	int fd = eventfd(0, EFD_CLOEXEC);

	for (int i = 0; i < 2; i++) {
		new_host(&host[i]);
		io_uring_prep_read(call_op(host[i].iou, &call[i], i), fd, &value[i],
				   sizeof(value[i]), 0);
		call_queue(host[i].iou, &call[i]);
		settle(&host[i]);
	}
	for (int n = 1; n <= 20; n++) {
		ck_assert_int_eq(eventfd_write(fd, 1), 0);
		while (call[0].n + call[1].n < n) {
			int first = wait_for(&host[n % 2], 0) == 1 ? n % 2 : (n + 1) % 2;

			turn(&host[first]);
		}
		for (int i = 0; i < 2; i++) {
			settle(&host[i]);
			if (call[i].n_last == call[i].n && call[i].n > 0 &&
			    !n_pending(host[i].iou)) {
				int sum = call[i].n;

				io_uring_prep_read(call_op(host[i].iou, &call[i], i), fd, &value[i],
						   sizeof(value[i]), 0);
				call_queue(host[i].iou, &call[i]);
				call[i].n = call[i].n_last = sum;
				settle(&host[i]);
			}
		}
	}
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(iou_op_cancel(host[i].iou, call[i].op), 0);
		TURN_UNTIL(&host[i], !n_pending(host[i].iou));
		end_host(&host[i]);
	}
	close(fd);
}
END_TEST

/* ---- What rests stays queued ----------------------------------------------------------------- */

static int on_queue_chain(void *data)
{
	call_t *calls = data;

	for (int i = 0; i < 2; i++) {
		io_uring_prep_nop(calls[i].op->sqe);
		if (i == 0)
			calls[i].op->sqe->flags |= IOSQE_IO_LINK;
		call_queue(iou_current(), &calls[i]);
	}
	return 0;
}

/* Queued in a callback: submitted before iou_poll() returns, and the descriptor tells of what comes
 * of it. */
START_TEST(what_callbacks_queue_is_submitted)
{
	host_t host;
	call_t calls[2];

	new_host(&host);
	settle(&host);
	for (int i = 0; i < 2; i++)
		call_op(host.iou, &calls[i], i);
	post(host.iou, on_queue_chain, calls);
	turn(&host);
	ck_assert_uint_eq(get_stats(host.iou).backlog, 0);
	ck_assert_int_eq(calls[0].n, 1);
	TURN_UNTIL(&host, calls[1].n);
	ck_assert_int_eq(calls[0].result, 0);
	ck_assert_int_eq(calls[1].result, 0);
	end_host(&host);
}
END_TEST

Suite *embed_suite(void)
{
	Suite *suite = suite_create("embed");
	TCase *tcase;

	tcase = TEST_CASE(suite, "sources", iou_fd_tells_of_what_callbacks_queue,
			  an_eventfd_of_the_program_wakes,
			  iou_fd_becomes_readable_when_a_timer_is_due,
			  iou_fd_is_quiet_between_ticks, far_timers_leave_iou_fd_quiet);
	tcase_add_loop_test(tcase, iou_fd_drives_each_kind, 0, N_KINDS);
	for (int kind = 0; kind < N_KINDS; kind++)
		if (kind != ENDED)
			tcase_add_loop_test(tcase, iou_fd_wakes_the_surrounding_loop, kind,
					    kind + 1);
	TEST_CASE(suite, "readable", iou_fd_is_quiet_when_idle,
		  iou_fd_stays_readable_while_there_is_more, iou_fd_notices_a_job_with_a_deadline,
		  iou_fd_notices_a_cancel_all, iou_fd_notices_a_resize,
		  iou_fd_notices_a_post_after_a_run, iou_fd_may_be_asked_for_late,
		  iou_fd_is_the_same_across_a_resize, run_and_poll_wake_beside_iou_fd,
		  two_ious_share_an_eventfd, what_callbacks_queue_is_submitted);
	TEST_CASE(suite, "hosts", epoll_drives_a_mixture, epoll_drives_every_ring,
		  iou_fd_is_quiet_until_sqpoll_has_taken_the_sq,
		  a_poll_tells_that_iou_fd_is_refused_its_eventfd,
		  several_ious_share_a_surrounding_loop, an_iou_drives_another,
		  glib_drives_a_mixture);
	return suite;
}
