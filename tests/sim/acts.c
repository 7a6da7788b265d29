/* SPDX-License-Identifier: MIT */

/* What a program does: each act is one or a few calls, and checks what they return. */

#include "model.h"

#include <errno.h>
#include <poll.h>

/* ---- Queueing -------------------------------------------------------------------------------- */

static op_model_t *op_model_new(enum door door)
{
	op_model_t *op;

	if (model.n_ops + 1 >= MAX_OPS)
		return NULL;
	op = &ops[++model.n_ops];
	memset(op, 0, sizeof(*op));
	op->door = door;
	op->state = GONE; /* until it is accepted */
	return op;
}

static void op_model_pending(op_model_t *op)
{
	op->state = PENDING;
	model.n_pending++;
}

static int random_fd(void)
{
	return one_in(3) ? FD_READY : FD_READY + (int)pick(FD_END - FD_READY);
}

static const op_model_t *random_ring_op(void)
{
	for (unsigned i = 0; i < 8 && model.n_ops; i++) {
		const op_model_t *op = &ops[1 + pick(model.n_ops)];

		if (op->door == RING && op->state == PENDING)
			return op;
	}
	return NULL;
}

static void prepare_cancel(struct io_uring_sqe *sqe)
{
	const op_model_t *target = random_ring_op();

	if (!target)
		io_uring_prep_nop(sqe);
	else if (one_in(8))
		io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
	else if (one_in(4))
		io_uring_prep_poll_remove(sqe, (__u64)(uintptr_t)target->op);
	else if (one_in(4))
		io_uring_prep_timeout_remove(sqe, (__u64)(uintptr_t)target->op, 0);
	else
		io_uring_prep_cancel(sqe, target->op, 0);
}

static void prepare_nop(struct io_uring_sqe *sqe, bool may_be_unknown)
{
	io_uring_prep_nop(sqe);
	if (may_be_unknown && one_in(4))
		sqe->opcode = 255;
}

static void prepare_poll(struct io_uring_sqe *sqe, int fd)
{
	if (one_in(2))
		io_uring_prep_poll_multishot(sqe, fd, POLLIN);
	else
		io_uring_prep_poll_add(sqe, fd, POLLIN);
}

static void prepare_op(struct io_uring_sqe *sqe, op_model_t *op, unsigned what, int fd)
{
	switch (what) {
	case 0:
		io_uring_prep_openat(sqe, fd, "x", 0, 0);
		break;
	case 1:
		io_uring_prep_accept(sqe, fd, NULL, NULL, 0);
		break;
	case 2:
		io_uring_prep_timeout(sqe, &op->ts, 0, 0);
		break;
	case 3:
		prepare_poll(sqe, fd);
		break;
	case 4:
		io_uring_prep_recv_multishot(sqe, fd, NULL, 8, 0);
		break;
	case 5:
		io_uring_prep_send_zc(sqe, fd, op->buffer, 8, 0, 0);
		break;
	case 6:
		io_uring_prep_write(sqe, fd, op->buffer, 8, 0);
		break;
	case 7:
		prepare_cancel(sqe);
		break;
	case 8:
	case 9:
		prepare_nop(sqe, what == 8);
		break;
	default:
		io_uring_prep_read(sqe, fd, op->buffer, 8, 0);
	}
}

/* Any op, at random. */
static void prepare(struct io_uring_sqe *sqe, op_model_t *op)
{
	int fd = random_fd();

	op->ts = (struct __kernel_timespec){ 0, pick(3000) };
	prepare_op(sqe, op, pick(12), fd);
	sqe->__pad2[0] = number_of(op);
	if (one_in(32))
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	if (one_in(16))
		sqe->flags |= IOSQE_ASYNC;
	if (one_in(24)) {
		sqe->flags |= IOSQE_IO_DRAIN;
		model.any_drain = true;
	}
}

/* The op takes its place in the queue: which chain is it in? */
static void queue_model(op_model_t *op, const struct io_uring_sqe *sqe)
{
	unsigned number = number_of(op), last = model.last_queued;

	op->sqe = *sqe;
	op->seq = ++model.seq;
	op->chain = number;
	op->n_chain = 1;
	if (last && ops[last].sqe.flags & LINKS) {
		/* where the one before it has ended in iou, nothing holds them together */
		op->previous = last;
		op->glued = !model.boundary;
		for (unsigned at = last; at; at = ops[at].previous)
			op->glued &= ops[at].state == PENDING && !ops[at].asked &&
				     !deadline_may_be_over(&ops[at]);
		op->chain = ops[last].chain;
		ops[op->chain].n_chain++;
		ops[op->chain].ambiguous |= !op->glued;
	}
	ops[op->chain].drained |= (sqe->flags & IOSQE_IO_DRAIN) != 0;
	model.last_queued = number;
	model.boundary = false;
	op_model_pending(op);
}

