/* SPDX-License-Identifier: MIT */

/* The ring under the ops: small SQs, more in flight than the CQ holds, registrations, what the
 * program's ops can do to the library's own. */

#include "helper.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

static iou_t *the_iou;
static pid_t loop_tid;

static void put(int fd, const void *data, size_t size)
{
	ck_assert_int_eq(write(fd, data, size), (int)size);
}

static unsigned cq_entries(iou_t *iou)
{
	return iou_ring(iou)->cq.ring_entries;
}

/* All in the order of their ids, each once, with that result. */
static void expect_all(const call_t *calls, int n, int result)
{
	ck_assert_int_eq(n_order, n);
	for (int i = 0; i < n; i++)
		if (calls[i].n != 1 || calls[i].result != result || order[i] != i)
			ck_abort_msg("call %d of %d: %d times, result %d, instead of it %d", i, n,
				     calls[i].n, calls[i].result, order[i]);
}

static void queue_nops(iou_t *iou, call_t *calls, int n)
{
	n_order = 0;
	for (int i = 0; i < n; i++) {
		io_uring_prep_nop(call_op(iou, &calls[i], i));
		call_queue(iou, &calls[i]);
	}
}

/* ---- A small SQ ------------------------------------------------------------------------------ */

START_TEST(ten_thousand_ops_through_a_small_sq)
{
	enum { N = 10000 };
	call_t *calls = calloc(N, sizeof(*calls));

	for (unsigned entries = 1; entries <= 4; entries *= 2) {
		iou_t *iou = new_iou(entries);

		for (int repeat = 0; repeat < 2; repeat++) {
			queue_nops(iou, calls, N);
			ck_assert_uint_eq(n_pending(iou), N);
			if (repeat)
				POLL_UNTIL(iou, n_order == N);
			else
				run(iou);
			expect_all(calls, N, 0);
		}
		ck_assert_uint_eq(get_stats(iou).completed, 2 * N);
		done(iou);
	}
	free(calls);
}
END_TEST

typedef struct turn_t {
	iou_op_t *op;
	int n;
} turn_t;

static int n_left;

static int on_turn(void *data)
{
	turn_t *turn = data;

	turn->n++;
	if (turn->op->result == 0 && n_left-- > 0)
		nop_queue(the_iou, turn->op, on_turn, turn);
	return turn->op->result;
}

/* A hundred ops, each queued again in its callback: none is left behind by the others. */
START_TEST(ops_take_turns_in_a_small_sq)
{
	enum { N = 100 };
	int n_each = is_slow() ? 200 : 2000;
	turn_t turns[N];

	the_iou = new_iou(2);
	n_left = N * (n_each - 1);
	for (int i = 0; i < N; i++) {
		turns[i] = (turn_t){.op = new_op(the_iou)};
		nop_queue(the_iou, turns[i].op, on_turn, &turns[i]);
	}
	run(the_iou);
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(turns[i].n, n_each);
	done(the_iou);
}
END_TEST

/* ---- A full CQ ------------------------------------------------------------------------------- */

/* Every kind of callback still comes, and quickly, while very many receives wait for ever. */
START_TEST(idle_receives_hold_up_nothing)
{
	enum { N = 2000 };
	call_t *calls = calloc(N, sizeof(*calls)), other;
	iou_t *iou = new_iou(2);
	int pipe_fds[2], socket_fds[2], n_ours = 0;
	uint64_t began_ns = now_ns();
	char byte;

	ck_assert_uint_lt(cq_entries(iou), N / 10);
	new_pipe(pipe_fds);
	new_socketpair(socket_fds);
	for (int i = 0; i < N; i++) {
		if (i % 2)
			io_uring_prep_recv(call_op(iou, &calls[i], i), socket_fds[0], &byte, 1, 0);
		else
			io_uring_prep_read(call_op(iou, &calls[i], i), pipe_fds[0], &byte, 1, 0);
		call_queue(iou, &calls[i]);
	}
	for (int i = 0; i < 50; i++) {
		other = (call_t){.id = N};
		start(iou, (kind_t[]){CQE, TIMER, JOB, POST, BH}[i % 5], on_call, &other);
		POLL_UNTIL(iou, other.n);
		n_ours++;
		put(pipe_fds[1], "x", 1);
		POLL_UNTIL(iou, n_order == n_ours + 1); /* one of the reads */
		n_ours++;
	}
	/* a poll that waits in vain does so for a second */
	ck_assert_uint_lt(now_ns() - began_ns, 20 * SECOND);
	ck_assert_uint_eq(n_pending(iou), N - 50);
	close(pipe_fds[1]);
	close(socket_fds[1]);
	run(iou); /* they all complete at once: many more than the CQ has room for */
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(calls[i].n, 1);
	free(calls);
	close(pipe_fds[0]);
	close(socket_fds[0]);
	done(iou);
}
END_TEST

