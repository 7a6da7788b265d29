/* SPDX-License-Identifier: MIT */
#ifndef IOU_TESTS_SIM_MODEL_H
#define IOU_TESTS_SIM_MODEL_H

/*
 * The model: what the program has asked for, what the kernel was seen to do, and so what iou has to
 * do. model.c checks it where the kernel sees something and where the loop sleeps, callbacks.c in
 * each callback, acts.c at each call's return.
 */

#include "sim.h"

#define MAX_OPS    160
#define MAX_POSTS  512
#define MANY_POSTS 32 /* the rest is for those that are needed to go on */
#define MAX_BHS    4
#define MAX_KEPT   4
#define MAX_CQES   16
#define SLACK_NS   2000  /* from iou's look at the clock to its sleep */
#define LATE_NS    20000 /* that a sleep may be late, */
#define CANCELS_MAX (ROUND_MAX < 8 ? 8 : ROUND_MAX) /* sent at once; a poll may do so three times */
#define SPIN_LATE_NS 100000 /* while workers that spin move the clock */
#define LINKS      (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)

/* ---- The model's state ----------------------------------------------------------------------- */

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
	uint64_t seq, user_data;
	struct io_uring_sqe sqe; /* as it was queued; of a timer and a job too */
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
	unsigned driver; /* in whose callback it was started */
	unsigned overtaken[4]; /* by callbacks of each class since it was due */
	/* environment */
	unsigned char *env;
	unsigned env_size;
	unsigned in_callbacks;
} op_model_t;

typedef struct post_model_t {
	unsigned thread, seq;
	bool begun, accepted, delivered;
	unsigned driver; /* in whose callback it was made */
	unsigned place;
} post_model_t;

typedef struct bh_model_t {
	iou_bh_t *bh;
	unsigned n_calls;   /* calls on it that other threads are in */
	unsigned n_running; /* schedules begun and not yet returned */
	unsigned n_ended;   /* times it ran or was cancelled */
	bool scheduled;     /* must run (once) */
	bool idle;          /* only when nothing else is */
	bool may_run;       /* a schedule began since it last ran */
	unsigned place;     /* in line, among what the loop thread gave; 0: not known */
	/* It was cancelled, and may have kept its place: iou could not reach it behind a gift of
	 * another thread. */
	bool may_stay;
	/* Another thread schedules it. That may come between iou's decision to run it and the run:
	 * then the run does not count for that schedule, and it runs once more. */
	bool by_other, once_more;
} bh_model_t;

/* A callback that runs. What its op says is its own, but in callbacks of the same op that are
 * nested in it. */
typedef struct calling_t {
	struct calling_t *up;
	const iou_op_t *op;
	int result;
	unsigned flags;
} calling_t;

/* An iou_run() or iou_poll() that is active. */
typedef struct driver_t {
	struct driver_t *up;
	unsigned id, depth;
	bool is_run;
	bool nested;       /* a callback of this one called another, */
	bool flushed;      /* or iou_flush() */
	int64_t timeout_ns;
	int n_calls;
	unsigned n_rounds; /* iou_poll() with iou_fd() in use may make two */
	unsigned n_of[4];  /* calls of each class */
	int error;         /* what a callback returned */
	int class;         /* of the last callback, */
	unsigned n_wraps;  /* and how often it was less than that of the one before */
	unsigned last_queued;
} driver_t;

enum { CLASS_TIMER, CLASS_POST, CLASS_ENDED, CLASS_CQE };

