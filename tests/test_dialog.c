/* SPDX-License-Identifier: MIT */

/*
 * iou_fd() inside callbacks. A callback that has to wait runs a loop of its own around the
 * descriptor, as a program's modal dialog does: what becomes ready wakes it, and it sleeps while
 * nothing is.
 */

#include "helper.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#ifdef HAVE_GLIB
#include <glib-unix.h>
#endif

static iou_t *the_iou;
static pid_t loop_tid;

/* ---- A surrounding loop ---------------------------------------------------------------------- */

static bool readable(int timeout_ms)
{
	struct pollfd poll_fd = {.fd = iou_fd(the_iou), .events = POLLIN};
	int n;

	do
		n = poll(&poll_fd, 1, timeout_ms);
	while (n < 0 && errno == EINTR); /* COOP_TASKRUN */
	ck_assert_int_ge(n, 0);
	return n;
}

/* Look without waiting, as a surrounding loop does when the descriptor is readable. */
static int look(void)
{
	int n = iou_poll(the_iou, 0);

	ck_assert_msg(n >= 0, "iou_poll: %s", strerror(-n));
	return n;
}

/* The surrounding loop, until there was a call. Returns how often it woke. */
static int loop_until(const call_t *call)
{
	int n = 0;

	for (; !call->n; n++) {
		ck_assert_msg(readable(20000), "the descriptor does not become readable");
		ck_assert_msg(n < 100, "the descriptor stays readable");
		look();
	}
	return n;
}

/* How often it wakes before it is quiet, with nothing to do. */
static int settle(void)
{
	int n = 0;

	for (; readable(0); n++) {
		ck_assert_msg(n < 20, "the descriptor stays readable");
		look();
	}
	return n;
}

/* Does a flag tell of all that is left in the engine? Else it is looked at once too often. */
static bool is_exact(void)
{
	const unsigned flags = iou_ring(the_iou)->flags;

	return !on_fallback() &&
	       (!(flags & (IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN)) ||
		flags & IORING_SETUP_TASKRUN_FLAG);
}

/* ---- A thread that does something once the loop's sleeps ------------------------------------- */

typedef struct helper_t {
	pthread_t thread;
	sem_t begin, end;
	bool busy;           /* the loop's: it was given something to do */
	bool spins;          /* the loop does not sleep but looks for completions */
	void (*act)(void *); /* NULL: it ends */
	void *data;
} helper_t;

static helper_t helper;

static void wait_for(sem_t *sem)
{
	while (sem_wait(sem) != 0)
		EXPECT(errno == EINTR);
}

static void *help(void *data)
{
	for (;; sem_post(&helper.end)) {
		wait_for(&helper.begin);
		if (!helper.act)
			return data;
		if (helper.spins)
			nap();
		else
			WAIT_UNTIL(loop_sleeps(loop_tid));
		helper.act(helper.data);
	}
}

static void helper_start(void)
{
	loop_tid = gettid();
	helper.busy = false;
	EXPECT(sem_init(&helper.begin, 0, 0) == 0 && sem_init(&helper.end, 0, 0) == 0);
	helper.thread = start_thread(help, NULL);
}

/* It has done it. */
static void helper_wait(void)
{
	if (helper.busy)
		wait_for(&helper.end);
	helper.busy = false;
}

static void helper_do(void (*act)(void *), void *data, bool spins)
{
	helper_wait();
	helper.busy = true;
	helper.act = act;
	helper.data = data;
	helper.spins = spins;
	sem_post(&helper.begin);
}

static void helper_end(void)
{
	helper_do(NULL, NULL, false);
	join_thread(helper.thread);
	sem_destroy(&helper.begin);
	sem_destroy(&helper.end);
}

/* ---- What becomes ready within a callback ---------------------------------------------------- */

typedef enum event_t {
	/* by the callback itself */
	NOP_HERE, CHAIN_HERE, TIMER_HERE, TIMER_LATER, TIMER_MOVED, POST_HERE, BH_HERE, IDLE_HERE,
	JOB_HERE, CANCEL_READ, CANCEL_TIMER, CANCEL_QUEUED, CANCEL_ALL, DEADLINE_NOW,
	DEADLINE_LATER,
	/* by another thread, while the callback's loop sleeps */
	POST_THERE, BH_THERE, IDLE_THERE, JOB_THERE, WRITE_THERE, WRITE_NEW, EVENTFD_THERE,
	EVENTFD_NEW,
	/* by the kernel */
	KERNEL_TIMEOUT,
	/* by the callback; last, since the end of the old ring shows on the descriptor later on */
	RESIZE,
	N_EVENTS
} event_t;