/* Far more completions than the CQ holds, before anyone looks: each is delivered once, in order;
 * also by rounds that do not wait. */
START_TEST(an_overflow_loses_nothing)
{
	enum { N = 3000 };
	call_t *calls = calloc(N, sizeof(*calls));

	for (unsigned entries = 1; entries <= 64; entries *= 8) {
		iou_t *iou = new_iou(entries);

		queue_nops(iou, calls, N);
		flush(iou);
		ck_assert_int_eq(n_order, 0);
		run(iou);
		expect_all(calls, N, 0);

		queue_nops(iou, calls, N);
		flush(iou);
		while (n_order < N)
			if (iou_poll(iou, 0) <= 0)
				ck_abort_msg("%d are left", N - n_order);
		expect_all(calls, N, 0);

		queue_nops(iou, calls, N);
		flush(iou);
		/* they have completed: nothing to cancel, and no order to keep */
		iou_cancel_all(iou);
		run(iou);
		for (int i = 0; i < N; i++)
			order[i] = i;
		expect_all(calls, N, 0);
		done(iou);
	}
	free(calls);
}
END_TEST

static void *post_when_it_sleeps(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(the_iou, on_call, data);
	return NULL;
}

/* A post must wake a loop that sleeps in the kernel, well before its time is up. */
static void expect_wake_up(iou_t *iou)
{
	uint64_t began_ns = now_ns();
	call_t call = {0};
	pthread_t thread;

	the_iou = iou;
	loop_tid = gettid();
	iou_hold(iou);
	thread = start_thread(post_when_it_sleeps, &call);
	while (!call.n)
		ck_assert_int_ge(iou_poll(iou, (int64_t)(50 * SECOND)), 0);
	ck_assert_uint_lt(now_ns() - began_ns, 45 * SECOND);
	join_thread(thread);
	iou_unhold(iou);
}

/* As a waker would, but while the CQ is full. */
static void write_eventfds(void)
{
	char path[64], target[64];
	uint64_t one = 1;

	for (int fd = 3; fd < 32; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		memset(target, 0, sizeof(target));
		if (readlink(path, target, sizeof(target) - 1) > 0 &&
		    strcmp(target, "anon_inode:[eventfd]") == 0)
			put(fd, &one, sizeof(one));
	}
}

/* What the library keeps in the ring to be woken may be a multishot poll, which an overflow
 * ends. */
START_TEST(an_overflow_keeps_the_wake_up)
{
	enum { N = 500 };
	iou_t *iou = new_iou(1);
	call_t calls[N];
	uint64_t n_wakeups;

	for (int i = 0; i < 5; i++) {
		n_wakeups = get_stats(iou).wakeups;
		expect_wake_up(iou);
		ck_assert_uint_eq(get_stats(iou).wakeups, n_wakeups + 1);
		queue_nops(iou, calls, N);
		flush(iou);
		write_eventfds();
		run(iou);
		expect_all(calls, N, 0);
	}
	expect_wake_up(iou);
	done(iou);
}
END_TEST

typedef struct acceptor_t {
	iou_op_t *op;
	int listener, n_accepted, n_ended;
} acceptor_t;

static int on_accepted(void *data);

static void queue_accept(acceptor_t *acceptor)
{
	io_uring_prep_multishot_accept(acceptor->op->sqe, acceptor->listener, NULL, NULL,
				       SOCK_CLOEXEC);
	iou_op_queue(the_iou, acceptor->op, on_accepted, acceptor);
}

