/* SPDX-License-Identifier: MIT */

/*
 * Random programs of iou's API, and the model that they are checked against. See sim.h.
 *
 *     sim [-s SEED] [-n RUNS] [-j PROCESSES]        TRACE=1 tells what happens
 *
 * A run makes an iou, acts on it (from outside, and from within each kind of callback, jobs, and other
 * threads), and ends it: mostly by cancelling all and running until nothing is pending, else by a plain
 * iou_free() in the middle of it all.
 */

#include "sim.h"

#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define MAX_OPS    160
#define MAX_POSTS  512
#define MANY_POSTS 32 /* the rest is for those that are needed to go on */
#define MAX_BHS    4
#define MAX_KEPT   4
#define MAX_CQES   16
#define SLACK_NS   2000
#define LINKS      (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)

/* ---- The model's state ------------------------------------------------------------------------ */

enum door { RING, HANDLER, JOB, SHORT_JOB, TIMER };
enum state { PENDING, LAST, GONE };

typedef struct cqe_t {
	int res;
	unsigned flags;
} cqe_t;

/* One queueing of an op, from the call to its last callback. */
typedef struct op_model_t {
	iou_op_t *op; /* NULL: a handler or a short job, which have none that we see */
	enum door door;
	enum state state;
	bool asked;       /* to be cancelled, by us */
	bool hit;         /* a cancel of iou's got through to it in the kernel */
	bool hit_by_us;   /* a cancel that is an op of ours, or a link timeout */
	bool cancel_seen; /* the kernel was asked */
	bool taken, kernel_done;
	bool has_deadline;
	uint64_t deadline_from_ns, deadline_ns; /* it may have expired, it must have */
	/* ring */
	uint64_t seq;
	struct io_uring_sqe sqe;
	unsigned previous; /* the op it is linked behind, */
	bool glued;        /* for sure; else the loop may have ended the chain between */
	unsigned chain;    /* the first op of it */
	unsigned n_chain;  /* of the first: members */
	bool drained, ambiguous, cut; /* of the first */
	unsigned n_exp_in, n_exp_out;
	cqe_t exp[MAX_CQES];
	unsigned char buffer[16];
	struct __kernel_timespec ts;
	iou_handler_t handler;
	/* job */
	uint64_t job_seq, finish_seq;
	bool started, finished, withdrawn, released;
	int ret; /* what the job returns */
	/* timer */
	uint64_t due_from_ns, due_ns, period_ns, timer_seq;
	/* environment */
	unsigned char *env;
	unsigned env_size;
	unsigned in_callbacks;
} op_model_t;

typedef struct post_model_t {
	unsigned thread, seq;
	bool begun, accepted, delivered;
	unsigned driver; /* in whose callback it was made */
} post_model_t;

typedef struct bh_model_t {
	iou_bh_t *bh;
	unsigned n_calls;   /* calls on it that other threads are in */
	unsigned n_running; /* schedules begun and not yet returned */
	unsigned n_ended;   /* times it ran or was cancelled */
	bool scheduled;     /* must run (once) */
	bool may_run;       /* a schedule began since it last ran */
	bool by_other;      /* by another thread: that may have come between iou's decision to run it and the run, */
	bool once_more;     /* which then does not count for it */
} bh_model_t;

/* An iou_run() or iou_poll() that is active. */
typedef struct driver_t {
	struct driver_t *up;
	unsigned id;
	bool is_run;
	bool nested; /* another was called from a callback of this one */
	int64_t timeout_ns;
	int n_calls;
	int error; /* what a callback returned */
	int class; /* of the last callback */
	unsigned last_queued;
} driver_t;

enum { CLASS_TIMER, CLASS_POST, CLASS_JOB, CLASS_ENDED, CLASS_CQE };

typedef struct model_t {
	iou_t *iou;
	iou_config_t config;
	bool freeing;
	driver_t *driver;
	unsigned n_drivers;
	unsigned budget;    /* actions left */
	unsigned n_pending; /* ops */
	uint64_t seq, job_seq, timer_seq, last_taken_seq, last_start_seq, finish_seq, last_finish_seq;
	unsigned last_queued; /* ring op, or 0 where a chain cannot go on behind it */
	bool boundary;        /* a callback began or ended since */
	bool any_drain;
	bool broken;          /* a CQE was lost: iou_run() says so, and iou_free() gives up what ops refer to */
	bool short_of_supply; /* the last enter was refused or short */
	int holds;            /* of the loop thread, less unholds begun */
	unsigned poster_holds;
	bool quit_is_set;     /* by the loop thread, for the run that is active or the next; */
	bool others_quit;     /* by another thread, which has returned */
	unsigned quits_of_others, quits_explained;
	unsigned n_runs;      /* iou_run() calls that have ended, but nested ones */
	int fd;
	int job_error;        /* of a short job whose completion runs */
	enum { ANYTHING, UNHOLD, POST } order; /* to a posting thread */
	unsigned last_post[4], next_post[4];
	unsigned n_ops, n_posts, n_kept;
	iou_op_t *kept[MAX_KEPT];
	bh_model_t bhs[MAX_BHS];
	uint64_t actions; /* allowed ones, as bits */
} model_t;

static model_t model;
static op_model_t ops[MAX_OPS];
static post_model_t posts[MAX_POSTS];

static uint64_t total_callbacks, total_calls;

uint64_t sim_random, sim_seed;
bool sim_tracing;
unsigned sim_n_steps;

/* ---- Failure and trace ------------------------------------------------------------------------ */

void sim_trace(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("%10llu ", (unsigned long long)(world.now_ns - 1000000));
	vprintf(format, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
}

void sim_fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	world.running = false;
	va_start(args, format);
	fprintf(stderr, "sim: seed %llu: ", (unsigned long long)sim_seed);
	vfprintf(stderr, format, args);
	fprintf(stderr, " (%s:%d)\n", file, line);
	fprintf(stderr, "sim: replay it with: make check-sim SEED=%llu RUNS=1 TRACE=1%s%s\n", (unsigned long long)sim_seed,
		SIM_ASAN ? " SAN=address" : "", SIM_FINE ? " GRAIN=sim-fine" : "");
	va_end(args);
	fflush(stdout);
	_exit(1);
}

