/* SPDX-License-Identifier: MIT */

/*
 * The fake kernel: rings, requests, chains, cancels, overflow, task work, eventfds.
 *
 * A request is taken from the SQ, waits behind its chain's predecessor (LINKED), is to be started by task
 * work (START), is with a driver (RUN), or is over and its last CQE is on the way (OVER). CQEs go through the
 * ring's task work; who may run that, and when, is what the setup flags are about: anybody at any time,
 * any system call of the loop thread (COOP_TASKRUN), or an enter that asks for events (DEFER_TASKRUN).
 */

#include "sim.h"

#include <limits.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#define MAX_RINGS  3
#define MAX_SQ     64
#define MAX_CQ     128
#define MAX_REQS   1024
#define MAX_WAITS  1024
#define MAX_FILES  64

/* What liburing 2.3's header does not know yet. */
#define FEAT_NO_IOWAIT      (1U << 17)
#define ENTER_NO_IOWAIT     (1U << 7)
#define FEAT_REG_REG_RING   (1U << 13)
#define USE_REGISTERED_RING (1U << 31)

/* Restrictions that stand in iou's way. */
enum refusal { REFUSES_POLL = 1, REFUSES_CANCEL = 2, REFUSES_REGISTER = 4 };

/* Kernels by what they know. */
enum { KERNEL_5_10, KERNEL_5_11, KERNEL_5_18, KERNEL_5_19, KERNEL_6_0, KERNEL_6_1, KERNEL_6_15, N_KERNELS };

enum state { LINKED, START, RUN, OVER };
enum ends { SOON, AT_DUE, FED, EVENT };
enum place { ARMED, WQ_QUEUED, WQ_RUNS, WQ_HARD, UNSTOPPABLE };

typedef struct req_t req_t;
struct req_t {
	struct io_uring_sqe sqe;
	req_t *next;         /* in its chain */
	req_t *guard;        /* LINK_TIMEOUT that watches it; or of one, what it watches */
	uint64_t due_ns;
	unsigned index;      /* in ring->active */
	unsigned op;         /* the program's number; 0: iou's own */
	int res;             /* what it will come to */
	int error;           /* found wrong when it was taken */
	unsigned n_shots;    /* CQEs with MORE to come */
	enum state state;
	enum ends ends;
	enum place place;
	bool failed;         /* breaks its chain */
	bool event;          /* its descriptor was written to since it looked */
	bool hit;            /* a cancel got through to it */
	bool notifies;       /* the first CQE of a zero-copy send is out */
	bool strays;         /* a zero-copy send that did not begin, and will notify all the same (6.18) */
};

typedef struct wait_t { /* a CQE on its way */
	req_t *req;
	uint64_t user_data;
	int res;
	unsigned flags;
	unsigned op;
} wait_t;

typedef struct ring_t {
	bool open, disabled;
	bool sq_asleep;      /* SQPOLL's thread */
	bool dropped;        /* a CQE was: the next enter that finds none says so */
	bool has_signalled;  /* see signals_once */
	bool has_files, has_buffers; /* registered by the program */
	int fd, eventfd;
	unsigned flags, registered;
	unsigned refuses; /* enum refusal: what the program's restrictions do not allow */
	unsigned sq_entries, cq_entries;
	/* shared with the program */
	unsigned sq_head, sq_tail, sq_flags, sq_dropped, sq_mask, sq_ring_entries;
	unsigned cq_head, cq_tail, cq_flags, cq_overflow, cq_mask, cq_ring_entries;
	unsigned array[MAX_SQ];
	struct io_uring_sqe sqes[MAX_SQ];
	struct io_uring_cqe cqes[MAX_CQ];
	/* the kernel's */
	unsigned own_sq_head;
	unsigned n_active, n_work, n_overflow;
	unsigned n_idle_enters; /* enters in a row in which nothing happened */
	uint64_t n_events;
	req_t *active[MAX_REQS];
	wait_t work[MAX_WAITS];
	wait_t overflow[MAX_WAITS];
} ring_t;

enum file_kind { EVENTFD, TIMERFD, RINGFD, OPENED };

typedef struct file_t {
	bool open;
	enum file_kind kind;
	uint64_t count;  /* readable where not 0 */
	uint64_t due_ns; /* of a timerfd */
} file_t;

/* Starting an op gave no result yet. */
#define UNDER_WAY INT_MIN

static ring_t rings[MAX_RINGS];
static file_t files[MAX_FILES];
static req_t reqs[MAX_REQS];
static req_t *free_reqs[MAX_REQS];
static unsigned n_free_reqs;
static unsigned n_rings, n_files_used;
static unsigned kernel;
static bool refuse_register, submitting;
static unsigned restrictions; /* of the next ring that is made disabled */
static unsigned n_refused; /* SQEs of iou's own */
static bool leaves_ops; /* a ring was closed with ops in flight, which nothing could end */
static bool strays; /* as 6.18 does: see req_t.strays */
static bool signals_once; /* as 6.12.117 and 6.18 do: of task work that another descriptor's readiness brings about */
static unsigned sq_entries_min;
static uint64_t n_taken, n_wakes, n_cancels;
static unsigned n_entered; /* SQEs that the last enter was to submit, */
static bool entered_short; /* and did not all */
static unsigned storm; /* enters that are still to fail */

/* ---- Files ------------------------------------------------------------------------------------ */

static int file_open(enum file_kind kind)
{
	for (unsigned i = 0; i < MAX_FILES; i++) {
		if (!files[i].open) {
			files[i] = (file_t){ .open = true, .kind = kind, .due_ns = NEVER };
			if (n_files_used <= i)
				n_files_used = i + 1;
			return FD_FAKE + (int)i;
		}
	}
	FAIL("descriptors leak: %d are open", MAX_FILES);
}

static file_t *file_of(int fd)
{
	if (fd < FD_FAKE || fd >= FD_FAKE + MAX_FILES || !files[fd - FD_FAKE].open)
		return NULL;
	return &files[fd - FD_FAKE];
}

static bool file_polls(const file_t *file)
{
	return file && (file->kind == EVENTFD || file->kind == TIMERFD);
}

static void file_write(file_t *file, uint64_t value)
{
	int fd = FD_FAKE + (int)(file - files);

	file->count += value;
	for (unsigned i = 0; i < n_rings; i++)
		for (unsigned j = 0; rings[i].open && j < rings[i].n_active; j++)
			if (rings[i].active[j]->ends == EVENT && rings[i].active[j]->sqe.fd == fd)
				rings[i].active[j]->event = true;
}

/* Timerfds whose time has come. */
static void files_expire(void)
{
	for (unsigned i = 0; i < n_files_used; i++) {
		if (files[i].open && files[i].kind == TIMERFD && files[i].due_ns <= world.now_ns) {
			files[i].due_ns = NEVER;
			file_write(&files[i], 1);
		}
	}
}

/* ---- CQEs ------------------------------------------------------------------------------------- */

/* By task work that another descriptor's readiness brought about, or not. */
static void ring_signal_for(ring_t *ring, bool by_event)
{
	file_t *file = ring->eventfd >= 0 ? file_of(ring->eventfd) : NULL;

	if (!file || __atomic_load_n(&ring->cq_flags, __ATOMIC_SEQ_CST) & IORING_CQ_EVENTFD_DISABLED)
		return;
	if (!by_event || !signals_once || !ring->has_signalled)
		file_write(file, 1);
	ring->has_signalled |= by_event;
}

static void ring_signal(ring_t *ring)
{
	ring_signal_for(ring, false);
}

static unsigned cq_ready(ring_t *ring)
{
	unsigned n = ring->cq_tail - __atomic_load_n(&ring->cq_head, __ATOMIC_RELAXED);

	CHECK(n <= ring->cq_entries, "the CQ's head was moved past its tail, to %u", ring->cq_head);
	return n;
}