static iou_op_t *take_op(void)
{
	iou_op_t *op;

	if (model.n_kept && one_in(2)) {
		op = model.kept[--model.n_kept];
		memset(op->sqe, 0, sizeof(*op->sqe)); /* helpers to prepare it do not clear all */
		return op;
	}
	op = CALL(true, iou_op_new(model.iou));
	CHECK(op || errno == ENOMEM, "iou_op_new: %d", errno);
	CHECK(!op || sqe_is_zero(op->sqe), "the SQE of a new op is not zeroed");
	return op;
}

/* A timer's and a job's SQE is the program's memory: nobody reads or changes it. */
static void leave_sqe(op_model_t *op)
{
	if (one_in(2))
		dirty(op->op->sqe, sizeof(op->sqe));
	op->sqe = *op->op->sqe;
}

void give_env(op_model_t *op)
{
	op->env_size = one_in(2) ? 1 + pick(64) : 65 + pick(100);
	if (on_other_thread())
		op->env = iou_op_env(op->op, op->env_size);
	else
		op->env = CALL(true, iou_op_env(op->op, op->env_size));
	if (!op->env) {
		CHECK(errno == ENOMEM || errno == EEXIST, "iou_op_env: %d", errno);
		return;
	}
	CHECK(iou_op_of(op->env) == op->op, "iou_op_of()");
	for (unsigned i = 0; i < op->env_size; i++) {
		CHECK(op->env[i] == 0, "an environment is not zeroed");
		op->env[i] = (unsigned char)(number_of(op) + i);
	}
}

static void give_deadline(op_model_t *op, uint64_t *after_ns)
{
	*after_ns = pick(2000);
	op->has_deadline = true;
	CALL_VOID(false, iou_op_deadline(model.iou, op->op, *after_ns));
}

static void queue_ring(op_model_t *op)
{
	uint64_t before_ns = world.now_ns, after_ns = 0;

	if (one_in(10) && !op->has_deadline)
		give_deadline(op, &after_ns);
	TRACE("iou_op_queue %u: opcode %u fd %d flags %#x%s", number_of(op), op->op->sqe->opcode,
	      op->op->sqe->fd, op->op->sqe->flags, op->has_deadline ? ", deadline" : "");
	queue_model(op, op->op->sqe);
	before_ns = world.now_ns;
	CALL_VOID(false, iou_op_queue(model.iou, op->op, on_ring, op));
	op->deadline_from_ns = before_ns + after_ns;
	op->deadline_ns = world.now_ns + after_ns;
}

static void prepare_link_timeout(struct io_uring_sqe *sqe, op_model_t *op)
{
	op->ts = (struct __kernel_timespec){ 0, pick(1000) };
	io_uring_prep_link_timeout(sqe, &op->ts, 0);
	sqe->__pad2[0] = number_of(op);
}

/* Queue an op of a chain: false where it cannot be had. */
static bool queue_one(bool is_first, bool is_last)
{
	op_model_t *op = op_model_new(RING);

	if (!op)
		return false;
	op->op = take_op();
	if (!op->op)
		return false;
	if (!is_first && ops[model.last_queued].sqe.flags & LINKS && one_in(6))
		prepare_link_timeout(op->op->sqe, op);
	else
		prepare(op->op->sqe, op);
	if (!is_last || one_in(20)) /* now and then the last one has the flag too */
		op->op->sqe->flags |= one_in(3) ? IOSQE_IO_HARDLINK : IOSQE_IO_LINK;
	if (one_in(10))
		give_env(op);
	queue_ring(op);
	return true;
}

/* Queue one op, or a chain. */
static void act_queue(void)
{
	unsigned n = one_in(4) ? 2 + pick(4) : 1;

	for (unsigned i = 0; i < n; i++)
		if (!queue_one(i == 0, i + 1 == n))
			return;
}

static void act_keep(void)
{
	iou_op_t *op;

	if (model.n_kept == MAX_KEPT || one_in(3)) {
		if (!model.n_kept)
			return;
		op = model.kept[--model.n_kept];
		if (one_in(2))
			CHECK(CALL(false, iou_op_cancel(model.iou, op)) == -EINVAL,
			      "iou_op_cancel() of an op that is not queued");
		CALL_VOID(false, iou_op_free(model.iou, op));
		return;
	}
	op = CALL(true, iou_op_new(model.iou));
	if (!op)
		return;
	CHECK(sqe_is_zero(op->sqe), "the SQE of a new op is not zeroed");
	if (one_in(2)) /* prepared, and perhaps given back */
		dirty(op->sqe, sizeof(*op->sqe));
	model.kept[model.n_kept++] = op;
}

