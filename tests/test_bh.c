/* SPDX-License-Identifier: MIT */

/* Bottom halves, with the scenarios QEMU tests its own loop with. */

#include "helper.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

/* A bottom half, and what its callback does. */
typedef struct half_t {
	iou_t *iou;
	iou_bh_t *bh;
	struct half_t *other; /* that it deletes */
	int n, max;           /* times run; it schedules itself again below max */
	int id;
} half_t;

static int on_half(void *data)
{
	half_t *half = data;

	ck_assert_int_lt(n_order, MAX_ORDER);
	order[n_order++] = half->id;
	if (++half->n < half->max)
		iou_bh_schedule(half->bh);
	return 0;
}

static void new_half(iou_t *iou, half_t *half, int id, int (*cb)(void *data))
{
	*half = (half_t){.iou = iou, .id = id};
	half->bh = new_bh(iou, cb, half);
}

/* ---- Scheduling ------------------------------------------------------------------------------ */

START_TEST(a_bottom_half_runs_once_however_often_scheduled)
{
	iou_t *iou = new_iou(4);
	half_t half;

	new_half(iou, &half, 0, on_half);
	run(iou);
	ck_assert_int_eq(half.n, 0);
	for (int i = 0; i < 10; i++)
		iou_bh_schedule(half.bh);
	ck_assert_int_eq(half.n, 0);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	ck_assert_int_eq(iou_poll(iou, -1), 0);
	ck_assert_int_eq(half.n, 1);
	iou_bh_schedule(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 2);
	ck_assert_uint_eq(get_stats(iou).posts, 2);
	iou_bh_delete(half.bh);
	done(iou);
}
END_TEST

START_TEST(a_bottom_half_schedules_itself_ten_times)
{
	iou_t *iou = new_iou(4);
	half_t half;

	new_half(iou, &half, 0, on_half);
	half.max = 10;
	iou_bh_schedule(half.bh);
	for (int i = 1; i <= 10; i++) {
		ck_assert_int_eq(iou_poll(iou, -1), 1); /* a round each */
		ck_assert_int_eq(half.n, i);
	}
	ck_assert_int_eq(iou_poll(iou, -1), 0);
	half.n = 0;
	iou_bh_schedule(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 10);
	iou_bh_delete(half.bh);
	done(iou);
}
END_TEST

/* First scheduled, first run; a second schedule changes nothing; posts stand in the same line. */
START_TEST(bottom_halves_run_in_the_order_of_scheduling)
{
	enum { N = 100 };
	iou_t *iou = new_iou(4);
	half_t halves[N];
	call_t calls[N];

	for (int i = 0; i < N; i++)
		new_half(iou, &halves[i], N - 1 - i, on_half);
	for (int i = N - 1; i >= 0; i--) {
		iou_bh_schedule(halves[i].bh);
		iou_bh_schedule(halves[N - 1].bh);
		calls[i] = (call_t){.id = 1000 + N - 1 - i};
		post(iou, on_call, &calls[i]);
	}
	ck_assert_int_eq(iou_poll(iou, 0), 2 * N);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(order[2 * i], i);
		ck_assert_int_eq(order[2 * i + 1], 1000 + i);
	}
	done(iou); /* frees those left */
}
END_TEST

/* Also where the system call that wakes the loop fails: here, of one that is waited for from
 * outside. */
START_TEST(scheduling_a_bottom_half_keeps_errno)
{
	iou_t *iou = new_iou(4);
	int fd = iou_fd(iou);
	half_t half;

	ck_assert_int_ge(fd, 0);
	new_half(iou, &half, 0, on_half);
	for (int idle = 0; idle < 2; idle++) {
		for (int i = 0; i < 3; i++)
			ck_assert_int_eq(iou_poll(iou, 0), 0); /* it rests */
		fill_eventfd(bell_eventfd());
		errno = 4711;
		if (idle)
			iou_bh_schedule_idle(half.bh);
		else
			iou_bh_schedule(half.bh);
		ck_assert_int_eq(errno, 4711);
		ck_assert_uint_eq(get_stats(iou).wakeups, (unsigned)idle + 1); /* it was tried */
		run(iou);
		ck_assert_int_eq(half.n, idle + 1);
	}
	done(iou);
}
END_TEST

/* QEMU's: what a bottom half started is waited for. */
static int on_start_job(void *data)
{
	half_t *half = data;

	half->n++;
	return iou_async(half->iou, on_nothing, NULL, on_half, half->other);
}

START_TEST(a_bottom_half_starts_a_job_that_schedules_another)
{
	iou_t *iou = new_iou(4);
	half_t half, event;

	new_half(iou, &event, 0, on_half);
	new_half(iou, &half, 1, on_start_job);
	half.other = &event;
	event.max = 2; /* the job's completion schedules it once more */
	iou_bh_schedule(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 1);
	ck_assert_int_eq(event.n, 2);
	done(iou);
}
END_TEST

