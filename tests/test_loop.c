/* SPDX-License-Identifier: MIT */

/* Rounds, iou_run(), iou_poll(), iou_quit(), sleeping and waking, busy polling. */

#include "helper.h"

#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <time.h>

/* ---- Rounds ---------------------------------------------------------------------------------- */

START_TEST(rounds_deliver_in_order)
{
	/* opposite, but for those that are in line */
	static const int made[] = {CQE, JOB, ENDED, BH, POST, TIMER};
	static const int expected[] = {TIMER, BH, POST, JOB, ENDED, CQE};
	iou_t *iou = new_iou(8);
	call_t calls[N_KINDS] = {{0}};

	for (int i = 0; i < N_KINDS; i++) {
		calls[made[i]].id = made[i];
		make_ready(iou, (kind_t)made[i], on_call, &calls[made[i]]);
	}
	ck_assert_int_eq(iou_poll(iou, 0), N_KINDS);
	ck_assert_int_eq(n_order, N_KINDS);
	for (int i = 0; i < N_KINDS; i++)
		ck_assert_msg(order[i] == expected[i], "place %d: %s", i, kind_names[order[i]]);
	done(iou);
}
END_TEST

static iou_t *the_iou;
static int n_made;

static int on_nothing_counted(void *data)
{
	++*(int *)data;
	return 0;
}

/* Makes one of each kind ready while a round is delivering. */
static int on_make_each(void *data)
{
	for (int kind = 0; kind < N_KINDS; kind++)
		make_ready(the_iou, (kind_t)kind, on_nothing_counted, data);
	return 0;
}

/* _i: the kind whose callback makes the others ready. */
START_TEST(what_becomes_ready_is_for_the_next_round)
{
	the_iou = new_iou(8);
	n_made = 0;
	make_ready(the_iou, (kind_t)_i, on_make_each, &n_made);
	ck_assert_int_eq(iou_poll(the_iou, 0), 1);
	ck_assert_int_eq(n_made, 0);
	ck_assert_int_eq(iou_poll(the_iou, 0), N_KINDS);
	ck_assert_int_eq(n_made, N_KINDS);
	done(the_iou);
}
END_TEST

/* Cancelling looks at what other threads have brought: that is not taken into the round either. */
static int on_ask(void *data)
{
	iou_bh_t *bh = new_bh(the_iou, on_nothing, NULL);
	iou_op_t *op;

	make_ready(the_iou, POST, on_nothing_counted, data);
	iou_bh_schedule(bh);
	iou_bh_cancel(bh);
	op = make_ready(the_iou, JOB, on_nothing_counted, data);
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return 0;
}

START_TEST(cancelling_another_op_hastens_nothing)
{
	the_iou = new_iou(8);
	n_made = 0;
	make_ready(the_iou, TIMER, on_ask, &n_made);
	ck_assert_int_eq(iou_poll(the_iou, 0), 1);
	ck_assert_int_eq(n_made, 0);
	ck_assert_int_eq(iou_poll(the_iou, 0), 2);
	done(the_iou);
}
END_TEST

/* A source that refills itself from its callback until a timer and a read have been delivered. How
 * long those wait is counted in rounds, as the refiller sees them, so a busy machine does no
 * harm. */
typedef struct refill_t {
	iou_t *iou;
	kind_t kind;
	iou_op_t *op;
	iou_bh_t *bh;
	call_t timer, read;
	uint64_t due_ns;
	int fds[2];
	int n, n_after_due, n_after_write;
} refill_t;

static int on_refill(void *data);

static void refill(refill_t *fill)
{
	switch (fill->kind) {
	case TIMER:
		iou_op_timer(fill->iou, fill->op, 0, 0, on_refill, fill);
		break;
	case POST:
		post(fill->iou, on_refill, fill);
		break;
	case BH:
		iou_bh_schedule(fill->bh);
		break;
	case JOB:
		start_job(fill->iou, fill->op, on_nothing, NULL, on_refill, fill);
		break;
	case ENDED:
		iou_op_timer(fill->iou, fill->op, UINT64_MAX, 0, on_refill, fill);
		iou_op_cancel(fill->iou, fill->op);
		break;
	default:
		nop_queue(fill->iou, fill->op, on_refill, fill);
	}
}

static int on_refill(void *data)
{
	refill_t *fill = data;

	fill->n++;
	if (fill->timer.n && fill->read.n)
		return 0;
	if (fill->n == 10 && write(fill->fds[1], "x", 1) != 1)
		return -EIO;
	fill->n_after_write += fill->n > 10 && !fill->read.n;
	fill->n_after_due += !fill->timer.n && now_ns() > fill->due_ns;
	if (fill->n_after_write > 1000 || fill->n_after_due > 1000)
		return -ETIME;
	refill(fill);
	return 0;
}

static void check_fairness(iou_t *iou, kind_t kind)
{
	refill_t fill = {.iou = iou, .kind = kind};
	bool own_op = kind != POST && kind != BH;

	new_socketpair(fill.fds); /* a pipe is read by io-wq on older kernels */
	call_read(fill.iou, &fill.read, 0, fill.fds[0]);
	fill.op = own_op ? new_op(fill.iou) : NULL;
	fill.bh = kind == BH ? new_bh(fill.iou, on_refill, &fill) : NULL;
	call_op(fill.iou, &fill.timer, 1);
	iou_op_timer(fill.iou, fill.timer.op, 10 * MSEC, 0, on_call, &fill.timer);
	fill.due_ns = now_ns() + 10 * MSEC;
	refill(&fill);
	ck_assert_int_eq(iou_run(fill.iou), 0);
	ck_assert_int_eq(fill.timer.n, 1);
	ck_assert_int_eq(fill.read.result, 1);
	/* The callback may run between the loop's look at the clock and its own: a round more. */
	ck_assert_msg(fill.n_after_due <= 2, "the timer waited %d rounds", fill.n_after_due);
	ck_assert_msg(fill.n_after_write <= 2, "the read waited %d rounds", fill.n_after_write);
	iou_bh_delete(fill.bh);
	close_pair(fill.fds);
	done(fill.iou);
}

