/* SPDX-License-Identifier: MIT */

/* Timers: when they fire, in which order, how often; moving, cancelling, extreme times, a million
 * of them. */

#include "helper.h"

#include <errno.h>
#include <time.h>

static iou_t *the_iou;

static void sleep_ns(uint64_t ns)
{
	nanosleep(&(struct timespec){(time_t)(ns / SECOND), (long)(ns % SECOND)}, NULL);
}

static void call_timer(iou_t *iou, call_t *call, int id, uint64_t after_ns, uint64_t period_ns)
{
	call_op(iou, call, id);
	iou_op_timer(iou, call->op, after_ns, period_ns, on_call, call);
}

/* ---- When ------------------------------------------------------------------------------------ */

START_TEST(a_timer_is_never_early_and_hardly_late)
{
	uint64_t best_ns = UINT64_MAX, began_ns, after_ns, late_ns;
	iou_t *iou = new_iou(4);
	call_t call;

	for (int i = 0; i < 400 && (i < 40 || best_ns >= 5 * MSEC); i++) {
		after_ns = (uint64_t)(i % 40) * 150 * USEC + (uint64_t)i;
		began_ns = now_ns();
		call_timer(iou, &call, 0, after_ns, 0);
		if (i % 2)
			run(iou);
		else
			POLL_UNTIL(iou, call.n);
		ck_assert_uint_ge(now_ns(), began_ns + after_ns);
		ck_assert_int_eq(call.n, 1);
		ck_assert_int_eq(call.result, 1);
		ck_assert_uint_eq(call.flags, 0);
		late_ns = now_ns() - began_ns - after_ns;
		best_ns = late_ns < best_ns ? late_ns : best_ns;
	}
	ck_assert_uint_lt(best_ns, 5 * MSEC);
	done(iou);
}
END_TEST

/* QEMU's: before its time nothing happens, at its time it runs, and only once. */
START_TEST(a_timer_runs_once_at_its_time)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns;
	call_t call;

	began_ns = now_ns();
	call_timer(iou, &call, 0, 40 * MSEC, 0);
	if (iou_poll(iou, 0) == 1)
		ck_assert_uint_ge(now_ns() - began_ns, 40 * MSEC);
	sleep_ns(50 * MSEC);
	if (!call.n)
		ck_assert_int_eq(iou_poll(iou, 0), 1);
	ck_assert_int_eq(call.n, 1);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	ck_assert_int_eq(call.n, 1);
	done(iou);
}
END_TEST

typedef struct timed_t {
	iou_op_t *op;
	uint64_t earliest_ns, latest_ns; /* due in between */
} timed_t;

static uint64_t last_earliest_ns;
static int n_timed;

static int on_timed(void *data)
{
	timed_t *timed = data;

	if (now_ns() < timed->earliest_ns || timed->latest_ns < last_earliest_ns)
		return -EPROTO;
	last_earliest_ns = timed->earliest_ns;
	n_timed++;
	return 0;
}

static void start_timed(iou_t *iou, timed_t *timed, uint64_t after_ns)
{
	timed->earliest_ns = now_ns() + after_ns;
	iou_op_timer(iou, timed->op, after_ns, 0, on_timed, timed);
	timed->latest_ns = now_ns() + after_ns;
}

/* Random times, some due together, some moved, delivered by many rounds and by one. */
START_TEST(due_timers_run_in_order)
{
	enum { N = 3000 };
	iou_t *iou = new_iou(4);
	timed_t *timed = calloc(N, sizeof(*timed));
	uint64_t seed = 7;

	for (int repeat = 0; repeat < 3; repeat++) {
		last_earliest_ns = 0;
		n_timed = 0;
		for (int i = 0; i < N; i++) {
			timed[i].op = new_op(iou);
			start_timed(iou, &timed[i], random_below(&seed, 30) * MSEC);
		}
		for (int i = 0; i < N; i += 3)
			start_timed(iou, &timed[i], random_below(&seed, 20000) * USEC);
		if (repeat == 1)
			sleep_ns(40 * MSEC); /* all are due in one round */
		ck_assert_int_eq(iou_run(iou), 0);
		ck_assert_int_eq(n_timed, N);
	}
	free(timed);
	done(iou);
}
END_TEST

