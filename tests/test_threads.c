/* SPDX-License-Identifier: MIT */

/* Who owns an iou, what others get, handing it over, holds, and many loops on many threads. */

#include "helper.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>

static iou_t *the_iou;

/* ---- Ownership ------------------------------------------------------------------------------- */

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static int on_handler(iou_handler_t *handler)
{
	(void)handler;
	return 0;
}

typedef struct foreign_t {
	iou_t *iou;
	iou_op_t *op;
} foreign_t;

/* Every [loop thread] call that has a return value, from the wrong thread. */
static void call_from_outside(void *data)
{
	foreign_t *foreign = data;
	iou_handler_t handler = {.cb = on_handler};
	iou_t *iou = foreign->iou;
	iou_op_t *op = foreign->op;

#define REFUSED(call) EXPECT((call) == -EEXIST)
#define REFUSED_NULL(call) \
	do { \
		errno = 0; \
		EXPECT((call) == NULL); \
		EXPECT(errno == EEXIST); \
	} while (0)
	REFUSED_NULL(iou_op_new(iou));
	REFUSED_NULL(iou_op_env(op, 8));
	REFUSED_NULL(iou_ring(iou));
	REFUSED(iou_flush(iou));
	REFUSED(iou_run(iou));
	REFUSED(iou_poll(iou, 0));
	REFUSED(iou_poll(iou, -1));
	REFUSED(iou_resize(iou, 8));
	REFUSED(iou_async(iou, on_nothing, NULL, on_nothing, NULL));
	REFUSED(iou_op_async(iou, op, on_nothing, NULL, on_nothing, NULL));
	REFUSED(iou_op_cancel(iou, op));
	REFUSED(iou_cancel_all(iou));
	REFUSED(iou_add_sqe(iou, prep_nop, NULL, &handler));
	REFUSED(iou_fd(iou));
	EXPECT(iou_current() == NULL);
}

static void first_flush(void *iou)
{
	EXPECT(iou_flush(iou) == 0);
}

static void first_run(void *iou)
{
	EXPECT(iou_run(iou) == 0);
}

static void first_poll(void *iou)
{
	EXPECT(iou_poll(iou, 0) == 0);
}

START_TEST(an_iou_belongs_to_the_first_that_flushes_runs_or_polls)
{
	static void (*const firsts[])(void *) = {first_flush, first_run, first_poll};

	for (int i = 0; i < 3; i++) {
		foreign_t foreign = {.iou = new_iou(4)};
		call_t call;

		foreign.op = new_op(foreign.iou);
		firsts[i](foreign.iou);
		in_thread(call_from_outside, &foreign);
		io_uring_prep_nop(foreign.op->sqe); /* the op was not touched */
		call = (call_t){.op = foreign.op};
		call_queue(foreign.iou, &call);
		run(foreign.iou);
		ck_assert_int_eq(call.n, 1);
		done(foreign.iou);
	}
}
END_TEST

/* Set up here, run or flushed there: from then on it is theirs, here everything is refused, and
 * after its owner has ended it can be freed, since nothing is in flight. */
START_TEST(an_iou_is_set_up_by_one_thread_and_run_by_another)
{
	static void (*const firsts[])(void *) = {first_flush, first_run};

	for (int i = 0; i < 2; i++) {
		foreign_t foreign = {.iou = new_iou(4)};
		call_t calls[4] = {{0}};

		foreign.op = new_op(foreign.iou);
		if (i == 1)
			start(foreign.iou, CQE, on_call, &calls[0]);
		call_op(foreign.iou, &calls[1], 1);
		iou_op_timer(foreign.iou, calls[1].op, MSEC, 0, on_call, &calls[1]);
		post(foreign.iou, on_call, &calls[2]);
		ck_assert_int_eq(iou_async(foreign.iou, on_nothing, NULL, on_call, &calls[3]), 0);
		in_thread(firsts[i], foreign.iou);
		for (int j = 0; j < 4; j++)
			ck_assert_int_eq(calls[j].n, i);
		call_from_outside(&foreign);
		ck_assert_ptr_null(iou_free(foreign.iou));
	}
}
END_TEST

