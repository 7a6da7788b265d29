/* SPDX-License-Identifier: MIT */

/* However much waits: a round takes at most 1,024 of each source, and leaves the rest, in order, to
 * the next. */

#include "helper.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>

enum { SHARE = 1024, N_PILED = 2 * SHARE + 452 };

/* Bottom halves that run when nothing else does: helper.h has no kind for them. */
#define IDLE N_KINDS

static iou_t *the_iou;

/* ---- Piles ----------------------------------------------------------------------------------- */

static call_t *calls;
static int n_calls, n_worked;
static pid_t worker_tid;

/* Room for so many calls. The only worker keeps the order of jobs. */
static void new_pile(unsigned entries, int n_max)
{
	calls = calloc((size_t)n_max, sizeof(*calls));
	ck_assert_ptr_nonnull(calls);
	n_calls = n_worked = 0;
	the_iou = new_iou_with(&(iou_config_t){.entries = entries, .workers = 1});
}

static void end_pile(void)
{
	done(the_iou);
	free(calls);
}

static int work(void *data)
{
	__atomic_store_n(&worker_tid, gettid(), __ATOMIC_RELAXED);
	__atomic_fetch_add(&n_worked, 1, __ATOMIC_RELEASE);
	return on_nothing(data);
}

/* A job has been given back when the worker sleeps. */
static void wait_for_jobs(int n)
{
	WAIT_UNTIL(__atomic_load_n(&n_worked, __ATOMIC_ACQUIRE) == n);
	WAIT_UNTIL(thread_sleeps(worker_tid));
}

static call_t *next_call(iou_op_t *op)
{
	call_t *call = &calls[n_calls];

	*call = (call_t){.op = op, .id = n_calls++};
	return call;
}

static void pile_one(int kind, int (*cb)(void *cb_data))
{
	bool has_op = kind != POST && kind != BH && kind != IDLE;
	iou_op_t *op = has_op ? iou_op_new(the_iou) : NULL;
	call_t *call = next_call(op);
	int ret = 0;

	if (has_op && !op)
		ck_abort_msg("no op"); /* no ck_assert(): it would write a note each time */
	switch (kind) {
	case TIMER:
		iou_op_timer(the_iou, op, 0, 0, cb, call);
		break;
	case POST:
		post(the_iou, cb, call);
		break;
	case BH:
		iou_bh_schedule(new_bh(the_iou, cb, call));
		break;
	case IDLE:
		iou_bh_schedule_idle(new_bh(the_iou, cb, call));
		break;
	case JOB:
		ret = iou_op_async(the_iou, op, work, NULL, cb, call);
		break;
	case ENDED:
		iou_op_timer(the_iou, op, UINT64_MAX, 0, cb, call);
		ret = iou_op_cancel(the_iou, op);
		break;
	default:
		nop_queue(the_iou, op, cb, call);
	}
	if (ret < 0)
		ck_abort_msg("%s: %s", kind_names[kind], strerror(-ret));
}

/* So many of a kind, ready to be delivered. */
static void pile_up(int kind, int n, int (*cb)(void *cb_data))
{
	int n_before = n_worked;

	for (int i = 0; i < n; i++)
		pile_one(kind, cb);
	if (kind == CQE)
		flush(the_iou);
	if (kind == JOB)
		wait_for_jobs(n_before + n);
}

/* Each was called once, in the order in which they were made. */
static void check_order(int n)
{
	ck_assert_int_eq(n_order, n);
	for (int i = 0; i < n; i++)
		if (order[i] != i)
			ck_abort_msg("number %d was called in place %d", order[i], i);
}

/* ---- Each source has its share --------------------------------------------------------------- */

static void check_shares(int kind)
{
	static const int shares[] = {SHARE, SHARE, N_PILED - 2 * SHARE, 0};

	for (int i = 0; i < 4; i++)
		ck_assert_msg(iou_poll(the_iou, 0) == shares[i], "%s, round %d: %d in all",
			      kind_names[kind], i, n_order);
	check_order(N_PILED);
}

