/* SPDX-License-Identifier: MIT */

/*
 * The fake kernel: rings, requests, chains, cancels, overflow, task work, eventfds.
 *
 * A request is taken from the SQ. Then it waits behind the one before it in its chain (LINKED), is
 * to be started by task work (START), is with a driver (RUN), or is over and its last CQE is on the
 * way (OVER). CQEs go through the ring's task work. The setup flags say who runs that, and when:
 * anybody at any time, any system call of the loop thread (COOP_TASKRUN), or an enter that asks for
 * events (DEFER_TASKRUN).
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
enum {
	KERNEL_5_10, KERNEL_5_11, KERNEL_5_18, KERNEL_5_19, KERNEL_6_0, KERNEL_6_1, KERNEL_6_15,
	N_KERNELS,
};

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
	bool strays;         /* a zero-copy send that did not begin, and will notify (6.18) */
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
	bool signals_late;   /* a CQE can be seen, and the eventfd is signalled next */
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
/* As 6.12.117 and 6.18 do: task work that another descriptor's readiness brings about signals the
 * eventfd once. */
static bool signals_once;
static unsigned sq_entries_min;
static uint64_t n_taken, n_wakes, n_cancels;
static unsigned n_entered; /* SQEs that the last enter was to submit, */
static bool entered_short; /* and did not all */
static unsigned storm; /* enters that are still to fail */

/* ---- Files ----------------------------------------------------------------------------------- */

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

/* ---- CQEs ------------------------------------------------------------------------------------ */

/* By task work that another descriptor's readiness brought about, or not. */
static void ring_signal_for(ring_t *ring, bool by_event)
{
	file_t *file = ring->eventfd >= 0 ? file_of(ring->eventfd) : NULL;

	if (!file ||
	    __atomic_load_n(&ring->cq_flags, __ATOMIC_SEQ_CST) & IORING_CQ_EVENTFD_DISABLED)
		return;
	if (!by_event || !signals_once || !ring->has_signalled)
		file_write(file, 1);
	ring->has_signalled |= by_event;
}

static void ring_signal(ring_t *ring)
{
	ring_signal_for(ring, false);
}

/* Another thread of the kernel's posts the CQE: the program may see it before the signal. */
static void ring_signal_late(ring_t *ring, const req_t *req)
{
	bool by_thread = ring->flags & IORING_SETUP_SQPOLL ||
			 (req && req->sqe.flags & IOSQE_ASYNC &&
			  !(ring->flags & IORING_SETUP_DEFER_TASKRUN));

	if (by_thread && one_in(2))
		ring->signals_late = true;
	else
		ring_signal(ring);
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
	struct io_uring_cqe *cqe = &ring->cqes[ring->cq_tail & ring->cq_mask];

	*cqe = (struct io_uring_cqe){ wait->user_data, wait->res, wait->flags };
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

static void work_add(ring_t *ring, const wait_t *wait)
{
	CHECK(ring->n_work < MAX_WAITS, "%d CQEs wait for task work", MAX_WAITS);
	ring->work[ring->n_work++] = *wait;
	if (ring->flags & IORING_SETUP_TASKRUN_FLAG)
		ring->sq_flags |= IORING_SQ_TASKRUN;
}

/* The CQ has no room for it. */
static void overflow_add(ring_t *ring, const wait_t *wait)
{
	if (world.drops && one_in(4)) {
		TRACE("kernel: that CQE is dropped");
		world.drops--;
		ring->cq_overflow++;
		ring->dropped = true;
		model_dropped(wait->op);
		return;
	}
	CHECK(ring->n_overflow < MAX_WAITS, "%d CQEs have overflown", MAX_WAITS);
	ring->overflow[ring->n_overflow++] = *wait;
	ring->sq_flags |= IORING_SQ_CQ_OVERFLOW;
}

/* The last CQE of the request is posted. */
static void req_over(ring_t *ring, req_t *req)
{
	wait_t notification = { NULL, req->sqe.user_data, 0, IORING_CQE_F_NOTIF, 0 };

	if (req->strays)
		work_add(ring, &notification);
	chain_goes_on(ring, req);
	req_end(ring, req);
}

/* The CQE becomes one that the program can see. */
static void post(ring_t *ring, const wait_t *wait)
{
	req_t *req = wait->req;
	bool skipped = req && req->sqe.flags & IOSQE_CQE_SKIP_SUCCESS && wait->res >= 0;

	TRACE("kernel: %s op %u -> %d flags %#x%s", wait->op ? "CQE" : "own CQE", wait->op,
	      wait->res, wait->flags, cq_full(ring) ? " (overflow)" : "");
	if (wait->op)
		model_posted(wait->op, wait->res, wait->flags);
	if (!skipped && cq_full(ring)) {
		overflow_add(ring, wait);
	} else if (!skipped) {
		cq_put(ring, wait);
		ring_signal_late(ring, req);
	}
	if (req)
		req_over(ring, req);
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

/* The request has a CQE, which is its last one unless it has the flag MORE. */
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
	/* this may be before what task work is still to post */
	if (is_unordered(ring, req) || (now && submitting && (!ring->n_work || one_in(2)))) {
		post(ring, &wait);
		return;
	}
	work_add(ring, &wait);
	if (ring->flags & IORING_SETUP_DEFER_TASKRUN)
		ring_signal_for(ring, req->ends == EVENT);
}

/* ---- Chains ---------------------------------------------------------------------------------- */

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

/* ---- Cancels --------------------------------------------------------------------------------- */

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

static bool cancel_flags_known(unsigned flags)
{
	unsigned known = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_FD;

	if (kernel >= KERNEL_6_0)
		known |= IORING_ASYNC_CANCEL_FD_FIXED;
	return !flags || (kernel >= KERNEL_5_19 && !(flags & ~known));
}

static bool is_target(const req_t *req, const req_t *by)
{
	return req != by && req->state == RUN && key_matches(req, by);
}

static int cancel_first(ring_t *ring, const req_t *by)
{
	for (unsigned i = 0; i < ring->n_active; i++)
		if (is_target(ring->active[i], by))
			return cancel_one(ring, ring->active[i], by);
	return -ENOENT;
}

/* The result is 0 in some kernels, and how many there were in others. */
static int cancel_each(ring_t *ring, const req_t *by)
{
	int n = 0;

	for (unsigned i = 0; i < ring->n_active; i++) {
		req_t *req = ring->active[i];

		if (!is_target(req, by))
			continue;
		if (req->place == WQ_RUNS && one_in(6))
			continue; /* a pass over all can miss what io-wq is just moving */
		cancel_one(ring, req, by);
		n++;
	}
	if (!n)
		return -ENOENT;
	return one_in(2) ? 0 : n;
}

static int cancel(ring_t *ring, const req_t *by)
{
	unsigned flags = by->sqe.opcode == IORING_OP_ASYNC_CANCEL ? by->sqe.cancel_flags : 0;

	if (!by->op) {
		n_cancels++;
		model_cancel_seen(by->sqe.addr);
	}
	if (!cancel_flags_known(flags))
		return -EINVAL;
	if (flags & (IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY))
		return cancel_each(ring, by);
	return cancel_first(ring, by);
}

/* ---- Starting an op -------------------------------------------------------------------------- */

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
	case FD_WQ_HARD:
		req->place = WQ_HARD;
		/* fall through */
	case FD_TIME:
		req->ends = AT_DUE;
		req->due_ns = world.now_ns + 1 + pick(3000);
		break;
	case FD_IDLE:
		req->ends = FED;
		break;
	case FD_WQ:
		req->ends = FED;
		req->place = WQ_RUNS;
		break;
	case FD_WQ_QUEUED:
		req->ends = FED;
		req->place = WQ_QUEUED;
		break;
	}
}

