/* SPDX-License-Identifier: MIT */

/* Loops inside callbacks: what the inner one delivers, when it sleeps, what it leaves to the outer
 * one. */

#include "helper.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define N_EACH 2
#define N_ITEMS (N_EACH * N_KINDS)

static iou_t *the_iou;
static call_t items[N_ITEMS];
static int nested_ret;

/* Two of each kind, in the order in which a round delivers them; the k-th is called by cb. */
static void make_items(int k, int (*cb)(void *data))
{
	the_iou = new_iou(8);
	n_order = 0;
	for (int i = 0; i < N_ITEMS; i++) {
		items[i] = (call_t){.id = i};
		make_ready(the_iou, (kind_t)(i / N_EACH), i == k ? cb : on_call, &items[i]);
	}
}

static void check_items(void)
{
	ck_assert_int_eq(n_order, N_ITEMS);
	for (int i = 0; i < N_ITEMS; i++)
		ck_assert_int_eq(order[i], i);
	done(the_iou);
}

static int on_poll_inside(void *data)
{
	uint64_t began_ns = now_ns();
	int n_left;

	on_call(data);
	n_left = N_ITEMS - n_order;
	ck_assert_int_eq(iou_poll(the_iou, (int64_t)(20 * SECOND)), n_left);
	ck_assert_uint_lt(now_ns() - began_ns, 15 * SECOND);
	ck_assert_int_eq(n_order, N_ITEMS);
	/* the caller's own op is not pending any more */
	ck_assert_int_eq(iou_poll(the_iou, -1), 0);
	return 0;
}

/* The k-th callback of a round polls: it gets the rest of the round, in order, without sleeping. */
START_TEST(inner_poll_delivers_the_rest)
{
	for (int k = 0; k < N_ITEMS; k++) {
		make_items(k, on_poll_inside);
		ck_assert_int_eq(iou_poll(the_iou, -1), k + 1); /* the inner ones are not counted */
		check_items();
	}
}
END_TEST

static int on_run_inside(void *data)
{
	on_call(data);
	run(the_iou);
	ck_assert_int_eq(n_order, N_ITEMS);
	return 0;
}

START_TEST(inner_run_delivers_the_rest)
{
	for (int k = 0; k < N_ITEMS; k++) {
		make_items(k, on_run_inside);
		run(the_iou);
		check_items();
	}
}
END_TEST

static int on_error_inside(void *data)
{
	on_call(data);
	items[n_order].ret = -77; /* the next one reports an error */
	ck_assert_int_eq(iou_run(the_iou), -77);
	return nested_ret;
}

/* An error ends the innermost loop alone; what was left comes in the outer one, or in the next
 * run. */
START_TEST(inner_errors_end_the_inner_loop)
{
	for (int k = 0; k < N_ITEMS - 1; k++) {
		nested_ret = k % 2 ? 0 : -78;
		make_items(k, on_error_inside);
		ck_assert_int_eq(iou_run(the_iou), nested_ret);
		ck_assert_int_eq(n_order, k % 2 ? N_ITEMS : k + 2);
		run(the_iou);
		check_items();
	}
}
END_TEST

/* ---- Quit ------------------------------------------------------------------------------------ */

static int on_quit(void *data)
{
	iou_quit(the_iou);
	return on_call(data);
}

static int on_run_and_quit_inside(void *data)
{
	on_call(data);
	make_ready(the_iou, POST, on_quit, &items[0]);
	make_ready(the_iou, POST, on_call, &items[1]);
	ck_assert_int_eq(iou_run(the_iou), 0);
	ck_assert_int_eq(iou_run(the_iou), 0); /* not spent before the outermost returns */
	ck_assert_int_eq(items[1].n, 0);
	return 0;
}

START_TEST(quit_ends_all_active_runs)
{
	call_t call = {0}, later = {0};

	the_iou = new_iou(8);
	memset(items, 0, sizeof(items));
	make_ready(the_iou, TIMER, on_run_and_quit_inside, &call);
	make_ready(the_iou, CQE, on_call, &later);
	run(the_iou);
	ck_assert_int_eq(items[0].n, 1);
	ck_assert_int_eq(items[1].n + later.n, 0);
	run(the_iou);
	ck_assert_int_eq(items[1].n, 1);
	ck_assert_int_eq(later.n, 1);
	done(the_iou);
}
END_TEST