/* _i: the kind */
START_TEST(a_round_takes_its_share_of_each_kind)
{
	new_pile(2048, N_PILED);
	pile_up(_i, N_PILED, on_call);
	check_shares(_i);
	end_pile();
}
END_TEST

/* They may need rounds to be taken in, since those that are not idle come first. */
START_TEST(a_round_takes_its_share_of_idle_bottom_halves)
{
	int n = 0, ret;

	new_pile(4, N_PILED);
	pile_up(IDLE, N_PILED, on_call);
	for (int i = 0; i < 8 && n < N_PILED; i++) {
		ret = iou_poll(the_iou, 0);
		ck_assert_msg(ret >= 0 && ret <= SHARE, "%d in round %d", ret, i);
		n += ret;
	}
	check_order(N_PILED);
	end_pile();
}
END_TEST

/* Posts and bottom halves are one line, and so are jobs and what ended inside iou. */
START_TEST(sources_in_one_line_share_a_share)
{
	new_pile(4, 2 * N_PILED);
	for (int i = 0; i < N_PILED; i++)
		pile_one(i % 2 ? POST : BH, on_call);
	check_shares(POST);
	end_pile();

	n_order = 0;
	new_pile(4, 2 * N_PILED);
	pile_up(ENDED, SHARE + 100, on_call);
	pile_up(JOB, N_PILED - SHARE - 100, on_call);
	check_shares(ENDED);
	end_pile();
}
END_TEST

/* Too many of each kind: a round has a share of each, in the order of a round. */
START_TEST(each_source_has_its_own_share)
{
	static const kind_t kinds[] = {TIMER, POST, JOB, CQE};
	enum { N_SOURCES = 4, N_REST = 100, N = SHARE + N_REST };
	int place = 0;

	new_pile(2048, N_SOURCES * N);
	for (int i = 0; i < N_SOURCES; i++)
		pile_up(kinds[i], N, on_call);
	ck_assert_int_eq(iou_poll(the_iou, 0), N_SOURCES * SHARE);
	ck_assert_int_eq(iou_poll(the_iou, 0), N_SOURCES * N_REST);
	ck_assert_int_eq(iou_poll(the_iou, 0), 0);
	ck_assert_int_eq(n_order, N_SOURCES * N);
	for (int source = 0; source < N_SOURCES; source++)
		for (int i = 0; i < SHARE; i++, place++)
			ck_assert_int_eq(order[place], source * N + i);
	for (int source = 0; source < N_SOURCES; source++)
		for (int i = SHARE; i < N; i++, place++)
			ck_assert_int_eq(order[place], source * N + i);
	end_pile();
}
END_TEST

/* iou_run() goes on to the end. _i: the kind */
START_TEST(a_run_takes_one_share_after_the_other)
{
	new_pile(2048, N_PILED);
	pile_up(_i, N_PILED, on_call);
	run(the_iou);
	check_order(N_PILED);
	end_pile();
}
END_TEST

/* Deadlines of jobs that wait for a worker: those that expire in a round are called in the next. */
START_TEST(deadlines_expire_by_shares)
{
	static const struct {
		int n_ended, n_called;
	} rounds[] = {{SHARE, 0},
		      {2 * SHARE, SHARE},
		      {N_PILED, SHARE},
		      {N_PILED, N_PILED - 2 * SHARE},
		      {N_PILED, 0}};
	gate_t gate;

	new_pile(4, N_PILED);
	gate_init(&gate);
	block_workers(the_iou, &gate, 1);
	for (int i = 0; i < N_PILED; i++) {
		call_t *call = next_call(new_op(the_iou));

		iou_op_deadline(the_iou, call->op, 0);
		if (iou_op_async(the_iou, call->op, work, NULL, on_call, call) < 0)
			ck_abort_msg("iou_op_async");
	}
	for (unsigned i = 0; i < sizeof(rounds) / sizeof(rounds[0]); i++) {
		ck_assert_int_eq(iou_poll(the_iou, 0), rounds[i].n_called);
		ck_assert_uint_eq(get_stats(the_iou).jobs, rounds[i].n_ended);
	}
	for (int i = 0; i < N_PILED; i++)
		if (calls[i].n != 1 || calls[i].result != -ETIME)
			ck_abort_msg("job %d: %d calls, result %d", i, calls[i].n, calls[i].result);
	unblock_workers(&gate, 1);
	run(the_iou);
	ck_assert_int_eq(n_worked, 0);
	end_pile();
}
END_TEST