static bool start_poll(req_t *req, bool is_file)
{
	bool is_multishot = req->sqe.len & IORING_POLL_ADD_MULTI;

	if (req->sqe.len && kernel < KERNEL_5_18)
		return false; /* multishot came with 5.13 */
	behave(req, POLLIN);
	req->failed = false;
	if (is_multishot)
		req->n_shots = is_file ? 0xffff : 1 + pick(4);
	return true;
}

static bool start_recv(req_t *req)
{
	behave(req, (int)req->sqe.len);
	if (req->sqe.ioprio & IORING_RECV_MULTISHOT)
		req->n_shots = 1 + pick(4);
	return !req->n_shots || kernel >= KERNEL_6_0;
}

/* False where the kernel knows no such op. */
static bool start_transfer(req_t *req, bool is_file)
{
	switch (req->sqe.opcode) {
	case IORING_OP_POLL_ADD:
		return start_poll(req, is_file);
	case IORING_OP_OPENAT:
	case IORING_OP_ACCEPT:
		behave(req, 1);
		req->failed = false;
		return true;
	case IORING_OP_RECV:
		return start_recv(req);
	case IORING_OP_READ:
	case IORING_OP_WRITE:
	case IORING_OP_SEND_ZC:
		behave(req, (int)req->sqe.len);
		return true;
	}
	return false;
}

/* An op on a descriptor: the program's, or one of iou's files. */
static int start_on_fd(req_t *req)
{
	int fd = req->sqe.fd;
	const file_t *file = file_of(fd);

	if (fd == FD_BAD || ((fd < FD_READY || fd >= FD_END) && !file))
		return -EBADF;
	if (!start_transfer(req, file != NULL))
		return -EINVAL;
	if (file) {
		CHECK(file_polls(file), "op on descriptor %d", fd);
		req->ends = EVENT;
		req->event = file->count > 0;
		return UNDER_WAY;
	}
	if (fd == FD_READY && !req->n_shots && req->sqe.opcode != IORING_OP_SEND_ZC)
		return req->res;
	return UNDER_WAY;
}