typedef struct scene_t {
	kind_t kind;                    /* of the callback that waits */
	int outer;                      /* which call it is in */
	event_t event;                  /* that it waits for */
	bool looks_first;               /* it polls once before anything is there */
	bool exact;                     /* nothing has happened of which the kernel tells late */
	call_t call;                    /* the event's callback */
	call_t chained;                 /* that comes before it */
	call_t other;                   /* of an op that is in flight for another reason */
	iou_bh_t *bh;                   /* the event's */
	iou_bh_t *opener;               /* the scene's own: of kind BH, or an idle one */
	int fds[2], event_fd;           /* what ops of the event wait for */
	int open_fds[2], open_event_fd; /* what the scene's own do */
	uint64_t value;
	struct __kernel_timespec ts;
	int n_wakes;
	bool held, done;
} scene_t;

static void write_fds(void *data)
{
	EXPECT(write(((scene_t *)data)->fds[1], "x", 1) == 1);
}

static void write_event(void *data)
{
	const uint64_t one = 1;

	EXPECT(write(((scene_t *)data)->event_fd, &one, sizeof(one)) == sizeof(one));
}

static void post_call(void *data)
{
	post(the_iou, on_call, data);
}

static void post_event(void *data)
{
	post_call(&((scene_t *)data)->call);
}

static void schedule_event(void *data)
{
	iou_bh_schedule(((scene_t *)data)->bh);
}

static void schedule_idle_event(void *data)
{
	iou_bh_schedule_idle(((scene_t *)data)->bh);
}

static int sleepy_job(void *data)
{
	(void)data;
	WAIT_UNTIL(loop_sleeps(loop_tid));
	return 0;
}

static void queue_event_read(scene_t *scene)
{
	io_uring_prep_read(call_op(the_iou, &scene->call, 0), scene->event_fd, &scene->value,
			   sizeof(scene->value), 0);
	call_queue(the_iou, &scene->call);
}

/* What there is of the event before the scene opens. */
static void event_prepare(scene_t *scene)
{
	switch (scene->event) {
	case CANCEL_READ:
	case CANCEL_ALL:
	case WRITE_THERE:
		call_read(the_iou, &scene->call, 0, scene->fds[0]);
		break;
	case EVENTFD_THERE:
		queue_event_read(scene);
		break;
	case CANCEL_TIMER:
	case TIMER_MOVED:
		call_op(the_iou, &scene->call, 0);
		iou_op_timer(the_iou, scene->call.op, 100 * SECOND, 0, on_call, &scene->call);
		break;
	default:
		break;
	}
}

static void event_timer(call_t *call, uint64_t after_ns)
{
	if (!call->op)
		call_op(the_iou, call, 0);
	iou_op_timer(the_iou, call->op, after_ns, 0, on_call, call);
}

