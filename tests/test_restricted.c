/* SPDX-License-Identifier: MIT */

/*
 * Rings that the program restricts (IORING_REGISTER_RESTRICTIONS). What iou itself needs and may
 * not do is an error, each time that it is needed: nothing spins, nothing is lost, and iou_free()
 * returns.
 */

#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

/* What is refused beside all that no test needs. */
enum refusal {
	NO_POLL = 1,    /* IORING_OP_POLL_ADD: nothing wakes a loop that sleeps */
	NO_CANCEL = 2,  /* IORING_OP_ASYNC_CANCEL */
	NO_SYNC = 4,    /* IORING_REGISTER_SYNC_CANCEL */
	NO_EVENTFD = 8, /* registering one */
	NO_FLAGS = 16,  /* SQEs without IOSQE_FIXED_FILE, as iou's own are */
};

static iou_t *the_iou;

static void allow(struct io_uring_restriction *allowed, unsigned *n, unsigned kind, int opcode)
{
	allowed[*n] = (struct io_uring_restriction){.opcode = (__u16)kind, .sqe_op = (__u8)opcode};
	(*n)++;
}

/* False where the kernel does not make its rings disabled at first, so that there is nothing to be
 * tested. */
static bool restrict_ring(iou_t *iou, unsigned refused)
{
	static const int ops[] = {IORING_OP_NOP, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_OPENAT,
				  IORING_OP_RECV};
	static const int eventfd_ops[] = {IORING_REGISTER_EVENTFD, IORING_UNREGISTER_EVENTFD};
	struct io_uring_restriction allowed[16] = {{0}};
	unsigned n = 0;
	int ret;

	for (unsigned i = 0; i < sizeof(ops) / sizeof(*ops); i++)
		allow(allowed, &n, IORING_RESTRICTION_SQE_OP, ops[i]);
	if (!(refused & NO_POLL))
		allow(allowed, &n, IORING_RESTRICTION_SQE_OP, IORING_OP_POLL_ADD);
	if (!(refused & NO_CANCEL))
		allow(allowed, &n, IORING_RESTRICTION_SQE_OP, IORING_OP_ASYNC_CANCEL);
	allow(allowed, &n, IORING_RESTRICTION_SQE_FLAGS_ALLOWED, 0xff);
	if (refused & NO_FLAGS)
		allow(allowed, &n, IORING_RESTRICTION_SQE_FLAGS_REQUIRED, IOSQE_FIXED_FILE);
	allow(allowed, &n, IORING_RESTRICTION_REGISTER_OP, IORING_REGISTER_ENABLE_RINGS);
	if (!(refused & NO_SYNC))
		allow(allowed, &n, IORING_RESTRICTION_REGISTER_OP, IORING_REGISTER_SYNC_CANCEL);
	for (int i = 0; i < 2 && !(refused & NO_EVENTFD); i++)
		allow(allowed, &n, IORING_RESTRICTION_REGISTER_OP, eventfd_ops[i]);
	ret = iou_register(iou, IORING_REGISTER_RESTRICTIONS, allowed, n);
	EXPECT(ret == 0 || ret == -EBADFD || ret == -EINVAL);
	return ret == 0;
}

#define WHY "needs rings that are disabled at first (6.0)"

/* Makes the_iou; false where the test is to be skipped. */
static bool new_restricted(unsigned refused)
{
	the_iou = new_iou(8);
	if (restrict_ring(the_iou, refused))
		return true;
	iou_free(the_iou);
	return false;
}

/* It may not sleep: the call says so at once, and costs little, again and again. */
static void check_refused(int64_t timeout_ns)
{
	const uint64_t enters = get_stats(the_iou).enters, began_ns = now_ns();

	for (int i = 0; i < 5; i++)
		ck_assert_int_eq(iou_poll(the_iou, timeout_ns), -EACCES);
	for (int i = 0; i < 5; i++)
		ck_assert_int_eq(iou_run(the_iou), -EACCES);
	ck_assert_uint_le(get_stats(the_iou).enters - enters, 50);
	ck_assert_uint_lt(now_ns() - began_ns, 10 * SECOND);
}

/* ---- POLL_ADD -------------------------------------------------------------------------------- */

static int on_poll_inside(void *data)
{
	ck_assert_int_eq(iou_poll(the_iou, -1), -EACCES);
	ck_assert_int_eq(iou_run(the_iou), -EACCES);
	ck_assert_int_eq(iou_poll(the_iou, 0), 0);
	return on_call(data);
}