/* What it comes to at once, or UNDER_WAY. */
static int start(ring_t *ring, req_t *req)
{
	switch (req->sqe.opcode) {
	case IORING_OP_NOP:
		behave(req, 0);
		req->ends = SOON;
		req->place = UNSTOPPABLE;
		return one_in(4) ? UNDER_WAY : 0;
	case IORING_OP_TIMEOUT:
		req->ends = AT_DUE;
		req->res = -ETIME;
		req->place = ARMED;
		req->due_ns = time_of(&req->sqe);
		return UNDER_WAY;
	case IORING_OP_ASYNC_CANCEL:
	case IORING_OP_POLL_REMOVE:
	case IORING_OP_TIMEOUT_REMOVE:
		return cancel(ring, req);
	}
	return start_on_fd(req);
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

/* A link timeout behind the request does not wait for it, but watches it. */
static req_t *take_guard(req_t *req)
{
	req_t *guard = req->next;

	if (!guard || guard->sqe.opcode != IORING_OP_LINK_TIMEOUT)
		return NULL;
	req->next = guard->next;
	guard->next = NULL;
	req->guard = guard;
	guard->guard = req;
	return guard;
}

static void issue(ring_t *ring, req_t *req)
{
	req_t *guard = take_guard(req);
	int ret;

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

static void link_timeout_step(ring_t *ring, req_t *req)
{
	int ret = -ENOENT;

	if (req->guard && req->guard->state == RUN)
		ret = cancel_one(ring, req->guard, req);
	complete(ring, req, ret ? ret : -ETIME, 0, false);
}

/* Its descriptor was written to. Returns true where a poll has that to tell. */
static bool event_step(ring_t *ring, req_t *req)
{
	file_t *file = file_of(req->sqe.fd);

	req->event = false;
	if (!file || !file->count)
		return false;
	if (req->sqe.opcode != IORING_OP_READ)
		return true;
	memcpy((void *)(uintptr_t)req->sqe.addr, &file->count, sizeof(file->count));
	file->count = 0;
	complete(ring, req, (int)sizeof(file->count), 0, false);
	return false;
}

/* One more CQE of a multishot op: with MORE, unless there is no room for that. */
static void shot_step(ring_t *ring, req_t *req)
{
	if (cq_full(ring) || (req->op && !model_room(req->op))) {
		complete(ring, req, result(req), 0, false);
		return;
	}
	req->n_shots--;
	complete(ring, req, result(req), IORING_CQE_F_MORE, false);
	if (!req->n_shots && req->op) {
		if (req->sqe.opcode == IORING_OP_RECV)
			req->res = one_in(2) ? 0 : -ENOBUFS;
		req->ends = req->place == WQ_HARD || one_in(2) ? SOON : FED;
	}
}

/* A zero-copy send is done, and its notification is to come. Its chain does not wait for that. */
static void send_step(ring_t *ring, req_t *req)
{
	req->notifies = true;
	req->place = UNSTOPPABLE;
	complete(ring, req, req->res, IORING_CQE_F_MORE, false);
	req->failed |= req->res < 0;
	req->ends = SOON;
	chain_goes_on(ring, req);
}

/* The request goes on: can_step() says that it can. */
static void req_step(ring_t *ring, req_t *req)
{
	if (req->state == START)
		issue(ring, req);
	else if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT)
		link_timeout_step(ring, req);
	else if (req->ends == EVENT && !event_step(ring, req))
		return;
	else if (req->n_shots && !req->hit)
		shot_step(ring, req);
	else if (req->sqe.opcode == IORING_OP_SEND_ZC && !req->notifies)
		send_step(ring, req);
	else if (req->notifies)
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

/* The requests in a circle that begins at `from`. */
static req_t *active_from(const ring_t *ring, unsigned from, unsigned i)
{
	unsigned at = from + i;

	return ring->active[at < ring->n_active ? at : at - ring->n_active];
}

/* Task work runs without the loop thread's doing, at any time or (COOP_TASKRUN) now and then. */
static bool work_runs_by_itself(const ring_t *ring)
{
	if (!ring->n_work || ring->flags & IORING_SETUP_DEFER_TASKRUN)
		return false;
	return !(ring->flags & IORING_SETUP_COOP_TASKRUN) || one_in(4);
}

static bool ring_step(ring_t *ring)
{
	unsigned from = ring->n_active ? pick(ring->n_active) : 0;

	if (ring->signals_late) {
		ring->signals_late = false;
		ring_signal(ring);
		return true;
	}
	if (sqpoll_step(ring))
		return true;
	for (unsigned i = 0; i < ring->n_active; i++) {
		req_t *req = active_from(ring, from, i);

		if (can_step(req)) {
			req_step(ring, req);
			if (!(ring->flags &
			      (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)))
				work_run(ring, false);
			return true;
		}
	}
	if (!work_runs_by_itself(ring))
		return false;
	work_run(ring, false);
	return true;
}

bool kernel_step(void)
{
	files_expire();
	for (unsigned i = 0; i < n_rings; i++)
		if (rings[i].open && ring_step(&rings[i]))
			return true;
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
			req_t *req = active_from(ring, from, j);

			if (req->state == RUN && req->ends == FED && req->op) {
				TRACE("kernel: op %u is fed", req->op);
				req->ends = SOON;
				return true;
			}
		}
	}
	return false;
}