static int on_from_outside(void *data)
{
	in_thread(call_from_outside, data); /* while the loop runs, in a callback */
	return 0;
}

START_TEST(a_callback_does_not_open_the_iou_to_others)
{
	foreign_t foreign = {.iou = new_iou(4)};

	foreign.op = new_op(foreign.iou);
	post(foreign.iou, on_from_outside, &foreign);
	run(foreign.iou);
	iou_op_free(foreign.iou, foreign.op);
	done(foreign.iou);
}
END_TEST

static int call_from_job(void *data)
{
	foreign_t *foreign = data;

	EXPECT(iou_op_new(foreign->iou) == NULL);
	EXPECT(iou_run(foreign->iou) == -EEXIST);
	EXPECT(iou_flush(foreign->iou) == -EEXIST);
	EXPECT(iou_op_cancel(foreign->iou, foreign->op) == -EEXIST);
	return 0;
}

START_TEST(a_job_is_another_thread)
{
	foreign_t foreign = {.iou = new_iou(4)};

	foreign.op = new_op(foreign.iou);
	run(foreign.iou);
	start_job(foreign.iou, foreign.op, call_from_job, &foreign, on_nothing, NULL);
	run(foreign.iou);
	done(foreign.iou);
}
END_TEST

/* ---- Handing over ---------------------------------------------------------------------------- */

static call_t handed;

static void poll_once(void *iou)
{
	int n = iou_poll(iou, 0);

	EXPECT(n >= 0);
}

static void *wait_for_handed(void *iou)
{
	while (!handed.n)
		EXPECT(iou_poll(iou, (int64_t)(20 * SECOND)) >= 0);
	return NULL;
}

/* Without SINGLE_ISSUER given, thread after thread may drive it, also with ops of the last one in
 * flight. */
START_TEST(an_iou_is_handed_from_thread_to_thread)
{
	static const unsigned flags[] = {IORING_SETUP_CLAMP, IORING_SETUP_COOP_TASKRUN,
					 IORING_SETUP_SQPOLL,
					 IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG};

	for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		iou_t *iou = NEW_IOU_OF(4, flags[i]);
		int fds[2], n = 0;

		if (!iou)
			continue;
		new_pipe(fds);
		for (int hop = 0; hop < 5; hop++) {
			start(iou, CQE, on_nothing, &n);
			in_thread(poll_once, iou);
			ck_assert_int_ge(iou_poll(iou, 0), 0);
			in_thread(first_run, iou);
		}
		call_read(iou, &handed, 0, fds[0]);
		flush(iou); /* submitted here, delivered there */
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		{
			pthread_t thread = start_thread(wait_for_handed, iou);

			ck_assert_int_eq(write(fds[1], "x", 1), 1);
			join_thread(thread);
		}
		ck_assert_int_eq(handed.result, 1);
		run(iou);
		close_pair(fds);
		done(iou);
	}
}
END_TEST

/* As long as no loop runs, any thread may take a bottom half off its line, while the iou's thread
 * looks at that. */
static atomic_bool shown;

static void *schedule_and_cancel(void *bhs)
{
	while (!shown) {
		for (iou_bh_t **bh = bhs; *bh; bh++)
			iou_bh_schedule(*bh);
		for (iou_bh_t **bh = bhs; *bh; bh++)
			iou_bh_cancel(*bh);
	}
	return NULL;
}

START_TEST(one_thread_looks_at_an_iou_while_another_cancels)
{
	/* before its first run, and handed on */
	iou_t *ious[] = {new_iou(4), NEW_IOU_OF(4, IORING_SETUP_SUBMIT_ALL)};
	FILE *nothing = fopen("/dev/null", "w");
	iou_bh_t *bhs[33] = {NULL};

	for (int i = 0; i < 2; i++) {
		uint64_t until_ns = now_ns() + SECOND / 2;
		pthread_t thread;

		if (!ious[i])
			continue;
		for (int k = 0; k < 32; k++)
			bhs[k] = new_bh(ious[i], on_nothing, NULL);
		if (i)
			ck_assert_int_ge(iou_fd(ious[i]), 0);
		shown = false;
		thread = start_thread(schedule_and_cancel, bhs);
		while (now_ns() < until_ns) {
			iou_dump(ious[i], nothing);
			if (i)
				flush(ious[i]);
		}
		shown = true;
		join_thread(thread);
		run(ious[i]);
		done(ious[i]);
	}
	fclose(nothing);
}
END_TEST

