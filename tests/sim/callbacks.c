/* SPDX-License-Identifier: MIT */

/* Callbacks, jobs, and what the other threads do. */

#include "model.h"

#include <errno.h>
#include <limits.h>

/* ---- Callbacks ------------------------------------------------------------------------------- */

static void callback_begin(int class)
{
	driver_t *driver = model.driver;

	total_callbacks++;
	world.events++;
	CHECK(driver, "a callback runs outside of iou_run() and iou_poll()");
	CHECK(!on_other_thread(), "a callback runs on another thread");
	CHECK(!driver->error, "a callback runs after one returned an error");
	CHECK(!driver->is_run || !model.quit_is_set, "a callback runs after iou_quit()");
	CHECK(iou_current() == model.iou, "iou_current() in a callback");
	driver->n_calls++;
	driver->n_of[class]++;
	CHECK(driver->is_run || driver->n_of[class] <= driver->n_rounds * ROUND_MAX,
	      "a round delivers more than %d of source %d", ROUND_MAX, class);
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].door == TIMER && ops[i].state == PENDING && !ops[i].asked &&
		    ops[i].due_ns <= world.now_ns)
			ops[i].overtaken[class]++;
	if (!driver->is_run && !driver->nested) {
		driver->n_wraps += class < driver->class;
		CHECK(driver->n_wraps < driver->n_rounds,
		      "the order of sources in a round: %d after %d", class, driver->class);
		driver->class = class;
	}
	model.boundary = true;
}

static int callback_end(void)
{
	driver_t *driver = model.driver;
	int ret = one_in(24) ? -1000 - (int)pick(1000) : (int)pick(3);

	model.boundary = true;
	TRACE("callback returns %d", ret);
	if (ret < 0)
		driver->error = ret;
	return ret;
}

static void calling_begin(calling_t *calling, const iou_op_t *op)
{
	*calling = (calling_t){ model.calling, op, op->result, op->flags };
	model.calling = calling;
}

static void act_inside(void)
{
	if (one_in(2))
		for (unsigned n = 1 + pick(3); n; n--)
			act();
}

void op_gone(op_model_t *op)
{
	op->state = GONE;
	memset(op->buffer, 0x5a, sizeof(op->buffer));
	op->ts = (struct __kernel_timespec){ -1, -1 };
}

static void last_callback(op_model_t *op)
{
	op->state = LAST;
	model.n_pending--;
	if (op->op && one_in(8))
		CHECK(CALL(false, iou_op_cancel(model.iou, op->op)) == -EINVAL,
		      "iou_op_cancel() in the op's last callback");
}

static void after_callback(op_model_t *op, bool last)
{
	act_inside();
	if (!last)
		return;
	if (op->env)
		for (unsigned i = 0; i < op->env_size; i++)
			CHECK(op->env[i] == (unsigned char)(number_of(op) + i),
			      "the environment of op %u", number_of(op));
	if (op->op && one_in(4) && requeue(op))
		return;
	if (op->op && one_in(16))
		CALL_VOID(false, iou_op_free(model.iou, op->op));
	op_gone(op);
}

static void ring_callback(op_model_t *op, int result, unsigned flags)
{
	bool last = !(flags & IORING_CQE_F_MORE);
	unsigned number = number_of(op);
	bool in_iou = op->n_exp_in == op->n_exp_out;

	TRACE("callback of op %u: %d, flags %#x", number, result, flags);
	CHECK(op->state == PENDING, "op %u has a callback after its last", number);
	callback_begin(in_iou ? CLASS_ENDED : CLASS_CQE);
	model.n_cqes += !in_iou;
	check_result(op, result, flags);
	if (last) {
		CHECK(!op->taken || op->kernel_done,
		      "op %u has its last callback before its last CQE", number);
		CHECK(!kernel_holds(number),
		      "op %u has its last callback while it is in the kernel", number);
	}
	if (result >= 0 &&
	    (op->sqe.opcode == IORING_OP_OPENAT || op->sqe.opcode == IORING_OP_ACCEPT))
		kernel_close_of_program(result);
	if (last)
		last_callback(op);
}

