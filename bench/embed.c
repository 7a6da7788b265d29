/* SPDX-License-Identifier: MIT */
/*
 * embed CONTENDER alone|thread [N]: a loop inside the program's own epoll loop. A peer sends a byte, a callback reads it
 * and sends an answer. The peer waits until the answer is there and epoll has nothing more, so that each event comes
 * alone.
 *
 *   alone    the peer is the same thread: CPU time of all that the loop does for an event, without sleep and wake-up
 *            (cpu_ns)
 *   thread   the peer is a thread, and the loop sleeps: CPU time of the loop's thread (cpu_ns). With N: N events and no
 *            figure, for a tracer that counts (see bench/compound)
 *
 *   epoll    nothing embedded: read(2) and write(2)
 *   raw      a bare ring: its eventfd, edge-triggered; one enter to fetch and one to submit
 *   iou      iou_fd(), level-triggered, and iou_poll(iou, 0)
 *   uv       uv_backend_fd(), and uv_run() with UV_RUN_NOWAIT
 */
#include "bench.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "raw.h"
#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif

#define MAX_SAMPLES 1000000

static int epoll_fd;
static int there[2], back[2]; /* pipes: to the loop, from the loop */
static uint64_t n_left;        /* events not yet answered */

/* What a contender does when epoll says that there is something. */
struct embedded {
	void (*turn)(void *state);
	void *state;
};

/* ---- The peer ---- */

static void peer_sends(void)
{
	must_errno((int)write(there[1], "", 1), "write");
}

static void peer_receives(void)
{
	char byte;

	must_errno((int)read(back[0], &byte, 1), "read");
}

/* Wait until the main thread sleeps: all that the last event brought about is done. */
static void until_asleep(int stat)
{
	char line[256], *name_end;

	for (;;) {
		int n = must_errno((int)pread(stat, line, sizeof(line) - 1, 0), "pread");

		line[n] = '\0';
		name_end = strrchr(line, ')');
		if (name_end && name_end[1] == ' ' && name_end[2] == 'S')
			return;
		sched_yield();
	}
}

static void *peer_main(void *data)
{
	uint64_t n = *(uint64_t *)data;
	char path[64];
	int stat;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	stat = must_errno(open(path, O_RDONLY | O_CLOEXEC), path);
	while (n--) {
		until_asleep(stat);
		peer_sends();
		peer_receives();
	}
	close(stat);
	return NULL;
}

/* ---- The program's loop ---- */

