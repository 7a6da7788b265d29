/* SPDX-License-Identifier: MIT */

/* Ops on the ring: taking and giving back, order, the backlog, a callback for each CQE, queueing
 * again, the SQE in callbacks, keys. */

#include "helper.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static iou_t *the_iou;

static bool is_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

static void put(int fd, const void *data, size_t size)
{
	ck_assert_int_eq(write(fd, data, size), (int)size);
}

static bool is_zero(const struct io_uring_sqe *sqe)
{
	static const struct io_uring_sqe zero;

	return memcmp(sqe, &zero, sizeof(zero)) == 0;
}

/* ---- Taking and giving back ------------------------------------------------------------------ */

START_TEST(a_new_op_is_blank)
{
	iou_op_t *op[600];
	iou_t *iou = new_iou(2);

	for (int repeat = 0; repeat < 3; repeat++) {
		for (int i = 0; i < 600; i++) {
			op[i] = new_op(iou);
			ck_assert(is_zero(op[i]->sqe));
			memset(op[i]->sqe, 0xee, sizeof(*op[i]->sqe)); /* its own, and no other's */
		}
		for (int i = 0; i < 600; i++)
			iou_op_free(iou, op[i]);
		iou_op_free(iou, NULL);
	}
	ck_assert_uint_eq(n_pending(iou), 0);
	run(iou); /* abandoned ops are not pending */
	done(iou);
}
END_TEST

/* Unlike an SQE of the ring's, an op can wait for its preparation, and be one of many. */
START_TEST(an_op_is_prepared_any_time_before_it_is_queued)
{
	enum { N = 300 };
	iou_t *iou = new_iou(2);
	call_t calls[N], other;

	for (int i = 0; i < N; i++)
		call_op(iou, &calls[i], i);
	for (int i = 0; i < 20; i++) {
		io_uring_prep_nop(call_op(iou, &other, 0));
		call_queue(iou, &other);
		run(iou);
		io_uring_prep_nop(calls[i].op->sqe); /* prepared now, queued rounds later */
	}
	n_order = 0;
	for (int i = N - 1; i >= 0; i--) {
		io_uring_prep_nop(calls[i].op->sqe);
		call_queue(iou, &calls[i]);
	}
	run(iou);
	ck_assert_int_eq(n_order, N);
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(order[i], N - 1 - i);
	done(iou);
}
END_TEST

/* How many of the ops that were taken one after the other had an address of their own, if 1000 were
 * enough. */
static size_t n_distinct(iou_op_t **ops, size_t n)
{
	size_t n_seen = 0;

	for (size_t i = 0; i < n && n_seen < 1000; i++) {
		size_t k = 0;

		while (k < n_seen && ops[k] != ops[i])
			k++;
		if (k == n_seen)
			ops[n_seen++] = ops[i];
	}
	return n_seen;
}

START_TEST(ops_go_back_to_the_pool)
{
	enum { N = 3000 };
	iou_op_t **ops = calloc(N, sizeof(iou_op_t *));
	iou_t *iou = new_iou(2);
	call_t call;

	for (int i = 0; i < N; i++) {
		io_uring_prep_nop(call_op(iou, &call, 0));
		call.ret = i % 3 == 1 ? -77 : i % 3; /* whatever the callback returns */
		ops[i] = call.op;
		if (i % 2) {
			ck_assert_ptr_nonnull(iou_op_env(call.op, 200));
			iou_op_free(iou, call.op);
		} else {
			call_queue(iou, &call);
			ck_assert_int_eq(iou_run(iou), call.ret < 0 ? call.ret : 0);
			ck_assert_int_eq(call.n, 1);
		}
		n_order = 0;
	}
	ck_assert_uint_lt(n_distinct(ops, N), 1000);
	free(ops);
	done(iou);
}
END_TEST

typedef struct own_t {
	iou_op_t *op;
	int *n;
} own_t;

static int on_own(void *data)
{
	own_t *own = data;
	int *n = own->n;

	*n += own->op->result == 0;
	memset(own, 0xee, sizeof(*own));
	free(own); /* nobody looks behind cb_data any more */
	return 0;
}

START_TEST(a_callback_frees_its_data)
{
	iou_t *iou = new_iou(4);
	int n = 0;

	for (int i = 0; i < 100; i++) {
		own_t *own = malloc(sizeof(*own));

		*own = (own_t){new_op(iou), &n};
		io_uring_prep_nop(own->op->sqe);
		iou_op_queue(iou, own->op, on_own, own);
	}
	run(iou);
	ck_assert_int_eq(n, 100);
	done(iou);
}
END_TEST

/* The op outlives its callback's end by nothing, and its callback by everything. */
static int on_valid(void *data)
{
	call_t *call = data;
	iou_op_t *others[64];

	for (int i = 0; i < 64; i++) {
		others[i] = new_op(the_iou);
		ck_assert_ptr_ne(others[i], call->op);
		ck_assert_ptr_ne(others[i]->sqe, call->op->sqe);
	}
	for (int i = 0; i < 64; i++)
		iou_op_free(the_iou, others[i]);
	ck_assert_int_eq(call->op->result, 0);
	if (call->id) /* given back by the program: at the callback's end */
		iou_op_free(the_iou, call->op);
	ck_assert_ptr_ne(others[0] = new_op(the_iou), call->op);
	iou_op_free(the_iou, others[0]);
	return on_call(call);
}

START_TEST(an_op_is_valid_in_its_callback)
{
	call_t call;

	the_iou = new_iou(4);
	for (int id = 0; id < 2; id++) {
		io_uring_prep_nop(call_op(the_iou, &call, id));
		iou_op_queue(the_iou, call.op, on_valid, &call);
		run(the_iou);
		ck_assert_int_eq(call.n, 1);
	}
	done(the_iou);
}
END_TEST

/* ---- Queueing -------------------------------------------------------------------------------- */

static char one_to_n[256];

static void queue_writes(iou_t *iou, call_t *calls, int n, int fd)
{
	for (int i = 0; i < n; i++) {
		one_to_n[i] = (char)i;
		io_uring_prep_write(call_op(iou, &calls[i], i), fd, &one_to_n[i], 1, 0);
		call_queue(iou, &calls[i]);
	}
}