/* _i: the kind that refills itself. On each kind of ring: the kernel tells of completions in other
 * ways. */
START_TEST(no_source_starves_another)
{
	static const unsigned flags[] = {
		0,
		IORING_SETUP_CLAMP,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	};

	for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		iou_t *iou = NEW_IOU_OF(8, flags[i]);

		if (iou)
			check_fairness(iou, (kind_t)_i);
	}
}
END_TEST

/* Two of each kind, and the k-th callback of a round reports an error: nothing is lost or
 * repeated. */
static void error_at(int k, bool poll)
{
	enum { N = 2 * N_KINDS };
	iou_t *iou = new_iou(8);
	call_t calls[N] = {{0}};
	int got;

	n_order = 0;
	for (int i = 0; i < N; i++) {
		calls[i].id = i;
		calls[i].ret = i == k ? -1000 - k : 1; /* more than 0 means go on */
		make_ready(iou, (kind_t)(i / 2), on_call, &calls[i]);
	}
	got = poll ? iou_poll(iou, -1) : iou_run(iou);
	ck_assert_int_eq(got, -1000 - k);
	ck_assert_int_eq(n_order, k + 1);
	run(iou);
	ck_assert_int_eq(n_order, N);
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(order[i], i);
	done(iou);
}

START_TEST(an_error_loses_nothing)
{
	for (int k = 0; k < 2 * N_KINDS; k++) {
		error_at(k, false);
		error_at(k, true);
	}
}
END_TEST

/* Every callback reports an error: one run each. */
START_TEST(an_error_in_each_callback_loses_nothing)
{
	iou_t *iou = new_iou(8);
	call_t calls[N_KINDS] = {{0}};

	for (int i = 0; i < N_KINDS; i++) {
		calls[i] = (call_t){.id = i, .ret = -1 - i};
		make_ready(iou, (kind_t)i, on_call, &calls[i]);
	}
	for (int i = 0; i < N_KINDS; i++)
		ck_assert_int_eq(iou_run(iou), -1 - i);
	run(iou);
	ck_assert_int_eq(n_order, N_KINDS);
	done(iou);
}
END_TEST

typedef struct failing_t {
	iou_t *iou;
	kind_t kind;
	int n, max;
} failing_t;

static int on_fail_again(void *data)
{
	failing_t *failing = data;

	if (++failing->n >= failing->max)
		return -7;
	if (failing->kind == ENDED)
		make_ready(failing->iou, ENDED, on_fail_again, failing);
	else
		start(failing->iou, failing->kind, on_fail_again, failing);
	return -7;
}

/* One that ends each run with an error, and is there again at once, does not keep the others from
 * their turn. _i: its kind */
START_TEST(a_source_that_fails_holds_up_nobody)
{
	failing_t failing = {.iou = new_iou(8), .kind = (kind_t)_i, .max = 1000};
	call_t others[N_KINDS] = {{0}};
	int n_runs, ret;

	make_ready(failing.iou, failing.kind, on_fail_again, &failing);
	for (int kind = 0; kind < N_KINDS; kind++)
		make_ready(failing.iou, (kind_t)kind, on_call, &others[kind]);
	for (n_runs = 0; n_order < N_KINDS && n_runs < 20; n_runs++) {
		ret = iou_run(failing.iou);
		ck_assert_int_eq(ret, -7);
	}
	for (int kind = 0; kind < N_KINDS; kind++)
		ck_assert_msg(others[kind].n == 1, "%s was delivered %d times in %d runs",
			      kind_names[kind], others[kind].n, n_runs);
	failing.max = 0;
	while ((ret = iou_run(failing.iou)) != 0)
		ck_assert_int_eq(ret, -7);
	done(failing.iou);
}
END_TEST

/* ---- Calls from inside callbacks ------------------------------------------------------------- */

static bool in_call; /* true while the program is inside a call that must not run a callback */
static int n_inner;

static int on_inner(void *data)
{
	(void)data;
	ck_assert(!in_call);
	n_inner++;
	return 0;
}

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static int on_handler(iou_handler_t *handler)
{
	return on_inner(handler);
}

/* Calls all that may be called in a callback. Starts 12 callbacks. */
static int on_call_everything(void *data)
{
	static iou_handler_t handler = {.cb = on_handler};
	iou_t *iou = data;
	iou_op_t *op;
	iou_bh_t *bh;
	iou_stats_t stats;
	FILE *null = fopen("/dev/null", "we");

	ck_assert_ptr_eq(iou_current(), iou);
	in_call = true;
	/* 5: queued, with deadline, cancelled in the backlog, flushed, left */
	for (int i = 0; i < 5; i++) {
		op = new_op(iou);
		io_uring_prep_nop(op->sqe);
		ck_assert_ptr_nonnull(iou_op_env(op, 8));
		if (i == 1)
			iou_op_deadline(iou, op, 100 * SECOND);
		iou_op_queue(iou, op, on_inner, op);
		if (i == 2)
			ck_assert_int_eq(iou_op_cancel(iou, op), 0);
		if (i == 3)
			ck_assert_int_eq(iou_flush(iou), 0);
	}
	iou_op_free(iou, new_op(iou));
	start_job(iou, new_op(iou), on_nothing, NULL, on_inner, NULL);
	ck_assert_int_eq(iou_async(iou, on_nothing, NULL, on_inner, NULL), 0);
	iou_op_timer(iou, new_op(iou), 0, 0, on_inner, NULL);
	op = new_op(iou);
	iou_op_timer(iou, op, UINT64_MAX, 0, on_inner, NULL);
	ck_assert_int_eq(iou_op_cancel(iou, op), 0);
	ck_assert_int_eq(iou_add_sqe(iou, prep_nop, NULL, &handler), 0);
	post(iou, on_inner, NULL);
	bh = new_bh(iou, on_inner, NULL);
	iou_bh_schedule(bh);
	iou_bh_cancel(bh);
	iou_bh_schedule_idle(bh);
	iou_bh_delete(bh);
	iou_bh_schedule(new_bh(iou, on_inner, NULL));
	iou_hold(iou);
	iou_unhold(iou);
	iou_stats(iou, &stats);
	iou_dump(iou, null);
	ck_assert_ptr_nonnull(iou_ring(iou));
	ck_assert_int_ge(iou_fd(iou), 0);
	in_call = false;
	ck_assert_int_ge(iou_poll(iou, 0), 0);
	/* nested: ends, since the caller's own op is in its last callback */
	ck_assert_int_eq(iou_run(iou), 0);
	ck_assert_int_eq(iou_resize(iou, 16), 0);
	fclose(null);
	return 0;
}

