/* SPDX-License-Identifier: MIT */

/*
 * Misuse ends the program with one line that names the call; NULL where a pointer is needed is
 * refused. Each misuse runs in a child of its own.
 */

#include "helper.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

static iou_t *the_iou;
static iou_op_t *the_op;

static void nop(iou_op_t *op)
{
	io_uring_prep_nop(op->sqe);
}

static void queue_nop(void)
{
	nop(the_op);
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static void far_timer(void)
{
	iou_op_timer(the_iou, the_op, UINT64_MAX, 0, on_nothing, NULL);
}

static void far_job(void)
{
	int ret = iou_op_async(the_iou, the_op, on_nothing, NULL, on_nothing, NULL);

	EXPECT(ret == 0 || ret == -EEXIST);
}

static void poll_once(void)
{
	int n = iou_poll(the_iou, -1);

	EXPECT(n >= 0);
}

/* ---- An op queued twice, by any two doors ---------------------------------------------------- */

static void queue_twice(void)
{
	queue_nop();
	queue_nop();
}

static void queue_in_flight(void)
{
	queue_nop();
	EXPECT(iou_flush(the_iou) == 0);
	queue_nop();
}

static void queue_a_timer(void)
{
	far_timer();
	queue_nop();
}

static void queue_a_job(void)
{
	far_job();
	queue_nop();
}

static void time_a_queued_op(void)
{
	queue_nop();
	far_timer();
}

static void time_a_job(void)
{
	far_job();
	far_timer();
}

static void work_on_a_queued_op(void)
{
	queue_nop();
	far_job();
}

static void work_twice(void)
{
	far_job();
	far_job();
}

static void work_on_a_timer(void)
{
	far_timer();
	far_job();
}

static int on_queue_more(void *data)
{
	queue_nop();
	return data ? -1 : 0;
}

static void queue_in_a_callback_with_more(void)
{
	iou_op_timer(the_iou, the_op, 0, SECOND, on_queue_more, NULL);
	poll_once();
}

static int on_queue_twice(void *data)
{
	on_queue_more(data);
	return on_queue_more(data);
}

static void queue_twice_in_its_callback(void)
{
	nop(the_op);
	iou_op_queue(the_iou, the_op, on_queue_twice, NULL);
	poll_once();
}

static void deadline_on_a_queued_op(void)
{
	queue_nop();
	iou_op_deadline(the_iou, the_op, 1);
}

static void deadline_on_a_job(void)
{
	far_job();
	iou_op_deadline(the_iou, the_op, 1);
}

/* ---- An op that is not prepared, or not again ------------------------------------------------ */

static void queue_unprepared(void)
{
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

/* user_data is iou's own: to set it is no preparing. */
static void queue_with_user_data_alone(void)
{
	the_op->sqe->user_data = 1;
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static int on_queue_as_it_is(void *data)
{
	iou_op_queue(the_iou, the_op, on_nothing, data);
	return 0;
}

static void queue_again_unprepared(void)
{
	nop(the_op);
	iou_op_queue(the_iou, the_op, on_queue_as_it_is, NULL);
	poll_once();
}

static void queue_again_unprepared_after_a_cancel(void)
{
	io_uring_prep_timeout(the_op->sqe, &(struct __kernel_timespec){.tv_sec = 1000}, 0, 0);
	iou_op_queue(the_iou, the_op, on_queue_as_it_is, NULL);
	EXPECT(iou_op_cancel(the_iou, the_op) == 0);
	poll_once();
}

static void queue_after_a_timer_unprepared(void)
{
	iou_op_timer(the_iou, the_op, 0, 0, on_queue_as_it_is, NULL);
	poll_once();
}

/* ---- An op that was given back --------------------------------------------------------------- */

static void queue_after_its_end(void)
{
	queue_nop();
	poll_once();
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static void time_after_its_end(void)
{
	queue_nop();
	poll_once();
	far_timer();
}

static void work_after_its_end(void)
{
	queue_nop();
	poll_once();
	far_job();
}

static void queue_after_free(void)
{
	iou_op_free(the_iou, the_op);
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static void free_twice(void)
{
	iou_op_free(the_iou, the_op);
	iou_op_free(the_iou, the_op);
}

static int on_free_the_op(void *data)
{
	iou_op_free(the_iou, the_op);
	return data ? -1 : 0;
}

static void queue_after_free_in_its_callback(void)
{
	nop(the_op);
	iou_op_queue(the_iou, the_op, on_free_the_op, NULL);
	poll_once();
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static void free_after_its_end(void)
{
	queue_nop();
	poll_once();
	iou_op_free(the_iou, the_op);
}

static void free_a_queued_op(void)
{
	queue_nop();
	iou_op_free(the_iou, the_op);
}

static void free_a_timer(void)
{
	far_timer();
	iou_op_free(the_iou, the_op);
}

static void free_a_job(void)
{
	far_job();
	iou_op_free(the_iou, the_op);
}

static void env_after_free(void)
{
	iou_op_free(the_iou, the_op);
	EXPECT(iou_op_env(the_op, 8) == NULL);
}

static void env_after_its_end(void)
{
	queue_nop();
	poll_once();
	EXPECT(iou_op_env(the_op, 8) == NULL);
}

static void deadline_after_its_end(void)
{
	queue_nop();
	poll_once();
	iou_op_deadline(the_iou, the_op, 1);
}

/* ---- An op that is named by more than its address -------------------------------------------- */

static void read_in_flight(void)
{
	static char byte;
	int fds[2];

	new_pipe(fds);
	EXPECT(dup2(fds[0], 77) == 77);
	io_uring_prep_read(the_op->sqe, 77, &byte, 1, 0);
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
	EXPECT(iou_flush(the_iou) == 0);
}

static void queue_a_read_in_flight(void)
{
	read_in_flight();
	iou_op_queue(the_iou, the_op, on_nothing, NULL);
}

static void free_a_read_in_flight(void)
{
	read_in_flight();
	iou_op_free(the_iou, the_op);
}

static void free_in_a_callback_with_more(void)
{
	iou_op_timer(the_iou, the_op, 0, SECOND, on_free_the_op, NULL);
	poll_once();
}

/* It has ended, and is not delivered. */
static void queue_a_cancelled_timer(void)
{
	far_timer();
	EXPECT(iou_op_cancel(the_iou, the_op) == 0);
	queue_nop();
}

static void free_a_cancelled_timer(void)
{
	far_timer();
	EXPECT(iou_op_cancel(the_iou, the_op) == 0);
	iou_op_free(the_iou, the_op);
}

/* ---- What is no environment ------------------------------------------------------------------ */

static void *new_env(size_t size)
{
	void *env = iou_op_env(the_op, size);

	EXPECT(env != NULL);
	return env;
}

static void op_of(const void *env)
{
	EXPECT(iou_op_of(env) == NULL);
}

static void op_of_unaligned(void)
{
	op_of((char *)new_env(8) + 1);
}

static void op_of_inside(void)
{
	op_of((char *)new_env(64) + 16);
}

static void op_of_inside_an_allocated_one(void)
{
	op_of((char *)new_env(200) + 64);
}

static void op_of_stack(void)
{
	void *volatile words[4] = {NULL};

	op_of((void *)&words[2]);
}

/* It looks like one: its op stands before it. */
static void op_of_a_copy(void)
{
	void *volatile words[4] = {NULL, the_op};

	(void)new_env(8);
	op_of((void *)&words[2]);
}

static void op_of_an_op(void)
{
	op_of(the_op);
}

static void op_of_one_given_back(void)
{
	void *env = new_env(8);

	queue_nop();
	poll_once();
	op_of(env);
}

static void op_of_one_freed(void)
{
	void *env = new_env(8);

	iou_op_free(the_iou, the_op);
	op_of(env);
}

/* Its op was taken again, and has none. */
static void op_of_one_lost(void)
{
	void *env = new_env(8);
	iou_op_t *before = the_op;

	iou_op_free(the_iou, the_op);
	the_op = iou_op_new(the_iou);
	EXPECT(the_op == before);
	op_of(env);
}

/* ---- A bottom half that was deleted ---------------------------------------------------------- */

static iou_bh_t *the_bh;

static void new_the_bh(int (*cb)(void *data))
{
	the_bh = iou_bh_new(the_iou, cb, NULL);
	EXPECT(the_bh != NULL);
}

static void deleted_bh(void)
{
	new_the_bh(on_nothing);
	iou_bh_delete(the_bh);
}

static void schedule_deleted(void)
{
	deleted_bh();
	iou_bh_schedule(the_bh);
}

static void schedule_idle_deleted(void)
{
	deleted_bh();
	iou_bh_schedule_idle(the_bh);
}

static void cancel_deleted(void)
{
	deleted_bh();
	iou_bh_cancel(the_bh);
}

static void delete_twice(void)
{
	deleted_bh();
	iou_bh_delete(the_bh);
}

/* It waits for the loop to be idle. */
static void delete_an_idle_one_twice(void)
{
	new_the_bh(on_nothing);
	iou_bh_schedule_idle(the_bh);
	EXPECT(iou_post(the_iou, on_nothing, NULL) == 0);
	poll_once();
	iou_bh_delete(the_bh);
	iou_bh_delete(the_bh);
}

static int on_delete_and_schedule(void *data)
{
	iou_bh_delete(the_bh);
	iou_bh_schedule(the_bh);
	return data ? -1 : 0;
}

static void schedule_deleted_in_its_callback(void)
{
	new_the_bh(on_delete_and_schedule);
	iou_bh_schedule(the_bh);
	poll_once();
}

static void *do_schedule(void *data)
{
	iou_bh_schedule(the_bh);
	return data;
}

static void *do_schedule_idle(void *data)
{
	iou_bh_schedule_idle(the_bh);
	return data;
}

static void *do_cancel_bh(void *data)
{
	iou_bh_cancel(the_bh);
	return data;
}

static void *do_delete_bh(void *data)
{
	iou_bh_delete(the_bh);
	return data;
}

/* By another thread than the loop's, which deleted it. */
static void bh_elsewhere(void *(*func)(void *data))
{
	EXPECT(iou_run(the_iou) == 0);
	deleted_bh();
	join_thread(start_thread(func, NULL));
}

static void schedule_deleted_elsewhere(void) { bh_elsewhere(do_schedule); }
static void schedule_idle_deleted_elsewhere(void) { bh_elsewhere(do_schedule_idle); }
static void cancel_deleted_elsewhere(void) { bh_elsewhere(do_cancel_bh); }
static void delete_deleted_elsewhere(void) { bh_elsewhere(do_delete_bh); }

/* ---- An op of another iou -------------------------------------------------------------------- */

static iou_t *new_other(void)
{
	iou_t *other = iou_new(4);

	EXPECT(other != NULL);
	return other;
}

static void queue_on_another(void)
{
	nop(the_op);
	iou_op_queue(new_other(), the_op, on_nothing, NULL);
}

static void time_on_another(void)
{
	iou_op_timer(new_other(), the_op, 1, 0, on_nothing, NULL);
}

static void work_on_another(void)
{
	EXPECT(iou_op_async(new_other(), the_op, on_nothing, NULL, on_nothing, NULL) == 0);
}

static void free_on_another(void)
{
	iou_op_free(new_other(), the_op);
}

static void deadline_on_another(void)
{
	iou_op_deadline(new_other(), the_op, 1);
}

static void cancel_on_another(void)
{
	EXPECT(iou_op_cancel(new_other(), the_op) == 0);
}

/* ---- From another thread --------------------------------------------------------------------- */

static void *do_queue(void *data)
{
	queue_nop();
	return data;
}

static void *do_time(void *data)
{
	far_timer();
	return data;
}

static void *do_free_op(void *data)
{
	iou_op_free(the_iou, the_op);
	return data;
}

static void *do_deadline(void *data)
{
	iou_op_deadline(the_iou, the_op, 1);
	return data;
}

static void *do_stats(void *data)
{
	iou_stats_t stats;

	iou_stats(the_iou, &stats);
	return data;
}

static void *do_dump(void *data)
{
	iou_dump(the_iou, stdout);
	return data;
}

static void elsewhere(void *(*func)(void *data))
{
	EXPECT(iou_run(the_iou) == 0); /* owned */
	join_thread(start_thread(func, NULL));
}

static void queue_elsewhere(void) { elsewhere(do_queue); }
static void time_elsewhere(void) { elsewhere(do_time); }
static void free_op_elsewhere(void) { elsewhere(do_free_op); }
static void deadline_elsewhere(void) { elsewhere(do_deadline); }
static void stats_elsewhere(void) { elsewhere(do_stats); }
static void dump_elsewhere(void) { elsewhere(do_dump); }

/* ---- The rest -------------------------------------------------------------------------------- */

static void unhold_below_zero(void)
{
	iou_hold(the_iou);
	iou_unhold(the_iou);
	iou_unhold(the_iou);
}

static int on_free_iou(void *data)
{
	iou_free(the_iou);
	return data ? -1 : 0;
}

static void iou_free_in_a_callback(void)
{
	queue_nop();
	EXPECT(iou_post(the_iou, on_free_iou, NULL) == 0);
	poll_once();
}

static int on_free_outer(void *data)
{
	iou_t *inner = new_other();

	EXPECT(iou_post(inner, on_free_iou, data) == 0);
	return iou_run(inner);
}

/* Not its own callback, but one inside it, of another iou. */
static void iou_free_deep_in_a_callback(void)
{
	EXPECT(iou_post(the_iou, on_free_outer, NULL) == 0);
	poll_once();
}

/* The outer one belongs to no thread. */
static void iou_free_of_a_handed_one(void)
{
	the_iou = iou_new_with(&(iou_config_t){.entries = 4, .setup_flags = IORING_SETUP_CLAMP});
	EXPECT(the_iou != NULL);
	iou_free_deep_in_a_callback();
}

static void null_queue_iou(void) { iou_op_queue(NULL, the_op, on_nothing, NULL); }
static void null_queue_op(void) { iou_op_queue(the_iou, NULL, on_nothing, NULL); }
static void null_queue_cb(void) { iou_op_queue(the_iou, the_op, NULL, NULL); }
static void null_free_iou(void) { iou_op_free(NULL, the_op); }
static void null_timer_iou(void) { iou_op_timer(NULL, the_op, 1, 1, on_nothing, NULL); }
static void null_timer_op(void) { iou_op_timer(the_iou, NULL, 1, 1, on_nothing, NULL); }
static void null_timer_cb(void) { iou_op_timer(the_iou, the_op, 1, 1, NULL, NULL); }
static void null_deadline_iou(void) { iou_op_deadline(NULL, the_op, 1); }
static void null_deadline_op(void) { iou_op_deadline(the_iou, NULL, 1); }
static void null_hold(void) { iou_hold(NULL); }
static void null_unhold(void) { iou_unhold(NULL); }
static void null_bh_schedule(void) { iou_bh_schedule(NULL); }
static void null_bh_schedule_idle(void) { iou_bh_schedule_idle(NULL); }
static void null_bh_cancel(void) { iou_bh_cancel(NULL); }
static void null_stats(void) { iou_stats(the_iou, NULL); }
static void null_stats_iou(void) { iou_stats(NULL, &(iou_stats_t){0}); }
static void null_dump(void) { iou_dump(the_iou, NULL); }
static void null_dump_iou(void) { iou_dump(NULL, stdout); }

#define QUEUED  "op is queued already"
#define PENDING "op is still queued: cancel it first"
#define GONE    "op was given back, since its last callback did not queue it again"
#define FREED   "op was given back by iou_op_free"
#define NO_ENV  "not an environment"
#define DELETED "bh was deleted"

/* Those that name the op, as far as it is known, and its callback. */
static const struct {
	const char *says; /* how its line begins, after "iou: " */
	void (*func)(void);
	const char *names;
	int (*cb)(void *data);
} named[] = {
	{"iou_op_queue: " QUEUED, queue_twice, "NOP fd -1", on_nothing},
	{"iou_op_queue: " QUEUED, queue_in_flight, "NOP fd -1", on_nothing},
	{"iou_op_queue: " QUEUED, queue_a_read_in_flight, "READ fd 77", on_nothing},
	{"iou_op_queue: " QUEUED, queue_a_timer, "timer", on_nothing},
	{"iou_op_queue: " QUEUED, queue_a_job, "job", on_nothing},
	{"iou_op_timer: " QUEUED, time_a_queued_op, "NOP fd -1", on_nothing},
	{"iou_op_timer: " QUEUED, time_a_job, "job", on_nothing},
	{"iou_op_async: " QUEUED, work_on_a_queued_op, "NOP fd -1", on_nothing},
	{"iou_op_async: " QUEUED, work_twice, "job", on_nothing},
	{"iou_op_async: " QUEUED, work_on_a_timer, "timer", on_nothing},
	{"iou_op_queue: " QUEUED, queue_in_a_callback_with_more, "timer", on_queue_more},
	{"iou_op_queue: " QUEUED, queue_twice_in_its_callback, "NOP fd -1", on_nothing},
	{"iou_op_queue: " QUEUED, queue_a_cancelled_timer, "", on_nothing},
	{"iou_op_deadline: " QUEUED, deadline_on_a_queued_op, "NOP fd -1", on_nothing},
	{"iou_op_deadline: " QUEUED, deadline_on_a_job, "job", on_nothing},
	{"iou_op_queue: " GONE, queue_after_its_end, "", on_nothing},
	{"iou_op_timer: " GONE, time_after_its_end, "", on_nothing},
	{"iou_op_async: " GONE, work_after_its_end, "", on_nothing},
	{"iou_op_free: " GONE, free_after_its_end, "", on_nothing},
	{"iou_op_free: " PENDING, free_a_queued_op, "NOP fd -1", on_nothing},
	{"iou_op_free: " PENDING, free_a_read_in_flight, "READ fd 77", on_nothing},
	{"iou_op_free: " PENDING, free_a_timer, "timer", on_nothing},
	{"iou_op_free: " PENDING, free_a_job, "job", on_nothing},
	{"iou_op_free: " PENDING, free_in_a_callback_with_more, "timer", on_free_the_op},
	{"iou_op_free: " PENDING, free_a_cancelled_timer, "", on_nothing},
	{"iou_op_deadline: " GONE, deadline_after_its_end, "", on_nothing},
};
#define N_NAMED ((int)(sizeof(named) / sizeof(named[0])))

static const struct {
	const char *says; /* as above */
	void (*func)(void);
} misuses[] = {
	{"iou_op_queue: op is not prepared", queue_unprepared},
	{"iou_op_queue: op is not prepared", queue_with_user_data_alone},
	{"iou_op_queue: op is not prepared", queue_again_unprepared},
	{"iou_op_queue: op is not prepared", queue_again_unprepared_after_a_cancel},
	{"iou_op_queue: op is not prepared", queue_after_a_timer_unprepared},
	{"iou_op_queue: " FREED, queue_after_free},
	{"iou_op_queue: " FREED, queue_after_free_in_its_callback},
	{"iou_op_free: " FREED, free_twice},
	{"iou_op_of: " NO_ENV, op_of_unaligned},
	{"iou_op_of: " NO_ENV, op_of_inside},
	{"iou_op_of: " NO_ENV, op_of_inside_an_allocated_one},
	{"iou_op_of: " NO_ENV, op_of_stack},
	{"iou_op_of: " NO_ENV, op_of_a_copy},
	{"iou_op_of: " NO_ENV, op_of_an_op},
	{"iou_op_of: " NO_ENV, op_of_one_given_back},
	{"iou_op_of: " NO_ENV, op_of_one_freed},
	{"iou_op_of: " NO_ENV, op_of_one_lost},
	{"iou_bh_schedule: " DELETED, schedule_deleted},
	{"iou_bh_schedule_idle: " DELETED, schedule_idle_deleted},
	{"iou_bh_cancel: " DELETED, cancel_deleted},
	{"iou_bh_delete: " DELETED, delete_twice},
	{"iou_bh_delete: " DELETED, delete_an_idle_one_twice},
	{"iou_bh_schedule: " DELETED, schedule_deleted_in_its_callback},
	{"iou_bh_schedule: " DELETED, schedule_deleted_elsewhere},
	{"iou_bh_schedule_idle: " DELETED, schedule_idle_deleted_elsewhere},
	{"iou_bh_cancel: " DELETED, cancel_deleted_elsewhere},
	{"iou_bh_delete: " DELETED, delete_deleted_elsewhere},
	{"iou_op_env: ", env_after_free},
	{"iou_op_env: ", env_after_its_end},
	{"iou_op_queue: ", queue_on_another},
	{"iou_op_timer: ", time_on_another},
	{"iou_op_async: ", work_on_another},
	{"iou_op_free: ", free_on_another},
	{"iou_op_deadline: ", deadline_on_another},
	{"iou_op_cancel: ", cancel_on_another},
	{"iou_op_queue: ", queue_elsewhere},
	{"iou_op_timer: ", time_elsewhere},
	{"iou_op_free: ", free_op_elsewhere},
	{"iou_op_deadline: ", deadline_elsewhere},
	{"iou_stats: ", stats_elsewhere},
	{"iou_dump: ", dump_elsewhere},
	{"iou_unhold: ", unhold_below_zero},
	{"iou_free: ", iou_free_in_a_callback},
	{"iou_free: ", iou_free_deep_in_a_callback},
	{"iou_free: ", iou_free_of_a_handed_one},
	{"iou_op_queue: ", null_queue_iou},
	{"iou_op_queue: ", null_queue_op},
	{"iou_op_queue: ", null_queue_cb},
	{"iou_op_free: ", null_free_iou},
	{"iou_op_timer: ", null_timer_iou},
	{"iou_op_timer: ", null_timer_op},
	{"iou_op_timer: ", null_timer_cb},
	{"iou_op_deadline: ", null_deadline_iou},
	{"iou_op_deadline: ", null_deadline_op},
	{"iou_hold: ", null_hold},
	{"iou_unhold: ", null_unhold},
	{"iou_bh_schedule: ", null_bh_schedule},
	{"iou_bh_schedule_idle: ", null_bh_schedule_idle},
	{"iou_bh_cancel: ", null_bh_cancel},
	{"iou_stats: ", null_stats},
	{"iou_stats: ", null_stats_iou},
	{"iou_dump: ", null_dump},
	{"iou_dump: ", null_dump_iou},
};
#define N_MISUSES ((int)(sizeof(misuses) / sizeof(misuses[0])))

static void misuse(void *func)
{
	the_iou = iou_new(4);
	EXPECT(the_iou != NULL);
	the_op = iou_op_new(the_iou);
	EXPECT(the_op != NULL);
	(*(void (**)(void))func)();
}

/* It ends the program with one line, which begins so and goes on. */
static void check_misuse(void (*func)(void), const char *says, char *said, size_t size)
{
	int status = in_child(misuse, &func, said, size);

	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT,
		      "%s: status %#x, said: %s", says, status, said);
	ck_assert_msg(strncmp(said, "iou: ", 5) == 0, "%s: said: %s", says, said);
	ck_assert_msg(strncmp(said + 5, says, strlen(says)) == 0, "%s: said: %s", says, said);
	ck_assert_msg(strlen(said) > 5 + strcspn(says, ":") + 7, "no rule: %s", said);
	ck_assert_ptr_eq(strchr(said, '\n'), said + strlen(said) - 1);
}

/* _i: which */
START_TEST(misuse_ends_the_program)
{
	char said[4096];

	check_misuse(misuses[_i].func, misuses[_i].says, said, sizeof(said));
}
END_TEST

/* _i: which */
START_TEST(misuse_names_the_op)
{
	char said[4096], callback[64];

	check_misuse(named[_i].func, named[_i].says, said, sizeof(said));
	snprintf(callback, sizeof(callback), "callback %p", (void *)(uintptr_t)named[_i].cb);
	ck_assert_msg(strstr(said, named[_i].names) && strstr(said, callback), "%s, %s: not in %s",
		      named[_i].names, callback, said);
}
END_TEST

/* ---- NULL ------------------------------------------------------------------------------------ */

static void prep(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static int on_handler(iou_handler_t *handler)
{
	(void)handler;
	return 0;
}

#define INVALID(call) ck_assert_int_eq((call), -EINVAL)
#define INVALID_NULL(call) \
	do { \
		errno = 0; \
		ck_assert_ptr_null(call); \
		ck_assert_int_eq(errno, EINVAL); \
	} while (0)

START_TEST(null_is_refused)
{
	iou_handler_t handler = {.cb = on_handler}, empty = {.cb = NULL};
	iou_t *iou = new_iou(4);
	iou_op_t *op = new_op(iou);

	INVALID(iou_flush(NULL));
	INVALID(iou_run(NULL));
	INVALID(iou_poll(NULL, 0));
	INVALID(iou_quit(NULL));
	INVALID(iou_fd(NULL));
	INVALID(iou_resize(NULL, 8));
	INVALID(iou_cancel_all(NULL));
	INVALID(iou_op_cancel(NULL, op));
	INVALID(iou_op_cancel(iou, NULL));
	INVALID(iou_post(NULL, on_nothing, NULL));
	INVALID(iou_post(iou, NULL, NULL));
	INVALID(iou_async(NULL, on_nothing, NULL, on_nothing, NULL));
	INVALID(iou_async(iou, NULL, NULL, on_nothing, NULL));
	INVALID(iou_async(iou, on_nothing, NULL, NULL, NULL));
	INVALID(iou_op_async(NULL, op, on_nothing, NULL, on_nothing, NULL));
	INVALID(iou_op_async(iou, NULL, on_nothing, NULL, on_nothing, NULL));
	INVALID(iou_op_async(iou, op, NULL, NULL, on_nothing, NULL));
	INVALID(iou_op_async(iou, op, on_nothing, NULL, NULL, NULL));
	INVALID(iou_add_sqe(NULL, prep, NULL, &handler));
	INVALID(iou_add_sqe(iou, NULL, NULL, &handler));
	INVALID(iou_add_sqe(iou, prep, NULL, NULL));
	INVALID(iou_add_sqe(iou, prep, NULL, &empty));
	INVALID_NULL(iou_new(0));
	INVALID_NULL(iou_new_with(NULL));
	INVALID_NULL(iou_op_new(NULL));
	INVALID_NULL(iou_op_env(NULL, 8));
	INVALID_NULL(iou_op_of(NULL));
	INVALID_NULL(iou_ring(NULL));
	INVALID_NULL(iou_bh_new(NULL, on_nothing, NULL));
	INVALID_NULL(iou_bh_new(iou, NULL, NULL));
	ck_assert_ptr_null(iou_free(NULL));
	iou_op_free(iou, NULL);
	iou_bh_delete(NULL);
	ck_assert_uint_eq(n_pending(iou), 0); /* refused: nothing happened */
	run(iou);
	iou_op_free(iou, op);
	done(iou);
}
END_TEST

/* ---- What is allowed, close to what is not --------------------------------------------------- */

static int on_free_itself(void *data)
{
	iou_op_t *op = data;

	iou_op_free(the_iou, op);
	op->result = 7; /* it takes effect when the callback returns */
	return 0;
}

START_TEST(an_op_is_freed_in_its_last_callback)
{
	iou_op_t *op;

	the_iou = new_iou(4);
	for (int i = 0; i < 3; i++) {
		op = new_op(the_iou);
		ck_assert_ptr_nonnull(iou_op_env(op, 100));
		nop(op);
		if (i == 0)
			iou_op_queue(the_iou, op, on_free_itself, op);
		else if (i == 1)
			start_job(the_iou, op, on_nothing, NULL, on_free_itself, op);
		else
			iou_op_timer(the_iou, op, 0, 0, on_free_itself, op);
		run(the_iou);
		op = new_op(the_iou); /* it went back once */
		ck_assert_ptr_ne(op, new_op(the_iou));
	}
	done(the_iou);
}
END_TEST

/* An SQE with a single field set is prepared. */
START_TEST(an_op_with_a_single_field_set_is_prepared)
{
	call_t calls[3];

	the_iou = new_iou(4);
	io_uring_prep_nop(call_op(the_iou, &calls[0], 0));
	call_op(the_iou, &calls[1], 1)->fd = -1;
	call_op(the_iou, &calls[2], 2)->flags = IOSQE_ASYNC;
	for (int i = 0; i < 3; i++)
		call_queue(the_iou, &calls[i]);
	run(the_iou);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(calls[i].result, 0);
	done(the_iou);
}
END_TEST

/* The library prints nothing while all goes well, errors included: neither to stdout nor to
 * stderr. */
static void go_wrong_quietly(void *data)
{
	iou_t *iou = iou_new(4);
	iou_op_t *op = iou_op_new(iou);

	(void)data;
	EXPECT(iou_new(0) == NULL);
	io_uring_prep_read(op->sqe, -1, NULL, 1, 0);
	iou_op_queue(iou, op, on_nothing, NULL);
	EXPECT(iou_run(iou) == 0);
	EXPECT(iou_resize(iou, 0) == -EINVAL);
	EXPECT(iou_op_cancel(iou, iou_op_new(iou)) == -EINVAL);
	EXPECT(iou_async(iou, on_nothing, NULL, on_nothing, NULL) == 0);
	EXPECT(iou_free(iou) == NULL);
}

START_TEST(errors_print_nothing)
{
	char said[4096];

	ck_assert_int_eq(in_child(go_wrong_quietly, NULL, said, sizeof(said)), 0);
	ck_assert_str_eq(said, "");
}
END_TEST

Suite *misuse_suite(void)
{
	Suite *suite = suite_create("misuse");
	TCase *tcase =
		TEST_CASE(suite, "misuse", null_is_refused, an_op_is_freed_in_its_last_callback,
			  an_op_with_a_single_field_set_is_prepared, errors_print_nothing);

	tcase_add_loop_test(tcase, misuse_ends_the_program, 0, N_MISUSES);
	tcase_add_loop_test(tcase, misuse_names_the_op, 0, N_NAMED);
	return suite;
}