static void expect_writes(int fd, int n)
{
	char got[257];

	ck_assert_int_eq(read(fd, got, sizeof(got)), n);
	ck_assert(memcmp(got, one_to_n, (size_t)n) == 0);
}

START_TEST(queueing_does_not_reach_the_kernel)
{
	enum { N = 200 };
	iou_t *iou = new_iou(2);
	call_t calls[N];
	iou_stats_t before, now;
	int fds[2];

	new_socketpair(fds);
	flush(iou);
	before = get_stats(iou);
	queue_writes(iou, calls, N, fds[1]);
	now = get_stats(iou);
	ck_assert(!is_readable(fds[0]));
	ck_assert_uint_eq(now.enters, before.enters);
	ck_assert_uint_eq(now.submitted, before.submitted);
	ck_assert_uint_eq(now.backlog, N);
	run(iou);
	expect_writes(fds[0], N);
	close_pair(fds);
	done(iou);
}
END_TEST

/* Through a small SQ too, in order, at once; and the callbacks wait for the loop. */
START_TEST(flush_hands_the_backlog_over)
{
	enum { N = 256 };
	static const unsigned entries[] = {1, 2, 4, 64, 512};
	call_t calls[N];
	int fds[2];

	new_socketpair(fds);
	for (int i = 0; i < 5; i++) {
		iou_t *iou = new_iou(entries[i]);

		flush(iou); /* nothing to hand over */
		queue_writes(iou, calls, N, fds[1]);
		flush(iou);
		ck_assert_uint_eq(get_stats(iou).backlog, 0);
		ck_assert_uint_eq(get_stats(iou).backlog_max, N);
		expect_writes(fds[0], N);
		ck_assert_uint_eq(n_pending(iou), N);
		ck_assert_int_eq(calls[0].n, 0);
		n_order = 0;
		run(iou);
		ck_assert_int_eq(n_order, N);
		for (int k = 0; k < N; k++) {
			ck_assert_int_eq(order[k], k);
			ck_assert_int_eq(calls[k].result, 1);
		}
		done(iou);
	}
	close_pair(fds);
}
END_TEST

/* poll and run submit what is queued, in order, also what callbacks queue behind what is queued
 * already. */
static int on_queue_two(void *data)
{
	call_t *call = data;

	for (int i = 1; i <= 2; i++) {
		call_t *next = &call[i * 10];

		io_uring_prep_nop(call_op(the_iou, next, call->id + i * 10));
		iou_op_queue(the_iou, next->op, on_call, next);
	}
	return on_call(call);
}

START_TEST(ops_keep_the_order_of_queueing)
{
	static const int expected[] = {0, 1, 2, 3, 10, 20, 11, 21, 12, 22, 13, 23};
	call_t calls[24];

	for (int with_poll = 0; with_poll < 2; with_poll++) {
		the_iou = new_iou(2);
		n_order = 0;
		for (int i = 0; i < 4; i++) {
			io_uring_prep_nop(call_op(the_iou, &calls[i], i));
			iou_op_queue(the_iou, calls[i].op, on_queue_two, &calls[i]);
		}
		if (with_poll)
			POLL_UNTIL(the_iou, n_order == 12);
		else
			run(the_iou);
		ck_assert_int_eq(n_order, 12);
		for (int i = 0; i < 12; i++)
			ck_assert_int_eq(order[i], expected[i]);
		done(the_iou);
	}
}
END_TEST

static int n_left, n_called;

static int on_breed(void *data)
{
	n_called++;
	for (int i = 0; i < 2 && n_left > 0; i++, n_left--) {
		iou_op_t *op = new_op(the_iou);

		io_uring_prep_nop(op->sqe);
		iou_op_queue(the_iou, op, on_breed, data);
	}
	return 0;
}

/* The pool and the backlog grow under the callbacks. */
START_TEST(each_callback_queues_two)
{
	int n = is_slow() ? 20000 : 100000;

	the_iou = new_iou(2);
	n_left = n;
	on_breed(NULL);
	run(the_iou);
	ck_assert_int_eq(n_called, n + 1);
	done(the_iou);
}
END_TEST

/* After iou_op_new() nothing needs memory: 5000 each of reads, no-ops and timers are queued,
 * completed, cancelled. */
START_TEST(a_taken_op_needs_no_memory)
{
	enum { N = 5000 };
	int fds[2], ret = 0, n = 0;
	iou_op_t **ops;
	iou_t *iou;
	call_t job;
	void *memory;

	if (is_watched())
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	iou = new_iou(8);
	ops = calloc((size_t)3 * N, sizeof(iou_op_t *));
	new_pipe(fds);
	start_job(iou, new_op(iou), on_nothing, NULL, on_nothing, NULL); /* starts the worker */
	run(iou);
	call_op(iou, &job, 0);
	for (int i = 0; i < 3 * N; i++)
		ops[i] = new_op(iou);
	n_called = n_left = 0;
	starve();
	memory = malloc(1);
	for (int i = 0; i < N; i++) {
		io_uring_prep_nop(ops[i]->sqe);
		iou_op_queue(iou, ops[i], on_breed, NULL);
		io_uring_prep_read(ops[N + i]->sqe, fds[0], &n, 1, 0);
		iou_op_deadline(iou, ops[N + i], i % 2 ? MSEC : SECOND * 1000);
		iou_op_queue(iou, ops[N + i], on_breed, NULL);
		iou_op_timer(iou, ops[2 * N + i], (uint64_t)(i % 100) * MSEC, i % 2 ? MSEC : 0,
			     on_nothing, NULL);
	}
	if (iou_op_async(iou, job.op, on_nothing, NULL, on_call, &job) < 0)
		ret = -1;
	for (int i = 0; ret >= 0 && n_called < N + N / 2 && i < 1000000; i++)
		ret = iou_poll(iou, -1);
	for (int i = 0; i < N; i += 2)
		if (iou_op_cancel(iou, ops[N + i]) != 0)
			n++;
	iou_cancel_all(iou);
	if (ret >= 0)
		ret = iou_run(iou);
	feed();
	ck_assert_ptr_null(memory);
	ck_assert_int_eq(ret, 0);
	ck_assert_int_eq(n, 0);
	ck_assert_int_eq(n_called, 2 * N);
	ck_assert_int_eq(job.n, 1);
	free(ops);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(iou_op_new_tells_that_there_is_no_memory)
{
	int n = 0, error = 0;
	call_t call;
	iou_t *iou;

	if (is_watched())
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	iou = new_iou(2);
	starve();
	for (errno = 0; n < 100000 && iou_op_new(iou); n++)
		errno = 0;
	error = errno;
	feed();
	ck_assert_int_lt(n, 100000);
	ck_assert_int_eq(error, ENOMEM);
	io_uring_prep_nop(call_op(iou, &call, 0)); /* and on it goes */
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	done(iou);
}
END_TEST

START_TEST(skipping_the_cqe_is_cleared)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];

	for (int i = 0; i < 3; i++) {
		struct io_uring_sqe *sqe = call_op(iou, &calls[i], i);

		io_uring_prep_nop(sqe);
		sqe->flags = IOSQE_CQE_SKIP_SUCCESS | (i == 1 ? IOSQE_IO_LINK : 0);
		sqe->user_data = 77; /* the library owns it */
		call_queue(iou, &calls[i]);
	}
	run(iou);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(calls[i].n, 1);
		ck_assert_int_eq(calls[i].result, 0);
	}
	done(iou);
}
END_TEST

