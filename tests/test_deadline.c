/* SPDX-License-Identifier: MIT */

/* Deadlines: what ends with -ETIME, and when; what does not. Their states and cancels are walked in
 * test_cancel.c. */

#include "helper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>

#define FAR (1000 * SECOND)

static iou_t *the_iou;

static void sleep_ns(uint64_t ns)
{
	nanosleep(&(struct timespec){(time_t)(ns / SECOND), (long)(ns % SECOND)}, NULL);
}

static void put(int fd, const void *data, size_t size)
{
	ck_assert_int_eq(write(fd, data, size), (int)size);
}

/* A read of a byte that must be there within after_ns. */
static void queue_read(iou_t *iou, call_t *call, int id, int fd, uint64_t after_ns)
{
	static char byte;

	io_uring_prep_read(call_op(iou, call, id), fd, &byte, 1, 0);
	iou_op_deadline(iou, call->op, after_ns);
	call_queue(iou, call);
}

static void expect(const call_t *call, int result)
{
	ck_assert_msg(call->n == 1, "call %d: %d times", call->id, call->n);
	ck_assert_msg(call->result == result, "call %d: result %d, not %d", call->id, call->result,
		      result);
}

/* ---- Ring ops -------------------------------------------------------------------------------- */

START_TEST(an_op_ends_at_its_deadline)
{
	uint64_t began_ns, best_ns = UINT64_MAX, took_ns;
	iou_t *iou = new_iou(4);
	call_t call;
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 100 && (i < 10 || best_ns >= 10 * MSEC); i++) {
		uint64_t after_ns = (uint64_t)(i % 10) * 2 * MSEC;

		began_ns = now_ns();
		queue_read(iou, &call, i, fds[0], after_ns);
		if (i % 2)
			run(iou);
		else
			POLL_UNTIL(iou, call.n); /* asleep without limit but for the deadline */
		took_ns = now_ns() - began_ns;
		expect(&call, -ETIME);
		ck_assert_uint_ge(took_ns, after_ns);
		if (took_ns - after_ns < best_ns)
			best_ns = took_ns - after_ns;
		ck_assert_int_eq(iou_poll(iou, 0), 0); /* one callback */
	}
	ck_assert_uint_lt(best_ns, 10 * MSEC);
	close_pair(fds);
	done(iou);
}
END_TEST

/* The time runs from the queueing, however long the op was prepared before that, or stays queued
 * after. */
START_TEST(a_deadline_counts_from_the_queueing)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns;
	call_t call;
	char byte;
	int fds[2];

	new_pipe(fds);
	io_uring_prep_read(call_op(iou, &call, 0), fds[0], &byte, 1, 0);
	iou_op_deadline(iou, call.op, 30 * MSEC);
	sleep_ns(40 * MSEC);
	began_ns = now_ns();
	call_queue(iou, &call);
	run(iou);
	ck_assert_uint_ge(now_ns() - began_ns, 30 * MSEC);
	expect(&call, -ETIME);

	queue_read(iou, &call, 0, fds[0], 10 * MSEC);
	sleep_ns(20 * MSEC);
	began_ns = now_ns();
	run(iou);
	expect(&call, -ETIME);
	close_pair(fds);
	done(iou);
}
END_TEST

/* And leaves nothing behind: no timer that keeps the loop, none that hits what reuses the
 * memory. */
START_TEST(an_op_that_ends_before_its_deadline_keeps_its_result)
{
	iou_t *iou = new_iou(4);
	uint64_t began_ns = now_ns();
	call_t call, next;
	int fds[2], idle[2];

	new_pipe(fds);
	new_pipe(idle);
	put(fds[1], "x", 1);
	queue_read(iou, &call, 0, fds[0], FAR);
	run(iou);
	expect(&call, 1);
	ck_assert_uint_lt(now_ns() - began_ns, 10 * SECOND);

	for (int i = 0; i < 5; i++) {
		put(fds[1], "x", 1);
		queue_read(iou, &call, 0, fds[0], 10 * MSEC);
		POLL_UNTIL(iou, call.n);
		if (call.result == -ETIME)
			continue; /* that loop was late */
		expect(&call, 1);
		call_read(iou, &next, 1, idle[0]);
		ck_assert_ptr_eq(next.op, call.op); /* the pool gives the latest first */
		ck_assert_int_eq(iou_poll(iou, (int64_t)(20 * MSEC)), 0);
		ck_assert_int_eq(iou_op_cancel(iou, next.op), 0);
		run(iou);
		expect(&next, -ECANCELED);
	}
	close_pair(fds);
	close_pair(idle);
	done(iou);
}
END_TEST