static void say_seed(void)
{
	char line[96];
	int n = snprintf(line, sizeof(line), "sim: seed %llu: died\n", (unsigned long long)sim_seed);
	ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);

	(void)ignored;
}

static void on_signal(int number)
{
	say_seed();
	if (number == SIGVTALRM) {
		static const char hangs[] = "sim: that run does not come to an end\n";
		ssize_t ignored = write(STDERR_FILENO, hangs, sizeof(hangs) - 1);
		(void)ignored;
	}
	signal(number, SIG_DFL);
	raise(number);
}

/* ---- Calls ------------------------------------------------------------------------------------ */

typedef struct call_t {
	bool may_alloc;
	unsigned n_faults;
} call_t;

static call_t call_begin(bool may_alloc)
{
	call_t before = { world.may_alloc, world.n_faults };

	total_calls++;
	world.events++;
	sim_n_steps++;
	CHECK(sim_n_steps < 100000, "a run does not come to an end");
	world.may_alloc = may_alloc;
	return before;
}

/* Were there faults in this call? */
static bool call_end(call_t before)
{
	world.may_alloc = before.may_alloc;
	return world.n_faults != before.n_faults;
}

#define CALL(may_alloc, expression) \
	({ \
		call_t call_ = call_begin(may_alloc); \
		__typeof__(expression) value_ = (expression); \
		call_end(call_); \
		value_; \
	})
#define CALL_VOID(may_alloc, expression) \
	do { \
		call_t call_ = call_begin(may_alloc); \
		(expression); \
		call_end(call_); \
	} while (0)

/* A flush, a poll or a run ends the chain that is open. */
static void chain_ends(void)
{
	model.last_queued = 0;
}

static bool is_ring(const op_model_t *op)
{
	return op->door == RING || op->door == HANDLER;
}

static bool is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

/* ---- What the kernel sees --------------------------------------------------------------------- */

static bool deadline_may_be_over(const op_model_t *op)
{
	return op->has_deadline && op->deadline_from_ns <= world.now_ns;
}

/* Is it known which ops are together in the chain of this first one? Not, where some may have ended in iou. */
static bool chain_is_clear(const op_model_t *first)
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

		if (!is_ring(other) || other->seq >= first->seq || !other->taken || other->kernel_done)
			continue;
		if (!chain_is_clear(other_first))
			continue;
		CHECK(!first->drained, "op %u is drained, and was submitted before op %u has ended", number, i);
		CHECK(!other_first->drained, "op %u was submitted before op %u, which is drained, has ended", number, i);
	}
}

void model_taken(unsigned number, const struct io_uring_sqe *sqe, bool first_in_enter, unsigned previous, bool linked,
		 bool cut)
{
	op_model_t *op = &ops[number];
	struct io_uring_sqe want;

	(void)first_in_enter;
	(void)cut;
	CHECK(number <= model.n_ops, "an SQE with garbage was submitted");
	CHECK(op->state == PENDING && is_ring(op), "op %u was submitted while it is not queued", number);
	CHECK(!op->taken, "op %u was submitted twice", number);
	want = op->sqe;
	want.user_data = sqe->user_data;
	want.flags = sqe->flags;
	CHECK(memcmp(&want, sqe, sizeof(want)) == 0, "the SQE of op %u was changed", number);
	CHECK(op->door == HANDLER || sqe->user_data == (uintptr_t)op->op, "op %u has a user_data not its own", number);
	CHECK(!(sqe->flags & IOSQE_IO_DRAIN), "op %u was submitted with IOSQE_IO_DRAIN", number);
	CHECK(!(sqe->flags & IOSQE_CQE_SKIP_SUCCESS), "op %u was submitted with IOSQE_CQE_SKIP_SUCCESS", number);
	CHECK((sqe->flags & ~LINKS) == (op->sqe.flags & ~(LINKS | IOSQE_IO_DRAIN | IOSQE_CQE_SKIP_SUCCESS)),
	      "op %u was submitted with flags %#x", number, sqe->flags);
	CHECK(!(sqe->flags & LINKS) || (sqe->flags & LINKS) == (op->sqe.flags & LINKS), "op %u has links that it had not",
	      number);
	CHECK(op->seq > model.last_taken_seq, "op %u was submitted out of order", number);
	model.last_taken_seq = op->seq;
	if (linked)
		CHECK(op->previous && op->previous == previous, "op %u was linked behind op %u", number, previous);
	else
		CHECK(!op->glued, "op %u was split from its chain", number);
	op->taken = true;
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

	CHECK(op->n_exp_in - op->n_exp_out < MAX_CQES, "the fake kernel posts too much for op %u", number);
	CHECK(op->state == PENDING && !op->kernel_done, "op %u was given up before its last CQE", number);
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

void model_cancel_hits(unsigned number, bool by_iou, bool any)
{
	op_model_t *op = &ops[number];

	(void)any;
	if (!by_iou) {
		op->hit_by_us = true;
		return;
	}
	op->hit = true;
	if (model.freeing)
		return;
	CHECK(op->asked || deadline_may_be_over(op), "op %u is cancelled, and nobody asked for that", number);
}

/* ---- Sleeping --------------------------------------------------------------------------------- */

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

static void check_op_at_rest(unsigned number, bool for_ever, uint64_t until_ns)
{
	const op_model_t *op = &ops[number];

	if (op->door == TIMER) {
		/* some time may pass between iou's look at the clock and its sleep */
		CHECK(op->due_ns > world.now_ns || until_ns < world.now_ns + SLACK_NS, "the loop sleeps while timer %u is due", number);
		CHECK(!op->asked, "the loop sleeps while timer %u, cancelled, waits to be delivered", number);
		return;
	}
	if (op->door == JOB || op->door == SHORT_JOB) {
		CHECK(!op->finished, "the loop sleeps while job %u, done, waits to be delivered", number);
		CHECK(op->started || !op->asked, "the loop sleeps while job %u, cancelled, waits", number);
		CHECK(op->started || threads_n_free() == 0, "job %u waits while a worker is free", number);
		CHECK(op->started || world.thread_refused || threads_n_workers() >= (model.config.workers ? model.config.workers : 2),
		      "job %u waits while there may be more workers", number);
		return;
	}
	CHECK(op->n_exp_in == op->n_exp_out, "the loop sleeps while a completion of op %u waits", number);
	if (!op->taken) {
		CHECK(!op->asked, "the loop sleeps while op %u, cancelled in the backlog, waits", number);
		CHECK(!ops[op->chain].cut || ops[op->chain].ambiguous, "the loop sleeps while op %u, of a chain cut short, waits", number);
		CHECK(model.short_of_supply || (model.any_drain && behind_drain(number)),
		      "the loop sleeps while op %u is not submitted", number);
		return;
	}
	if (for_ever && (op->asked || (op->has_deadline && op->deadline_ns <= world.now_ns)))
		CHECK(!kernel_forgot_cancel(number), "op %u is to be cancelled, and the loop sleeps for ever", number);
	if (op->has_deadline && op->deadline_ns < world.now_ns && until_ns > world.now_ns + SLACK_NS && op->sqe.opcode != IORING_OP_LINK_TIMEOUT)
		CHECK(op->cancel_seen || op->asked || strcmp(kernel_where(number), "running"),
		      "the deadline of op %u has passed, and the loop sleeps", number);
}

/* Nothing is ready, or the run fails. All other threads have come to rest. */
static void check_at_rest(bool for_ever, uint64_t until_ns)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			check_op_at_rest(i, for_ever, until_ns);
	for (unsigned i = 0; i < model.n_posts; i++)
		CHECK(!posts[i].accepted || posts[i].delivered, "the loop sleeps while post %u waits", i);
	for (unsigned i = 0; i < MAX_BHS; i++)
		CHECK(!model.bhs[i].bh || !model.bhs[i].scheduled, "the loop sleeps while bottom half %u is scheduled", i);
}