static int on_accepted(void *data)
{
	acceptor_t *acceptor = data;

	if (acceptor->op->result >= 0) {
		acceptor->n_accepted++;
		close(acceptor->op->result);
	} else if (acceptor->op->result != -ECANCELED) {
		return acceptor->op->result;
	}
	if (!(acceptor->op->flags & IORING_CQE_F_MORE)) {
		acceptor->n_ended++;
		if (acceptor->op->result >= 0) /* the CQ had no room for more */
			queue_accept(acceptor);
	}
	return 0;
}

/* A multishot accept that an overflow ends, with a connection as its last result, is queued again:
 * none is lost. */
START_TEST(an_overflow_ends_a_multishot_accept)
{
	enum { N = 60, N_NOPS = 64 };
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), clients[N];
	acceptor_t acceptor = {.listener = listener};
	call_t nops[N_NOPS];

	if (!kernel_at_least(5, 19)) {
		close(listener);
		SKIP("needs multishot accept (5.19)");
	}
	the_iou = new_iou(2);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&addr, len), 0);
	ck_assert_int_eq(listen(listener, N), 0);
	ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	acceptor.op = new_op(the_iou);
	queue_accept(&acceptor);
	flush(the_iou);
	queue_nops(the_iou, nops, N_NOPS);
	for (int i = 0; i < N; i++) {
		clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ck_assert_int_eq(connect(clients[i], (struct sockaddr *)&addr, len), 0);
		if (i % 10 == 0)
			flush(the_iou); /* fills the CQ */
	}
	POLL_UNTIL(the_iou, acceptor.n_accepted + acceptor.n_ended >= N && n_order == N_NOPS);
	POLL_UNTIL(the_iou, acceptor.n_accepted == N);
	ck_assert_int_eq(iou_op_cancel(the_iou, acceptor.op), 0);
	run(the_iou);
	ck_assert_int_eq(acceptor.n_accepted, N);
	ck_assert_int_ge(acceptor.n_ended, 1);
	for (int i = 0; i < N; i++)
		close(clients[i]);
	close(listener);
	done(the_iou);
}
END_TEST

/* ---- Registrations --------------------------------------------------------------------------- */

typedef struct registrar_t {
	call_t call;
	int fds[2];
	char buffer[16];
	int ret;
} registrar_t;

/* The ring is the program's to register on: all places of the tables are free. */
static void register_and_write(registrar_t *registrar)
{
	struct iovec iov = {registrar->buffer, sizeof(registrar->buffer)};
	struct io_uring_sqe *sqe;

	registrar->ret = iou_register(the_iou, IORING_REGISTER_FILES, registrar->fds, 2);
	if (registrar->ret == 0)
		registrar->ret = iou_register(the_iou, IORING_REGISTER_BUFFERS, &iov, 1);
	sqe = call_op(the_iou, &registrar->call, 0);
	io_uring_prep_write_fixed(sqe, 1, registrar->buffer, 5, 0, 0);
	sqe->flags = IOSQE_FIXED_FILE;
	call_queue(the_iou, &registrar->call);
}

static int on_register(void *data)
{
	register_and_write(data);
	return 0;
}

static int on_resize_and_register(void *data)
{
	registrar_t *registrar = data;

	registrar->ret = iou_resize(the_iou, 16);
	if (registrar->ret == 0)
		register_and_write(registrar);
	return 0;
}

static void expect_written(registrar_t *registrar)
{
	char got[8] = "";

	ck_assert_int_eq(registrar->ret, 0);
	ck_assert_int_eq(registrar->call.n, 1);
	ck_assert_int_eq(registrar->call.result, 5);
	ck_assert_int_eq(read(registrar->fds[0], got, sizeof(got)), 5);
	ck_assert_str_eq(got, "fixed");
}