START_TEST(thousands_of_deadlines_are_met)
{
	int n = is_slow() ? 1000 : 5000;
	call_t *calls = calloc((size_t)n, sizeof(*calls));
	iou_t *iou = new_iou(4);
	uint64_t seed = 5;
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < n; i++)
		queue_read(iou, &calls[i], i, fds[0], random_below(&seed, 20000) * USEC);
	run(iou);
	for (int i = 0; i < n; i++)
		if (calls[i].n != 1 || calls[i].result != -ETIME)
			ck_abort_msg("call %d: %d times, result %d", i, calls[i].n,
				     calls[i].result);
	free(calls);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(a_far_deadline_is_never)
{
	static const uint64_t afters[] = {FAR, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX - 1,
					  UINT64_MAX};
	iou_t *iou = new_iou(4);
	call_t calls[5];
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 5; i++)
		queue_read(iou, &calls[i], i, fds[0], afters[i]);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0);
	put(fds[1], "xxxxx", 5);
	run(iou);
	for (int i = 0; i < 5; i++)
		expect(&calls[i], 1);
	close_pair(fds);
	done(iou);
}
END_TEST

/* What stands in the backlog, behind a drained op, ends there. */
START_TEST(an_op_in_the_backlog_ends_at_its_deadline)
{
	iou_t *iou = new_iou(4);
	call_t read, drained, queued;
	int fds[2];

	new_pipe(fds);
	call_read(iou, &read, 0, fds[0]);
	io_uring_prep_nop(call_op(iou, &drained, 1));
	drained.op->sqe->flags = IOSQE_IO_DRAIN;
	call_queue(iou, &drained);
	queue_read(iou, &queued, 2, fds[0], MSEC);
	POLL_UNTIL(iou, queued.n);
	expect(&queued, -ETIME);
	put(fds[1], "x", 1);
	run(iou);
	expect(&read, 1);
	expect(&drained, 0);
	close_pair(fds);
	done(iou);
}
END_TEST

static void queue_linked(iou_t *iou, call_t *call, int id, int fd, bool linked, uint64_t after_ns)
{
	static char byte;

	io_uring_prep_read(call_op(iou, call, id), fd, &byte, 1, 0);
	call->op->sqe->flags = linked ? IOSQE_IO_LINK : 0;
	if (after_ns)
		iou_op_deadline(iou, call->op, after_ns);
	call_queue(iou, call);
}

/* The head's deadline ends a chain. */
START_TEST(the_deadline_of_its_head_ends_a_chain)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];
	int fds[2];

	new_pipe(fds);
	queue_linked(iou, &calls[0], 0, fds[0], true, 5 * MSEC);
	queue_linked(iou, &calls[1], 1, fds[0], true, FAR);
	queue_linked(iou, &calls[2], 2, fds[0], false, 0);
	run(iou);
	expect(&calls[0], -ETIME);
	expect(&calls[1], -ECANCELED); /* not its deadline */
	expect(&calls[2], -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

/* A member's, which the kernel has not started, waits for its turn: then it is cancelled, if its
 * time is over. */
START_TEST(the_deadline_of_a_member_cuts_a_chain)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];
	int in[2], never[2];

	new_pipe(in);
	new_pipe(never);
	for (int head_fails = 0; head_fails < 2; head_fails++) {
		queue_linked(iou, &calls[0], 0, in[0], true, 0);
		queue_linked(iou, &calls[1], 1, never[0], true, MSEC);
		queue_linked(iou, &calls[2], 2, never[0], false, 0);
		ck_assert_int_eq(iou_poll(iou, (int64_t)(10 * MSEC)), 0);
		if (head_fails)
			ck_assert_int_eq(iou_op_cancel(iou, calls[0].op), 0);
		else
			put(in[1], "x", 1);
		run(iou);
		expect(&calls[0], head_fails ? -ECANCELED : 1);
		ck_assert_int_eq(calls[1].n, 1);
		ck_assert(calls[1].result == -ETIME || calls[1].result == -ECANCELED);
		if (!head_fails)
			expect(&calls[1], -ETIME);
		expect(&calls[2], -ECANCELED);
	}
	close_pair(in);
	close_pair(never);
	done(iou);
}
END_TEST

/* The chain of ops with deadlines of their own: each counts from the queueing, the kernel knows
 * none of them. */