/* As they were started, where they are due alike: equal after_ns, one after the other. */
START_TEST(equal_timers_run_in_the_order_of_their_start)
{
	enum { N = 2000 };
	iou_t *iou = new_iou(4);
	call_t *calls = calloc(N, sizeof(*calls));

	for (int i = 0; i < N; i++)
		call_timer(iou, &calls[i], i, 0, 0);
	for (int i = 0; i < N; i += 2) /* moving is starting anew */
		iou_op_timer(iou, calls[i].op, 0, 0, on_call, &calls[i]);
	sleep_ns(MSEC);
	run(iou);
	ck_assert_int_eq(n_order, N);
	for (int i = 0; i < N / 2; i++) {
		ck_assert_int_eq(order[i], 2 * i + 1);
		ck_assert_int_eq(order[N / 2 + i], 2 * i);
	}
	free(calls);
	done(iou);
}
END_TEST

/* ---- Periods --------------------------------------------------------------------------------- */

typedef struct ticks_t {
	iou_op_t *op;
	uint64_t began_ns, after_ns, period_ns;
	uint64_t n_expired; /* sum of the results */
	int n, max;
	bool early;
} ticks_t;

/* Each expiration is counted once, at its time: n_expired is what the clock says, but for the
 * moment between the loop's look at the clock and ours. */
static int on_ticks(void *data)
{
	ticks_t *ticks = data;
	uint64_t passed_ns = now_ns() - ticks->began_ns, expected;

	ck_assert_int_ge(ticks->op->result, 1);
	ck_assert_uint_eq(ticks->op->flags, IORING_CQE_F_MORE);
	ticks->n_expired += (unsigned)ticks->op->result;
	expected = passed_ns < ticks->after_ns
			   ? 0
			   : (passed_ns - ticks->after_ns) / ticks->period_ns + 1;
	ticks->early |= ticks->n_expired > expected;
	if (++ticks->n == ticks->max)
		ck_assert_int_eq(iou_op_cancel(the_iou, ticks->op), 0);
	return 0;
}

static int on_ticks_end(void *data)
{
	ticks_t *ticks = data;

	if (ticks->op->flags & IORING_CQE_F_MORE) {
		on_ticks(data);
		if (ticks->n % 5 == 0)
			sleep_ns(3 * ticks->period_ns); /* the loop is late */
		return 0;
	}
	ck_assert_int_eq(ticks->op->result, -ECANCELED);
	return 0;
}

START_TEST(a_period_does_not_drift)
{
	ticks_t ticks = {.after_ns = 3 * MSEC, .period_ns = 2 * MSEC, .max = 60};

	the_iou = new_iou(4);
	ticks.op = new_op(the_iou);
	/* a little before the true start: never more ticks than this says */
	ticks.began_ns = now_ns();
	iou_op_timer(the_iou, ticks.op, ticks.after_ns, ticks.period_ns, on_ticks_end, &ticks);
	run(the_iou);
	ck_assert(!ticks.early);
	ck_assert_int_eq(ticks.n, 60);
	/* 11 breaks of 3 periods, each caught up */
	ck_assert_uint_ge(ticks.n_expired, 60 + 11 * 2);
	done(the_iou);
}
END_TEST

/* The sum of the counts follows the clock, however late each callback was. */
START_TEST(counts_of_late_ticks_are_exact)
{
	ticks_t ticks = {.after_ns = 0, .period_ns = 100 * USEC, .max = 1 << 30};
	uint64_t before_ns, least, most, later_ns;

	the_iou = new_iou(4);
	ticks.op = new_op(the_iou);
	ticks.began_ns = now_ns();
	iou_op_timer(the_iou, ticks.op, 0, ticks.period_ns, on_ticks, &ticks);
	later_ns = now_ns();
	for (int i = 0; i < 30; i++) {
		sleep_ns((uint64_t)i * 70 * USEC);
		before_ns = now_ns();
		ck_assert_int_ge(iou_poll(the_iou, 0), 0);
		least = before_ns < later_ns ? 0 : (before_ns - later_ns) / ticks.period_ns + 1;
		most = (now_ns() - ticks.began_ns) / ticks.period_ns + 1;
		ck_assert_uint_ge(ticks.n_expired, least);
		ck_assert_uint_le(ticks.n_expired, most);
	}
	iou_free(the_iou);
}
END_TEST

START_TEST(an_endless_stream_of_ticks_is_counted)
{
	iou_t *iou = new_iou(4);
	call_t call, other;

	call_timer(iou, &call, 0, 0, 1); /* every nanosecond */
	call_timer(iou, &other, 1, 5 * MSEC, 0);
	POLL_UNTIL(iou, other.n);
	ck_assert_int_ge(call.n, 1);
	ck_assert_int_ge(call.result, 1);
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	run(iou);
	ck_assert_int_eq(call.n_last, 1);
	done(iou);
}
END_TEST

