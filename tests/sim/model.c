/* SPDX-License-Identifier: MIT */

/* The model, seen from below: each SQE that the kernel takes, each CQE, each sleep. */

#include "model.h"

model_t model;
op_model_t ops[MAX_OPS];
post_model_t posts[MAX_POSTS];

uint64_t total_callbacks, total_calls;

call_t call_begin(bool may_alloc)
{
	call_t before = { world.may_alloc, world.may_cancel, world.n_faults };

	total_calls++;
	world.events++;
	sim_n_steps++;
	CHECK(sim_n_steps < 100000, "a run does not come to an end");
	world.may_alloc = may_alloc;
	world.may_cancel = false;
	return before;
}

/* Were there faults in this call? */
bool call_end(call_t before)
{
	world.may_alloc = before.may_alloc;
	world.may_cancel = before.may_cancel;
	CHECK(threads_may_cancel(), "a call changes the thread's cancel state");
	return world.n_faults != before.n_faults;
}

/* ---- What the kernel sees -------------------------------------------------------------------- */

bool deadline_may_be_over(const op_model_t *op)
{
	return op->has_deadline && op->deadline_from_ns <= world.now_ns;
}

bool chain_is_clear(const op_model_t *first)
{
	if (first->ambiguous)
		return false;
	if (first->n_chain > 1)
		for (unsigned i = 1; i <= model.n_ops; i++)
			if (&ops[ops[i].chain] == first && is_ring(&ops[i]) && !ops[i].taken &&
			    (ops[i].asked || deadline_may_be_over(&ops[i])))
				return false;
	return true;
}

static void check_drain(unsigned number)
{
	const op_model_t *op = &ops[number], *first = &ops[op->chain];

	if (!chain_is_clear(first))
		return;
	for (unsigned i = 1; i <= model.n_ops; i++) {
		const op_model_t *other = &ops[i], *other_first = &ops[other->chain];

		if (!is_ring(other) || other->seq >= first->seq || !other->taken ||
		    other->kernel_done)
			continue;
		if (!chain_is_clear(other_first))
			continue;
		CHECK(!first->drained, "op %u is drained, and was submitted before op %u has ended",
		      number, i);
		CHECK(!other_first->drained,
		      "op %u was submitted before op %u, which is drained, has ended", number, i);
	}
}

void model_taken(unsigned number, const struct io_uring_sqe *sqe, unsigned previous, bool linked)
{
	op_model_t *op = &ops[number];
	struct io_uring_sqe want;

	CHECK(number <= model.n_ops, "an SQE with garbage was submitted");
	CHECK(op->state == PENDING && is_ring(op), "op %u was submitted while it is not queued",
	      number);
	CHECK(!op->taken, "op %u was submitted twice", number);
	want = op->sqe;
	want.user_data = sqe->user_data;
	want.flags = sqe->flags;
	CHECK(memcmp(&want, sqe, sizeof(want)) == 0, "the SQE of op %u was changed", number);
	CHECK(op->door == HANDLER || sqe->user_data == (uintptr_t)op->op,
	      "op %u has a user_data not its own", number);
	CHECK(!(sqe->flags & IOSQE_IO_DRAIN), "op %u was submitted with IOSQE_IO_DRAIN", number);
	CHECK(!(sqe->flags & IOSQE_CQE_SKIP_SUCCESS),
	      "op %u was submitted with IOSQE_CQE_SKIP_SUCCESS", number);
	CHECK((sqe->flags & ~LINKS) ==
		      (op->sqe.flags & ~(LINKS | IOSQE_IO_DRAIN | IOSQE_CQE_SKIP_SUCCESS)),
	      "op %u was submitted with flags %#x", number, sqe->flags);
	CHECK(!(sqe->flags & LINKS) || (sqe->flags & LINKS) == (op->sqe.flags & LINKS),
	      "op %u has links that it had not",
	      number);
	CHECK(op->seq > model.last_taken_seq, "op %u was submitted out of order", number);
	model.last_taken_seq = op->seq;
	if (linked)
		CHECK(op->previous && op->previous == previous, "op %u was linked behind op %u",
		      number, previous);
	else
		CHECK(!op->glued, "op %u was split from its chain", number);
	op->taken = true;
	op->user_data = sqe->user_data;
	if (model.any_drain)
		check_drain(number);
}

void model_own_in_chain(unsigned previous)
{
	FAIL("iou's own SQE stands behind op %u, inside of its chain", previous);
}

void model_chain_left_open(unsigned previous)
{
	FAIL("op %u was submitted last, with its link flag", previous);
}

void model_dropped(unsigned number)
{
	model.broken = true;
	if (number)
		ops[number].n_exp_in--;
}

bool model_is_broken(void)
{
	return model.broken;
}

int model_bell(void)
{
	return model.fd;
}

void model_supply_is_short(bool is_short)
{
	model.short_of_supply = is_short;
}

void model_chain_cut(unsigned last)
{
	ops[ops[last].chain].cut = true;
}