static bool cq_full(ring_t *ring)
{
	return ring->n_overflow || cq_ready(ring) == ring->cq_entries;
}

static void cq_put(ring_t *ring, const wait_t *wait)
{
	ring->cqes[ring->cq_tail & ring->cq_mask] =
		(struct io_uring_cqe){ .user_data = wait->user_data, .res = wait->res, .flags = wait->flags };
	__atomic_store_n(&ring->cq_tail, ring->cq_tail + 1, __ATOMIC_RELEASE);
}

static void overflow_flush(ring_t *ring)
{
	unsigned n = 0;

	while (n < ring->n_overflow && cq_ready(ring) < ring->cq_entries)
		cq_put(ring, &ring->overflow[n++]);
	if (!n)
		return;
	memmove(ring->overflow, ring->overflow + n, (ring->n_overflow - n) * sizeof(wait_t));
	ring->n_overflow -= n;
	if (!ring->n_overflow)
		ring->sq_flags &= ~IORING_SQ_CQ_OVERFLOW;
	ring_signal(ring);
}

static void chain_goes_on(ring_t *ring, req_t *req);

static void req_end(ring_t *ring, req_t *req)
{
	req_t *last = ring->active[--ring->n_active];

	ring->active[req->index] = last;
	last->index = req->index;
	free_reqs[n_free_reqs++] = req;
}

/* The CQE becomes one that the program can see. */
static void post(ring_t *ring, const wait_t *wait)
{
	req_t *req = wait->req;

	TRACE("kernel: %s op %u -> %d flags %#x%s", wait->op ? "CQE" : "own CQE", wait->op, wait->res, wait->flags,
	      cq_full(ring) ? " (overflow)" : "");
	if (wait->op)
		model_posted(wait->op, wait->res, wait->flags);
	if (req && req->sqe.flags & IOSQE_CQE_SKIP_SUCCESS && wait->res >= 0) {
		/* none */
	} else if (cq_full(ring) && world.drops && one_in(4)) {
		TRACE("kernel: that CQE is dropped");
		world.drops--;
		ring->cq_overflow++;
		ring->dropped = true;
		model_dropped(wait->op);
	} else if (cq_full(ring)) {
		CHECK(ring->n_overflow < MAX_WAITS, "%d CQEs have overflown", MAX_WAITS);
		ring->overflow[ring->n_overflow++] = *wait;
		ring->sq_flags |= IORING_SQ_CQ_OVERFLOW;
	} else {
		cq_put(ring, wait);
		ring_signal(ring);
	}
	if (req) {
		wait_t notification = { NULL, req->sqe.user_data, 0, IORING_CQE_F_NOTIF, 0 };

		if (req->strays) {
			CHECK(ring->n_work < MAX_WAITS, "%d CQEs wait for task work", MAX_WAITS);
			ring->work[ring->n_work++] = notification;
			if (ring->flags & IORING_SETUP_TASKRUN_FLAG)
				ring->sq_flags |= IORING_SQ_TASKRUN;
		}
		chain_goes_on(ring, req);
		req_end(ring, req);
	}
}

static void work_run(ring_t *ring, bool all)
{
	unsigned n = all || !ring->n_work ? ring->n_work : 1 + pick(ring->n_work);

	for (unsigned i = 0; i < n; i++) {
		wait_t wait = ring->work[i];
		post(ring, &wait);
	}
	/* posting may have added some at the end */
	memmove(ring->work, ring->work + n, (ring->n_work - n) * sizeof(wait_t));
	ring->n_work -= n;
	if (!ring->n_work)
		ring->sq_flags &= ~IORING_SQ_TASKRUN;
}

/* SQPOLL: what io-wq completes does not wait for the task work of the kernel's thread. */
static bool is_unordered(const ring_t *ring, const req_t *req)
{
	return ring->flags & IORING_SETUP_SQPOLL && req->sqe.flags & IOSQE_ASYNC &&
	       req->sqe.opcode == IORING_OP_ASYNC_CANCEL;
}

/* The request has a CQE: the last one, but for those with MORE. */
static void complete(ring_t *ring, req_t *req, int res, unsigned flags, bool now)
{
	bool last = !(flags & IORING_CQE_F_MORE);
	wait_t wait = { last ? req : NULL, req->sqe.user_data, res, flags, req->op };

	if (last) {
		CHECK(req->state != OVER, "the fake kernel ended op %u twice", req->op);
		req->state = OVER;
		if (res < 0)
			req->failed = true;
	}
	world.events++;
	if (is_unordered(ring, req) || (now && submitting && (!ring->n_work || one_in(2)))) { /* before what is still to be run */
		post(ring, &wait);
		return;
	}
	CHECK(ring->n_work < MAX_WAITS, "%d CQEs wait for task work", MAX_WAITS);
	ring->work[ring->n_work++] = wait;
	if (ring->flags & IORING_SETUP_TASKRUN_FLAG)
		ring->sq_flags |= IORING_SQ_TASKRUN;
	if (ring->flags & IORING_SETUP_DEFER_TASKRUN)
		ring_signal_for(ring, req->ends == EVENT);
}

/* ---- Chains ----------------------------------------------------------------------------------- */

static void issue(ring_t *ring, req_t *req);

static void chain_cancel(ring_t *ring, req_t *req)
{
	while (req) {
		req_t *next = req->next;

		req->next = NULL;
		req->strays = req->sqe.opcode == IORING_OP_SEND_ZC && strays;
		complete(ring, req, -ECANCELED, 0, false);
		req = next;
	}
}

static void chain_goes_on(ring_t *ring, req_t *req)
{
	req_t *next = req->next, *guard = req->guard;

	req->next = req->guard = NULL;
	if (guard) {
		guard->guard = NULL;
		if (req->sqe.opcode != IORING_OP_LINK_TIMEOUT && guard->state != OVER)
			complete(ring, guard, -ECANCELED, 0, false);
	}
	if (!next)
		return;
	if (req->failed && !(req->sqe.flags & IOSQE_IO_HARDLINK)) {
		chain_cancel(ring, next);
	} else if (one_in(3)) {
		next->state = START;
	} else {
		issue(ring, next);
	}
}

/* ---- Cancels ---------------------------------------------------------------------------------- */

static bool key_matches(const req_t *req, const req_t *by)
{
	unsigned flags = by->sqe.cancel_flags;

	if (by->sqe.opcode == IORING_OP_TIMEOUT_REMOVE)
		return req->sqe.opcode == IORING_OP_TIMEOUT && req->sqe.user_data == by->sqe.addr;
	if (by->sqe.opcode == IORING_OP_POLL_REMOVE)
		return req->sqe.opcode == IORING_OP_POLL_ADD && req->sqe.user_data == by->sqe.addr;
	if (flags & IORING_ASYNC_CANCEL_ANY)
		return true;
	if (flags & IORING_ASYNC_CANCEL_FD)
		return req->sqe.fd == by->sqe.fd;
	return req->sqe.user_data == by->sqe.addr;
}

static int cancel_one(ring_t *ring, req_t *req, const req_t *by)
{
	static const int interrupted[] = { -EINTR, -512, -513, -514, -516, -ECANCELED };

	if (req->op)
		model_cancel_hits(req->op, by->op == 0);
	switch (req->place) {
	case ARMED:
	case WQ_QUEUED:
		req->hit = true;
		if (req->sqe.opcode == IORING_OP_SEND_ZC) {
			req->res = -ECANCELED;
			req->ends = SOON;
			return 0;
		}
		complete(ring, req, -ECANCELED, 0, false);
		return 0;
	case WQ_RUNS:
		req->hit = true;
		if (req->ends != SOON) {
			req->ends = SOON;
			req->res = interrupted[pick(6)];
		}
		return -EALREADY;
	case WQ_HARD:
		return -EALREADY;
	case UNSTOPPABLE:
		break;
	}
	return -ENOENT;
}