static bool is_pending(void)
{
	return model.n_pending || model.holds > 0 || model.poster_holds;
}

void model_sleeps(bool for_ever, uint64_t until_ns)
{
	const driver_t *driver = model.driver;

	if (model.freeing || model.short_of_supply || model.broken)
		return;
	CHECK(driver, "iou sleeps outside of iou_run() and iou_poll()");
	check_at_rest(for_ever, until_ns);
	CHECK(is_pending(), "the loop sleeps with nothing pending");
	CHECK(driver->is_run || driver->timeout_ns, "iou_poll(0) sleeps");
	CHECK(!driver->is_run || (!model.quit_is_set && !model.others_quit), "the loop sleeps after iou_quit()");
}

void model_rescue(void)
{
	if (kernel_feed())
		return;
	for (unsigned i = 1; i <= model.n_ops; i++) {
		if (ops[i].state == PENDING && ops[i].started && !ops[i].finished && !ops[i].released) {
			ops[i].released = true;
			return;
		}
	}
	CHECK(model.driver && !model.freeing, "nothing will ever happen any more");
	model.order = model.holds > 0 ? UNHOLD : POST;
	while (!poster_start(true))
		CHECK(posters_idle(), "the posting threads hang");
	TRACE("-- rescue: a posting thread is told to");
}

/* ---- Callbacks -------------------------------------------------------------------------------- */