/* ---- One callback for each CQE --------------------------------------------------------------- */

START_TEST(a_multishot_op_is_called_for_each_cqe)
{
	iou_t *iou = new_iou(4);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t one = 1;
	call_t call;

	io_uring_prep_poll_multishot(call_op(iou, &call, 0), fd, POLLIN);
	call_queue(iou, &call);
	for (int i = 1; i <= 5; i++) {
		put(fd, &one, sizeof(one));
		POLL_UNTIL(iou, call.n == i);
		ck_assert_int_eq(call.result & POLLIN, POLLIN);
		ck_assert_uint_eq(call.flags & IORING_CQE_F_MORE, IORING_CQE_F_MORE);
		ck_assert_uint_eq(n_pending(iou), 1); /* it stays so in between */
	}
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	run(iou);
	ck_assert_int_eq(call.n, 6);
	ck_assert_int_eq(call.n_last, 1);
	ck_assert_int_eq(call.result, -ECANCELED);
	close(fd);
	done(iou);
}
END_TEST

/* A multishot receive from buffers that the program provides; out of them, it ends, and is queued
 * again. */
typedef struct receiver_t {
	iou_op_t *op;
	iou_t *iou;
	int fd;
	int n_bytes, n_short; /* received; ended for want of buffers */
	bool eof;
	char buffers[2][8];
} receiver_t;

static void provide(receiver_t *receiver)
{
	iou_op_t *op = new_op(receiver->iou);

	io_uring_prep_provide_buffers(op->sqe, receiver->buffers, 8, 2, 5, 0);
	iou_op_queue(receiver->iou, op, on_nothing, NULL);
}

static int on_received(void *data);

static void queue_receive(receiver_t *receiver)
{
	io_uring_prep_recv_multishot(receiver->op->sqe, receiver->fd, NULL, 0, 0);
	receiver->op->sqe->flags |= IOSQE_BUFFER_SELECT;
	receiver->op->sqe->buf_group = 5;
	iou_op_queue(receiver->iou, receiver->op, on_received, receiver);
}

static int on_received(void *data)
{
	receiver_t *receiver = data;
	iou_op_t *op = receiver->op;

	if (op->result > 0)
		receiver->n_bytes += op->result;
	else if (op->result == 0)
		receiver->eof = true;
	else if (op->result == -ENOBUFS)
		receiver->n_short++;
	else
		return op->result;
	if (op->flags & IORING_CQE_F_MORE)
		return 0;
	if (!receiver->eof) {
		provide(receiver);
		queue_receive(receiver);
	}
	return 0;
}

START_TEST(a_multishot_op_ends_and_is_queued_again)
{
	enum { N = 50 };
	iou_t *iou = new_iou(4);
	receiver_t receiver = {.iou = iou};
	int fds[2];

	if (!have_op(iou, IORING_OP_PROVIDE_BUFFERS) || !kernel_at_least(6, 0)) {
		done(iou);
		SKIP("needs multishot recv (6.0)");
	}
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	receiver.fd = fds[0];
	provide(&receiver);
	receiver.op = new_op(iou);
	queue_receive(&receiver);
	for (int i = 0; i < N; i++)
		put(fds[1], "xyz", 3);
	POLL_UNTIL(iou, receiver.n_bytes == 3 * N);
	ck_assert_int_ge(receiver.n_short, N / 2 - 1);
	close(fds[1]);
	run(iou);
	ck_assert(receiver.eof);
	ck_assert_int_eq(receiver.n_bytes, 3 * N);
	close(fds[0]);
	done(iou);
}
END_TEST

/* Two CQEs, for a send that failed too: the flag tells, not the result. */
START_TEST(a_zero_copy_send_ends_with_its_notification)
{
	iou_t *iou = new_iou(4);
	char data[4096] = "data";
	int fds[2], pipe_fds[2];
	call_t call;

	if (!have_op(iou, IORING_OP_SEND_ZC)) {
		done(iou);
		SKIP("needs IORING_OP_SEND_ZC (6.0)");
	}
	new_tcp_pair(fds);
	io_uring_prep_send_zc(call_op(iou, &call, 0), fds[0], data, sizeof(data), 0, 0);
	call_queue(iou, &call);
	POLL_UNTIL(iou, call.n);
	if (call.n == 1) {
		ck_assert_int_eq(call.result, sizeof(data));
		ck_assert_uint_eq(call.flags & IORING_CQE_F_MORE, IORING_CQE_F_MORE);
		ck_assert_uint_eq(n_pending(iou), 1);
	}
	run(iou);
	ck_assert_int_eq(call.n, 2);
	ck_assert_int_eq(call.n_last, 1);
	ck_assert_uint_eq(call.flags & IORING_CQE_F_NOTIF, IORING_CQE_F_NOTIF);
	ck_assert_int_eq(call.result, 0);

	new_pipe(pipe_fds);
	/* no socket */
	io_uring_prep_send_zc(call_op(iou, &call, 0), pipe_fds[1], data, sizeof(data), 0, 0);
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_ge(call.n, 1);
	ck_assert_int_eq(call.n_last, 1);
	ck_assert_int_eq(call.n == 1 ? call.result : -ENOTSOCK, -ENOTSOCK);
	close_pair(fds);
	close_pair(pipe_fds);
	done(iou);
}
END_TEST