static int cancel(ring_t *ring, const req_t *by)
{
	bool is_cancel = by->sqe.opcode == IORING_OP_ASYNC_CANCEL;
	unsigned flags = is_cancel ? by->sqe.cancel_flags : 0;
	bool all = flags & (IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY);
	int ret = -ENOENT, n = 0;

	if (!by->op) {
		n_cancels++;
		model_cancel_seen(by->sqe.addr);
	}
	if (is_cancel && flags && kernel < KERNEL_5_19)
		return -EINVAL;
	if (flags & ~(IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_FD |
		      (kernel >= KERNEL_6_0 ? IORING_ASYNC_CANCEL_FD_FIXED : 0)))
		return -EINVAL;
	for (unsigned i = 0; i < ring->n_active; i++) {
		req_t *req = ring->active[i];

		if (req == by || req->state != RUN || !key_matches(req, by))
			continue;
		if (all && req->place == WQ_RUNS && one_in(6))
			continue; /* a pass over all can miss what io-wq is just moving */
		ret = cancel_one(ring, req, by);
		n++;
		if (!all)
			return ret;
	}
	if (all && n)
		return one_in(2) ? 0 : n;
	return ret;
}

/* ---- Starting an op --------------------------------------------------------------------------- */

static bool opcode_known(const struct io_uring_sqe *sqe)
{
	switch (sqe->opcode) {
	case IORING_OP_SEND_ZC:
		return kernel >= KERNEL_6_0;
	default:
		return sqe->opcode < IORING_OP_SEND_ZC;
	}
}

static uint64_t time_of(const struct io_uring_sqe *sqe)
{
	const struct __kernel_timespec *ts = (const void *)(uintptr_t)sqe->addr;
	uint64_t ns = (uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec;

	if (ts->tv_sec < 0 || ts->tv_nsec < 0 || (uint64_t)ts->tv_sec > NEVER / 2000000000)
		return ts->tv_sec < 0 ? world.now_ns : NEVER - 1;
	return (sqe->timeout_flags & IORING_TIMEOUT_ABS ? 0 : world.now_ns) + ns;
}

/* How the op ends, from the program's descriptor. */
static void behave(req_t *req, int full)
{
	req->res = full;
	req->place = ARMED;
	req->ends = SOON;
	switch (req->sqe.fd) {
	case FD_SHORT:
		req->res = full > 0 ? full - 1 : full;
		req->failed = full > 0;
		break;
	case FD_TIME:
	case FD_WQ_HARD:
		req->ends = AT_DUE;
		req->due_ns = world.now_ns + 1 + pick(3000);
		req->place = req->sqe.fd == FD_TIME ? ARMED : WQ_HARD;
		break;
	case FD_IDLE:
	case FD_WQ:
	case FD_WQ_QUEUED:
		req->ends = FED;
		req->place = req->sqe.fd == FD_IDLE ? ARMED : req->sqe.fd == FD_WQ ? WQ_RUNS : WQ_QUEUED;
		break;
	}
}

/* What it comes to at once, or UNDER_WAY. */
static int start(ring_t *ring, req_t *req)
{
	struct io_uring_sqe *sqe = &req->sqe;
	const file_t *file = file_of(sqe->fd);

	switch (sqe->opcode) {
	case IORING_OP_NOP:
		behave(req, 0);
		req->ends = SOON;
		req->place = UNSTOPPABLE;
		return one_in(4) ? UNDER_WAY : 0;
	case IORING_OP_TIMEOUT:
		req->ends = AT_DUE;
		req->res = -ETIME;
		req->place = ARMED;
		req->due_ns = time_of(sqe);
		return UNDER_WAY;
	case IORING_OP_ASYNC_CANCEL:
	case IORING_OP_POLL_REMOVE:
	case IORING_OP_TIMEOUT_REMOVE:
		return cancel(ring, req);
	}
	if (sqe->fd == FD_BAD || ((sqe->fd < FD_READY || sqe->fd >= FD_END) && !file))
		return -EBADF;
	switch (sqe->opcode) {
	case IORING_OP_POLL_ADD:
		if (sqe->len && kernel < KERNEL_5_18)
			return -EINVAL; /* multishot: 5.13 */
		behave(req, POLLIN);
		req->failed = false;
		req->n_shots = sqe->len & IORING_POLL_ADD_MULTI ? file ? NEVER & 0xffff : 1 + pick(4) : 0;
		break;
	case IORING_OP_OPENAT:
	case IORING_OP_ACCEPT:
		behave(req, 1);
		req->failed = false;
		break;
	case IORING_OP_RECV:
		behave(req, (int)sqe->len);
		req->n_shots = sqe->ioprio & IORING_RECV_MULTISHOT ? 1 + pick(4) : 0;
		if (req->n_shots && kernel < KERNEL_6_0)
			return -EINVAL;
		break;
	case IORING_OP_READ:
	case IORING_OP_WRITE:
	case IORING_OP_SEND_ZC:
		behave(req, (int)sqe->len);
		break;
	default:
		return -EINVAL;
	}
	if (file) {
		CHECK(file_polls(file), "op on descriptor %d", sqe->fd);
		req->ends = EVENT;
		req->event = file->count > 0;
		return UNDER_WAY;
	}
	return sqe->fd == FD_READY && !req->n_shots && sqe->opcode != IORING_OP_SEND_ZC ? req->res : UNDER_WAY;
}

static int result(req_t *req)
{
	if (req->res < 0)
		return req->res;
	switch (req->sqe.opcode) {
	case IORING_OP_OPENAT:
	case IORING_OP_ACCEPT:
		return file_open(OPENED);
	case IORING_OP_READ:
	case IORING_OP_RECV:
		if (req->sqe.addr)
			memset((void *)(uintptr_t)req->sqe.addr, 0x11, (size_t)req->res);
		break;
	}
	return req->res;
}

static void issue(ring_t *ring, req_t *req)
{
	req_t *guard = req->next;
	int ret;

	if (guard && guard->sqe.opcode == IORING_OP_LINK_TIMEOUT) {
		req->next = guard->next;
		guard->next = NULL;
		req->guard = guard;
		guard->guard = req;
	} else {
		guard = NULL;
	}
	req->state = RUN;
	ret = start(ring, req);
	if (guard) {
		guard->state = RUN;
		guard->ends = AT_DUE;
		guard->place = UNSTOPPABLE;
		guard->due_ns = time_of(&guard->sqe);
	}
	TRACE("kernel: starts op %u, opcode %d fd %d%s", req->op, req->sqe.opcode, req->sqe.fd,
	      ret == UNDER_WAY ? ", under way" : "");
	if (ret == UNDER_WAY)
		return;
	if (ret >= 0 && req->sqe.opcode != IORING_OP_ASYNC_CANCEL)
		ret = result(req);
	complete(ring, req, ret, 0, !(req->sqe.flags & IOSQE_ASYNC) && !one_in(4));
}

/* A request that is under way and can go on does. */
static void req_step(ring_t *ring, req_t *req)
{
	file_t *file = file_of(req->sqe.fd);

	if (req->state == START) {
		issue(ring, req);
		return;
	}
	if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT) {
		int ret = -ENOENT;

		if (req->guard && req->guard->state == RUN)
			ret = cancel_one(ring, req->guard, req);
		complete(ring, req, ret ? ret : -ETIME, 0, false);
		return;
	}
	if (req->ends == EVENT) {
		req->event = false;
		if (!file || !file->count)
			return;
		if (req->sqe.opcode == IORING_OP_READ) {
			memcpy((void *)(uintptr_t)req->sqe.addr, &file->count, sizeof(file->count));
			file->count = 0;
			complete(ring, req, (int)sizeof(file->count), 0, false);
			return;
		}
	}
	if (req->n_shots && !req->hit) {
		if (cq_full(ring) || (req->op && !model_room(req->op))) {
			complete(ring, req, result(req), 0, false);
			return;
		}
		req->n_shots--;
		complete(ring, req, result(req), IORING_CQE_F_MORE, false);
		if (!req->n_shots && req->op) {
			req->res = req->sqe.opcode == IORING_OP_RECV ? one_in(2) ? 0 : -ENOBUFS : req->res;
			req->ends = req->place == WQ_HARD || one_in(2) ? SOON : FED;
		}
		return;
	}
	if (req->sqe.opcode == IORING_OP_SEND_ZC && !req->notifies) {
		req->notifies = true;
		req->place = UNSTOPPABLE;
		complete(ring, req, req->res, IORING_CQE_F_MORE, false);
		req->failed |= req->res < 0;
		req->ends = SOON;
		chain_goes_on(ring, req); /* it does not wait for the notification */
		return;
	}
	if (req->notifies)
		complete(ring, req, 0, IORING_CQE_F_NOTIF, false);
	else
		complete(ring, req, result(req), 0, false);
}