/* ---- The program's questions ----------------------------------------------------------------- */

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

			if (!req->op && req->sqe.opcode == IORING_OP_TIMEOUT &&
			    req->sqe.user_data == (user_data | 1))
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
	if (one_in(100))
		kernel = KERNEL_5_10;
	else
		kernel = one_in(3) ? KERNEL_6_1 : KERNEL_5_11 + pick(N_KERNELS - 1);
	refuse_register = one_in(30);
	restrictions = one_in(25) ? 1 + pick(7) : 0;
	n_refused = 0;
	leaves_ops = false;
	signals_once = one_in(2);
	/* what comes behind a stray is a cancel */
	strays = one_in(2) && !(restrictions & REFUSES_CANCEL);
	storm = 0;
	sq_entries_min = ~0U;
}

void kernel_check_end(void)
{
	for (unsigned i = 0; i < n_rings; i++)
		CHECK(!rings[i].open, "a ring is left");
	for (unsigned i = 0; i < n_files_used; i++)
		CHECK(!files[i].open ||
			      (files[i].kind == OPENED && (model_is_broken() || leaves_ops)),
		      "descriptor %u is left, %s", FD_FAKE + i,
		      files[i].kind == OPENED ? "the result of an op" : "iou's own");
}

/* The program's number for the op that this is an SQE of; 0: one of iou's own. */
static unsigned op_number(const struct io_uring_sqe *sqe)
{
	return (unsigned)sqe->__pad2[0];
}

/* ---- Rings: what iou calls ------------------------------------------------------------------- */

/* What each kernel knows beyond the one before. */
static const unsigned known_flags[N_KERNELS] = {
	[KERNEL_5_11] = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED |
			IORING_SETUP_ATTACH_WQ | IORING_SETUP_SQPOLL,
	[KERNEL_5_18] = IORING_SETUP_SUBMIT_ALL,
	[KERNEL_5_19] = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	[KERNEL_6_0] = IORING_SETUP_SINGLE_ISSUER,
	[KERNEL_6_1] = IORING_SETUP_DEFER_TASKRUN,
	[KERNEL_6_15] = 0,
};

/* Does the kernel know these setup flags, and do they go together? */
static bool setup_flags_fit(unsigned flags)
{
	unsigned known = known_flags[KERNEL_5_11];

	for (unsigned i = KERNEL_5_18; i <= kernel; i++)
		known |= known_flags[i];
	if (flags & ~known)
		return false;
	if (flags & IORING_SETUP_DEFER_TASKRUN && !(flags & IORING_SETUP_SINGLE_ISSUER))
		return false;
	if (flags & IORING_SETUP_TASKRUN_FLAG &&
	    !(flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)))
		return false;
	return !(flags & IORING_SETUP_SQPOLL) ||
	       !(flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			  IORING_SETUP_DEFER_TASKRUN));
}

static int setup_error(unsigned entries, const struct io_uring_params *params)
{
	static const int errors[] = { -ENOMEM, -EMFILE, -ENFILE, -EPERM, -ENOSYS };

	if (!setup_flags_fit(params->flags))
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

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *uring,
				      struct io_uring_params *params);
static ring_t *ring_free_slot(void)
{
	unsigned at = 0;

	while (at < n_rings && rings[at].open)
		at++;
	CHECK(at < MAX_RINGS, "rings leak");
	if (at == n_rings)
		n_rings++;
	return &rings[at];
}

/* The indices of a real ring start at 0, and come near the wrap after some minutes. These begin
 * there. */
static void ring_size(ring_t *ring, unsigned entries, const struct io_uring_params *params,
		      unsigned base)
{
	unsigned cq_entries;

	ring->sq_entries = ring->sq_ring_entries = power_of_two(entries, MAX_SQ);
	cq_entries =
		params->flags & IORING_SETUP_CQSIZE ? params->cq_entries : 2 * ring->sq_entries;
	ring->cq_entries = ring->cq_ring_entries = power_of_two(cq_entries, MAX_CQ);
	ring->sq_mask = ring->sq_entries - 1;
	ring->cq_mask = ring->cq_entries - 1;
	ring->sq_head = ring->sq_tail = ring->own_sq_head = base;
	ring->cq_head = ring->cq_tail = base - 1 + pick(3);
	if (ring->sq_entries < sq_entries_min)
		sq_entries_min = ring->sq_entries;
}

static void ring_open(ring_t *ring, unsigned flags)
{
	memset(ring, 0, offsetof(ring_t, array));
	memset(ring->sqes, 0, sizeof(ring->sqes));
	for (unsigned i = 0; i < MAX_SQ; i++) /* as liburing does, from 2.3 on */
		ring->array[i] = i;
	ring->open = true;
	ring->fd = file_open(RINGFD);
	ring->eventfd = -1;
	ring->registered = ~0U;
	ring->flags = flags;
	ring->disabled = flags & IORING_SETUP_R_DISABLED;
	if (ring->disabled && !refuse_register) { /* as if the program had registered them by now */
		ring->refuses = restrictions;
		restrictions = 0;
	}
	ring->n_active = ring->n_work = ring->n_overflow = ring->n_idle_enters = 0;
}