static void act(void);

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
	if (!driver->is_run && !driver->nested) {
		CHECK(class >= driver->class, "the order of sources in a round: %d after %d", class, driver->class);
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

static void act_inside(void)
{
	if (one_in(2))
		for (unsigned n = 1 + pick(3); n; n--)
			act();
}

/* The op is not used any more: nobody may write to what it referred to. */
static void op_gone(op_model_t *op)
{
	op->state = GONE;
	memset(op->buffer, 0x5a, sizeof(op->buffer));
	op->ts = (struct __kernel_timespec){ -1, -1 };
}

static unsigned number_of(const op_model_t *op)
{
	return (unsigned)(op - ops);
}

static bool requeue(op_model_t *op);

static void last_callback(op_model_t *op)
{
	op->state = LAST;
	model.n_pending--;
	if (op->op && one_in(8))
		CHECK(CALL(false, iou_op_cancel(model.iou, op->op)) == -EINVAL, "iou_op_cancel() in the op's last callback");
}

static void after_callback(op_model_t *op, bool last)
{
	act_inside();
	if (!last)
		return;
	if (op->env)
		for (unsigned i = 0; i < op->env_size; i++)
			CHECK(op->env[i] == (unsigned char)(number_of(op) + i), "the environment of op %u", number_of(op));
	if (op->op && one_in(4) && requeue(op))
		return;
	if (op->op && one_in(16))
		CALL_VOID(false, iou_op_free(model.iou, op->op));
	op_gone(op);
}

static bool is_interrupted(int res)
{
	return res == -EINTR || (res <= -512 && res >= -516);
}

static void check_cancelled(const op_model_t *op, int got)
{
	unsigned number = number_of(op);

	if (got == -ETIME)
		CHECK(deadline_may_be_over(op), "op %u got -ETIME before its deadline", number);
	else
		CHECK(got == -ECANCELED, "op %u was cancelled, and got %d", number, got);
	if (op->hit && !op->asked)
		CHECK(got == -ETIME, "op %u was ended by its deadline, and got %d", number, got);
}

/* The result of a ring op: what the kernel said, or what iou may say itself. */
static void check_result(op_model_t *op, int got, unsigned flags)
{
	unsigned number = number_of(op);
	cqe_t want;

	if (op->n_exp_in == op->n_exp_out) {
		const op_model_t *first = &ops[op->chain];

		CHECK(!op->taken, "op %u has a callback without a CQE", number);
		CHECK(!flags, "op %u, ended in iou, has flags %#x", number, flags);
		if (got == -E2BIG) {
			CHECK(first->n_chain > kernel_sq_entries_min(), "op %u got -E2BIG in a chain of %u", number, first->n_chain);
			return;
		}
		check_cancelled(op, got);
		if (op->asked || op->has_deadline || first->cut)
			return;
		for (unsigned at = op->previous; at; at = ops[at].previous)
			if (!ops[at].taken && (ops[at].asked || ops[at].has_deadline))
				return;
		FAIL("op %u ended in iou, and nobody asked for that", number);
	}
	want = op->exp[op->n_exp_out++ % MAX_CQES];
	CHECK(flags == want.flags, "op %u has flags %#x and not %#x", number, flags, want.flags);
	if (got == want.res && !is_interrupted(got) && got != -ECANCELED)
		return;
	if (want.res == -ECANCELED || (is_interrupted(want.res) && (op->hit || got == -ETIME))) {
		check_cancelled(op, got);
		return;
	}
	CHECK((got == want.res || got == -ECANCELED) && is_interrupted(want.res), "op %u got %d and not %d", number, got,
	      want.res);
}

static void ring_callback(op_model_t *op, int result, unsigned flags)
{
	bool last = !(flags & IORING_CQE_F_MORE);
	unsigned number = number_of(op);
	bool in_iou = op->n_exp_in == op->n_exp_out;

	TRACE("callback of op %u: %d, flags %#x", number, result, flags);
	CHECK(op->state == PENDING, "op %u has a callback after its last", number);
	callback_begin(in_iou ? CLASS_ENDED : CLASS_CQE);
	check_result(op, result, flags);
	if (last) {
		CHECK(!op->taken || op->kernel_done, "op %u has its last callback before its last CQE", number);
		CHECK(!kernel_holds(number), "op %u has its last callback while it is in the kernel", number);
	}
	if (result >= 0 && (op->sqe.opcode == IORING_OP_OPENAT || op->sqe.opcode == IORING_OP_ACCEPT))
		kernel_close_of_program(result);
	if (last)
		last_callback(op);
}

static int on_ring(void *data)
{
	op_model_t *op = data;
	bool last = !(op->op->flags & IORING_CQE_F_MORE);

	ring_callback(op, op->op->result, op->op->flags);
	after_callback(op, last);
	return callback_end();
}

static int on_handler(iou_handler_t *handler)
{
	op_model_t *op = (op_model_t *)(void *)((char *)handler - offsetof(op_model_t, handler));
	bool last = !(handler->flags & IORING_CQE_F_MORE);

	ring_callback(op, handler->result, handler->flags);
	after_callback(op, last);
	return callback_end();
}

/* Due before another that is delivered, and not by a hair that we cannot see. */
static bool due_before(const op_model_t *a, const op_model_t *b)
{
	if (a->due_ns < b->due_from_ns)
		return true;
	return !a->period_ns && !b->period_ns && a->due_ns == b->due_ns && a->due_from_ns == a->due_ns &&
	       b->due_from_ns == b->due_ns && a->timer_seq < b->timer_seq;
}

static int on_timer(void *data)
{
	op_model_t *op = data;
	int result = op->op->result;
	unsigned number = number_of(op), flags = op->op->flags;
	bool last = !(flags & IORING_CQE_F_MORE);

	TRACE("callback of timer %u: %d, flags %#x", number, result, flags);
	CHECK(op->state == PENDING, "timer %u has a callback after its last", number);
	callback_begin(op->asked ? CLASS_ENDED : CLASS_TIMER);
	if (op->asked) {
		CHECK(result == -ECANCELED && last, "timer %u is cancelled, and got %d", number, result);
	} else {
		CHECK(world.now_ns >= op->due_from_ns, "timer %u is early", number);
		CHECK(last == !op->period_ns, "timer %u has flags %#x", number, flags);
		CHECK(result >= 1, "timer %u got %d", number, result);
		for (unsigned i = 1; i <= model.n_ops; i++)
			CHECK(ops[i].door != TIMER || ops[i].state != PENDING || ops[i].asked || !due_before(&ops[i], op),
			      "timer %u comes before timer %u", number, i);
		CHECK(op->period_ns || result == 1, "timer %u got %d expirations", number, result);
	}
	if (op->period_ns && !last) {
		uint64_t most = (world.now_ns - op->due_from_ns) / op->period_ns + 1;

		CHECK((uint64_t)result <= most, "timer %u got %d expirations of %llu", number, result,
		      (unsigned long long)most);
		for (; result; result--)
			op->due_ns = op->due_ns + op->period_ns < op->due_ns ? NEVER : op->due_ns + op->period_ns;
		op->due_from_ns = op->due_ns;
		if (one_in(4)) {
			op->asked = true;
			CHECK(CALL(false, iou_op_cancel(model.iou, op->op)) == 0, "iou_op_cancel() of periodic timer %u", number);
		}
	}
	if (last)
		last_callback(op);
	after_callback(op, last);
	return callback_end();
}

/* ---- Jobs ------------------------------------------------------------------------------------- */

static void check_start_order(const op_model_t *op)
{
	unsigned n = 0;

	for (unsigned i = 1; i <= model.n_ops; i++)
		n += (ops[i].door == JOB || ops[i].door == SHORT_JOB) && ops[i].state == PENDING && !ops[i].started &&
		     !ops[i].asked && !deadline_may_be_over(&ops[i]) && ops[i].job_seq < op->job_seq;
	CHECK(model.freeing || n < threads_n_workers(), "job %u starts before %u that were queued earlier", number_of(op), n);
}

static void post_from(unsigned thread, bool needed);

static int job_main(void *data)
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
		post_from(3, false);
		break;
	case 3:
		sim_point();
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
	callback_begin(CLASS_JOB);
	CHECK(op->finished || (!op->started && (op->asked || deadline_may_be_over(op))), "job %u has not run", number);
	op->withdrawn |= !op->started;
	if (op->finished && model.config.workers == 1) {
		CHECK(op->finish_seq > model.last_finish_seq, "job %u comes back out of order", number);
		model.last_finish_seq = op->finish_seq;
	}
	last_callback(op);
}

static int on_job(void *data)
{
	op_model_t *op = data;
	int result = op->op->result;

	CHECK(op->op->flags == 0, "job %u has flags %#x", number_of(op), op->op->flags);
	job_callback(op);
	if (op->finished)
		CHECK(result == op->ret, "job %u got %d and not %d", number_of(op), result, op->ret);
	else
		check_cancelled(op, result);
	after_callback(op, true);
	return callback_end();
}

static int on_short_job(void *data)
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

/* ---- Posts and bottom halves ------------------------------------------------------------------ */

static int on_post(void *data)
{
	post_model_t *post = data;

	TRACE("callback of post %u", (unsigned)(post - posts));
	CHECK(post->begun && !post->delivered, "post %u is delivered twice", (unsigned)(post - posts));
	callback_begin(CLASS_POST);
	CHECK(post->thread > 2 || post->seq > model.last_post[post->thread], "post %u comes out of order", (unsigned)(post - posts));
	CHECK(!post->driver || post->driver != model.driver->id || model.driver->is_run,
	      "post %u runs in the round in which it was made", (unsigned)(post - posts));
	model.last_post[post->thread] = post->seq;
	post->delivered = true;
	if (post->accepted)
		model.n_pending--;
	act_inside();
	return callback_end();
}

