/* SPDX-License-Identifier: MIT */

/* Posts: order, rounds, wake-ups, and millions of them from two threads. */

#include "helper.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

static iou_t *the_iou;

START_TEST(a_post_is_delivered_once)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};

	post(iou, on_call, &call);
	ck_assert_int_eq(call.n, 0);
	run(iou);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert_uint_eq(get_stats(iou).posts, 1);
	done(iou);
}
END_TEST

START_TEST(posts_arrive_in_order)
{
	enum { N = 10000 };
	iou_t *iou = new_iou(4);
	call_t *calls = calloc(N, sizeof(*calls));

	for (int i = 0; i < N; i++) {
		calls[i].id = i;
		post(iou, on_call, &calls[i]);
		if (i == N / 3)
			while (n_order <= N / 3)
				ck_assert_int_gt(iou_poll(iou, 0), 0);
	}
	run(iou);
	ck_assert_int_eq(n_order, N);
	for (int i = 0; i < N; i++)
		if (order[i] != i)
			ck_abort_msg("post %d came in place %d", order[i], i);
	free(calls);
	done(iou);
}
END_TEST

typedef struct sender_t {
	int n_sent, n_seen, n_max;
	bool out_of_order;
} sender_t;

typedef struct letter_t {
	sender_t *sender;
	int number;
} letter_t;

static int on_letter(void *data)
{
	letter_t *letter = data;

	letter->sender->out_of_order |= letter->number != letter->sender->n_seen++;
	free(letter);
	return 0;
}

static void *send_letters(void *data)
{
	sender_t *sender = data;

	for (; sender->n_sent < sender->n_max; sender->n_sent++) {
		letter_t *letter = malloc(sizeof(*letter));

		*letter = (letter_t){sender, sender->n_sent};
		post(the_iou, on_letter, letter);
		if (sender->n_sent % 1000 == 0)
			nap(); /* the loop falls asleep */
	}
	iou_unhold(the_iou);
	return NULL;
}

/* Those of one thread in its order; the letter's contents are handed over with it (TSan looks). */
START_TEST(threads_post_in_order)
{
	enum { N = 4 };
	sender_t senders[N];
	pthread_t threads[N];

	the_iou = new_iou(4);
	for (int i = 0; i < N; i++) {
		senders[i] = (sender_t){.n_max = is_slow() ? 5000 : 50000};
		iou_hold(the_iou);
		threads[i] = start_thread(send_letters, &senders[i]);
	}
	run(the_iou);
	for (int i = 0; i < N; i++) {
		join_thread(threads[i]);
		ck_assert_int_eq(senders[i].n_seen, senders[i].n_max);
		ck_assert(!senders[i].out_of_order);
	}
	done(the_iou);
}
END_TEST

static int on_post_again(void *data)
{
	call_t *call = data;

	on_call(call);
	if (call->n < 10)
		post(the_iou, on_post_again, call);
	return 0;
}

START_TEST(a_post_from_a_post_is_for_the_next_round)
{
	call_t call = {0};

	the_iou = new_iou(4);
	post(the_iou, on_post_again, &call);
	for (int i = 1; i <= 10; i++) {
		ck_assert_int_eq(iou_poll(the_iou, -1), 1);
		ck_assert_int_eq(call.n, i);
	}
	ck_assert_int_eq(iou_poll(the_iou, -1), 0);
	done(the_iou);
}
END_TEST

/* The loop is not asleep: no system call is needed to reach it. */
START_TEST(posting_to_a_loop_that_is_awake_costs_no_wakeup)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};
	iou_bh_t *bh = new_bh(iou, on_call, &call);
	uint64_t enters;

	ck_assert_int_eq(iou_poll(iou, 0), 0);
	for (int i = 0; i < 100; i++) {
		enters = get_stats(iou).enters;
		for (int j = 0; j < 10; j++) {
			post(iou, on_call, &call);
			iou_bh_schedule(bh);
		}
		ck_assert_int_eq(iou_poll(iou, -1), 11);
		ck_assert_uint_le(get_stats(iou).enters - enters, 1);
	}
	ck_assert_uint_eq(get_stats(iou).wakeups, 0);
	done(iou);
}
END_TEST

static pid_t loop_tid;
static call_t woken_call;