/* _i: the kind of callback */
START_TEST(callbacks_may_call_everything)
{
	iou_t *iou = new_iou(4);

	n_inner = 0;
	make_ready(iou, (kind_t)_i, on_call_everything, iou);
	run(iou);
	ck_assert_int_eq(n_inner, 12);
	ck_assert_uint_eq(iou_ring(iou)->sq.ring_entries, 16);
	done(iou);
}
END_TEST

/* With one of each kind ready, no call but run and poll delivers them. */
START_TEST(only_run_and_poll_call_back)
{
	iou_t *iou = new_iou(4);
	iou_op_t *op = new_op(iou);

	n_inner = 0;
	in_call = true;
	for (int i = 0; i < N_KINDS; i++)
		make_ready(iou, (kind_t)i, on_inner, NULL);
	io_uring_prep_nop(op->sqe);
	iou_op_queue(iou, op, on_inner, NULL);
	flush(iou);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	ck_assert_int_eq(iou_resize(iou, 8), -EBUSY); /* delivered is what ends an op */
	iou_quit(iou);
	flush(iou);
	ck_assert_int_eq(n_inner, 0);
	in_call = false;
	run(iou); /* spends the quit */
	ck_assert_int_eq(n_inner, 0);
	run(iou);
	ck_assert_int_eq(n_inner, N_KINDS + 1);
	done(iou);
}
END_TEST

/* ---- iou_run --------------------------------------------------------------------------------- */

START_TEST(run_ends_when_nothing_is_pending)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};

	run(iou);
	for (int i = 0; i < N_KINDS; i++) {
		if (i != ENDED)
			start(iou, (kind_t)i, on_call, &call);
		else
			make_ready(iou, ENDED, on_call, &call);
		run(iou);
		ck_assert_int_eq(call.n, i + 1);
		run(iou);
		ck_assert_int_eq(call.n, i + 1);
	}
	done(iou);
}
END_TEST

static void *nap_and_unhold(void *iou)
{
	nanosleep(&(struct timespec){.tv_nsec = 30 * 1000 * 1000}, NULL);
	iou_unhold(iou);
	return NULL;
}

START_TEST(holds_keep_iou_run_running)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns = now_ns();
	pthread_t threads[2];

	iou_hold(iou);
	iou_hold(iou);
	for (int i = 0; i < 2; i++)
		threads[i] = start_thread(nap_and_unhold, iou);
	run(iou);
	ck_assert_uint_ge(now_ns() - began_ns, 30 * MSEC);
	for (int i = 0; i < 2; i++)
		join_thread(threads[i]);
	done(iou);
}
END_TEST

/* ---- iou_poll -------------------------------------------------------------------------------- */

START_TEST(poll_with_nothing_pending_returns_at_once)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns = now_ns();

	ck_assert_int_eq(iou_poll(iou, -1), 0);
	ck_assert_int_eq(iou_poll(iou, INT64_MIN), 0);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(100 * SECOND)), 0);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	ck_assert_uint_lt(now_ns() - began_ns, 10 * SECOND);
	done(iou);
}
END_TEST

START_TEST(poll_waits_at_most_its_time)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns, best_ns = UINT64_MAX;
	int fds[2];
	call_t call;

	new_socketpair(fds);
	call_read(iou, &call, 0, fds[0]);
	for (int i = 0; i < 100 && best_ns >= 20 * MSEC; i++) {
		began_ns = now_ns();
		ck_assert_int_eq(iou_poll(iou, (int64_t)(10 * MSEC)), 0);
		ck_assert_uint_ge(now_ns() - began_ns, 10 * MSEC);
		if (now_ns() - began_ns < best_ns)
			best_ns = now_ns() - began_ns;
	}
	ck_assert_uint_lt(best_ns, 20 * MSEC);
	best_ns = UINT64_MAX;
	for (int i = 0; i < 100 && best_ns >= MSEC; i++) {
		began_ns = now_ns();
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		if (now_ns() - began_ns < best_ns)
			best_ns = now_ns() - began_ns;
	}
	ck_assert_uint_lt(best_ns, 1 * MSEC);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	ck_assert_int_eq(iou_poll(iou, INT64_MAX), 1);
	ck_assert_int_eq(call.result, 1);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(poll_waits_for_a_callback)
{
	static const int64_t without_end[] = {-1, INT64_MIN, INT64_MAX};
	iou_t *iou = new_iou(4);
	call_t call;

	for (unsigned i = 0; i < 3; i++) {
		call_op(iou, &call, 0);
		iou_op_timer(iou, call.op, 10 * MSEC, 0, on_call, &call);
		ck_assert_int_eq(iou_poll(iou, without_end[i]), 1);
		ck_assert_int_eq(call.n, 1);
	}
	iou_hold(iou); /* a hold is pending too, so it waits, but not for ever */
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0);
	iou_unhold(iou);
	done(iou);
}
END_TEST