/* _i: the kind. */
START_TEST(on_a_restricted_ring_what_is_ready_comes_before_the_error)
{
	call_t read, calls[3] = {{0}}, inside = {0};
	int fds[2];

	if (!new_restricted(NO_POLL))
		SKIP(WHY);
	new_socketpair(fds);
	call_read(the_iou, &read, 0, fds[0]);
	ck_assert_int_eq(iou_poll(the_iou, 0), 0); /* may not sleep, so it needs nothing */
	check_refused(-1);
	check_refused((int64_t)(20 * SECOND));
	for (int i = 0; i < 3; i++)
		make_ready(the_iou, (kind_t)_i, on_call, &calls[i]);
	ck_assert_int_eq(iou_poll(the_iou, -1), 3);
	check_refused(-1);
	for (int i = 0; i < 3; i++)
		make_ready(the_iou, (kind_t)_i, on_call, &calls[i]);
	ck_assert_int_eq(iou_run(the_iou), -EACCES);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(calls[i].n, 2);
	make_ready(the_iou, (kind_t)_i, on_poll_inside, &inside);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	ck_assert_int_eq(inside.n, 1);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	ck_assert_int_eq(read.result, 1);
	run(the_iou); /* nothing is pending */
	ck_assert_int_eq(iou_poll(the_iou, -1), 0);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* All that it would have to wait for. */
START_TEST(a_restricted_ring_waits_for_nothing_that_cannot_wake)
{
	call_t call, idle = {0};
	gate_t gate;

	if (!new_restricted(NO_POLL))
		SKIP(WHY);
	iou_hold(the_iou);
	check_refused(-1);
	iou_bh_schedule_idle(new_bh(the_iou, on_call, &idle)); /* there is nothing else to do */
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	check_refused(-1);
	iou_unhold(the_iou);

	call_op(the_iou, &call, 0);
	iou_op_timer(the_iou, call.op, 100 * SECOND, 0, on_call, &call);
	check_refused(-1);
	ck_assert_int_eq(iou_op_cancel(the_iou, call.op), 0);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	ck_assert_int_eq(call.result, -ECANCELED);

	gate_init(&gate);
	call_op(the_iou, &call, 0);
	start_job(the_iou, call.op, gate_job, &gate, on_call, &call);
	check_refused(-1);
	gate_open(&gate);
	WAIT_UNTIL(iou_poll(the_iou, 0) == 1);
	run(the_iou);
	done(the_iou);
}
END_TEST

/* A new ring has no restrictions. */
START_TEST(a_resize_lifts_restrictions)
{
	call_t call;

	if (!new_restricted(NO_POLL | NO_CANCEL | NO_SYNC))
		SKIP(WHY);
	call_op(the_iou, &call, 0);
	iou_op_timer(the_iou, call.op, is_slow() ? SECOND : 3 * MSEC, 0, on_call, &call);
	ck_assert_int_eq(iou_poll(the_iou, -1), -EACCES);
	post(the_iou, on_nothing, NULL);
	ck_assert_int_eq(iou_poll(the_iou, -1),
			 1); /* what was refused beside that is still to be told */
	ck_assert_int_eq(iou_resize(the_iou, 16), 0);
	POLL_UNTIL(the_iou, call.n);
	iou_hold(the_iou);
	ck_assert_int_eq(iou_poll(the_iou, (int64_t)MSEC), 0);
	iou_unhold(the_iou);
	done(the_iou);
}
END_TEST

/* ---- ASYNC_CANCEL ---------------------------------------------------------------------------- */

/* _i: asked for by iou_op_cancel(), iou_cancel_all(), a deadline. The op stays, and ends as it
 * would have. */
START_TEST(a_cancel_that_is_restricted_is_an_error)
{
	call_t read, timer, queued;
	int fds[2];

	if (!new_restricted(NO_CANCEL))
		SKIP(WHY);
	new_socketpair(fds);
	io_uring_prep_read(call_op(the_iou, &read, 0), fds[0], &(char){0}, 1, 0);
	if (_i == 2)
		iou_op_deadline(the_iou, read.op, MSEC);
	call_queue(the_iou, &read);
	flush(the_iou);
	call_op(the_iou, &timer, 0);
	iou_op_timer(the_iou, timer.op, 100 * SECOND, 0, on_call, &timer);
	if (_i == 0)
		ck_assert_int_eq(iou_op_cancel(the_iou, read.op), 0);
	if (_i == 1)
		ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	else
		ck_assert_int_eq(iou_op_cancel(the_iou, timer.op), 0);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1); /* the timer was iou's alone */
	ck_assert_int_eq(timer.result, -ECANCELED);
	check_refused(-1);
	ck_assert_int_eq(read.n, 0);

	io_uring_prep_nop(call_op(the_iou, &queued, 0)); /* so is what was not submitted */
	call_queue(the_iou, &queued);
	ck_assert_int_eq(iou_op_cancel(the_iou, queued.op), 0);
	ck_assert_int_eq(iou_poll(the_iou, 0), 1);
	ck_assert_int_eq(queued.result, -ECANCELED);

	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	POLL_UNTIL(the_iou, read.n);
	ck_assert_int_eq(read.result, 1);
	run(the_iou);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* ---- iou_fd() -------------------------------------------------------------------------------- */

static bool readable(void)
{
	return poll(&(struct pollfd){.fd = iou_fd(the_iou), .events = POLLIN}, 1, 0) == 1;
}

/* A surrounding loop polls, is told the error each time, and is called back all the same. */
static void turn_until(const call_t *call)
{
	int n_errors = 0;

	for (int i = 0; !call->n; i++) {
		int n;

		WAIT_UNTIL(readable());
		n = iou_poll(the_iou, 0);
		ck_assert(n >= 0 || n == -EACCES);
		n_errors += n < 0;
		ck_assert_msg(n_errors < 1000, "it spins");
	}
}

/* _i: what is refused. */
START_TEST(iou_fd_of_a_restricted_ring_tells_the_error)
{
	call_t read, posted = {0}, cancelled;
	int fds[2], n_errors = 0;

	if (!new_restricted((unsigned)_i))
		SKIP(WHY);
	new_socketpair(fds);
	ck_assert_int_ge(iou_fd(the_iou),
			 0); /* the ring is not enabled yet, so the restrictions do not hold */
	call_read(the_iou, &cancelled, 0, fds[0]);
	flush(the_iou);
	ck_assert_int_eq(iou_op_cancel(the_iou, cancelled.op), 0);
	for (int i = 0; i < 20; i++) {
		int n = readable() ? iou_poll(the_iou, 0) : 0;

		ck_assert(n >= 0 || n == -EACCES);
		n_errors += n < 0;
	}
	ck_assert(_i ? n_errors >= 1 : n_errors == 0);
	post(the_iou, on_call, &posted);
	turn_until(&posted);
	if (_i & NO_CANCEL)
		ck_assert_int_eq(write(fds[1], "x", 1), 1);
	turn_until(&cancelled);
	ck_assert_int_eq(cancelled.result, _i & NO_CANCEL ? 1 : -ECANCELED);
	call_read(the_iou, &read, 0, fds[0]);
	flush(the_iou);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	turn_until(&read);
	close_pair(fds);
	done(the_iou);
}
END_TEST

START_TEST(iou_fd_is_refused_by_a_restriction)
{
	int fd;

	if (!new_restricted(NO_EVENTFD))
		SKIP(WHY);
	flush(the_iou); /* enables it */
	fd = iou_fd(the_iou);
	/* Kernels before 5.18 register it with the ring. */
	ck_assert_msg(fd == -EACCES || fd >= 0, "iou_fd: %d", fd);
	ck_assert_int_eq(iou_poll(the_iou, (int64_t)MSEC), 0);
	done(the_iou);
}
END_TEST

/* ---- iou_free() ------------------------------------------------------------------------------ */

/* In a child, since memory is left where nothing can be cancelled. */
static void free_busy(void *data)
{
	const unsigned refused = *(unsigned *)data;
	static char buf[4][4096];
	const char *fifo = new_fifo("fifo");
	int fds[2], ret;
	uint64_t began_ns, cpu_ns;
	iou_op_t *op;

	signal(SIGPIPE, SIG_IGN);
	the_iou = iou_new(8);
	EXPECT(the_iou != NULL && restrict_ring(the_iou, refused));
	new_socketpair(fds);
	for (int i = 0; i < 4; i++) {
		op = iou_op_new(the_iou);
		if (i < 3)
			io_uring_prep_recv(op->sqe, fds[0], buf[i], sizeof(buf[i]), 0);
		else
			io_uring_prep_openat(op->sqe, AT_FDCWD, fifo, O_RDONLY | O_CLOEXEC,
					     0); /* blocks in io-wq */
		if (i == 1)
			iou_op_deadline(the_iou, op, MSEC);
		iou_op_queue(the_iou, op, on_nothing, NULL);
		EXPECT(iou_flush(the_iou) == 0);
		if (i == 2)
			EXPECT(iou_op_cancel(the_iou, op) == 0);
	}
	ret = iou_poll(the_iou, (int64_t)(5 * MSEC));
	EXPECT(ret >= 0 || ret == -EACCES);
	close(fds[0]);
	began_ns = now_ns();
	cpu_ns = process_cpu_ns();
	EXPECT(iou_free(the_iou) == NULL);
	EXPECT(now_ns() - began_ns < 15 * SECOND);
	EXPECT(process_cpu_ns() - cpu_ns < SECOND);
	/* The reads held the socket. */
	if ((refused & (NO_CANCEL | NO_SYNC)) != (NO_CANCEL | NO_SYNC))
		EXPECT(write(fds[1], "x", 1) < 0 && errno == EPIPE);
	EXPECT(buf[0][0] == 0);
}

/* _i: what is refused. */
START_TEST(free_returns_on_a_restricted_ring)
{
	unsigned refused = (unsigned)_i;

	if (!new_restricted(refused))
		SKIP(WHY);
	iou_free(the_iou);
	in_good_child(free_busy, &refused);
}
END_TEST

/* ---- Flags, and nothing at all --------------------------------------------------------------- */

/* Each SQE must be of a registered file: the program's are. */
START_TEST(required_flags_refuse_all_sqes_of_iou)
{
	call_t read;
	int fds[2];

	if (!new_restricted(NO_FLAGS))
		SKIP(WHY);
	new_socketpair(fds);
	ck_assert_int_eq(iou_register(the_iou, IORING_REGISTER_FILES, fds, 1), 0);
	io_uring_prep_read(call_op(the_iou, &read, 0), 0, &(char){0}, 1, 0);
	read.op->sqe->flags |= IOSQE_FIXED_FILE;
	call_queue(the_iou, &read);
	check_refused(-1);
	ck_assert_int_eq(iou_op_cancel(the_iou, read.op), 0);
	check_refused(-1);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	POLL_UNTIL(the_iou, read.n);
	ck_assert_int_eq(read.result, 1);
	close_pair(fds);
	done(the_iou);
}
END_TEST

static pid_t loop_tid;

static void *post_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(the_iou, on_call, data);
	return NULL;
}