void model_posted(unsigned number, int res, unsigned flags)
{
	op_model_t *op = &ops[number];

	CHECK(op->n_exp_in - op->n_exp_out < MAX_CQES, "the fake kernel posts too much for op %u",
	      number);
	CHECK(op->state == PENDING && !op->kernel_done, "op %u was given up before its last CQE",
	      number);
	op->exp[op->n_exp_in++ % MAX_CQES] = (cqe_t){ res, flags };
	if (!(flags & IORING_CQE_F_MORE))
		op->kernel_done = true;
}

bool model_room(unsigned number)
{
	return ops[number].n_exp_in - ops[number].n_exp_out < MAX_CQES - 6;
}

void model_cancel_seen(uint64_t user_data)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING && (uintptr_t)ops[i].op == user_data)
			ops[i].cancel_seen = true;
}

void model_cancel_hits(unsigned number, bool by_iou)
{
	op_model_t *op = &ops[number];

	if (!by_iou) {
		op->hit_by_us = true;
		return;
	}
	op->hit = true;
	if (model.freeing)
		return;
	CHECK(op->asked || deadline_may_be_over(op),
	      "op %u is cancelled, and nobody asked for that", number);
}

/* ---- Sleeping -------------------------------------------------------------------------------- */

static bool behind_drain(unsigned number)
{
	const op_model_t *op = &ops[number];
	const op_model_t *first = &ops[op->chain];

	for (unsigned i = 1; i <= model.n_ops; i++) {
		const op_model_t *other = &ops[i];

		if (!is_ring(other) || other->state != PENDING || other->kernel_done)
			continue;
		if (!chain_is_clear(first) || !chain_is_clear(&ops[other->chain]))
			return true;
		if (other->seq < first->seq && (first->drained || ops[other->chain].drained))
			return true;
	}
	return false;
}

unsigned workers_most(void)
{
	return model.config.workers ? model.config.workers : 2; /* __wrap_sched_getaffinity() */
}

/* Was it due when iou looked at the clock? Some time may pass from there to its sleep. */
static bool is_missed(uint64_t due_ns, uint64_t until_ns)
{
	return due_ns <= world.now_ns && until_ns >= world.now_ns + SLACK_NS;
}

static void check_timer_at_rest(const op_model_t *op, uint64_t until_ns)
{
	unsigned number = number_of(op);

	CHECK(!is_missed(op->due_ns, until_ns), "the loop sleeps while timer %u is due", number);
	CHECK(!op->asked, "the loop sleeps while timer %u, cancelled, waits to be delivered",
	      number);
}

static void check_job_at_rest(const op_model_t *op, uint64_t until_ns)
{
	unsigned number = number_of(op);

	CHECK(!op->finished, "the loop sleeps while job %u, done, waits to be delivered", number);
	if (op->started)
		return;
	CHECK(!op->asked, "the loop sleeps while job %u, cancelled, waits", number);
	CHECK(!op->has_deadline || !is_missed(op->deadline_ns, until_ns),
	      "the deadline of job %u has passed, and the loop sleeps", number);
	if (world.wake_up_lost)
		return;
	CHECK(threads_n_free() == 0, "job %u waits while a worker is free", number);
	CHECK(world.thread_refused || threads_n_workers() >= workers_most(),
	      "job %u waits while there may be more workers", number);
}

static void check_backlog_at_rest(const op_model_t *op)
{
	unsigned number = number_of(op);
	const op_model_t *first = &ops[op->chain];

	CHECK(!op->asked, "the loop sleeps while op %u, cancelled in the backlog, waits", number);
	CHECK(!first->cut || first->ambiguous,
	      "the loop sleeps while op %u, of a chain cut short, waits", number);
	CHECK(model.short_of_supply || (model.any_drain && behind_drain(number)),
	      "the loop sleeps while op %u is not submitted", number);
}

static void check_taken_at_rest(const op_model_t *op, bool for_ever, uint64_t until_ns)
{
	unsigned number = number_of(op);

	if (for_ever && (op->asked || (op->has_deadline && op->deadline_ns <= world.now_ns)))
		CHECK(!kernel_forgot_cancel(number),
		      "op %u is to be cancelled, and the loop sleeps for ever", number);
	if (op->has_deadline && op->deadline_ns < world.now_ns &&
	    until_ns > world.now_ns + SLACK_NS && op->sqe.opcode != IORING_OP_LINK_TIMEOUT)
		CHECK(op->cancel_seen || op->asked || strcmp(kernel_where(number), "running"),
		      "the deadline of op %u has passed, and the loop sleeps", number);
}

static void check_op_at_rest(unsigned number, bool for_ever, uint64_t until_ns)
{
	const op_model_t *op = &ops[number];

	if (op->door == TIMER) {
		check_timer_at_rest(op, until_ns);
		return;
	}
	if (op->door == JOB || op->door == SHORT_JOB) {
		check_job_at_rest(op, until_ns);
		return;
	}
	CHECK(op->n_exp_in == op->n_exp_out || kernel_fences(op->user_data),
	      "the loop sleeps while a completion of op %u waits", number);
	if (op->taken)
		check_taken_at_rest(op, for_ever, until_ns);
	else
		check_backlog_at_rest(op);
}