START_TEST(poll_counts_callbacks)
{
	iou_t *iou = new_iou(64);
	call_t call = {0};

	for (int n = 1; n < 40; n++) {
		call.n = 0;
		for (int i = 0; i < n; i++)
			make_ready(iou, (kind_t)(i % 2 ? POST : CQE), on_call, &call);
		ck_assert_int_eq(iou_poll(iou, -1), n);
		ck_assert_int_eq(call.n, n);
	}
	done(iou);
}
END_TEST

/* ---- iou_quit -------------------------------------------------------------------------------- */

START_TEST(a_quit_before_a_run_ends_it)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};

	post(iou, on_call, &call);
	ck_assert_int_eq(iou_quit(iou), 0);
	ck_assert_int_eq(iou_quit(iou), 0);
	run(iou);
	ck_assert_int_eq(call.n, 0);
	run(iou); /* two quits were one */
	ck_assert_int_eq(call.n, 1);
	done(iou);
}
END_TEST

static int quit_with;

static int on_quit(void *data)
{
	on_call(data);
	iou_quit(the_iou);
	return quit_with;
}

/* The k-th of a round's callbacks quits: none starts after it, and the next run goes on. */
START_TEST(a_quit_in_a_callback_ends_the_run)
{
	enum { N = 2 * N_KINDS };

	for (int k = 0; k < N; k++) {
		call_t calls[N] = {{0}};

		the_iou = new_iou(8);
		n_order = 0;
		/* an error in the same callback comes first; quit is spent all the same */
		quit_with = k % 3 ? 1 : -5;
		for (int i = 0; i < N; i++) {
			calls[i].id = i;
			make_ready(the_iou, (kind_t)(i / 2), i == k ? on_quit : on_call, &calls[i]);
		}
		ck_assert_int_eq(iou_run(the_iou), k % 3 ? 0 : -5);
		ck_assert_int_eq(n_order, k + 1);
		run(the_iou);
		ck_assert_int_eq(n_order, N);
		for (int i = 0; i < N; i++)
			ck_assert_int_eq(order[i], i);
		done(the_iou);
	}
}
END_TEST

START_TEST(poll_neither_sees_nor_spends_quit)
{
	call_t call = {0}, later = {0};

	the_iou = new_iou(4);
	iou_quit(the_iou);
	post(the_iou, on_call, &call);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	quit_with = 0;
	post(the_iou, on_quit, &call);
	post(the_iou, on_call, &call);
	ck_assert_int_eq(iou_poll(the_iou, -1), 2);
	post(the_iou, on_call, &later);
	run(the_iou);
	ck_assert_int_eq(later.n, 0);
	run(the_iou);
	ck_assert_int_eq(later.n, 1);
	done(the_iou);
}
END_TEST

static pid_t loop_tid;

static void *quit_the_sleeper(void *iou)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	iou_quit(iou);
	return NULL;
}

START_TEST(a_quit_from_a_thread_ends_the_run)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;

	loop_tid = gettid();
	iou_hold(iou);
	for (int i = 0; i < 20; i++) {
		thread = start_thread(quit_the_sleeper, iou);
		run(iou);
		join_thread(thread);
	}
	iou_unhold(iou);
	done(iou);
}
END_TEST

static int wake_fd;

/* The system call that it takes fails; then it is made up for. */
static void *quit_the_sleeper_in_vain(void *iou)
{
	uint64_t value;

	WAIT_UNTIL(loop_sleeps(loop_tid));
	errno = 4711;
	EXPECT(iou_quit(iou) == 0);
	EXPECT(errno == 4711);
	EXPECT(read(wake_fd, &value, sizeof(value)) == sizeof(value) && value == UINT64_MAX - 1);
	value = 1;
	EXPECT(write(wake_fd, &value, sizeof(value)) == sizeof(value));
	return NULL;
}

START_TEST(quit_keeps_errno)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;

	wake_fd = wake_eventfd();
	loop_tid = gettid();
	iou_hold(iou);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0); /* the ring watches it from now on */
	fill_eventfd(wake_fd);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
	thread = start_thread(quit_the_sleeper_in_vain, iou);
	run(iou);
	join_thread(thread);
	iou_unhold(iou);
	done(iou);
}
END_TEST

static void quit_the_iou(void)
{
	iou_quit(the_iou);
}

/* Mostly the signal finds the loop asleep, sometimes just before it. */
START_TEST(a_quit_from_a_signal_handler_ends_the_run)
{
	int n_runs = is_slow() ? 20 : 100;

	the_iou = new_iou(4);
	iou_hold(the_iou);
	start_alarms(2 * MSEC, quit_the_iou);
	for (int i = 0; i < n_runs; i++)
		run(the_iou);
	stop_alarms();
	iou_unhold(the_iou);
	run(the_iou); /* one may be left */
	done(the_iou);
}
END_TEST

/* ---- Sleeping and waking --------------------------------------------------------------------- */

static int sleep_job(void *data)
{
	uint64_t ns = *(uint64_t *)data;

	nanosleep(&(struct timespec){(time_t)(ns / SECOND), (long)(ns % SECOND)}, NULL);
	return 0;
}

/* The full test waits 10 s for less than 20 ms of CPU time; the short one a tenth of it, by the
 * best of some tries: the machine may be slow, and what interrupts it is counted too. */
START_TEST(waiting_costs_no_cpu_time)
{
	uint64_t length_ns = is_full() ? 10 * SECOND : SECOND, cpu_ns = UINT64_MAX, enters;
	uint64_t limit_ns = is_slow() ? 100 * MSEC : is_full() ? 20 * MSEC : 4 * MSEC;
	iou_t *iou = new_iou(4);
	call_t call, job;
	int fds[2];

	new_socketpair(fds);
	call_read(iou, &call, 0, fds[0]);
	flush(iou);
	for (int i = 0; i < (is_full() ? 2 : 10) && cpu_ns >= limit_ns; i++) {
		call_op(iou, &job, 1);
		enters = get_stats(iou).enters;
		cpu_ns = process_cpu_ns();
		start_job(iou, job.op, sleep_job, &length_ns, on_call, &job);
		while (!job.n)
			ck_assert_int_ge(iou_poll(iou, -1), 0);
		cpu_ns = process_cpu_ns() - cpu_ns;
		ck_assert_uint_le(get_stats(iou).enters - enters, 10);
	}
	ck_assert_msg(cpu_ns < limit_ns, "%d us", (int)(cpu_ns / 1000));
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	run(iou);
	close_pair(fds);
	done(iou);
}
END_TEST