static int on_quit_and_poll(void *data)
{
	iou_quit(the_iou);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	return on_call(data);
}

/* A poll inside goes on after quit, and does not eat it. */
START_TEST(inner_poll_leaves_quit_to_the_run)
{
	call_t call = {0}, rest = {0}, later = {0};

	the_iou = new_iou(8);
	make_ready(the_iou, TIMER, on_quit_and_poll, &call);
	make_ready(the_iou, POST, on_call, &rest);
	iou_hold(the_iou); /* without the quit, the run would not end */
	run(the_iou);
	ck_assert_int_eq(rest.n, 1);
	make_ready(the_iou, POST, on_call, &later);
	iou_unhold(the_iou);
	run(the_iou);
	ck_assert_int_eq(later.n, 1);
	done(the_iou);
}
END_TEST

static int on_run_in_poll(void *data)
{
	call_t *call = data, inner = {0};

	make_ready(the_iou, POST, on_quit, &inner);
	iou_hold(the_iou);
	run(the_iou); /* the only run: it spends the quit */
	iou_unhold(the_iou);
	make_ready(the_iou, CQE, on_call, &inner);
	run(the_iou);
	ck_assert_int_eq(inner.n, 2);
	return on_call(call);
}

START_TEST(a_run_inside_a_poll_spends_its_quit)
{
	call_t call = {0};

	the_iou = new_iou(8);
	make_ready(the_iou, JOB, on_run_in_poll, &call);
	ck_assert_int_eq(iou_poll(the_iou, -1), 1);
	done(the_iou);
}
END_TEST

/* ---- Depth ----------------------------------------------------------------------------------- */

#define DEPTH 48

static int depth, n_returned, first_kind;

static int on_deeper(void *data)
{
	int mine = ++depth;

	ck_assert_ptr_eq(iou_current(), the_iou);
	if (mine < DEPTH) {
		make_ready(the_iou, (kind_t)((first_kind + mine) % N_KINDS), on_deeper, data);
		if (mine % 3 == 0)
			run(the_iou);
		else
			while (n_returned < DEPTH - mine)
				ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	}
	ck_assert_ptr_eq(iou_current(), the_iou);
	ck_assert_int_eq(++n_returned, DEPTH - mine + 1); /* those inside have all come back */
	return 0;
}

/* _i: the kind to begin with. Each level's callback starts another kind and waits for it. */
START_TEST(loops_nest_in_callbacks_deeply)
{
	the_iou = new_iou(8);
	depth = n_returned = 0;
	first_kind = _i;
	make_ready(the_iou, (kind_t)_i, on_deeper, NULL);
	run(the_iou);
	ck_assert_int_eq(depth, DEPTH);
	ck_assert_int_eq(n_returned, DEPTH);
	ck_assert_ptr_null(iou_current());
	done(the_iou);
}
END_TEST

static iou_bh_t *nest_bh;

static int on_same_kind(void *data);

static void start_same_kind(kind_t kind)
{
	if (kind == BH)
		iou_bh_schedule(nest_bh);
	else if (kind == JOB)
		/* not ready: the inner loop has to sleep */
		start(the_iou, kind, on_same_kind, NULL);
	else
		make_ready(the_iou, kind, on_same_kind, NULL);
}

static int on_same_kind(void *data)
{
	int mine = ++depth;

	(void)data;
	if (mine < 20) {
		start_same_kind((kind_t)first_kind);
		while (depth == mine)
			ck_assert_int_ge(iou_poll(the_iou, (int64_t)SECOND), 0);
	}
	n_returned++;
	return 0;
}

/* _i: the kind, all the way: QEMU's nested bottom halves among them. */
START_TEST(callbacks_of_each_kind_nest_in_themselves)
{
	the_iou = new_iou(8);
	depth = n_returned = 0;
	first_kind = _i;
	nest_bh = new_bh(the_iou, on_same_kind, NULL);
	start_same_kind((kind_t)_i);
	run(the_iou);
	ck_assert_int_eq(depth, 20);
	ck_assert_int_eq(n_returned, 20);
	done(the_iou);
}
END_TEST

/* ---- One op, callbacks within its callbacks -------------------------------------------------- */