/* ---- Cancelling and deleting ----------------------------------------------------------------- */

START_TEST(a_bottom_half_is_cancelled)
{
	iou_t *iou = new_iou(4);
	half_t half, next;

	new_half(iou, &half, 0, on_half);
	new_half(iou, &next, 1, on_half);
	iou_bh_cancel(half.bh); /* not scheduled: nothing */
	for (int i = 0; i < 3; i++) {
		iou_bh_schedule(half.bh);
		iou_bh_cancel(half.bh);
		iou_bh_cancel(half.bh);
	}
	ck_assert_int_eq(iou_poll(iou, -1), 0); /* nothing is pending */
	run(iou);
	ck_assert_int_eq(half.n, 0);

	iou_bh_schedule_idle(half.bh);
	iou_bh_cancel(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 0);

	iou_bh_schedule(half.bh);
	iou_bh_schedule(next.bh);
	iou_bh_cancel(half.bh);
	iou_bh_schedule(half.bh); /* scheduled anew: it runs once, last */
	run(iou);
	ck_assert_int_eq(half.n, 1);
	ck_assert_int_eq(next.n, 1);
	ck_assert_int_eq(order[0], 1);
	done(iou);
}
END_TEST

static int on_cancel_other(void *data)
{
	half_t *half = data;

	half->n++;
	iou_bh_cancel(half->other->bh);
	iou_bh_cancel(half->bh);
	return 0;
}

START_TEST(a_bottom_half_is_cancelled_by_another)
{
	iou_t *iou = new_iou(4);
	half_t first, second;

	new_half(iou, &first, 0, on_cancel_other);
	new_half(iou, &second, 1, on_half);
	first.other = &second;
	iou_bh_schedule(first.bh);
	iou_bh_schedule(second.bh);
	run(iou);
	ck_assert_int_eq(first.n, 1);
	ck_assert_int_eq(second.n, 0);
	done(iou);
}
END_TEST

START_TEST(a_bottom_half_is_deleted)
{
	iou_t *iou = new_iou(4);
	half_t half, next;

	iou_bh_delete(NULL);
	for (int scheduled = 0; scheduled < 3; scheduled++) {
		new_half(iou, &half, 0, on_half);
		new_half(iou, &next, 0, on_half);
		if (scheduled == 1)
			iou_bh_schedule(half.bh);
		if (scheduled == 2)
			iou_bh_schedule_idle(half.bh);
		iou_bh_schedule(next.bh);
		iou_bh_delete(half.bh);
		run(iou);
		ck_assert_int_eq(half.n, 0);
		ck_assert_int_eq(next.n, 1);
		iou_bh_delete(next.bh);
	}
	new_half(iou, &half, 0, on_half);
	iou_bh_schedule(half.bh);
	iou_bh_delete(half.bh);
	ck_assert_int_eq(iou_poll(iou, -1), 0); /* deleted is not pending */
	done(iou);
}
END_TEST

/* Schedules itself first, which the delete undoes. */
static int on_delete_itself(void *data)
{
	half_t *half = data;

	half->n++;
	iou_bh_schedule(half->bh);
	iou_bh_delete(half->bh);
	return 0;
}

START_TEST(a_bottom_half_deletes_itself)
{
	iou_t *iou = new_iou(4);
	half_t half;

	new_half(iou, &half, 0, on_delete_itself);
	iou_bh_schedule(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 1);
	done(iou);
}
END_TEST

static int on_delete_others(void *data)
{
	half_t *half = data;

	half->n++;
	for (int i = 0; i < 4; i++) {
		iou_bh_delete(half->other[i].bh);
		half->other[i].bh = NULL;
	}
	return 0;
}

/* QEMU's "delete many": one of four that are scheduled deletes all, itself included. */
START_TEST(a_bottom_half_is_deleted_by_another)
{
	iou_t *iou = new_iou(4);
	half_t halves[4];

	for (int killer = 0; killer < 4; killer++) {
		for (int i = 0; i < 4; i++) {
			new_half(iou, &halves[i], i, i == killer ? on_delete_others : on_half);
			halves[i].other = halves;
			iou_bh_schedule(halves[i].bh);
		}
		run(iou);
		for (int i = 0; i < 4; i++)
			ck_assert_int_eq(halves[i].n, i <= killer);
	}
	done(iou);
}
END_TEST

static int on_nested_delete(void *data)
{
	half_t *half = data;

	if (half->n++ == 0) {
		iou_bh_schedule(half->bh);
		/* runs it inside itself, where it is deleted */
		ck_assert_int_eq(iou_poll(half->iou, -1), 1);
		ck_assert_int_eq(half->n, 2);
	} else {
		iou_bh_delete(half->bh);
	}
	return 0;
}