/* What iou.h says it needs is enough. */
START_TEST(what_iou_says_it_needs_is_enough)
{
	call_t read, posted = {0};
	pthread_t thread;
	int fds[2];

	if (!new_restricted(0))
		SKIP(WHY);
	loop_tid = gettid();
	new_socketpair(fds);
	for (int i = 0; i < 5; i++) {
		call_read(the_iou, &read, 0, fds[0]);
		posted.n = 0;
		thread = start_thread(post_to_the_sleeper, &posted);
		POLL_UNTIL(the_iou, posted.n);
		join_thread(thread);
		ck_assert_int_eq(iou_op_cancel(the_iou, read.op), 0);
		run(the_iou);
		ck_assert_int_eq(read.result, -ECANCELED);
		if (i == 2)
			ck_assert_int_ge(iou_fd(the_iou), 0);
	}
	close_pair(fds);
	done(the_iou);
}
END_TEST

Suite *restricted_suite(void)
{
	Suite *suite = suite_create("restricted");
	TCase *tcase;

	tcase = TEST_CASE(suite, "polls", a_restricted_ring_waits_for_nothing_that_cannot_wake,
			  a_resize_lifts_restrictions);
	tcase_add_loop_test(tcase, on_a_restricted_ring_what_is_ready_comes_before_the_error, 0,
			    N_KINDS);
	tcase = TEST_CASE(suite, "cancels", NULL);
	tcase_add_loop_test(tcase, a_cancel_that_is_restricted_is_an_error, 0, 3);
	tcase = TEST_CASE(suite, "fd", iou_fd_is_refused_by_a_restriction);
	tcase_add_loop_test(tcase, iou_fd_of_a_restricted_ring_tells_the_error, 0, 4);
	tcase = TEST_CASE(suite, "free", NULL);
	tcase_add_loop_test(tcase, free_returns_on_a_restricted_ring, 0, 8);
	TEST_CASE(suite, "flags", required_flags_refuse_all_sqes_of_iou,
		  what_iou_says_it_needs_is_enough);
	return suite;
}
