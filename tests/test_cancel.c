/* SPDX-License-Identifier: MIT */

/* Cancelling: every state that an op can be in, by every way to end it; races with completion and
 * with memory that is used again; and the graceful end of everything. */

#include "helper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
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

static void expect(const call_t *call, int result)
{
	ck_assert_msg(call->n_last == 1, "call %d: %d last callbacks", call->id, call->n_last);
	ck_assert_msg(call->result == result, "call %d: result %d, not %d", call->id, call->result,
		      result);
}

static void call_timer(iou_t *iou, call_t *call, int id, uint64_t after_ns, uint64_t period_ns)
{
	call_op(iou, call, id);
	iou_op_timer(iou, call->op, after_ns, period_ns, on_call, call);
}

/* ---- The table ------------------------------------------------------------------------------- */

enum way { CANCEL, DEADLINE, CANCEL_ALL, FREE, N_WAYS };

#define DEADLINE_NS (10 * MSEC)

/* The stage on which an op is brought into its state. */
static struct scene_t {
	iou_t *iou;
	enum way way;
	call_t call;       /* the op in question */
	call_t others[3];  /* what it takes around it */
	/* two pipes: nothing comes out unless put in; out is full where a state needs that */
	int in[2], out[2];
	int tcp[2], fd;
	char data[65536], byte;
	gate_t gate;
	int n_gated;       /* jobs that wait at it */
	bool acted;        /* in the callback */
	int ret;           /* of iou_op_cancel() there */
} scene;

/* What a cancel gives, and with what result the op ends then; and with which after its deadline. */
typedef struct state_t {
	const char *name;
	void (*enter)(void);
	int ret, cancelled, expired;
	bool stays;  /* neither ends it: what it waits for does */
	bool inside; /* in its callback: that is where the cancel is asked */
} state_t;

#define IGNORED 1000 /* `expired` of what has no deadline */
#define NONE    1001 /* the same of what is over before that; `cancelled` where no callback comes */

static int on_scene(void *data);

/* The op, with its deadline where it is to end by that. */
static struct io_uring_sqe *scene_op(void)
{
	struct io_uring_sqe *sqe = call_op(scene.iou, &scene.call, 0);

	if (scene.way == DEADLINE)
		iou_op_deadline(scene.iou, scene.call.op, DEADLINE_NS);
	return sqe;
}

static void scene_queue(void)
{
	iou_op_queue(scene.iou, scene.call.op, on_scene, &scene.call);
}

static void scene_read(unsigned flags)
{
	struct io_uring_sqe *sqe = scene_op();

	io_uring_prep_read(sqe, scene.in[0], &scene.byte, 1, 0);
	sqe->flags = (uint8_t)flags;
	scene_queue();
}

static void other_read(int i, unsigned flags)
{
	struct io_uring_sqe *sqe = call_op(scene.iou, &scene.others[i], i + 1);

	io_uring_prep_read(sqe, scene.out[0], &scene.byte, 1, 0);
	sqe->flags = (uint8_t)flags;
	call_queue(scene.iou, &scene.others[i]);
}

static void other_nop(int i, unsigned flags)
{
	struct io_uring_sqe *sqe = call_op(scene.iou, &scene.others[i], i + 1);

	io_uring_prep_nop(sqe);
	sqe->flags = (uint8_t)flags;
	call_queue(scene.iou, &scene.others[i]);
}

/* A read that waits, and a no-op that waits for it: what is queued now stays in the backlog. */
static void hold_the_backlog(void)
{
	other_read(0, 0);
	other_nop(1, IOSQE_IO_DRAIN);
}

static void enter_prepared(void)
{
	io_uring_prep_nop(scene_op());
}

static void enter_queued(void)
{
	scene_read(0);
}

static void enter_backlog(void)
{
	hold_the_backlog();
	scene_read(0);
	flush(scene.iou);
}

static void enter_drained(void)
{
	other_read(0, 0);
	scene_read(IOSQE_IO_DRAIN);
	flush(scene.iou);
}

static void enter_head_in_backlog(void)
{
	hold_the_backlog();
	scene_read(IOSQE_IO_LINK);
	other_nop(2, 0);
	flush(scene.iou);
}

static void enter_member_in_backlog(void)
{
	hold_the_backlog();
	other_nop(2, IOSQE_IO_HARDLINK);
	scene_read(0);
	flush(scene.iou);
}

static void enter_head_in_kernel(void)
{
	scene_read(IOSQE_IO_LINK);
	other_read(0, 0);
	flush(scene.iou);
}

static void enter_hard_head_in_kernel(void)
{
	scene_read(IOSQE_IO_HARDLINK);
	other_read(0, IOSQE_IO_HARDLINK);
	other_read(1, 0);
	flush(scene.iou);
}

static void enter_member_in_kernel(void)
{
	other_read(0, IOSQE_IO_LINK);
	scene_read(0);
	flush(scene.iou);
}

static void enter_hard_member_in_kernel(void)
{
	other_read(0, IOSQE_IO_HARDLINK);
	scene_read(IOSQE_IO_HARDLINK);
	other_read(1, 0);
	flush(scene.iou);
}

static void enter_poll_armed(void)
{
	scene_read(0);
	flush(scene.iou);
}

static void enter_receive(void)
{
	io_uring_prep_recv(scene_op(), scene.tcp[0], &scene.byte, 1, 0);
	scene_queue();
	flush(scene.iou);
}

static void enter_timeout(void)
{
	static struct __kernel_timespec far;

	far = kernel_time(FAR);
	io_uring_prep_timeout(scene_op(), &far, 0, 0);
	scene_queue();
	flush(scene.iou);
}

/* Waits in a worker of the kernel's, or is on its way there. */
static void enter_io_wq(void)
{
	struct io_uring_sqe *sqe = scene_op();

	io_uring_prep_openat(sqe, AT_FDCWD, scratch_path("fifo"), O_RDONLY | O_CLOEXEC, 0);
	sqe->flags = IOSQE_ASYNC;
	scene_queue();
	flush(scene.iou);
}

static bool has_completed(void)
{
	get_events(scene.iou);
	return io_uring_cq_ready(iou_ring(scene.iou)) > 0;
}

/* Until a worker of the kernel's sleeps inside the open; where /proc does not tell of what, a
 * while. (Who stops and continues this process interrupts the open: a cancel finds it with -EINTR
 * then.) */
static void wait_for_io_wq(void)
{
	uint64_t until_ns = now_ns() + 20 * MSEC;

	WAIT_UNTIL(n_io_wq_blocked() > 0 || has_completed() ||
		   (n_io_wq_blocked() < 0 && now_ns() > until_ns));
}

static void enter_io_wq_running(void)
{
	enter_io_wq();
	wait_for_io_wq();
}