START_TEST(a_bottom_half_is_deleted_inside_its_own_nested_call)
{
	iou_t *iou = new_iou(4);
	half_t half;

	new_half(iou, &half, 0, on_nested_delete);
	iou_bh_schedule(half.bh);
	run(iou);
	ck_assert_int_eq(half.n, 2);
	done(iou);
}
END_TEST

static int never(void *data)
{
	(void)data;
	abort();
}

START_TEST(free_takes_along_the_bottom_halves_left)
{
	iou_t *iou = new_iou(4);

	new_bh(iou, never, NULL);
	iou_bh_schedule(new_bh(iou, never, NULL));
	iou_bh_schedule_idle(new_bh(iou, never, NULL));
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

/* ---- Its place in line ----------------------------------------------------------------------- */

/* Three that are scheduled one after the other, with a post between. */
typedef struct line_t {
	iou_t *iou;
	iou_bh_t *bhs[3];
	call_t calls[3], posted;
	bool idle;
} line_t;

static void line_make(line_t *line, iou_t *iou)
{
	*line = (line_t){.iou = iou, .posted.id = 9};
	for (int i = 0; i < 3; i++) {
		line->calls[i] = (call_t){.id = i};
		line->bhs[i] = new_bh(iou, on_call, &line->calls[i]);
	}
}

static void line_schedule(line_t *line, int i)
{
	if (line->idle)
		iou_bh_schedule_idle(line->bhs[i]);
	else
		iou_bh_schedule(line->bhs[i]);
}

static void line_up(line_t *line)
{
	n_order = 0;
	line_schedule(line, 0);
	if (!line->idle)
		post(line->iou, on_call, &line->posted);
	line_schedule(line, 1);
	line_schedule(line, 2);
}

/* The first leaves the line and joins it again. */
static void line_move_first(void *data)
{
	line_t *line = data;

	iou_bh_cancel(line->bhs[0]);
	line_schedule(line, 0);
}

/* They run in this order, the post where it stood; each once. */
static void line_check(line_t *line, bool moved)
{
	static const int kept[] = {0, 9, 1, 2}, last[] = {9, 1, 2, 0};
	static const int kept_idle[] = {0, 1, 2}, last_idle[] = {1, 2, 0};
	const int *expected = line->idle ? (moved ? last_idle : kept_idle) : moved ? last : kept;

	run(line->iou);
	ck_assert_int_eq(n_order, line->idle ? 3 : 4);
	for (int i = 0; i < n_order; i++)
		ck_assert_msg(order[i] == expected[i], "%d ran at place %d", order[i], i);
}

static void run_it(void *iou)
{
	EXPECT(iou_run(iou) == 0);
}

static iou_t *new_handed(void)
{
	return new_iou_with(&(iou_config_t){.entries = 4, .setup_flags = IORING_SETUP_CLAMP});
}

/* Before the first run and after it; of this thread's iou, and of one that is handed on. */
START_TEST(a_bottom_half_cancelled_and_scheduled_goes_last)
{
	for (int i = 0; i < 4; i++) {
		line_t line;

		line_make(&line, i < 2 ? new_iou(4) : new_handed());
		line.idle = i % 2;
		for (int turn = 0; turn < 4; turn++) {
			line_up(&line);
			line_move_first(&line);
			if (turn % 2)
				line_move_first(&line);
			line_check(&line, true);
			if (i >= 2)
				in_thread(run_it, line.iou); /* another thread has it meanwhile */
		}
		done(line.iou);
	}
}
END_TEST

static int on_move_first(void *data)
{
	line_move_first(data);
	return 0;
}

static int on_line_up_and_move_first(void *data)
{
	line_up(data);
	line_move_first(data);
	return 0;
}

/* In a callback of each kind: of those that wait in the round, or were scheduled just now. */
START_TEST(moved_in_a_callback_a_bottom_half_goes_last)
{
	for (int i = 0; i < 8 * N_KINDS; i++) {
		const bool fresh = i & 4;
		const kind_t kind = (kind_t)(i / 8);
		line_t line;

		line_make(&line, i & 1 ? new_handed() : new_iou(4));
		line.idle = i & 2;
		if (fresh) {
			make_ready(line.iou, kind, on_line_up_and_move_first, &line);
		} else {
			make_ready(line.iou, kind, on_move_first, &line);
			line_up(&line);
		}
		if (fresh || line.idle || kind <= BH)
			line_check(&line, true);
		else
			run(line.iou); /* they ran before that callback */
		ck_assert_int_eq(line.calls[1].n, 1);
		done(line.iou);
	}
}
END_TEST

static iou_t *inner_iou;

static int on_run_another(void *data)
{
	run(inner_iou);
	ck_assert_ptr_eq(iou_current(), ((line_t *)data)->iou);
	return 0;
}

/* In a callback of another iou, whose loop runs in one of this iou's. */
START_TEST(moved_inside_another_loop_a_bottom_half_goes_last)
{
	for (int i = 0; i < 4; i++) {
		line_t line;

		line_make(&line, i & 1 ? new_handed() : new_iou(4));
		line.idle = i & 2;
		inner_iou = new_iou(4);
		make_ready(inner_iou, TIMER, on_move_first, &line);
		make_ready(line.iou, TIMER, on_run_another, &line);
		line_up(&line);
		line_check(&line, true);
		done(line.iou);
		done(inner_iou);
	}
}
END_TEST

static int on_move_first_elsewhere(void *data)
{
	in_thread(line_move_first, data);
	return 0;
}

/* From another thread while the loop is this one's: as its owner, or as the one that runs it. */
START_TEST(moved_by_another_thread_a_bottom_half_keeps_its_place)
{
	for (int i = 0; i < 8; i++) {
		line_t line;

		line_make(&line, i & 1 ? new_handed() : new_iou(4));
		line.idle = i & 2;
		run(line.iou);
		if (i & 1) {
			make_ready(line.iou, TIMER, on_move_first_elsewhere, &line);
			line_up(&line);
		} else {
			line_up(&line);
			if (i & 4 && line.idle) { /* they wait for the loop to be idle */
				post(line.iou, on_nothing, NULL);
				ck_assert_int_eq(iou_poll(line.iou, 0), 1);
			}
			in_thread(line_move_first, &line);
		}
		line_check(&line, false);
		done(line.iou);
	}
}
END_TEST

static sem_t job_done;

static int move_first_job(void *data)
{
	line_move_first(data);
	sem_post(&job_done);
	return 0;
}

START_TEST(moved_by_a_job_a_bottom_half_keeps_its_place)
{
	line_t line;

	ck_assert_int_eq(sem_init(&job_done, 0, 0), 0);
	line_make(&line, new_iou(4));
	flush(line.iou); /* it is this thread's */
	for (int i = 0; i < 2; i++) {
		line.idle = i;
		line_up(&line);
		start_job(line.iou, new_op(line.iou), move_first_job, &line, on_nothing, NULL);
		while (sem_wait(&job_done) != 0)
			;
		line_check(&line, false);
	}
	done(line.iou);
}
END_TEST

/* ---- Idle ------------------------------------------------------------------------------------ */

START_TEST(an_idle_bottom_half_runs_when_nothing_else_does)
{
	iou_t *iou = new_iou(4);
	half_t idle, busy;
	call_t timer;

	new_half(iou, &idle, 7, on_half);
	new_half(iou, &busy, 1, on_half);
	busy.max = 20;
	iou_bh_schedule_idle(idle.bh);
	iou_bh_schedule_idle(idle.bh);
	iou_bh_schedule(busy.bh);
	run(iou);
	ck_assert_int_eq(idle.n, 1);
	ck_assert_int_eq(n_order, 21);
	ck_assert_int_eq(order[20], 7);

	/* counts as pending; runs also where the poll may not wait */
	iou_bh_schedule_idle(idle.bh);
	ck_assert_int_eq(iou_poll(iou, 0), 1);
	ck_assert_int_eq(idle.n, 2);

	call_op(iou, &timer, 0); /* the round does not sleep until the timer first */
	iou_op_timer(iou, timer.op, 100 * SECOND, 0, on_call, &timer);
	iou_bh_schedule_idle(idle.bh);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	ck_assert_int_eq(idle.n, 3);
	ck_assert_int_eq(iou_op_cancel(iou, timer.op), 0);
	run(iou);
	done(iou);
}
END_TEST

START_TEST(scheduling_a_bottom_half_overrides_idle)
{
	iou_t *iou = new_iou(4);
	half_t half, busy;

	new_half(iou, &half, 7, on_half);
	new_half(iou, &busy, 1, on_half);
	busy.max = 5;
	iou_bh_schedule(busy.bh);
	iou_bh_schedule_idle(half.bh);
	iou_bh_schedule(half.bh);
	ck_assert_int_eq(iou_poll(iou, 0), 2);
	ck_assert_int_eq(half.n, 1);
	run(iou);
	ck_assert_int_eq(half.n, 1);

	busy.n = 0;
	iou_bh_schedule(busy.bh);
	iou_bh_schedule(half.bh);
	iou_bh_schedule_idle(half.bh); /* and idle does not put off what is scheduled */
	ck_assert_int_eq(iou_poll(iou, 0), 2);
	ck_assert_int_eq(half.n, 2);
	run(iou);
	ck_assert_int_eq(half.n, 2);
	done(iou);
}
END_TEST

/* An idle one that schedules itself so again leaves room for all others. */
static int on_idle_again(void *data)
{
	half_t *half = data;

	if (++half->n < half->max)
		iou_bh_schedule_idle(half->bh);
	return 0;
}

START_TEST(idle_bottom_halves_starve_nobody)
{
	iou_t *iou = new_iou(4);
	call_t timer;
	half_t idle;

	new_half(iou, &idle, 0, on_idle_again);
	idle.max = 1 << 30;
	iou_bh_schedule_idle(idle.bh);
	ck_assert_int_eq(iou_poll(iou, -1), 1);
	ck_assert_int_eq(idle.n, 1); /* and again, whenever nothing else is there */
	call_op(iou, &timer, 0);
	iou_op_timer(iou, timer.op, 5 * MSEC, 0, on_call, &timer);
	while (!timer.n)
		ck_assert_int_ge(iou_poll(iou, -1), 1);
	iou_bh_delete(idle.bh);
	run(iou);
	done(iou);
}
END_TEST

#define N_MANY 5000

/* What becomes of an idle one, by the loop's thread or by another. */
enum fate {
	LEFT,
	CANCELLED,
	CANCELLED_ELSEWHERE,
	DELETED,
	DELETED_ELSEWHERE,
	MOVED,
	HURRIED,
	HURRIED_ELSEWHERE,
	N_FATES
};

static iou_bh_t *many[N_MANY];
static call_t many_calls[N_MANY];

static void many_elsewhere(void *data)
{
	(void)data;
	for (int i = 0; i < N_MANY; i++)
		switch (i % N_FATES) {
		case CANCELLED_ELSEWHERE:
			iou_bh_cancel(many[i]);
			break;
		case DELETED_ELSEWHERE:
			iou_bh_delete(many[i]);
			break;
		case HURRIED_ELSEWHERE:
			iou_bh_schedule(many[i]);
			break;
		default:
			break;
		}
}

static void many_here(void)
{
	for (int i = 0; i < N_MANY; i++)
		switch (i % N_FATES) {
		case CANCELLED:
			iou_bh_cancel(many[i]);
			break;
		case DELETED:
			iou_bh_delete(many[i]);
			break;
		case MOVED: /* to the end */
			iou_bh_cancel(many[i]);
			iou_bh_schedule_idle(many[i]);
			break;
		case HURRIED:
			iou_bh_schedule(many[i]);
			break;
		default:
			break;
		}
}

/* Those of this fate ran in their order, from this place on. Returns the place behind them. */
static int many_ran(int at, enum fate fate)
{
	for (int i = (int)fate; i < N_MANY; i += N_FATES)
		ck_assert_int_eq(order[at++], i);
	return at;
}

/* _i: they wait to be looked at, or for the loop to be idle. */
START_TEST(many_idle_bottom_halves_run_in_order)
{
	const int n_each = N_MANY / N_FATES;
	iou_t *iou = new_iou(4);
	int n;

	flush(iou); /* it is this thread's */
	for (int turn = 0; turn < 2; turn++) {
		n_order = 0;
		for (int i = 0; i < N_MANY; i++) {
			many_calls[i] = (call_t){.id = i};
			many[i] = new_bh(iou, on_call, &many_calls[i]);
			iou_bh_schedule_idle(many[i]);
		}
		if (_i) /* a round takes a share of them, and at last the post behind them */
			for (post(iou, on_nothing, NULL); iou_poll(iou, 0) == 0;)
				;
		ck_assert_int_eq(n_order, 0);
		in_thread(many_elsewhere, NULL);
		many_here();
		while ((n = iou_poll(iou, 0)))
			ck_assert_int_le(n, 1024);
		run(iou);
		ck_assert_int_eq(n_order, 4 * n_each);
		n = many_ran(0, HURRIED_ELSEWHERE);
		n = many_ran(n, HURRIED);
		n = many_ran(n, LEFT);
		n = many_ran(n, MOVED);
		ck_assert_int_eq(n, n_order);
		for (int i = 0; i < N_MANY; i++)
			if (i % N_FATES != DELETED && i % N_FATES != DELETED_ELSEWHERE)
				iou_bh_delete(many[i]);
		run(iou);
		ck_assert_int_eq(n_order, n);
	}
	done(iou);
}
END_TEST

static void cancel_it(void *bh)
{
	iou_bh_cancel(bh);
}

static void delete_it(void *bh)
{
	iou_bh_delete(bh);
}

/* It waits for the loop to be idle, and is taken away: nothing is left to wait for. */
START_TEST(nobody_waits_for_an_idle_bottom_half_taken_away)
{
	iou_t *iou = new_iou(4);

	for (int i = 0; i < 4; i++) {
		call_t call = {0};
		iou_bh_t *bh = new_bh(iou, on_call, &call);

		iou_bh_schedule_idle(bh);
		post(iou, on_nothing, NULL);
		ck_assert_int_eq(iou_poll(iou, 0), 1);
		ck_assert_int_eq(call.n, 0);
		if (i < 2)
			in_thread(i == 0 ? cancel_it : delete_it, bh);
		else if (i == 2)
			iou_bh_cancel(bh);
		else
			iou_bh_delete(bh);
		ck_assert_int_eq(iou_poll(iou, -1), 0);
		run(iou);
		ck_assert_int_eq(call.n, 0);
	}
	done(iou);
}
END_TEST

/* ---- Signals and threads --------------------------------------------------------------------- */

static iou_t *the_iou;
static half_t signal_half;
static int n_signals; /* counted by the handler, before it schedules */
static int n_noticed; /* as the callback saw it */

static void schedule_in_handler(void)
{
	__atomic_fetch_add(&n_signals, 1, __ATOMIC_RELAXED);
	iou_bh_schedule(signal_half.bh);
}

static int on_signal_half(void *data)
{
	(void)data;
	n_noticed = __atomic_load_n(&n_signals, __ATOMIC_RELAXED);
	return 0;
}

static int on_nothing_counted(void *data)
{
	++*(int *)data;
	return 0;
}

/* A schedule from a handler is never lost, wherever it interrupts the loop. */
START_TEST(a_signal_handler_schedules_a_bottom_half)
{
	int n_max = is_slow() ? 100 : 500;

	the_iou = new_iou(4);
	n_signals = n_noticed = 0;
	signal_half.bh = new_bh(the_iou, on_signal_half, NULL);
	iou_hold(the_iou);
	start_alarms(MSEC, schedule_in_handler);
	while (n_noticed < n_max)
		ck_assert_int_ge(iou_poll(the_iou, (int64_t)(5 * SECOND)), 1);
	stop_alarms();
	iou_unhold(the_iou);
	run(the_iou);
	ck_assert_int_eq(n_noticed, n_signals);
	done(the_iou);
}
END_TEST

/* Whatever the handler interrupts, the allocator and the library's own locks included, it may
 * schedule and quit. */
static void schedule_and_quit(void)
{
	schedule_in_handler();
	iou_quit(the_iou);
}

START_TEST(a_signal_handler_schedules_in_the_middle_of_anything)
{
	int n_max = is_slow() ? 200 : 1000, n_calls = 0;
	uint64_t until_ns = now_ns() + 20 * SECOND;
	call_t call = {0};

	the_iou = new_iou(4);
	n_signals = n_noticed = 0;
	signal_half.bh = new_bh(the_iou, on_signal_half, NULL);
	start_alarms(100 * USEC, schedule_and_quit);
	while (__atomic_load_n(&n_signals, __ATOMIC_RELAXED) < n_max && now_ns() < until_ns) {
		for (int i = 0; i < 20; i++) {
			iou_bh_t *bh = new_bh(the_iou, on_call, &call);

			iou_bh_schedule(bh);
			iou_bh_schedule_idle(signal_half.bh);
			if (i % 2)
				iou_bh_cancel(bh);
			iou_bh_delete(bh);
			post(the_iou, on_nothing_counted, &n_calls);
			start(the_iou, i % 4 ? CQE : JOB, on_nothing_counted, &n_calls);
		}
		run(the_iou);
	}
	stop_alarms();
	run(the_iou); /* spends the last quit */
	run(the_iou);
	ck_assert_int_eq(call.n, 0);
	ck_assert_int_ge(n_signals, n_max);
	ck_assert_int_eq(n_noticed, n_signals);
	ck_assert_int_eq(n_calls % 40, 0);
	done(the_iou);
}
END_TEST

/* A number that a thread raises before each schedule: the callback after it must see it. */
typedef struct counter_t {
	iou_bh_t *bh;
	iou_t *iou;
	int raised, seen, n_max, n_runs;
} counter_t;

static int on_counter(void *data)
{
	counter_t *counter = data;

	__atomic_store_n(&counter->seen, __atomic_load_n(&counter->raised, __ATOMIC_RELAXED),
			 __ATOMIC_RELEASE);
	counter->n_runs++;
	return 0;
}

static void *raise_counter(void *data)
{
	counter_t *counter = data;

	for (int i = 1; i <= counter->n_max; i++) {
		__atomic_store_n(&counter->raised, i, __ATOMIC_RELAXED);
		iou_bh_schedule(counter->bh);
		if (i % 100 == 0) /* wait for the answer: a schedule that was lost hangs here */
			while (__atomic_load_n(&counter->seen, __ATOMIC_ACQUIRE) < i)
				sched_yield();
	}
	iou_unhold(counter->iou);
	return NULL;
}

START_TEST(threads_schedule_bottom_halves)
{
	enum { N = 4 };
	counter_t counters[N];
	pthread_t threads[N];
	iou_t *iou = new_iou(4);

	for (int i = 0; i < N; i++) {
		counters[i] = (counter_t){.iou = iou, .n_max = is_slow() ? 3000 : 30000};
		counters[i].bh = new_bh(iou, on_counter, &counters[i]);
		iou_hold(iou);
	}
	for (int i = 0; i < N; i++)
		threads[i] = start_thread(raise_counter, &counters[i]);
	run(iou);
	for (int i = 0; i < N; i++) {
		join_thread(threads[i]);
		ck_assert_int_eq(counters[i].seen, counters[i].n_max);
		ck_assert_int_le(counters[i].n_runs, counters[i].n_max);
	}
	done(iou);
}
END_TEST

/* All threads schedule the same one: it still runs after each, and not more often than
 * scheduled. */
static counter_t shared;

static void *schedule_shared(void *data)
{
	(void)data;
	for (int i = 0; i < shared.n_max; i++) {
		__atomic_fetch_add(&shared.raised, 1, __ATOMIC_RELAXED);
		iou_bh_schedule(shared.bh);
		if (i % 64 == 0)
			sched_yield();
	}
	iou_unhold(shared.iou);
	return NULL;
}

START_TEST(threads_schedule_the_same_bottom_half)
{
	enum { N = 4 };
	pthread_t threads[N];

	shared = (counter_t){.iou = new_iou(4), .n_max = is_slow() ? 5000 : 50000};
	shared.bh = new_bh(shared.iou, on_counter, &shared);
	for (int i = 0; i < N; i++) {
		iou_hold(shared.iou);
		threads[i] = start_thread(schedule_shared, NULL);
	}
	run(shared.iou);
	for (int i = 0; i < N; i++)
		join_thread(threads[i]);
	ck_assert_int_eq(shared.seen, N * shared.n_max);
	ck_assert_int_ge(shared.n_runs, 1);
	ck_assert_int_le(shared.n_runs, N * shared.n_max);
	done(shared.iou);
}
END_TEST

/* Made, scheduled, cancelled and deleted on threads while the loop runs: none leaks, none runs
 * twice. */
static int n_short_runs;

static int on_short_life(void *data)
{
	(void)data;
	n_short_runs++;
	return 0;
}

static void *short_lives(void *data)
{
	int n = *(int *)data;

	for (int i = 0; i < n; i++) {
		iou_bh_t *bh = new_bh(the_iou, on_short_life, NULL);

		if (i % 4 != 0)
			iou_bh_schedule(bh);
		if (i % 4 == 2)
			iou_bh_cancel(bh);
		if (i % 8 == 7)
			sched_yield();
		if (i % 16 == 15)
			iou_bh_schedule_idle(bh);
		iou_bh_delete(bh);
	}
	iou_unhold(the_iou);
	return NULL;
}

START_TEST(threads_make_and_delete_bottom_halves)
{
	enum { N = 3 };
	pthread_t threads[N];
	int n = is_slow() ? 2000 : 20000;

	the_iou = new_iou(4);
	n_short_runs = 0;
	for (int i = 0; i < N; i++) {
		iou_hold(the_iou);
		threads[i] = start_thread(short_lives, &n);
	}
	run(the_iou);
	for (int i = 0; i < N; i++)
		join_thread(threads[i]);
	ck_assert_int_le(n_short_runs, N * n);
	done(the_iou);
}
END_TEST

/* Threads do all that they may with idle ones of theirs while the loop comes to be idle and is busy
 * in turns. */
static void *idle_elsewhere(void *data)
{
	uint64_t my_seed = (uint64_t)(uintptr_t)data;
	iou_bh_t *bhs[16];
	int n = is_slow() ? 1000 : 10000;

	for (int i = 0; i < 16; i++)
		bhs[i] = new_bh(the_iou, on_nothing, NULL);
	while (n--) {
		int i = (int)random_below(&my_seed, 16);

		switch (random_below(&my_seed, 8)) {
		case 0:
			iou_bh_cancel(bhs[i]);
			break;
		case 1:
			iou_bh_schedule(bhs[i]);
			break;
		case 2:
			iou_bh_delete(bhs[i]);
			bhs[i] = new_bh(the_iou, on_nothing, NULL);
			break;
		case 3:
			post(the_iou, on_nothing, NULL);
			break;
		default:
			iou_bh_schedule_idle(bhs[i]);
		}
	}
	for (int i = 0; i < 16; i++)
		iou_bh_delete(bhs[i]);
	iou_unhold(the_iou);
	return NULL;
}

START_TEST(threads_use_idle_bottom_halves)
{
	pthread_t threads[3];

	the_iou = new_iou(4);
	for (int i = 0; i < 3; i++) {
		iou_hold(the_iou);
		threads[i] = start_thread(idle_elsewhere, (void *)(uintptr_t)(i + 1));
	}
	run(the_iou);
	for (int i = 0; i < 3; i++)
		join_thread(threads[i]);
	run(the_iou);
	done(the_iou);
}
END_TEST

static pid_t loop_tid;

static void *schedule_idle_for_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	iou_bh_schedule_idle(data);
	iou_bh_schedule(data);
	return NULL;
}