START_TEST(each_member_of_a_chain_ends_at_its_own_deadline)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 3; i++)
		queue_linked(iou, &calls[i], i, fds[0], i < 2, FAR);
	flush(iou);
	put(fds[1], "xxx", 3);
	run(iou);
	for (int i = 0; i < 3; i++)
		expect(&calls[i], 1);
	close_pair(fds);
	done(iou);
}
END_TEST

/* In a worker of the kernel's: what it makes of an interrupted open is -ETIME all the same. */
START_TEST(an_op_in_io_wq_ends_at_its_deadline)
{
	const char *path = new_fifo("fifo");
	iou_t *iou = new_iou(4);
	call_t call;

	io_uring_prep_openat(call_op(iou, &call, 0), AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	call.op->sqe->flags = IOSQE_ASYNC;
	iou_op_deadline(iou, call.op, 20 * MSEC);
	call_queue(iou, &call);
	run(iou);
	expect(&call, -ETIME);
	done(iou);
}
END_TEST

/* The time of a multishot op runs to its last callback, whatever came in between. */
START_TEST(a_multishot_op_ends_at_its_deadline)
{
	iou_t *iou = new_iou(4);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t one = 1, began_ns = now_ns();
	call_t call;

	io_uring_prep_poll_multishot(call_op(iou, &call, 0), fd, POLLIN);
	iou_op_deadline(iou, call.op, 50 * MSEC);
	call_queue(iou, &call);
	for (int i = 1; i <= 3; i++) {
		put(fd, &one, sizeof(one));
		/* a loop that is late finds its time over */
		POLL_UNTIL(iou, call.n >= i || call.n_last);
	}
	run(iou);
	ck_assert_uint_ge(now_ns() - began_ns, 50 * MSEC);
	ck_assert_int_eq(call.n_last, 1);
	ck_assert_int_ge(call.n, 2);
	ck_assert_int_eq(call.result, -ETIME);
	close(fd);
	done(iou);
}
END_TEST

/* Who asked first gives the name. */
START_TEST(a_cancel_before_the_deadline_gives_the_result)
{
	iou_t *iou = new_iou(4);
	call_t call;
	int fds[2];

	new_pipe(fds);
	queue_read(iou, &call, 0, fds[0], MSEC);
	flush(iou);
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	sleep_ns(2 * MSEC);
	run(iou);
	expect(&call, -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

/* ---- Spent ----------------------------------------------------------------------------------- */

typedef struct again_t {
	iou_op_t *op;
	int fd, n, results[4];
	char byte;
} again_t;

static void queue_again(again_t *again, int (*cb)(void *again))
{
	io_uring_prep_read(again->op->sqe, again->fd, &again->byte, 1, 0);
	iou_op_queue(the_iou, again->op, cb, again);
}

static int on_again(void *data)
{
	again_t *again = data;

	again->results[again->n++] = again->op->result;
	if (again->n == 1) /* without another deadline, for ever */
		queue_again(again, on_again);
	else if (again->n == 2) { /* with one */
		iou_op_deadline(the_iou, again->op, 5 * MSEC);
		queue_again(again, on_again);
	}
	return 0;
}

START_TEST(a_deadline_is_for_one_queueing)
{
	again_t again = {0};
	int fds[2];

	new_pipe(fds);
	the_iou = new_iou(4);
	again.op = new_op(the_iou);
	again.fd = fds[0];
	iou_op_deadline(the_iou, again.op, 5 * MSEC);
	queue_again(&again, on_again);
	POLL_UNTIL(the_iou, again.n == 1);
	ck_assert_int_eq(iou_poll(the_iou, (int64_t)(15 * MSEC)), 0);
	put(fds[1], "x", 1);
	run(the_iou);
	ck_assert_int_eq(again.n, 3);
	ck_assert_int_eq(again.results[0], -ETIME);
	ck_assert_int_eq(again.results[1], 1);
	ck_assert_int_eq(again.results[2], -ETIME);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* An op that was given back takes its deadline along. */
START_TEST(a_freed_op_has_no_deadline)
{
	iou_t *iou = new_iou(4);
	iou_op_t *op = new_op(iou);
	call_t call;
	int fds[2];

	new_pipe(fds);
	iou_op_deadline(iou, op, MSEC);
	iou_op_free(iou, op);
	call_read(iou, &call, 0, fds[0]);
	ck_assert_ptr_eq(call.op, op);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(10 * MSEC)), 0);
	put(fds[1], "x", 1);
	run(iou);
	expect(&call, 1);
	close_pair(fds);
	done(iou);
}
END_TEST

static int on_timer_then_read(void *data)
{
	again_t *again = data;

	again->results[again->n++] = again->op->result;
	if (again->n == 1)
		queue_again(again, on_timer_then_read);
	return 0;
}

/* A timer has no use for it, and spends it. */
START_TEST(a_timer_ignores_a_deadline)
{
	uint64_t began_ns = now_ns();
	again_t again = {0};
	int fds[2];

	new_pipe(fds);
	the_iou = new_iou(4);
	again.op = new_op(the_iou);
	again.fd = fds[0];
	iou_op_deadline(the_iou, again.op, MSEC);
	iou_op_timer(the_iou, again.op, 20 * MSEC, 0, on_timer_then_read, &again);
	POLL_UNTIL(the_iou, again.n);
	ck_assert_uint_ge(now_ns() - began_ns, 20 * MSEC);
	ck_assert_int_eq(again.results[0], 1);
	ck_assert_int_eq(iou_poll(the_iou, (int64_t)(10 * MSEC)), 0);
	put(fds[1], "x", 1);
	run(the_iou);
	ck_assert_int_eq(again.results[1], 1);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* ---- Jobs ------------------------------------------------------------------------------------ */

static void queue_job(iou_t *iou, call_t *call, int (*work)(void *data), void *data,
		      uint64_t after_ns)
{
	call_op(iou, call, 0);
	iou_op_deadline(iou, call->op, after_ns);
	start_job(iou, call->op, work, data, on_call, call);
}

/* One that has not started ends promptly while all workers are busy; one that runs is left to
 * finish. */
START_TEST(jobs_have_deadlines)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.workers = 2});
	call_t queued, running, quick;
	gate_t gate, other;

	gate_init(&gate);
	gate_init(&other);
	block_workers(iou, &gate, 1);
	other.result = 5;
	queue_job(iou, &running, gate_job, &other, MSEC);
	gate_wait(&other);
	queue_job(iou, &queued, on_nothing, NULL, 5 * MSEC);
	POLL_UNTIL(iou, queued.n);
	expect(&queued, -ETIME);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0);
	ck_assert_int_eq(running.n, 0);
	gate_open(&other);
	POLL_UNTIL(iou, running.n);
	expect(&running, 5);
	queue_job(iou, &quick, on_nothing, NULL, FAR);
	POLL_UNTIL(iou, quick.n);
	expect(&quick, 0);
	unblock_workers(&gate, 1);
	run(iou);
	done(iou);
}
END_TEST

