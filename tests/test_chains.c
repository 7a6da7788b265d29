/* SPDX-License-Identifier: MIT */

/* Link chains, which reach the kernel whole, and drained ops, which iou keeps waiting itself. */

#include "helper.h"

#include <poll.h>
#include <sys/eventfd.h>

static iou_t *the_iou;

static bool is_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

static void put(int fd, const void *data, size_t size)
{
	ck_assert_int_eq(write(fd, data, size), (int)size);
}

/* Queue the call's op with these IOSQE_ flags. */
static void queue_with(iou_t *iou, call_t *call, unsigned flags)
{
	call->op->sqe->flags = (uint8_t)flags;
	call_queue(iou, call);
}

static void queue_nop(iou_t *iou, call_t *call, int id, unsigned flags)
{
	io_uring_prep_nop(call_op(iou, call, id));
	queue_with(iou, call, flags);
}

/* An op that fails with -ENOENT as soon as it is submitted: whatever is linked to it ends with
 * -ECANCELED. */
static void queue_failing(iou_t *iou, call_t *call, int id, unsigned flags)
{
	io_uring_prep_poll_remove(call_op(iou, call, id), 0x7777);
	queue_with(iou, call, flags);
}

static void queue_read(iou_t *iou, call_t *call, int id, int fd, unsigned flags)
{
	static char byte;

	io_uring_prep_read(call_op(iou, call, id), fd, &byte, 1, 0);
	queue_with(iou, call, flags);
}

static void queue_write(iou_t *iou, call_t *call, int id, int fd, unsigned flags)
{
	static const char digits[] = "0123456789";

	io_uring_prep_write(call_op(iou, call, id), fd, &digits[id], 1, 0);
	queue_with(iou, call, flags);
}

static void expect(const call_t *call, int result)
{
	ck_assert_msg(call->n == 1, "call %d: %d times", call->id, call->n);
	ck_assert_msg(call->result == result, "call %d: result %d, not %d", call->id, call->result,
		      result);
}

static void expect_text(int fd, const char *text)
{
	char got[64] = "";

	if (is_readable(fd))
		ck_assert_int_ge(read(fd, got, sizeof(got) - 1), 0);
	ck_assert_str_eq(got, text);
}

/* ---- Links ----------------------------------------------------------------------------------- */

START_TEST(linked_ops_run_one_after_the_other)
{
	static const unsigned links[] = {IOSQE_IO_LINK, IOSQE_IO_HARDLINK};
	int in[2], out[2];
	call_t calls[4];

	new_socketpair(in);
	new_socketpair(out);
	for (int i = 0; i < 2; i++) {
		iou_t *iou = new_iou(4);

		queue_read(iou, &calls[0], 0, in[0], links[i]);
		queue_write(iou, &calls[1], 1, out[1], links[i]);
		queue_write(iou, &calls[2], 2, out[1], 0);
		queue_write(iou, &calls[3], 3, out[1], 0); /* after the chain: on its own */
		POLL_UNTIL(iou, calls[3].n);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		expect_text(out[0], "3");
		put(in[1], "x", 1);
		run(iou);
		expect_text(out[0], "12");
		for (int k = 0; k < 4; k++)
			expect(&calls[k], 1);
		done(iou);
	}
	close_pair(in);
	close_pair(out);
}
END_TEST