static void queue_timer(op_model_t *op, bool moved)
{
	uint64_t after_ns = one_in(30) ? NEVER - pick(3) : one_in(8) ? 0 : pick(3000);

	op->period_ns = one_in(3) ? 1 + pick(2000) : one_in(60) ? NEVER : 0;
	if (!moved)
		leave_sqe(op);
	TRACE("iou_op_timer %u: after %llu, period %llu", number_of(op),
	      (unsigned long long)after_ns, (unsigned long long)op->period_ns);
	op->timer_seq = ++model.timer_seq;
	memset(op->overtaken, 0, sizeof(op->overtaken));
	op->driver = model.driver ? model.driver->id : 0;
	op->due_from_ns = time_plus(world.now_ns, after_ns);
	world.clock_stands = true;
	CALL_VOID(false, iou_op_timer(model.iou, op->op, after_ns, op->period_ns, on_timer, op));
	world.clock_stands = false;
	op->due_ns = op->due_from_ns;
	if (!moved)
		op_model_pending(op);
}

static void act_timer(void)
{
	op_model_t *op;

	if (model.n_ops && one_in(4)) {
		op = &ops[1 + pick(model.n_ops)];
		if (op->door == TIMER && op->state == PENDING && !op->asked) {
			queue_timer(op, true);
			return;
		}
	}
	op = op_model_new(TIMER);
	if (!op)
		return;
	op->op = take_op();
	if (op->op)
		queue_timer(op, false);
}

static bool is_job(const op_model_t *op)
{
	return op->state == PENDING && (op->door == JOB || op->door == SHORT_JOB);
}

static unsigned n_running_jobs(void)
{
	unsigned n = 0;

	for (unsigned i = 1; i <= model.n_ops; i++)
		n += is_job(&ops[i]) && ops[i].started && !ops[i].finished;
	return n;
}

/* A job that waits because each worker has one, and there might be more; or NULL. */
static const op_model_t *job_lacks_worker(void)
{
	const op_model_t *waiting = NULL;
	unsigned n_running = n_running_jobs();

	for (unsigned i = 1; i <= model.n_ops; i++)
		if (is_job(&ops[i]) && !ops[i].started && !ops[i].asked && !ops[i].has_deadline)
			waiting = &ops[i];
	return n_running == threads_n_workers() && n_running < workers_most() ? waiting : NULL;
}

/* Now iou_async() has returned `ret`. After failures in a row it tries less and less often to start
 * another worker. */
static void check_chances(int ret, const op_model_t *waiting, unsigned n_starts)
{
	unsigned most = 1U << (world.n_refused ? world.n_refused - 1 : 0);

	if (n_starts != world.n_starts)
		model.n_chances = 0;
	else if (ret == 0 && waiting && !waiting->started && job_lacks_worker() == waiting)
		CHECK(++model.n_chances < most,
		      "job %u waits, and one more worker is not tried again", number_of(waiting));
}

static int call_async(op_model_t *op)
{
	if (op->op)
		return CALL(true, iou_op_async(model.iou, op->op, job_main, op, on_job, op));
	return CALL(true, iou_async(model.iou, job_main, op, on_short_job, op));
}

static void prepare_job(op_model_t *op, uint64_t *after_ns)
{
	op->ret = one_in(16) ? -ECANCELED : one_in(8) ? -2000 - (int)pick(100) : (int)pick(100);
	if (op->op && one_in(8) && !op->has_deadline)
		give_deadline(op, after_ns);
	if (op->op)
		leave_sqe(op);
	op->job_seq = ++model.job_seq;
	op->state = PENDING; /* it may start at once */
}

/* False where the job was refused. */
static bool queue_job(op_model_t *op)
{
	const op_model_t *waiting = job_lacks_worker();
	unsigned workers = threads_n_workers(), n_starts = world.n_starts;
	uint64_t after_ns = 0;
	int ret;

	prepare_job(op, &after_ns);
	TRACE("iou_%sasync %u", op->op ? "op_" : "", number_of(op));
	/* A job that is queued in a later round brings another wake-up, unless a worker is under
	 * way: that one will take it. */
	if (world.lost_poll != world.n_polls &&
	    threads_n_workers() == threads_n_free() + n_running_jobs())
		world.wake_up_lost = false;
	op->deadline_from_ns = world.now_ns + after_ns;
	op->deadline_ns = NEVER;
	ret = call_async(op);
	op->deadline_ns = world.now_ns + after_ns;
	check_chances(ret, waiting, n_starts);
	CHECK(ret == 0 || (ret == -EAGAIN && !workers) || (ret == -ENOMEM && !op->op),
	      "iou_async: %d", ret);
	CHECK(ret == 0 || !op->started, "job %u was refused, and runs", number_of(op));
	op->state = GONE;
	if (ret == 0)
		op_model_pending(op);
	return ret == 0;
}