/* More of them than an int can count. */
START_TEST(a_count_of_ticks_too_large_is_the_largest)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns = now_ns();
	call_t call;

	call_timer(iou, &call, 0, 0, 1);
	while (now_ns() - began_ns < 2300 * MSEC) /* 2^31 ns are 2.15 s */
		sleep_ns(100 * MSEC);
	ck_assert_int_eq(iou_poll(iou, 0), 1);
	ck_assert_int_eq(call.result, INT32_MAX);
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	run(iou);
	ck_assert_int_eq(call.n_last, 1);
	done(iou);
}
END_TEST

/* ---- Extreme values -------------------------------------------------------------------------- */

static const uint64_t extremes[] = {
	0,
	1,
	999999999,
	SECOND - 1,
	(uint64_t)INT32_MAX,
	(uint64_t)UINT32_MAX + 1,
	/* no seconds of 32 bits */
	((uint64_t)INT32_MAX + 1) * SECOND,
	((uint64_t)UINT32_MAX + 1) * SECOND,
	(uint64_t)INT64_MAX - 1,
	(uint64_t)INT64_MAX,
	(uint64_t)INT64_MAX + 1,
	UINT64_MAX - 1,
	UINT64_MAX,
};
#define N_EXTREMES ((int)(sizeof(extremes) / sizeof(extremes[0])))

/* Each as the first time and as the period: those in reach fire, the others are pending and can be
 * cancelled. */
START_TEST(any_time_and_period_is_valid)
{
	iou_t *iou = new_iou(4);
	call_t call;

	for (int i = 0; i < N_EXTREMES; i++) {
		for (int j = 0; j < N_EXTREMES; j++) {
			uint64_t after_ns = extremes[i], period_ns = extremes[j];
			uint64_t began_ns = now_ns();
			int n, n_last;

			call_timer(iou, &call, 0, after_ns, period_ns);
			n = iou_poll(iou, (int64_t)(20 * USEC));
			if (after_ns <= 1)
				ck_assert_int_eq(n, 1);
			else if (now_ns() - began_ns < after_ns)
				ck_assert_int_eq(n, 0);
			n_last = n && period_ns == 0;
			ck_assert_int_eq(call.n_last, n_last);
			ck_assert_int_eq(iou_op_cancel(iou, call.op), n_last ? -EINVAL : 0);
			ck_assert_int_ge(iou_poll(iou, 0), 0);
			ck_assert_int_eq(call.n_last, 1);
			ck_assert_int_eq(call.result, n_last ? 1 : -ECANCELED);
		}
	}
	done(iou);
}
END_TEST

/* The far ones keep neither the near ones from firing nor the loop from sleeping. */
START_TEST(far_timers_do_no_harm)
{
	iou_t *iou = new_iou(4);
	call_t far[N_EXTREMES], near;
	uint64_t began_ns;

	for (int i = 5; i < N_EXTREMES; i++)
		call_timer(iou, &far[i], i, extremes[i], 0);
	began_ns = now_ns();
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0);
	ck_assert_uint_ge(now_ns() - began_ns, 5 * MSEC);
	call_timer(iou, &near, 1, 5 * MSEC, 0);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	ck_assert_int_eq(near.n, 1);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	for (int i = 5; i < N_EXTREMES; i++)
		ck_assert_int_eq(far[i].result, -ECANCELED);
	done(iou);
}
END_TEST

/* ---- Moving ---------------------------------------------------------------------------------- */

START_TEST(a_pending_timer_is_moved)
{
	iou_t *iou = new_iou(4);
	call_t call, other = {0}, between;
	uint64_t began_ns = now_ns();

	call_timer(iou, &between, 2, 5 * MSEC, 0);
	call_timer(iou, &call, 0, 100 * SECOND, 100 * SECOND);
	other.op = call.op;
	other.id = 1;
	/* earlier, once, with another closure */
	iou_op_timer(iou, call.op, 10 * MSEC, 0, on_call, &other);
	run(iou);
	ck_assert_uint_ge(now_ns() - began_ns, 10 * MSEC);
	ck_assert_int_eq(call.n, 0);
	ck_assert_int_eq(other.n, 1);
	ck_assert_int_eq(other.n_last, 1);
	ck_assert_int_eq(order[0], 2);

	call_timer(iou, &call, 0, 0, 0); /* due, then moved away before it was delivered */
	began_ns = now_ns();
	iou_op_timer(iou, call.op, 10 * MSEC, 0, on_call, &call);
	if (iou_poll(iou, 0) == 0)
		run(iou);
	ck_assert_uint_ge(now_ns() - began_ns, 10 * MSEC);
	ck_assert_int_eq(call.n, 1);
	ck_assert_uint_eq(get_stats(iou).timers, 3);
	done(iou);
}
END_TEST