/* A loop that sleeps has nothing else to do. */
START_TEST(an_idle_bottom_half_of_a_thread_wakes_the_loop)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;
	half_t half;

	new_half(iou, &half, 0, on_half);
	loop_tid = gettid();
	iou_hold(iou);
	thread = start_thread(schedule_idle_for_the_sleeper, half.bh);
	POLL_UNTIL(iou, half.n);
	join_thread(thread);
	iou_unhold(iou);
	run(iou); /* the second schedule may have come after the first had run */
	done(iou);
}
END_TEST

/* An idle one that is scheduled before another runs before it, also where it waited for its idle
 * time. */
START_TEST(an_idle_bottom_half_scheduled_first_runs_first)
{
	iou_t *iou = new_iou(4);
	call_t a = {.id = 1}, b = {.id = 2};
	iou_bh_t *first = new_bh(iou, on_call, &a), *second = new_bh(iou, on_call, &b);

	iou_bh_schedule_idle(first);
	post(iou, on_nothing, NULL);
	ck_assert_int_eq(iou_poll(iou, 0), 1); /* it is not idle yet */
	iou_bh_schedule(first);
	iou_bh_schedule(second);
	ck_assert_int_eq(iou_poll(iou, 0), 2);
	ck_assert_int_eq(order[0], 1);
	ck_assert_int_eq(order[1], 2);
	done(iou);
}
END_TEST