static void act_job(void)
{
	op_model_t *op = op_model_new(one_in(3) ? SHORT_JOB : JOB);

	if (!op)
		return;
	if (op->door == JOB) {
		op->op = take_op();
		if (!op->op)
			return;
	}
	if (!queue_job(op) && op->op)
		CALL_VOID(false, iou_op_free(model.iou, op->op));
}

static void prepare_handler(struct io_uring_sqe *sqe, void *data)
{
	op_model_t *op = data;

	CHECK(sqe_is_zero(sqe), "prep_sqe gets an SQE that is not zeroed");
	prepare(sqe, op);
	op->sqe = *sqe;
}

static void act_handler(void)
{
	op_model_t *op = op_model_new(HANDLER);
	int ret;

	if (!op)
		return;
	op->handler.cb = on_handler;
	TRACE("iou_add_sqe %u", number_of(op));
	ret = CALL(true, iou_add_sqe(model.iou, prepare_handler, op, &op->handler));
	CHECK(ret == 0 || ret == -ENOMEM, "iou_add_sqe: %d", ret);
	if (ret == 0)
		queue_model(op, &op->sqe);
}

bool requeue(op_model_t *old)
{
	op_model_t *op = op_model_new(one_in(6) ? TIMER : one_in(6) ? JOB : RING);

	if (!op)
		return false;
	op->op = old->op;
	if (old->door == RING)
		CHECK(sqe_is_zero(op->op->sqe), "the SQE of op %u does not stay zero",
		      number_of(old));
	else
		memset(op->op->sqe, 0, sizeof(*op->op->sqe));
	if (op->door == RING)
		prepare(op->op->sqe, op);
	op->env = old->env;
	op->env_size = old->env_size;
	if (op->env)
		for (unsigned i = 0; i < op->env_size; i++)
			op->env[i] = (unsigned char)(number_of(op) + i);
	TRACE("queued again, op %u:", number_of(old));
	op_gone(old);
	if (op->door == TIMER)
		queue_timer(op, false);
	else if (op->door == RING)
		queue_ring(op);
	else if (!queue_job(op))
		return true; /* still in its last callback: given back */
	return true;
}

/* ---- Other actions --------------------------------------------------------------------------- */

static void cancel(op_model_t *op)
{
	unsigned number = number_of(op);
	bool was_started = op->started;
	int ret;

	op->asked = true;
	ret = CALL(false, iou_op_cancel(model.iou, op->op));
	TRACE("iou_op_cancel %u: %d", number, ret);
	CHECK(ret == 0 || ret == -EALREADY, "iou_op_cancel of op %u: %d", number, ret);
	if (op->door == JOB) {
		op->withdrawn |= ret == 0 && !op->started;
		if (ret == -EALREADY)
			CHECK(op->started || threads_n_workers() > threads_n_free(),
			      "job %u cannot be cancelled", number);
		if (ret == 0)
			CHECK(!was_started || op->finished, "job %u, which runs, was cancelled",
			      number);
	} else if (ret == -EALREADY) {
		CHECK(op->previous, "op %u cannot be cancelled", number);
	}
}

static void act_cancel(void)
{
	for (unsigned i = 0; i < 4 && model.n_ops; i++) {
		op_model_t *op = &ops[1 + pick(model.n_ops)];

		if (op->state == PENDING && op->op) {
			cancel(op);
			return;
		}
	}
}

void cancel_all(void)
{
	TRACE("iou_cancel_all");
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			ops[i].asked = true;
	CHECK(CALL(false, iou_cancel_all(model.iou)) == 0, "iou_cancel_all");
}