typedef struct multi_t {
	iou_op_t *op;
	int fd, n, n_inside;
	char *env;
} multi_t;

/* Each callback of the multishot op waits for the next, the last included: the op must outlive
 * all. */
static int on_multishot(void *data)
{
	multi_t *multi = data;
	uint64_t one = 1;
	int mine = ++multi->n;

	ck_assert_int_eq(multi->n_inside++, mine - 1);
	if (mine < 5) {
		ck_assert(multi->op->flags & IORING_CQE_F_MORE);
		ck_assert_int_eq(write(multi->fd, &one, sizeof(one)), sizeof(one));
	} else if (mine == 5) {
		ck_assert_int_eq(iou_op_cancel(the_iou, multi->op), 0);
	} else {
		ck_assert(!(multi->op->flags & IORING_CQE_F_MORE));
		ck_assert_int_eq(multi->op->result, -ECANCELED);
	}
	while (multi->n == mine && mine < 6)
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	/* What others take meanwhile must not be this op. */
	for (int i = 0; i < 10; i++) {
		iou_op_t *other = new_op(the_iou);

		ck_assert_ptr_ne(other, multi->op);
		ck_assert_ptr_nonnull(iou_op_env(other, 64));
		iou_op_free(the_iou, other);
	}
	ck_assert_str_eq(multi->env, "mine");
	ck_assert_ptr_eq(iou_op_of(multi->env), multi->op);
	multi->n_inside--;
	return 0;
}

START_TEST(callbacks_of_one_op_nest)
{
	multi_t multi = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	uint64_t one = 1;

	the_iou = new_iou(8);
	multi.op = new_op(the_iou);
	multi.env = iou_op_env(multi.op, 64);
	ck_assert_ptr_nonnull(multi.env);
	memcpy(multi.env, "mine", 5);
	io_uring_prep_poll_multishot(multi.op->sqe, multi.fd, POLLIN);
	iou_op_queue(the_iou, multi.op, on_multishot, &multi);
	flush(the_iou);
	ck_assert_int_eq(write(multi.fd, &one, sizeof(one)), sizeof(one));
	run(the_iou);
	ck_assert_int_eq(multi.n, 6);
	ck_assert_int_eq(multi.n_inside, 0);
	close(multi.fd);
	done(the_iou);
}
END_TEST

typedef struct tick_t {
	iou_op_t *op;
	int n;
} tick_t;

static int on_tick(void *data)
{
	tick_t *tick = data;
	int mine = ++tick->n;

	if (mine == 4)
		iou_op_timer(the_iou, tick->op, MSEC, 0, on_tick, tick); /* the next is the last */
	while (mine < 5 && tick->n == mine)
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	ck_assert_int_eq(tick->n, 5);
	ck_assert_ptr_ne(tick->op, NULL);
	return 0;
}

START_TEST(a_periodic_timer_ticks_in_its_own_callback)
{
	tick_t tick = {0};

	the_iou = new_iou(8);
	tick.op = new_op(the_iou);
	iou_op_timer(the_iou, tick.op, MSEC, MSEC, on_tick, &tick);
	run(the_iou);
	ck_assert_int_eq(tick.n, 5);
	done(the_iou);
}
END_TEST

static int on_requeue_after_nesting(void *data)
{
	tick_t *tick = data;
	call_t inner = {0};

	if (++tick->n == 20)
		return 0;
	start(the_iou, (kind_t)(tick->n % 4), on_call, &inner);
	while (!inner.n)
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	ck_assert_uint_eq(n_pending(the_iou), 0);
	nop_queue(the_iou, tick->op, on_requeue_after_nesting, tick);
	if (tick->n % 2)
		run(the_iou); /* the op's next callback comes within this one */
	return 0;
}

START_TEST(an_op_is_queued_again_around_a_loop)
{
	tick_t tick = {0};

	the_iou = new_iou(8);
	tick.op = new_op(the_iou);
	nop_queue(the_iou, tick.op, on_requeue_after_nesting, &tick);
	run(the_iou);
	ck_assert_int_eq(tick.n, 20);
	done(the_iou);
}
END_TEST

/* In its last callback the op is queued again, by each door in turn, and its next callback runs
 * within this one. It is given back when the outermost returns, not before. */