/* In the callback: it comes about, now or soon. */
static void event_begin(scene_t *scene)
{
	call_t *call = &scene->call;

	switch (scene->event) {
	case NOP_HERE:
		call_op(the_iou, call, 0);
		nop_queue(the_iou, call->op, on_call, call);
		break;
	case CHAIN_HERE:
		io_uring_prep_nop(call_op(the_iou, &scene->chained, 0));
		scene->chained.op->sqe->flags |= IOSQE_IO_LINK;
		call_queue(the_iou, &scene->chained);
		io_uring_prep_nop(call_op(the_iou, call, 0));
		call_queue(the_iou, call);
		break;
	case TIMER_HERE:
		event_timer(call, 0);
		break;
	case TIMER_LATER:
	case TIMER_MOVED:
		event_timer(call, 3 * MSEC);
		break;
	case RESIZE:
		event_timer(call, 3 * MSEC);
		look();
		ck_assert_int_eq(iou_resize(the_iou, 8), 0);
		break;
	case POST_HERE:
		post_event(scene);
		break;
	case BH_HERE:
		schedule_event(scene);
		break;
	case IDLE_HERE:
		schedule_idle_event(scene);
		break;
	case JOB_HERE:
	case JOB_THERE:
		call_op(the_iou, call, 0);
		start_job(the_iou, call->op, scene->event == JOB_HERE ? on_nothing : sleepy_job,
			  NULL, on_call, call);
		break;
	case CANCEL_READ:
	case CANCEL_TIMER:
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
		break;
	case CANCEL_QUEUED:
		call_op(the_iou, call, 0);
		nop_queue(the_iou, call->op, on_call, call);
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
		break;
	case CANCEL_ALL:
		ck_assert_int_eq(iou_cancel_all(the_iou), 0);
		break;
	case DEADLINE_NOW:
	case DEADLINE_LATER:
		io_uring_prep_read(call_op(the_iou, call, 0), scene->fds[0], &scene->value, 1, 0);
		iou_op_deadline(the_iou, call->op, scene->event == DEADLINE_NOW ? 0 : 3 * MSEC);
		call_queue(the_iou, call);
		break;
	case POST_THERE:
		helper_do(post_event, scene, false);
		break;
	case BH_THERE:
		helper_do(schedule_event, scene, false);
		break;
	case IDLE_THERE:
		helper_do(schedule_idle_event, scene, false);
		break;
	case WRITE_NEW:
		call_read(the_iou, call, 0, scene->fds[0]);
		/* fall through */
	case WRITE_THERE:
		helper_do(write_fds, scene, false);
		break;
	case EVENTFD_NEW:
		queue_event_read(scene);
		/* fall through */
	case EVENTFD_THERE:
		helper_do(write_event, scene, false);
		break;
	case KERNEL_TIMEOUT:
		scene->ts = kernel_time(3 * MSEC);
		io_uring_prep_timeout(call_op(the_iou, call, 0), &scene->ts, 0, 0);
		call_queue(the_iou, call);
		break;
	default:
		ck_abort_msg("no such event");
	}
}

/* ---- The callback that waits ----------------------------------------------------------------- */

enum outer { BY_LOOK, BY_POLL, BY_RUN, BY_SPIN, N_OUTERS };

static int on_scene(void *data)
{
	scene_t *scene = data;

	if (scene->looks_first) {
		look();
		settle();
	}
	event_begin(scene);
	if (scene->exact && scene->event != KERNEL_TIMEOUT)
		ck_assert_msg(readable(0),
			      "event %d: there is something to do, and it is not readable",
			      (int)scene->event);
	scene->n_wakes = loop_until(&scene->call);
	ck_assert_int_eq(scene->call.n, 1);
	if (scene->exact)
		ck_assert_msg(!readable(0), "event %d: readable, and nothing to do",
			      (int)scene->event);
	if (scene->held)
		iou_unhold(the_iou);
	if (scene->held && scene->kind == ENDED && !scene->other.n)
		ck_assert_int_eq(iou_op_cancel(the_iou, scene->other.op), 0);
	scene->done = true;
	return 0;
}

static void open_by_post(void *data)
{
	post(the_iou, on_scene, data);
}

static void open_by_write(void *data)
{
	EXPECT(write(((scene_t *)data)->open_fds[1], "x", 1) == 1);
}

static void open_by_event(void *data)
{
	const uint64_t one = 1;

	EXPECT(write(((scene_t *)data)->open_event_fd, &one, sizeof(one)) == sizeof(one));
}

static void open_by_bh(void *data)
{
	iou_bh_schedule(((scene_t *)data)->opener);
}

static void open_by_idle_bh(void *data)
{
	iou_bh_schedule_idle(((scene_t *)data)->opener);
}

static int opening_job(void *data)
{
	const scene_t *scene = data;

	if (scene->outer == BY_SPIN)
		nap();
	else
		WAIT_UNTIL(loop_sleeps(loop_tid));
	return 0;
}

/* What calls on_scene() while the outer call sleeps, or looks for completions. */
static void open_later(scene_t *scene)
{
	const bool spins = scene->outer == BY_SPIN, by_event = scene->event % 2;
	iou_op_t *op = scene->kind == POST || scene->kind == BH ? NULL : new_op(the_iou);

	switch (scene->kind) {
	case TIMER:
		iou_op_timer(the_iou, op, 3 * MSEC, 0, on_scene, scene);
		break;
	case POST:
		helper_do(open_by_post, scene, spins);
		break;
	case BH:
		helper_do(scene->event % 2 ? open_by_bh : open_by_idle_bh, scene, spins);
		break;
	case JOB:
		start_job(the_iou, op, opening_job, scene, on_scene, scene);
		break;
	case ENDED: /* it waits in the backlog for its deadline */
		call_read(the_iou, &scene->other, 0, scene->open_fds[0]);
		io_uring_prep_nop(op->sqe);
		op->sqe->flags |= IOSQE_IO_DRAIN;
		iou_op_deadline(the_iou, op, 3 * MSEC);
		iou_op_queue(the_iou, op, on_scene, scene);
		break;
	case CQE:
		io_uring_prep_read(op->sqe, by_event ? scene->open_event_fd : scene->open_fds[0],
				   &scene->value, 8, 0);
		iou_op_queue(the_iou, op, on_scene, scene);
		flush(the_iou);
		helper_do(by_event ? open_by_event : open_by_write, scene, spins);
		break;
	default:
		ck_abort_msg("no such kind");
	}
}