static int submit(ring_t *ring, unsigned to_submit);

/* SQPOLL's thread takes what is published, or goes to sleep. */
static bool sqpoll_step(ring_t *ring)
{
	unsigned n = __atomic_load_n(&ring->sq_tail, __ATOMIC_ACQUIRE) - ring->own_sq_head;

	if (!(ring->flags & IORING_SETUP_SQPOLL) || ring->disabled || ring->sq_asleep)
		return false;
	if (n) {
		submit(ring, n);
		return true;
	}
	if (one_in(4)) {
		ring->sq_asleep = true;
		__atomic_fetch_or(&ring->sq_flags, IORING_SQ_NEED_WAKEUP, __ATOMIC_SEQ_CST);
	}
	return false;
}

static bool can_step(const req_t *req)
{
	if (req->state != RUN)
		return req->state == START;
	return req->ends == SOON || (req->ends == EVENT && req->event) ||
	       (req->ends == AT_DUE && req->due_ns <= world.now_ns);
}

bool kernel_step(void)
{
	files_expire();
	for (unsigned i = 0; i < n_rings; i++) {
		ring_t *ring = &rings[i];
		unsigned from = ring->open && ring->n_active ? pick(ring->n_active) : 0;

		if (ring->open && sqpoll_step(ring))
			return true;
		for (unsigned j = 0; ring->open && j < ring->n_active; j++) {
			req_t *req = ring->active[from + j < ring->n_active ? from + j : from + j - ring->n_active];

			if (can_step(req)) {
				req_step(ring, req);
				if (!(ring->flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)))
					work_run(ring, false);
				return true;
			}
		}
		if (ring->open && ring->n_work && !(ring->flags & IORING_SETUP_DEFER_TASKRUN) &&
		    (!(ring->flags & IORING_SETUP_COOP_TASKRUN) || one_in(4))) {
			work_run(ring, false);
			return true;
		}
	}
	return false;
}

void kernel_entered(void)
{
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && rings[i].flags & IORING_SETUP_COOP_TASKRUN && rings[i].n_work)
			work_run(&rings[i], true);
}

uint64_t kernel_due_ns(void)
{
	uint64_t due_ns = NEVER;

	for (unsigned i = 0; i < n_files_used; i++)
		if (files[i].open && files[i].due_ns < due_ns)
			due_ns = files[i].due_ns;
	for (unsigned i = 0; i < n_rings; i++) {
		for (unsigned j = 0; rings[i].open && j < rings[i].n_active; j++) {
			const req_t *req = rings[i].active[j];

			if (req->state == RUN && req->ends == AT_DUE && req->due_ns < due_ns)
				due_ns = req->due_ns;
		}
	}
	return due_ns;
}

bool kernel_feed(void)
{
	for (unsigned i = 0; i < n_rings; i++) {
		ring_t *ring = &rings[i];
		unsigned from = ring->open && ring->n_active ? pick(ring->n_active) : 0;

		for (unsigned j = 0; ring->open && j < ring->n_active; j++) {
			req_t *req = ring->active[(from + j) % ring->n_active];

			if (req->state == RUN && req->ends == FED && req->op) {
				TRACE("kernel: op %u is fed", req->op);
				req->ends = SOON;
				return true;
			}
		}
	}
	return false;
}

/* ---- The program's questions ------------------------------------------------------------------ */

static const req_t *find_op(unsigned op)
{
	for (unsigned i = 0; i < n_rings; i++)
		for (unsigned j = 0; rings[i].open && j < rings[i].n_active; j++)
			if (rings[i].active[j]->op == op)
				return rings[i].active[j];
	return NULL;
}

bool kernel_holds(unsigned op)
{
	return find_op(op) != NULL;
}

bool kernel_forgot_cancel(unsigned op)
{
	const req_t *req = find_op(op);

	return req && req->state == RUN && req->ends == FED && req->place != UNSTOPPABLE;
}

bool kernel_fences(uint64_t user_data)
{
	for (unsigned i = 0; i < n_rings; i++) {
		for (unsigned j = 0; rings[i].open && j < rings[i].n_active; j++) {
			const req_t *req = rings[i].active[j];

			if (!req->op && req->sqe.opcode == IORING_OP_TIMEOUT && req->sqe.user_data == (user_data | 1))
				return true;
		}
	}
	return false;
}

const char *kernel_where(unsigned op)
{
	static const char *const names[] = { "linked", "to be started", "running", "over" };
	const req_t *req = find_op(op);

	return req ? names[req->state] : "not there";
}

bool kernel_readable(int fd)
{
	const file_t *file = file_of(fd);

	CHECK(file_polls(file), "descriptor %d is not open", fd);
	files_expire();
	kernel_entered();
	return file->count > 0;
}

void kernel_close_of_program(int fd)
{
	file_t *file = file_of(fd);

	CHECK(file && file->kind == OPENED, "a result is descriptor %d, which is not open", fd);
	file->open = false;
}

bool kernel_left_ops(void)
{
	return leaves_ops;
}

unsigned kernel_n_refused(void)
{
	return n_refused;
}

bool kernel_refuses(void)
{
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && rings[i].refuses)
			return true;
	return false;
}

bool kernel_refuses_poll(void)
{
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && rings[i].refuses & REFUSES_POLL)
			return true;
	return false;
}

unsigned kernel_sq_entries_min(void)
{
	return sq_entries_min;
}

unsigned kernel_n_entered(void)
{
	return n_entered < sq_entries_min ? n_entered : sq_entries_min;
}

bool kernel_enter_was_short(void)
{
	return entered_short;
}

uint64_t kernel_n_taken(void)
{
	return n_taken;
}

uint64_t kernel_n_cancels(void)
{
	return n_cancels;
}

uint64_t kernel_n_wakes(void)
{
	return n_wakes;
}