void check_stats(void)
{
	uint64_t n_wakes = kernel_n_wakes();
	iou_stats_t stats;
	unsigned n = 0;

	for (unsigned i = 1; i <= model.n_ops; i++)
		n += ops[i].state == PENDING;
	CALL_VOID(false, iou_stats(model.iou, &stats));
	CHECK(stats.pending == n, "iou_stats: %llu ops are pending, and not %u",
	      (unsigned long long)stats.pending, n);
	/* what came back already and is not yet delivered may be counted or not */
	CHECK(stats.timers == model.n_timers && stats.posts == model.n_posts_called &&
		      stats.jobs >= model.n_jobs && stats.jobs <= model.n_jobs + n &&
		      stats.completed >= model.n_cqes && stats.completed <= model.n_cqes + n,
	      "iou_stats: %llu timers, %llu posts, %llu jobs, %llu completed",
	      (unsigned long long)stats.timers, (unsigned long long)stats.posts,
	      (unsigned long long)stats.jobs, (unsigned long long)stats.completed);
	CHECK(stats.wakeups >= n_wakes, "iou_stats: %llu wake-ups, and not %llu",
	      (unsigned long long)stats.wakeups, (unsigned long long)n_wakes);
	/* SQPOLL's thread takes them when it likes */
	CHECK(stats.submitted == kernel_n_taken() ||
		      (model.config.setup_flags & IORING_SETUP_SQPOLL &&
		       stats.submitted < kernel_n_taken()),
	      "iou_stats: %llu are submitted, and not %llu", (unsigned long long)stats.submitted,
	      (unsigned long long)kernel_n_taken());
}

static void look_inside(void)
{
	static FILE *nowhere;

	check_stats();
	CHECK(CALL(false, iou_ring(model.iou)) != NULL, "iou_ring() is NULL");
	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	if (nowhere && one_in(16))
		CALL_VOID(false, iou_dump(model.iou, nowhere));
}

/* A flush, a poll or a run ends the chain that is open. */
static void chain_ends(void)
{
	model.last_queued = 0;
}

/* A restriction keeps iou from what it has to do before it sleeps: that is told each time. */
static bool is_refusal(int ret)
{
	return ret == -EACCES && ++model.n_refusals_told <= kernel_n_refused();
}

static void drive_begin(driver_t *driver, bool is_run, int64_t timeout_ns)
{
	unsigned last_queued = model.last_queued;

	chain_ends();
	*driver = (driver_t){ .up = model.driver,
			      .id = ++model.n_drivers,
			      .is_run = is_run,
			      .timeout_ns = timeout_ns,
			      .n_rounds = !is_run && model.fd < 0 ? 1 : 2,
			      .last_queued = last_queued };
	if (model.driver)
		model.driver->nested = true;
	driver->depth = model.driver ? model.driver->depth + 1 : 1;
	if (driver->depth > model.most_depth)
		model.most_depth = driver->depth;
	model.driver = driver;
}

static void drive_end(driver_t *driver)
{
	model.driver = driver->up;
	model.n_dead -= model.n_dead < ROUND_MAX ? model.n_dead : ROUND_MAX;
	if (model.calling)
		CHECK(model.calling->op->result == model.calling->result &&
			      model.calling->op->flags == model.calling->flags,
		      "a callback's result and flags are another's after a nested call");
	if (driver->is_run && !driver->n_calls && (model.quit_is_set || model.quits_of_others))
		/* it may have returned before its first round */
		model.last_queued = driver->last_queued;
	model.boundary = true;
}

static bool is_timer_due(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING && ops[i].door == TIMER &&
		    (ops[i].asked || ops[i].due_ns <= world.now_ns))
			return true;
	return false;
}

static bool is_bh_ready(const bh_model_t *bh)
{
	return bh->bh && bh->scheduled && !bh->idle && !bh->n_running;
}

/* Is there something that a poll has to deliver? */
static bool is_something_ready(void)
{
	if (is_timer_due())
		return true;
	/* what was given before and after a gift that is not complete may wait for that */
	if (model.n_giving || model.n_dead >= ROUND_MAX)
		return false;
	for (unsigned i = 0; i < model.n_posts; i++)
		if (!posts[i].thread && posts[i].accepted && !posts[i].delivered)
			return true;
	for (unsigned i = 0; i < MAX_BHS; i++)
		if (is_bh_ready(&model.bhs[i]))
			return true;
	return false;
}

/* Is this op of a chain kept from being submitted, for reasons that the model knows? */
static bool may_be_unsent(const op_model_t *op)
{
	const op_model_t *first = &ops[op->chain];

	return op->asked || deadline_may_be_over(op) || first->cut || first->ambiguous ||
	       !chain_is_clear(first) || first->n_chain > kernel_sq_entries_min();
}

/* All that is queued is submitted, where nothing stands against it: the SQ has n_left places, which
 * may be too few for a chain. */
static void check_submitted(const char *function, unsigned n_left)
{
	for (unsigned i = 1; i <= model.n_ops && !model.any_drain; i++) {
		const op_model_t *op = &ops[i];

		if (!is_ring(op) || op->state != PENDING || op->taken)
			continue;
		if (ops[op->chain].n_chain > n_left && n_left < kernel_sq_entries_min())
			return; /* and what is behind it */
		CHECK(may_be_unsent(op), "%s returns, and op %u is not submitted", function, i);
	}
}