/* A round that finds nothing ready enters the kernel once at most, submitting included. One that
 * waits does it once; a poll takes another round where the kernel's wait ended a moment too
 * soon. */
START_TEST(an_idle_round_makes_one_system_call)
{
	enum { N = 20 };
	iou_t *iou = new_iou(4);
	/* of those with a timer, with a read */
	uint64_t enters, n_enters = 0, least[2] = {UINT64_MAX, UINT64_MAX};
	call_t calls[N + 1];
	int fds[2];

	new_socketpair(fds);
	call_read(iou, &calls[0], 0, fds[0]);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0); /* what is only done once */
	for (int i = 1; i <= N; i++) {
		enters = get_stats(iou).enters;
		if (i % 2)
			call_read(iou, &calls[i], 0, fds[0]);
		else
			call_op(iou, &calls[i], 0);
		if (i % 2 == 0)
			iou_op_timer(iou, calls[i].op, 1000 * SECOND, 0, on_call, &calls[i]);
		ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
		enters = get_stats(iou).enters - enters;
		n_enters += enters;
		least[i % 2] = enters < least[i % 2] ? enters : least[i % 2];
		enters = get_stats(iou).enters;
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		ck_assert_uint_le(get_stats(iou).enters - enters, 1);
	}
	ck_assert_uint_eq(least[0], 1);
	ck_assert_uint_eq(least[1], 1);
	ck_assert_uint_lt(n_enters, 2 * N);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	close_pair(fds);
	done(iou);
}
END_TEST

typedef struct wake_t {
	iou_t *iou;
	kind_t kind;
	int fd;
	/* when it became ready; atomic, since the kernel's way is not one that TSan sees */
	uint64_t ready_ns;
	uint64_t late_ns;  /* until it was delivered */
	iou_bh_t *bh;
	bool go;
} wake_t;

static int on_woken(void *data)
{
	wake_t *wake = data;

	wake->late_ns = now_ns() - __atomic_load_n(&wake->ready_ns, __ATOMIC_ACQUIRE);
	return 0;
}

/* On another thread: make the kind ready once the loop sleeps. */
static int wait_and_wake(void *data)
{
	wake_t *wake = data;

	WAIT_UNTIL(loop_sleeps(loop_tid));
	__atomic_store_n(&wake->ready_ns, now_ns(), __ATOMIC_RELEASE);
	if (wake->kind == CQE)
		EXPECT(write(wake->fd, "x", 1) == 1);
	else if (wake->kind == POST)
		post(wake->iou, on_woken, wake);
	else if (wake->kind == BH)
		iou_bh_schedule(wake->bh);
	return 0; /* JOB: its end is what wakes */
}

static void *wake_thread(void *data)
{
	wait_and_wake(data);
	return NULL;
}

static uint64_t time_wake(wake_t *wake, int in)
{
	static char byte;
	pthread_t thread;
	iou_op_t *op;
	int n;

	if (wake->kind == TIMER) {
		wake->ready_ns = now_ns() + 5 * MSEC;
		iou_op_timer(wake->iou, new_op(wake->iou), 5 * MSEC, 0, on_woken, wake);
		n = iou_poll(wake->iou, -1);
	} else if (wake->kind == JOB) {
		start_job(wake->iou, new_op(wake->iou), wait_and_wake, wake, on_woken, wake);
		n = iou_poll(wake->iou, -1);
	} else {
		if (wake->kind == CQE) {
			op = new_op(wake->iou);
			io_uring_prep_read(op->sqe, in, &byte, 1, 0);
			iou_op_queue(wake->iou, op, on_woken, wake);
		}
		thread = start_thread(wake_thread, wake);
		n = iou_poll(wake->iou, -1);
		join_thread(thread);
	}
	ck_assert_int_eq(n, 1);
	return wake->late_ns;
}

/* _i: the kind. It must arrive at once while a read that never completes and a far timer are
 * pending. */
START_TEST(all_that_becomes_ready_wakes_the_loop)
{
	wake_t wake = {.iou = new_iou(4), .kind = (kind_t)_i};
	uint64_t best_ns = UINT64_MAX, late_ns;
	call_t never, timer;
	int fds[2], never_fds[2];

	loop_tid = gettid();
	new_socketpair(fds);
	new_socketpair(never_fds);
	wake.fd = fds[1];
	wake.bh = new_bh(wake.iou, on_woken, &wake);
	call_read(wake.iou, &never, 0, never_fds[0]);
	call_op(wake.iou, &timer, 0);
	iou_op_timer(wake.iou, timer.op, 1000 * SECOND, 0, on_call, &timer);
	for (int i = 0; i < 100 && (i < 20 || best_ns >= 20 * MSEC); i++) {
		late_ns = time_wake(&wake, fds[0]);
		best_ns = late_ns < best_ns ? late_ns : best_ns;
		ck_assert_uint_lt(late_ns, 20 * SECOND);
	}
	ck_assert_msg(best_ns < 20 * MSEC, "%d us", (int)(best_ns / 1000));
	ck_assert_int_eq(iou_cancel_all(wake.iou), 0);
	run(wake.iou);
	close_pair(fds);
	close_pair(never_fds);
	done(wake.iou);
}
END_TEST

static void *write_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	EXPECT(write(*(int *)data, "x", 1) == 1);
	return NULL;
}

static void wake_in_every_way(void *data)
{
	post(the_iou, on_nothing, NULL);
	iou_bh_schedule(data);
	iou_hold(the_iou);
	iou_unhold(the_iou);
}