/* ---- Holds ----------------------------------------------------------------------------------- */

static void *last_touch(void *iou)
{
	post(iou, on_nothing, NULL);
	iou_unhold(iou);
	return NULL;
}

/* The run ends once it sees the unhold, and the iou is freed while the other may still be on its
 * way out. */
START_TEST(unhold_is_the_last_touch)
{
	int n = is_slow() ? 100 : 400;
	pthread_t thread;

	for (int i = 0; i < n; i++) {
		iou_t *iou = new_iou(2);

		iou_hold(iou);
		thread = start_thread(last_touch, iou);
		run(iou);
		ck_assert_ptr_null(iou_free(iou));
		join_thread(thread);
	}
}
END_TEST

/* The same many times for one thread: hold and unhold race with the loop's look at the count. */
static int n_held;

static void *hold_and_let_go(void *data)
{
	iou_t *iou = data;

	for (int i = 0; i < n_held; i++) {
		iou_hold(iou);
		if (i % 16 == 0)
			post(iou, on_nothing, NULL);
		iou_unhold(iou);
	}
	iou_unhold(iou);
	return NULL;
}

START_TEST(threads_hold_an_iou_and_let_go)
{
	iou_t *iou = new_iou(2);
	pthread_t threads[3];

	n_held = is_slow() ? 2000 : 20000;
	for (int i = 0; i < 3; i++) {
		iou_hold(iou);
		threads[i] = start_thread(hold_and_let_go, iou);
	}
	run(iou);
	for (int i = 0; i < 3; i++)
		join_thread(threads[i]);
	done(iou);
}
END_TEST

/* ---- Everything any thread may do, at once --------------------------------------------------- */

static int n_posted, n_bh_runs, n_jobs_back;
static iou_bh_t *common_bh;

static int on_job_back(void *data)
{
	(void)data;
	n_jobs_back++;
	return 0;
}

static int on_posted(void *data)
{
	(void)data;
	n_posted++;
	return n_posted % 10 ? 0 : iou_async(the_iou, on_nothing, NULL, on_job_back, NULL);
}

static int on_common_bh(void *data)
{
	(void)data;
	n_bh_runs++;
	return 0;
}

static void *do_anything(void *data)
{
	uint64_t seed = (uint64_t)(uintptr_t)data;
	iou_bh_t *own = new_bh(the_iou, on_common_bh, NULL);
	int n = is_slow() ? 2000 : 20000;

	for (int i = 0; i < n; i++) {
		switch (random_below(&seed, 10)) {
		case 0:
			iou_quit(the_iou);
			break;
		case 1:
			iou_bh_schedule(common_bh);
			break;
		case 2:
			iou_bh_schedule_idle(random_below(&seed, 2) ? own : common_bh);
			break;
		case 3:
			iou_bh_cancel(random_below(&seed, 2) ? own : common_bh);
			break;
		case 4:
			iou_bh_delete(own);
			own = new_bh(the_iou, on_common_bh, NULL);
			break;
		case 5:
			iou_bh_schedule(own);
			break;
		case 6:
			if (random_below(&seed, 100) == 0)
				nap();
			break;
		default:
			post(the_iou, on_posted, NULL);
			__atomic_fetch_add(&n_held, 1, __ATOMIC_RELAXED);
		}
	}
	iou_unhold(the_iou);
	return NULL;
}