void kernel_reset(void)
{
	n_taken = n_wakes = n_cancels = 0;
	for (unsigned i = 0; i < n_rings; i++)
		rings[i].open = false;
	for (unsigned i = 0; i < n_files_used; i++)
		files[i].open = false;
	n_rings = n_files_used = 0;
	for (; n_free_reqs < MAX_REQS; n_free_reqs++) /* the first time */
		free_reqs[n_free_reqs] = &reqs[n_free_reqs];
	kernel = one_in(100) ? KERNEL_5_10 : one_in(3) ? KERNEL_6_1 : KERNEL_5_11 + pick(N_KERNELS - 1);
	refuse_register = one_in(30);
	restrictions = one_in(25) ? 1 + pick(7) : 0;
	n_refused = 0;
	leaves_ops = false;
	signals_once = one_in(2);
	strays = one_in(2) && !(restrictions & REFUSES_CANCEL); /* what comes behind a stray is a cancel */
	storm = 0;
	sq_entries_min = ~0U;
}

void kernel_check_end(void)
{
	for (unsigned i = 0; i < n_rings; i++)
		CHECK(!rings[i].open, "a ring is left");
	for (unsigned i = 0; i < n_files_used; i++)
		CHECK(!files[i].open || (files[i].kind == OPENED && (model_is_broken() || leaves_ops)),
		      "descriptor %u is left, %s", FD_FAKE + i,
		      files[i].kind == OPENED ? "the result of an op" : "iou's own");
}

/* The program's number for the op that this is an SQE of; 0: one of iou's own. */
static unsigned op_number(const struct io_uring_sqe *sqe)
{
	return (unsigned)sqe->__pad2[0];
}

/* ---- Rings: what iou calls -------------------------------------------------------------------- */

static const unsigned known_flags[N_KERNELS] = {
	[KERNEL_5_10] = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED | IORING_SETUP_ATTACH_WQ,
	[KERNEL_5_11] = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED | IORING_SETUP_ATTACH_WQ |
			IORING_SETUP_SQPOLL,
	[KERNEL_5_18] = IORING_SETUP_SUBMIT_ALL,
	[KERNEL_5_19] = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	[KERNEL_6_0] = IORING_SETUP_SINGLE_ISSUER,
	[KERNEL_6_1] = IORING_SETUP_DEFER_TASKRUN,
	[KERNEL_6_15] = 0,
};

static int setup_error(unsigned entries, const struct io_uring_params *params)
{
	static const int errors[] = { -ENOMEM, -EMFILE, -ENFILE, -EPERM, -ENOSYS };
	unsigned known = 0;

	for (unsigned i = KERNEL_5_11; i <= kernel || i == KERNEL_5_11; i++)
		known |= known_flags[i];
	if (params->flags & ~known)
		return -EINVAL;
	if (params->flags & IORING_SETUP_DEFER_TASKRUN && !(params->flags & IORING_SETUP_SINGLE_ISSUER))
		return -EINVAL;
	if (params->flags & IORING_SETUP_TASKRUN_FLAG &&
	    !(params->flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)))
		return -EINVAL;
	if (params->flags & IORING_SETUP_SQPOLL &&
	    params->flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN))
		return -EINVAL;
	if (!entries || (entries > 32768 && !(params->flags & IORING_SETUP_CLAMP)))
		return -EINVAL;
	if (fault(100))
		return errors[pick(5)];
	return 0;
}

static void ring_map(ring_t *ring, struct io_uring *uring)
{
	memset(uring, 0, sizeof(*uring));
	uring->ring_fd = uring->enter_ring_fd = ring->fd;
	uring->flags = ring->flags;
	uring->sq.khead = &ring->sq_head;
	uring->sq.ktail = &ring->sq_tail;
	uring->sq.kflags = &ring->sq_flags;
	uring->sq.kdropped = &ring->sq_dropped;
	uring->sq.kring_mask = &ring->sq_mask;
	uring->sq.kring_entries = &ring->sq_ring_entries;
	uring->sq.array = ring->array;
	uring->sq.sqes = ring->sqes;
	uring->sq.ring_mask = ring->sq_mask;
	uring->sq.ring_entries = ring->sq_entries;
	uring->sq.sqe_head = uring->sq.sqe_tail = ring->sq_tail;
	uring->cq.khead = &ring->cq_head;
	uring->cq.ktail = &ring->cq_tail;
	uring->cq.kflags = &ring->cq_flags;
	uring->cq.koverflow = &ring->cq_overflow;
	uring->cq.kring_mask = &ring->cq_mask;
	uring->cq.kring_entries = &ring->cq_ring_entries;
	uring->cq.cqes = ring->cqes;
	uring->cq.ring_mask = ring->cq_mask;
	uring->cq.ring_entries = ring->cq_entries;
}

static unsigned power_of_two(unsigned n, unsigned most)
{
	unsigned p = 1;

	while (p < n && p < most)
		p *= 2;
	return p;
}

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *uring, struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *uring, struct io_uring_params *params)
{
	int ret = setup_error(entries, params);
	unsigned base = 0U - pick(8);
	ring_t *ring;
	unsigned at = 0;

	TRACE("kernel: setup of %u entries, flags %#x: %d", entries, params->flags, ret);
	if (ret)
		return ret;
	while (at < n_rings && rings[at].open)
		at++;
	CHECK(at < MAX_RINGS, "rings leak");
	if (at == n_rings)
		n_rings++;
	ring = &rings[at];
	memset(ring, 0, offsetof(ring_t, array));
	memset(ring->sqes, 0, sizeof(ring->sqes));
	for (unsigned i = 0; i < MAX_SQ; i++) /* as liburing does, from 2.3 on */
		ring->array[i] = i;
	ring->open = true;
	ring->fd = file_open(RINGFD);
	ring->eventfd = -1;
	ring->registered = ~0U;
	ring->flags = params->flags;
	ring->disabled = params->flags & IORING_SETUP_R_DISABLED;
	if (ring->disabled && !refuse_register) { /* as if the program had registered them before the first flush */
		ring->refuses = restrictions;
		restrictions = 0;
	}
	ring->sq_entries = ring->sq_ring_entries = power_of_two(entries, MAX_SQ);
	ring->cq_entries = ring->cq_ring_entries =
		power_of_two(params->flags & IORING_SETUP_CQSIZE ? params->cq_entries : 2 * ring->sq_entries, MAX_CQ);
	ring->sq_mask = ring->sq_entries - 1;
	ring->cq_mask = ring->cq_entries - 1;
	/* all four of a real ring start at 0, and come near the wrap after some minutes */
	ring->sq_head = ring->sq_tail = ring->own_sq_head = base;
	ring->cq_head = ring->cq_tail = base - 1 + pick(3);
	ring->n_active = ring->n_work = ring->n_overflow = ring->n_idle_enters = 0;
	if (ring->sq_entries < sq_entries_min)
		sq_entries_min = ring->sq_entries;
	params->sq_entries = ring->sq_entries;
	params->cq_entries = ring->cq_entries;
	params->features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS |
			   IORING_FEAT_FAST_POLL | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_POLL_32BITS;
	if (kernel > KERNEL_5_10)
		params->features |= IORING_FEAT_EXT_ARG | IORING_FEAT_NATIVE_WORKERS;
	if (kernel >= KERNEL_5_18)
		params->features |= IORING_FEAT_RSRC_TAGS | IORING_FEAT_CQE_SKIP | IORING_FEAT_LINKED_FILE;
	if (kernel >= KERNEL_6_15)
		params->features |= FEAT_NO_IOWAIT | FEAT_REG_REG_RING;
	ring_map(ring, uring);
	uring->features = params->features;
	return 0;
}

static ring_t *ring_of(int fd)
{
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && rings[i].fd == fd)
			return &rings[i];
	return NULL;
}

static ring_t *ring_at_index(unsigned index)
{
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && rings[i].registered == index)
			return &rings[i];
	return NULL;
}