/* As it was queued; but clean in a ring op's last callback, where the op may be prepared again. */
static void check_sqe(const op_model_t *op, bool last)
{
	struct io_uring_sqe want = op->sqe;

	if (op->door == RING && last) {
		CHECK(sqe_is_zero(op->op->sqe), "the SQE of op %u is not zero in its last callback",
		      number_of(op));
		return;
	}
	if (op->door == RING)
		want.user_data = op->op->sqe->user_data; /* iou's */
	CHECK(memcmp(&want, op->op->sqe, sizeof(want)) == 0,
	      "the SQE of op %u was changed in the op", number_of(op));
}

int on_ring(void *data)
{
	op_model_t *op = data;
	bool last = !(op->op->flags & IORING_CQE_F_MORE);

	calling_t calling;

	check_sqe(op, last);
	calling_begin(&calling, op->op);
	ring_callback(op, calling.result, calling.flags);
	after_callback(op, last);
	model.calling = calling.up;
	return callback_end();
}

int on_handler(iou_handler_t *handler)
{
	op_model_t *op = (op_model_t *)(void *)((char *)handler - offsetof(op_model_t, handler));
	bool last = !(handler->flags & IORING_CQE_F_MORE);

	ring_callback(op, handler->result, handler->flags);
	after_callback(op, last);
	return callback_end();
}

/* A due timer waits for some rounds at most: one that had begun, at each depth, and those that
 * timers before it fill. */
static void check_overtaken(op_model_t *op)
{
	unsigned n_rounds = 2 + model.most_depth + op->overtaken[CLASS_TIMER] / ROUND_MAX;

	for (unsigned i = CLASS_POST; i <= CLASS_CQE; i++)
		CHECK(op->overtaken[i] <= n_rounds * ROUND_MAX,
		      "timer %u is due, and waits for %u callbacks of source %u", number_of(op),
		      op->overtaken[i], i);
	memset(op->overtaken, 0, sizeof(op->overtaken));
}

/* Due before another that is delivered, and not by a hair that we cannot see. */
static bool due_before(const op_model_t *a, const op_model_t *b)
{
	if (a->due_ns < b->due_from_ns)
		return true;
	return !a->period_ns && !b->period_ns && a->due_ns == b->due_ns &&
	       a->due_from_ns == a->due_ns && b->due_from_ns == b->due_ns &&
	       a->timer_seq < b->timer_seq;
}

static void check_expiry(op_model_t *op, int result, bool last)
{
	unsigned number = number_of(op);

	CHECK(world.now_ns >= op->due_from_ns, "timer %u is early", number);
	CHECK(last == !op->period_ns, "timer %u has its last callback: %d", number, last);
	CHECK(result >= 1, "timer %u got %d", number, result);
	for (unsigned i = 1; i <= model.n_ops; i++)
		CHECK(ops[i].door != TIMER || ops[i].state != PENDING || ops[i].asked ||
			      !due_before(&ops[i], op),
		      "timer %u comes before timer %u", number, i);
	CHECK(op->period_ns || result == 1, "timer %u got %d expirations", number, result);
	check_overtaken(op);
	CHECK(!op->driver || op->driver != model.driver->id || model.driver->n_rounds > 1,
	      "timer %u runs in the round in which it was started", number);
	op->driver = 0;
}

/* A periodic timer goes on, unless it is cancelled here. */
static void next_period(op_model_t *op, int result)
{
	uint64_t most = (world.now_ns - op->due_from_ns) / op->period_ns + 1;
	unsigned number = number_of(op);

	CHECK((uint64_t)result <= most, "timer %u got %d expirations of %llu", number, result,
	      (unsigned long long)most);
	for (; result; result--)
		op->due_ns = time_plus(op->due_ns, op->period_ns);
	op->due_from_ns = op->due_ns;
	if (one_in(4)) {
		op->asked = true;
		CHECK(CALL(false, iou_op_cancel(model.iou, op->op)) == 0,
		      "iou_op_cancel() of periodic timer %u", number);
	}
}