static bool all_unheld(pthread_t *threads, int n)
{
	for (int i = 0; i < n; i++)
		if (threads[i] && pthread_tryjoin_np(threads[i], NULL) == 0)
			threads[i] = 0;
	for (int i = 0; i < n; i++)
		if (threads[i])
			return false;
	return true;
}

START_TEST(other_threads_make_every_call_meant_for_them)
{
	enum { N = 3 };
	pthread_t threads[N];

	the_iou = new_iou(4);
	common_bh = new_bh(the_iou, on_common_bh, NULL);
	n_posted = n_bh_runs = n_jobs_back = n_held = 0;
	for (int i = 0; i < N; i++) {
		iou_hold(the_iou);
		threads[i] = start_thread(do_anything, (void *)(uintptr_t)(i + 1));
	}
	do
		run(the_iou); /* ended by each quit */
	while (!all_unheld(threads, N));
	run(the_iou);
	run(the_iou); /* one for the last quit, one for the rest */
	ck_assert_int_eq(n_posted, n_held);
	ck_assert_int_eq(n_jobs_back, n_posted / 10);
	done(the_iou);
}
END_TEST

/* ---- Many loops ------------------------------------------------------------------------------ */

#define N_LOOPS 4

typedef struct loop_t {
	iou_t *iou;
	uint64_t seed;
	int n_hops, n_jobs; /* on its own thread */
} loop_t;

typedef struct token_t {
	int n_left; /* hops to go */
	loop_t *at;
} token_t;

static loop_t loops[N_LOOPS];
static int n_tokens_left;

static int on_token(void *data);

static void pass_on(token_t *token, uint64_t *seed)
{
	token->at = &loops[random_below(seed, N_LOOPS)];
	post(token->at->iou, on_token, token);
}

/* On a worker of the loop it is at: passed on from there. */
static int token_job(void *data)
{
	token_t *token = data;
	uint64_t seed = (uint64_t)token->n_left * 77 + 1;

	pass_on(token, &seed);
	return 0;
}

static int on_token_nop(void *data)
{
	token_t *token = data;

	EXPECT(iou_current() == token->at->iou);
	pass_on(token, &token->at->seed);
	return 0;
}

static int on_token(void *data)
{
	token_t *token = data;
	loop_t *loop = token->at;
	iou_op_t *op;

	EXPECT(iou_current() == loop->iou);
	loop->n_hops++;
	if (--token->n_left == 0) {
		if (__atomic_sub_fetch(&n_tokens_left, 1, __ATOMIC_ACQ_REL) == 0)
			for (int i = 0; i < N_LOOPS; i++)
				iou_quit(loops[i].iou);
		return 0;
	}
	switch (random_below(&loop->seed, 8)) {
	case 0:
		loop->n_jobs++;
		return iou_async(loop->iou, token_job, token, on_nothing, NULL);
	case 1:
	case 2:
		op = iou_op_new(loop->iou);
		io_uring_prep_nop(op->sqe);
		iou_op_queue(loop->iou, op, on_token_nop, token);
		return 0;
	case 3:
		iou_op_timer(loop->iou, iou_op_new(loop->iou),
			     random_below(&loop->seed, 100) * USEC, 0, on_token_nop, token);
		return 0;
	default:
		pass_on(token, &loop->seed);
		return 0;
	}
}

static void *run_loop(void *data)
{
	loop_t *loop = data;

	EXPECT(iou_run(loop->iou) == 0);
	return NULL;
}

/* Work handed between loops at random, by posts, from callbacks and from workers: nothing is
 * lost. */