START_TEST(a_failure_ends_a_link_but_no_hardlink)
{
	iou_t *iou = new_iou(8);
	call_t calls[4];
	char buf[10];
	int fds[2];

	new_socketpair(fds);
	queue_failing(iou, &calls[0], 0, IOSQE_IO_LINK);
	queue_nop(iou, &calls[1], 1, IOSQE_IO_LINK);
	queue_nop(iou, &calls[2], 2, 0);
	queue_nop(iou, &calls[3], 3, 0);
	run(iou);
	expect(&calls[0], -ENOENT);
	expect(&calls[1], -ECANCELED);
	expect(&calls[2], -ECANCELED);
	expect(&calls[3], 0);

	queue_failing(iou, &calls[0], 0, IOSQE_IO_HARDLINK);
	queue_failing(iou, &calls[1], 1, IOSQE_IO_LINK);
	queue_nop(iou, &calls[2], 2, IOSQE_IO_HARDLINK);
	queue_nop(iou, &calls[3], 3, 0);
	run(iou);
	expect(&calls[0], -ENOENT);
	expect(&calls[1], -ENOENT);
	expect(&calls[2], -ECANCELED);
	expect(&calls[3], -ECANCELED);

	put(fds[1], "short", 5);
	io_uring_prep_read(call_op(iou, &calls[0], 0), fds[0], buf, sizeof(buf), 0);
	queue_with(iou, &calls[0], IOSQE_IO_LINK);
	queue_nop(iou, &calls[1], 1, 0);
	run(iou);
	expect(&calls[0], 5);
	expect(&calls[1], -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

/* Wherever in the SQ it comes to stand, and with the library's own SQEs among it, a chain enters
 * whole: else what follows the failing head would run. */
START_TEST(a_chain_is_never_split)
{
	for (int entries = 1; entries <= 8; entries *= 2) {
		for (int n_before = 0; n_before <= entries + 1; n_before++) {
			for (int length = 1; length <= entries; length++) {
				iou_t *iou = new_iou((unsigned)entries);
				call_t calls[20];
				int n = 0;

				while (n < n_before)
					n++, queue_nop(iou, &calls[n - 1], n - 1, 0);
				queue_failing(iou, &calls[n], n, length > 1 ? IOSQE_IO_LINK : 0);
				for (int i = 1; i < length; i++)
					queue_nop(iou, &calls[n + i], n + i,
						  i < length - 1 ? IOSQE_IO_LINK : 0);
				queue_nop(iou, &calls[n + length], n + length, 0);
				if (length % 2)
					flush(iou);
				run(iou);
				for (int i = 0; i <= n + length; i++)
					expect(&calls[i], i < n || i == n + length ? 0
							  : i == n		   ? -ENOENT
										   : -ECANCELED);
				done(iou);
			}
		}
	}
}
END_TEST

/* A backlog of random chains, through a small SQ. */
START_TEST(many_chains_follow_each_other)
{
	enum { N = 4000 };
	call_t *calls = calloc(N, sizeof(*calls));
	int *expected = calloc(N, sizeof(int));
	iou_t *iou = new_iou(4);
	uint64_t seed = 3;

	for (int i = 0; i < N;) {
		int length = 1 + (int)random_below(&seed, 4), fails = (int)random_below(&seed, 8);

		for (int k = 0; k < length && i < N; k++, i++) {
			unsigned flags = k < length - 1 && i < N - 1 ? IOSQE_IO_LINK : 0;

			if (k == fails)
				queue_failing(iou, &calls[i], i, flags);
			else
				queue_nop(iou, &calls[i], i, flags);
			expected[i] = k < fails ? 0 : k == fails ? -ENOENT : -ECANCELED;
		}
	}
	run(iou);
	for (int i = 0; i < N; i++)
		if (calls[i].n != 1 || calls[i].result != expected[i])
			ck_abort_msg("call %d: %d times, result %d", i, calls[i].n,
				     calls[i].result);
	free(expected);
	free(calls);
	done(iou);
}
END_TEST

START_TEST(a_chain_longer_than_the_sq_fails_whole)
{
	static const unsigned links[] = {IOSQE_IO_LINK, IOSQE_IO_HARDLINK};
	call_t calls[12];
	int fds[2];

	new_socketpair(fds);
	for (int i = 0; i < 4; i++) {
		iou_t *iou = new_iou(4);
		int n = i < 2 ? 5 : 9;

		queue_nop(iou, &calls[0], 0, 0);
		for (int k = 1; k <= n; k++)
			queue_write(iou, &calls[k], k, fds[1], k < n ? links[i % 2] : 0);
		queue_nop(iou, &calls[n + 1], n + 1, 0);
		run(iou);
		expect(&calls[0], 0);
		for (int k = 1; k <= n; k++)
			expect(&calls[k], -E2BIG);
		expect(&calls[n + 1], 0);
		expect_text(fds[0], ""); /* nothing of it ran */
		done(iou);
	}
	close_pair(fds);
}
END_TEST

/* One that the kernel refuses makes the others of its chain fail, each once. */
START_TEST(a_bad_opcode_ends_its_chain)
{
	for (int bad = 0; bad < 4; bad++) {
		iou_t *iou = new_iou(4);
		call_t calls[5];

		for (int i = 0; i < 4; i++) {
			io_uring_prep_nop(call_op(iou, &calls[i], i));
			if (i == bad)
				calls[i].op->sqe->opcode = 255;
			queue_with(iou, &calls[i], i < 3 ? IOSQE_IO_LINK : 0);
		}
		queue_nop(iou, &calls[4], 4, 0);
		run(iou);
		for (int i = 0; i < 4; i++)
			if (i >= bad)
				expect(&calls[i], i == bad ? -EINVAL : -ECANCELED);
			else
				ck_assert_int_eq(calls[i].n, 1);
		expect(&calls[4], 0);
		done(iou);
	}
}
END_TEST

/* The program's own link timeouts: either may come first. */
START_TEST(a_link_timeout_works)
{
	struct __kernel_timespec soon = kernel_time(5 * MSEC), late = kernel_time(1000 * SECOND);
	iou_t *iou = new_iou(4);
	call_t read, timeout;
	int fds[2];

	new_socketpair(fds);
	queue_read(iou, &read, 0, fds[0], IOSQE_IO_LINK);
	io_uring_prep_link_timeout(call_op(iou, &timeout, 1), &soon, 0);
	call_queue(iou, &timeout);
	run(iou);
	expect(&read, -ECANCELED);
	ck_assert_int_eq(timeout.n, 1);
	ck_assert(timeout.result == -ETIME || timeout.result == -EALREADY);

	queue_read(iou, &read, 0, fds[0], IOSQE_IO_LINK);
	io_uring_prep_link_timeout(call_op(iou, &timeout, 1), &late, 0);
	call_queue(iou, &timeout);
	flush(iou);
	put(fds[1], "x", 1);
	run(iou);
	expect(&read, 1);
	expect(&timeout, -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

typedef struct member_t {
	iou_op_t *op;
	int id, n;
} member_t;

static int n_rounds;

static int on_member(void *data);

static void queue_member(member_t *member)
{
	struct io_uring_sqe *sqe = member->op->sqe;

	if (member->id == 1)
		io_uring_prep_poll_remove(sqe, 0x7777);
	else
		io_uring_prep_nop(sqe);
	sqe->flags |= member->id == 2 ? 0 : IOSQE_IO_LINK;
	iou_op_queue(the_iou, member->op, on_member, member);
}

static int on_member(void *data)
{
	member_t *member = data;

	if (member->op->result != (member->id == 0 ? 0 : member->id == 1 ? -ENOENT : -ECANCELED))
		return -EBADMSG;
	if (++member->n < n_rounds)
		queue_member(member);
	return 0;
}

/* Its members, each prepared and queued again in its callback, are a chain again. */
START_TEST(a_chain_is_queued_again)
{
	member_t members[3];

	n_rounds = 200;
	the_iou = new_iou(4);
	for (int i = 0; i < 3; i++) {
		members[i] = (member_t){.op = new_op(the_iou), .id = i};
		queue_member(&members[i]);
	}
	run(the_iou);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(members[i].n, n_rounds);
	done(the_iou);
}
END_TEST

/* ---- Where a chain ends ---------------------------------------------------------------------- */

/* What a flush or a round finds queued goes out, with a link flag or without, and links to nothing
 * later. */
START_TEST(a_flush_or_a_poll_ends_a_chain)
{
	int in[2], out[2];
	call_t calls[4];

	new_socketpair(in);
	new_socketpair(out);
	for (int with_poll = 0; with_poll < 2; with_poll++) {
		iou_t *iou = new_iou(4);

		queue_write(iou, &calls[0], 0, out[1], IOSQE_IO_LINK);
		queue_read(iou, &calls[1], 1, in[0], IOSQE_IO_LINK);
		if (with_poll)
			ck_assert_int_ge(iou_poll(iou, 0), 0);
		else
			flush(iou);
		expect_text(out[0], "0"); /* not kept back until the chain is complete */
		queue_write(iou, &calls[2], 2, out[1], 0);
		flush(iou);
		expect_text(out[0], "2");
		put(in[1], "x", 1);
		run(iou);
		expect(&calls[1], 1);
		expect(&calls[2], 1);
		done(iou);
	}
	close_pair(in);
	close_pair(out);
}
END_TEST

static int on_queue_failing(void *data)
{
	call_t *call = data;

	queue_failing(the_iou, call, 10, IOSQE_IO_LINK);
	return 0;
}

static int on_queue_nop(void *data)
{
	call_t *call = data;

	queue_nop(the_iou, call, 11, 0);
	return 0;
}

/* The callbacks of one round build one chain; the next round's first op is on its own. */
START_TEST(a_round_ends_a_chain)
{
	call_t calls[3];

	for (int with_poll = 0; with_poll < 2; with_poll++) {
		the_iou = new_iou(4);
		post(the_iou, on_queue_failing, &calls[0]);
		post(the_iou, on_queue_nop, &calls[1]);
		run(the_iou);
		expect(&calls[0], -ENOENT);
		expect(&calls[1], -ECANCELED);

		post(the_iou, on_queue_failing, &calls[0]);
		if (with_poll)
			ck_assert_int_eq(iou_poll(the_iou, 0), 1); /* it is submitted by the next */
		else
			run(the_iou);
		ck_assert_int_ge(iou_poll(the_iou, 0), 0);
		queue_nop(the_iou, &calls[1], 1, 0);
		run(the_iou);
		expect(&calls[0], -ENOENT);
		expect(&calls[1], 0);
		done(the_iou);
	}
}
END_TEST

static int on_nested_poll(void *data)
{
	call_t *calls = data;

	queue_failing(the_iou, &calls[0], 0, IOSQE_IO_LINK);
	POLL_UNTIL(the_iou, calls[0].n);
	queue_nop(the_iou, &calls[1], 1, 0);
	return 0;
}

START_TEST(a_nested_poll_ends_a_chain)
{
	call_t calls[2];

	the_iou = new_iou(4);
	post(the_iou, on_nested_poll, calls);
	run(the_iou);
	expect(&calls[0], -ENOENT);
	expect(&calls[1], 0);
	done(the_iou);
}
END_TEST

/* An ended chain may still have to wait; it ends there all the same, when it goes out with what
 * came later. */
START_TEST(a_chain_that_was_ended_and_waits_ends_there)
{
	int in[2];
	call_t read, drained, calls[2];

	new_socketpair(in);
	for (int how = 0; how < 3; how++) {
		iou_t *iou = new_iou(8);

		queue_read(iou, &read, 0, in[0], 0);
		queue_nop(iou, &drained, 1, IOSQE_IO_DRAIN);
		queue_failing(iou, &calls[0], 2, IOSQE_IO_LINK);
		if (how == 0)
			flush(iou);
		else if (how == 1)
			ck_assert_int_eq(iou_poll(iou, 0), 0);
		queue_nop(iou, &calls[1], 3, 0);
		ck_assert_uint_ge(get_stats(iou).backlog, 2);
		put(in[1], "x", 1);
		run(iou);
		expect(&read, 1);
		expect(&drained, 0);
		expect(&calls[0], -ENOENT);
		expect(&calls[1], how == 2 ? -ECANCELED : 0);
		done(iou);
	}
	close_pair(in);
}
END_TEST

/* ---- Nothing inside -------------------------------------------------------------------------- */

static pid_t loop_tid;

static void *post_when_it_sleeps(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(the_iou, on_call, data);
	return NULL;
}

/* The last op queued has a link flag, then the library submits what it needs to sleep: that is not
 * linked to it, so that it neither waits for it nor fails with it. */
START_TEST(the_poll_for_wake_ups_stands_in_no_chain)
{
	call_t call, posted = {0};
	uint64_t began_ns;
	pthread_t thread;
	int in[2];

	new_socketpair(in);
	for (int failing = 0; failing < 2; failing++) {
		the_iou = new_iou(4);
		loop_tid = gettid();
		iou_hold(the_iou);
		if (failing)
			queue_failing(the_iou, &call, 0, IOSQE_IO_LINK);
		else
			queue_read(the_iou, &call, 0, in[0], IOSQE_IO_LINK);
		thread = start_thread(post_when_it_sleeps, &posted);
		began_ns = now_ns();
		while (posted.n == failing)
			ck_assert_int_ge(iou_poll(the_iou, (int64_t)(20 * SECOND)), 0);
		ck_assert_uint_lt(now_ns() - began_ns, 15 * SECOND);
		join_thread(thread);
		put(in[1], "x", 1);
		iou_unhold(the_iou);
		run(the_iou);
		expect(&call, failing ? -ENOENT : 1);
		done(the_iou);
	}
	close_pair(in);
}
END_TEST

/* Cancels that are asked for while a chain is being queued do not interrupt it. */
START_TEST(cancels_stand_in_no_chain)
{
	iou_t *iou = new_iou(8);
	call_t reads[2], calls[3];
	int in[2];

	new_socketpair(in);
	call_read(iou, &reads[0], 0, in[0]);
	call_read(iou, &reads[1], 1, in[0]);
	flush(iou);
	queue_failing(iou, &calls[0], 2, IOSQE_IO_LINK);
	ck_assert_int_eq(iou_op_cancel(iou, reads[0].op), 0);
	queue_nop(iou, &calls[1], 3, IOSQE_IO_LINK);
	ck_assert_int_eq(iou_op_cancel(iou, reads[1].op), 0);
	queue_nop(iou, &calls[2], 4, 0);
	run(iou);
	expect(&reads[0], -ECANCELED);
	expect(&reads[1], -ECANCELED);
	expect(&calls[0], -ENOENT);
	expect(&calls[1], -ECANCELED);
	expect(&calls[2], -ECANCELED);
	close_pair(in);
	done(iou);
}
END_TEST

/* ---- Drain ----------------------------------------------------------------------------------- */

START_TEST(a_drained_op_waits_for_those_before_it)
{
	iou_t *iou = new_iou(8);
	call_t reads[2], writes[4];
	int in[2], out[2];

	new_socketpair(in);
	new_socketpair(out);
	n_order = 0;
	queue_read(iou, &reads[0], 8, in[0], 0);
	queue_write(iou, &writes[0], 0, out[1], 0);
	queue_read(iou, &reads[1], 9, in[0], 0);
	queue_write(iou, &writes[1], 1, out[1], IOSQE_IO_DRAIN);
	queue_write(iou, &writes[2], 2, out[1], 0);
	queue_write(iou, &writes[3], 3, out[1], IOSQE_IO_DRAIN);
	flush(iou);
	POLL_UNTIL(iou, writes[0].n);
	put(in[1], "x", 1);
	POLL_UNTIL(iou, reads[0].n + reads[1].n);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	expect_text(out[0], "0");
	ck_assert_uint_eq(get_stats(iou).backlog, 3);
	put(in[1], "x", 1);
	run(iou);
	expect_text(out[0], "123");
	ck_assert_int_eq(n_order, 6);
	ck_assert_int_ge(order[2], 8);
	for (int i = 1; i <= 3; i++)
		ck_assert_int_eq(order[2 + i], i);
	close_pair(in);
	close_pair(out);
	done(iou);
}
END_TEST

START_TEST(nothing_passes_a_drained_op)
{
	iou_t *iou = new_iou(8);
	call_t read, writes[2], again;
	int in[2], out[2];

	new_socketpair(in);
	new_socketpair(out);
	/* nothing before it: it starts, and takes its time */
	queue_read(iou, &read, 0, in[0], IOSQE_IO_DRAIN);
	queue_write(iou, &writes[0], 1, out[1], 0);
	flush(iou);
	queue_write(iou, &writes[1], 2, out[1], 0);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
	expect_text(out[0], "");
	put(in[1], "x", 1);
	run(iou);
	expect(&read, 1);
	expect_text(out[0], "12");

	/* once it has ended it holds up nothing */
	queue_nop(iou, &again, 3, IOSQE_IO_DRAIN | IOSQE_ASYNC);
	run(iou);
	queue_write(iou, &writes[0], 4, out[1], 0);
	flush(iou);
	expect_text(out[0], "4");
	run(iou);
	close_pair(in);
	close_pair(out);
	done(iou);
}
END_TEST

/* In the kernel a drained op that waits would hold up the cancel of what it waits for. */
START_TEST(a_drained_op_does_not_hold_up_the_rest)
{
	iou_t *iou = new_iou(8);
	call_t reads[2], drained, timer, other = {0};
	int in[2];

	new_socketpair(in);
	queue_read(iou, &reads[0], 0, in[0], 0);
	queue_read(iou, &reads[1], 1, in[0], 0);
	queue_nop(iou, &drained, 2, IOSQE_IO_DRAIN);
	flush(iou);
	call_op(iou, &timer, 3);
	iou_op_timer(iou, timer.op, MSEC, 0, on_call, &timer);
	start(iou, JOB, on_call, &other);
	start(iou, POST, on_call, &other);
	POLL_UNTIL(iou, timer.n == 1 && other.n == 2);
	ck_assert_int_eq(iou_op_cancel(iou, reads[0].op), 0);
	POLL_UNTIL(iou, reads[0].n);
	ck_assert_int_eq(drained.n, 0);
	ck_assert_int_eq(iou_op_cancel(iou, reads[1].op), 0);
	run(iou);
	expect(&reads[0], -ECANCELED);
	expect(&reads[1], -ECANCELED);
	expect(&drained, 0);
	close_pair(in);
	done(iou);
}
END_TEST

/* Cancelled while it waits, or while the others wait for it. */
START_TEST(a_drained_op_is_cancelled)
{
	iou_t *iou = new_iou(8);
	call_t read, drained, nop;
	int in[2];

	new_socketpair(in);
	for (int started = 0; started < 2; started++) {
		if (!started)
			queue_read(iou, &read, 0, in[0], 0);
		queue_read(iou, &drained, 1, in[0], IOSQE_IO_DRAIN);
		queue_nop(iou, &nop, 2, 0);
		flush(iou);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		ck_assert_int_eq(iou_op_cancel(iou, drained.op), 0);
		POLL_UNTIL(iou, nop.n); /* nothing holds it up any more */
		expect(&drained, -ECANCELED);
		ck_assert_uint_eq(n_pending(iou), !started);
		put(in[1], "x", 1);
		run(iou);
	}
	expect(&read, 1);
	close_pair(in);
	done(iou);
}
END_TEST

/* A chain with a drained member waits, and is waited for, as a whole. */
START_TEST(a_chain_with_a_drained_member_waits_as_a_whole)
{
	call_t reads[2], writes[4];
	int in[2], out[2];

	new_socketpair(in);
	new_socketpair(out);
	for (int member = 0; member < 3; member++) {
		iou_t *iou = new_iou(4);
		unsigned flags[3] = {IOSQE_IO_LINK, IOSQE_IO_LINK, 0};

		flags[member] |= IOSQE_IO_DRAIN;
		queue_read(iou, &reads[0], 8, in[0], 0);
		queue_write(iou, &writes[0], 0, out[1], flags[0]);
		queue_read(iou, &reads[1], 9, in[0], flags[1]);
		queue_write(iou, &writes[1], 1, out[1], flags[2]);
		queue_write(iou, &writes[2], 2, out[1], 0);
		flush(iou);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		expect_text(out[0], "");
		put(in[1], "x", 1);
		POLL_UNTIL(iou, writes[0].n);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		expect_text(out[0], "0");
		put(in[1], "x", 1);
		run(iou);
		expect_text(out[0], "12");
		done(iou);
	}
	close_pair(in);
	close_pair(out);
}
END_TEST

/* To its last callback: a multishot op in between, too. */
START_TEST(a_multishot_op_is_drained)
{
	iou_t *iou = new_iou(4);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t one = 1;
	call_t multi, drained;

	io_uring_prep_poll_multishot(call_op(iou, &multi, 0), fd, POLLIN);
	call_queue(iou, &multi);
	queue_nop(iou, &drained, 1, IOSQE_IO_DRAIN);
	for (int i = 1; i <= 3; i++) {
		put(fd, &one, sizeof(one));
		POLL_UNTIL(iou, multi.n == i);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		ck_assert_int_eq(drained.n, 0);
	}
	ck_assert_int_eq(iou_op_cancel(iou, multi.op), 0);
	run(iou);
	expect(&drained, 0);
	close(fd);
	done(iou);
}
END_TEST

static int on_drained(void *data);

static void queue_drained(member_t *member)
{
	io_uring_prep_nop(member->op->sqe);
	member->op->sqe->flags |= IOSQE_IO_DRAIN;
	iou_op_queue(the_iou, member->op, on_drained, member);
}

static int on_drained(void *data)
{
	member_t *member = data;

	if (++member->n < n_rounds)
		queue_drained(member);
	return member->op->result;
}

/* One that is queued again in its callback is drained again; a crowd of them takes turns. */
START_TEST(drained_ops_are_queued_again)
{
	member_t members[5];

	the_iou = new_iou(2);
	n_rounds = 100;
	for (int i = 0; i < 5; i++) {
		members[i] = (member_t){.op = new_op(the_iou), .id = i};
		queue_drained(&members[i]);
	}
	run(the_iou);
	for (int i = 0; i < 5; i++)
		ck_assert_int_eq(members[i].n, n_rounds);
	done(the_iou);
}
END_TEST

/* The loop sleeps while ops wait in the backlog, and free ends them there. */
START_TEST(a_waiting_drain_costs_no_system_calls)
{
	iou_t *iou = new_iou(2);
	call_t read, drained[10];
	uint64_t enters;
	int in[2];

	new_socketpair(in);
	queue_read(iou, &read, 0, in[0], 0);
	for (int i = 0; i < 10; i++)
		queue_nop(iou, &drained[i], i, IOSQE_IO_DRAIN);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	enters = get_stats(iou).enters;
	ck_assert_int_eq(iou_poll(iou, (int64_t)(200 * MSEC)), 0);
	/* one, unless the kernel's wait ends too soon */
	ck_assert_uint_le(get_stats(iou).enters - enters, 3);
	ck_assert_uint_eq(get_stats(iou).backlog, 10);
	iou_free(iou);
	ck_assert_int_eq(read.n + drained[0].n, 0);
	close_pair(in);
}
END_TEST

/* Random ops, drained and not, some of them slow: none runs past a drained one. */
typedef struct racer_t {
	iou_op_t *op;
	int id;
	bool drained;
} racer_t;

static racer_t *racers;
static int n_racers, n_ended, last_drained, n_wrong;

static int on_racer(void *data)
{
	racer_t *racer = data;

	if (racer->drained) {
		n_wrong += n_ended != racer->id; /* all before it have ended, and none after it */
		last_drained = racer->id;
	}
	n_wrong += racer->id < last_drained;
	n_ended++;
	return 0;
}

START_TEST(ops_and_drains_at_random_keep_the_order)
{
	struct __kernel_timespec times[3] = {kernel_time(USEC), kernel_time(100 * USEC),
					     kernel_time(300 * USEC)};
	iou_t *iou = new_iou(4);
	uint64_t seed = 11;

	n_racers = 1000;
	racers = calloc((size_t)n_racers, sizeof(*racers));
	last_drained = -1;
	n_ended = n_wrong = 0;
	for (int i = 0; i < n_racers; i++) {
		racer_t *racer = &racers[i];
		unsigned kind = random_below(&seed, 4);

		*racer = (racer_t){new_op(iou), i, random_below(&seed, 5) == 0};
		if (kind < 3)
			io_uring_prep_timeout(racer->op->sqe, &times[kind], 0, 0);
		else
			io_uring_prep_nop(racer->op->sqe);
		racer->op->sqe->flags = racer->drained ? IOSQE_IO_DRAIN : 0;
		iou_op_queue(iou, racer->op, on_racer, racer);
		if (random_below(&seed, 50) == 0)
			ck_assert_int_ge(iou_poll(iou, 0), 0);
	}
	run(iou);
	ck_assert_int_eq(n_ended, n_racers);
	ck_assert_int_eq(n_wrong, 0);
	free(racers);
	done(iou);
}
END_TEST

/* A zero-copy send lets its successor start with its first completion; its notification may take as
 * long as the peer does. Meanwhile the successor is cancelled as any op that runs. */
START_TEST(what_follows_a_zero_copy_send_is_cancelled)
{
	iou_t *iou = new_iou(8);
	int fds[2], small = 4096, size = 200 << 10;
	char *data = calloc(1, (size_t)size), byte;
	call_t send, receive;
	bool lent;

	if (!have_op(iou, IORING_OP_SEND_ZC)) {
		free(data);
		iou_free(iou);
		SKIP("needs IORING_OP_SEND_ZC (6.0)");
	}
	new_tcp_pair(fds);
	setsockopt(fds[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	io_uring_prep_send_zc(call_op(iou, &send, 0), fds[0], data, (size_t)size, 0, 0);
	send.op->sqe->flags |= IOSQE_IO_LINK;
	call_queue(iou, &send);
	io_uring_prep_recv(call_op(iou, &receive, 1), fds[0], &byte, 1, 0);
	call_queue(iou, &receive);
	POLL_UNTIL(iou, send.n);
	lent = send.flags & IORING_CQE_F_MORE && send.result == size;
	if (lent) {
		ck_assert_int_eq(iou_op_cancel(iou, receive.op), 0);
		POLL_UNTIL(iou, receive.n);
		ck_assert_int_eq(receive.result, -ECANCELED);
	}
	close(fds[1]);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	while (n_pending(iou))
		ck_assert_int_ge(iou_run(iou), 0);
	close(fds[0]);
	done(iou);
	free(data);
	if (!lent)
		SKIP("the kernel made a copy at once, or sent a part");
}
END_TEST

/* 6.18 sends the notification of one that never began, after a CQE that does not say so. It has one
 * callback all the same, and what is in its memory by then is left alone. */
START_TEST(a_zero_copy_send_fails_with_its_chain)
{
	iou_t *iou = new_iou(8);
	call_t head, send, nop;
	int fds[2];

	if (!have_op(iou, IORING_OP_SEND_ZC)) {
		iou_free(iou);
		SKIP("needs IORING_OP_SEND_ZC (6.0)");
	}
	new_tcp_pair(fds);
	for (int i = 0; i < 20; i++) {
		io_uring_prep_read(call_op(iou, &head, 0), -1, NULL, 0, 0);
		head.op->sqe->flags |= IOSQE_IO_LINK;
		call_queue(iou, &head);
		io_uring_prep_send_zc(call_op(iou, &send, 1), fds[0], "data", 4, 0, 0);
		call_queue(iou, &send);
		run(iou);
		ck_assert_int_eq(send.result, -ECANCELED);
		io_uring_prep_nop(call_op(iou, &nop, 2));
		call_queue(iou, &nop);
		run(iou);
		ck_assert_int_eq(head.n + send.n + nop.n, 3);
		ck_assert_int_eq(nop.flags, 0);
		ck_assert_uint_eq(n_pending(iou), 0);
	}
	close(fds[0]);
	close(fds[1]);
	done(iou);
}
END_TEST

#define N_FAILING 100

/* Many at once, on each kind of ring, whose memory is used again as soon as they have ended:
 * nothing comes late. */
START_TEST(zero_copy_sends_fail_with_their_chains)
{
	static const unsigned flags[] = {
		IORING_SETUP_CLAMP,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SQPOLL,
		IORING_SETUP_SQPOLL | IORING_SETUP_SINGLE_ISSUER,
	};
	static call_t heads[N_FAILING], sends[N_FAILING];
	iou_t *iou = NEW_IOU_OF(2 * N_FAILING, flags[_i]);
	int fds[2];

	if (!iou)
		return;
	if (!have_op(iou, IORING_OP_SEND_ZC)) {
		iou_free(iou);
		SKIP("needs IORING_OP_SEND_ZC (6.0)");
	}
	new_tcp_pair(fds);
	for (int i = 0; i < 60; i++) {
		for (int k = 0; k < N_FAILING; k++) {
			io_uring_prep_read(call_op(iou, &heads[k], 0), -1, NULL, 0, 0);
			heads[k].op->sqe->flags |= IOSQE_IO_LINK;
			call_queue(iou, &heads[k]);
			io_uring_prep_send_zc(call_op(iou, &sends[k], 0), fds[0], "data", 4,
					      MSG_NOSIGNAL, 0);
			call_queue(iou, &sends[k]);
		}
		n_order = 0;
		run(iou);
		for (int k = 0; k < N_FAILING; k++) {
			ck_assert_int_eq(heads[k].n, 1);
			ck_assert_int_eq(sends[k].n, 1);
			ck_assert_int_eq(sends[k].result, -ECANCELED);
		}
	}
	close_pair(fds);
	done(iou);
}
END_TEST

Suite *chains_suite(void)
{
	Suite *suite = suite_create("chains");
	TCase *tcase;

	TEST_CASE(suite, "links", linked_ops_run_one_after_the_other,
		  a_failure_ends_a_link_but_no_hardlink, a_chain_is_never_split,
		  many_chains_follow_each_other, a_chain_longer_than_the_sq_fails_whole,
		  a_bad_opcode_ends_its_chain, a_link_timeout_works, a_chain_is_queued_again);
	TEST_CASE(suite, "end", a_flush_or_a_poll_ends_a_chain, a_round_ends_a_chain,
		  a_nested_poll_ends_a_chain, a_chain_that_was_ended_and_waits_ends_there);
	tcase = TEST_CASE(suite, "inside", the_poll_for_wake_ups_stands_in_no_chain,
			  cancels_stand_in_no_chain, what_follows_a_zero_copy_send_is_cancelled,
			  a_zero_copy_send_fails_with_its_chain);
	tcase_add_loop_test(tcase, zero_copy_sends_fail_with_their_chains, 0, 5);
	TEST_CASE(suite, "drain", a_drained_op_waits_for_those_before_it,
		  nothing_passes_a_drained_op, a_drained_op_does_not_hold_up_the_rest,
		  a_drained_op_is_cancelled, a_chain_with_a_drained_member_waits_as_a_whole,
		  a_multishot_op_is_drained, drained_ops_are_queued_again,
		  a_waiting_drain_costs_no_system_calls, ops_and_drains_at_random_keep_the_order);
	return suite;
}