static int wake_fd;

/* The write that is to wake it fails; then it is made up for. */
static void *schedule_in_vain(void *data)
{
	uint64_t value;

	WAIT_UNTIL(loop_sleeps(loop_tid));
	errno = 4711;
	iou_bh_schedule(data);
	EXPECT(errno == 4711);
	EXPECT(read(wake_fd, &value, sizeof(value)) == sizeof(value) && value == UINT64_MAX - 1);
	value = 1;
	EXPECT(write(wake_fd, &value, sizeof(value)) == sizeof(value));
	return NULL;
}

START_TEST(a_thread_that_schedules_a_bottom_half_keeps_errno)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;
	half_t half;

	wake_fd = wake_eventfd();
	loop_tid = gettid();
	new_half(iou, &half, 0, on_half);
	iou_hold(iou);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0); /* the ring watches it from now on */
	fill_eventfd(wake_fd);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
	thread = start_thread(schedule_in_vain, half.bh);
	POLL_UNTIL(iou, half.n);
	join_thread(thread);
	iou_unhold(iou);
	done(iou);
}
END_TEST

Suite *bh_suite(void)
{
	Suite *suite = suite_create("bh");
	TCase *tcase;

	TEST_CASE(suite, "schedule", a_bottom_half_runs_once_however_often_scheduled,
		  a_bottom_half_schedules_itself_ten_times,
		  bottom_halves_run_in_the_order_of_scheduling,
		  scheduling_a_bottom_half_keeps_errno,
		  a_bottom_half_starts_a_job_that_schedules_another);
	TEST_CASE(suite, "end", a_bottom_half_is_cancelled, a_bottom_half_is_cancelled_by_another,
		  a_bottom_half_is_deleted, a_bottom_half_deletes_itself,
		  a_bottom_half_is_deleted_by_another,
		  a_bottom_half_is_deleted_inside_its_own_nested_call,
		  free_takes_along_the_bottom_halves_left);
	TEST_CASE(suite, "place", a_bottom_half_cancelled_and_scheduled_goes_last,
		  moved_in_a_callback_a_bottom_half_goes_last,
		  moved_inside_another_loop_a_bottom_half_goes_last,
		  moved_by_another_thread_a_bottom_half_keeps_its_place,
		  moved_by_a_job_a_bottom_half_keeps_its_place);
	tcase = TEST_CASE(suite, "idle", an_idle_bottom_half_runs_when_nothing_else_does,
			  an_idle_bottom_half_scheduled_first_runs_first,
			  scheduling_a_bottom_half_overrides_idle, idle_bottom_halves_starve_nobody,
			  nobody_waits_for_an_idle_bottom_half_taken_away);
	tcase_add_loop_test(tcase, many_idle_bottom_halves_run_in_order, 0, 2);
	TEST_CASE(suite, "threads", a_signal_handler_schedules_a_bottom_half,
		  a_signal_handler_schedules_in_the_middle_of_anything,
		  threads_schedule_bottom_halves, threads_schedule_the_same_bottom_half,
		  threads_make_and_delete_bottom_halves, threads_use_idle_bottom_halves,
		  an_idle_bottom_half_of_a_thread_wakes_the_loop,
		  a_thread_that_schedules_a_bottom_half_keeps_errno);
	return suite;
}