/* Reads that nothing comes for. */
static void pile_up_reads(int n, int fd, bool deadlines)
{
	static char byte;

	for (int i = 0; i < n; i++) {
		call_t *call = next_call(new_op(the_iou));

		io_uring_prep_recv(call->op->sqe, fd, &byte, 1, 0);
		if (deadlines)
			iou_op_deadline(the_iou, call->op, 0);
		call_queue(the_iou, call);
	}
}

/* A round of it: returns what it submitted. */
static uint64_t submitted_in_a_round(void)
{
	uint64_t n_before = get_stats(the_iou).submitted;
	int ret = iou_poll(the_iou, 0);

	ck_assert_msg(ret >= 0 && ret <= SHARE, "iou_poll: %d", ret);
	return get_stats(the_iou).submitted - n_before;
}

/* As often as the SQ has to be filled for a share. */
START_TEST(ops_are_submitted_by_shares)
{
	int fds[2];

	new_pile(64, N_PILED);
	new_socketpair(fds);
	pile_up_reads(N_PILED, fds[0], false);
	ck_assert_uint_eq(submitted_in_a_round(), SHARE);
	ck_assert_uint_eq(submitted_in_a_round(), SHARE);
	ck_assert_uint_eq(submitted_in_a_round(), N_PILED - 2 * SHARE);
	ck_assert_uint_eq(get_stats(the_iou).backlog, 0);
	ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	run(the_iou);
	ck_assert_int_eq(n_order, N_PILED);
	close_pair(fds);
	end_pile();
}
END_TEST

/* The SQ would have room for all. Fewer are sent where the kernel takes long to find their ops.
 * _i: cancelled by the program, or by deadlines */
START_TEST(cancels_are_sent_by_shares)
{
	const int n = 2 * N_PILED;
	int fds[2];

	new_pile(4096, n);
	new_socketpair(fds);
	pile_up_reads(n, fds[0], _i);
	flush(the_iou);
	if (!_i)
		ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	while (n_pending(the_iou))
		ck_assert_uint_le(submitted_in_a_round(), SHARE);
	for (int i = 0; i < n; i++)
		if (calls[i].n != 1 || calls[i].result != (_i ? -ETIME : -ECANCELED))
			ck_abort_msg("read %d: %d calls, result %d", i, calls[i].n,
				     calls[i].result);
	close_pair(fds);
	end_pile();
}
END_TEST

/* What is queued meanwhile does not wait until all of them were sent. */
START_TEST(cancels_do_not_hold_up_ops)
{
	call_t nop = {0};
	int fds[2];

	new_pile(64, N_PILED);
	new_socketpair(fds);
	pile_up_reads(N_PILED, fds[0], false);
	flush(the_iou);
	ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	start(the_iou, CQE, on_call, &nop);
	ck_assert_int_ge(iou_poll(the_iou, 0), 1);
	ck_assert_int_eq(nop.n, 1);
	ck_assert_uint_gt(n_pending(the_iou), N_PILED / 2);
	run(the_iou);
	close_pair(fds);
	end_pile();
}
END_TEST

/* ---- In the middle of a pile ----------------------------------------------------------------- */

static int on_refill(void *data)
{
	on_call(data);
	if (n_calls < 2 * N_PILED)
		pile_one(POST, on_refill);
	return 0;
}