static int on_wake_in_every_way(void *data)
{
	wake_in_every_way(data);
	in_thread(wake_in_every_way, data);
	return 0;
}

/* A completion ended the loop's sleep: it is awake then, and who posts in the callback has nobody
 * to wake. */
START_TEST(nobody_wakes_a_loop_that_a_completion_woke)
{
	iou_bh_t *bh;
	pthread_t thread;
	iou_op_t *op;
	char byte;
	int fds[2];

	the_iou = new_iou(4);
	bh = new_bh(the_iou, on_nothing, NULL);
	loop_tid = gettid();
	new_pipe(fds);
	for (int i = 0; i < 10; i++) {
		op = new_op(the_iou);
		io_uring_prep_read(op->sqe, fds[0], &byte, 1, 0);
		iou_op_queue(the_iou, op, on_wake_in_every_way, bh);
		thread = start_thread(write_to_the_sleeper, &fds[1]);
		ck_assert_int_eq(iou_poll(the_iou, -1), 1);
		join_thread(thread);
		ck_assert_uint_eq(get_stats(the_iou).wakeups, 0);
		run(the_iou);
	}
	ck_assert_uint_eq(get_stats(the_iou).wakeups, 0);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* Timers, reads, jobs and posts while a signal interrupts every millisecond: each once, in good
 * time. */
typedef struct storm_t {
	iou_t *iou;
	int fds[2];
	int n_read, n_job, n_timer, n_post, n_max;
	char byte;
	iou_op_t *read_op, *job_op, *timer_op;
} storm_t;

static int on_storm_read(void *data);

static void queue_storm_read(storm_t *storm)
{
	io_uring_prep_read(storm->read_op->sqe, storm->fds[0], &storm->byte, 1, 0);
	ck_assert_int_eq(write(storm->fds[1], "x", 1), 1);
	iou_op_queue(storm->iou, storm->read_op, on_storm_read, storm);
}

static int on_storm_read(void *data)
{
	storm_t *storm = data;

	ck_assert_int_eq(storm->read_op->result, 1);
	if (++storm->n_read < storm->n_max)
		queue_storm_read(storm);
	return 0;
}

static int on_storm_post(void *data)
{
	((storm_t *)data)->n_post++;
	return 0;
}

static int storm_job(void *data)
{
	post(((storm_t *)data)->iou, on_storm_post, data);
	return 0;
}

static int on_storm_job(void *data)
{
	storm_t *storm = data;

	if (++storm->n_job < storm->n_max)
		start_job(storm->iou, storm->job_op, storm_job, storm, on_storm_job, storm);
	return 0;
}

static int on_storm_timer(void *data)
{
	storm_t *storm = data;

	if (++storm->n_timer < 50)
		iou_op_timer(storm->iou, storm->timer_op, 3 * MSEC, 0, on_storm_timer, storm);
	return 0;
}

START_TEST(signals_interrupt_without_harm)
{
	storm_t storm = {.iou = new_iou(4), .n_max = is_slow() ? 200 : 2000};
	uint64_t began_ns;
	call_t never;

	new_socketpair(storm.fds);
	start_alarms(MSEC, NULL);
	storm.read_op = new_op(storm.iou);
	storm.job_op = new_op(storm.iou);
	storm.timer_op = new_op(storm.iou);
	queue_storm_read(&storm);
	start_job(storm.iou, storm.job_op, storm_job, &storm, on_storm_job, &storm);
	iou_op_timer(storm.iou, storm.timer_op, 3 * MSEC, 0, on_storm_timer, &storm);
	run(storm.iou);
	ck_assert_int_eq(storm.n_read, storm.n_max);
	ck_assert_int_eq(storm.n_job, storm.n_max);
	ck_assert_int_eq(storm.n_post, storm.n_max);
	ck_assert_int_eq(storm.n_timer, 50);

	call_read(storm.iou, &never, 0, storm.fds[0]);
	began_ns = now_ns();
	ck_assert_int_eq(iou_poll(storm.iou, (int64_t)(30 * MSEC)), 0);
	ck_assert_uint_ge(now_ns() - began_ns, 30 * MSEC);
	stop_alarms();
	ck_assert_int_eq(iou_op_cancel(storm.iou, never.op), 0);
	run(storm.iou);
	close_pair(storm.fds);
	done(storm.iou);
}
END_TEST

START_TEST(more_idle_reads_than_the_cq_has_entries_hold_up_nothing)
{
	enum { N = 300 };
	iou_t *iou = new_iou(4);
	call_t *calls = calloc(N, sizeof(*calls)), timer, nop = {0};
	int fds[2];

	new_socketpair(fds);
	for (int i = 0; i < N; i++)
		call_read(iou, &calls[i], i, fds[0]);
	call_op(iou, &timer, 0);
	iou_op_timer(iou, timer.op, MSEC, 0, on_call, &timer);
	for (int i = 0; i < 10; i++) {
		start(iou, CQE, on_call, &nop);
		POLL_UNTIL(iou, nop.n == i + 1);
	}
	POLL_UNTIL(iou, timer.n);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(calls[i].n, 1);
		ck_assert_int_eq(calls[i].result, -ECANCELED);
	}
	free(calls);
	close_pair(fds);
	done(iou);
}
END_TEST

#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif

static int procs_blocked(void)
{
	char line[512];
	FILE *file = fopen("/proc/stat", "re");
	int n = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "procs_blocked %d", &n) == 1)
			break;
	if (file)
		fclose(file);
	return n;
}

/* Looks, while the loop sleeps, how many threads of the machine wait for I/O: the least seen, since
 * others may. */
static void *watch_blocked(void *data)
{
	int *least = data, now;

	for (int i = 0; i < 3000 && *least > 0; i++) {
		nap();
		if (!loop_sleeps(loop_tid))
			continue;
		now = procs_blocked();
		if (loop_sleeps(loop_tid) && now < *least)
			*least = now;
	}
	iou_quit(the_iou);
	return NULL;
}