void __wrap_io_uring_queue_exit(struct io_uring *uring);
void __wrap_io_uring_queue_exit(struct io_uring *uring)
{
	ring_t *ring = ring_of(uring->ring_fd);
	bool gives_up;

	TRACE("kernel: ring closed");
	CHECK(ring, "queue_exit of a ring that is not open");
	/* Before 5.13 buffers could be unregistered only with nothing in flight. */
	CHECK(!(ring->has_files || (ring->has_buffers && uring->features & IORING_FEAT_RSRC_TAGS)) ||
	      ring->refuses & REFUSES_REGISTER || model_is_broken(),
	      "files or buffers are still registered with a ring that is closed");
	CHECK(!on_other_thread(), "a worker closes the ring");
	gives_up = ring->refuses & REFUSES_CANCEL && ring->refuses & REFUSES_REGISTER;
	leaves_ops |= gives_up && (cq_ready(ring) || ring->n_overflow || ring->n_work);
	for (unsigned i = 0; i < ring->n_active; i++) {
		const req_t *req = ring->active[i];

		leaves_ops |= req->op && gives_up;
		CHECK(!req->op || model_is_broken() || gives_up,
		      "the ring is closed while op %u is %s in the kernel", req->op, kernel_where(req->op));
		CHECK(req->op || req->sqe.opcode != IORING_OP_READ,
		      "the ring is closed while iou's own read is in flight");
	}
	for (unsigned at = ring->own_sq_head; at != __atomic_load_n(&ring->sq_tail, __ATOMIC_RELAXED); at++)
		CHECK(!op_number(&ring->sqes[at & ring->sq_mask]) || model_is_broken(),
		      "the ring is closed with an op published");
	for (unsigned i = 0; i < ring->n_active; i++)
		free_reqs[n_free_reqs++] = ring->active[i];
	ring->open = false;
	file_of(ring->fd)->open = false;
	memset(ring->cqes, 0xee, sizeof(ring->cqes[0]) * ring->cq_entries);
	memset(&ring->sq_head, 0xee, offsetof(ring_t, array) - offsetof(ring_t, sq_head));
	memset(uring, 0xee, sizeof(*uring));
}

int __wrap_io_uring_ring_dontfork(struct io_uring *uring);
int __wrap_io_uring_ring_dontfork(struct io_uring *uring)
{
	CHECK(ring_of(uring->ring_fd), "dontfork of a ring that is not open");
	return fault(100) ? -ENOMEM : 0;
}

static void time_passes(uint64_t until_ns, bool timed);

/* All that is in flight, and wait for those in io-wq. */
static int sync_cancel(ring_t *ring, const struct io_uring_sync_cancel_reg *reg)
{
	const req_t by = { .sqe = { .opcode = IORING_OP_ASYNC_CANCEL, .addr = reg->addr, .cancel_flags = reg->flags } };
	uint64_t until_ns = world.now_ns + (uint64_t)reg->timeout.tv_sec * 1000000000 + (uint64_t)reg->timeout.tv_nsec;
	bool timed = reg->timeout.tv_sec != -1 || reg->timeout.tv_nsec != -1;
	int ret = -ENOENT;

	if (kernel < KERNEL_6_0)
		return -EINVAL;
	for (unsigned n = 0;; n++) {
		unsigned n_running = 0;

		CHECK(n < 100000, "a sync cancel does not end");
		for (unsigned i = 0; i < ring->n_active; i++) {
			req_t *req = ring->active[i];

			if (req->state != RUN || req->place == UNSTOPPABLE || !key_matches(req, &by))
				continue;
			ret = 0;
			n_running += cancel_one(ring, req, &by) == -EALREADY;
		}
		if (!n_running)
			return ret;
		if (timed && world.now_ns >= until_ns)
			return -ETIME;
		time_passes(timed ? until_ns : NEVER, timed);
	}
}

static int register_ring_fd(ring_t *ring, void *arg)
{
	struct io_uring_rsrc_update *update = arg;

	if (kernel < KERNEL_5_18 || one_in(8))
		return -EINVAL;
	CHECK((int)update->data == ring->fd, "another fd is registered");
	ring->registered = pick(16);
	for (unsigned i = 0; i < n_rings; i++)
		while (&rings[i] != ring && rings[i].open && rings[i].registered == ring->registered)
			ring->registered = (ring->registered + 1) % 16;
	update->offset = ring->registered;
	return 1;
}

int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *arg, unsigned n_args);
int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *arg, unsigned n_args)
{
	bool by_index = kernel >= KERNEL_6_15 && opcode & USE_REGISTERED_RING;
	ring_t *ring = by_index ? ring_at_index(fd) : ring_of((int)fd);
	int ret = -EINVAL;

	CHECK(!on_other_thread(), "a worker registers");
	if (!ring)
		return -EBADF;
	if (by_index)
		opcode &= ~USE_REGISTERED_RING;
	if (refuse_register)
		return -EPERM;
	if (!ring->disabled && ring->refuses & REFUSES_REGISTER && opcode != IORING_REGISTER_EVENTFD &&
	    opcode != IORING_UNREGISTER_EVENTFD) /* without that, iou_fd() stays readable */
		return -EACCES;
	kernel_entered();
	sim_point();
	switch (opcode) {
	case IORING_REGISTER_ENABLE_RINGS:
		ret = ring->disabled ? 0 : -EBADFD;
		ring->disabled = false;
		break;
	case IORING_REGISTER_EVENTFD:
	case IORING_REGISTER_EVENTFD_ASYNC:
		if (ring->eventfd >= 0)
			return -EBUSY;
		if (fault(20))
			return -ENOMEM;
		ring->eventfd = *(const int *)arg;
		ring->has_signalled = false;
		CHECK(file_of(ring->eventfd), "the eventfd to register is not open");
		ret = 0;
		break;
	case IORING_UNREGISTER_EVENTFD:
		ret = ring->eventfd >= 0 ? 0 : -ENXIO;
		ring->eventfd = -1;
		break;
	case IORING_REGISTER_FILES:
		ret = ring->has_files ? -EBUSY : 0;
		ring->has_files = true;
		break;
	case IORING_REGISTER_BUFFERS:
		ret = ring->has_buffers ? -EBUSY : 0;
		ring->has_buffers = true;
		break;
	case IORING_UNREGISTER_FILES:
		ret = ring->has_files ? 0 : -ENXIO;
		ring->has_files = false;
		break;
	case IORING_UNREGISTER_BUFFERS:
		ret = ring->has_buffers ? 0 : -ENXIO;
		ring->has_buffers = false;
		break;
	case IORING_REGISTER_SYNC_CANCEL:
		ret = sync_cancel(ring, arg);
		break;
	case IORING_REGISTER_RING_FDS:
		ret = register_ring_fd(ring, (void *)(uintptr_t)arg);
		break;
	case IORING_UNREGISTER_RING_FDS:
		ret = ring->registered != ~0U ? (int)n_args : 0;
		ring->registered = ~0U;
		break;
	}
	TRACE("kernel: register %u: %d", opcode, ret);
	return ret;
}

/* ---- Enter ------------------------------------------------------------------------------------ */