static unsigned features(void)
{
	unsigned known = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS |
			 IORING_FEAT_FAST_POLL | IORING_FEAT_SUBMIT_STABLE |
			 IORING_FEAT_POLL_32BITS;

	if (kernel > KERNEL_5_10)
		known |= IORING_FEAT_EXT_ARG | IORING_FEAT_NATIVE_WORKERS;
	if (kernel >= KERNEL_5_18)
		known |= IORING_FEAT_RSRC_TAGS | IORING_FEAT_CQE_SKIP | IORING_FEAT_LINKED_FILE;
	if (kernel >= KERNEL_6_15)
		known |= FEAT_NO_IOWAIT | FEAT_REG_REG_RING;
	return known;
}

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *uring,
				      struct io_uring_params *params)
{
	int ret = setup_error(entries, params);
	unsigned base = 0U - pick(8);
	ring_t *ring;

	TRACE("kernel: setup of %u entries, flags %#x: %d", entries, params->flags, ret);
	if (ret)
		return ret;
	ring = ring_free_slot();
	ring_open(ring, params->flags);
	ring_size(ring, entries, params, base);
	params->sq_entries = ring->sq_entries;
	params->cq_entries = ring->cq_entries;
	params->features = features();
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
/* What may be in flight, published or registered when the ring is closed? */
static void check_closing(const ring_t *ring, bool gives_up, unsigned ring_features)
{
	/* before 5.13 buffers could be unregistered only with nothing in flight */
	bool keeps = ring->has_files ||
		     (ring->has_buffers && ring_features & IORING_FEAT_RSRC_TAGS);

	CHECK(!keeps || ring->refuses & REFUSES_REGISTER || model_is_broken(),
	      "files or buffers are still registered with a ring that is closed");
	for (unsigned i = 0; i < ring->n_active; i++) {
		const req_t *req = ring->active[i];

		CHECK(!req->op || model_is_broken() || gives_up,
		      "the ring is closed while op %u is %s in the kernel", req->op,
		      kernel_where(req->op));
		CHECK(req->op || req->sqe.opcode != IORING_OP_READ,
		      "the ring is closed while iou's own read is in flight");
	}
	for (unsigned at = ring->own_sq_head;
	     at != __atomic_load_n(&ring->sq_tail, __ATOMIC_RELAXED); at++)
		CHECK(!op_number(&ring->sqes[at & ring->sq_mask]) || model_is_broken(),
		      "the ring is closed with an op published");
}

static bool has_ops_left(ring_t *ring)
{
	for (unsigned i = 0; i < ring->n_active; i++)
		if (ring->active[i]->op)
			return true;
	return cq_ready(ring) || ring->n_overflow || ring->n_work;
}

void __wrap_io_uring_queue_exit(struct io_uring *uring)
{
	ring_t *ring = ring_of(uring->ring_fd);
	bool gives_up;

	TRACE("kernel: ring closed");
	CHECK(ring, "queue_exit of a ring that is not open");
	CHECK(!on_other_thread(), "a worker closes the ring");
	gives_up = ring->refuses & REFUSES_CANCEL && ring->refuses & REFUSES_REGISTER;
	leaves_ops |= gives_up && has_ops_left(ring);
	check_closing(ring, gives_up, uring->features);
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

static void time_passes(uint64_t until_ns);

/* Cancel all that match, and count those that go on. *found says whether there was any. */
static unsigned sync_cancel_pass(ring_t *ring, const req_t *by, bool *found)
{
	unsigned n_running = 0;

	for (unsigned i = 0; i < ring->n_active; i++) {
		req_t *req = ring->active[i];

		if (req->state != RUN || req->place == UNSTOPPABLE || !key_matches(req, by))
			continue;
		*found = true;
		n_running += cancel_one(ring, req, by) == -EALREADY;
	}
	return n_running;
}

/* All that is in flight, and wait for those in io-wq. */
static int sync_cancel(ring_t *ring, const struct io_uring_sync_cancel_reg *reg)
{
	const req_t by = { .sqe = { .opcode = IORING_OP_ASYNC_CANCEL, .addr = reg->addr,
				    .cancel_flags = reg->flags } };
	uint64_t until_ns = NEVER;
	bool found = false;

	if (kernel < KERNEL_6_0)
		return -EINVAL;
	if (reg->timeout.tv_sec != -1 || reg->timeout.tv_nsec != -1)
		until_ns = world.now_ns + (uint64_t)reg->timeout.tv_sec * 1000000000 +
			   (uint64_t)reg->timeout.tv_nsec;
	for (unsigned n = 0; sync_cancel_pass(ring, &by, &found); n++) {
		CHECK(n < 100000, "a sync cancel does not end");
		if (world.now_ns >= until_ns)
			return -ETIME;
		time_passes(until_ns);
	}
	return found ? 0 : -ENOENT;
}

static int register_ring_fd(ring_t *ring, void *arg)
{
	struct io_uring_rsrc_update *update = arg;

	if (kernel < KERNEL_5_18 || one_in(8))
		return -EINVAL;
	CHECK((int)update->data == ring->fd, "another fd is registered");
	ring->registered = pick(16);
	for (unsigned i = 0; i < n_rings; i++)
		while (&rings[i] != ring && rings[i].open &&
		       rings[i].registered == ring->registered)
			ring->registered = (ring->registered + 1) % 16;
	update->offset = ring->registered;
	return 1;
}

int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *arg, unsigned n_args);
static int register_eventfd(ring_t *ring, const int *fd)
{
	if (ring->eventfd >= 0)
		return -EBUSY;
	if (fault(20))
		return -ENOMEM;
	ring->eventfd = *fd;
	ring->has_signalled = false;
	CHECK(file_of(ring->eventfd), "the eventfd to register is not open");
	return 0;
}

static int unregister_eventfd(ring_t *ring)
{
	bool had = ring->eventfd >= 0;

	ring->eventfd = -1;
	return had ? 0 : -ENXIO;
}

static int register_once(bool *has)
{
	bool had = *has;

	*has = true;
	return had ? -EBUSY : 0;
}

static int unregister(bool *has)
{
	bool had = *has;

	*has = false;
	return had ? 0 : -ENXIO;
}

static int enable_rings(ring_t *ring)
{
	bool was_disabled = ring->disabled;

	ring->disabled = false;
	return was_disabled ? 0 : -EBADFD;
}

static int unregister_ring_fd(ring_t *ring, unsigned n_args)
{
	bool had = ring->registered != ~0U;

	ring->registered = ~0U;
	return had ? (int)n_args : 0;
}

/* Do the program's restrictions refuse it? They leave iou the eventfd, which iou_fd() needs. */
static bool register_is_refused(const ring_t *ring, unsigned opcode)
{
	return !ring->disabled && ring->refuses & REFUSES_REGISTER &&
	       opcode != IORING_REGISTER_EVENTFD && opcode != IORING_UNREGISTER_EVENTFD;
}

static int register_now(ring_t *ring, unsigned opcode, const void *arg, unsigned n_args)
{
	switch (opcode) {
	case IORING_REGISTER_ENABLE_RINGS:
		return enable_rings(ring);
	case IORING_REGISTER_EVENTFD:
	case IORING_REGISTER_EVENTFD_ASYNC:
		return register_eventfd(ring, arg);
	case IORING_UNREGISTER_EVENTFD:
		return unregister_eventfd(ring);
	case IORING_REGISTER_FILES:
		return register_once(&ring->has_files);
	case IORING_REGISTER_BUFFERS:
		return register_once(&ring->has_buffers);
	case IORING_UNREGISTER_FILES:
		return unregister(&ring->has_files);
	case IORING_UNREGISTER_BUFFERS:
		return unregister(&ring->has_buffers);
	case IORING_REGISTER_SYNC_CANCEL:
		return sync_cancel(ring, arg);
	case IORING_REGISTER_RING_FDS:
		return register_ring_fd(ring, (void *)(uintptr_t)arg);
	case IORING_UNREGISTER_RING_FDS:
		return unregister_ring_fd(ring, n_args);
	}
	return -EINVAL;
}

int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *arg, unsigned n_args)
{
	bool by_index = kernel >= KERNEL_6_15 && opcode & USE_REGISTERED_RING;
	ring_t *ring = by_index ? ring_at_index(fd) : ring_of((int)fd);
	int ret;

	CHECK(!on_other_thread(), "a worker registers");
	if (!ring)
		return -EBADF;
	if (by_index)
		opcode &= ~USE_REGISTERED_RING;
	if (refuse_register)
		return -EPERM;
	if (register_is_refused(ring, opcode))
		return -EACCES;
	kernel_entered();
	sim_point();
	ret = register_now(ring, opcode, arg, n_args);
	TRACE("kernel: register %u: %d", opcode, ret);
	return ret;
}