typedef struct mover_t {
	iou_op_t *op;
	int n;
	unsigned flags[8];
	char *env;
} mover_t;

/* Periodic, moved in its callback while it is pending; then once; then queued again in its last
 * callback. */
static int on_mover(void *data)
{
	mover_t *mover = data;

	mover->flags[mover->n++] = mover->op->flags;
	if (mover->n == 2)
		iou_op_timer(the_iou, mover->op, MSEC, 0, on_mover, mover);
	else if (mover->n == 3)
		iou_op_timer(the_iou, mover->op, MSEC, MSEC, on_mover, mover);
	else if (mover->n == 5)
		ck_assert_int_eq(iou_op_cancel(the_iou, mover->op), 0);
	ck_assert_str_eq(mover->env, "mine");
	return 0;
}

START_TEST(a_timer_is_moved_in_its_callback)
{
	mover_t mover = {0};

	the_iou = new_iou(4);
	mover.op = new_op(the_iou);
	mover.env = iou_op_env(mover.op, 8);
	ck_assert_ptr_nonnull(mover.env);
	memcpy(mover.env, "mine", 5);
	iou_op_timer(the_iou, mover.op, MSEC, MSEC, on_mover, &mover);
	run(the_iou);
	ck_assert_int_eq(mover.n, 6);
	for (int i = 0; i < 6; i++)
		ck_assert_uint_eq(mover.flags[i], i == 2 || i == 5 ? 0 : IORING_CQE_F_MORE);
	done(the_iou);
}
END_TEST

/* ---- Cancelling ------------------------------------------------------------------------------ */

static int on_cancel_itself(void *data)
{
	call_t *call = data;

	on_call(call);
	ck_assert_int_eq(iou_op_cancel(the_iou, call->op),
			 call->op->flags & IORING_CQE_F_MORE ? 0 : -EINVAL);
	return 0;
}