int on_timer(void *data)
{
	op_model_t *op = data;
	int result = op->op->result;
	unsigned number = number_of(op), flags = op->op->flags;
	bool last = !(flags & IORING_CQE_F_MORE);
	calling_t calling;

	calling_begin(&calling, op->op);
	TRACE("callback of timer %u: %d, flags %#x", number, result, flags);
	check_sqe(op, last);
	CHECK(op->state == PENDING, "timer %u has a callback after its last", number);
	callback_begin(op->asked ? CLASS_ENDED : CLASS_TIMER);
	model.n_timers += !op->asked;
	if (op->asked)
		CHECK(result == -ECANCELED && last, "timer %u is cancelled, and got %d", number,
		      result);
	else
		check_expiry(op, result, last);
	if (op->period_ns && !last)
		next_period(op, result);
	if (last)
		last_callback(op);
	after_callback(op, last);
	model.calling = calling.up;
	return callback_end();
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

static void check_start_order(const op_model_t *op)
{
	unsigned n = 0;

	for (unsigned i = 1; i <= model.n_ops; i++)
		n += (ops[i].door == JOB || ops[i].door == SHORT_JOB) && ops[i].state == PENDING &&
		     !ops[i].started && !ops[i].asked && !deadline_may_be_over(&ops[i]) &&
		     ops[i].job_seq < op->job_seq;
	CHECK(model.freeing || n < threads_n_workers(),
	      "job %u starts before %u that were queued earlier", number_of(op), n);
}

int job_main(void *data)
{
	op_model_t *op = data;
	unsigned number = number_of(op);

	TRACE("thread %u: job %u starts", thread_number(), number);
	CHECK(on_other_thread(), "job %u runs on the loop thread", number);
	CHECK(op->state == PENDING && !op->started, "job %u starts, and is not queued", number);
	CHECK(!op->withdrawn, "job %u starts after it was cancelled", number);
	check_start_order(op);
	op->started = true;
	world.events++;
	switch (pick(6)) {
	case 0:
		thread_sleep(world.now_ns + pick(2000), &op->released);
		break;
	case 1:
		thread_sleep(NEVER, &op->released);
		break;
	case 2:
		model.n_gifts++;
		model.n_giving++;
		post_from(3, false);
		model.n_giving--;
		break;
	case 3:
		if (op->op && !op->env)
			give_env(op);
		break;
	}
	CHECK(op->state == PENDING, "job %u was given up while it runs", number);
	op->finished = true;
	op->finish_seq = ++model.finish_seq;
	TRACE("thread %u: job %u ends", thread_number(), number);
	return op->ret;
}

static void job_callback(op_model_t *op)
{
	unsigned number = number_of(op);

	TRACE("callback of job %u", number);
	CHECK(op->state == PENDING, "job %u has a callback after its last", number);
	callback_begin(CLASS_ENDED); /* jobs and what ended in iou are in one line */
	CHECK(op->finished || (!op->started && (op->asked || deadline_may_be_over(op))),
	      "job %u has not run", number);
	model.n_jobs++;
	op->withdrawn |= !op->started;
	if (op->finished && model.config.workers == 1) {
		CHECK(op->finish_seq > model.last_finish_seq, "job %u comes back out of order",
		      number);
		model.last_finish_seq = op->finish_seq;
	}
	last_callback(op);
}

int on_job(void *data)
{
	op_model_t *op = data;
	int result = op->op->result;
	calling_t calling;

	calling_begin(&calling, op->op);
	CHECK(op->op->flags == 0, "job %u has flags %#x", number_of(op), op->op->flags);
	check_sqe(op, true);
	job_callback(op);
	if (op->finished)
		CHECK(result == op->ret, "job %u got %d and not %d", number_of(op), result,
		      op->ret);
	else
		check_cancelled(op, result);
	after_callback(op, true);
	model.calling = calling.up;
	return callback_end();
}

int on_short_job(void *data)
{
	op_model_t *op = data;
	int ret;

	job_callback(op);
	after_callback(op, true);
	ret = callback_end();
	if (ret >= 0 && op->finished && op->ret < 0)
		model.driver->error = op->ret;
	return ret;
}

/* ---- Posts and bottom halves ----------------------------------------------------------------- */

/* Posts and bottom halves of the loop thread come in its order. */
static void check_place(unsigned place)
{
	if (!place)
		return;
	CHECK(place > model.last_place,
	      "a post or bottom half comes after one that was given later");
	model.last_place = place;
}

static int on_post(void *data)
{
	post_model_t *post = data;

	TRACE("callback of post %u", (unsigned)(post - posts));
	CHECK(post->begun && !post->delivered, "post %u is delivered twice",
	      (unsigned)(post - posts));
	callback_begin(CLASS_POST);
	model.n_posts_called++;
	CHECK(post->thread > 2 || post->seq > model.last_post[post->thread],
	      "post %u comes out of order", (unsigned)(post - posts));
	CHECK(!post->driver || post->driver != model.driver->id || model.driver->n_rounds > 1,
	      "post %u runs in the round in which it was made", (unsigned)(post - posts));
	model.last_post[post->thread] = post->seq;
	check_place(post->place);
	post->delivered = true;
	if (post->accepted)
		model.n_pending--;
	act_inside();
	return callback_end();
}

/* Posts of jobs, thread 3, come in no order among each other. */
void post_from(unsigned thread, bool needed)
{
	post_model_t *post = &posts[model.n_posts];
	int ret;

	CHECK(model.n_posts < MAX_POSTS, "a run does not come to an end");
	if (!needed && model.n_posts >= MANY_POSTS)
		return;
	model.n_posts++;
	*post = (post_model_t){ .thread = thread, .begun = true };
	if (!thread && model.driver)
		post->driver = model.driver->id;
	post->seq = ++model.next_post[thread];
	post->place = thread ? 0 : ++model.next_place;
	TRACE("thread %u: iou_post %u", thread_number(), (unsigned)(post - posts));
	if (thread)
		ret = iou_post(model.iou, on_post, post);
	else
		ret = CALL(true, iou_post(model.iou, on_post, post));
	if (ret == -ENOMEM) {
		CHECK(!post->delivered, "a post that was refused is delivered");
		return;
	}
	CHECK(ret == 0, "iou_post: %d", ret);
	post->accepted = true;
	model.n_pending += !post->delivered;
}

static int on_bh(void *data)
{
	bh_model_t *bh = data;
	unsigned number = (unsigned)(bh - model.bhs);

	TRACE("callback of bottom half %u", number);
	CHECK(bh->bh, "bottom half %u runs after it was deleted", number);
	callback_begin(CLASS_POST);
	model.n_posts_called++;
	CHECK(bh->may_run || bh->once_more, "bottom half %u runs, and is not scheduled", number);
	check_place(bh->place);
	bh->place = 0;
	bh->may_stay = false;
	bh->once_more = bh->may_run && bh->by_other;
	bh->by_other = bh->n_running > 0;
	model.n_pending -= bh->scheduled;
	bh->scheduled = false;
	bh->n_ended++;
	bh->may_run = bh->n_running > 0;
	act_inside();
	return callback_end();
}

static void call_bh_schedule(const bh_model_t *bh, bool idle, bool by_other)
{
	if (by_other && idle)
		iou_bh_schedule_idle(bh->bh);
	else if (by_other)
		iou_bh_schedule(bh->bh);
	else if (idle)
		CALL_VOID(false, iou_bh_schedule_idle(bh->bh));
	else
		CALL_VOID(false, iou_bh_schedule(bh->bh));
}

static void bh_schedule(bh_model_t *bh, bool idle, bool from_signal)
{
	bool queued = bh->may_run || bh->once_more || bh->by_other || bh->n_running;
	bool by_other = on_other_thread() || from_signal;
	unsigned n_ended = bh->n_ended;

	TRACE("thread %u: iou_bh_schedule%s %u", thread_number(), idle ? "_idle" : "",
	      (unsigned)(bh - model.bhs));
	errno = 4711;
	bh->n_calls++;
	bh->n_running++;
	bh->may_run = true;
	bh->by_other |= by_other;
	call_bh_schedule(bh, idle, by_other);
	CHECK(errno == 4711, "iou_bh_schedule() changed errno to %d", errno);
	bh->n_running--;
	bh->n_calls--;
	if (n_ended != bh->n_ended)
		/* it ran, or was cancelled, before this returned: nobody can tell what holds */
		return;
	if (!queued && !idle && !by_other && !bh->by_other && !bh->may_stay)
		bh->place = ++model.next_place;
	bh->idle = bh->scheduled ? bh->idle && idle : idle;
	if (!bh->scheduled) {
		bh->scheduled = true;
		model.n_pending++;
	}
}

static void bh_cancel(bh_model_t *bh)
{
	TRACE("iou_bh_cancel %u", (unsigned)(bh - model.bhs));
	/* what others schedule from here on may be cancelled or not */
	bh->may_run = bh->n_running > 0;
	bh->by_other = bh->once_more = false;
	model.n_dead++;
	bh->place = 0;
	bh->may_stay = model.n_giving;
	CALL_VOID(false, iou_bh_cancel(bh->bh));
	model.n_pending -= bh->scheduled;
	bh->scheduled = false;
	bh->n_ended++;
}

void act_bh(void)
{
	bh_model_t *bh = &model.bhs[pick(MAX_BHS)];
	iou_bh_t *gone;

	if (!bh->bh) {
		memset(bh, 0, sizeof(*bh));
		bh->bh = CALL(true, iou_bh_new(model.iou, on_bh, bh));
		CHECK(bh->bh || errno == ENOMEM, "iou_bh_new: %d", errno);
		if (!bh->bh)
			return;
	}
	switch (pick(6)) {
	case 0:
		bh_cancel(bh);
		if (one_in(2)) /* to the end of the line */
			bh_schedule(bh, false, false);
		break;
	case 1:
		if (bh->n_calls)
			break;
		TRACE("iou_bh_delete %u", (unsigned)(bh - model.bhs));
		model.n_pending -= bh->scheduled;
		model.n_dead++;
		gone = bh->bh;
		bh->bh = NULL; /* no thread uses it from here on */
		CALL_VOID(false, iou_bh_delete(gone));
		break;
	case 2:
		bh_schedule(bh, true, false);
		break;
	default:
		bh_schedule(bh, false, false);
	}
}

void signal_arrives(void)
{
	bh_model_t *bh = &model.bhs[pick(MAX_BHS)];
	unsigned n_runs = model.n_runs;

	model.n_gifts++;
	errno = 4711;
	if (one_in(2)) {
		TRACE("signal: iou_quit");
		model.quits_of_others++;
		iou_quit(model.iou);
		model.others_quit |= n_runs == model.n_runs;
	} else if (bh->bh) {
		bh_schedule(bh, false, true);
	}
	CHECK(errno == 4711, "iou_quit() or iou_bh_schedule() changed errno");
}

static void poster_do(unsigned number)
{
	bh_model_t *bh = &model.bhs[pick(MAX_BHS)];
	unsigned what = model.order == UNHOLD ? 3 : model.order == POST ? 0 : pick(5);
	bool needed = model.order == POST;
	unsigned n_runs;

	model.order = ANYTHING;
	switch (what) {
	case 1:
	case 2:
		if (bh->bh)
			bh_schedule(bh, one_in(4), false);
		break;
	case 3:
		if (model.holds <= 0)
			break;
		TRACE("thread %u: iou_unhold", number);
		model.holds--;
		iou_unhold(model.iou);
		break;
	case 4:
		if (one_in(2)) {
			TRACE("thread %u: iou_quit", number);
			model.quits_of_others++;
			n_runs = model.n_runs;
			iou_quit(model.iou);
			/* else that run may have spent it */
			model.others_quit |= n_runs == model.n_runs;
			break;
		}
		TRACE("thread %u: hold, post, unhold", number);
		model.poster_holds++;
		iou_hold(model.iou);
		post_from(number, false);
		iou_unhold(model.iou);
		model.poster_holds--;
		break;
	default:
		post_from(number, needed);
	}
}

/* What the other threads do. */
void poster_act(unsigned number)
{
	model.n_gifts++;
	model.n_giving++;
	poster_do(number);
	model.n_giving--;
}