static int on_next_door(void *data)
{
	multi_t *multi = data;
	int mine = ++multi->n;

	if (mine == 13)
		return 0;
	if (mine % 3 == 0)
		nop_queue(the_iou, multi->op, on_next_door, multi);
	else if (mine % 3 == 1)
		start_job(the_iou, multi->op, on_nothing, NULL, on_next_door, multi);
	else
		iou_op_timer(the_iou, multi->op, 0, 0, on_next_door, multi);
	while (multi->n == mine)
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
	for (int i = 0; i < 10; i++) {
		iou_op_t *other = new_op(the_iou);

		ck_assert_ptr_ne(other, multi->op);
		iou_op_free(the_iou, other);
	}
	ck_assert_str_eq(multi->env, "mine");
	return 0;
}

START_TEST(an_op_is_queued_again_and_ends_inside_its_callback)
{
	multi_t multi = {.n = 0};

	the_iou = new_iou(8);
	multi.op = new_op(the_iou);
	multi.env = iou_op_env(multi.op, 64);
	ck_assert_ptr_nonnull(multi.env);
	memcpy(multi.env, "mine", 5);
	nop_queue(the_iou, multi.op, on_next_door, &multi);
	run(the_iou);
	ck_assert_int_eq(multi.n, 13);
	done(the_iou);
}
END_TEST

/* ---- What an op's callback finds is its own, whatever comes inside it ------------------------ */

/* How a callback waits for what is to come inside it. */
enum wait { BY_POLL, BY_TIMED_POLL, BY_LOOKING, BY_RUN, N_WAITS };

/* An op whose callbacks nest: what each of them found is looked at again and again until it
 * returns. */
typedef struct own_t {
	iou_op_t *op;
	enum wait wait;
	int n;              /* callbacks so far */
	int fds[2];
	int doors[3];       /* by which it goes, level by level */
	int results[8];     /* what each level found */
	unsigned flags[8];
	char bytes[4];
} own_t;

/* A job whose result is the byte, which it takes. */
static int on_byte(void *byte)
{
	return __atomic_exchange_n((char *)byte, 0, __ATOMIC_ACQ_REL);
}

static void check_own(const own_t *own, int level)
{
	ck_assert_int_eq(own->op->result, own->results[level]);
	ck_assert_uint_eq(own->op->flags, own->flags[level]);
}

/* Once per callback, first of all. Returns its level. */
static int own_begin(own_t *own)
{
	int level = own->n++;

	ck_assert_int_lt(level, 8);
	own->results[level] = own->op->result;
	own->flags[level] = own->op->flags;
	return level;
}

/* The next callback of the op comes, and with it all that are inside that one. */
static void own_wait(own_t *own, int level)
{
	check_own(own, level);
	while (own->n == level + 1) {
		if (own->wait == BY_RUN)
			run(the_iou);
		else
			ck_assert_int_ge(iou_poll(the_iou, own->wait == BY_POLL ? -1
							   : own->wait == BY_LOOKING
								   ? 0
								   : (int64_t)(20 * SECOND)),
					 0);
		check_own(own, level);
	}
}

/* From a multishot poll to a job, a timer, the ring, the backlog: all ends in the innermost of
 * seven callbacks. */
static int on_own_step(void *data)
{
	own_t *own = data;
	int level = own_begin(own);

	switch (level) {
	case 0: /* more, then another event */
		ck_assert_int_eq(shutdown(own->fds[1], SHUT_WR), 0);
		break;
	case 1: /* more, then the last */
		ck_assert_int_eq(iou_op_cancel(the_iou, own->op), 0);
		break;
	case 2:
		ck_assert_uint_eq(own->flags[level], 0);
		ck_assert_int_eq(own->results[level], -ECANCELED);
		own->bytes[0] = 42;
		start_job(the_iou, own->op, on_byte, own->bytes, on_own_step, own);
		break;
	case 3:
		ck_assert_int_eq(own->results[level], 42);
		iou_op_timer(the_iou, own->op, 0, 0, on_own_step, own);
		break;
	case 4:
		ck_assert_int_eq(own->results[level], 1);
		io_uring_prep_write(own->op->sqe, own->fds[0], own->bytes, 4, 0);
		iou_op_queue(the_iou, own->op, on_own_step, own);
		break;
	case 5: /* ends in iou itself */
		ck_assert_int_eq(own->results[level], 4);
		nop_queue(the_iou, own->op, on_own_step, own);
		ck_assert_int_eq(iou_op_cancel(the_iou, own->op), 0);
		break;
	default:
		ck_assert_int_eq(own->results[level], -ECANCELED);
		return 0;
	}
	own_wait(own, level);
	return 0;
}