/* A job that finished in time, though the loop came late to see it, keeps its result. */
START_TEST(a_job_finished_before_its_deadline_keeps_its_result)
{
	iou_t *iou = new_iou(4);
	gate_t gate;
	call_t call;

	gate_init(&gate);
	gate.result = 7;
	queue_job(iou, &call, gate_job, &gate, MSEC);
	gate_wait(&gate);
	gate_open(&gate);
	sleep_ns(10 * MSEC);
	run(iou);
	expect(&call, 7);
	done(iou);
}
END_TEST

START_TEST(free_forgets_deadlines)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];
	int fds[2];

	new_pipe(fds);
	queue_read(iou, &calls[0], 0, fds[0], MSEC);
	flush(iou);
	queue_read(iou, &calls[1], 1, fds[0], MSEC);
	queue_job(iou, &calls[2], on_nothing, NULL, MSEC);
	sleep_ns(2 * MSEC);
	iou_free(iou);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(calls[i].n, 0);
	close_pair(fds);
}
END_TEST

Suite *deadline_suite(void)
{
	Suite *suite = suite_create("deadline");

	TEST_CASE(suite, "ring", an_op_ends_at_its_deadline, a_deadline_counts_from_the_queueing,
		  an_op_that_ends_before_its_deadline_keeps_its_result,
		  thousands_of_deadlines_are_met, a_far_deadline_is_never,
		  an_op_in_the_backlog_ends_at_its_deadline, the_deadline_of_its_head_ends_a_chain,
		  the_deadline_of_a_member_cuts_a_chain,
		  each_member_of_a_chain_ends_at_its_own_deadline,
		  an_op_in_io_wq_ends_at_its_deadline, a_multishot_op_ends_at_its_deadline,
		  a_cancel_before_the_deadline_gives_the_result);
	TEST_CASE(suite, "spent", a_deadline_is_for_one_queueing, a_freed_op_has_no_deadline,
		  a_timer_ignores_a_deadline);
	TEST_CASE(suite, "jobs", jobs_have_deadlines,
		  a_job_finished_before_its_deadline_keeps_its_result, free_forgets_deadlines);
	return suite;
}