/* Posts of jobs, thread 3, come in no order among each other. */
static void post_from(unsigned thread, bool needed)
{
	post_model_t *post = &posts[model.n_posts];
	int ret;

	CHECK(model.n_posts < MAX_POSTS, "a run does not come to an end");
	if (!needed && model.n_posts >= MANY_POSTS)
		return;
	model.n_posts++;
	*post = (post_model_t){ .thread = thread, .begun = true, .driver = !thread && model.driver ? model.driver->id : 0 };
	post->seq = ++model.next_post[thread];
	TRACE("thread %u: iou_post %u", thread_number(), (unsigned)(post - posts));
	ret = thread ? iou_post(model.iou, on_post, post) : CALL(true, iou_post(model.iou, on_post, post));
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
	CHECK(bh->may_run || bh->once_more, "bottom half %u runs, and is not scheduled", number);
	bh->once_more = bh->may_run && bh->by_other;
	bh->by_other = bh->n_running > 0;
	model.n_pending -= bh->scheduled;
	bh->scheduled = false;
	bh->n_ended++;
	bh->may_run = bh->n_running > 0;
	act_inside();
	return callback_end();
}

static void bh_schedule(bh_model_t *bh, bool idle)
{
	unsigned n_ended = bh->n_ended;

	TRACE("thread %u: iou_bh_schedule%s %u", thread_number(), idle ? "_idle" : "", (unsigned)(bh - model.bhs));
	bh->n_calls++;
	bh->n_running++;
	bh->may_run = true;
	if (on_other_thread()) {
		bh->by_other = true;
		if (idle)
			iou_bh_schedule_idle(bh->bh);
		else
			iou_bh_schedule(bh->bh);
	} else if (idle) {
		CALL_VOID(false, iou_bh_schedule_idle(bh->bh));
	} else {
		CALL_VOID(false, iou_bh_schedule(bh->bh));
	}
	bh->n_running--;
	bh->n_calls--;
	/* where it ran, or was cancelled, before this returned, nobody can tell */
	if (n_ended == bh->n_ended && !bh->scheduled) {
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
	CALL_VOID(false, iou_bh_cancel(bh->bh));
	model.n_pending -= bh->scheduled;
	bh->scheduled = false;
	bh->n_ended++;
}

static void act_bh(void)
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
		break;
	case 1:
		if (bh->n_calls)
			break;
		TRACE("iou_bh_delete %u", (unsigned)(bh - model.bhs));
		model.n_pending -= bh->scheduled;
		gone = bh->bh;
		bh->bh = NULL; /* no thread uses it from here on */
		CALL_VOID(false, iou_bh_delete(gone));
		break;
	case 2:
		bh_schedule(bh, true);
		break;
	default:
		bh_schedule(bh, false);
	}
}

/* What the other threads do. */
void poster_act(unsigned number)
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
			bh_schedule(bh, one_in(4));
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
			model.others_quit |= n_runs == model.n_runs; /* else that run may have spent it */
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

/* ---- Queueing --------------------------------------------------------------------------------- */

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

/* Any op, at random. */
static void prepare(struct io_uring_sqe *sqe, op_model_t *op)
{
	int fd = random_fd();

	op->ts = (struct __kernel_timespec){ 0, pick(3000) };
	switch (pick(12)) {
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
		if (one_in(2))
			io_uring_prep_poll_multishot(sqe, fd, POLLIN);
		else
			io_uring_prep_poll_add(sqe, fd, POLLIN);
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
		if (one_in(4)) {
			io_uring_prep_nop(sqe);
			sqe->opcode = 255;
			break;
		}
		/* fall through */
	case 9:
		io_uring_prep_nop(sqe);
		break;
	default:
		io_uring_prep_read(sqe, fd, op->buffer, 8, 0);
	}
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
			op->glued &= ops[at].state == PENDING && !ops[at].asked && !deadline_may_be_over(&ops[at]);
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

	if (model.n_kept && one_in(2))
		return model.kept[--model.n_kept];
	op = CALL(true, iou_op_new(model.iou));
	CHECK(op || errno == ENOMEM, "iou_op_new: %d", errno);
	if (op)
		CHECK(op->sqe->opcode == 0 && op->sqe->user_data == 0 && op->sqe->addr == 0 && op->sqe->flags == 0,
		      "the SQE of a new op is not zeroed");
	return op;
}

static void give_env(op_model_t *op)
{
	op->env_size = one_in(2) ? 1 + pick(64) : 65 + pick(100);
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
	TRACE("iou_op_queue %u: opcode %u fd %d flags %#x%s", number_of(op), op->op->sqe->opcode, op->op->sqe->fd,
	      op->op->sqe->flags, op->has_deadline ? ", deadline" : "");
	queue_model(op, op->op->sqe);
	before_ns = world.now_ns;
	CALL_VOID(false, iou_op_queue(model.iou, op->op, on_ring, op));
	op->deadline_from_ns = before_ns + after_ns;
	op->deadline_ns = world.now_ns + after_ns;
}

static void act_queue(void)
{
	unsigned n = one_in(4) ? 2 + pick(4) : 1;

	/* a chain, where n > 1; its last op now and then has the flag too */
	for (unsigned i = 0; i < n; i++) {
		op_model_t *op = op_model_new(RING);

		if (!op)
			return;
		op->op = take_op();
		if (!op->op)
			return;
		if (i && ops[model.last_queued].sqe.flags & LINKS && one_in(6)) {
			op->ts = (struct __kernel_timespec){ 0, pick(1000) };
			io_uring_prep_link_timeout(op->op->sqe, &op->ts, 0);
			op->op->sqe->__pad2[0] = number_of(op);
		} else {
			prepare(op->op->sqe, op);
		}
		if (i + 1 < n || one_in(20))
			op->op->sqe->flags |= one_in(3) ? IOSQE_IO_HARDLINK : IOSQE_IO_LINK;
		if (one_in(10))
			give_env(op);
		queue_ring(op);
	}
}