START_TEST(work_wanders_between_loops)
{
	enum { N_TOKENS = 40 };
	static token_t tokens[N_TOKENS];
	int n_hops = is_full() ? 100000 : is_slow() ? 100 : 1500, n_all = 0;
	pthread_t threads[N_LOOPS];

	n_tokens_left = N_TOKENS;
	for (int i = 0; i < N_LOOPS; i++) {
		loops[i] = (loop_t){.iou = new_iou(8), .seed = (uint64_t)i};
		iou_hold(loops[i].iou);
	}
	for (int i = 0; i < N_TOKENS; i++) {
		tokens[i] = (token_t){.n_left = n_hops, .at = &loops[i % N_LOOPS]};
		post(tokens[i].at->iou, on_token, &tokens[i]);
	}
	for (int i = 0; i < N_LOOPS; i++)
		threads[i] = start_thread(run_loop, &loops[i]);
	for (int i = 0; i < N_LOOPS; i++) {
		join_thread(threads[i]);
		iou_unhold(loops[i].iou);
		n_all += loops[i].n_hops;
	}
	ck_assert_int_eq(n_all, N_TOKENS * n_hops);
	for (int i = 0; i < N_LOOPS; i++)
		/* perhaps with a job's completion left */
		ck_assert_ptr_null(iou_free(loops[i].iou));
}
END_TEST

/* ---- One channel, read by one loop and written by another ------------------------------------ */

typedef struct channel_t {
	iou_t *iou;
	iou_op_t *op;
	int fd;
	uint64_t n_bytes, n_max;
	unsigned char buf[5000];
	bool bad;
} channel_t;

static int on_sent(void *data)
{
	channel_t *channel = data;
	uint64_t left;

	if (channel->op->result < 0)
		return channel->op->result;
	channel->n_bytes += (unsigned)channel->op->result;
	left = channel->n_max - channel->n_bytes;
	if (left == 0)
		return 0;
	for (unsigned i = 0; i < sizeof(channel->buf); i++)
		channel->buf[i] = (unsigned char)((channel->n_bytes + i) % 251);
	io_uring_prep_send(
		channel->op->sqe, channel->fd, channel->buf,
		left < sizeof(channel->buf) ? left : 1 + channel->n_bytes % sizeof(channel->buf),
		0);
	iou_op_queue(channel->iou, channel->op, on_sent, channel);
	return 0;
}

static int on_received(void *data);

static void queue_recv(channel_t *channel)
{
	io_uring_prep_recv(channel->op->sqe, channel->fd, channel->buf, sizeof(channel->buf), 0);
	iou_op_queue(channel->iou, channel->op, on_received, channel);
}

static int on_received(void *data)
{
	channel_t *channel = data;

	if (channel->op->result <= 0)
		return channel->op->result < 0 ? channel->op->result : -EPIPE;
	ck_defined(channel->buf, (size_t)channel->op->result);
	for (int i = 0; i < channel->op->result; i++)
		channel->bad |=
			channel->buf[i] != (unsigned char)((channel->n_bytes + (unsigned)i) % 251);
	channel->n_bytes += (unsigned)channel->op->result;
	if (channel->n_bytes < channel->n_max)
		queue_recv(channel);
	return 0;
}

static void *run_channel(void *data)
{
	channel_t *channel = data;

	EXPECT(iou_run(channel->iou) == 0);
	return NULL;
}

/* Both ends of one socket pair are used both ways, each direction of an end by another loop. */
START_TEST(a_channel_is_read_by_one_loop_and_written_by_another)
{
	static channel_t channels[4]; /* writers of both ends, readers of both ends */
	pthread_t threads[4];
	int fds[2];

	new_socketpair(fds);
	memset(channels, 0, sizeof(channels));
	for (int i = 0; i < 4; i++) {
		channel_t *channel = &channels[i];

		channel->iou = new_iou(4);
		channel->op = new_op(channel->iou);
		channel->fd = fds[i % 2];
		channel->n_max = is_slow() ? 1 << 18 : 1 << 22;
		if (i < 2)
			nop_queue(channel->iou, channel->op, on_sent, channel);
		else
			queue_recv(channel);
	}
	for (int i = 0; i < 4; i++)
		threads[i] = start_thread(run_channel, &channels[i]);
	for (int i = 0; i < 4; i++) {
		join_thread(threads[i]);
		ck_assert_uint_eq(channels[i].n_bytes, channels[i].n_max);
		ck_assert(!channels[i].bad);
		ck_assert_ptr_null(iou_free(channels[i].iou));
	}
	close_pair(fds);
}
END_TEST