/* An iou_poll(), from its call to its return. */
typedef struct poll_t {
	int64_t timeout_ns;
	uint64_t from_ns, n_cancels; /* at the call: the time, iou's cancels so far */
	unsigned n_gifts;            /* and the gifts of other threads */
	bool ready;                  /* something was */
	bool faulty;                 /* a call to the outside failed */
	bool polled;                 /* SQPOLL's thread takes the SQEs, and its time */
	driver_t driver;
} poll_t;

static void check_poll_time(const poll_t *poll, int ret)
{
	int64_t timeout_ns = poll->timeout_ns;
	uint64_t end_ns = poll->from_ns + (uint64_t)timeout_ns;
	uint64_t late_ns = world.may_spin ? SPIN_LATE_NS : LATE_NS;

	CHECK(ret || timeout_ns < 0 || poll->faulty || poll->polled ||
		      world.now_ns < end_ns + late_ns,
	      "iou_poll(%lld) returns after %llu", (long long)timeout_ns,
	      (unsigned long long)(world.now_ns - poll->from_ns));
	if (ret == 0 && timeout_ns != 0 && main_things_pending())
		CHECK(timeout_ns > 0 && world.now_ns >= end_ns,
		      "iou_poll(%lld) returns 0 too early", (long long)timeout_ns);
}

static void check_poll_result(const poll_t *poll, int ret)
{
	bool ready = poll->ready && poll->n_gifts == model.n_gifts;
	const driver_t *driver = &poll->driver;

	if (driver->error) {
		CHECK(ret == driver->error, "iou_poll returns %d and not %d", ret, driver->error);
	} else if (ret < 0 && is_refusal(ret)) {
		CHECK(poll->timeout_ns || model.fd >= 0, "iou_poll(0) wants to sleep");
		CHECK(driver->n_calls || !ready,
		      "iou_poll returns -EACCES while something is ready");
	} else if (ret < 0) {
		CHECK((poll->faulty && is_shortage(ret)) || (model.broken && ret == -EBADR),
		      "iou_poll: %d", ret);
	} else {
		CHECK(ret == driver->n_calls, "iou_poll returns %d after %d callbacks", ret,
		      driver->n_calls);
		CHECK(ret || !ready, "iou_poll returns 0 while something is ready");
		check_poll_time(poll, ret);
	}
}

static void check_poll_sent(const poll_t *poll)
{
	const driver_t *driver = &poll->driver;
	uint64_t n_cancels = kernel_n_cancels() - poll->n_cancels;

	CHECK(poll->timeout_ns || driver->nested || driver->flushed || poll->polled ||
		      world.n_faults || n_cancels <= 3 * CANCELS_MAX,
	      "a round sends %llu cancels", (unsigned long long)n_cancels);
	if (model.fd < 0 || poll->faulty || poll->polled || model.broken ||
	    kernel_enter_was_short())
		return;
	if (!n_cancels) /* else there may be more of them, which come first */
		check_submitted("iou_poll, with iou_fd() in use,",
				kernel_sq_entries_min() - kernel_n_entered());
}

int poll_once(int64_t timeout_ns)
{
	poll_t poll = {
		.timeout_ns = timeout_ns,
		.from_ns = world.now_ns,
		.n_cancels = kernel_n_cancels(),
		.n_gifts = model.n_gifts,
		.ready = is_something_ready(),
		.polled = model.config.setup_flags & IORING_SETUP_SQPOLL,
	};
	call_t call = call_begin(false);
	int ret;

	world.may_cancel = true;
	drive_begin(&poll.driver, false, timeout_ns);
	TRACE("iou_poll(%lld)", (long long)timeout_ns);
	world.n_polls++;
	ret = iou_poll(model.iou, timeout_ns);
	TRACE("iou_poll: %d", ret);
	poll.faulty = call_end(call);
	drive_end(&poll.driver);
	check_poll_result(&poll, ret);
	check_poll_sent(&poll);
	return ret;
}

static bool run_is_active(void)
{
	for (driver_t *up = model.driver; up; up = up->up)
		if (up->is_run)
			return true;
	return false;
}

/* Why did it return 0? A quit of another thread ends one run, and those nested in it. */
static void check_run_ended(bool quit_before)
{
	if (!main_things_pending() || model.quit_is_set || quit_before)
		return;
	CHECK(model.quits_explained < model.quits_of_others,
	      "iou_run returns 0 while something is pending");
	if (!model.driver)
		model.quits_explained++;
}