/* What comes meanwhile is behind what is left. */
START_TEST(what_comes_later_waits_behind_the_rest_of_a_share)
{
	new_pile(2048, 2 * N_PILED);
	pile_up(POST, N_PILED, on_refill);
	ck_assert_int_eq(iou_poll(the_iou, 0), SHARE);
	ck_assert_int_eq(n_calls, N_PILED + SHARE);
	run(the_iou);
	check_order(2 * N_PILED);
	end_pile();
}
END_TEST

/* An error in the middle of a share ends the round; the rest is delivered all the same, once.
 * _i: the kind */
START_TEST(an_error_leaves_the_rest_of_a_share)
{
	int n;

	new_pile(2048, N_PILED);
	pile_up(_i, N_PILED, on_call);
	calls[500].ret = calls[SHARE + 700].ret = -5;
	for (int n_errors = 0; n_order < N_PILED;) {
		n = iou_poll(the_iou, 0);
		n_errors += n == -5;
		ck_assert_msg(n == -5 || (n > 0 && n <= SHARE), "%d after %d", n, n_order);
		ck_assert_int_eq(n_errors, (n_order > 500) + (n_order > SHARE + 700));
	}
	check_order(N_PILED);
	ck_assert_int_eq(iou_poll(the_iou, 0), 0);
	end_pile();
}
END_TEST

static int n_inner;

static int on_nested(void *data)
{
	int ret;

	on_call(data);
	if (n_inner++)
		return 0;
	ret = iou_poll(the_iou, 0);
	ck_assert_msg(ret > 0 && ret <= SHARE, "the inner iou_poll: %d", ret);
	return 0;
}

/* An inner loop goes on with the pile, and the outer round takes no more than its share.
 * _i: the kind */
START_TEST(an_inner_loop_goes_on_with_the_rest_of_a_share)
{
	int ret;

	n_inner = 0;
	new_pile(2048, N_PILED);
	pile_up(_i, N_PILED, on_nested);
	while (n_order < N_PILED) {
		ret = iou_poll(the_iou, 0);
		ck_assert_msg(ret > 0 && ret <= SHARE, "iou_poll: %d", ret);
	}
	check_order(N_PILED);
	end_pile();
}
END_TEST

/* A foreign loop is told of the rest. _i: the kind */
START_TEST(iou_fd_tells_of_the_rest_of_a_share)
{
	struct pollfd pollfd = {.events = POLLIN};
	int n_polls = 0;

	new_pile(2048, N_PILED);
	pollfd.fd = iou_fd(the_iou);
	ck_assert_int_ge(pollfd.fd, 0);
	pile_up(_i, N_PILED, on_call);
	for (; n_order < N_PILED; n_polls++) {
		ck_assert_int_eq(poll(&pollfd, 1, 0), 1);
		ck_assert_int_ge(iou_poll(the_iou, 0), 0);
	}
	ck_assert_int_le(n_polls, 8);
	for (; poll(&pollfd, 1, 0) == 1; n_polls++)
		ck_assert_int_eq(iou_poll(the_iou, 0), 0);
	ck_assert_int_le(n_polls, 12);
	check_order(N_PILED);
	end_pile();
}
END_TEST

/* ---- Due timers are not held up -------------------------------------------------------------- */

/* In the round after which it is due, whatever waits, and first of all. _i: the kind */
START_TEST(a_due_timer_is_first)
{
	call_t timer;

	new_pile(2048, N_PILED);
	pile_up(_i, N_PILED, on_call);
	call_op(the_iou, &timer, N_PILED);
	iou_op_timer(the_iou, timer.op, 0, 0, on_call, &timer);
	ck_assert_int_gt(iou_poll(the_iou, 0), 0);
	ck_assert_int_eq(timer.n, 1);
	ck_assert_int_eq(order[0], N_PILED);
	run(the_iou);
	ck_assert_int_eq(n_order, N_PILED + 1);
	end_pile();
}
END_TEST