void check_at_rest(bool for_ever, uint64_t until_ns)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			check_op_at_rest(i, for_ever, until_ns);
	for (unsigned i = 0; i < model.n_posts; i++)
		CHECK(!posts[i].accepted || posts[i].delivered,
		      "the loop sleeps while post %u waits", i);
	for (unsigned i = 0; i < MAX_BHS; i++)
		CHECK(!model.bhs[i].bh || !model.bhs[i].scheduled,
		      "the loop sleeps while bottom half %u is scheduled", i);
}

bool is_pending(void)
{
	return model.n_pending || model.holds > 0 || model.poster_holds;
}

bool main_things_pending(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			return true;
	for (unsigned i = 0; i < model.n_posts; i++)
		if (!posts[i].thread && posts[i].accepted && !posts[i].delivered)
			return true;
	return model.holds > 0;
}

void model_sleeps(bool for_ever, uint64_t until_ns)
{
	const driver_t *driver = model.driver;

	if (model.freeing || model.short_of_supply || model.broken)
		return;
	CHECK(driver, "iou sleeps outside of iou_run() and iou_poll()");
	check_at_rest(for_ever, until_ns);
	CHECK(!kernel_refuses_poll(), "the loop sleeps, and nothing can wake it");
	CHECK(is_pending(), "the loop sleeps with nothing pending");
	CHECK(driver->is_run || driver->timeout_ns, "iou_poll(0) sleeps");
	CHECK(!driver->is_run || (!model.quit_is_set && !model.others_quit),
	      "the loop sleeps after iou_quit()");
}

bool model_help(void)
{
	if (world.wake_up_lost) {
		threads_find_lost();
		return true;
	}
	if (kernel_feed())
		return true;
	for (unsigned i = 1; i <= model.n_ops; i++) {
		if (ops[i].state == PENDING && ops[i].started && !ops[i].finished &&
		    !ops[i].released) {
			ops[i].released = true;
			return true;
		}
	}
	return false;
}

void model_rescue(void)
{
	if (model_help())
		return;
	CHECK(model.driver && !model.freeing, "nothing will ever happen any more");
	model.order = model.holds > 0 ? UNHOLD : POST;
	while (!poster_start(true))
		CHECK(posters_idle(), "the posting threads hang");
	TRACE("-- rescue: a posting thread is told to");
}

/* ---- Results --------------------------------------------------------------------------------- */

static bool is_interrupted(int res)
{
	return res == -EINTR || (res <= -512 && res >= -516);
}

void check_cancelled(const op_model_t *op, int got)
{
	unsigned number = number_of(op);

	if (got == -ETIME)
		CHECK(deadline_may_be_over(op), "op %u got -ETIME before its deadline", number);
	else
		CHECK(got == -ECANCELED, "op %u was cancelled, and got %d", number, got);
	if (op->hit && !op->asked)
		CHECK(got == -ETIME, "op %u was ended by its deadline, and got %d", number, got);
}

/* Was iou to end the op before the kernel saw it? Or one of its chain before it. */
static bool may_end_in_iou(const op_model_t *op)
{
	if (op->asked || op->has_deadline || ops[op->chain].cut)
		return true;
	for (unsigned at = op->previous; at; at = ops[at].previous)
		if (!ops[at].taken && (ops[at].asked || ops[at].has_deadline))
			return true;
	return false;
}

/* A callback for which the kernel posted no CQE. */
static void check_result_of_iou(const op_model_t *op, int got, unsigned flags)
{
	unsigned number = number_of(op), n_chain = ops[op->chain].n_chain;

	if (model.broken && flags & IORING_CQE_F_NOTIF)
		return; /* it strayed, and stands for the CQE that was lost */
	CHECK(!op->taken, "op %u has a callback without a CQE", number);
	CHECK(!flags, "op %u, ended in iou, has flags %#x", number, flags);
	if (got == -E2BIG) {
		CHECK(n_chain > kernel_sq_entries_min(), "op %u got -E2BIG in a chain of %u",
		      number, n_chain);
		return;
	}
	check_cancelled(op, got);
	CHECK(may_end_in_iou(op), "op %u ended in iou, and nobody asked for that", number);
}

void check_result(op_model_t *op, int got, unsigned flags)
{
	unsigned number = number_of(op);
	cqe_t want;

	if (op->n_exp_in == op->n_exp_out) {
		check_result_of_iou(op, got, flags);
		return;
	}
	want = op->exp[op->n_exp_out++ % MAX_CQES];
	CHECK(flags == want.flags, "op %u has flags %#x and not %#x", number, flags, want.flags);
	if (got == want.res && !is_interrupted(got) && got != -ECANCELED)
		return;
	if (want.res == -ECANCELED ||
	    (is_interrupted(want.res) && (op->hit || got == -ETIME))) {
		check_cancelled(op, got);
		return;
	}
	CHECK((got == want.res || got == -ECANCELED) && is_interrupted(want.res),
	      "op %u got %d and not %d", number, got, want.res);
}