/* Is none of the machine waiting now and then, while no loop of ours sleeps? */
static bool others_rest(void)
{
	int n = 0;

	for (int i = 0; i < 200; i++) {
		nap();
		n += procs_blocked() == 0;
	}
	return n > 20;
}

START_TEST(sleeping_is_not_io_wait)
{
	int least = 1 << 30, fds[2];
	pthread_t thread;
	call_t never;

	the_iou = new_iou(4);
	if (procs_blocked() < 0 || !(iou_ring(the_iou)->features & IORING_FEAT_NO_IOWAIT)) {
		iou_free(the_iou);
		SKIP("needs IORING_FEAT_NO_IOWAIT (6.15)");
	}
	if (!others_rest()) {
		iou_free(the_iou);
		SKIP("needs moments in which nothing else on this machine waits for I/O");
	}
	loop_tid = gettid();
	new_socketpair(fds);
	call_read(the_iou, &never, 0, fds[0]);
	thread = start_thread(watch_blocked, &least);
	run(the_iou);
	join_thread(thread);
	ck_assert_int_ne(least, 1 << 30); /* it was seen asleep */
	ck_assert_int_eq(iou_op_cancel(the_iou, never.op), 0);
	run(the_iou);
	close_pair(fds);
	done(the_iou);
	if (least > 0 && !others_rest())
		SKIP("needs moments in which nothing else on this machine waits for I/O");
	ck_assert_int_eq(least, 0);
}
END_TEST

/* ---- Busy polling ---------------------------------------------------------------------------- */

/* A poll that a timeout of the kernel's ends after 100 us; no other thread needs a CPU for that.
 * Returns how often this thread slept meanwhile. */
static long wait_a_little(iou_t *iou)
{
	struct __kernel_timespec time = kernel_time(100 * USEC);
	struct rusage before, after;
	call_t call;

	io_uring_prep_timeout(call_op(iou, &call, 0), &time, 0, 0);
	call_queue(iou, &call);
	getrusage(RUSAGE_THREAD, &before);
	n_order = 0;
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	getrusage(RUSAGE_THREAD, &after);
	ck_assert_int_eq(call.result, -ETIME);
	return after.ru_nvcsw - before.ru_nvcsw;
}

/* Looking for the completion until it is there, the loop sleeps not once. */
START_TEST(spinning_saves_sleep)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .spin_ns = 20 * MSEC});
	uint64_t until_ns = now_ns() + 20 * SECOND;
	int n_awake = 0;

	while (n_awake < 10 && now_ns() < until_ns)
		n_awake = wait_a_little(iou) ? 0 : n_awake + 1;
	ck_assert_int_eq(n_awake, 10); /* in a row: once, it may come by itself */
	done(iou);
}
END_TEST

/* Unless it is told to, it does not look but sleeps each time, but for the rare one that is over
 * before. */
START_TEST(there_is_no_spinning_by_default)
{
	iou_t *iou = new_iou(4);
	uint64_t until_ns = now_ns() + 20 * SECOND;
	int n_asleep = 0;

	while (n_asleep < 10 && now_ns() < until_ns)
		n_asleep = wait_a_little(iou) ? n_asleep + 1 : 0;
	ck_assert_int_eq(n_asleep, 10);
	done(iou);
}
END_TEST

static int n_cpus(void)
{
	cpu_set_t cpus;

	ck_assert_int_eq(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	return CPU_COUNT(&cpus);
}

static int spin_job(void *data)
{
	uint64_t until_ns = now_ns() + *(uint64_t *)data;

	while (now_ns() < until_ns)
		;
	return 0;
}

/* A job of 200 us ends while the loop looks for it: nobody has to wake it. Without spin_ns the loop
 * would be asleep by then, each time. */
START_TEST(spinning_saves_wakeups)
{
	iou_t *iou =
		new_iou_with(&(iou_config_t){.entries = 4, .workers = 1, .spin_ns = 20 * MSEC});
	uint64_t length_ns = 200 * USEC, until_ns = now_ns() + 20 * SECOND, wakeups;
	int n_saved = 0;
	call_t call;

	if (n_cpus() < 2) {
		done(iou);
		SKIP("needs a CPU for the worker beside the one for the loop");
	}
	while (n_saved < 5 && now_ns() < until_ns) {
		call_op(iou, &call, 0);
		n_order = 0;
		wakeups = get_stats(iou).wakeups;
		start_job(iou, call.op, spin_job, &length_ns, on_call, &call);
		ck_assert_int_eq(iou_poll(iou, -1), 1);
		n_saved += get_stats(iou).wakeups == wakeups;
	}
	ck_assert_int_ge(n_saved, 5);
	done(iou);
}
END_TEST

/* CPU time of a poll of 40 ms that nothing comes to: how long it looked, or the part of it that the
 * CPU was ours. */
static uint64_t time_looking(iou_t *iou)
{
	uint64_t cpu_ns = thread_cpu_ns();

	ck_assert_int_eq(iou_poll(iou, (int64_t)(40 * MSEC)), 0);
	return thread_cpu_ns() - cpu_ns;
}

/* Each completion that came while it looked makes it look longer, what does not come ever
 * shorter. */
START_TEST(spinning_adapts)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .spin_ns = 64 * MSEC});
	uint64_t most_ns = 0, least_ns = UINT64_MAX, until_ns = now_ns() + 10 * SECOND;

	iou_hold(iou);
	while (most_ns < 4 * MSEC && now_ns() < until_ns) {
		for (int i = 0; i < 10; i++)
			wait_a_little(iou);
		most_ns = time_looking(iou);
	}
	ck_assert_msg(most_ns >= 4 * MSEC, "%d us", (int)(most_ns / 1000));
	until_ns = now_ns() + 10 * SECOND;
	while (least_ns > 3 * MSEC && now_ns() < until_ns) {
		uint64_t cpu_ns = time_looking(iou);

		least_ns = cpu_ns < least_ns ? cpu_ns : least_ns;
	}
	ck_assert_msg(least_ns <= 3 * MSEC, "%d us", (int)(least_ns / 1000));
	iou_unhold(iou);
	done(iou);
}
END_TEST

