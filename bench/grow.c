/* SPDX-License-Identifier: MIT */
/*
 * grow CONTENDER WHAT [N]: what an iou costs, and how that changes with what it holds.
 *
 *   alive N    a NOP, 32 in flight, while N timers are pending (ns)
 *   burst N    N NOPs queued before any is submitted (ns each)
 *   memory N   N ops with an environment of 64 bytes: what the process grew by, and when all are timers (bytes each)
 *   idle       what the process grew by for one that has run once and now waits (KiB)
 *   life       to make and free one, without a thread (ns)
 *   rings N    N threads with one each: a NOP, 32 in flight (ns, of a thread)
 *
 *   raw   a ring with nothing around it: idle, life, rings
 *   iou
 *   uv    a loop: idle, life
 *   ev    a loop: idle, life
 */
#include "bench.h"

#include <pthread.h>

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif
#ifdef HAVE_EV
#include <ev.h>
#endif

#include "raw.h"

#define DEPTH 32
#define MANY 200

/* What of the process is in memory, in bytes. */
static double resident(void)
{
	FILE *file = must_have(fopen("/proc/self/statm", "r"), "/proc/self/statm");
	long pages;

	if (fscanf(file, "%*d %ld", &pages) != 1)
		die("/proc/self/statm", EIO);
	fclose(file);
	return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* ---- One of each kind, made and freed many times, and many at once ---- */

struct kind {
	size_t size;
	void (*open)(void *it);
	void (*use)(void *it);
	void (*close)(void *it);
};

static void life_rounds(void *state, uint64_t n)
{
	const struct kind *kind = state;
	union {
		struct io_uring ring;
		char bytes[4096];
	} room;

	must(kind->size <= sizeof(room) ? 0 : -ENOMEM, "room");
	for (; n; n--) {
		kind->open(&room);
		kind->close(&room);
	}
}

static void idle(const struct kind *kind)
{
	char *all = must_have(calloc(MANY, kind->size), "calloc");
	double before;

	memset(all, 0, MANY * kind->size);
	before = resident();
	for (size_t i = 0; i < MANY; i++) {
		kind->open(all + i * kind->size);
		kind->use(all + i * kind->size);
	}
	report("kib", (resident() - before) / MANY / 1024 + (double)kind->size / 1024);
	for (size_t i = 0; i < MANY; i++)
		kind->close(all + i * kind->size);
	free(all);
}

static int is(int argc, char **argv, const char *what)
{
	return argc > 0 && strcmp(argv[0], what) == 0;
}

static void common(int argc, char **argv, struct kind *kind)
{
	if (is(argc, argv, "life"))
		report_each(life_rounds, kind, 10);
	else if (is(argc, argv, "idle"))
		idle(kind);
	else
		die("WHAT", EINVAL);
}

/* ---- Threads with a ring each ---- */

struct thread {
	pthread_t thread;
	void (*rounds)(void *state, uint64_t n);
	void *(*open)(void);
	void (*close)(void *state);
	double ns, cpu_ns;
};

static pthread_barrier_t barrier;

static void *thread_main(void *data)
{
	struct thread *thread = data;
	void *state = thread->open();

	pthread_barrier_wait(&barrier);
	measure_each(thread->rounds, state, 10000, CLOCK_THREAD_CPUTIME_ID, &thread->ns, &thread->cpu_ns);
	pthread_barrier_wait(&barrier);
	thread->close(state);
	return NULL;
}

static void threads(unsigned n_threads, const struct thread *kind)
{
	struct thread all[64];
	double ns = 0, cpu_ns = 0;

	n_threads = n_threads < 64 ? n_threads : 64;
	pthread_barrier_init(&barrier, NULL, n_threads);
	for (unsigned i = 0; i < n_threads; i++) {
		all[i] = *kind;
		must(-pthread_create(&all[i].thread, NULL, thread_main, &all[i]), "pthread_create");
	}
	for (unsigned i = 0; i < n_threads; i++) {
		pthread_join(all[i].thread, NULL);
		ns += all[i].ns / n_threads;
		cpu_ns += all[i].cpu_ns / n_threads;
	}
	report("ns", ns);
	report("cpu_ns", cpu_ns);
}

/* ---- raw ---- */

static void raw_rounds(void *state, uint64_t n)
{
	struct io_uring *ring = state;
	struct io_uring_cqe *cqe;
	uint64_t done = 0, queued = 0;

	while (done < n) {
		unsigned head, seen = 0;

		for (; queued < n && queued - done < DEPTH; queued++)
			io_uring_prep_nop(io_uring_get_sqe(ring));
		must(io_uring_submit_and_wait(ring, 1), "io_uring_submit_and_wait");
		io_uring_for_each_cqe(ring, head, cqe)
			seen++;
		io_uring_cq_advance(ring, seen);
		done += seen;
	}
}

static void raw_open(void *it)
{
	raw_ring_open(it, 64);
}

static void raw_use(void *it)
{
	raw_rounds(it, 1);
}

static void raw_close(void *it)
{
	io_uring_queue_exit(it);
}

static void *raw_thread_open(void)
{
	struct io_uring *ring = must_have(malloc(sizeof(*ring)), "malloc");

	raw_open(ring);
	return ring;
}

static void raw_thread_close(void *it)
{
	raw_close(it);
	free(it);
}

static void raw_run(int argc, char **argv)
{
	struct kind kind = {sizeof(struct io_uring), raw_open, raw_use, raw_close};
	struct thread thread = {.rounds = raw_rounds, .open = raw_thread_open, .close = raw_thread_close};

	if (is(argc, argv, "rings"))
		threads((unsigned)argument(argc, argv, 1, 1), &thread);
	else
		common(argc, argv, &kind);
}

/* ---- iou ---- */

struct nops {
	iou_t *iou;
	uint64_t left, depth;
	iou_op_t **timers;
};

static int on_nop(void *data);

static void queue_nop(struct nops **env)
{
	iou_op_t *op = iou_op_of(env);

	io_uring_prep_nop(op->sqe);
	iou_op_queue((*env)->iou, op, on_nop, env);
}

static int on_nop(void *data)
{
	struct nops **env = data;
	struct nops *nops = *env;

	if (nops->left) {
		nops->left--;
		queue_nop(env);
	} else if (--nops->depth == 0) {
		iou_quit(nops->iou); /* the timers are still pending */
	}
	return 0;
}

static void nop_rounds(struct nops *nops, uint64_t n, uint64_t depth)
{
	nops->depth = n < depth ? n : depth;
	nops->left = n - nops->depth;
	for (uint64_t i = 0, first = nops->depth; i < first; i++) {
		iou_op_t *op = must_have(iou_op_new(nops->iou), "iou_op_new");
		struct nops **env = must_have(iou_op_env(op, sizeof(*env)), "iou_op_env");

		*env = nops;
		queue_nop(env);
	}
	must(iou_run(nops->iou), "iou_run");
}

static void alive_rounds(void *state, uint64_t n)
{
	nop_rounds(state, n, DEPTH);
}

static int on_timer(void *data)
{
	(void)data;
	return 0;
}

static void ops_take(struct nops *nops, uint64_t n)
{
	nops->timers = must_have(calloc(n, sizeof(*nops->timers)), "calloc");
	memset(nops->timers, 1, n * sizeof(*nops->timers));
	for (uint64_t i = 0; i < n; i++) {
		iou_op_t *op = must_have(iou_op_new(nops->iou), "iou_op_new");

		memset(must_have(iou_op_env(op, 64), "iou_op_env"), 1, 64);
		nops->timers[i] = op;
	}
}

static void timers_start(struct nops *nops, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		iou_op_timer(nops->iou, nops->timers[i], UINT64_C(3600000000000) + i, 0, on_timer, NULL);
}

static void memory(struct nops *nops, uint64_t n)
{
	double before = resident() + (double)n * sizeof(*nops->timers);

	ops_take(nops, n);
	report("op_bytes", (resident() - before) / (double)n);
	timers_start(nops, n);
	report("timer_bytes", (resident() - before) / (double)n);
}

static uint64_t burst;

static void burst_rounds(void *state, uint64_t n)
{
	while (n) {
		uint64_t part = n < burst ? n : burst;

		nop_rounds(state, part, part);
		n -= part;
	}
}

static void iou_open(void *it)
{
	*(iou_t **)it = must_have(iou_new(64), "iou_new");
}

static void iou_use(void *it)
{
	struct nops nops = {.iou = *(iou_t **)it};

	nop_rounds(&nops, 1, 1);
	must(iou_poll(nops.iou, 0), "iou_poll");
}

static void iou_close(void *it)
{
	iou_free(*(iou_t **)it);
}

static void *iou_thread_open(void)
{
	struct nops *nops = must_have(calloc(1, sizeof(*nops)), "calloc");

	iou_open(&nops->iou);
	return nops;
}

static void iou_thread_close(void *it)
{
	struct nops *nops = it;

	iou_free(nops->iou);
	free(nops->timers);
	free(nops);
}

static void iou_contender(int argc, char **argv)
{
	struct kind kind = {sizeof(iou_t *), iou_open, iou_use, iou_close};
	struct thread thread = {.rounds = alive_rounds, .open = iou_thread_open, .close = iou_thread_close};
	uint64_t n = argument(argc, argv, 1, 1);
	struct nops *nops;

	if (is(argc, argv, "rings")) {
		threads((unsigned)n, &thread);
		return;
	}
	if (!is(argc, argv, "alive") && !is(argc, argv, "burst") && !is(argc, argv, "memory")) {
		common(argc, argv, &kind);
		return;
	}
	nops = iou_thread_open();
	if (is(argc, argv, "alive")) {
		ops_take(nops, n);
		timers_start(nops, n);
		report_each(alive_rounds, nops, 10000);
	} else if (is(argc, argv, "burst")) {
		burst = n;
		report_each(burst_rounds, nops, n);
	} else {
		memory(nops, n);
	}
	iou_thread_close(nops);
}

/* ---- libuv, libev ---- */

#ifdef HAVE_UV
static void uv_open(void *it)
{
	must(uv_loop_init(it), "uv_loop_init");
}

static void uv_use(void *it)
{
	uv_run(it, UV_RUN_NOWAIT);
}

static void uv_shut(void *it)
{
	uv_loop_close(it);
}

static void uv_contender(int argc, char **argv)
{
	struct kind kind = {sizeof(uv_loop_t), uv_open, uv_use, uv_shut};

	common(argc, argv, &kind);
}
#endif

#ifdef HAVE_EV
static void ev_open(void *it)
{
	*(struct ev_loop **)it = must_have(ev_loop_new(EVFLAG_AUTO), "ev_loop_new");
}

static void ev_use(void *it)
{
	ev_run(*(struct ev_loop **)it, EVRUN_NOWAIT);
}

static void ev_close(void *it)
{
	ev_loop_destroy(*(struct ev_loop **)it);
}

static void ev_contender(int argc, char **argv)
{
	struct kind kind = {sizeof(struct ev_loop *), ev_open, ev_use, ev_close};

	common(argc, argv, &kind);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"raw", raw_run},
		{"iou", iou_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
#ifdef HAVE_EV
		{"ev", ev_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