/* ---- Enter ----------------------------------------------------------------------------------- */

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
		CHECK(ring->flags & IORING_SETUP_SQPOLL,
		      "iou starts a timeout on a ring that is not SQPOLL's");
		CHECK(!ts->tv_sec && ts->tv_nsec == 1, "iou's timeout is of %lld ns",
		      (long long)ts->tv_nsec);
		break;
	default:
		FAIL("iou has no use for an SQE of opcode %u", sqe->opcode);
	}
	CHECK(sqe->user_data & 1 || !sqe->user_data,
	      "iou's own SQE, opcode %u, has an op's user_data", sqe->opcode);
	CHECK(!memcmp(&want, sqe, sizeof(want)),
	      "iou's own SQE, opcode %u, holds more than it should, flags %#x", sqe->opcode,
	      sqe->flags);
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

/* Where is it in its chain? */
static void chain_add(chain_t *chain, req_t *req)
{
	const req_t *last = chain->last;

	if (req->op)
		model_taken(req->op, &req->sqe, last ? last->op : 0, last != NULL);
	else if (last)
		model_own_in_chain(last->op);
	req->state = LINKED;
	if (req->sqe.opcode == IORING_OP_LINK_TIMEOUT &&
	    (!last || last->sqe.opcode == IORING_OP_LINK_TIMEOUT))
		req->error = -EINVAL;
	if (chain->last)
		chain->last->next = req;
	else
		chain->head = req;
	chain->last = req;
	chain->bad |= req->error != 0;
}