/* _i: how they wait. */
START_TEST(each_callback_keeps_its_result)
{
	own_t own = {.wait = (enum wait)_i};

	the_iou = new_iou(8);
	new_socketpair(own.fds);
	own.op = new_op(the_iou);
	io_uring_prep_poll_multishot(own.op->sqe, own.fds[0], POLLIN | POLLRDHUP);
	iou_op_queue(the_iou, own.op, on_own_step, &own);
	flush(the_iou);
	ck_assert_int_eq(write(own.fds[1], "x", 1), 1);
	run(the_iou);
	ck_assert_int_eq(own.n, 7);
	ck_assert_uint_eq(own.flags[0] & own.flags[1], IORING_CQE_F_MORE);
	ck_assert_int_eq(own.results[0], POLLIN);
	ck_assert_int_eq(own.results[1], POLLIN | POLLRDHUP);
	close_pair(own.fds);
	done(the_iou);
}
END_TEST

enum { RING_DOOR, JOB_DOOR, TIMER_DOOR, N_DOORS };

static int on_doors(void *data);

/* The results of the three doors differ: 3, 77 and 1. */
static void go_by(own_t *own, int door)
{
	if (door == RING_DOOR) {
		ck_assert_int_eq(write(own->fds[1], "abc", 3), 3);
		io_uring_prep_read(own->op->sqe, own->fds[0], own->bytes, 3, 0);
		iou_op_queue(the_iou, own->op, on_doors, own);
	} else if (door == JOB_DOOR) {
		own->bytes[3] = 77;
		start_job(the_iou, own->op, on_byte, &own->bytes[3], on_doors, own);
	} else {
		iou_op_timer(the_iou, own->op, 0, 0, on_doors, own);
	}
}

static int on_doors(void *data)
{
	static const int results[] = {[RING_DOOR] = 3, [JOB_DOOR] = 77, [TIMER_DOOR] = 1};
	own_t *own = data;
	int level = own_begin(own);

	ck_assert_int_eq(own->results[level], results[own->doors[level]]);
	if (level < 2) {
		go_by(own, own->doors[level + 1]);
		own_wait(own, level);
	} else if (own->wait == BY_RUN) {
		/* is the outermost's to give back: it takes effect then */
		iou_op_free(the_iou, own->op);
	}
	return 0;
}

/* An op that ends by one door, is queued again by another and ends in its own callback, and that
 * once more. _i: how they wait. */
START_TEST(each_kind_of_callback_leaves_the_outer_result)
{
	the_iou = new_iou(8);
	for (int i = 0; i < N_DOORS * N_DOORS * N_DOORS; i++) {
		own_t own = {.wait = (enum wait)_i, .doors = {i / 9, i / 3 % 3, i % 3}};

		new_pipe(own.fds);
		own.op = new_op(the_iou);
		go_by(&own, own.doors[0]);
		run(the_iou);
		ck_assert_int_eq(own.n, 3);
		close_pair(own.fds);
	}
	done(the_iou);
}
END_TEST

/* Calls that deliver nothing: the op's next end is known to iou, and its callback still runs. */
static int on_look_around(void *data)
{
	own_t *own = data;
	int level = own_begin(own);

	if (level == 0) { /* a periodic timer, cancelled: ended in iou */
		ck_assert_uint_eq(own->flags[0], IORING_CQE_F_MORE);
		ck_assert_int_eq(iou_op_cancel(the_iou, own->op), 0);
	} else if (level == 1) { /* a job, which has come back */
		own->bytes[0] = 42;
		start_job(the_iou, own->op, on_byte, own->bytes, on_look_around, own);
		WAIT_UNTIL(__atomic_load_n(&own->bytes[0], __ATOMIC_ACQUIRE) == 0);
		/* it collects what is done */
		WAIT_UNTIL(iou_cancel_all(the_iou) == 0 && get_stats(the_iou).jobs == 1);
	} else if (level == 2) { /* in the backlog, cancelled */
		nop_queue(the_iou, own->op, on_look_around, own);
		ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	} else if (level == 3) { /* a chain that is too long: it ends as it is submitted */
		for (int i = 0; i < 9; i++) {
			iou_op_t *op = i ? new_op(the_iou) : own->op;

			io_uring_prep_nop(op->sqe);
			op->sqe->flags |= i < 8 ? IOSQE_IO_LINK : 0;
			iou_op_queue(the_iou, op, i ? on_nothing : on_look_around, i ? NULL : own);
		}
		flush(the_iou);
	} else {
		ck_assert_int_eq(own->results[level], -E2BIG);
		return 0;
	}
	check_own(own, level);
	own_wait(own, level);
	return 0;
}