static void open_all(void)
{
	must_errno(pipe(there), "pipe");
	must_errno(pipe(back), "pipe");
	epoll_fd = must_errno(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
}

static void watch(int fd, uint32_t events)
{
	struct epoll_event event = {.events = events};

	must_errno(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static int is_ready(int timeout_ms)
{
	struct epoll_event event;

	return must_errno(epoll_wait(epoll_fd, &event, 1, timeout_ms), "epoll_wait");
}

static void with_thread(void *data, uint64_t n)
{
	struct embedded *embedded = data;
	pthread_t peer;

	n_left = n;
	must(-pthread_create(&peer, NULL, peer_main, &n), "pthread_create");
	while (n_left) {
		is_ready(-1);
		embedded->turn(embedded->state);
	}
	pthread_join(peer, NULL);
}

static uint64_t one_alone(struct embedded *embedded)
{
	uint64_t begun;

	n_left = 1;
	peer_sends();
	begun = now_ns();
	while (is_ready(n_left ? -1 : 0))
		embedded->turn(embedded->state);
	begun = now_ns() - begun;
	peer_receives();
	return begun;
}

/* Nothing sleeps, so an event's time is its CPU time; the median leaves out events that something else interrupted. (A
 * clock of CPU time takes a system call.) */
static double alone(struct embedded *embedded)
{
	static uint64_t samples[MAX_SAMPLES];
	uint64_t until = now_ns() + bench_ns();
	size_t n = 0;

	for (int i = 0; i < 1000; i++)
		one_alone(embedded);
	while (n < MAX_SAMPLES && now_ns() < until)
		samples[n++] = one_alone(embedded);
	qsort(samples, n, sizeof(*samples), compare_u64);
	return (double)samples[n / 2];
}

static void measure(int argc, char **argv, void (*turn)(void *state), void *state)
{
	struct embedded embedded = {turn, state};
	double ns, cpu_ns;

	if (argc > 1) {
		with_thread(&embedded, argument(argc, argv, 1, 0));
		return;
	}
	if (argc > 0 && strcmp(argv[0], "thread") == 0)
		measure_each(with_thread, &embedded, 100, CLOCK_THREAD_CPUTIME_ID, &ns, &cpu_ns);
	else
		cpu_ns = alone(&embedded);
	report("cpu_ns", cpu_ns);
}

/* ---- epoll ---- */

static void epoll_turn(void *state)
{
	char byte;

	(void)state;
	must_errno((int)read(there[0], &byte, 1), "read");
	must_errno((int)write(back[1], &byte, 1), "write");
	n_left--;
}

static void epoll_run(int argc, char **argv)
{
	open_all();
	watch(there[0], EPOLLIN);
	measure(argc, argv, epoll_turn, NULL);
}

/* ---- raw ---- */

static char raw_byte;

static void raw_read(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read(sqe, there[0], &raw_byte, 1, -1);
	io_uring_sqe_set_data64(sqe, 1);
}

static void raw_deliver(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(ring, &cqe) == 0) {
		int is_answer = cqe->user_data == 0;

		must(cqe->res, "raw");
		io_uring_cqe_seen(ring, cqe);
		if (is_answer) {
			n_left--;
		} else {
			struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

			io_uring_prep_write(sqe, back[1], &raw_byte, 1, -1);
			io_uring_sqe_set_data64(sqe, 0);
			raw_read(ring);
		}
	}
}

/* The eventfd is off meanwhile: it would be signalled once more for what is delivered here. What comes before it is on
 * again leaves its mark in the ring. */
static void raw_turn(void *state)
{
	struct io_uring *ring = state;

	do {
		must(io_uring_cq_eventfd_toggle(ring, false), "io_uring_cq_eventfd_toggle");
		must(io_uring_get_events(ring), "io_uring_get_events");
		do
			raw_deliver(ring);
		while (must(io_uring_submit(ring), "io_uring_submit") > 0);
		must(io_uring_cq_eventfd_toggle(ring, true), "io_uring_cq_eventfd_toggle");
		atomic_thread_fence(memory_order_seq_cst);
	} while (io_uring_cq_ready(ring) || *ring->sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

static void raw_run(int argc, char **argv)
{
	struct io_uring ring;
	int fd = must_errno(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");

	open_all();
	raw_ring_open_with(&ring, 64, IORING_SETUP_TASKRUN_FLAG);
	io_uring_register_ring_fd(&ring);
	must(io_uring_register_eventfd(&ring, fd), "io_uring_register_eventfd");
	watch(fd, EPOLLIN | EPOLLET);
	raw_read(&ring);
	must(io_uring_submit(&ring), "io_uring_submit");
	measure(argc, argv, raw_turn, &ring);
	io_uring_queue_exit(&ring);
}

/* ---- iou ---- */

static int on_sent(void *data)
{
	(void)data;
	n_left--;
	return 0;
}

static int on_read(void *data)
{
	iou_t *iou = iou_current();
	iou_op_t *op = iou_op_of(data), *answer = must_have(iou_op_new(iou), "iou_op_new");

	if (must(op->result, "read") == 0)
		return -EPIPE;
	io_uring_prep_write(answer->sqe, back[1], data, 1, -1);
	iou_op_queue(iou, answer, on_sent, NULL);
	io_uring_prep_read(op->sqe, there[0], data, 1, -1);
	iou_op_queue(iou, op, on_read, data);
	return 0;
}

static void iou_turn(void *state)
{
	must(iou_poll(state, 0), "iou_poll");
}

static void iou_contender(int argc, char **argv)
{
	iou_t *iou = must_have(iou_new(64), "iou_new");
	iou_op_t *op = must_have(iou_op_new(iou), "iou_op_new");
	char *byte = must_have(iou_op_env(op, 1), "iou_op_env");

	open_all();
	watch(must(iou_fd(iou), "iou_fd"), EPOLLIN);
	io_uring_prep_read(op->sqe, there[0], byte, 1, -1);
	iou_op_queue(iou, op, on_read, byte);
	must(iou_poll(iou, 0), "iou_poll");
	measure(argc, argv, iou_turn, iou);
	iou_free(iou);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
static void uv_give(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
	static char bytes[64];

	(void)handle, (void)size;
	*buf = uv_buf_init(bytes, sizeof(bytes));
}

static void uv_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	uv_buf_t byte = uv_buf_init(buf->base, 1);

	must((int)n, "uv_read_start");
	must(uv_try_write(stream->data, &byte, 1), "uv_try_write");
	n_left--;
}

static void uv_turn(void *state)
{
	uv_run(state, UV_RUN_NOWAIT);
}

static void uv_contender(int argc, char **argv)
{
	uv_loop_t loop;
	uv_pipe_t in, out;

	open_all();
	must(uv_loop_init(&loop), "uv_loop_init");
	must(uv_pipe_init(&loop, &in, 0), "uv_pipe_init");
	must(uv_pipe_init(&loop, &out, 0), "uv_pipe_init");
	must(uv_pipe_open(&in, there[0]), "uv_pipe_open");
	must(uv_pipe_open(&out, back[1]), "uv_pipe_open");
	in.data = &out;
	must(uv_read_start((uv_stream_t *)&in, uv_give, uv_on_read), "uv_read_start");
	watch(uv_backend_fd(&loop), EPOLLIN);
	uv_run(&loop, UV_RUN_NOWAIT);
	measure(argc, argv, uv_turn, &loop);
	uv_close((uv_handle_t *)&in, NULL);
	uv_close((uv_handle_t *)&out, NULL);
	uv_run(&loop, UV_RUN_DEFAULT);
	uv_loop_close(&loop);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"epoll", epoll_run},
		{"raw", raw_run},
		{"iou", iou_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