/* The next SQE: true when the submission stops after it. */
static bool take_sqe(ring_t *ring, chain_t *chain)
{
	unsigned index = ring->array[ring->own_sq_head & ring->sq_mask];
	req_t *req;
	bool stop;

	CHECK(index < ring->sq_entries, "SQ array holds %u", index);
	req = req_take(ring, &ring->sqes[index]);
	ring->own_sq_head++;
	TRACE("kernel: takes op %u, opcode %u, flags %#x", req->op, req->sqe.opcode,
	      req->sqe.flags);
	chain_add(chain, req);
	if (req->sqe.flags & (IOSQE_IO_LINK | IOSQE_IO_HARDLINK))
		return false;
	stop = req->error && !(ring->flags & IORING_SETUP_SUBMIT_ALL);
	chain_start(ring, chain->head, chain->bad);
	*chain = (chain_t){ NULL, NULL, false };
	return stop;
}

/* The submission ends within a chain: it is done without the rest. */
static void chain_end(ring_t *ring, chain_t *chain, bool is_cut)
{
	if (is_cut)
		model_chain_cut(chain->last->op);
	else
		model_chain_left_open(chain->last->op);
	chain_start(ring, chain->head, chain->bad);
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
	if (chain.last)
		chain_end(ring, &chain, i < to_submit);
	submitting = false;
	/* Nobody may count on a slot that was taken, but on the last one where it stopped there:
	 * iou looks whether that was in a chain. */
	for (unsigned j = i < to_submit; j < i; j++)
		dirty(&ring->sqes[(ring->own_sq_head - 1 - j) & ring->sq_mask],
		      sizeof(*ring->sqes));
	__atomic_store_n(&ring->sq_head, ring->own_sq_head, __ATOMIC_RELEASE);
	world.events += i;
	n_taken += i;
	return i || !to_submit ? (int)i : -EAGAIN;
}