static void outer_call(int outer)
{
	if (outer == BY_LOOK) {
		ck_assert(readable(20000));
		look();
	} else if (outer == BY_POLL) {
		ck_assert_int_ge(iou_poll(the_iou, (int64_t)(20 * SECOND)), 0);
	} else {
		run(the_iou);
	}
}

static void play(scene_t *scene, bool later)
{
	uint64_t ignored;

	scene->call = scene->other = (call_t){0};
	scene->held = later;
	scene->done = false;
	event_prepare(scene);
	settle();
	if (later)
		iou_hold(the_iou); /* until it was called */
	if (later)
		open_later(scene);
	else
		make_ready(the_iou, scene->kind, on_scene, scene);
	if (later && (scene->kind == TIMER || scene->kind == ENDED) && scene->event % 2)
		settle(); /* or the clock is not set before the outer call sleeps */
	while (!scene->done)
		outer_call(scene->outer);
	helper_wait();
	settle();
	ck_assert_msg(scene->n_wakes <= (scene->exact ? 3 : 30), "event %d: woken %d times",
		      (int)scene->event, scene->n_wakes);
	ck_assert(read(scene->event_fd, &ignored, sizeof(ignored)) > 0 || errno == EAGAIN);
	ck_assert(recv(scene->fds[0], &ignored, sizeof(ignored), MSG_DONTWAIT) > 0 ||
		  errno == EAGAIN);
}

static void new_scene(scene_t *scene, int i, iou_t *iou)
{
	the_iou = iou;
	*scene = (scene_t){.kind = (kind_t)(i / N_OUTERS),
			   .outer = i % N_OUTERS,
			   .event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			   .open_event_fd = eventfd(0, EFD_CLOEXEC)};
	new_socketpair(scene->fds);
	new_socketpair(scene->open_fds);
	scene->bh = new_bh(the_iou, on_call, &scene->call);
	scene->opener = new_bh(the_iou, on_scene, scene);
	helper_start();
}

static void end_scene(scene_t *scene)
{
	helper_end();
	close_pair(scene->fds);
	close_pair(scene->open_fds);
	close(scene->event_fd);
	close(scene->open_event_fd);
	done(the_iou);
}

static iou_t *new_iou_for(int outer)
{
	return new_iou_with(&(iou_config_t){
		.entries = 8, .workers = 1, .spin_ns = outer == BY_SPIN ? 640 * MSEC : 0});
}

/* _i: which kind of callback in which call. It waits for each event, in a call that found it ready
 * and in one that slept, with or without a look before. Some wake-ups more than needed are the
 * kernel's: what an eventfd's write brings about is told once more, some time later, and so is the
 * end of a ring. */
START_TEST(a_callback_waits_on_iou_fd)
{
	scene_t scene;

	new_scene(&scene, _i, new_iou_for(_i % N_OUTERS));
	for (int i = 0; i < N_EVENTS; i++) {
		scene.event = (event_t)i;
		scene.looks_first = (i + _i) % 2;
		/* Where an op is in flight for another reason, there is no resizing. */
		if (scene.outer != BY_LOOK && !(scene.kind == ENDED && scene.event == RESIZE))
			play(&scene, true);
		scene.looks_first = !scene.looks_first;
		play(&scene, false);
	}
	end_scene(&scene);
}
END_TEST