static void check_run_result(const driver_t *driver, int ret, bool faulty, bool given)
{
	if (driver->error)
		CHECK(ret == driver->error, "iou_run returns %d and not %d", ret, driver->error);
	else if (ret < 0 && is_refusal(ret))
		CHECK(model.fd >= 0 || main_things_pending() || is_pending() || given,
		      "iou_run returns -EACCES, and nothing is pending");
	else if (ret < 0)
		CHECK((faulty && is_shortage(ret)) || (model.broken && ret == -EBADR),
		      "iou_run: %d", ret);
	else
		CHECK(ret == 0, "iou_run: %d", ret);
}

int run(void)
{
	bool quit_before = model.quit_is_set;
	unsigned n_gifts = model.n_gifts - model.n_giving;
	driver_t driver;
	call_t call = call_begin(false);
	bool faulty;
	int ret;

	world.may_cancel = true;
	drive_begin(&driver, true, -1);
	TRACE("iou_run");
	ret = iou_run(model.iou);
	TRACE("iou_run: %d", ret);
	faulty = call_end(call);
	drive_end(&driver);
	check_run_result(&driver, ret, faulty, n_gifts != model.n_gifts);
	if (ret == 0 && !driver.error)
		check_run_ended(quit_before);
	if (run_is_active())
		return ret;
	model.quit_is_set = model.others_quit = false;
	model.n_runs++;
	return ret;
}

static void act_quit(void)
{
	TRACE("iou_quit");
	CALL(false, iou_quit(model.iou));
	model.quit_is_set = true;
	if (!run_is_active())
		run();
}

static void act_flush(void)
{
	call_t call = call_begin(false);
	bool faulty;
	int ret;

	world.may_cancel = true;
	if (model.driver)
		model.driver->flushed = true;
	chain_ends();
	TRACE("iou_flush");
	ret = iou_flush(model.iou);
	TRACE("iou_flush: %d", ret);
	faulty = call_end(call);
	CHECK(ret == 0 || (faulty && is_shortage(ret)) || (model.broken && ret == -EBADR),
	      "iou_flush: %d", ret);
	if (ret == 0)
		check_submitted("iou_flush", kernel_sq_entries_min());
}

/* The program registers files or buffers. */
static void act_register(void)
{
	struct io_uring *ring = CALL(false, iou_ring(model.iou));
	unsigned what;
	int ret;

	CHECK(ring, "iou_ring() is NULL");
	what = one_in(2) ? IORING_REGISTER_FILES : IORING_REGISTER_BUFFERS;
	ret = io_uring_register((unsigned)ring->ring_fd, what, NULL, 0);
	CHECK(ret == 0 || ret == -EBUSY || ret == -EPERM || ret == -EACCES, "io_uring_register: %d",
	      ret);
}

static void act_resize(void)
{
	bool in_flight = false;
	call_t call;
	int ret;

	for (unsigned i = 1; i <= model.n_ops; i++)
		in_flight |= is_ring(&ops[i]) && ops[i].state == PENDING;
	call = call_begin(true);
	ret = iou_resize(model.iou, 1 + pick(12));
	TRACE("iou_resize: %d", ret);
	if (call_end(call) &&
	    (ret == -ENOMEM || ret == -EMFILE || ret == -ENFILE || ret == -EPERM || ret == -ENOSYS))
		return;
	CHECK(ret == 0 || (ret == -EBUSY && in_flight), "iou_resize: %d", ret);
}

/* Nothing happens by itself before due_ns: no timer and no deadline may be due by then. */
static void check_clock(uint64_t due_ns)
{
	for (unsigned i = 1; i <= model.n_ops; i++) {
		const op_model_t *op = &ops[i];

		if (op->state != PENDING || op->asked)
			continue;
		if (op->door == TIMER && op->due_ns < NEVER / 2)
			CHECK(due_ns <= op->due_ns,
			      "iou_fd() does not become readable when timer %u is due", i);
		if (op->has_deadline && op->deadline_from_ns > world.now_ns && !op->started)
			CHECK(due_ns <= op->deadline_ns,
			      "iou_fd() does not become readable at the deadline of op %u", i);
	}
}

/* Nothing happens but by time: which is the next? The model agrees that nothing is ready. */
static uint64_t fd_due_ns(uint64_t due_ns, uint64_t job_ns)
{
	if (!model.broken) {
		check_at_rest(false, NEVER);
		check_clock(due_ns);
	}
	return job_ns < due_ns ? job_ns : due_ns;
}

/* Wait on iou_fd() as another loop would: false when there is nothing to wait for. */
static bool wait_for_fd(int fd)
{
	for (unsigned n = 0; !kernel_readable(fd); n++) {
		uint64_t due_ns = kernel_due_ns(), job_ns = threads_due_ns();

		if (n > 20)
			return false;
		if ((one_in(4) && poster_start(false)) || kernel_step() || threads_step())
			continue;
		due_ns = fd_due_ns(due_ns, job_ns);
		if (due_ns == NEVER)
			return false;
		if (due_ns > world.now_ns)
			world.now_ns = due_ns;
	}
	TRACE("-- iou_fd is readable");
	return true;
}