START_TEST(files_and_buffers_are_registered)
{
	registrar_t registrar = {.buffer = "fixed"};

	new_pipe(registrar.fds);
	the_iou = new_iou(4);
	register_and_write(&registrar); /* before the first round */
	run(the_iou);
	expect_written(&registrar);
	ck_assert_int_eq(iou_resize(the_iou, 8), 0);
	register_and_write(&registrar); /* on the new ring */
	run(the_iou);
	expect_written(&registrar);
	for (kind_t kind = 0; kind < N_KINDS; kind++) { /* in each kind of callback */
		make_ready(the_iou, kind, on_resize_and_register, &registrar);
		run(the_iou);
		expect_written(&registrar);
		ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_FILES, NULL, 0), 0);
		ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
		make_ready(the_iou, kind, on_register, &registrar);
		run(the_iou);
		expect_written(&registrar);
	}
	expect_wake_up(the_iou);
	close_pair(registrar.fds);
	done(the_iou);
}
END_TEST

/* With every resource registered and unregistered the library's own wake-up works on. */
START_TEST(limits_of_io_wq_are_registered)
{
	iou_t *iou = new_iou(4);
	unsigned limits[2] = {1, 1};
	call_t call;

	if (!kernel_at_least(5, 15)) {
		done(iou);
		SKIP("needs IORING_REGISTER_IOWQ_MAX_WORKERS (5.15)");
	}
	flush(iou);
	ck_assert_int_eq(iou_register(iou, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
	io_uring_prep_nop(call_op(iou, &call, 0));
	call.op->sqe->flags = IOSQE_ASYNC;
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_eq(call.result, 0);
	limits[0] = limits[1] = 0;
	ck_assert_int_eq(iou_register(iou, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
	ck_assert_uint_eq(limits[0], 1);
	expect_wake_up(iou);
	done(iou);
}
END_TEST

/* ---- Resize ---------------------------------------------------------------------------------- */

static void queue_chain(iou_t *iou, call_t *calls, int n)
{
	n_order = 0;
	for (int i = 0; i < n; i++) {
		io_uring_prep_nop(call_op(iou, &calls[i], i));
		calls[i].op->sqe->flags = i < n - 1 ? IOSQE_IO_LINK : 0;
		call_queue(iou, &calls[i]);
	}
}

/* A chain in the backlog is measured against the SQ that it is to enter. */
START_TEST(a_chain_is_queued_across_a_resize)
{
	iou_t *iou = new_iou(4);
	call_t calls[6];

	queue_chain(iou, calls, 6);
	ck_assert_int_eq(iou_resize(iou, 8), 0);
	run(iou);
	expect_all(calls, 6, 0);
	queue_chain(iou, calls, 6);
	ck_assert_int_eq(iou_resize(iou, 4), 0);
	run(iou);
	expect_all(calls, 6, -E2BIG);
	done(iou);
}
END_TEST

/* In flight is whatever the kernel still has to do with: a cancelled op, a multishot op between its
 * CQEs. */
START_TEST(resize_waits_for_the_last_cqe)
{
	iou_t *iou = new_iou(4);
	call_t call, other;
	int fds[2], ret;

	new_pipe(fds);
	call_read(iou, &call, 0, fds[0]);
	ck_assert_int_eq(iou_resize(iou, 2), 0); /* queued only */
	flush(iou);
	ck_assert_int_eq(iou_resize(iou, 8), -EBUSY);
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	ck_assert_int_eq(iou_resize(iou, 8), -EBUSY);
	while (!call.n) {
		ret = iou_poll(iou, 0);
		ck_assert_int_ge(ret, 0);
		ck_assert_int_eq(iou_resize(iou, 8), call.n ? 0 : -EBUSY);
	}
	ck_assert_int_eq(call.result, -ECANCELED);

	io_uring_prep_poll_multishot(call_op(iou, &call, 0), fds[0], POLLIN);
	call_queue(iou, &call);
	put(fds[1], "x", 1);
	POLL_UNTIL(iou, call.n);
	ck_assert_int_eq(iou_resize(iou, 2), -EBUSY);
	io_uring_prep_nop(call_op(iou, &other, 1)); /* which goes on as before */
	call_queue(iou, &other);
	put(fds[1], "x", 1);
	POLL_UNTIL(iou, call.n == 2 && other.n == 1);
	ck_assert_int_eq(iou_op_cancel(iou, call.op), 0);
	run(iou);
	ck_assert_int_eq(iou_resize(iou, 2), 0);
	close_pair(fds);
	done(iou);
}
END_TEST

/* Long lists of queued ops survive many changes, in order. */
START_TEST(a_ring_is_resized_again_and_again)
{
	enum { N = 1000 };
	call_t *calls = calloc(N, sizeof(*calls));
	iou_t *iou = new_iou(2);

	for (int round = 0; round < 5; round++) {
		queue_nops(iou, calls, N);
		for (unsigned entries = 1; entries <= 128; entries *= 2)
			ck_assert_int_eq(iou_resize(iou, entries), 0);
		run(iou);
		expect_all(calls, N, 0);
		expect_wake_up(iou);
	}
	free(calls);
	done(iou);
}
END_TEST

/* ---- What no one expects --------------------------------------------------------------------- */

/* The kernel refuses it; its neighbours in the submission go on, wherever it stands. */
START_TEST(an_unknown_opcode_fails_alone)
{
	enum { N = 8 };
	call_t calls[N];

	for (int bad = 0; bad < N; bad++) {
		iou_t *iou = new_iou(bad % 2 ? 4 : 16);

		for (int i = 0; i < N; i++) {
			io_uring_prep_nop(call_op(iou, &calls[i], i));
			if (i == bad || i == N - 1)
				calls[i].op->sqe->opcode = 255;
			call_queue(iou, &calls[i]);
		}
		if (bad % 3)
			flush(iou);
		ck_assert_uint_le(get_stats(iou).backlog, bad % 3 ? 0 : N);
		run(iou);
		for (int i = 0; i < N; i++) {
			ck_assert_int_eq(calls[i].n, 1);
			ck_assert_int_eq(calls[i].result, i == bad || i == N - 1 ? -EINVAL : 0);
		}
		done(iou);
	}
}
END_TEST

#ifndef IORING_ASYNC_CANCEL_ANY
#define IORING_ASYNC_CANCEL_ANY (1U << 2)
#endif

/* An op of the program's cancels everything in the ring: its own, and what the library keeps
 * there. */
START_TEST(cancel_any_spares_the_wake_up)
{
	iou_t *iou = new_iou(4);
	call_t read, any, timer;
	int fds[2];

	if (!kernel_at_least(5, 19)) {
		done(iou);
		SKIP("needs IORING_ASYNC_CANCEL_ANY (5.19)");
	}
	new_pipe(fds);
	for (int i = 0; i < 5; i++) {
		expect_wake_up(iou);
		call_read(iou, &read, 0, fds[0]);
		call_op(iou, &timer, 1);
		iou_op_timer(iou, timer.op, 20 * MSEC, 0, on_call, &timer);
		flush(iou);
		io_uring_prep_cancel64(call_op(iou, &any, 2), 0,
				       IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
		call_queue(iou, &any);
		run(iou);
		ck_assert_int_eq(any.n, 1);
		ck_assert_int_ge(any.result, 0);
		ck_assert_int_eq(read.n, 1);
		ck_assert_int_eq(read.result, -ECANCELED);
		ck_assert_int_eq(timer.result, 1); /* no op of the ring */
	}
	expect_wake_up(iou);
	close_pair(fds);
	done(iou);
}
END_TEST

/* A CQE that is nobody's, as some kernels make by mistake: nothing happens. */
START_TEST(a_stray_cqe_is_nothing)
{
	iou_t *iou = new_iou(4);
	struct io_uring other;
	struct io_uring_cqe *cqe;
	call_t call;

	if (!have_op(iou, IORING_OP_MSG_RING)) {
		done(iou);
		SKIP("needs IORING_OP_MSG_RING (5.18)");
	}
	flush(iou);
	ck_assert_int_eq(io_uring_queue_init(4, &other, 0), 0);
	for (int i = 0; i < 3; i++) {
		io_uring_prep_msg_ring(io_uring_get_sqe(&other), iou_ring(iou)->ring_fd, 77, 0, 0);
		ck_assert_int_eq(io_uring_submit_and_wait(&other, 1), 1);
		ck_assert_int_eq(io_uring_wait_cqe(&other, &cqe), 0);
		ck_assert_int_eq(cqe->res, 0);
		io_uring_cqe_seen(&other, cqe);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		io_uring_prep_nop(call_op(iou, &call, 0));
		call_queue(iou, &call);
		run(iou);
		ck_assert_int_eq(call.n, 1);
	}
	io_uring_queue_exit(&other);
	expect_wake_up(iou);
	done(iou);
}
END_TEST

static unsigned n_unreaped[8]; /* in the CQ, at each callback */

static int on_look(void *data)
{
	*(unsigned *)data = io_uring_cq_ready(iou_ring(the_iou));
	return 0;
}

/* The kernel is told what was reaped: when all was; and with each CQE, where it may post others
 * meanwhile. */
START_TEST(places_in_the_cq_are_given_back)
{
	static const unsigned flags[] = {0, IORING_SETUP_CLAMP};

	for (int i = 0; i < 2; i++) {
		the_iou = NEW_IOU_OF(8, flags[i]);
		for (int k = 0; k < 8; k++) {
			iou_op_t *op = iou_op_new(the_iou);

			io_uring_prep_nop(op->sqe);
			iou_op_queue(the_iou, op, on_look, &n_unreaped[k]);
		}
		ck_assert_int_eq(iou_run(the_iou), 0);
		ck_assert_uint_eq(io_uring_cq_ready(iou_ring(the_iou)), 0);
		if (flags[i] && !on_fallback())
			ck_assert_uint_eq(n_unreaped[7], 1);
		done(the_iou);
	}
}
END_TEST

static int on_wait(void *data)
{
	uint64_t enters = get_stats(the_iou).enters;

	ck_assert_int_eq(iou_poll(the_iou, 20 * MSEC), 0);
	*(uint64_t *)data = get_stats(the_iou).enters - enters;
	return 0;
}

/* What the outer round has reaped does not keep the inner one awake. */
START_TEST(an_inner_poll_sleeps)
{
	iou_op_t *nop;
	uint64_t n_enters = 0;

	the_iou = new_iou(8);
	nop = iou_op_new(the_iou);
	iou_hold(the_iou); /* something is pending */
	io_uring_prep_nop(nop->sqe);
	iou_op_queue(the_iou, nop, on_wait, &n_enters);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	ck_assert_uint_eq(n_enters, 1);
	iou_unhold(the_iou);
	done(the_iou);
}
END_TEST

/* Without SUBMIT_ALL the kernel stops at an SQE that it refuses; the round does not. */
START_TEST(a_round_submits_all_that_is_queued)
{
	iou_config_t config = {.entries = 8, .setup_flags = IORING_SETUP_CLAMP};
	iou_t *iou = new_iou_with(&config);
	call_t calls[4];

	for (int i = 0; i < 4; i++) {
		io_uring_prep_nop(call_op(iou, &calls[i], i));
		if (i == 0)
			calls[i].op->sqe->opcode = 255;
		call_queue(iou, &calls[i]);
	}
	ck_assert_int_eq(iou_poll(iou, 0), 4);
	ck_assert_int_eq(calls[0].result, -EINVAL);
	ck_assert_int_eq(calls[3].result, 0);
	done(iou);
}
END_TEST

Suite *ring_suite(void)
{
	Suite *suite = suite_create("ring");

	TEST_CASE(suite, "sq", ten_thousand_ops_through_a_small_sq, ops_take_turns_in_a_small_sq,
		  a_round_submits_all_that_is_queued);
	TEST_CASE(suite, "cq", idle_receives_hold_up_nothing, an_overflow_loses_nothing,
		  an_overflow_keeps_the_wake_up, an_overflow_ends_a_multishot_accept,
		  places_in_the_cq_are_given_back, an_inner_poll_sleeps);
	TEST_CASE(suite, "register", files_and_buffers_are_registered,
		  limits_of_io_wq_are_registered);
	TEST_CASE(suite, "resize", a_chain_is_queued_across_a_resize, resize_waits_for_the_last_cqe,
		  a_ring_is_resized_again_and_again);
	TEST_CASE(suite, "odd", an_unknown_opcode_fails_alone, cancel_any_spares_the_wake_up,
		  a_stray_cqe_is_nothing);
	return suite;
}