/* _i: as above. Readable as soon as there is something to do, and not when it is done. */
START_TEST(iou_fd_is_exact_in_a_callback)
{
	static const event_t events[] = {NOP_HERE,      CHAIN_HERE, TIMER_HERE,    POST_HERE,
					 BH_HERE,       IDLE_HERE,  CANCEL_READ,   CANCEL_TIMER,
					 CANCEL_QUEUED, CANCEL_ALL, KERNEL_TIMEOUT};
	scene_t scene;

	new_scene(&scene, _i, new_iou_for(_i % N_OUTERS));
	scene.exact = is_exact();
	for (unsigned i = 0; i < 2 * sizeof(events) / sizeof(*events); i++) {
		scene.event = events[i / 2];
		scene.looks_first = i % 2;
		play(&scene, false);
	}
	end_scene(&scene);
}
END_TEST

/* Each event on each kind of ring: the kernel signals their completions in other ways. */
START_TEST(a_callback_waits_on_iou_fd_of_every_ring)
{
	static const unsigned flags[] = {
		IORING_SETUP_CLAMP,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SQPOLL,
	};
	scene_t scene;
	iou_t *iou = NEW_IOU_OF(8, flags[_i]);

	if (!iou)
		return;
	for (int outer = 0; outer < BY_SPIN; outer++) {
		new_scene(&scene, outer, outer ? NEW_IOU_OF(8, flags[_i]) : iou);
		for (int i = 0; i < N_EVENTS; i++) {
			scene.event = (event_t)i;
			scene.kind = i % 3 ? POST : CQE;
			scene.looks_first = i % 2;
			play(&scene, outer != BY_LOOK && i % 4 < 2);
		}
		end_scene(&scene);
	}
}
END_TEST

static int on_first(void *data)
{
	static const event_t events[] = {NOP_HERE,      TIMER_LATER, POST_HERE,
					 CANCEL_QUEUED, POST_THERE,  KERNEL_TIMEOUT};
	call_t *call = data;
	scene_t scene = {.exact = false};

	for (unsigned i = 0; i < sizeof(events) / sizeof(*events); i++) {
		scene.call = (call_t){0};
		scene.event = events[i];
		event_begin(&scene);
		ck_assert_int_le(loop_until(&scene.call), 6);
		settle();
	}
	return on_call(call);
}

/* It did not exist before. */
START_TEST(a_callback_is_the_first_to_ask_for_iou_fd)
{
	helper_start();
	for (int i = 0; i < N_KINDS * 2; i++) {
		call_t call = {0};

		the_iou = new_iou(8);
		make_ready(the_iou, (kind_t)(i / 2), on_first, &call);
		if (i % 2)
			run(the_iou);
		else
			ck_assert_int_eq(iou_poll(the_iou, -1), 1);
		ck_assert_int_eq(call.n, 1);
		helper_wait();
		settle();
		done(the_iou);
	}
	helper_end();
}
END_TEST

#ifdef HAVE_GLIB

static GMainContext *context;
static int n_turns;

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
	(void)fd, (void)condition, (void)data;
	n_turns++;
	look();
	return G_SOURCE_CONTINUE;
}

static void turn_until(const call_t *call)
{
	n_turns = 0;
	while (!call->n)
		g_main_context_iteration(context, TRUE);
	ck_assert_int_le(n_turns, 5);
}

static int on_glib_dialog(void *data)
{
	call_t timer, nop, posted = {0};

	call_op(the_iou, &timer, 0);
	iou_op_timer(the_iou, timer.op, 20 * MSEC, 0, on_call, &timer);
	turn_until(&timer);
	call_op(the_iou, &nop, 0);
	nop_queue(the_iou, nop.op, on_call, &nop);
	turn_until(&nop);
	helper_do(post_call, &posted, false);
	turn_until(&posted);
	return on_call(data);
}

/* A dialog of GLib's: its loop within a callback, with a source that may be dispatched within
 * itself. */
START_TEST(a_loop_of_glib_waits_in_a_callback)
{
	GSource *source;

	helper_start();
	the_iou = new_iou(8);
	context = g_main_context_new();
	source = g_unix_fd_source_new(iou_fd(the_iou), G_IO_IN);
	g_source_set_can_recurse(source, TRUE);
	g_source_set_callback(source, (GSourceFunc)(void (*)(void))on_readable, NULL, NULL);
	g_source_attach(source, context);
	for (int i = 0; i < N_KINDS; i++) {
		call_t call = {0};

		make_ready(the_iou, (kind_t)i, on_glib_dialog, &call);
		while (!call.n)
			g_main_context_iteration(context, TRUE);
	}
	g_source_destroy(source);
	g_source_unref(source);
	g_main_context_unref(context);
	helper_wait();
	settle();
	done(the_iou);
	helper_end();
}
END_TEST