static void *run_until_unheld(void *iou)
{
	EXPECT(iou_run(iou) == 0);
	return iou_free(iou);
}

static int on_runs(void *runs)
{
	return sem_post(runs);
}

/* Nothing of the program is in flight, but its owner is in iou_run(). */
START_TEST(a_loop_that_sleeps_is_not_freed_by_another_thread)
{
	iou_t *iou = new_iou(4);
	sem_t runs;
	pthread_t thread;

	sem_init(&runs, 0, 0);
	iou_hold(iou);
	post(iou, on_runs, &runs);
	thread = start_thread(run_until_unheld, iou);
	sem_wait(&runs);
	for (int i = 0; i < 100; i++) {
		errno = 0;
		ck_assert_ptr_null(iou_free(iou));
		ck_assert_int_eq(errno, EEXIST);
	}
	iou_unhold(iou);
	join_thread(thread);
	sem_destroy(&runs);
}
END_TEST

/* ---- Threads that were cancelled ------------------------------------------------------------- */

/* What any thread may call, each while the loop sleeps. */
static void call_post(iou_bh_t **bhs) { (void)bhs; post(the_iou, on_nothing, NULL); }
static void call_bh_new(iou_bh_t **bhs) { bhs[1] = new_bh(the_iou, on_nothing, NULL); }
static void call_schedule(iou_bh_t **bhs) { iou_bh_schedule(bhs[0]); }
static void call_schedule_idle(iou_bh_t **bhs) { iou_bh_schedule_idle(bhs[0]); }
static void call_bh_cancel(iou_bh_t **bhs) { iou_bh_schedule(bhs[0]); iou_bh_cancel(bhs[0]); }
static void call_bh_delete(iou_bh_t **bhs) { iou_bh_delete(bhs[1]); }
static void call_hold(iou_bh_t **bhs) { (void)bhs; iou_hold(the_iou); }
static void call_quit(iou_bh_t **bhs) { (void)bhs; iou_quit(the_iou); }
static void call_unhold(iou_bh_t **bhs) { (void)bhs; iou_unhold(the_iou); }

static void (*const any_thread[])(iou_bh_t **) = {
	call_post, call_bh_new, call_schedule, call_schedule_idle, call_bh_cancel, call_bh_delete,
	call_hold, call_unhold, call_quit, call_unhold};
#define N_ANY_THREAD ((int)(sizeof(any_thread) / sizeof(any_thread[0])))

static pid_t loop_tid;
static int n_survived; /* calls that returned */
static bool it_ended;

static void note_end(void *data)
{
	(void)data;
	__atomic_store_n(&it_ended, true, __ATOMIC_RELEASE);
}

/* From here to the other one, a cancelled thread ends at the next cancellation point. */
static void allow_cancel(void)
{
	int ignored;

	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &ignored);
}

static void defer_cancel(void)
{
	int ignored;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &ignored);
}

static void *call_while_cancelled(void *data)
{
	iou_bh_t *bhs[2] = {data, NULL};

	pthread_cleanup_push(note_end, NULL);
	defer_cancel();
	pthread_cancel(pthread_self()); /* as another thread might */
	for (int i = 0; i < N_ANY_THREAD; i++) {
		WAIT_UNTIL(loop_sleeps(loop_tid));
		allow_cancel();
		any_thread[i](bhs);
		defer_cancel();
		n_survived++;
	}
	allow_cancel();
	pthread_testcancel();
	pthread_cleanup_pop(0);
	return NULL;
}

static void end_cancelled(pthread_t thread)
{
	void *result;

	ck_assert_int_eq(pthread_join(thread, &result), 0);
	ck_assert_ptr_eq(result, PTHREAD_CANCELED);
}