/* The kernel has one worker, and that is busy. */
static void enter_io_wq_queued(void)
{
	struct io_uring_sqe *sqe = call_op(scene.iou, &scene.others[0], 1);
	unsigned limits[2] = {1, 1};

	ck_assert_int_eq(iou_register(scene.iou, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
	io_uring_prep_openat(sqe, AT_FDCWD, scratch_path("fifo"), O_RDONLY | O_CLOEXEC, 0);
	sqe->flags = IOSQE_ASYNC;
	call_queue(scene.iou, &scene.others[0]);
	flush(scene.iou);
	wait_for_io_wq();
	enter_io_wq();
}

/* After its first event. */
static void enter_multishot(void)
{
	uint64_t one = 1;

	io_uring_prep_poll_multishot(scene_op(), scene.fd, POLLIN);
	scene_queue();
	flush(scene.iou);
	put(scene.fd, &one, sizeof(one));
	POLL_UNTIL(scene.iou, scene.call.n);
}

/* The socket takes no more, and its peer has not read what it took. */
static void fill_socket(void)
{
	int size = 16384; /* fixed, so that it does not grow meanwhile */

	setsockopt(scene.tcp[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	setsockopt(scene.tcp[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	for (int n_quiet = 0; n_quiet < 5; n_quiet++, nap())
		while (send(scene.tcp[0], scene.data, sizeof(scene.data), MSG_DONTWAIT) > 0)
			n_quiet = 0;
}

/* It waits with the caller's pages. */
static void enter_zero_copy_send(void)
{
	fill_socket();
	io_uring_prep_send_zc(scene_op(), scene.tcp[0], scene.data, sizeof(scene.data), 0, 0);
	scene_queue();
	flush(scene.iou);
}

#define ZERO_COPY_SIZE 4096

/* Taken by the socket, since there is room again, but not sent on: the peer has not read what came
 * before. So there is the result, with more to come, and the pages are lent until the peer
 * reads. */
static void enter_zero_copy_sent(void)
{
	int size = 1 << 20;

	fill_socket();
	setsockopt(scene.tcp[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	io_uring_prep_send_zc(scene_op(), scene.tcp[0], scene.data, ZERO_COPY_SIZE, 0, 0);
	scene_queue();
	POLL_UNTIL(scene.iou, scene.call.n);
}

/* If it did take some after all, the pages come back when the peer has read. */
static void read_peer(void)
{
	static char rest[65536];

	while (recv(scene.tcp[1], rest, sizeof(rest), MSG_DONTWAIT) > 0)
		;
}

static void enter_completed(void)
{
	io_uring_prep_nop(scene_op());
	scene_queue();
	flush(scene.iou);
}

static void enter_asked_before(void)
{
	scene_read(0);
	flush(scene.iou);
	ck_assert_int_eq(iou_op_cancel(scene.iou, scene.call.op), 0);
}

static void enter_last_callback(void)
{
	io_uring_prep_nop(scene_op());
	scene_queue();
}

static void enter_callback_of_multishot(void)
{
	io_uring_prep_poll_multishot(scene_op(), scene.fd, POLLIN);
	scene_queue();
	put(scene.fd, &(uint64_t){1}, 8);
}

static void enter_job_queued(void)
{
	block_workers(scene.iou, &scene.gate, 2);
	scene.n_gated = 2;
	scene_op();
	start_job(scene.iou, scene.call.op, on_nothing, NULL, on_scene, &scene.call);
}

static void enter_job_running(void)
{
	scene_op();
	scene.n_gated = 1;
	start_job(scene.iou, scene.call.op, gate_job, &scene.gate, on_scene, &scene.call);
	gate_wait(&scene.gate);
}

static int note_tid(void *data)
{
	__atomic_store_n((pid_t *)data, gettid(), __ATOMIC_RELEASE);
	return 7;
}

/* Its worker sleeps again: it waits for the loop. */
static void enter_job_done(void)
{
	static pid_t tid;

	tid = 0;
	scene_op();
	start_job(scene.iou, scene.call.op, note_tid, &tid, on_scene, &scene.call);
	WAIT_UNTIL(__atomic_load_n(&tid, __ATOMIC_ACQUIRE));
	WAIT_UNTIL(thread_sleeps(tid));
}

static void enter_timer(void)
{
	scene_op();
	iou_op_timer(scene.iou, scene.call.op, FAR, 0, on_scene, &scene.call);
}

static void enter_due_timer(void)
{
	scene_op();
	iou_op_timer(scene.iou, scene.call.op, 0, 0, on_scene, &scene.call);
	sleep_ns(USEC);
}

static void enter_periodic_timer(void)
{
	scene_op();
	iou_op_timer(scene.iou, scene.call.op, 0, FAR, on_scene, &scene.call);
	POLL_UNTIL(scene.iou, scene.call.n);
}

static void enter_ended(void)
{
	enter_timer();
	ck_assert_int_eq(iou_op_cancel(scene.iou, scene.call.op), 0);
}

static void enter_callback_of_timer(void)
{
	scene_op();
	iou_op_timer(scene.iou, scene.call.op, 0, 0, on_scene, &scene.call);
}

static void enter_callback_of_periodic_timer(void)
{
	scene_op();
	iou_op_timer(scene.iou, scene.call.op, 0, FAR, on_scene, &scene.call);
}

static void enter_callback_of_job(void)
{
	scene_op();
	start_job(scene.iou, scene.call.op, on_nothing, NULL, on_scene, &scene.call);
}

static const state_t states[] = {
	/* name; how it comes there; iou_op_cancel()'s answer; its result then, and after its
	 * deadline; stays; inside */
	{"prepared", enter_prepared, -EINVAL, NONE, NONE, false, false},
	{"queued", enter_queued, 0, -ECANCELED, -ETIME, false, false},
	{"in the backlog", enter_backlog, 0, -ECANCELED, -ETIME, false, false},
	{"drained, in the backlog", enter_drained, 0, -ECANCELED, -ETIME, false, false},
	{"head of a chain in the backlog", enter_head_in_backlog, 0, -ECANCELED, -ETIME, false,
	 false},
	{"member of a chain in the backlog", enter_member_in_backlog, 0, -ECANCELED, -ETIME, false,
	 false},
	{"head of a chain in the kernel", enter_head_in_kernel, 0, -ECANCELED, -ETIME, false,
	 false},
	{"head of a hard chain", enter_hard_head_in_kernel, 0, -ECANCELED, -ETIME, false, false},
	{"member of a chain in the kernel", enter_member_in_kernel, -EALREADY, -ECANCELED, -ETIME,
	 true, false},
	{"member of a hard chain", enter_hard_member_in_kernel, -EALREADY, -ECANCELED, -ETIME, true,
	 false},
	{"poll-armed read", enter_poll_armed, 0, -ECANCELED, -ETIME, false, false},
	{"receive", enter_receive, 0, -ECANCELED, -ETIME, false, false},
	{"timeout of the kernel's", enter_timeout, 0, -ECANCELED, -ETIME, false, false},
	{"on its way to io-wq", enter_io_wq, 0, -ECANCELED, -ETIME, false, false},
	{"running in io-wq", enter_io_wq_running, 0, -ECANCELED, -ETIME, false, false},
	{"queued in io-wq", enter_io_wq_queued, 0, -ECANCELED, -ETIME, false, false},
	{"multishot", enter_multishot, 0, -ECANCELED, -ETIME, false, false},
	{"zero-copy send", enter_zero_copy_send, 0, -ECANCELED, -ETIME, false, false},
	{"zero-copy send that was sent", enter_zero_copy_sent, 0, ZERO_COPY_SIZE, ZERO_COPY_SIZE,
	 true, false},
	{"completed, not delivered", enter_completed, 0, 0, 0, false, false},
	{"asked before", enter_asked_before, 0, -ECANCELED, -ECANCELED, false, false},
	{"in its last callback", enter_last_callback, -EINVAL, 0, NONE, false, true},
	{"in a callback of multishot", enter_callback_of_multishot, 0, -ECANCELED, -ETIME, false,
	 true},
	{"job queued", enter_job_queued, 0, -ECANCELED, -ETIME, false, false},
	{"job running", enter_job_running, -EALREADY, 7, 7, true, false},
	{"job done, not delivered", enter_job_done, 0, 7, 7, false, false},
	{"in the callback of a job", enter_callback_of_job, -EINVAL, 0, NONE, false, true},
	{"timer", enter_timer, 0, -ECANCELED, IGNORED, false, false},
	{"timer that is due", enter_due_timer, 0, -ECANCELED, NONE, false, false},
	{"in the callback of a timer", enter_callback_of_timer, -EINVAL, 1, NONE, false, true},
	{"periodic timer", enter_periodic_timer, 0, -ECANCELED, IGNORED, false, false},
	{"in a callback of a periodic timer", enter_callback_of_periodic_timer, 0, -ECANCELED,
	 IGNORED, false, true},
	{"ended in iou, not delivered", enter_ended, 0, -ECANCELED, -ECANCELED, false, false},
};
#define N_STATES (int)(sizeof(states) / sizeof(*states))

static const state_t *the_state;

#define SAY(cond, what, value) ck_assert_msg(cond, "%s: %s is %d", the_state->name, what, value)

static bool is_zero_copy(const state_t *state)
{
	return state->enter == enter_zero_copy_send || state->enter == enter_zero_copy_sent;
}

/* So the peer must read for it to end. */
static bool was_sent(const state_t *state)
{
	return is_zero_copy(state) && scene.call.n && scene.call.result > 0;
}

static bool has_result(const state_t *state, int result)
{
	return scene.call.result == result ||
	       (state->enter == enter_zero_copy_send && was_sent(state));
}

static void act(void)
{
	if (scene.way == CANCEL) {
		scene.ret = iou_op_cancel(scene.iou, scene.call.op);
		/* asking twice is harmless */
		if (iou_op_cancel(scene.iou, scene.call.op) != scene.ret)
			scene.ret = -EPROTO;
	} else if (scene.way == CANCEL_ALL) {
		scene.ret = iou_cancel_all(scene.iou);
	}
	scene.acted = true;
}

/* Notes as on_call does; but a zero-copy send's result is not its notification's. */
static int on_scene(void *data)
{
	call_t *call = data;
	int result = call->result;

	on_call(call);
	if (call->flags & IORING_CQE_F_NOTIF && call->n > 1)
		call->result = result;
	if (the_state->inside && !scene.acted)
		act();
	return 0;
}

static void open_gates(void)
{
	while (scene.n_gated) {
		gate_open(&scene.gate);
		scene.n_gated--;
	}
}

static void begin_scene(enum way way)
{
	memset(&scene, 0, sizeof(scene));
	scene.way = way;
	scene.iou = new_iou_with(&(iou_config_t){.entries = 8, .workers = 2});
	scene.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	gate_init(&scene.gate);
	scene.gate.result = 7;
	new_pipe(scene.in);
	new_pipe(scene.out);
	new_tcp_pair(scene.tcp);
}

static void end_scene(void)
{
	close(scene.fd);
	close_pair(scene.in);
	close_pair(scene.out);
	close_pair(scene.tcp);
}

/* Until *freed. */
static void *open_gates_later(void *freed)
{
	nap();
	open_gates();
	while (!__atomic_load_n((bool *)freed, __ATOMIC_ACQUIRE)) {
		nap();
		read_peer();
	}
	return NULL;
}

/* No callback comes, and nothing is waited for but a running job. */
static void check_free(void)
{
	int n = scene.call.n;
	bool freed = false;
	pthread_t thread = start_thread(open_gates_later, &freed);

	iou_free(scene.iou);
	__atomic_store_n(&freed, true, __ATOMIC_RELEASE);
	join_thread(thread);
	SAY(scene.call.n == n, "callbacks", scene.call.n);
}

/* Rounds until the op has ended. */
static void finish_scene(const state_t *state)
{
	for (uint64_t until_ns = now_ns() + 20 * SECOND;
	     !scene.call.n_last && now_ns() < until_ns;) {
		ck_assert_int_ge(iou_poll(scene.iou, (int64_t)(100 * MSEC)), 0);
		if (was_sent(state))
			read_peer();
	}
	SAY(scene.call.n_last == 1, "last callbacks", scene.call.n_last);
}

/* What is asked for ends the op, whatever else goes on; or what it waited for does. */
static void check_request(const state_t *state)
{
	int result = scene.way == DEADLINE ? state->expired : state->cancelled;

	if (result == NONE) {
		SAY(iou_poll(scene.iou, 0) == 0 && scene.call.n == 0, "callbacks", scene.call.n);
		scene_queue(); /* still the program's */
		result = 0;
	}
	if (state->stays || result == IGNORED) {
		for (int i = 0; i < 3; i++)
			ck_assert_int_ge(iou_poll(scene.iou, (int64_t)MSEC), 0);
		SAY(scene.call.n_last == 0, "last callbacks", scene.call.n_last);
		put(scene.out[1], "x", 1);
		open_gates();
	}
	if (result == IGNORED) {
		ck_assert_int_eq(iou_op_cancel(scene.iou, scene.call.op), 0);
		result = -ECANCELED;
	}
	finish_scene(state);
	SAY(has_result(state, result), "result", scene.call.result);
	open_gates();
	iou_cancel_all(scene.iou); /* the others */
	run(scene.iou);
}

/* The run after it ends by itself. */
static void check_cancel_all(const state_t *state)
{
	int result = state->cancelled == NONE ? 0 : state->cancelled;

	open_gates();
	if (is_zero_copy(state))
		finish_scene(state);
	run(scene.iou);
	SAY(scene.ret == 0, "ret", scene.ret);
	if (state->cancelled == NONE) {
		scene_queue();
		run(scene.iou);
	}
	SAY(has_result(state, result), "result", scene.call.result);
}

/* Returns why it cannot be walked here, or NULL. */
static const char *walk_one(const state_t *state, enum way way)
{
	the_state = state;
	begin_scene(way);
	if (is_zero_copy(state) && !have_op(scene.iou, IORING_OP_SEND_ZC)) {
		iou_free(scene.iou);
		end_scene();
		return "needs IORING_OP_SEND_ZC (6.0)";
	}
	state->enter();
	if (state->enter == enter_zero_copy_sent && scene.call.n_last) {
		done(scene.iou);
		end_scene();
		return "the kernel made a copy at once";
	}
	if (!state->inside)
		act();
	if (way == FREE) {
		check_free();
		end_scene();
		return NULL;
	}
	if (state->inside)
		POLL_UNTIL(scene.iou, scene.acted);
	if (way == CANCEL)
		SAY(scene.ret == state->ret, "ret", scene.ret);
	if (way == DEADLINE)
		sleep_ns(DEADLINE_NS);
	if (way == CANCEL_ALL)
		check_cancel_all(state);
	else
		check_request(state);
	SAY(scene.call.n_last == 1, "last callbacks", scene.call.n_last);
	done(scene.iou);
	end_scene();
	return NULL;
}

/* What a state and a way would not go together: there is no deadline left to pass; free in a
 * callback is misuse. */
static bool is_possible(const state_t *state, enum way way)
{
	if (way == DEADLINE)
		return state->expired != NONE || state->enter == enter_prepared;
	return !(way == FREE && state->inside);
}

static void walk(enum way way)
{
	const char *why = NULL, *one;

	new_fifo("fifo");
	for (int i = 0; i < N_STATES; i++) {
		one = is_possible(&states[i], way) ? walk_one(&states[i], way) : NULL;
		why = one ? one : why;
	}
	if (why)
		ck_skip("cancelling a zero-copy send", why);
}

START_TEST(cancelling_ends_an_op_in_every_state)
{
	walk(CANCEL);
}
END_TEST

START_TEST(a_deadline_ends_an_op_in_every_state)
{
	walk(DEADLINE);
}
END_TEST

START_TEST(cancel_all_ends_an_op_in_every_state)
{
	walk(CANCEL_ALL);
}
END_TEST

START_TEST(free_ends_an_op_in_every_state)
{
	walk(FREE);
}
END_TEST

/* ---- One op ---------------------------------------------------------------------------------- */

START_TEST(cancelling_nothing_is_harmless)
{
	iou_t *iou = new_iou(4);

	ck_assert_int_eq(iou_op_cancel(iou, NULL), -EINVAL);
	ck_assert_int_eq(iou_op_cancel(NULL, NULL), -EINVAL);
	ck_assert_int_eq(iou_cancel_all(NULL), -EINVAL);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	done(iou);
}
END_TEST

/* However often it is asked, in whatever state: one callback, and none within the call. */
START_TEST(cancelling_an_op_often_is_harmless)
{
	iou_t *iou = new_iou(4);
	call_t calls[3];
	int fds[2];

	new_pipe(fds);
	call_read(iou, &calls[0], 0, fds[0]);
	call_read(iou, &calls[1], 1, fds[0]);
	flush(iou);
	for (int i = 0; i < 100; i++) {
		ck_assert_int_eq(iou_op_cancel(iou, calls[0].op), 0);
		if (i % 3 == 0)
			flush(iou);
		ck_assert_int_eq(calls[0].n, 0);
	}
	call_timer(iou, &calls[2], 2, FAR, 0);
	for (int i = 0; i < 100; i++) {
		ck_assert_int_eq(iou_op_cancel(iou, calls[2].op), 0);
		ck_assert_int_eq(iou_cancel_all(iou), 0);
		ck_assert_int_eq(calls[0].n + calls[1].n + calls[2].n, 0);
	}
	run(iou);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(calls[i].n, 1);
		expect(&calls[i], -ECANCELED);
	}
	close_pair(fds);
	done(iou);
}
END_TEST

static int answer;

static int on_begun(void *data)
{
	call_t *call = data;

	if (call->op->flags & IORING_CQE_F_MORE)
		answer = iou_op_cancel(the_iou, call->op);
	return on_call(data);
}

/* The first of the chain has completed, and is held until the answer to its cancel is there. */
START_TEST(an_op_that_has_begun_is_behind_nothing)
{
	int fds[2], event = eventfd(1, EFD_CLOEXEC);
	call_t first, second;
	char byte;

	the_iou = new_iou(8);
	answer = 1;
	new_pipe(fds);
	put(fds[1], "x", 1);
	io_uring_prep_read(call_op(the_iou, &first, 0), fds[0], &byte, 1, 0);
	first.op->sqe->flags = IOSQE_IO_LINK;
	call_queue(the_iou, &first);
	io_uring_prep_poll_multishot(call_op(the_iou, &second, 1), event, POLLIN);
	iou_op_queue(the_iou, second.op, on_begun, &second);
	flush(the_iou);
	ck_assert_int_eq(iou_op_cancel(the_iou, first.op), 0);
	run(the_iou);
	ck_assert_int_eq(answer, 0);
	ck_assert_int_eq(first.result, 1);
	ck_assert_int_eq(second.result, -ECANCELED);
	close(event);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* A cancel that only interrupted the op, or came before the kernel could find it, is repeated:
 * whole crowds of opens, one half of them waiting in io-wq, none of which would ever end by
 * itself. */
START_TEST(cancels_reach_all_that_is_in_io_wq)
{
	enum { N = 24 };
	const char *path = new_fifo("fifo");
	unsigned limits[2] = {8, 8};
	call_t calls[N];

	for (int round = 0; round < 6; round++) {
		iou_t *iou = new_iou(4);

		ck_assert_int_eq(iou_register(iou, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
		for (int i = 0; i < N; i++) {
			io_uring_prep_openat(call_op(iou, &calls[i], i), AT_FDCWD, path,
					     O_RDONLY | O_CLOEXEC, 0);
			calls[i].op->sqe->flags = IOSQE_ASYNC;
			call_queue(iou, &calls[i]);
		}
		flush(iou);
		if (round % 3 == 1)
			nap();
		for (int i = 0; i < N && round % 2; i++)
			ck_assert_int_eq(iou_op_cancel(iou, calls[i].op), 0);
		iou_cancel_all(iou);
		run(iou);
		for (int i = 0; i < N; i++)
			expect(&calls[i], -ECANCELED);
		done(iou);
	}
}
END_TEST

/* Cancelled by an op of the program's own, the kernel's inner codes do not show either; 6.1 says
 * -EINTR. */
START_TEST(the_kernels_inner_codes_do_not_show)
{
	const char *path = new_fifo("fifo");
	iou_t *iou = new_iou(4);
	call_t call, cancel;

	io_uring_prep_openat(call_op(iou, &call, 0), AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	call.op->sqe->flags = IOSQE_ASYNC;
	call_queue(iou, &call);
	flush(iou);
	nap();
	io_uring_prep_cancel64(call_op(iou, &cancel, 1), (uintptr_t)call.op, 0);
	call_queue(iou, &cancel);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert(call.result == -ECANCELED || call.result == -EINTR);
	done(iou);
}
END_TEST

static void queue_write(iou_t *iou, call_t *call, int id, int fd, unsigned flags)
{
	io_uring_prep_write(call_op(iou, call, id), fd, "x", 1, 0);
	call->op->sqe->flags = (uint8_t)flags;
	call_queue(iou, call);
}

/* In the backlog a chain is cut where one of it is cancelled: those before it are a chain of their
 * own, whose last one's failure is nothing to what comes after. */
static void cut_chain_at(int at, bool flushed, bool fails, unsigned link, const int fds[2])
{
	iou_t *iou = new_iou(8);
	call_t calls[6], before, drained;
	char got[8];

	if (flushed) { /* something keeps it there */
		call_read(iou, &before, 10, fds[0]);
		io_uring_prep_nop(call_op(iou, &drained, 11));
		drained.op->sqe->flags = IOSQE_IO_DRAIN;
		call_queue(iou, &drained);
	}
	for (int i = 0; i < 5; i++)
		queue_write(iou, &calls[i], i, fails && i == at - 1 ? -1 : fds[1],
			    i < 3 ? link : 0);
	if (flushed)
		flush(iou);
	ck_assert_int_eq(iou_op_cancel(iou, calls[at].op), 0);
	queue_write(iou, &calls[5], 5, fds[1], 0);
	if (flushed)
		put(fds[1], "x", 1);
	run(iou);
	for (int i = 0; i < 6; i++)
		if (i >= at && i < 4)
			expect(&calls[i], -ECANCELED);
		else if (!fails || i >= 4)
			expect(&calls[i], 1);
		else
			/* (5.10 cancels a chain whole for a bad descriptor) */
			ck_assert_int_eq(calls[i].n, 1);
	ck_assert_int_ge(read(fds[0], got, sizeof(got)), 2);
	done(iou);
}

START_TEST(a_cancel_cuts_a_chain_in_the_backlog)
{
	int fds[2];

	new_pipe(fds);
	for (int at = 0; at < 4; at++) {
		for (int how = 0; how < 4; how++) {
			cut_chain_at(at, how & 1, how & 2, IOSQE_IO_LINK, fds);
			cut_chain_at(at, how & 1, how & 2, IOSQE_IO_HARDLINK, fds);
		}
	}
	close_pair(fds);
}
END_TEST

/* A member that waits in the kernel cannot be found there: iou asks again when its turn has
 * come. */
START_TEST(a_member_of_a_chain_is_cancelled_when_it_starts)
{
	iou_t *iou = new_iou(8);
	call_t calls[4];
	int in[2], never[2];

	new_pipe(in);
	new_pipe(never);
	for (int i = 0; i < 4; i++) {
		static char byte;

		io_uring_prep_read(call_op(iou, &calls[i], i), i < 2 ? in[0] : never[0], &byte, 1,
				   0);
		calls[i].op->sqe->flags = i < 3 ? IOSQE_IO_HARDLINK : 0;
		call_queue(iou, &calls[i]);
	}
	flush(iou);
	ck_assert_int_eq(iou_op_cancel(iou, calls[2].op), -EALREADY);
	ck_assert_int_eq(iou_op_cancel(iou, calls[3].op), -EALREADY);
	ck_assert_int_eq(iou_op_cancel(iou, calls[2].op), -EALREADY); /* twice is harmless */
	put(in[1], "x", 1);
	POLL_UNTIL(iou, calls[0].n);
	ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
	put(in[1], "x", 1);
	run(iou);
	expect(&calls[0], 1);
	expect(&calls[1], 1);
	expect(&calls[2], -ECANCELED);
	expect(&calls[3], -ECANCELED);
	close_pair(in);
	close_pair(never);
	done(iou);
}
END_TEST

/* Jobs that have not started end promptly while all workers are busy, and the rest keep their
 * order. */
START_TEST(jobs_cancelled_before_they_start_end_at_once)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.workers = 1});
	call_t calls[5];
	gate_t gate;

	gate_init(&gate);
	block_workers(iou, &gate, 1);
	n_order = 0;
	for (int i = 0; i < 5; i++) {
		call_op(iou, &calls[i], i);
		start_job(iou, calls[i].op, on_nothing, NULL, on_call, &calls[i]);
	}
	ck_assert_int_eq(iou_op_cancel(iou, calls[3].op), 0);
	ck_assert_int_eq(iou_op_cancel(iou, calls[0].op), 0);
	POLL_UNTIL(iou, calls[0].n && calls[3].n);
	unblock_workers(&gate, 1);
	run(iou);
	ck_assert_int_eq(n_order, 5);
	ck_assert_int_eq(order[0], 3);
	ck_assert_int_eq(order[1], 0);
	ck_assert_int_eq(order[2], 1);
	ck_assert_int_eq(order[3], 2);
	ck_assert_int_eq(order[4], 4);
	for (int i = 0; i < 5; i++)
		expect(&calls[i], i % 3 ? 0 : -ECANCELED);
	done(iou);
}
END_TEST

static int on_cancelled_again(void *data)
{
	call_t *call = data;

	on_call(call);
	if (call->n == 1) { /* pending again, by another door */
		ck_assert_int_eq(call->result, -ECANCELED);
		iou_op_timer(the_iou, call->op, FAR, 0, on_cancelled_again, call);
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
	} else if (call->n == 2) {
		nop_queue(the_iou, call->op, on_cancelled_again, call);
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), 0);
	} else {
		ck_assert_int_eq(iou_op_cancel(the_iou, call->op), -EINVAL);
	}
	return 0;
}

START_TEST(an_op_queued_again_is_cancelled_again)
{
	char byte;
	call_t call;
	int fds[2];

	new_pipe(fds);
	the_iou = new_iou(4);
	io_uring_prep_read(call_op(the_iou, &call, 0), fds[0], &byte, 1, 0);
	iou_op_queue(the_iou, call.op, on_cancelled_again, &call);
	flush(the_iou);
	ck_assert_int_eq(iou_op_cancel(the_iou, call.op), 0);
	run(the_iou);
	ck_assert_int_eq(call.n, 3);
	ck_assert_int_eq(call.result, -ECANCELED);
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* ---- Races ----------------------------------------------------------------------------------- */

/* An op that reads pipe after pipe. Each read but the innocent ones is cancelled when it may just
 * complete; the innocent ones get no data until they have waited for a stray cancel. */
typedef struct victim_t {
	iou_op_t *op;
	int fds[2];
	char byte;
	bool innocent, ended;
	int result;
} victim_t;

#define N_VICTIMS 8

static victim_t victims[N_VICTIMS];
static int n_hit, n_innocent;

static int on_victim(void *data);

static void queue_victim(victim_t *victim, bool innocent)
{
	io_uring_prep_read(victim->op->sqe, victim->fds[0], &victim->byte, 1, 0);
	victim->innocent = innocent;
	victim->ended = false;
	iou_op_queue(the_iou, victim->op, on_victim, victim);
}

static int on_victim(void *data)
{
	victim_t *victim = data;

	victim->result = victim->op->result;
	if (victim->innocent) {
		victim->ended = true;
		n_innocent++;
		n_hit += victim->result != 1;
		return 0;
	}
	queue_victim(victim, true); /* the same memory, the same key */
	return 0;
}

/* Some rounds of: queue, complete or not, cancel at some moment, use again at once, look whether
 * that is hit. */
static void race(uint64_t *seed, int step)
{
	static int n_written[N_VICTIMS];

	for (int i = 0; i < N_VICTIMS; i++) {
		victims[i].op = new_op(the_iou); /* in turn others' memory */
		queue_victim(&victims[i], false);
		n_written[i] = 0;
	}
	if (step % 3)
		flush(the_iou);
	for (int i = 0; i < N_VICTIMS; i++) {
		unsigned what = random_below(seed, 6);

		if (what < 3)
			put(victims[i].fds[1], "x", 1), n_written[i]++;
		if (what == 1)
			flush(the_iou); /* the kernel sees the data, or its own task work */
		if (what == 2)
			ck_assert_int_ge(iou_poll(the_iou, 0), 0);
		if (!victims[i].innocent)
			ck_assert_int_eq(iou_op_cancel(the_iou, victims[i].op), 0);
		if (what == 4)
			flush(the_iou);
		if (what >= 4)
			put(victims[i].fds[1], "x", 1), n_written[i]++;
	}
	/* Each has two reads for its one byte so far, or for none: the second is not to be
	 * cancelled. */
	for (int i = 0; i < N_VICTIMS; i++)
		POLL_UNTIL(the_iou, victims[i].innocent);
	for (int i = 0; i < 2; i++)
		ck_assert_int_ge(iou_poll(the_iou, 0), 0);
	for (int i = 0; i < N_VICTIMS; i++)
		if (!victims[i].ended && n_written[i] < 2)
			put(victims[i].fds[1], "x", 1), n_written[i]++;
	run(the_iou);
	for (int i = 0; i < N_VICTIMS; i++) {
		char rest[4];

		ck_assert(victims[i].ended);
		if (poll(&(struct pollfd){.fd = victims[i].fds[0], .events = POLLIN}, 1, 0) == 1)
			ck_assert_int_gt(read(victims[i].fds[0], rest, sizeof(rest)), 0);
	}
}

START_TEST(a_cancel_never_hits_another_op)
{
	int n_rounds = is_slow() ? 300 : 2500;
	uint64_t seed = 1;

	the_iou = new_iou(4);
	for (int i = 0; i < N_VICTIMS; i++)
		new_pipe(victims[i].fds);
	for (int i = 0; i < n_rounds; i++)
		race(&seed, i);
	ck_assert_int_eq(n_innocent, n_rounds * N_VICTIMS);
	ck_assert_int_eq(n_hit, 0);
	for (int i = 0; i < N_VICTIMS; i++)
		close_pair(victims[i].fds);
	done(the_iou);
}
END_TEST

static int on_hop(void *data)
{
	call_t *call = data;

	on_call(call);
	n_order = 0;
	return 0;
}

/* No-ops complete as they are submitted: the cancel that was asked for before, or is asked for
 * while their CQE waits, comes too late, and must not find the next op in the same place. */
START_TEST(a_cancel_that_comes_late_hits_no_other_op)
{
	int n_rounds = is_slow() ? 1000 : 10000, fds[2];
	iou_t *iou = new_iou(8);
	call_t nop, read;

	new_pipe(fds);
	for (int i = 0; i < n_rounds; i++) {
		io_uring_prep_nop(call_op(iou, &nop, 0));
		if (i % 4 == 3)
			iou_op_deadline(iou, nop.op, 0);
		iou_op_queue(iou, nop.op, on_hop, &nop);
		flush(iou);
		if (i % 4 != 3 && iou_op_cancel(iou, nop.op) != 0)
			ck_abort_msg("not pending");
		if (i % 4 == 1)
			flush(iou);
		while (!nop.n)
			if (iou_poll(iou, i % 4 == 2 ? 0 : -1) < 0)
				ck_abort_msg("iou_poll failed");
		if (nop.result != 0)
			ck_abort_msg("it had completed: %d", nop.result);
		call_read(iou, &read, 1, fds[0]); /* the same memory */
		for (int k = 0; k < 2; k++)
			if (iou_poll(iou, 0) != 0)
				ck_abort_msg("a stray cancel: %d", read.result);
		if (write(fds[1], "x", 1) != 1 || iou_run(iou) != 0 || read.result != 1)
			ck_abort_msg("the read was hit: %d", read.result);
		n_order = 0;
	}
	close_pair(fds);
	done(iou);
}
END_TEST

typedef struct writer_t {
	int fd;
	bool stop;
	unsigned n;
} writer_t;

static void *write_now_and_then(void *data)
{
	writer_t *writer = data;
	uint64_t seed = 99;

	while (!__atomic_load_n(&writer->stop, __ATOMIC_ACQUIRE)) {
		if (write(writer->fd, "x", 1) == 1)
			writer->n++;
		for (unsigned i = random_below(&seed, 3000); i; i--)
			__asm__ volatile("");
		if (random_below(&seed, 50) == 0)
			nap();
	}
	return NULL;
}

/* Another thread completes the reads while they are cancelled, or pass their deadlines of some
 * microseconds: each has one last callback, and no byte is lost by a read that says that it was
 * cancelled. */
START_TEST(cancels_race_with_completions)
{
	int n_rounds = is_slow() ? 500 : 3000, fds[2], n_ends = 0, n_left = 0;
	uint64_t n_read = 0, seed = 17;
	writer_t writer = {0};
	pthread_t thread;
	call_t calls[4];
	iou_t *iou = new_iou(4);

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	fcntl(fds[1], F_SETFL, O_NONBLOCK);
	writer.fd = fds[1];
	thread = start_thread(write_now_and_then, &writer);
	for (int i = 0; i < n_rounds; i++) {
		for (int k = 0; k < 4; k++) {
			static char bytes[4];

			io_uring_prep_read(call_op(iou, &calls[k], k), fds[0], &bytes[k], 1, 0);
			if (k >= 2)
				iou_op_deadline(iou, calls[k].op, random_below(&seed, 60) * USEC);
			call_queue(iou, &calls[k]);
		}
		flush(iou);
		for (unsigned spin = random_below(&seed, 3000); spin; spin--)
			__asm__ volatile("");
		for (int k = 0; k < 2; k++)
			if (iou_op_cancel(iou, calls[k].op) != 0)
				ck_abort_msg("not pending");
		if (iou_run(iou) != 0)
			ck_abort_msg("iou_run failed");
		for (int k = 0; k < 4; k++) {
			int ended = k < 2 ? -ECANCELED : -ETIME;

			n_read += calls[k].result == 1;
			n_ends += calls[k].n == 1 &&
				  (calls[k].result == 1 || calls[k].result == ended);
		}
		n_order = 0;
	}
	__atomic_store_n(&writer.stop, true, __ATOMIC_RELEASE);
	join_thread(thread);
	ck_assert_int_eq(n_ends, 4 * n_rounds);
	while (poll(&(struct pollfd){.fd = fds[0], .events = POLLIN}, 1, 0) == 1) {
		char rest[512];

		n_left += (int)read(fds[0], rest, sizeof(rest));
	}
	ck_assert_uint_eq(n_read + (uint64_t)n_left, writer.n);
	close_pair(fds);
	done(iou);
}
END_TEST

/* Jobs, too, are cancelled while they are taken, run and given back. */
START_TEST(cancels_race_with_jobs)
{
	int n_rounds = is_slow() ? 200 : 2000;
	iou_t *iou = new_iou_with(&(iou_config_t){.workers = 2});
	call_t calls[8];
	uint64_t seed = 23;

	for (int i = 0; i < n_rounds; i++) {
		int rets[8];

		for (int k = 0; k < 8; k++) {
			call_op(iou, &calls[k], k);
			start_job(iou, calls[k].op, on_nothing, NULL, on_call, &calls[k]);
		}
		for (unsigned spin = random_below(&seed, 2000); spin; spin--)
			__asm__ volatile("");
		for (int k = 7; k >= 0; k--)
			rets[k] = iou_op_cancel(iou, calls[k].op);
		if (iou_run(iou) != 0)
			ck_abort_msg("iou_run failed");
		for (int k = 0; k < 8; k++)
			if (calls[k].n != 1 ||
			    (calls[k].result != 0 && calls[k].result != -ECANCELED) ||
			    (rets[k] != 0 && rets[k] != -EALREADY) ||
			    (rets[k] == -EALREADY && calls[k].result != 0))
				ck_abort_msg("cancel: %d, %d times, result %d", rets[k], calls[k].n,
					     calls[k].result);
		n_order = 0;
	}
	done(iou);
}
END_TEST

/* ---- A graceful end -------------------------------------------------------------------------- */

typedef struct crowd_t {
	call_t calls[40];
	int n;
	gate_t gate;
	int pipe[2], fd;
} crowd_t;

static struct io_uring_sqe *join_crowd(iou_t *iou, crowd_t *crowd)
{
	struct io_uring_sqe *sqe = call_op(iou, &crowd->calls[crowd->n], crowd->n);

	crowd->n++;
	return sqe;
}

static void queue_crowd(iou_t *iou, crowd_t *crowd, unsigned flags)
{
	call_t *call = &crowd->calls[crowd->n - 1];

	call->op->sqe->flags = (uint8_t)flags;
	call_queue(iou, call);
}

/* Of each kind some, by each door; two jobs run. */
static void gather(iou_t *iou, crowd_t *crowd)
{
	static struct __kernel_timespec far;
	static char byte;

	memset(crowd, 0, sizeof(*crowd));
	gate_init(&crowd->gate);
	new_pipe(crowd->pipe);
	crowd->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	far = kernel_time(FAR);
	for (int i = 0; i < 4; i++) {
		io_uring_prep_read(join_crowd(iou, crowd), crowd->pipe[0], &byte, 1, 0);
		queue_crowd(iou, crowd, 0);
		io_uring_prep_openat(join_crowd(iou, crowd), AT_FDCWD, scratch_path("fifo"),
				     O_RDONLY | O_CLOEXEC, 0);
		queue_crowd(iou, crowd, IOSQE_ASYNC);
		io_uring_prep_timeout(join_crowd(iou, crowd), &far, 0, 0);
		queue_crowd(iou, crowd, 0);
		io_uring_prep_poll_multishot(join_crowd(iou, crowd), crowd->fd, POLLIN);
		queue_crowd(iou, crowd, 0);
	}
	for (int i = 0; i < 3; i++) { /* a chain in the kernel */
		io_uring_prep_read(join_crowd(iou, crowd), crowd->pipe[0], &byte, 1, 0);
		queue_crowd(iou, crowd, i < 2 ? IOSQE_IO_HARDLINK : 0);
	}
	flush(iou);
	for (int i = 0; i < 5; i++) { /* two jobs run, three wait */
		call_t *call = &crowd->calls[crowd->n];

		join_crowd(iou, crowd);
		start_job(iou, call->op, i < 2 ? gate_job : on_nothing, &crowd->gate, on_call,
			  call);
		if (i < 2)
			gate_wait(&crowd->gate);
	}
	for (int i = 0; i < 3; i++) {
		call_timer(iou, &crowd->calls[crowd->n], crowd->n, FAR, i % 2 ? FAR : 0);
		crowd->n++;
	}
	for (int i = 0; i < 5; i++) { /* and one in the backlog, behind a drained op */
		io_uring_prep_read(join_crowd(iou, crowd), crowd->pipe[0], &byte, 1, 0);
		queue_crowd(iou, crowd, i == 0 ? IOSQE_IO_DRAIN : i < 4 ? IOSQE_IO_LINK : 0);
	}
	io_uring_prep_nop(join_crowd(iou, crowd));
	queue_crowd(iou, crowd, 0);
}

static void dismiss(crowd_t *crowd)
{
	for (int i = 0; i < crowd->n; i++) {
		bool runs = crowd->calls[i].result == 0;

		ck_assert_int_eq(crowd->calls[i].n_last, 1);
		ck_assert_msg(runs || crowd->calls[i].result == -ECANCELED, "%d: %d", i,
			      crowd->calls[i].result);
	}
	close_pair(crowd->pipe);
	close(crowd->fd);
}

static int on_open_gate(void *data)
{
	crowd_t *crowd = data;

	gate_open(&crowd->gate);
	gate_open(&crowd->gate);
	return 0;
}

/* After iou_cancel_all() the run ends by itself: every op has its last callback, posts and bottom
 * halves theirs. */
START_TEST(cancel_all_ends_gracefully)
{
	call_t posted = {0};
	crowd_t crowd;

	new_fifo("fifo");
	for (int flushed = 0; flushed < 4; flushed++) {
		iou_t *iou = new_iou_with(&(iou_config_t){.entries = 8, .workers = 2});

		gather(iou, &crowd);
		if (flushed & 1)
			flush(iou);
		if (flushed & 2)
			ck_assert_int_ge(iou_poll(iou, (int64_t)MSEC), 0);
		post(iou, on_open_gate, &crowd);
		iou_bh_schedule(new_bh(iou, on_call, &posted));
		ck_assert_int_eq(iou_cancel_all(iou), 0);
		ck_assert_int_eq(posted.n, flushed);
		run(iou);
		ck_assert_int_eq(posted.n, flushed + 1);
		dismiss(&crowd);
		done(iou);
	}
}
END_TEST

static int on_unhold(void *data)
{
	on_call(data);
	iou_unhold(the_iou);
	return 0;
}

/* Holds stay; what is queued afterwards is not affected. */
START_TEST(cancel_all_is_for_those_pending)
{
	call_t before[2], after[4], held = {0};
	iou_t *iou = new_iou(4);
	int fds[2];

	the_iou = iou;
	new_pipe(fds);
	iou_hold(iou);
	call_read(iou, &before[0], 0, fds[0]);
	flush(iou);
	call_timer(iou, &before[1], 1, FAR, 0);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	call_read(iou, &after[0], 2, fds[0]);
	call_timer(iou, &after[1], 3, 5 * MSEC, 0);
	call_op(iou, &after[2], 4);
	start_job(iou, after[2].op, on_nothing, NULL, on_call, &after[2]);
	io_uring_prep_nop(call_op(iou, &after[3], 5));
	call_queue(iou, &after[3]);
	POLL_UNTIL(iou, before[0].n && before[1].n && after[1].n && after[2].n && after[3].n);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0);
	put(fds[1], "x", 1);
	POLL_UNTIL(iou, after[0].n);
	expect(&before[0], -ECANCELED);
	expect(&before[1], -ECANCELED);
	expect(&after[0], 1);
	expect(&after[1], 1);
	expect(&after[2], 0);
	expect(&after[3], 0);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(5 * MSEC)), 0); /* the hold is there: it waits */
	post(iou, on_unhold, &held);
	run(iou);
	ck_assert_int_eq(held.n, 1);
	close_pair(fds);
	done(iou);
}
END_TEST

static int n_again, go_on_fd;

static int on_go_on(void *data);

static void queue_go_on(call_t *call)
{
	static char byte;

	io_uring_prep_read(call->op->sqe, go_on_fd, &byte, 1, 0);
	iou_op_queue(the_iou, call->op, on_go_on, call);
}

static int on_go_on(void *data)
{
	call_t *call = data;

	on_call(call);
	if (call->n == 1) {
		ck_assert_int_eq(call->result, -ECANCELED);
		n_again++;
		queue_go_on(call); /* not affected: queued afterwards */
	}
	return 0;
}

static int on_cancel_all(void *data)
{
	call_t *call = data;

	on_call(call);
	return iou_cancel_all(the_iou);
}

/* In a callback, with others of the same round still to come; those that queue themselves again go
 * on. */
START_TEST(cancel_all_works_in_a_callback)
{
	enum { N = 100 };
	call_t calls[N], first = {0}, rest = {0};
	char bytes[N];
	int fds[2];

	new_pipe(fds);
	go_on_fd = fds[0];
	the_iou = new_iou(4);
	for (int i = 0; i < N; i++) {
		call_op(the_iou, &calls[i], i);
		queue_go_on(&calls[i]);
	}
	make_ready(the_iou, TIMER, on_cancel_all, &first);
	make_ready(the_iou, JOB, on_call, &rest);
	make_ready(the_iou, CQE, on_call, &rest);
	POLL_UNTIL(the_iou, n_again == N);
	ck_assert_int_eq(first.n, 1);
	ck_assert_int_eq(rest.n, 2);
	ck_assert_int_eq(iou_poll(the_iou, 0), 0);
	memset(bytes, 'x', sizeof(bytes));
	put(fds[1], bytes, sizeof(bytes));
	run(the_iou);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(calls[i].n, 2);
		ck_assert_int_eq(calls[i].result, 1);
	}
	close_pair(fds);
	done(the_iou);
}
END_TEST

/* Ten thousand, far more than the SQ and the CQ hold. */
START_TEST(cancel_all_ends_ten_thousand_ops)
{
	int n = is_slow() ? 2000 : 10000, fds[2];
	call_t *calls = calloc((size_t)n, sizeof(*calls));
	iou_t *iou = new_iou(2);

	new_pipe(fds);
	for (int i = 0; i < n; i++)
		call_read(iou, &calls[i], i, fds[0]);
	ck_assert_int_eq(iou_flush(iou), 0);
	ck_assert_uint_eq(get_stats(iou).backlog, 0);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	for (int i = 0; i < n; i++)
		if (calls[i].n != 1 || calls[i].result != -ECANCELED)
			ck_abort_msg("call %d: %d times, result %d", i, calls[i].n,
				     calls[i].result);
	free(calls);
	close_pair(fds);
	done(iou);
}
END_TEST

/* ---- At random ------------------------------------------------------------------------------- */

/* Slots, each with an op of some kind or none. Whatever is queued, fed, cancelled and queued again
 * in whatever order: each op has one last callback, with a result that it can have. */
#define N_SLOTS 48

typedef struct slot_t {
	iou_op_t *op; /* NULL: none */
	int kind;
	char byte;
} slot_t;

static slot_t slots[N_SLOTS];
static uint64_t random_seed;
static int random_pipe[2], random_fd, n_begun, n_over;
static bool ending;
static struct __kernel_timespec random_time;

static unsigned below(unsigned n)
{
	return random_below(&random_seed, n);
}

static int on_slot(void *data);

/* By one of the doors, with a deadline or without, linked or drained now and then. */
static void start_slot(slot_t *slot)
{
	struct io_uring_sqe *sqe = slot->op->sqe;

	memset(sqe, 0, sizeof(*sqe));
	slot->kind = (int)below(9);
	n_begun++;
	if (below(4) == 0)
		iou_op_deadline(the_iou, slot->op, below(300) * USEC);
	switch (slot->kind) {
	case 0:
		start_job(the_iou, slot->op, on_nothing, NULL, on_slot, slot);
		return;
	case 1:
		iou_op_timer(the_iou, slot->op, below(300) * USEC, below(3) ? 0 : 100 * USEC,
			     on_slot, slot);
		return;
	case 2:
		io_uring_prep_poll_multishot(sqe, random_fd, POLLIN);
		break;
	case 3:
		io_uring_prep_timeout(sqe, &random_time, 0, 0);
		break;
	case 4:
		io_uring_prep_openat(sqe, AT_FDCWD, scratch_path("fifo"), O_RDONLY | O_CLOEXEC, 0);
		sqe->flags = IOSQE_ASYNC;
		break;
	case 5:
	case 6:
		io_uring_prep_nop(sqe);
		break;
	default:
		io_uring_prep_read(sqe, random_pipe[0], &slot->byte, 1, 0);
	}
	if (below(8) == 0)
		sqe->flags |=
			(uint8_t[]){IOSQE_IO_LINK, IOSQE_IO_HARDLINK, IOSQE_IO_DRAIN}[below(3)];
	iou_op_queue(the_iou, slot->op, on_slot, slot);
}

static bool is_possible_result(const slot_t *slot, int result)
{
	if (result == -ECANCELED || result == -ETIME || result == -E2BIG)
		return true;
	/* before 6.2 a linked open is tried without waiting, whatever it says */
	if (slot->kind == 4 && result >= 0) {
		close(result);
		return true;
	}
	if (slot->kind == 1 || slot->kind == 2)
		return result > 0;
	return slot->kind >= 7 ? result == 1 : result == 0;
}

static int on_slot(void *data)
{
	slot_t *slot = data;
	iou_op_t *op = slot->op;

	if (!op || !is_possible_result(slot, op->result))
		ck_abort_msg("kind %d: result %d", slot->kind, op ? op->result : 1);
	if (op->flags & IORING_CQE_F_MORE)
		return below(4) ? 0 : iou_op_cancel(the_iou, op);
	n_over++;
	if (ending || below(3))
		slot->op = NULL;
	else
		start_slot(slot);
	return 0;
}

static void step_slot(slot_t *slot)
{
	uint64_t one = 1;
	int result;

	if (!slot->op) {
		slot->op = new_op(the_iou);
		start_slot(slot);
		return;
	}
	switch (below(12)) {
	case 0:
	case 1:
	case 2:
		if (iou_op_cancel(the_iou, slot->op) == -EINVAL)
			ck_abort_msg("not pending");
		break;
	case 3:
		put(random_pipe[1], "x", 1);
		break;
	case 4:
		put(random_fd, &one, sizeof(one));
		break;
	case 5:
		flush(the_iou);
		break;
	case 6:
		if (below(20) == 0)
			iou_cancel_all(the_iou);
		break;
	default:
		result = iou_poll(the_iou, below(2) * 50 * (int64_t)USEC);
		if (result < 0)
			ck_abort_msg("iou_poll: %s", strerror(-result));
	}
}

static void end_slots(void)
{
	ending = true;
	iou_cancel_all(the_iou);
	run(the_iou);
	ending = false;
	ck_assert_int_eq(n_over, n_begun);
	for (int i = 0; i < N_SLOTS; i++)
		ck_assert_ptr_null(slots[i].op);
}

START_TEST(ops_cancelled_at_random_end_once)
{
	int n_steps = is_full() ? 1000000 : is_slow() ? 10000 : 60000;
	char rest[4096];

	new_fifo("fifo");
	new_pipe(random_pipe);
	random_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	random_time = kernel_time(100 * USEC);
	for (unsigned entries = 2; entries <= 32; entries *= 4) {
		the_iou = new_iou(entries);
		random_seed = entries;
		for (int i = 0; i < n_steps / 3; i++) {
			step_slot(&slots[below(N_SLOTS)]);
			if (i % 1000 == 0 &&
			    poll(&(struct pollfd){.fd = random_pipe[0], .events = POLLIN}, 1, 0) ==
				    1)
				ck_assert_int_gt(read(random_pipe[0], rest, sizeof(rest)), 0);
		}
		end_slots();
		done(the_iou);
	}
	close(random_fd);
	close_pair(random_pipe);
}
END_TEST

Suite *cancel_suite(void)
{
	Suite *suite = suite_create("cancel");

	TEST_CASE(suite, "table", cancelling_ends_an_op_in_every_state,
		  a_deadline_ends_an_op_in_every_state, cancel_all_ends_an_op_in_every_state,
		  free_ends_an_op_in_every_state);
	TEST_CASE(suite, "one", cancelling_nothing_is_harmless, cancelling_an_op_often_is_harmless,
		  cancels_reach_all_that_is_in_io_wq, the_kernels_inner_codes_do_not_show,
		  an_op_that_has_begun_is_behind_nothing,
		  a_cancel_cuts_a_chain_in_the_backlog,
		  a_member_of_a_chain_is_cancelled_when_it_starts,
		  jobs_cancelled_before_they_start_end_at_once,
		  an_op_queued_again_is_cancelled_again);
	TEST_CASE(suite, "races", a_cancel_never_hits_another_op,
		  a_cancel_that_comes_late_hits_no_other_op, cancels_race_with_completions,
		  cancels_race_with_jobs);
	TEST_CASE(suite, "random", ops_cancelled_at_random_end_once);
	TEST_CASE(suite, "all", cancel_all_ends_gracefully, cancel_all_is_for_those_pending,
		  cancel_all_works_in_a_callback, cancel_all_ends_ten_thousand_ops);
	return suite;
}