/* ---- Queued again ---------------------------------------------------------------------------- */

enum door { RING, WORKERS, CLOCK, N_DOORS };

typedef struct machine_t {
	iou_op_t *op;
	iou_t *iou;
	int step, n_steps;
	int ret; /* what each callback returns */
	int fd;
} machine_t;

static int return_seven(void *data)
{
	(void)data;
	return 7;
}

/* Each pair of doors follows each other within nine steps. */
static enum door door_of(int step)
{
	static const enum door doors[] = {RING,	 RING, WORKERS, WORKERS, CLOCK,
					  CLOCK, RING, CLOCK,	WORKERS};

	return doors[step % 9];
}

static int on_step(void *data);

static void next_step(machine_t *machine)
{
	switch (door_of(machine->step)) {
	case RING:
		io_uring_prep_write(machine->op->sqe, machine->fd, "abc", 3, (uint64_t)-1);
		iou_op_queue(machine->iou, machine->op, on_step, machine);
		break;
	case WORKERS:
		start_job(machine->iou, machine->op, return_seven, machine, on_step, machine);
		break;
	default:
		iou_op_timer(machine->iou, machine->op, USEC, 0, on_step, machine);
	}
}

static int on_step(void *data)
{
	static const int results[N_DOORS] = {[RING] = 3, [WORKERS] = 7, [CLOCK] = 1};
	machine_t *machine = data;

	if (machine->op->result != results[door_of(machine->step)] || machine->op->flags)
		return -EPROTO;
	if (++machine->step < machine->n_steps)
		next_step(machine);
	return machine->ret;
}

START_TEST(an_op_is_queued_again_in_any_way)
{
	machine_t machine = {.n_steps = 100};
	int fds[2], n = 0;
	char got[512];

	new_pipe(fds);
	for (int ret = 0; ret >= -1; ret--) {
		machine.iou = new_iou(2);
		machine.op = new_op(machine.iou);
		machine.fd = fds[1];
		machine.step = 0;
		machine.ret = ret;
		next_step(&machine);
		/* an error does not take it from the program */
		for (n = 1; iou_run(machine.iou) == -1; n++)
			;
		ck_assert_int_eq(machine.step, 100);
		ck_assert_int_eq(n, ret ? 101 : 1);
		ck_assert_int_eq(read(fds[0], got, sizeof(got)), 34 * 3);
		done(machine.iou);
	}
	close_pair(fds);
}
END_TEST

/* One op, and one call that can fail, for a whole life. */
START_TEST(one_op_is_enough_for_a_whole_life)
{
	machine_t machine = {.n_steps = 9 * (is_slow() ? 500 : 3000)};
	char got[512];
	int fds[2];

	new_pipe(fds);
	machine.iou = new_iou(2);
	machine.op = new_op(machine.iou);
	machine.fd = fds[1];
	next_step(&machine);
	while (machine.step < machine.n_steps) {
		int ret = iou_poll(machine.iou, -1);

		ck_assert_int_eq(ret, 1);
		if (is_readable(fds[0]))
			ck_assert_int_gt(read(fds[0], got, sizeof(got)), 0);
	}
	ck_assert_uint_eq(n_pending(machine.iou), 0);
	close_pair(fds);
	done(machine.iou);
}
END_TEST

/* ---- The SQE in callbacks -------------------------------------------------------------------- */

/* Set only the fields that liburing 2.7 and later sets in each operation. */
static void prep_sparingly(struct io_uring_sqe *sqe, int opcode, int fd, const void *addr,
			   unsigned len)
{
	sqe->opcode = (__u8)opcode;
	sqe->fd = fd;
	sqe->off = 0;
	sqe->addr = (uintptr_t)addr;
	sqe->len = len;
}

/* An op whose callbacks look at its SQE: while more follow it stands as queued, in the last one it
 * is all zero. There the op is queued again, to read one byte. Fields that kept old values would
 * make that read fail. */
typedef struct ending_t {
	call_t call, again;
	struct io_uring_sqe queued;
} ending_t;

typedef struct scene_t {
	ending_t endings[8];
	int n;
	int fds[2]; /* a stream, both ways */
	int never;  /* a pipe's end that has nothing to read, */
	int zero;   /* and a file that always has */
	int event;
} scene_t;

static scene_t scene;

static int on_ending(void *data)
{
	static char byte;
	ending_t *ending = data;
	iou_op_t *op = ending->call.op;

	on_call(&ending->call);
	if (op->flags & IORING_CQE_F_MORE) {
		ck_assert(memcmp(op->sqe, &ending->queued, sizeof(ending->queued)) == 0);
		return 0;
	}
	ck_assert(is_zero(op->sqe));
	prep_sparingly(op->sqe, IORING_OP_READ, scene.zero, &byte, 1);
	ending->again.op = op;
	call_queue(the_iou, &ending->again);
	return 0;
}

/* Another op of the scene, to be prepared and then queued. */
static iou_op_t *scene_op(void)
{
	ending_t *ending = &scene.endings[scene.n++];

	call_op(the_iou, &ending->call, 0);
	return ending->call.op;
}

static void scene_queue(iou_op_t *op, unsigned flags)
{
	ending_t *ending = &scene.endings[scene.n - 1];

	op->sqe->flags |= (uint8_t)flags;
	ending->queued = *op->sqe;
	ending->queued.user_data = (uintptr_t)op;
	iou_op_queue(the_iou, op, on_ending, ending);
}

static iou_op_t *scene_nop(unsigned flags)
{
	iou_op_t *op = scene_op();

	io_uring_prep_nop(op->sqe);
	scene_queue(op, flags);
	return op;
}