START_TEST(what_ends_in_iou_leaves_the_result)
{
	own_t own = {.wait = BY_POLL};

	the_iou = new_iou(8);
	own.op = new_op(the_iou);
	iou_op_timer(the_iou, own.op, 0, SECOND, on_look_around, &own);
	run(the_iou);
	ck_assert_int_eq(own.n, 5);
	ck_assert_int_eq(own.results[1], -ECANCELED);
	ck_assert_int_eq(own.results[2], 42);
	ck_assert_int_eq(own.results[3], -ECANCELED);
	done(the_iou);
}
END_TEST

static int on_late_tick(void *data)
{
	own_t *own = data;
	int level = own_begin(own);

	ck_assert_uint_eq(own->flags[level], level < 3 ? IORING_CQE_F_MORE : 0);
	if (level == 2)
		iou_op_timer(the_iou, own->op, 0, 0, on_late_tick, own); /* the next is the last */
	if (level < 3)
		own_wait(own, level);
	return 0;
}

/* The first tick tells of many expirations, those inside it of few. */
START_TEST(a_late_tick_keeps_its_count)
{
	own_t own = {.wait = BY_TIMED_POLL};
	uint64_t began_ns;

	the_iou = new_iou(8);
	own.op = new_op(the_iou);
	iou_op_timer(the_iou, own.op, 0, 5 * MSEC, on_late_tick, &own);
	began_ns = now_ns();
	WAIT_UNTIL(now_ns() - began_ns > 40 * MSEC);
	run(the_iou);
	ck_assert_int_eq(own.n, 4);
	ck_assert_int_ge(own.results[0], 8);
	done(the_iou);
}
END_TEST

static int on_sent(void *data)
{
	own_t *own = data;
	int level = own_begin(own);

	if (own->flags[level] & IORING_CQE_F_MORE)
		own_wait(own, level); /* for the notification */
	return 0;
}

START_TEST(a_zero_copy_send_keeps_its_result)
{
	own_t own = {.wait = BY_POLL};

	the_iou = new_iou(8);
	if (!have_op(the_iou, IORING_OP_SEND_ZC)) {
		iou_free(the_iou);
		SKIP("needs IORING_OP_SEND_ZC (6.0)");
	}
	new_tcp_pair(own.fds);
	own.op = new_op(the_iou);
	io_uring_prep_send_zc(own.op->sqe, own.fds[0], "data", 4, 0, 0);
	iou_op_queue(the_iou, own.op, on_sent, &own);
	run(the_iou);
	ck_assert_int_eq(own.n, 2);
	ck_assert_int_eq(own.results[0], 4);
	ck_assert_uint_eq(own.flags[0], IORING_CQE_F_MORE);
	ck_assert_uint_eq(own.flags[1], IORING_CQE_F_NOTIF);
	close_pair(own.fds);
	done(the_iou);
}
END_TEST

/* ---- Several ious, and other threads --------------------------------------------------------- */

static iou_t *other_iou;

static int on_see_other(void *data)
{
	ck_assert_ptr_eq(iou_current(), other_iou);
	return on_call(data);
}

static int on_run_other(void *data)
{
	call_t inner = {0};

	ck_assert_ptr_eq(iou_current(), the_iou);
	make_ready(other_iou, CQE, on_see_other, &inner);
	ck_assert_ptr_eq(iou_current(), the_iou);
	run(other_iou);
	ck_assert_int_eq(inner.n, 1);
	ck_assert_ptr_eq(iou_current(), the_iou);
	return on_call(data);
}