#else

START_TEST(a_loop_of_glib_waits_in_a_callback)
{
	SKIP("needs glib-2.0");
}
END_TEST

#endif

/* ---- What a round has still to deliver ------------------------------------------------------- */

#define N_ITEMS (2 * N_KINDS)

static call_t items[N_ITEMS];

/* Readable as long as any of the items is left, and no longer. */
static int on_loop_for_the_rest(void *data)
{
	on_call(data);
	while (n_order < N_ITEMS) {
		ck_assert_msg(readable(0), "%d are left, and it is not readable",
			      N_ITEMS - n_order);
		ck_assert_int_ge(look(), 1);
	}
	ck_assert_int_eq(look(), 0);
	ck_assert(!is_exact() || !readable(0));
	settle();
	return 0;
}

/* _i: the outer call. Two of each kind are ready; the k-th waits for the rest. */
START_TEST(iou_fd_shows_the_rest_of_a_round)
{
	for (int k = 0; k < N_ITEMS; k++) {
		the_iou = new_iou_for(_i);
		n_order = 0;
		if (k % 2)
			settle(); /* else the callback is the first to ask for the descriptor */
		for (int i = 0; i < N_ITEMS; i++) {
			items[i] = (call_t){.id = i};
			make_ready(the_iou, (kind_t)(i / 2),
				   i == k ? on_loop_for_the_rest : on_call, &items[i]);
		}
		while (n_order < N_ITEMS)
			outer_call(_i);
		for (int i = 0; i < N_ITEMS; i++)
			ck_assert_int_eq(order[i], i);
		settle();
		done(the_iou);
	}
}
END_TEST

static iou_bh_t *bhs[3];
static pthread_t loop_thread;
static int n_waited;

static void on_signal(int sig)
{
	(void)sig;
	for (int i = 0; i < 3; i++)
		iou_bh_schedule(bhs[i]);
}

static void interrupt(void *data)
{
	(void)data;
	EXPECT(pthread_kill(loop_thread, SIGUSR1) == 0);
}

static int on_wait_for_others(void *data)
{
	on_call(data);
	n_waited++;
	while (n_order < 3) {
		ck_assert(readable(0));
		ck_assert_int_ge(look(), 1);
	}
	ck_assert_int_eq(order[2], 2);
	iou_unhold(the_iou);
	return 0;
}

/* Three become ready at once while the loop sleeps, and wake it once. */
START_TEST(iou_fd_shows_the_rest_after_a_sleep)
{
	struct sigaction action = {.sa_handler = on_signal};

	loop_thread = pthread_self();
	helper_start();
	ck_assert_int_eq(sigaction(SIGUSR1, &action, NULL), 0);
	for (int outer = BY_POLL; outer < BY_SPIN; outer++) {
		the_iou = new_iou_for(outer);
		for (int i = 0; i < 3; i++) {
			items[i] = (call_t){.id = i};
			bhs[i] = new_bh(the_iou, i ? on_call : on_wait_for_others, &items[i]);
		}
		for (int i = 0; i < 5; i++) {
			n_order = n_waited = 0;
			settle();
			iou_hold(the_iou);
			helper_do(interrupt, NULL, false);
			outer_call(outer);
			ck_assert_int_eq(n_waited, 1);
			helper_wait();
		}
		done(the_iou);
	}
	signal(SIGUSR1, SIG_DFL);
	helper_end();
}
END_TEST

/* ---- One inside the other -------------------------------------------------------------------- */

#define DEPTH 7

static call_t levels[DEPTH + 1];
static int first_kind, n_levels;

static int on_level(void *data)
{
	call_t *call = data, *inner = call + 1;
	int mine = ++n_levels, kind = (first_kind + mine) % N_KINDS;

	if (mine < DEPTH) {
		if (mine % 2)
			look();
		if (kind == ENDED)
			make_ready(the_iou, ENDED, on_level, inner);
		else
			start(the_iou, (kind_t)kind, on_level, inner);
		ck_assert_int_le(loop_until(inner), 5);
		ck_assert_int_eq(n_levels, DEPTH);
		ck_assert_int_le(settle(), 1);
	} else { /* the innermost waits for another thread, and for the clock */
		call_t timer;

		helper_do(post_call, inner, false);
		ck_assert_int_le(loop_until(inner), 5);
		call_op(the_iou, &timer, 0);
		iou_op_timer(the_iou, timer.op, 5 * MSEC, 0, on_call, &timer);
		ck_assert_int_le(loop_until(&timer), 5);
		ck_assert_int_le(settle(), 1);
	}
	return on_call(call);
}