static void *post_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(the_iou, on_call, data);
	post(the_iou, on_call, data);
	iou_unhold(the_iou);
	return NULL;
}

START_TEST(posting_to_a_sleeping_loop_wakes_it_once)
{
	pthread_t thread;

	the_iou = new_iou(4);
	loop_tid = gettid();
	for (int i = 0; i < 10; i++) {
		iou_hold(the_iou);
		thread = start_thread(post_to_the_sleeper, &woken_call);
		run(the_iou);
		join_thread(thread);
		ck_assert_int_eq(woken_call.n, 2 * (i + 1));
	}
	ck_assert_uint_ge(get_stats(the_iou).wakeups, 10);
	ck_assert_uint_le(get_stats(the_iou).wakeups, 30); /* the others may find it asleep again */
	done(the_iou);
}
END_TEST

/* Before the iou has an owner; afterwards it is run by another thread. */
static void run_it(void *data)
{
	EXPECT(iou_run(data) == 0);
}

START_TEST(posts_before_the_first_run_are_delivered)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};

	post(iou, on_call, &call);
	in_thread(run_it, iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

static int post_from_job(void *data)
{
	post(the_iou, on_call, data);
	return 0;
}

START_TEST(a_job_posts)
{
	call_t call = {.id = 1}, job;

	the_iou = new_iou(4);
	call_op(the_iou, &job, 2);
	start_job(the_iou, job.op, post_from_job, &call, on_call, &job);
	run(the_iou);
	ck_assert_int_eq(call.n, 1);
	ck_assert_int_eq(job.n, 1);
	ck_assert_int_eq(order[0], 1); /* posted before the job ended */
	done(the_iou);
}
END_TEST

static int never(void *data)
{
	(void)data;
	abort();
}

START_TEST(undelivered_posts_are_dropped)
{
	iou_t *iou = new_iou(4);

	for (int i = 0; i < 100; i++)
		post(iou, never, NULL);
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

/* ---- Memory is used again -------------------------------------------------------------------- */

enum { N_TURNS = 5000 };

typedef struct turns_t {
	iou_t *iou;
	int numbers[N_TURNS];
	int n_posted, n_seen;
} turns_t;

static turns_t turns;

static int on_turn(void *data);

static void post_turn(void)
{
	int *number = &turns.numbers[turns.n_posted];

	*number = turns.n_posted++;
	post(turns.iou, on_turn, number);
}

static int on_turn(void *data)
{
	ck_assert_int_eq(*(int *)data, turns.n_seen++);
	if (turns.n_posted < N_TURNS)
		post_turn();
	return 0;
}

/* However many wait at a time. */
START_TEST(each_post_makes_the_next)
{
	for (int n_waiting = 1; n_waiting < 500; n_waiting += 33) {
		turns = (turns_t){.iou = new_iou(4)};
		while (turns.n_posted < n_waiting)
			post_turn();
		ck_assert_int_eq(iou_run(turns.iou), 0);
		ck_assert_int_eq(turns.n_seen, N_TURNS);
		iou_free(turns.iou);
	}
}
END_TEST

/* ---- A flood --------------------------------------------------------------------------------- */

/* Two threads hand posts to a loop, each tenth post starts a job, the loop sleeps in between at
 * random, and a timer of 10 s is pending. IOU_TEST_FULL=1: ten million. */
typedef struct flood_t {
	iou_t *iou;
	int n_each;
	int n_seen;      /* on the loop */
	int n_delivered; /* the same, for the senders' look at how far behind the loop is */
	int n_jobs, n_worked;
} flood_t;

static flood_t flood;

static int flood_work(void *data)
{
	(void)data;
	__atomic_fetch_add(&flood.n_worked, 1, __ATOMIC_RELAXED);
	return 0;
}

static int on_flood_job(void *data)
{
	(void)data;
	flood.n_jobs++;
	return 0;
}

static int on_flood(void *data)
{
	(void)data;
	__atomic_store_n(&flood.n_delivered, ++flood.n_seen, __ATOMIC_RELAXED);
	if (flood.n_seen % 10 == 0)
		return iou_async(flood.iou, flood_work, NULL, on_flood_job, NULL);
	return 0;
}

/* Pending all the time: a flood may last longer. */
static int on_flood_timer(void *data)
{
	iou_op_timer(flood.iou, data, 10 * SECOND, 0, on_flood_timer, data);
	return 0;
}

static void *send_flood(void *data)
{
	uint64_t seed = (uint64_t)(uintptr_t)data;

	for (int i = 0; i < flood.n_each; i++) {
		post(flood.iou, on_flood, NULL);
		if (random_below(&seed, 2000) == 0)
			nap(); /* the loop falls asleep */
		while (2 * i - __atomic_load_n(&flood.n_delivered, __ATOMIC_RELAXED) > 400000)
			sched_yield(); /* the memory has its limits */
	}
	iou_unhold(flood.iou);
	return NULL;
}

START_TEST(a_flood_of_posts_and_jobs_is_delivered)
{
	int n_all = is_full() ? 10000000 : is_slow() ? 50000 : 2000000;
	uint64_t seed = 5;
	pthread_t threads[2];
	iou_op_t *timer;
	int ret;

	flood = (flood_t){.iou = new_iou(64), .n_each = n_all / 2};
	timer = new_op(flood.iou);
	on_flood_timer(timer);
	for (int i = 0; i < 2; i++) {
		iou_hold(flood.iou);
		threads[i] = start_thread(send_flood, (void *)(uintptr_t)(i + 1));
	}
	while (flood.n_seen < n_all || flood.n_jobs < n_all / 10) {
		ret = iou_poll(flood.iou, (int64_t)(20 * SECOND));
		if (ret <= 0)
			ck_abort_msg("iou_poll: %d after %d posts and %d jobs", ret, flood.n_seen,
				     flood.n_jobs);
		if (random_below(&seed, 500) == 0)
			nanosleep(&(struct timespec){.tv_nsec = random_below(&seed, 200000)}, NULL);
	}
	for (int i = 0; i < 2; i++)
		join_thread(threads[i]);
	iou_op_timer(flood.iou, timer, 10 * SECOND, 0, on_nothing, NULL); /* not again */
	ck_assert_int_eq(iou_op_cancel(flood.iou, timer), 0);
	run(flood.iou);
	ck_assert_int_eq(flood.n_seen, n_all);
	ck_assert_int_eq(flood.n_jobs, n_all / 10);
	ck_assert_int_eq(flood.n_worked, n_all / 10);
	done(flood.iou);
}
END_TEST

/* One at a time, each to a loop that sleeps or is about to: a wake-up lost is a wait for ever. */
static int ping, pong;

static int on_ping(void *data)
{
	(void)data;
	__atomic_store_n(&pong, pong + 1, __ATOMIC_RELEASE);
	return 0;
}

static void *send_pings(void *data)
{
	int n = *(int *)data;
	uint64_t seed = 9;

	for (int i = 0; i < n; i++) {
		for (unsigned spin = random_below(&seed, 3000); spin; spin--)
			/* hit every moment of falling asleep */
			__atomic_load_n(&ping, __ATOMIC_RELAXED);
		post(the_iou, on_ping, NULL);
		while (__atomic_load_n(&pong, __ATOMIC_ACQUIRE) <= i)
			sched_yield();
	}
	iou_unhold(the_iou);
	return NULL;
}

START_TEST(no_wakeup_is_lost)
{
	int n = is_full() ? 1000000 : is_slow() ? 5000 : 30000;
	pthread_t thread;

	the_iou = new_iou(4);
	ping = pong = 0;
	iou_hold(the_iou);
	thread = start_thread(send_pings, &n);
	run(the_iou);
	join_thread(thread);
	ck_assert_int_eq(pong, n);
	done(the_iou);
}
END_TEST

Suite *post_suite(void)
{
	Suite *suite = suite_create("post");
	TCase *many;

	TEST_CASE(suite, "post", a_post_is_delivered_once, posts_arrive_in_order,
		  threads_post_in_order, a_post_from_a_post_is_for_the_next_round,
		  posts_before_the_first_run_are_delivered, a_job_posts,
		  undelivered_posts_are_dropped, each_post_makes_the_next);
	TEST_CASE(suite, "wake", posting_to_a_loop_that_is_awake_costs_no_wakeup,
		  posting_to_a_sleeping_loop_wakes_it_once);
	many = TEST_CASE(suite, "many", a_flood_of_posts_and_jobs_is_delivered, no_wakeup_is_lost);
	if (is_full())
		tcase_set_timeout(many, 600);
	return suite;
}