/* A cancelled thread ends in none of them, and the loop learns of each. */
START_TEST(calls_are_no_cancellation_points)
{
	pthread_t thread;

	the_iou = new_iou(4);
	loop_tid = gettid();
	iou_hold(the_iou);
	thread = start_thread(call_while_cancelled, new_bh(the_iou, on_nothing, NULL));
	while (!__atomic_load_n(&it_ended, __ATOMIC_ACQUIRE))
		ck_assert_int_ge(iou_poll(the_iou, (int64_t)SECOND), 0);
	end_cancelled(thread);
	ck_assert_int_eq(n_survived, N_ANY_THREAD);
	/* not for bh_new, two holds */
	ck_assert_uint_ge(get_stats(the_iou).wakeups, N_ANY_THREAD - 3);
	ck_assert_int_eq(iou_run(the_iou), 0); /* spends the quit */
	done(the_iou);
}
END_TEST

/* A job that is over when this thread sleeps. */
static int outlast(void *data)
{
	pid_t *tid = data;

	WAIT_UNTIL(thread_sleeps(*tid));
	return 0;
}

static void *live_while_cancelled(void *data)
{
	/* without SINGLE_ISSUER, or by older kernels */
	const unsigned refused = IORING_SETUP_DEFER_TASKRUN;
	int *fds = data;
	pid_t tid = gettid();
	call_t calls[2];
	iou_t *iou;

	pthread_cancel(pthread_self());
	EXPECT(!iou_new_with(&(iou_config_t){.setup_flags = refused})); /* it closes what it had */
	iou = iou_new(4);
	EXPECT(iou && iou_resize(iou, 8) == 0);
	defer_cancel();
	call_read(iou, &calls[0], 0, fds[0]);
	call_read(iou, &calls[1], 1, fds[0]);
	calls[1].op->sqe->flags |= IOSQE_ASYNC;
	EXPECT(iou_async(iou, outlast, &tid, on_nothing, NULL) == 0);
	EXPECT(iou_flush(iou) == 0);
	allow_cancel();
	iou_free(iou);
	n_survived++;
	pthread_testcancel();
	return NULL;
}

/* Nor in those that make an iou and that end it, whatever they wait for. */
START_TEST(an_iou_begins_and_ends_in_a_cancelled_thread)
{
	int fds[2];

	new_pipe(fds);
	end_cancelled(start_thread(live_while_cancelled, fds));
	ck_assert_int_eq(n_survived, 1);
	close_pair(fds);
}
END_TEST

/* ---- Under a real-time policy ---------------------------------------------------------------- */

/* This thread, and those that it starts, on one CPU. */
static cpu_set_t all_cpus, one_cpu;

static void share_a_cpu(void)
{
	EXPECT(sched_getaffinity(0, sizeof(all_cpus), &all_cpus) == 0);
	CPU_ZERO(&one_cpu);
	CPU_SET(sched_getcpu(), &one_cpu);
	EXPECT(sched_setaffinity(0, sizeof(one_cpu), &one_cpu) == 0);
}

/* Then no other one runs as long as this one does not sleep; or, if that goes on for a second or
 * so, until the kernel takes the CPU away from it for a while. False: not allowed. */
static bool outrank_others(void)
{
	const struct sched_param first = {.sched_priority = 1};

	return pthread_setschedparam(pthread_self(), SCHED_FIFO, &first) == 0;
}

static void rank_as_others(void)
{
	EXPECT(pthread_setschedparam(pthread_self(), SCHED_OTHER, &(struct sched_param){0}) == 0);
}

static bool may_outrank_others(void)
{
	bool may = outrank_others();

	rank_as_others();
	return may;
}

static void *unhold_when_it_sleeps(void *iou)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	iou_unhold(iou); /* interrupted where it wakes the loop */
	return NULL;
}

/* iou_free() lets a thread of lower priority leave iou_unhold(). */
START_TEST(free_lets_a_lower_thread_leave)
{
	uint64_t ns, most_ns = 0;

	if (!may_outrank_others())
		SKIP("needs to be allowed SCHED_FIFO");
	share_a_cpu();
	loop_tid = gettid();
	for (int i = 0; i < 5; i++) {
		iou_t *iou = new_iou(4);
		pthread_t thread;

		iou_hold(iou);
		thread = start_thread(unhold_when_it_sleeps, iou);
		EXPECT(outrank_others());
		ns = thread_cpu_ns();
		EXPECT(iou_run(iou) == 0 && iou_free(iou) == NULL);
		ns = thread_cpu_ns() - ns;
		rank_as_others();
		most_ns = ns > most_ns ? ns : most_ns;
		join_thread(thread);
	}
	sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
	ck_assert_msg(most_ns < 200 * MSEC, "%d ms of CPU time", (int)(most_ns / MSEC));
}
END_TEST