START_TEST(another_iou_runs_in_a_callback)
{
	the_iou = new_iou(8);
	other_iou = new_iou(8);
	for (int i = 0; i < N_KINDS; i++) {
		call_t call = {0};

		ck_assert_ptr_null(iou_current());
		make_ready(the_iou, (kind_t)i, on_run_other, &call);
		run(the_iou);
		ck_assert_int_eq(call.n, 1);
		ck_assert_ptr_null(iou_current());
	}
	done(other_iou);
	done(the_iou);
}
END_TEST

static int n_posted, n_jobs, n_jobs_done;
static uint64_t seed = 1;

static int on_job_done(void *data)
{
	(void)data;
	n_jobs_done++;
	return 0;
}

/* Posts from two threads; a callback in four runs a loop of some kind inside. */
static int on_random_post(void *data)
{
	n_posted++;
	if (depth > 12)
		return 0;
	depth++;
	switch (random_below(&seed, 16)) {
	case 0:
		ck_assert_int_ge(iou_poll(the_iou, 0), 0);
		break;
	case 1:
		ck_assert_int_ge(iou_poll(the_iou, (int64_t)(50 * USEC)), 0);
		break;
	case 2:
		start_job(the_iou, new_op(the_iou), on_nothing, NULL, on_job_done, data);
		ck_assert_int_ge(iou_poll(the_iou, -1), 0); /* the job at least will end */
		n_jobs++;
		break;
	case 3:
		start(the_iou, CQE, on_nothing, NULL);
		ck_assert_int_ge(iou_poll(the_iou, -1), 0);
		break;
	default:
		break;
	}
	depth--;
	return 0;
}

static int n_sends;

static void *send_posts(void *data)
{
	uint64_t my_seed = (uint64_t)(uintptr_t)data;

	for (int i = 0; i < n_sends; i++) {
		post(the_iou, on_random_post, NULL);
		if (random_below(&my_seed, 64) == 0)
			nap();
	}
	iou_unhold(the_iou);
	return NULL;
}

/* An inner loop that took the outer one's wake-up would leave it asleep with posts there. */
START_TEST(inner_loops_leave_wakeups_alone)
{
	pthread_t threads[2];

	the_iou = new_iou(8);
	n_sends = is_slow() ? 2000 : 20000;
	n_posted = n_jobs = n_jobs_done = depth = 0;
	for (int i = 0; i < 2; i++) {
		iou_hold(the_iou);
		threads[i] = start_thread(send_posts, (void *)(uintptr_t)(i + 1));
	}
	run(the_iou);
	for (int i = 0; i < 2; i++)
		join_thread(threads[i]);
	ck_assert_int_eq(n_posted, 2 * n_sends);
	ck_assert_int_eq(n_jobs_done, n_jobs);
	done(the_iou);
}
END_TEST

Suite *nested_suite(void)
{
	Suite *suite = suite_create("nested");
	TCase *deep, *own;

	TEST_CASE(suite, "rest", inner_poll_delivers_the_rest, inner_run_delivers_the_rest,
		  inner_errors_end_the_inner_loop);
	TEST_CASE(suite, "quit", quit_ends_all_active_runs, inner_poll_leaves_quit_to_the_run,
		  a_run_inside_a_poll_spends_its_quit);
	deep = TEST_CASE(suite, "depth", an_op_is_queued_again_around_a_loop);
	tcase_add_loop_test(deep, loops_nest_in_callbacks_deeply, 0, N_KINDS);
	tcase_add_loop_test(deep, callbacks_of_each_kind_nest_in_themselves, 0, N_KINDS);
	TEST_CASE(suite, "one op", callbacks_of_one_op_nest,
		  a_periodic_timer_ticks_in_its_own_callback,
		  an_op_is_queued_again_and_ends_inside_its_callback);
	own = TEST_CASE(suite, "result", what_ends_in_iou_leaves_the_result,
			a_late_tick_keeps_its_count, a_zero_copy_send_keeps_its_result);
	tcase_add_loop_test(own, each_callback_keeps_its_result, 0, N_WAITS);
	tcase_add_loop_test(own, each_kind_of_callback_leaves_the_outer_result, 0, N_WAITS);
	TEST_CASE(suite, "others", another_iou_runs_in_a_callback, inner_loops_leave_wakeups_alone);
	return suite;
}