static void act_keep(void)
{
	iou_op_t *op;

	if (model.n_kept == MAX_KEPT || one_in(3)) {
		if (!model.n_kept)
			return;
		op = model.kept[--model.n_kept];
		if (one_in(2))
			CHECK(CALL(false, iou_op_cancel(model.iou, op)) == -EINVAL, "iou_op_cancel() of an op that is not queued");
		CALL_VOID(false, iou_op_free(model.iou, op));
		return;
	}
	op = CALL(true, iou_op_new(model.iou));
	if (op)
		model.kept[model.n_kept++] = op;
}

static void queue_timer(op_model_t *op, bool moved)
{
	uint64_t after_ns = one_in(30) ? NEVER - pick(3) : one_in(8) ? 0 : pick(3000);

	op->period_ns = one_in(3) ? 1 + pick(2000) : one_in(60) ? NEVER : 0;
	TRACE("iou_op_timer %u: after %llu, period %llu", number_of(op), (unsigned long long)after_ns,
	      (unsigned long long)op->period_ns);
	op->timer_seq = ++model.timer_seq;
	op->due_from_ns = world.now_ns + after_ns < after_ns ? NEVER : world.now_ns + after_ns;
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

static bool queue_job(op_model_t *op)
{
	unsigned workers = threads_n_workers();
	uint64_t before_ns, after_ns = 0;
	int ret;

	op->ret = one_in(8) ? -2000 - (int)pick(100) : (int)pick(100);
	if (op->op && one_in(8) && !op->has_deadline)
		give_deadline(op, &after_ns);
	op->job_seq = ++model.job_seq;
	op->state = PENDING; /* it may start at once */
	TRACE("iou_%sasync %u", op->op ? "op_" : "", number_of(op));
	before_ns = world.now_ns;
	op->deadline_from_ns = before_ns + after_ns;
	op->deadline_ns = NEVER;
	if (op->op)
		ret = CALL(true, iou_op_async(model.iou, op->op, job_main, op, on_job, op));
	else
		ret = CALL(true, iou_async(model.iou, job_main, op, on_short_job, op));
	op->deadline_ns = world.now_ns + after_ns;
	CHECK(ret == 0 || (ret == -EAGAIN && !workers) || (ret == -ENOMEM && !op->op), "iou_async: %d", ret);
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

	CHECK(sqe->opcode == 0 && sqe->user_data == 0 && sqe->flags == 0, "prep_sqe gets an SQE that is not zeroed");
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

/* In its last callback an op may go out again, by any door. */
static bool requeue(op_model_t *old)
{
	op_model_t *op = op_model_new(one_in(6) ? TIMER : one_in(6) ? JOB : RING);

	if (!op)
		return false;
	op->op = old->op;
	if (old->door == RING)
		CHECK(op->op->sqe->opcode == old->sqe.opcode && op->op->sqe->fd == old->sqe.fd &&
			      op->op->sqe->addr == old->sqe.addr && op->op->sqe->len == old->sqe.len,
		      "the SQE of op %u does not hold what was queued", number_of(old));
	if (op->door == RING && (old->door != RING || one_in(2))) {
		memset(op->op->sqe, 0, sizeof(*op->op->sqe));
		prepare(op->op->sqe, op);
	} else if (op->door == RING) {
		op->op->sqe->flags = 0;
		op->op->sqe->__pad2[0] = number_of(op);
		if (op->op->sqe->opcode == IORING_OP_READ || op->op->sqe->opcode == IORING_OP_WRITE ||
		    op->op->sqe->opcode == IORING_OP_SEND_ZC)
			op->op->sqe->addr = (uintptr_t)op->buffer;
		else if (op->op->sqe->opcode == IORING_OP_ASYNC_CANCEL || op->op->sqe->opcode == IORING_OP_TIMEOUT ||
			 op->op->sqe->opcode == IORING_OP_LINK_TIMEOUT ||
			 op->op->sqe->opcode == IORING_OP_POLL_REMOVE || op->op->sqe->opcode == IORING_OP_TIMEOUT_REMOVE)
			op->op->sqe->opcode = IORING_OP_NOP; /* its key or timespec is dead */
	}
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

/* ---- Other actions ---------------------------------------------------------------------------- */

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
			CHECK(op->started || threads_n_workers() > threads_n_free(), "job %u cannot be cancelled", number);
		if (ret == 0)
			CHECK(!was_started || op->finished, "job %u, which runs, was cancelled", number);
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

static void cancel_all(void)
{
	TRACE("iou_cancel_all");
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			ops[i].asked = true;
	CHECK(CALL(false, iou_cancel_all(model.iou)) == 0, "iou_cancel_all");
}

static void check_stats(void)
{
	iou_stats_t stats;
	unsigned n = 0;

	for (unsigned i = 1; i <= model.n_ops; i++)
		n += ops[i].state == PENDING;
	CALL_VOID(false, iou_stats(model.iou, &stats));
	CHECK(stats.pending == n, "iou_stats: %llu ops are pending, and not %u", (unsigned long long)stats.pending, n);
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

static void drive_begin(driver_t *driver, bool is_run, int64_t timeout_ns)
{
	unsigned last_queued = model.last_queued;

	chain_ends();
	*driver = (driver_t){ .up = model.driver, .id = ++model.n_drivers, .is_run = is_run, .timeout_ns = timeout_ns, .last_queued = last_queued };
	if (model.driver)
		model.driver->nested = true;
	model.driver = driver;
}

static void drive_end(driver_t *driver)
{
	model.driver = driver->up;
	if (driver->is_run && !driver->n_calls && (model.quit_is_set || model.quits_of_others))
		model.last_queued = driver->last_queued; /* it may have returned before its first round */
	model.boundary = true;
}

/* What the loop thread itself knows to be pending. */
static bool main_things_pending(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		if (ops[i].state == PENDING)
			return true;
	for (unsigned i = 0; i < model.n_posts; i++)
		if (!posts[i].thread && posts[i].accepted && !posts[i].delivered)
			return true;
	return model.holds > 0;
}

static int poll_once(int64_t timeout_ns)
{
	uint64_t from_ns = world.now_ns;
	driver_t driver;
	call_t call = call_begin(false);
	bool faulty;
	int ret;

	drive_begin(&driver, false, timeout_ns);
	TRACE("iou_poll(%lld)", (long long)timeout_ns);
	ret = iou_poll(model.iou, timeout_ns);
	TRACE("iou_poll: %d", ret);
	faulty = call_end(call);
	drive_end(&driver);
	if (driver.error) {
		CHECK(ret == driver.error, "iou_poll returns %d and not %d", ret, driver.error);
	} else if (ret < 0) {
		CHECK((faulty && is_shortage(ret)) || (model.broken && ret == -EBADR), "iou_poll: %d", ret);
	} else {
		CHECK(ret == driver.n_calls, "iou_poll returns %d after %d callbacks", ret, driver.n_calls);
		if (ret == 0 && timeout_ns != 0 && main_things_pending())
			CHECK(timeout_ns > 0 && world.now_ns >= from_ns + (uint64_t)timeout_ns,
			      "iou_poll(%lld) returns 0 too early", (long long)timeout_ns);
	}
	return ret;
}

static int run(void)
{
	bool quit_before = model.quit_is_set;
	driver_t driver;
	call_t call = call_begin(false);
	bool faulty;
	int ret;

	drive_begin(&driver, true, -1);
	TRACE("iou_run");
	ret = iou_run(model.iou);
	TRACE("iou_run: %d", ret);
	faulty = call_end(call);
	drive_end(&driver);
	if (driver.error) {
		CHECK(ret == driver.error, "iou_run returns %d and not %d", ret, driver.error);
	} else if (ret < 0) {
		CHECK((faulty && is_shortage(ret)) || (model.broken && ret == -EBADR), "iou_run: %d", ret);
	} else {
		CHECK(ret == 0, "iou_run: %d", ret);
		if (main_things_pending() && !model.quit_is_set && !quit_before) {
			CHECK(model.quits_explained < model.quits_of_others, "iou_run returns 0 while something is pending");
			/* nested ones return by the same quit */
			if (!model.driver)
				model.quits_explained++;
		}
	}
	for (driver_t *up = model.driver; up; up = up->up)
		if (up->is_run)
			return ret;
	model.quit_is_set = model.others_quit = false;
	model.n_runs++;
	return ret;
}

static bool run_is_active(void)
{
	for (driver_t *up = model.driver; up; up = up->up)
		if (up->is_run)
			return true;
	return false;
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

	chain_ends();
	TRACE("iou_flush");
	ret = iou_flush(model.iou);
	TRACE("iou_flush: %d", ret);
	faulty = call_end(call);
	CHECK(ret == 0 || (faulty && is_shortage(ret)) || (model.broken && ret == -EBADR), "iou_flush: %d", ret);
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
	if (call_end(call) && (ret == -ENOMEM || ret == -EMFILE || ret == -ENFILE || ret == -EPERM || ret == -ENOSYS))
		return;
	CHECK(ret == 0 || (ret == -EBUSY && in_flight), "iou_resize: %d", ret);
}

/* Wait on iou_fd() as another loop would, then poll once. */
static void act_fd(void)
{
	call_t call = call_begin(true);
	int fd = iou_fd(model.iou), n = 0;

	if (call_end(call) && fd < 0) {
		CHECK(fd == -EMFILE || fd == -ENOMEM || fd == -ENFILE || fd == -EPERM, "iou_fd: %d", fd);
		return;
	}
	if (fd == -EPERM)
		return; /* registering is refused */
	CHECK(fd >= FD_FAKE && (model.fd < 0 || model.fd == fd), "iou_fd: %d", fd);
	model.fd = fd;
	while (!model.driver && !kernel_readable(fd)) {
		uint64_t due_ns = kernel_due_ns(), job_ns = threads_due_ns();

		if (n++ > 20)
			return;
		if (kernel_step() || threads_step())
			continue;
		check_at_rest(false, NEVER);
		if (job_ns < due_ns)
			due_ns = job_ns;
		if (due_ns == NEVER)
			return;
		if (due_ns > world.now_ns)
			world.now_ns = due_ns;
	}
	TRACE("-- iou_fd is readable, or nobody looked");
	poll_once(0);
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

static unsigned depth(void)
{
	unsigned n = 0;

	for (driver_t *up = model.driver; up; up = up->up)
		n++;
	return n;
}

static void act(void)
{
	unsigned what = pick(32);

	if (!model.budget)
		return;
	if (!(model.actions >> what & 1))
		return;
	model.budget--;
	if (one_in(8))
		world.now_ns += pick(1000);
	sim_point();
	switch (what) {
	case 0 ... 8:
		act_queue();
		break;
	case 9 ... 10:
		act_timer();
		break;
	case 11 ... 13:
		act_job();
		break;
	case 14:
		act_handler();
		break;
	case 15 ... 16:
		act_cancel();
		break;
	case 17:
		post_from(0, false);
		break;
	case 18 ... 19:
		act_bh();
		break;
	case 20:
		act_hold();
		break;
	case 21:
		if (one_in(16))
			look_inside();
		else
			act_keep();
		break;
	case 22 ... 23:
		act_flush();
		break;
	case 24 ... 26:
		if (depth() < 4)
			poll_once(one_in(2) ? 0 : one_in(2) ? -1 : (int64_t)pick(3000));
		break;
	case 27 ... 28:
		if (depth() < 4)
			run();
		break;
	case 29:
		if (one_in(3))
			cancel_all();
		else if (one_in(2))
			act_quit();
		else
			kernel_feed();
		break;
	case 30:
		act_resize();
		break;
	case 31:
		if (depth() < 4)
			act_fd();
		break;
	}
}

/* ---- A run ------------------------------------------------------------------------------------ */

static void configure(iou_config_t *config)
{
	static const unsigned flags[] = {
		IORING_SETUP_CLAMP, IORING_SETUP_SUBMIT_ALL, IORING_SETUP_COOP_TASKRUN, IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SQPOLL, IORING_SETUP_SQPOLL | IORING_SETUP_SINGLE_ISSUER,
	};

	*config = (iou_config_t){ .entries = 1 + pick(8), .workers = pick(4) };
	if (one_in(5))
		config->setup_flags = flags[pick(9)];
	if (one_in(20))
		config->spin_ns = 1 + pick(100);
}

static bool no_posts(const void *data)
{
	(void)data;
	return posters_idle();
}

static void end_gracefully(void)
{
	unsigned n = 0;

	while (model.holds > 0) {
		model.holds--;
		CALL_VOID(false, iou_unhold(model.iou));
	}
	model.budget = 0;
	for (;; n++) {
		CHECK(n < 200, "it does not come to an end");
		cancel_all();
		if (run() == 0 && !main_things_pending())
			break;
		if (model.broken)
			return;
	}
	for (unsigned i = 0; i < 3; i++)
		poll_once(0); /* a quit of another thread may have hidden something */
	for (unsigned i = 1; i <= model.n_ops; i++)
		CHECK(ops[i].state != PENDING, "op %u is still pending", i);
	for (unsigned i = 0; i < model.n_posts; i++)
		CHECK(!posts[i].accepted || posts[i].delivered || world.n_faults, "post %u was lost", i);
	for (unsigned i = 0; i < MAX_BHS; i++)
		CHECK(!model.bhs[i].bh || !model.bhs[i].scheduled || world.n_faults, "bottom half %u was lost", i);
	check_stats();
}

/* Another thread's iou_unhold() is its last touch: iou may go as soon as that is seen. */
static void end_by_unhold(void)
{
	threads_until(no_posts, NULL, "a posting thread");
	end_gracefully();
	if (model.broken)
		return;
	CALL_VOID(false, iou_hold(model.iou));
	model.holds++;
	model.order = UNHOLD;
	while (!poster_start(true))
		;
	for (unsigned n = 0; run() < 0 || main_things_pending(); n++)
		CHECK(n < 200 && !model.broken, "it does not come to an end");
}

static void check_buffers(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		for (unsigned j = 0; ops[i].state == GONE && ops[i].seq && j < sizeof(ops[i].buffer); j++)
			CHECK(ops[i].buffer[j] == 0x5a, "the buffer of op %u was written to after its last callback", i);
}

static void simulate(uint64_t seed)
{
	sim_seed = seed;
	sim_random = seed * UINT64_C(0x9e3779b97f4a7c15) + 12345;
	sim_n_steps = 0;
	memset(&model, 0, offsetof(model_t, kept));
	memset(model.bhs, 0, sizeof(model.bhs));
	model.n_posts = 0;
	world = (world_t){ .now_ns = 1000000, .step_one_in = 1U << (1 + pick(5)) };
	world.faults = one_in(2) ? 0 : pick(6);
	world.drops = one_in(500);
	kernel_reset();
	threads_reset();
	model.fd = -1;
	model.budget = one_in(2) ? 1 + pick(4) : 2 + pick(one_in(6) ? 60 : 10);
	model.actions = one_in(2) ? ~UINT64_C(0) : random64() | random64();
	configure(&model.config);
	world.tick_ns = model.config.spin_ns ? 64 : 16;
	world.running = true;
	TRACE("-- seed %llu", (unsigned long long)seed);
	model.iou = CALL(true, iou_new_with(&model.config));
	if (model.iou) {
		world.posters = one_in(2);
		for (unsigned n = 0; model.budget && n < 256; n++)
			act();
		threads_until(no_posts, NULL, "a posting thread");
		world.posters = false;
		if (!model.broken && !one_in(4))
			end_gracefully();
		if (!model.broken && one_in(8))
			end_by_unhold();
		else
			threads_until(no_posts, NULL, "a posting thread");
		model.freeing = true;
		TRACE("iou_free");
		CALL(false, iou_free(model.iou));
		threads_until(no_posts, NULL, "a posting thread");
	}
	threads_check_end();
	kernel_check_end();
	CHECK(world.n_allocs == 0 || model.broken, "%u pieces of memory are left", world.n_allocs);
	threads_free_all();
	check_buffers();
	world.running = false;
}

/* ---- main ------------------------------------------------------------------------------------- */

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static void simulate_many(uint64_t seed, uint64_t runs, unsigned part, unsigned parts, int result_fd)
{
	const bool tracing = sim_tracing;
	uint64_t counts[3] = { 0, 0, 0 };
	const struct itimerval patience = { .it_value = { .tv_sec = 30 } };

	signal(SIGVTALRM, on_signal);
#if SIM_ASAN
	__sanitizer_set_death_callback(say_seed);
#else
	signal(SIGSEGV, on_signal);
	signal(SIGBUS, on_signal);
#endif
	signal(SIGABRT, on_signal);
	sim_tracing = false;
	for (uint64_t i = 0; i < 32; i++) /* what iou.c does once in a process is not part of any run */
		simulate((UINT64_C(1) << 62) + i);
	sim_tracing = tracing;
	total_calls = total_callbacks = 0;
	for (uint64_t i = part; i < runs; i += parts) {
		if (counts[0] % 1024 == 0)
			setitimer(ITIMER_VIRTUAL, &patience, NULL);
		simulate(seed + i);
		counts[0]++;
	}
	counts[1] = total_calls;
	counts[2] = total_callbacks;
	if (write(result_fd, counts, sizeof(counts)) != sizeof(counts))
		exit(2);
	exit(0);
}

int main(int argc, char **argv)
{
	uint64_t seed = 1, runs = 1000000, sums[3] = { 0, 0, 0 }, counts[3];
	unsigned parts = 1, failed = 0;
	double from = seconds(), took;
	int fds[2], option, status;

	while ((option = getopt(argc, argv, "s:n:j:")) >= 0) {
		if (option == 's')
			seed = strtoull(optarg, NULL, 0);
		else if (option == 'n')
			runs = strtoull(optarg, NULL, 0);
		else if (option == 'j')
			parts = (unsigned)strtoul(optarg, NULL, 0);
		else
			return 2;
	}
	sim_tracing = getenv("TRACE") && *getenv("TRACE") && strcmp(getenv("TRACE"), "0");
	if (pipe(fds) < 0)
		return 2;
	for (unsigned i = 0; i < parts; i++)
		if (fork() == 0)
			simulate_many(seed, runs, i, parts, fds[1]);
	while (wait(&status) > 0) {
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			failed++;
		else if (read(fds[0], counts, sizeof(counts)) == sizeof(counts))
			for (unsigned i = 0; i < 3; i++)
				sums[i] += counts[i];
	}
	took = seconds() - from;
	printf("sim: %llu sequences from seed %llu, %llu calls, %llu callbacks, %u failed, %.1f s (%.0f per second)\n",
	       (unsigned long long)sums[0], (unsigned long long)seed, (unsigned long long)sums[1],
	       (unsigned long long)sums[2], failed, took, (double)sums[0] / took);
	return failed != 0;
}