/* An SQE of iou's own has what its kind needs, and no more: the slot was dirty. */
static void check_own(const ring_t *ring, const struct io_uring_sqe *sqe)
{
	struct io_uring_sqe want = { .opcode = sqe->opcode, .user_data = sqe->user_data };
	const struct __kernel_timespec *ts = (const void *)(uintptr_t)sqe->addr;

	switch (sqe->opcode) {
	case IORING_OP_NOP: /* in place of one that must not run */
		break;
	case IORING_OP_POLL_ADD:
		want.fd = sqe->fd;
		want.len = sqe->len & IORING_POLL_ADD_MULTI;
		want.poll32_events = POLLIN;
		CHECK(file_polls(file_of(sqe->fd)), "iou polls descriptor %d", sqe->fd);
		break;
	case IORING_OP_ASYNC_CANCEL:
		want.fd = -1;
		want.addr = sqe->addr;
		want.flags = sqe->flags & IOSQE_ASYNC;
		break;
	case IORING_OP_TIMEOUT: /* comes behind a notification: see is_unordered() */
		want.fd = -1;
		want.addr = sqe->addr;
		want.len = 1;
		CHECK(ring->flags & IORING_SETUP_SQPOLL, "iou starts a timeout on a ring that is not SQPOLL's");
		CHECK(!ts->tv_sec && ts->tv_nsec == 1, "iou's timeout is of %lld ns", (long long)ts->tv_nsec);
		break;
	default:
		FAIL("iou has no use for an SQE of opcode %u", sqe->opcode);
	}
	CHECK(sqe->user_data & 1 || !sqe->user_data, "iou's own SQE, opcode %u, has an op's user_data",
	      sqe->opcode);
	CHECK(!memcmp(&want, sqe, sizeof(want)), "iou's own SQE, opcode %u, holds more than it should, flags %#x",
	      sqe->opcode, sqe->flags);
}

static req_t *req_take(ring_t *ring, const struct io_uring_sqe *sqe)
{
	req_t *req;

	CHECK(n_free_reqs, "%d requests in flight", MAX_REQS);
	req = free_reqs[--n_free_reqs];
	memset(req, 0, sizeof(*req));
	req->sqe = *sqe;
	req->op = op_number(sqe);
	req->index = ring->n_active;
	ring->active[ring->n_active++] = req;
	if (!opcode_known(sqe))
		req->error = -EINVAL;
	if (sqe->flags & IOSQE_CQE_SKIP_SUCCESS && kernel < KERNEL_5_18)
		req->error = -EINVAL;
	if (!req->op)
		check_own(ring, sqe);
	if ((sqe->opcode == IORING_OP_POLL_ADD && ring->refuses & REFUSES_POLL) ||
	    (sqe->opcode == IORING_OP_ASYNC_CANCEL && ring->refuses & REFUSES_CANCEL)) {
		req->error = -EACCES;
		n_refused += !req->op;
		if (!req->op && sqe->opcode == IORING_OP_ASYNC_CANCEL)
			model_cancel_seen(sqe->addr);
	}
	return req;
}

static void chain_start(ring_t *ring, req_t *head, bool bad)
{
	if (!bad) {
		issue(ring, head);
		return;
	}
	while (head) {
		req_t *next = head->next;

		head->next = NULL;
		head->strays = head->sqe.opcode == IORING_OP_SEND_ZC && !head->error && strays;
		complete(ring, head, head->error ? head->error : -ECANCELED, 0, one_in(2));
		head = next;
	}
}

typedef struct chain_t {
	req_t *head, *last;
	bool bad;
} chain_t;

/* The next SQE: true when the submission stops after it. */
static bool take_sqe(ring_t *ring, chain_t *chain)
{
	unsigned index = ring->array[ring->own_sq_head & ring->sq_mask];
	req_t *req;
	bool stop = false;

	CHECK(index < ring->sq_entries, "SQ array holds %u", index);
	req = req_take(ring, &ring->sqes[index]);
	ring->own_sq_head++;
	TRACE("kernel: takes op %u, opcode %u, flags %#x", req->op, req->sqe.opcode, req->sqe.flags);
	if (req->op)
		model_taken(req->op, &req->sqe, chain->last ? chain->last->op : 0, chain->last != NULL);
	else if (chain->last)
		model_own_in_chain(chain->last->op);
	req->state = LINKED;
	if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT &&
	    (!chain->last || chain->last->sqe.opcode == IORING_OP_LINK_TIMEOUT))
		req->error = -EINVAL;
	if (chain->last)
		chain->last->next = req;
	else
		chain->head = req;
	chain->last = req;
	chain->bad |= req->error != 0;
	if (!(req->sqe.flags & (IOSQE_IO_LINK | IOSQE_IO_HARDLINK))) {
		stop = req->error && !(ring->flags & IORING_SETUP_SUBMIT_ALL);
		chain_start(ring, chain->head, chain->bad);
		*chain = (chain_t){ NULL, NULL, false };
	}
	return stop;
}

static int submit(ring_t *ring, unsigned to_submit)
{
	unsigned n = __atomic_load_n(&ring->sq_tail, __ATOMIC_ACQUIRE) - ring->own_sq_head;
	chain_t chain = { NULL, NULL, false };
	unsigned i = 0;
	bool stop = false;

	CHECK(n <= ring->sq_entries, "%u SQEs are published in an SQ of %u", n, ring->sq_entries);
	CHECK(to_submit <= n, "%u SQEs are to be submitted of %u", to_submit, n);
	submitting = true;
	while (i < to_submit && !stop) {
		if (!(ring->flags & IORING_SETUP_SQPOLL) && fault(40))
			break;
		stop = take_sqe(ring, &chain);
		i++;
	}
	if (chain.last) {
		if (i == to_submit)
			model_chain_left_open(chain.last->op);
		else
			model_chain_cut(chain.last->op);
		chain_start(ring, chain.head, chain.bad);
	}
	submitting = false;
	/* Nobody may count on a slot that was taken; but for the last, if it stopped there: was that in a chain? */
	for (unsigned j = i < to_submit; j < i; j++)
		dirty(&ring->sqes[(ring->own_sq_head - 1 - j) & ring->sq_mask], sizeof(*ring->sqes));
	__atomic_store_n(&ring->sq_head, ring->own_sq_head, __ATOMIC_RELEASE);
	world.events += i;
	n_taken += i;
	return i || !to_submit ? (int)i : -EAGAIN;
}

/* One thing that happens while the loop sleeps. */
static void time_passes(uint64_t until_ns, bool timed)
{
	uint64_t due_ns = kernel_due_ns(), job_ns = threads_due_ns();
	unsigned first = pick(4);

	if (first == 0 && poster_start(false))
		return;
	if (first < 2 && threads_step())
		return;
	if (kernel_step() || threads_step())
		return;
	if (!posters_idle()) /* blocked, which only a worker's going on can end */
		FAIL("the posting threads hang");
	model_sleeps(due_ns == NEVER && job_ns == NEVER && until_ns == NEVER && !timed, until_ns);
	if (job_ns < due_ns)
		due_ns = job_ns;
	if (until_ns < due_ns)
		due_ns = until_ns;
	if (due_ns == NEVER) {
		model_rescue();
		return;
	}
	if (due_ns > world.now_ns)
		world.now_ns = due_ns;
	if (one_in(4))
		world.now_ns += pick(2000);
}

static int sleep_in(ring_t *ring, unsigned min_complete, uint64_t until_ns, bool timed)
{
	bool interrupted = false;

	if (min_complete > ring->cq_entries)
		min_complete = ring->cq_entries;
	for (unsigned n = 0;; n++) {
		work_run(ring, one_in(4) ? false : true);
		overflow_flush(ring);
		if (cq_ready(ring) >= min_complete)
			return 0;
		if (ring->dropped)
			return -EBADR;
		if (timed && world.now_ns >= until_ns)
			return cq_ready(ring) ? 0 : -ETIME;
		if (interrupted || fault(200))
			return cq_ready(ring) ? 0 : -EINTR;
		CHECK(n < 100000, "a sleep does not end");
		time_passes(timed ? until_ns : NEVER, timed);
		interrupted = one_in(50) && fault(4);
	}
}

/* Now and then a shortage lasts. */
static int storm_goes_on(int error)
{
	if (storm)
		storm--;
	else if (one_in(6))
		storm = 1 + pick(24);
	world.n_faults++;
	return error;
}