START_TEST(a_timer_is_cancelled)
{
	call_t call;

	the_iou = new_iou(4);
	call_timer(the_iou, &call, 0, 100 * SECOND, 0);
	ck_assert_int_eq(iou_op_cancel(the_iou, call.op), 0);
	ck_assert_int_eq(iou_op_cancel(the_iou, call.op), 0); /* twice is harmless */
	ck_assert_int_eq(call.n, 0);
	run(the_iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert_int_eq(call.result, -ECANCELED);

	call_timer(the_iou, &call, 0, 0, 0); /* due, not yet delivered */
	ck_assert_int_eq(iou_op_cancel(the_iou, call.op), 0);
	run(the_iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert(call.result == -ECANCELED || call.result == 1);

	for (int period = 0; period < 2; period++) {
		call_op(the_iou, &call, 0);
		iou_op_timer(the_iou, call.op, 0, (uint64_t)period * 100 * SECOND, on_cancel_itself,
			     &call);
		run(the_iou);
		ck_assert_int_eq(call.n, 1 + period);
		ck_assert_int_eq(call.n_last, 1);
		ck_assert_int_eq(call.result, period ? -ECANCELED : 1);
	}
	done(the_iou);
}
END_TEST

static int on_cancel_other(void *data)
{
	call_t *call = data;

	on_call(call);
	ck_assert_int_eq(iou_op_cancel(the_iou, call[1].op), 0);
	return 0;
}

/* The first of two that are due in one round cancels the second: one callback all the same. */
START_TEST(a_due_timer_is_cancelled_by_another)
{
	call_t calls[2];

	the_iou = new_iou(4);
	call_op(the_iou, &calls[0], 0);
	iou_op_timer(the_iou, calls[0].op, 0, 0, on_cancel_other, &calls[0]);
	call_timer(the_iou, &calls[1], 1, 0, 0);
	run(the_iou);
	ck_assert_int_eq(calls[0].n, 1);
	ck_assert_int_eq(calls[1].n, 1);
	done(the_iou);
}
END_TEST

/* ---- Many ------------------------------------------------------------------------------------ */

static int n_fired;

static int on_fired(void *data)
{
	(void)data;
	n_fired++;
	return 0;
}

/* Started, moved, half of them fired and the rest cancelled, without a system call for each. A heap
 * does it within a second or two; what is linear in the number pending would take hours: the test's
 * time would be up. */
START_TEST(a_million_timers_are_ordinary)
{
	int n = is_slow() ? 100000 : 1000000;
	iou_op_t **ops = malloc((size_t)n * sizeof(*ops));
	uint64_t seed = 3;

	the_iou = new_iou(4);
	n_fired = 0;
	for (int i = 0; i < n; i++) {
		ops[i] = iou_op_new(the_iou);
		iou_op_timer(the_iou, ops[i], SECOND * 60 + random_below(&seed, 1000000000), 0,
			     on_fired, NULL);
	}
	ck_assert_uint_eq(n_pending(the_iou), (unsigned)n);
	for (int i = 0; i < n; i++)
		iou_op_timer(the_iou, ops[i], i % 2 ? 60 * SECOND : random_below(&seed, 1000000), 0,
			     on_fired, NULL);
	while (n_fired < n / 2)
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	for (int i = 1; i < n; i += 2)
		if (iou_op_cancel(the_iou, ops[i]) != 0)
			ck_abort_msg("timer %d could not be cancelled", i);
	run(the_iou);
	ck_assert_int_eq(n_fired, n);
	ck_assert_uint_ge(get_stats(the_iou).timers, (unsigned)n / 2);
	ck_assert_uint_lt(get_stats(the_iou).enters, (unsigned)n / 20);
	free(ops);
	done(the_iou);
}
END_TEST

/* Random starts, moves, cancels and rounds against a count: one last callback each. */
START_TEST(timers_at_random_end_once)
{
	enum { N = 500 };
	call_t *calls = calloc(N, sizeof(*calls));
	uint64_t seed = 11;
	int n_steps = is_slow() ? 5000 : 30000;

	the_iou = new_iou(4);
	for (int step = 0; step < n_steps; step++) {
		call_t *call = &calls[random_below(&seed, N)];
		bool pending = call->op && !call->n_last;

		n_order = 0;
		switch (random_below(&seed, 4)) {
		case 0:
			if (!pending)
				call_timer(the_iou, call, 0, random_below(&seed, 2000) * USEC,
					   random_below(&seed, 3) * USEC);
			break;
		case 1:
			if (pending && !call->id)
				iou_op_timer(the_iou, call->op, random_below(&seed, 2000) * USEC, 0,
					     on_call, call);
			break;
		case 2:
			if (pending)
				ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
			call->id = pending; /* asked to end: not to be moved any more */
			break;
		default:
			ck_assert_int_ge(iou_poll(the_iou, 0), 0);
		}
	}
	ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	n_order = 0;
	run(the_iou);
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(calls[i].n_last, calls[i].op != NULL);
	free(calls);
	done(the_iou);
}
END_TEST

/* Between its cancel and its last callback a timer is pending: it may be moved, and ends all the
 * same. */
START_TEST(a_cancelled_timer_is_moved)
{
	iou_t *iou = new_iou(4);
	call_t first = {0}, second = {0};

	call_op(iou, &first, 1);
	second.op = first.op;
	iou_op_timer(iou, first.op, 100 * SECOND, 0, on_call, &first);
	ck_assert_int_eq(iou_op_cancel(iou, first.op), 0);
	iou_op_timer(iou, first.op, 200 * SECOND, SECOND, on_call, &second);
	ck_assert_int_eq(iou_op_cancel(iou, first.op), 0);
	run(iou);
	ck_assert_int_eq(first.n, 0);
	ck_assert_int_eq(second.n, 1);
	ck_assert_int_eq(second.n_last, 1);
	ck_assert_int_eq(second.result, -ECANCELED);
	done(iou);
}
END_TEST

Suite *timer_suite(void)
{
	Suite *suite = suite_create("timer");

	TEST_CASE(suite, "when", a_timer_is_never_early_and_hardly_late,
		  a_timer_runs_once_at_its_time, due_timers_run_in_order,
		  equal_timers_run_in_the_order_of_their_start);
	TEST_CASE(suite, "period", a_period_does_not_drift, counts_of_late_ticks_are_exact,
		  an_endless_stream_of_ticks_is_counted, a_count_of_ticks_too_large_is_the_largest);
	TEST_CASE(suite, "extremes", any_time_and_period_is_valid, far_timers_do_no_harm);
	TEST_CASE(suite, "move", a_pending_timer_is_moved, a_timer_is_moved_in_its_callback,
		  a_cancelled_timer_is_moved);
	TEST_CASE(suite, "cancel", a_timer_is_cancelled, a_due_timer_is_cancelled_by_another);
	TEST_CASE(suite, "many", a_million_timers_are_ordinary, timers_at_random_end_once);
	return suite;
}