static bool is_fd_refusal(int error)
{
	return error == -EPERM || (error == -EACCES && kernel_refuses());
}

/* iou_fd(): -1 where it is refused, or fails for lack of something. */
static int get_fd(void)
{
	call_t call = call_begin(true);
	int fd;

	world.may_cancel = true;
	fd = iou_fd(model.iou);
	if (call_end(call) && fd < 0) {
		CHECK(fd == -EMFILE || fd == -ENOMEM || fd == -ENFILE || is_fd_refusal(fd),
		      "iou_fd: %d", fd);
		return -1;
	}
	if (is_fd_refusal(fd))
		return -1; /* registering is */
	CHECK(fd >= FD_FAKE && (model.fd < 0 || model.fd == fd), "iou_fd: %d", fd);
	return fd;
}

/* Once all is done, it is readable no more. */
static void check_fd_becomes_quiet(int fd, unsigned n_faults)
{
	unsigned n_idle = 0;

	if (model.config.setup_flags & IORING_SETUP_SQPOLL)
		return; /* readable until the kernel's thread has taken what is queued */
	while (kernel_readable(fd) && poll_once(0) == 0)
		CHECK(++n_idle < 16 || n_faults != world.n_faults,
		      "iou_fd() stays readable, and nothing is there");
}

/* The program waits on iou_fd(), outside of iou or in a callback, and does other things between. */
static void act_fd(void)
{
	unsigned n_faults = world.n_faults, n_rounds = 1 + pick(8);
	int fd = get_fd();

	if (fd < 0)
		return;
	model.fd = fd;
	for (driver_t *up = model.driver; up; up = up->up)
		up->n_rounds = 2;
	while (n_rounds-- && wait_for_fd(fd)) {
		if (poll_once(0) < 0)
			return;
		if (one_in(4))
			act();
	}
	check_fd_becomes_quiet(fd, n_faults);
}

static void act_hold(void)
{
	if (model.holds > 0 && one_in(2)) {
		TRACE("iou_unhold");
		model.holds--;
		CALL_VOID(false, iou_unhold(model.iou));
		return;
	}
	TRACE("iou_hold");
	CALL_VOID(false, iou_hold(model.iou));
	model.holds++;
}

/* May another iou_poll() or iou_run() be nested in those that are active? */
static bool may_nest(void)
{
	return !model.driver || model.driver->depth < 4;
}

static void act_look_or_keep(void)
{
	if (one_in(16))
		look_inside();
	else
		act_keep();
}

static void act_poll(void)
{
	if (may_nest())
		poll_once(one_in(2) ? 0 : one_in(2) ? -1 : (int64_t)pick(3000));
}

static void act_run(void)
{
	if (may_nest())
		run();
}

static void act_end_something(void)
{
	if (one_in(3))
		cancel_all();
	else if (one_in(2))
		act_quit();
	else
		kernel_feed();
}

static void act_set_up(void)
{
	if (one_in(4))
		act_register();
	else
		act_resize();
}

static void act_embed(void)
{
	if (may_nest())
		act_fd();
}

static void act_post(void)
{
	post_from(0, false);
}

/* What happens, by a number at random; model.actions has a bit for each. */
#define N_ACTS   32
#define ACT_POLL 24 /* to 26 */
#define ACT_RUN  27 /* and 28 */
#define ACT_FD   31
static void (*const acts[N_ACTS])(void) = {
	[0 ... 8] = act_queue,
	[9 ... 10] = act_timer,
	[11 ... 13] = act_job,
	[14] = act_handler,
	[15 ... 16] = act_cancel,
	[17] = act_post,
	[18 ... 19] = act_bh,
	[20] = act_hold,
	[21] = act_look_or_keep,
	[22 ... 23] = act_flush,
	[ACT_POLL ... ACT_RUN - 1] = act_poll,
	[ACT_RUN ... ACT_RUN + 1] = act_run,
	[29] = act_end_something,
	[30] = act_set_up,
	[ACT_FD] = act_embed,
};

void act(void)
{
	unsigned what = pick(N_ACTS);

	if (!model.budget)
		return;
	if (!(model.actions >> what & 1))
		return;
	if (model.embedded && what >= ACT_POLL && what <= ACT_RUN + 1 &&
	    !one_in(model.driver ? 2 : 8))
		what = ACT_FD; /* in place of polls and runs */
	model.budget--;
	if (one_in(8))
		world.now_ns += pick(1000);
	sim_point();
	acts[what]();
}