START_TEST(due_deadlines_do_not_hold_up_a_due_timer)
{
	call_t timer;
	int fds[2];

	new_pile(2048, N_PILED);
	new_socketpair(fds);
	pile_up_reads(N_PILED, fds[0], true); /* due before it */
	call_op(the_iou, &timer, N_PILED);
	iou_op_timer(the_iou, timer.op, 0, 0, on_call, &timer);
	ck_assert_int_eq(iou_poll(the_iou, 0), 1);
	ck_assert_int_eq(timer.n, 1);
	run(the_iou);
	ck_assert_int_eq(n_order, N_PILED + 1);
	close_pair(fds);
	end_pile();
}
END_TEST

/* Nor do ops that wait for the SQ, nor what comes of them. */
START_TEST(a_backlog_does_not_hold_up_a_due_timer)
{
	call_t timer;

	new_pile(8, 16 * SHARE);
	for (int i = 0; i < 16 * SHARE; i++)
		pile_one(CQE, on_call);
	call_op(the_iou, &timer, 16 * SHARE);
	iou_op_timer(the_iou, timer.op, 0, 0, on_call, &timer);
	ck_assert_int_gt(iou_poll(the_iou, 0), 0);
	ck_assert_int_eq(order[0], 16 * SHARE);
	run(the_iou);
	ck_assert_int_eq(n_order, 16 * SHARE + 1);
	end_pile();
}
END_TEST

/* One thread posts flat out, and the loop has a timer that is always due: each round calls it, and
 * then no more posts than a share. */
typedef struct flood_t {
	int n_max, n_seen, n_since, n_most, n_ticks;
	int n_shown; /* n_seen, for the thread */
	iou_op_t *timer;
} flood_t;

static flood_t flood;

static int on_flood(void *data)
{
	flood.n_since++;
	flood.n_most = flood.n_since > flood.n_most ? flood.n_since : flood.n_most;
	__atomic_store_n(&flood.n_shown, ++flood.n_seen, __ATOMIC_RELAXED);
	if (flood.n_seen == flood.n_max)
		iou_op_cancel(the_iou, flood.timer);
	return on_nothing(data);
}

static int on_tick(void *data)
{
	flood.n_since = 0;
	flood.n_ticks++;
	return on_nothing(data);
}

static void *post_flat_out(void *data)
{
	for (int i = 0; i < flood.n_max; i++) {
		post(the_iou, on_flood, NULL);
		while (i - __atomic_load_n(&flood.n_shown, __ATOMIC_RELAXED) > 200000)
			sched_yield(); /* the memory has its limits */
	}
	return data;
}

START_TEST(a_flood_of_posts_does_not_hold_up_a_due_timer)
{
	pthread_t thread;

	the_iou = new_iou(4);
	flood = (flood_t){.n_max = is_slow() ? 50000 : 500000, .timer = new_op(the_iou)};
	iou_op_timer(the_iou, flood.timer, 0, 1, on_tick, NULL);
	thread = start_thread(post_flat_out, NULL);
	run(the_iou);
	join_thread(thread);
	ck_assert_int_eq(flood.n_seen, flood.n_max);
	ck_assert_int_le(flood.n_most, SHARE);
	ck_assert_int_ge(flood.n_ticks, flood.n_max / SHARE);
	done(the_iou);
}
END_TEST

/* ---- A round takes no longer where more waits ------------------------------------------------ */

/* What may wait without end, besides the kinds. */
enum { DEADLINES = IDLE + 1, QUEUED, N_WAITING };

static int on_counted(void *data)
{
	(void)data;
	n_order++;
	return 0;
}

static void pile_up_waiting(int what, int n, gate_t *gate)
{
	switch (what) {
	case QUEUED:
		for (int i = 0; i < n; i++)
			pile_one(CQE, on_counted);
		break;
	case DEADLINES: /* of jobs that wait */
		block_workers(the_iou, gate, 1);
		for (int i = 0; i < n; i++) {
			call_t *call = next_call(iou_op_new(the_iou));

			iou_op_deadline(the_iou, call->op, 0);
			if (iou_op_async(the_iou, call->op, work, NULL, on_counted, call) < 0)
				ck_abort_msg("iou_op_async");
		}
		break;
	default:
		pile_up(what, n, on_counted);
	}
}