static int nap_job(void *data)
{
	(void)data;
	nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
	return 0;
}

static void *nap_and_post(void *call)
{
	nap_job(NULL);
	post(the_iou, on_call, call);
	return NULL;
}

static void check_soon(uint64_t *began_ns)
{
	ck_assert_uint_lt(now_ns() - *began_ns, 15 * SECOND);
	*began_ns = now_ns();
}

/* However long it would look (here, 20 s at least), it ends for all that a sleep ends for. */
START_TEST(spinning_ends_for_everything)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .spin_ns = 1280 * SECOND});
	uint64_t began_ns = now_ns();
	call_t call = {0}, never, timer;
	pthread_t thread;
	int fds[2];

	the_iou = iou;
	new_socketpair(fds);
	call_read(iou, &never, 0, fds[0]);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	check_soon(&began_ns);
	start_job(iou, new_op(iou), nap_job, NULL, on_call, &call);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	check_soon(&began_ns);
	thread = start_thread(nap_and_post, &call);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	join_thread(thread);
	check_soon(&began_ns);
	call_op(iou, &timer, 0);
	iou_op_timer(iou, timer.op, 20 * MSEC, 0, on_call, &timer);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(20 * MSEC)), 0);
	check_soon(&began_ns);
	start_alarms(20 * MSEC, quit_the_iou);
	run(iou);
	stop_alarms();
	check_soon(&began_ns);
	ck_assert_int_eq(iou_op_cancel(iou, never.op), 0);
	run(iou);
	run(iou); /* the first may have spent a late quit */
	iou_hold(iou);
	thread = start_thread(nap_and_unhold, iou);
	run(iou);
	join_thread(thread);
	check_soon(&began_ns);
	close_pair(fds);
	done(iou);
}
END_TEST

/* What ends each round at itself: an error, a quit from a post, a quit from a timer that is always
 * due. */
enum spoiler { FAILS, QUITS, TICKS };
static bool spoiling;

static int on_spoil(void *spoiler)
{
	if (!spoiling)
		return 0;
	if (*(int *)spoiler != TICKS)
		post(the_iou, on_spoil, spoiler);
	if (*(int *)spoiler == FAILS)
		return -5;
	return iou_quit(the_iou);
}

/* _i: the spoiler. The other sources have their turn all the same, in the rounds after. */
START_TEST(ending_each_round_starves_nothing)
{
	call_t job = {0}, cqe = {0};
	iou_op_t *timer;

	the_iou = new_iou(8);
	spoiling = true;
	timer = new_op(the_iou);
	make_ready(the_iou, JOB, on_call, &job);
	make_ready(the_iou, CQE, on_call, &cqe);
	if (_i == TICKS)
		iou_op_timer(the_iou, timer, 0, 1, on_spoil, &_i);
	else
		post(the_iou, on_spoil, &_i);
	for (int i = 0; i < 10; i++)
		ck_assert_int_eq(iou_run(the_iou), _i == FAILS ? -5 : 0);
	ck_assert_int_eq(job.n, 1);
	ck_assert_int_eq(cqe.n, 1);
	spoiling = false;
	if (_i == TICKS)
		ck_assert_int_eq(iou_op_cancel(the_iou, timer), 0);
	else
		iou_op_free(the_iou, timer);
	run(the_iou);
	done(the_iou);
}
END_TEST

Suite *loop_suite(void)
{
	Suite *suite = suite_create("loop");
	TCase *rounds, *sleeping;

	rounds = TEST_CASE(suite, "rounds", rounds_deliver_in_order,
			   cancelling_another_op_hastens_nothing, an_error_loses_nothing,
			   an_error_in_each_callback_loses_nothing, only_run_and_poll_call_back);
	tcase_add_loop_test(rounds, what_becomes_ready_is_for_the_next_round, 0, N_KINDS);
	tcase_add_loop_test(rounds, no_source_starves_another, 0, N_KINDS);
	tcase_add_loop_test(rounds, ending_each_round_starves_nothing, FAILS, TICKS + 1);
	tcase_add_loop_test(rounds, a_source_that_fails_holds_up_nobody, 0, N_KINDS);
	tcase_add_loop_test(rounds, callbacks_may_call_everything, 0, N_KINDS);
	TEST_CASE(suite, "run", run_ends_when_nothing_is_pending, holds_keep_iou_run_running);
	TEST_CASE(suite, "poll", poll_with_nothing_pending_returns_at_once,
		  poll_waits_at_most_its_time, poll_waits_for_a_callback, poll_counts_callbacks);
	TEST_CASE(suite, "quit", a_quit_before_a_run_ends_it, a_quit_in_a_callback_ends_the_run,
		  poll_neither_sees_nor_spends_quit, a_quit_from_a_thread_ends_the_run,
		  quit_keeps_errno, a_quit_from_a_signal_handler_ends_the_run);
	sleeping = TEST_CASE(
		suite, "sleeping", waiting_costs_no_cpu_time, an_idle_round_makes_one_system_call,
		nobody_wakes_a_loop_that_a_completion_woke, signals_interrupt_without_harm,
		more_idle_reads_than_the_cq_has_entries_hold_up_nothing, sleeping_is_not_io_wait);
	for (int kind = 0; kind < N_KINDS; kind++)
		if (kind != ENDED)
			tcase_add_loop_test(sleeping, all_that_becomes_ready_wakes_the_loop, kind,
					    kind + 1);
	TEST_CASE(suite, "spinning", spinning_saves_sleep, there_is_no_spinning_by_default,
		  spinning_saves_wakeups, spinning_adapts, spinning_ends_for_everything);
	return suite;
}