static iou_op_t *scene_read(int fd, unsigned flags, uint64_t deadline_ns)
{
	static char byte;
	iou_op_t *op = scene_op();

	io_uring_prep_read(op->sqe, fd, &byte, 1, 0);
	if (deadline_ns)
		iou_op_deadline(the_iou, op, deadline_ns);
	scene_queue(op, flags);
	return op;
}

/* Each begins a way to the last callback. Returns what it needs, where this kernel lacks it. */

static const char *it_completes(void)
{
	scene_nop(0);
	scene_nop(IOSQE_ASYNC);
	scene_nop(IOSQE_IO_DRAIN);
	return NULL;
}

static const char *it_fails(void)
{
	scene_read(-1, 0, 0);
	return NULL;
}

static const char *it_is_cancelled_in_the_backlog(void)
{
	iou_op_t *op = scene_nop(IOSQE_IO_LINK);

	scene_nop(IOSQE_IO_HARDLINK); /* and those linked to it with it */
	scene_nop(0);
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return NULL;
}

static const char *its_chain_is_too_long(void)
{
	for (int i = 0; i < 5; i++)
		scene_nop(i < 4 ? IOSQE_IO_LINK : 0);
	return NULL;
}

static const char *its_chain_fails(void)
{
	scene_read(-1, IOSQE_IO_LINK, 0);
	scene_nop(IOSQE_IO_LINK);
	scene_nop(0);
	return NULL;
}

/* The op's CQE comes before the answer to the cancel. iou holds it until that answer is there. */
static const char *it_is_cancelled_in_the_ring(void)
{
	iou_op_t *op = scene_read(scene.never, 0, 0);

	flush(the_iou);
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return NULL;
}

/* The op has completed, with its own result, when the cancel is sent. */
static const char *it_completes_before_its_cancel(void)
{
	iou_op_t *op = scene_read(scene.zero, 0, 0);

	flush(the_iou);
	WAIT_UNTIL((get_events(the_iou),
		    io_uring_cq_ready(iou_ring(the_iou)) > 0));
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return NULL;
}

/* The answer to the cancel says that the op is running. The op's CQE comes later. */
static const char *it_is_cancelled_in_io_wq(void)
{
	iou_op_t *op = scene_op();

	io_uring_prep_openat(op->sqe, AT_FDCWD, new_fifo("fifo"), O_RDONLY | O_CLOEXEC, 0);
	scene_queue(op, IOSQE_ASYNC);
	flush(the_iou);
	WAIT_UNTIL(n_io_wq_blocked() != 0);
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return NULL;
}

static const char *its_time_is_up(void)
{
	scene_read(scene.never, 0, MSEC);
	return NULL;
}

static const char *its_time_is_up_in_the_backlog(void)
{
	scene_read(scene.never, 0, 20 * MSEC);
	scene_read(scene.never, IOSQE_IO_DRAIN, MSEC);
	return NULL;
}

static const char *a_multishot_poll(void)
{
	iou_op_t *op = scene_op();

	io_uring_prep_poll_multishot(op->sqe, scene.event, POLLIN);
	scene_queue(op, 0);
	for (int i = 1; i <= 3; i++) {
		put(scene.event, &(uint64_t){1}, sizeof(uint64_t));
		POLL_UNTIL(the_iou, scene.endings[0].call.n == i);
	}
	ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return NULL;
}

static const char *a_multishot_receive(void)
{
	static char buffers[2][8];
	iou_op_t *op = new_op(the_iou);

	if (!have_op(the_iou, IORING_OP_PROVIDE_BUFFERS) || !kernel_at_least(6, 0))
		return iou_op_free(the_iou, op), "needs multishot recv (6.0)";
	io_uring_prep_provide_buffers(op->sqe, buffers, 8, 2, 5, 0);
	iou_op_queue(the_iou, op, on_nothing, NULL);
	op = scene_op();
	io_uring_prep_recv_multishot(op->sqe, scene.fds[0], NULL, 0, 0);
	op->sqe->buf_group = 5;
	scene_queue(op, IOSQE_BUFFER_SELECT);
	for (int i = 1; i <= 2; i++) {
		put(scene.fds[1], "x", 1);
		POLL_UNTIL(the_iou, scene.endings[0].call.n >= i);
	}
	put(scene.fds[1], "x", 1); /* no buffer is left (6.1 ends it before) */
	return NULL;
}

static const char *a_zero_copy_send(void)
{
	static char bytes[4096];
	iou_op_t *op;

	if (!have_op(the_iou, IORING_OP_SEND_ZC))
		return "needs IORING_OP_SEND_ZC (6.0)";
	op = scene_op();
	io_uring_prep_send_zc(op->sqe, scene.fds[1], bytes, sizeof(bytes), MSG_NOSIGNAL, 0);
	scene_queue(op, 0);
	return NULL;
}

#define ANY_RESULT 1000000

static const struct {
	const char *(*func)(void);
	int result; /* of the last callback */
	int n_more; /* callbacks before it, at least */
} ends[] = {
	{it_completes, 0, 0},
	{it_fails, -EBADF, 0},
	{it_is_cancelled_in_the_backlog, -ECANCELED, 0},
	{its_chain_is_too_long, -E2BIG, 0},
	{its_chain_fails, ANY_RESULT, 0},
	{it_is_cancelled_in_the_ring, -ECANCELED, 0},
	{it_completes_before_its_cancel, 1, 0},
	{it_is_cancelled_in_io_wq, -ECANCELED, 0},
	{its_time_is_up, -ETIME, 0},
	{its_time_is_up_in_the_backlog, -ETIME, 0},
	{a_multishot_poll, -ECANCELED, 3},
	{a_multishot_receive, -ENOBUFS, 2},
	{a_zero_copy_send, ANY_RESULT, 0},
};
#define N_ENDS ((int)(sizeof(ends) / sizeof(ends[0])))