typedef struct model_t {
	iou_t *iou;
	iou_config_t config;
	bool freeing;
	driver_t *driver;
	unsigned n_drivers, most_depth;
	calling_t *calling;
	unsigned budget;    /* actions left */
	unsigned n_pending; /* ops */
	uint64_t seq, job_seq, timer_seq, finish_seq;
	uint64_t last_taken_seq, last_start_seq, last_finish_seq;
	unsigned last_queued; /* ring op, or 0 where a chain cannot go on behind it */
	bool boundary;        /* a callback began or ended since */
	bool any_drain;
	bool broken;          /* a CQE was lost: iou_run() says so, iou_free() gives memory up */
	bool short_of_supply; /* the last enter was refused or short */
	int holds;            /* of the loop thread, less unholds begun */
	unsigned poster_holds;
	bool quit_is_set;     /* by the loop thread, for the run that is active or the next; */
	bool others_quit;     /* by another thread, which has returned */
	unsigned quits_of_others, quits_explained;
	unsigned n_runs;      /* iou_run() calls that have ended, but nested ones */
	/* callbacks of each kind, as iou_stats() counts them */
	uint64_t n_timers, n_posts_called, n_jobs, n_cqes;
	int fd;
	bool embedded;        /* the program has a loop of its own */
	int job_error;        /* of a short job whose completion runs */
	/* calls of others that may give the loop something; those not returned */
	unsigned n_gifts, n_giving;
	/* bottom halves deleted or cancelled, which take a place in a round all the same */
	unsigned n_dead;
	enum { ANYTHING, UNHOLD, POST } order; /* to a posting thread */
	unsigned last_post[4], next_post[4], last_place, next_place;
	unsigned n_ops, n_posts, n_kept;
	iou_op_t *kept[MAX_KEPT];
	bh_model_t bhs[MAX_BHS];
	unsigned n_refusals_told; /* -EACCES returned */
	unsigned n_chances; /* to start one more worker that were let go by */
	uint64_t actions; /* allowed ones, as bits */
} model_t;

extern model_t model;
extern op_model_t ops[MAX_OPS];
extern post_model_t posts[MAX_POSTS];
extern uint64_t total_callbacks, total_calls;

static inline bool is_ring(const op_model_t *op)
{
	return op->door == RING || op->door == HANDLER;
}

static inline bool is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

static inline bool sqe_is_zero(const struct io_uring_sqe *sqe)
{
	static const struct io_uring_sqe zero;

	return memcmp(sqe, &zero, sizeof(zero)) == 0;
}

static inline uint64_t time_plus(uint64_t ns, uint64_t more_ns)
{
	return ns + more_ns < ns ? NEVER : ns + more_ns;
}

static inline unsigned number_of(const op_model_t *op)
{
	return (unsigned)(op - ops);
}

/* ---- Calls ----------------------------------------------------------------------------------- */

typedef struct call_t {
	bool may_alloc, may_cancel;
	unsigned n_faults;
} call_t;

call_t call_begin(bool may_alloc);
/* Were there faults in this call? */
bool call_end(call_t before);

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

/* ---- model.c ------------------------------------------------------------------------------- */

bool deadline_may_be_over(const op_model_t *op);
/* Is it known which ops are together in the chain of this first one? Not, where some may have ended
 * in iou. */
bool chain_is_clear(const op_model_t *first);
/* Workers that there may be. */
unsigned workers_most(void);
/* Is something pending that keeps iou_run() going? */
bool is_pending(void);
/* What the loop thread itself knows to be pending. */
bool main_things_pending(void);
/* Nothing is ready, or the run fails. All other threads have come to rest. */
void check_at_rest(bool for_ever, uint64_t until_ns);
/* The result of an op that was asked to end; of a ring op: what the kernel said, or what iou may
 * say itself. */
void check_cancelled(const op_model_t *op, int got);
void check_result(op_model_t *op, int got, unsigned flags);

/* ---- callbacks.c --------------------------------------------------------------------------- */

int on_ring(void *data);
int on_handler(iou_handler_t *handler);
int on_timer(void *data);
int job_main(void *data);
int on_job(void *data);
int on_short_job(void *data);
/* Post from the loop thread (0), a posting thread (1, 2) or a job (3). */
void post_from(unsigned thread, bool needed);
/* The op is not used any more: nobody may write to what it referred to. */
void op_gone(op_model_t *op);
/* Do something with a bottom half. */
void act_bh(void);

/* ---- acts.c -------------------------------------------------------------------------------- */

/* Do one thing at random, while there is budget. */
void act(void);
/* Give the op an environment, from the loop thread or from its job. */
void give_env(op_model_t *op);
/* In its last callback an op may go out again, by any door: false where it does not. */
bool requeue(op_model_t *old);
void cancel_all(void);
int run(void);
int poll_once(int64_t timeout_ns);
void check_stats(void);

#endif