/* _i: the kind of the outermost. Each callback waits for another one, which does the same. */
START_TEST(callbacks_wait_on_iou_fd_within_each_other)
{
	helper_start();
	for (int outer = 0; outer < N_OUTERS; outer++) {
		the_iou = new_iou_for(outer);
		first_kind = _i;
		n_levels = 0;
		memset(levels, 0, sizeof(levels));
		settle();
		make_ready(the_iou, (kind_t)_i, on_level, &levels[0]);
		while (!levels[0].n)
			outer_call(outer);
		helper_wait();
		settle();
		done(the_iou);
	}
	helper_end();
}
END_TEST

/* ---- What it costs --------------------------------------------------------------------------- */

/* In a callback: nothing for 40 ms. */
static int on_sleep(void *data)
{
	uint64_t cpu_ns = thread_cpu_ns();
	call_t timer;

	call_op(the_iou, &timer, 0);
	iou_op_timer(the_iou, timer.op, 40 * MSEC, 0, on_call, &timer);
	ck_assert_int_le(loop_until(&timer), 5);
	if (!is_slow())
		ck_assert_uint_lt(thread_cpu_ns() - cpu_ns, 20 * MSEC);
	return on_call(data);
}

START_TEST(a_callback_that_waits_on_iou_fd_sleeps)
{
	for (int i = 0; i < N_KINDS; i++) {
		call_t call = {0};

		the_iou = new_iou_for(i % N_OUTERS);
		settle();
		make_ready(the_iou, (kind_t)i, on_sleep, &call);
		while (!call.n)
			outer_call(i % N_OUTERS);
		settle();
		done(the_iou);
	}
}
END_TEST

/* The submitting thread of SQPOLL, which has no other CPU, comes to run as soon as the callback's
 * loop sleeps. */
START_TEST(a_callback_lets_sqpolls_thread_run)
{
	cpu_set_t all, one;
	call_t nop;
	int cpu = sched_getcpu();

	CPU_ZERO(&one);
	CPU_SET(cpu < 0 ? 0 : cpu, &one);
	ck_assert_int_eq(sched_getaffinity(0, sizeof(all), &all), 0);
	ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
	the_iou = NEW_IOU_OF(8, IORING_SETUP_SQPOLL);
	for (int i = 0; the_iou && i < 20; i++) {
		settle();
		io_uring_prep_nop(call_op(the_iou, &nop, 0));
		call_queue(the_iou, &nop);
		ck_assert_int_le(loop_until(&nop), 5);
	}
	ck_assert_int_eq(sched_setaffinity(0, sizeof(all), &all), 0);
	if (the_iou)
		done(the_iou);
}
END_TEST

static int many_fds[2];

/* In a callback: more than the SQ takes at once, none of which ends soon. */
static int on_queue_many(void *data)
{
	static char byte;

	for (int i = 0; i < 100; i++) {
		iou_op_t *op = new_op(the_iou);

		io_uring_prep_read(op->sqe, many_fds[0], &byte, 1, 0);
		iou_op_queue(the_iou, op, on_nothing, NULL);
	}
	return on_call(data);
}

/* What it queues ends at once, and that callback queues many. */
static int on_queue_one(void *data)
{
	nop_queue(the_iou, new_op(the_iou), on_queue_many, data);
	return 0;
}

static bool all_is_submitted(void)
{
	return get_stats(the_iou).backlog == 0 && io_uring_sq_ready(iou_ring(the_iou)) == 0;
}

static int on_poll_for_many(void *data)
{
	call_t inner = {0};

	start(the_iou, POST, on_queue_many, &inner);
	while (!inner.n)
		look();
	ck_assert(all_is_submitted());
	ck_assert_int_eq(iou_cancel_all(the_iou), 0);
	POLL_UNTIL(the_iou, !n_pending(the_iou));
	return on_call(data);
}

/* Of each kind of callback, in either poll, and in one inside a callback; at once, and by the
 * callback of what was queued. */