/* _i: which end */
START_TEST(a_last_callback_finds_a_blank_sqe)
{
	const char *lacks;
	int pipe_fds[2];

	memset(&scene, 0, sizeof(scene));
	new_tcp_pair(scene.fds);
	new_pipe(pipe_fds);
	scene.never = pipe_fds[0];
	scene.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	scene.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	the_iou = new_iou(4);
	lacks = ends[_i].func();
	run(the_iou);
	for (int i = 0; i < scene.n; i++) {
		ending_t *ending = &scene.endings[i];

		ck_assert_int_eq(ending->call.n_last, 1);
		if (ends[_i].result != ANY_RESULT)
			ck_assert_int_eq(ending->call.result, ends[_i].result);
		ck_assert_int_ge(ending->call.n, ends[_i].n_more + 1);
		ck_assert_int_eq(ending->again.n, 1);
		ck_assert_int_eq(ending->again.result, 1);
	}
	close_pair(scene.fds);
	close_pair(pipe_fds);
	close(scene.zero);
	close(scene.event);
	done(the_iou);
	if (lacks)
		SKIP(lacks);
}
END_TEST

typedef struct opener_t {
	iou_op_t *op;
	int step, fd;
	char byte;
} opener_t;

static int on_opener(void *data);

/* Some steps set a field (open flags, poll events) that the next step's operation would take as its
 * own flags. */
static void opener_queue(opener_t *opener)
{
	struct io_uring_sqe *sqe = opener->op->sqe;

	switch (opener->step) {
	case 0:
		prep_sparingly(sqe, IORING_OP_OPENAT, AT_FDCWD, "/dev/zero", 0);
		sqe->open_flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
		break;
	case 1:
	case 3:
		prep_sparingly(sqe, IORING_OP_READ, opener->fd, &opener->byte, 1);
		break;
	case 2:
	case 4:
		prep_sparingly(sqe, IORING_OP_POLL_ADD, opener->fd, NULL, 0);
		sqe->poll_events = POLLIN | POLLPRI;
		break;
	case 5:
		prep_sparingly(sqe, IORING_OP_NOP, -1, NULL, 0);
		break;
	default:
		prep_sparingly(sqe, IORING_OP_CLOSE, opener->fd, NULL, 0);
	}
	iou_op_queue(the_iou, opener->op, on_opener, opener);
}

static int on_opener(void *data)
{
	static const int results[] = {-1, 1, POLLIN, 1, POLLIN, 0, 0};
	opener_t *opener = data;

	if (opener->step == 0)
		opener->fd = opener->op->result;
	else
		ck_assert_int_eq(opener->op->result, results[opener->step]);
	ck_assert_int_ge(opener->op->result, 0);
	if (++opener->step < 7)
		opener_queue(opener);
	return 0;
}

/* One op opens a file, reads, polls, and closes it. */
START_TEST(an_op_changes_its_operation)
{
	opener_t opener = {.step = 0};

	the_iou = new_iou(2);
	opener.op = new_op(the_iou);
	opener_queue(&opener);
	run(the_iou);
	ck_assert_int_eq(opener.step, 7);
	done(the_iou);
}
END_TEST

enum way { TIMED, TICKING, TIMER_CANCELLED, WORKED, JOB_CANCELLED, N_WAYS };

typedef struct kept_t {
	call_t call;
	struct io_uring_sqe prepared;
} kept_t;

static int on_kept(void *data)
{
	kept_t *kept = data;
	iou_op_t *op = kept->call.op;

	ck_assert(memcmp(op->sqe, &kept->prepared, sizeof(kept->prepared)) == 0);
	if (!(op->flags & IORING_CQE_F_MORE))
		call_queue(the_iou, &kept->call); /* as it was prepared before */
	else if (++kept->call.id == 3)
		ck_assert_int_eq(iou_op_cancel(the_iou, op), 0);
	return 0;
}

/* _i: the way. An op is prepared, goes by a timer or a job, and is queued as it was prepared. */
START_TEST(timers_and_jobs_leave_the_sqe_alone)
{
	iou_t *iou = the_iou = new_iou_with(&(iou_config_t){.workers = 1});
	char byte = 1;
	int fds[2];
	kept_t kept;
	gate_t gate;

	new_pipe(fds);
	put(fds[1], "x", 1);
	io_uring_prep_read(call_op(iou, &kept.call, 0), fds[0], &byte, 1, 0);
	kept.call.op->sqe->flags |= IOSQE_ASYNC;
	kept.prepared = *kept.call.op->sqe;
	gate_init(&gate);
	switch ((enum way)_i) {
	case TIMED:
	case TICKING:
		iou_op_timer(iou, kept.call.op, USEC, _i == TICKING ? USEC : 0, on_kept, &kept);
		break;
	case TIMER_CANCELLED:
		iou_op_timer(iou, kept.call.op, UINT64_MAX, 0, on_kept, &kept);
		ck_assert_int_eq(iou_op_cancel(iou, kept.call.op), 0);
		break;
	case WORKED:
		start_job(iou, kept.call.op, on_nothing, NULL, on_kept, &kept);
		break;
	default:
		block_workers(iou, &gate, 1);
		start_job(iou, kept.call.op, on_nothing, NULL, on_kept, &kept);
		ck_assert_int_eq(iou_op_cancel(iou, kept.call.op), 0);
		unblock_workers(&gate, 1);
	}
	run(iou);
	ck_assert_int_eq(kept.call.n, 1);
	ck_assert_int_eq(kept.call.result, 1);
	close_pair(fds);
	done(iou);
}
END_TEST

/* In its last callback the op is prepared, and not queued. */
static int on_left(void *data)
{
	call_t *call = data;

	memset(call->op->sqe, 0xee, sizeof(*call->op->sqe));
	if (call->id)
		iou_op_free(the_iou, call->op);
	return 0;
}

/* By each door, and given back by the callback's return or by iou_op_free(). */
START_TEST(an_op_that_was_prepared_in_vain_is_blank)
{
	the_iou = new_iou(2);
	for (int door = 0; door < N_DOORS; door++) {
		for (int id = 0; id < 2; id++) {
			call_t call;
			iou_op_t *op;

			call_op(the_iou, &call, id);
			if (door == RING)
				nop_queue(the_iou, call.op, on_left, &call);
			else if (door == WORKERS)
				start_job(the_iou, call.op, on_nothing, NULL, on_left, &call);
			else
				iou_op_timer(the_iou, call.op, 0, 0, on_left, &call);
			run(the_iou);
			op = new_op(the_iou);
			ck_assert_ptr_eq(op, call.op); /* the same one, for another owner */
			ck_assert(is_zero(op->sqe));
			iou_op_free(the_iou, op);
		}
	}
	done(the_iou);
}
END_TEST