/* The kernel's threads for SQPOLL (a ring just closed may still have one) on this CPU too. False:
 * not to be had. */
static bool sqpoll_shares_the_cpu(void)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	bool found = false, bound = true;

	EXPECT(dir != NULL);
	while ((entry = readdir(dir))) {
		char path[300], name[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		if (file && fgets(name, sizeof(name), file) && strncmp(name, "iou-sqp-", 8) == 0) {
			found = true;
			bound &= sched_setaffinity(atoi(entry->d_name), sizeof(one_cpu),
						   &one_cpu) == 0 ||
				 errno == ESRCH;
		}
		if (file)
			fclose(file);
	}
	closedir(dir);
	return found && bound;
}

/* With SQPOLL, whose thread has a lower priority: iou_flush() and all else lets it take what is in
 * the SQ. */
START_TEST(sqpolls_thread_takes_the_sq)
{
	/* that leave room in the SQ, and that do not */
	static const int numbers[] = {3, 3, 1000, 1000};
	call_t call = {0};
	uint64_t ns;
	iou_t *iou;
	int n = 0;

	if (!may_outrank_others())
		SKIP("needs to be allowed SCHED_FIFO");
	iou = NEW_IOU_OF(64, IORING_SETUP_SQPOLL);
	if (!iou)
		return;
	start(iou, CQE, on_nothing, NULL);
	run(iou); /* it is there, and has set its own name and CPUs */
	share_a_cpu();
	if (!sqpoll_shares_the_cpu()) {
		sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
		done(iou);
		SKIP("needs SQPOLL's thread to be bound to a CPU (6.4)");
	}
	EXPECT(outrank_others());
	ns = thread_cpu_ns();
	for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		for (int j = 0; j < numbers[i]; j++)
			nop_queue(iou, new_op(iou), on_call, &call);
		if (i % 2 == 0)
			EXPECT(iou_flush(iou) == 0 && get_stats(iou).backlog == 0);
		EXPECT(iou_run(iou) == 0);
		n += numbers[i];
	}
	EXPECT(iou_free(iou) == NULL);
	ns = thread_cpu_ns() - ns;
	rank_as_others();
	sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
	ck_assert_int_eq(call.n, n);
	ck_assert_msg(ns < 200 * MSEC, "%d ms of CPU time", (int)(ns / MSEC));
}
END_TEST

Suite *threads_suite(void)
{
	Suite *suite = suite_create("threads");
	TCase *many;

	TEST_CASE(suite, "owner", an_iou_belongs_to_the_first_that_flushes_runs_or_polls,
		  an_iou_is_set_up_by_one_thread_and_run_by_another,
		  a_callback_does_not_open_the_iou_to_others, a_job_is_another_thread,
		  an_iou_is_handed_from_thread_to_thread,
		  one_thread_looks_at_an_iou_while_another_cancels);
	TEST_CASE(suite, "hold", unhold_is_the_last_touch, threads_hold_an_iou_and_let_go,
		  a_loop_that_sleeps_is_not_freed_by_another_thread);
	TEST_CASE(suite, "cancelled", calls_are_no_cancellation_points,
		  an_iou_begins_and_ends_in_a_cancelled_thread);
	TEST_CASE(suite, "priority", free_lets_a_lower_thread_leave, sqpolls_thread_takes_the_sq);
	many = TEST_CASE(suite, "many", other_threads_make_every_call_meant_for_them,
			 work_wanders_between_loops,
			 a_channel_is_read_by_one_loop_and_written_by_another);
	if (is_full())
		tcase_set_timeout(many, 600);
	return suite;
}