/* Something that can happen without a wait does: false where nothing can. */
static bool something_happens(void)
{
	unsigned first = pick(4);

	if (first == 0 && poster_start(false))
		return true;
	if (first < 2 && threads_step())
		return true;
	return kernel_step() || threads_step();
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

/* One thing that happens while the loop sleeps, until then at most. */
static void time_passes(uint64_t until_ns)
{
	uint64_t due_ns = earlier(kernel_due_ns(), threads_due_ns());

	if (something_happens())
		return;
	if (!posters_idle()) /* blocked, which only a worker's going on can end */
		FAIL("the posting threads hang");
	due_ns = earlier(due_ns, until_ns);
	model_sleeps(due_ns == NEVER, until_ns);
	if (due_ns == NEVER) {
		model_rescue();
		return;
	}
	if (due_ns > world.now_ns)
		world.now_ns = due_ns;
	if (one_in(4))
		world.now_ns += pick(2000);
}

/* What the sleep ends with, or UNDER_WAY. */
static int sleep_end(const ring_t *ring, unsigned n_ready, unsigned min_complete, uint64_t until_ns,
		     bool interrupted)
{
	if (n_ready >= min_complete)
		return 0;
	if (ring->dropped)
		return -EBADR;
	if (world.now_ns >= until_ns)
		return n_ready ? 0 : -ETIME;
	if (interrupted || fault(200))
		return n_ready ? 0 : -EINTR;
	return UNDER_WAY;
}

static int sleep_in(ring_t *ring, unsigned min_complete, uint64_t until_ns)
{
	bool interrupted = false;

	if (min_complete > ring->cq_entries)
		min_complete = ring->cq_entries;
	for (unsigned n = 0;; n++) {
		int ret;

		work_run(ring, !one_in(4));
		overflow_flush(ring);
		ret = sleep_end(ring, cq_ready(ring), min_complete, until_ns, interrupted);
		if (ret != UNDER_WAY)
			return ret;
		CHECK(n < 100000, "a sleep does not end");
		time_passes(until_ns);
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

static uint64_t time_after(const struct __kernel_timespec *ts)
{
	if (ts->tv_sec < 0 || ts->tv_nsec < 0)
		return world.now_ns;
	if ((uint64_t)ts->tv_sec >= UINT64_C(9000000000))
		return NEVER;
	return world.now_ns + (uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec;
}

static int enter_events(ring_t *ring, unsigned min_complete, unsigned flags, const void *arg,
			size_t size)
{
	const struct io_uring_getevents_arg *ext = arg;
	const struct __kernel_timespec *ts = NULL;

	if (flags & IORING_ENTER_EXT_ARG && arg) {
		if (size != sizeof(*ext))
			return -EINVAL;
		ts = (const void *)(uintptr_t)ext->ts;
	}
	return sleep_in(ring, min_complete, ts ? time_after(ts) : NEVER);
}

int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned min_complete, unsigned flags,
			   sigset_t *arg, size_t size);
/* How many of them are taken, or an error. */
static int enter_submit(ring_t *ring, unsigned to_submit, unsigned flags)
{
	static const int shortages[] = { -EAGAIN, -EBUSY, -ENOMEM };

	if (flags & IORING_ENTER_SQ_WAKEUP) {
		ring->sq_asleep = false;
		__atomic_fetch_and(&ring->sq_flags, ~IORING_SQ_NEED_WAKEUP, __ATOMIC_SEQ_CST);
	}
	if (flags & IORING_ENTER_SQ_WAIT)
		sqpoll_step(ring);
	if (ring->flags & IORING_SETUP_SQPOLL)
		return (int)to_submit;
	if (!to_submit && !(flags & IORING_ENTER_GETEVENTS))
		return 0;
	if (storm || fault(to_submit ? 30 : 120))
		return storm_goes_on(shortages[pick(3)]);
	return to_submit ? submit(ring, to_submit) : 0;
}

/* Wait for events. `taken` of the SQEs is the result, where that is not 0. */
static int enter_wait(ring_t *ring, int taken, unsigned min_complete, unsigned flags,
		      const void *arg, size_t size)
{
	uint64_t before_ns = world.now_ns;
	int ret = enter_events(ring, min_complete, flags, arg, size);

	if (before_ns != world.now_ns || ret == -EINTR)
		world.events++;
	if (taken)
		return taken;
	ring->dropped &= ret != -EBADR;
	return ret;
}

static void check_progress(ring_t *ring)
{
	bool idle = ring->n_events == world.events && !cq_ready(ring);

	ring->n_idle_enters = idle ? ring->n_idle_enters + 1 : 0;
	ring->n_events = world.events;
	CHECK(ring->n_idle_enters < 24, "the loop spins: 24 enters in which nothing happened");
}

static bool enter_flags_known(unsigned flags)
{
	unsigned known = IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP | IORING_ENTER_SQ_WAIT |
			 IORING_ENTER_EXT_ARG | IORING_ENTER_REGISTERED_RING;

	if (kernel >= KERNEL_6_15)
		known |= ENTER_NO_IOWAIT;
	return !(flags & ~known);
}

int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned min_complete, unsigned flags,
			   sigset_t *arg, size_t size)
{
	bool by_index = flags & IORING_ENTER_REGISTERED_RING;
	ring_t *ring = by_index ? ring_at_index(fd) : ring_of((int)fd);
	int ret;

	CHECK(++sim_n_steps < 100000, "a run does not come to an end");
	sim_point();
	CHECK(!on_other_thread(), "a worker or another thread enters the ring");
	CHECK(ring, "enter on descriptor %u, which is no ring", fd);
	if (!enter_flags_known(flags))
		return -EINVAL;
	if (ring->disabled)
		return -EBADFD;
	CHECK(!min_complete || kernel < KERNEL_6_15 || flags & ENTER_NO_IOWAIT,
	      "a sleep counts as waiting for a disk");
	TRACE("kernel: enter, submits %u, waits for %u, flags %#x", to_submit, min_complete, flags);
	n_entered = to_submit;
	kernel_entered();
	ret = enter_submit(ring, to_submit, flags);
	entered_short = ret < (int)to_submit;
	if (entered_short) {
		TRACE("kernel: enter returns %d", ret);
		model_supply_is_short(true);
		return ret;
	}
	if (flags & IORING_ENTER_GETEVENTS)
		ret = enter_wait(ring, ret, min_complete, flags, arg, size);
	model_supply_is_short(false);
	check_progress(ring);
	TRACE("kernel: enter returns %d", ret);
	return ret;
}

/* ---- eventfd, close, clock ------------------------------------------------------------------- */

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
	CHECK(on_other_thread() || world.in_signal || fd == model_bell(),
	      "the loop thread wakes itself");
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
	TRACE("thread %u: eventfd_read %d: %llu", thread_number(), fd,
	      (unsigned long long)file->count);
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
	CHECK(clock == CLOCK_MONOTONIC && flags & TFD_CLOEXEC, "a timerfd of clock %d, flags %#x",
	      clock, flags);
	if (fault(20)) {
		errno = EMFILE;
		return -1;
	}
	return file_open(TIMERFD);
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new_value,
			   struct itimerspec *old_value);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *new_value,
			   struct itimerspec *old_value)
{
	file_t *file = file_of(fd);
	uint64_t ns = (uint64_t)new_value->it_value.tv_sec * 1000000000 +
		      (uint64_t)new_value->it_value.tv_nsec;

	CHECK(file && file->kind == TIMERFD, "timerfd_settime of descriptor %d", fd);
	CHECK(!old_value && !new_value->it_interval.tv_sec && !new_value->it_interval.tv_nsec,
	      "timerfd_settime");
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