START_TEST(iou_poll_submits_what_is_queued_before_it_returns)
{
	the_iou = new_iou(8);
	new_socketpair(many_fds);
	settle();
	for (int i = 0; i < 2 * N_KINDS; i++) {
		call_t call = {0};

		for (int late = 0; late < 2; late++) {
			call.n = 0;
			make_ready(the_iou, (kind_t)(i / 2), late ? on_queue_one : on_queue_many,
				   &call);
			while (!call.n)
				outer_call(i % 2 ? BY_POLL : BY_LOOK);
			ck_assert(all_is_submitted());
			ck_assert_int_eq(iou_cancel_all(the_iou), 0);
			POLL_UNTIL(the_iou, !n_pending(the_iou));
		}
		call.n = 0;
		make_ready(the_iou, (kind_t)(i / 2), on_poll_for_many, &call);
		while (!call.n)
			outer_call(i % 2 ? BY_POLL : BY_LOOK);
		POLL_UNTIL(the_iou, !n_pending(the_iou));
	}
	settle();
	close_pair(many_fds);
	done(the_iou);
}
END_TEST

typedef struct sparse_t {
	int fds[2], n;
	iou_op_t *op;
	char byte;
} sparse_t;

static int on_sparse(void *data)
{
	sparse_t *sparse = data;

	sparse->n++;
	io_uring_prep_read(sparse->op->sqe, sparse->fds[0], &sparse->byte, 1, 0);
	iou_op_queue(the_iou, sparse->op, on_sparse, sparse);
	return 0;
}

/* An event now and then costs one poll, and two system calls of the ring: one that finds it, one
 * that submits what its callback queued. */
START_TEST(a_sparse_event_costs_one_poll)
{
	sparse_t sparse = {.n = 0};
	call_t call = {0};
	uint64_t enters;

	the_iou = new_iou(8);
	new_socketpair(sparse.fds);
	sparse.op = new_op(the_iou);
	on_sparse(&sparse);
	settle();
	enters = get_stats(the_iou).enters;
	for (int i = 1; i <= 50; i++) {
		ck_assert_int_eq(write(sparse.fds[1], "x", 1), 1);
		ck_assert(readable(20000));
		ck_assert_int_eq(look(), 1);
		ck_assert(!is_exact() || !readable(0));
		settle();
		ck_assert_int_eq(sparse.n, i + 1);
		if (is_exact())
			ck_assert_uint_le(get_stats(the_iou).enters, enters + 2 * (unsigned)i);
	}
	enters = get_stats(the_iou).enters;
	for (int i = 1; i <= 50; i++) { /* a post: nothing of the ring's */
		post(the_iou, on_call, &call);
		ck_assert(readable(0));
		ck_assert_int_eq(look(), 1);
		ck_assert(!is_exact() || !readable(0));
		settle();
	}
	if (is_exact())
		ck_assert_uint_eq(get_stats(the_iou).enters, enters);
	ck_assert_int_eq(iou_op_cancel(the_iou, sparse.op), 0);
	sparse.n = 0;
	POLL_UNTIL(the_iou, sparse.n);
	ck_assert_int_eq(iou_op_cancel(the_iou, sparse.op), 0); /* it was queued again */
	close_pair(sparse.fds);
	ck_assert_ptr_null(iou_free(the_iou));
}
END_TEST

Suite *dialog_suite(void)
{
	Suite *suite = suite_create("dialog");
	TCase *tcase;

	tcase = TEST_CASE(suite, "waits", a_callback_is_the_first_to_ask_for_iou_fd,
			  a_loop_of_glib_waits_in_a_callback);
	tcase_add_loop_test(tcase, a_callback_waits_on_iou_fd, 0, N_KINDS * N_OUTERS);
	tcase_add_loop_test(tcase, iou_fd_is_exact_in_a_callback, 0, N_KINDS * N_OUTERS);
	tcase_add_loop_test(tcase, a_callback_waits_on_iou_fd_of_every_ring, 0, 5);
	tcase = TEST_CASE(suite, "rest", iou_fd_shows_the_rest_after_a_sleep);
	tcase_add_loop_test(tcase, iou_fd_shows_the_rest_of_a_round, 0, N_OUTERS);
	tcase = TEST_CASE(suite, "nested", NULL);
	tcase_add_loop_test(tcase, callbacks_wait_on_iou_fd_within_each_other, 0, N_KINDS);
	TEST_CASE(suite, "cost", a_callback_that_waits_on_iou_fd_sleeps,
		  a_callback_lets_sqpolls_thread_run,
		  iou_poll_submits_what_is_queued_before_it_returns, a_sparse_event_costs_one_poll);
	return suite;
}