/* CPU time, in ns, of the longest round until three shares were called. */
static uint64_t longest_round(int what, int n)
{
	uint64_t longest_ns = 0, began_ns, ns;
	gate_t gate;

	n_order = 0;
	new_pile(64, n);
	gate_init(&gate);
	pile_up_waiting(what, n, &gate);
	while (n_order < 3 * SHARE) {
		began_ns = thread_cpu_ns();
		if (iou_poll(the_iou, 0) < 0)
			ck_abort_msg("iou_poll");
		ns = thread_cpu_ns() - began_ns;
		longest_ns = ns > longest_ns ? ns : longest_ns;
	}
	if (what == DEADLINES)
		unblock_workers(&gate, 1);
	ck_assert_ptr_null(iou_free(the_iou));
	free(calls);
	return longest_ns;
}

/* Sixteen times as many: a step that looked at each would take that much longer. Caches and the
 * height of a heap make it two to four times, in an emulator up to ten. Other programs disturb some
 * tries. _i: what */
START_TEST(a_round_is_short_however_much_waits)
{
	const int n_few = (is_slow() ? 4 : 16) * SHARE;
	uint64_t few_ns = UINT64_MAX, many_ns = UINT64_MAX, ns;

	for (int i = 0; i < 3 || (i < 10 && many_ns >= 12 * few_ns); i++) {
		ns = longest_round(_i, n_few);
		few_ns = ns < few_ns ? ns : few_ns;
		ns = longest_round(_i, 16 * n_few);
		many_ns = ns < many_ns ? ns : many_ns;
	}
	if (few_ns == 0)
		SKIP("needs CPU time to be counted finer than by the clock's ticks");
	ck_assert_msg(many_ns < 12 * few_ns, "a round takes %d us with %d waiting, %d us with %d",
		      (int)(few_ns / 1000), n_few, (int)(many_ns / 1000), 16 * n_few);
}
END_TEST

Suite *rounds_suite(void)
{
	Suite *suite = suite_create("rounds");
	TCase *shares, *middle, *timers, *time;

	shares = TEST_CASE(suite, "shares", a_round_takes_its_share_of_idle_bottom_halves,
			   sources_in_one_line_share_a_share, each_source_has_its_own_share,
			   deadlines_expire_by_shares, ops_are_submitted_by_shares,
			   cancels_do_not_hold_up_ops);
	tcase_add_loop_test(shares, a_round_takes_its_share_of_each_kind, 0, N_KINDS);
	tcase_add_loop_test(shares, a_run_takes_one_share_after_the_other, 0, N_KINDS + 1);
	tcase_add_loop_test(shares, cancels_are_sent_by_shares, 0, 2);
	middle = TEST_CASE(suite, "middle", what_comes_later_waits_behind_the_rest_of_a_share);
	tcase_add_loop_test(middle, an_error_leaves_the_rest_of_a_share, 0, N_KINDS);
	tcase_add_loop_test(middle, an_inner_loop_goes_on_with_the_rest_of_a_share, 0, N_KINDS);
	tcase_add_loop_test(middle, iou_fd_tells_of_the_rest_of_a_share, 0, N_KINDS + 1);
	timers = TEST_CASE(suite, "timers", due_deadlines_do_not_hold_up_a_due_timer,
			   a_backlog_does_not_hold_up_a_due_timer,
			   a_flood_of_posts_does_not_hold_up_a_due_timer);
	for (int kind = 0; kind <= IDLE; kind++)
		if (kind != TIMER)
			tcase_add_loop_test(timers, a_due_timer_is_first, kind, kind + 1);
	time = TEST_CASE(suite, "time", NULL);
	for (int what = 0; what < N_WAITING; what++)
		if (what != CQE)
			tcase_add_loop_test(time, a_round_is_short_however_much_waits, what,
					    what + 1);
	return suite;
}