static int enter_events(ring_t *ring, unsigned min_complete, unsigned flags, const void *arg, size_t size)
{
	const struct io_uring_getevents_arg *ext = arg;
	const struct __kernel_timespec *ts = NULL;
	uint64_t until_ns = NEVER;

	if (flags & IORING_ENTER_EXT_ARG && arg) {
		if (size != sizeof(*ext))
			return -EINVAL;
		ts = (const void *)(uintptr_t)ext->ts;
	}
	if (ts) {
		if (ts->tv_sec < 0 || ts->tv_nsec < 0)
			until_ns = world.now_ns;
		else if ((uint64_t)ts->tv_sec < UINT64_C(9000000000))
			until_ns = world.now_ns + (uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec;
	}
	return sleep_in(ring, min_complete, until_ns, ts && until_ns != NEVER);
}

int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned min_complete, unsigned flags, sigset_t *arg,
			   size_t size);
int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned min_complete, unsigned flags, sigset_t *arg,
			   size_t size)
{
	static const int shortages[] = { -EAGAIN, -EBUSY, -ENOMEM };
	ring_t *ring = flags & IORING_ENTER_REGISTERED_RING ? ring_at_index(fd) : ring_of((int)fd);
	int ret = 0, waited;

	CHECK(++sim_n_steps < 100000, "a run does not come to an end");
	sim_point();
	CHECK(!on_other_thread(), "a worker or another thread enters the ring");
	CHECK(ring, "enter on descriptor %u, which is no ring", fd);
	if (flags & ~(IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP | IORING_ENTER_SQ_WAIT | IORING_ENTER_EXT_ARG |
		      IORING_ENTER_REGISTERED_RING | (kernel >= KERNEL_6_15 ? ENTER_NO_IOWAIT : 0)))
		return -EINVAL;
	if (ring->disabled)
		return -EBADFD;
	CHECK(!min_complete || kernel < KERNEL_6_15 || flags & ENTER_NO_IOWAIT, "a sleep counts as waiting for a disk");
	TRACE("kernel: enter, submits %u, waits for %u, flags %#x", to_submit, min_complete, flags);
	n_entered = to_submit;
	entered_short = true;
	kernel_entered();
	if (flags & IORING_ENTER_SQ_WAKEUP) {
		ring->sq_asleep = false;
		__atomic_fetch_and(&ring->sq_flags, ~IORING_SQ_NEED_WAKEUP, __ATOMIC_SEQ_CST);
	}
	if (flags & IORING_ENTER_SQ_WAIT)
		sqpoll_step(ring);
	if (ring->flags & IORING_SETUP_SQPOLL)
		ret = (int)to_submit;
	else if ((to_submit || flags & IORING_ENTER_GETEVENTS) && (storm || fault(to_submit ? 30 : 120)))
		ret = storm_goes_on(shortages[pick(3)]);
	else if (to_submit)
		ret = submit(ring, to_submit);
	if (ret < 0 || ret < (int)to_submit) {
		TRACE("kernel: enter returns %d", ret);
		model_supply_is_short(true);
		return ret;
	}
	entered_short = false;
	if (flags & IORING_ENTER_GETEVENTS) {
		uint64_t before_ns = world.now_ns;

		waited = enter_events(ring, min_complete, flags, arg, size);
		if (!ret) {
			ret = waited;
			ring->dropped &= ret != -EBADR;
		}
		if (before_ns != world.now_ns || waited == -EINTR)
			world.events++;
	}
	model_supply_is_short(false);
	ring->n_idle_enters = ring->n_events == world.events && !cq_ready(ring) ? ring->n_idle_enters + 1 : 0;
	ring->n_events = world.events;
	CHECK(ring->n_idle_enters < 24, "the loop spins: 24 enters in which nothing happened");
	TRACE("kernel: enter returns %d", ret);
	return ret;
}

/* ---- eventfd, close, clock -------------------------------------------------------------------- */

int __wrap_eventfd(unsigned count, int flags);
int __wrap_eventfd(unsigned count, int flags)
{
	int fd;

	CHECK(flags & EFD_CLOEXEC, "an eventfd without EFD_CLOEXEC");
	if (fault(100)) {
		errno = EMFILE;
		return -1;
	}
	fd = file_open(EVENTFD);
	file_of(fd)->count = count;
	TRACE("kernel: eventfd %d", fd);
	return fd;
}

long kernel_write(int fd, const void *data, size_t size)
{
	uint64_t value;
	file_t *file;

	sim_point();
	file = file_of(fd);
	CHECK(file && file->kind == EVENTFD, "write to descriptor %d, which is not open", fd);
	CHECK(size == sizeof(value), "write of %zu bytes to an eventfd", size);
	CHECK(on_other_thread() || world.in_signal || fd == model_bell(), "the loop thread wakes itself");
	memcpy(&value, data, sizeof(value));
	TRACE("thread %u: write to %d", thread_number(), fd);
	world.events++;
	n_wakes += on_other_thread() || world.in_signal;
	file_write(file, value);
	if (!on_other_thread())
		kernel_entered();
	sim_point();
	if (one_in(8)) { /* the counter is full; it is readable all the same */
		errno = EAGAIN;
		return -1;
	}
	return (long)size;
}

int __wrap_eventfd_read(int fd, eventfd_t *value);
int __wrap_eventfd_read(int fd, eventfd_t *value)
{
	file_t *file;

	sim_point();
	file = file_of(fd);
	CHECK(file_polls(file), "eventfd_read on descriptor %d, which is not open", fd);
	thread_cancel_point("eventfd_read");
	TRACE("thread %u: eventfd_read %d: %llu", thread_number(), fd, (unsigned long long)file->count);
	if (!file->count) {
		errno = EAGAIN;
		return -1;
	}
	*value = file->count;
	file->count = 0;
	if (!on_other_thread())
		kernel_entered();
	sim_point();
	return 0;
}

int __wrap_timerfd_create(int clock, int flags);
int __wrap_timerfd_create(int clock, int flags)
{
	CHECK(clock == CLOCK_MONOTONIC && flags & TFD_CLOEXEC, "a timerfd of clock %d, flags %#x", clock, flags);
	if (fault(20)) {
		errno = EMFILE;
		return -1;
	}
	return file_open(TIMERFD);
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new_value, struct itimerspec *old_value);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new_value, struct itimerspec *old_value)
{
	file_t *file = file_of(fd);
	uint64_t ns = (uint64_t)new_value->it_value.tv_sec * 1000000000 + (uint64_t)new_value->it_value.tv_nsec;

	CHECK(file && file->kind == TIMERFD, "timerfd_settime of descriptor %d", fd);
	CHECK(!old_value && !new_value->it_interval.tv_sec && !new_value->it_interval.tv_nsec, "timerfd_settime");
	if (new_value->it_value.tv_sec < 0 || new_value->it_value.tv_nsec < 0 ||
	    new_value->it_value.tv_nsec >= 1000000000) {
		errno = EINVAL;
		return -1;
	}
	if ((uint64_t)new_value->it_value.tv_sec > INT64_MAX / 1000000000)
		ns = NEVER - 1;
	TRACE("kernel: timerfd %d is set to %llu%s", fd, (unsigned long long)ns,
	      flags & TFD_TIMER_ABSTIME ? "" : " from now");
	file->count = 0;
	file->due_ns = !ns ? NEVER : flags & TFD_TIMER_ABSTIME ? ns : world.now_ns + ns;
	kernel_entered();
	return 0;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	file_t *file = file_of(fd);

	if (fd < FD_READY)
		return __real_close(fd);
	CHECK(file, "close of descriptor %d, which is not open", fd);
	CHECK(!ring_of(fd), "close of the ring's descriptor");
	thread_cancel_point("close");
	TRACE("kernel: close %d", fd);
	file->open = false;
	return 0;
}
