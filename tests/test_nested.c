/* SPDX-License-Identifier: MIT */

/* Loops inside callbacks: what the inner one delivers, when it sleeps, what it leaves to the outer one. */

#include "helper.h"

#include <poll.h>
#include <sys/eventfd.h>

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
	ck_assert_int_eq(iou_poll(the_iou, -1), 0); /* the caller's own op is not pending any more */
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

/* An error ends the innermost loop alone; what was left comes in the outer one, or in the next run. */
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
START_TEST(loops_nest_deeply)
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
		start(the_iou, kind, on_same_kind, NULL); /* not ready: the inner loop has to sleep */
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
START_TEST(a_kind_nests_in_itself)
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

/* ---- One op, callbacks within its callbacks ---------------------------------------------------- */

typedef struct multi_t {
	iou_op_t *op;
	int fd, n, n_inside;
	char *env;
} multi_t;

/* Each callback of the multishot op waits for the next, the last included: the op must outlive all. */
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

/* In its last callback the op is queued again, by each door in turn, and its next callback runs within this one.
 * It is given back when the outermost returns, not before. */
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

/* ---- Several ious, and other threads ----------------------------------------------------------- */

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
	TCase *deep;

	TEST_CASE(suite, "rest", inner_poll_delivers_the_rest, inner_run_delivers_the_rest,
		  inner_errors_end_the_inner_loop);
	TEST_CASE(suite, "quit", quit_ends_all_active_runs, inner_poll_leaves_quit_to_the_run,
		  a_run_inside_a_poll_spends_its_quit);
	deep = TEST_CASE(suite, "depth", an_op_is_queued_again_around_a_loop);
	tcase_add_loop_test(deep, loops_nest_deeply, 0, N_KINDS);
	tcase_add_loop_test(deep, a_kind_nests_in_itself, 0, N_KINDS);
	TEST_CASE(suite, "one op", callbacks_of_one_op_nest, a_periodic_timer_ticks_in_its_own_callback,
		  an_op_is_queued_again_and_ends_inside_its_callback);
	TEST_CASE(suite, "others", another_iou_runs_in_a_callback, inner_loops_leave_wakeups_alone);
	return suite;
}