/* ---- Keys ------------------------------------------------------------------------------------ */

static uint64_t key_of(const call_t *call)
{
	return (uintptr_t)call->op;
}

/* Queue the op, run it into the kernel, then let `other` name it by its key. */
START_TEST(a_poll_is_updated_by_its_key)
{
	iou_t *iou = new_iou(4);
	call_t call, other;
	int fds[2];

	new_pipe(fds);
	io_uring_prep_poll_add(call_op(iou, &call, 0), fds[0], POLLPRI);
	call_queue(iou, &call);
	flush(iou);
	io_uring_prep_poll_update(call_op(iou, &other, 1), key_of(&call), 0, POLLIN,
				  IORING_POLL_UPDATE_EVENTS);
	call_queue(iou, &other);
	POLL_UNTIL(iou, other.n);
	ck_assert_int_eq(other.result, 0);
	ck_assert_int_eq(call.n, 0);
	put(fds[1], "x", 1); /* (5.10 does not look for what is there already) */
	run(iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert_int_eq(call.result & POLLIN, POLLIN);

	io_uring_prep_poll_add(call_op(iou, &call, 0), fds[0], POLLPRI);
	call_queue(iou, &call);
	/* in the same submission */
	io_uring_prep_poll_remove(call_op(iou, &other, 1), key_of(&call));
	call_queue(iou, &other);
	run(iou);
	ck_assert_int_eq(other.result, 0);
	ck_assert_int_eq(call.result, -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(a_timeout_is_updated_by_its_key)
{
	struct __kernel_timespec far = kernel_time(1000 * SECOND), near = kernel_time(MSEC);
	iou_t *iou = new_iou(4);
	call_t call, other;

	io_uring_prep_timeout(call_op(iou, &call, 0), &far, 0, 0);
	call_queue(iou, &call);
	flush(iou);
	io_uring_prep_timeout_update(call_op(iou, &other, 1), &near, key_of(&call), 0);
	call_queue(iou, &other);
	run(iou);
	ck_assert_int_eq(other.result, 0);
	ck_assert_int_eq(call.result, -ETIME);

	io_uring_prep_timeout(call_op(iou, &call, 0), &far, 0, 0);
	call_queue(iou, &call);
	io_uring_prep_timeout_remove(call_op(iou, &other, 1), key_of(&call), 0);
	call_queue(iou, &other);
	run(iou);
	ck_assert_int_eq(other.result, 0);
	ck_assert_int_eq(call.result, -ECANCELED);
	done(iou);
}
END_TEST

START_TEST(an_op_is_cancelled_by_its_key)
{
	iou_t *iou = new_iou(4);
	call_t call, other;
	int fds[2];

	new_pipe(fds);
	for (int flushed = 0; flushed < 2; flushed++) {
		call_read(iou, &call, 0, fds[0]);
		if (flushed)
			flush(iou);
		io_uring_prep_cancel64(call_op(iou, &other, 1), key_of(&call), 0);
		call_queue(iou, &other);
		run(iou);
		ck_assert_int_eq(other.result, 0);
		ck_assert_int_eq(call.result, -ECANCELED);
		ck_assert_int_eq(call.n, 1);
	}
	close_pair(fds);
	done(iou);
}
END_TEST

/* ---- iou_add_sqe ----------------------------------------------------------------------------- */

typedef struct component_t {
	int fd;
	const void *data;
	size_t size;
	bool zeroed;        /* the sqe it got */
	int n, sum;
	uint8_t flags;      /* for the sqe */
	int ret;
	iou_handler_t handler;
} component_t;

static component_t *component_of(iou_handler_t *handler)
{
	return (component_t *)(void *)((char *)handler - offsetof(component_t, handler));
}

static void prep_component(struct io_uring_sqe *sqe, void *opaque)
{
	static const struct io_uring_sqe zero;
	component_t *component = opaque;

	component->zeroed = memcmp(sqe, &zero, sizeof(zero)) == 0;
	if (component->data)
		io_uring_prep_write(sqe, component->fd, component->data, (unsigned)component->size,
				    0);
	else
		io_uring_prep_poll_multishot(sqe, component->fd, POLLIN);
	sqe->flags |= component->flags;
}

static int on_component(iou_handler_t *handler)
{
	component_t *component = component_of(handler);

	component->n++;
	component->sum += handler->result;
	return component->ret;
}

START_TEST(add_sqe_prepares_at_once)
{
	iou_t *iou = new_iou(2);
	component_t component = {.data = "four", .size = 4, .handler.cb = on_component};
	iou_stats_t before = get_stats(iou);
	int fds[2];

	new_pipe(fds);
	component.fd = fds[1];
	component.flags = IOSQE_CQE_SKIP_SUCCESS; /* cleared, here too */
	ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, &component.handler), 0);
	ck_assert(component.zeroed);
	ck_assert_int_eq(component.n, 0);
	ck_assert_uint_eq(get_stats(iou).enters, before.enters);
	ck_assert(!is_readable(fds[0]));
	run(iou);
	ck_assert_int_eq(component.n, 1);
	ck_assert_int_eq(component.handler.result, 4);
	ck_assert_uint_eq(component.handler.flags, 0);

	component.ret = -77;
	component.fd = -1;
	ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, &component.handler), 0);
	ck_assert_int_eq(iou_run(iou), -77);
	ck_assert_int_eq(component.handler.result, -EBADF);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(add_sqe_refuses_null)
{
	component_t component = {.data = "", .size = 1, .fd = -1};
	iou_t *iou = new_iou(2);

	/* no cb */
	ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, &component.handler), -EINVAL);
	component.handler.cb = on_component;
	ck_assert_int_eq(iou_add_sqe(NULL, prep_component, &component, &component.handler),
			 -EINVAL);
	ck_assert_int_eq(iou_add_sqe(iou, NULL, &component, &component.handler), -EINVAL);
	ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, NULL), -EINVAL);
	ck_assert_uint_eq(n_pending(iou), 0);
	done(iou);
}
END_TEST

/* Refused for want of memory is not taken: as many callbacks as were. */
START_TEST(iou_add_sqe_tells_that_there_is_no_memory)
{
	component_t component = {.data = "", .size = 1, .fd = -1, .handler.cb = on_component};
	int n_taken = 0, ret = 0;
	iou_t *iou;

	if (is_watched())
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	iou = new_iou(2);
	starve();
	for (; n_taken < 100000; n_taken++) {
		ret = iou_add_sqe(iou, prep_component, &component, &component.handler);
		if (ret < 0)
			break;
	}
	feed();
	ck_assert_int_eq(ret, -ENOMEM);
	ck_assert_uint_eq(n_pending(iou), n_taken);
	run(iou);
	ck_assert_int_eq(component.n, n_taken);
	done(iou);
}
END_TEST

START_TEST(a_handler_is_called_for_each_cqe)
{
	component_t component = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
				 .handler.cb = on_component};
	iou_t *iou = new_iou(2);
	uint64_t one = 1;

	ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, &component.handler), 0);
	for (int i = 1; i <= 3; i++) {
		put(component.fd, &one, sizeof(one));
		POLL_UNTIL(iou, component.n == i);
		ck_assert_uint_eq(component.handler.flags & IORING_CQE_F_MORE, IORING_CQE_F_MORE);
		ck_assert_uint_eq(n_pending(iou), 1);
	}
	iou_cancel_all(iou);
	run(iou);
	ck_assert_int_eq(component.n, 4);
	ck_assert_int_eq(component.handler.result, -ECANCELED);
	ck_assert_uint_eq(component.handler.flags & IORING_CQE_F_MORE, 0);
	close(component.fd);
	done(iou);
}
END_TEST

static int on_handler_is_mine(iou_handler_t *handler)
{
	component_t *component = component_of(handler);
	int fd = component->fd;

	n_called += handler->result == 1;
	memset(component, 0xee, sizeof(*component));
	free(component); /* it had to live until here */
	if (--n_left > 0) {
		component = calloc(1, sizeof(*component));
		*component = (component_t){
			.fd = fd, .data = "x", .size = 1, .handler.cb = on_handler_is_mine};
		if (iou_add_sqe(the_iou, prep_component, component, &component->handler) < 0)
			return -ENOMEM;
	}
	return 0;
}

START_TEST(a_handler_lives_until_its_last_callback)
{
	component_t *component = calloc(1, sizeof(*component));
	int fds[2];

	new_pipe(fds);
	the_iou = new_iou(2);
	*component = (component_t){
		.fd = fds[1], .data = "x", .size = 1, .handler.cb = on_handler_is_mine};
	n_called = 0;
	n_left = 100;
	ck_assert_int_eq(iou_add_sqe(the_iou, prep_component, component, &component->handler), 0);
	run(the_iou);
	ck_assert_int_eq(n_called, 100);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* Handlers and ops stand in one line, and in one chain. */
START_TEST(handlers_keep_the_order_too)
{
	component_t component = {.data = "h", .size = 1, .handler.cb = on_component};
	iou_t *iou = new_iou(2);
	char got[10] = "";
	call_t call;
	int fds[2];

	new_socketpair(fds);
	component.fd = fds[1];
	for (int i = 0; i < 4; i++) {
		component.flags = i == 3 ? IOSQE_IO_LINK : 0;
		component.size = i == 3 ? 0 : 1; /* the last one fails, and breaks the chain */
		component.fd = i == 3 ? -1 : fds[1];
		ck_assert_int_eq(iou_add_sqe(iou, prep_component, &component, &component.handler),
				 0);
		io_uring_prep_write(call_op(iou, &call, i), fds[1], "o", 1, 0);
		call_queue(iou, &call);
		if (i != 3)
			flush(iou);
	}
	run(iou);
	ck_assert_int_eq(read(fds[0], got, sizeof(got)), 6);
	ck_assert_str_eq(got, "hohoho");
	ck_assert_int_eq(call.result, -ECANCELED);
	ck_assert_int_eq(component.n, 4);
	ck_assert_int_eq(component.sum, 3 - EBADF);
	close_pair(fds);
	done(iou);
}
END_TEST

Suite *ops_suite(void)
{
	Suite *suite = suite_create("ops");
	TCase *tcase;

	TEST_CASE(suite, "pool", a_new_op_is_blank, an_op_is_prepared_any_time_before_it_is_queued,
		  ops_go_back_to_the_pool, a_callback_frees_its_data,
		  an_op_is_valid_in_its_callback);
	TEST_CASE(suite, "queue", queueing_does_not_reach_the_kernel, flush_hands_the_backlog_over,
		  ops_keep_the_order_of_queueing, each_callback_queues_two,
		  a_taken_op_needs_no_memory, iou_op_new_tells_that_there_is_no_memory,
		  skipping_the_cqe_is_cleared);
	TEST_CASE(suite, "cqes", a_multishot_op_is_called_for_each_cqe,
		  a_multishot_op_ends_and_is_queued_again,
		  a_zero_copy_send_ends_with_its_notification);
	TEST_CASE(suite, "again", an_op_is_queued_again_in_any_way,
		  one_op_is_enough_for_a_whole_life);
	tcase = TEST_CASE(suite, "sqe", an_op_changes_its_operation,
			  an_op_that_was_prepared_in_vain_is_blank);
	tcase_add_loop_test(tcase, a_last_callback_finds_a_blank_sqe, 0, N_ENDS);
	tcase_add_loop_test(tcase, timers_and_jobs_leave_the_sqe_alone, 0, N_WAYS);
	TEST_CASE(suite, "keys", a_poll_is_updated_by_its_key, a_timeout_is_updated_by_its_key,
		  an_op_is_cancelled_by_its_key);
	TEST_CASE(suite, "add_sqe", add_sqe_prepares_at_once, add_sqe_refuses_null,
		  iou_add_sqe_tells_that_there_is_no_memory, a_handler_is_called_for_each_cqe,
		  a_handler_lives_until_its_last_callback, handlers_keep_the_order_too);
	return suite;
}
