/* SPDX-License-Identifier: MIT */
/*
 * jobio CONTENDER wake|cpu: jobs beside I/O that does not come: a read of a pipe that nobody writes is in flight.
 *
 *   wake   jobs of 200 us, one at a time: from the end of the job to its completion on the sleeping loop (p50_us)
 *   cpu    CPU time of the whole process while one job sleeps for a second (cpu_us)
 *
 *   raw    a bare thread that writes an eventfd, and a blocking read of it
 *   iou    iou_op_async() beside a read op on the ring
 *   uv     uv_queue_work() beside uv_read_start() on the pipe
 */
#include "bench.h"

#include <pthread.h>
#include <sys/eventfd.h>

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif

#define MAX_SAMPLES 100000
#define JOB_NS 200000

static uint64_t samples[MAX_SAMPLES];
static size_t n_samples;
static uint64_t ended_ns; /* written by the job, read after its completion */
static int is_cpu;        /* measure CPU time, not wakes */

static void mode(int argc, char **argv)
{
	is_cpu = argc > 0 && strcmp(argv[0], "cpu") == 0;
}

static void work_hard(void)
{
	uint64_t until = now_ns() + JOB_NS;

	while ((ended_ns = now_ns()) < until)
		;
}

static void work_asleep(void)
{
	struct timespec second = {.tv_sec = 1};

	nanosleep(&second, NULL);
}

static void work(void)
{
	if (is_cpu)
		work_asleep();
	else
		work_hard();
}

/* One completion has come. Returns whether another job shall follow. */
static int came(void)
{
	static uint64_t begun_ns;
	uint64_t now = now_ns();

	if (is_cpu)
		return 0;
	if (!begun_ns) { /* the first one starts threads */
		begun_ns = now;
		place_threads();
		return 1;
	}
	samples[n_samples++] = now - ended_ns;
	return n_samples < MAX_SAMPLES && now - begun_ns < bench_ns();
}

static void report_all(uint64_t cpu_before)
{
	if (is_cpu)
		report("cpu_us", (double)(cpu_ns() - cpu_before) / 1e3);
	else
		report_percentiles(samples, n_samples, 0);
}

/* ---- raw ---- */

static int raw_there, raw_back;

static void *raw_thread(void *data)
{
	eventfd_t value;

	while (eventfd_read(raw_there, &value) == 0 && value == 1) {
		work();
		eventfd_write(raw_back, 1);
	}
	return data;
}

static void raw_run(int argc, char **argv)
{
	uint64_t before = cpu_ns();
	pthread_t thread;
	eventfd_t value;

	mode(argc, argv);
	raw_there = must_errno(eventfd(0, 0), "eventfd");
	raw_back = must_errno(eventfd(0, 0), "eventfd");
	must(-pthread_create(&thread, NULL, raw_thread, NULL), "pthread_create");
	do {
		eventfd_write(raw_there, 1);
		eventfd_read(raw_back, &value);
	} while (came());
	report_all(before);
	eventfd_write(raw_there, 2);
	pthread_join(thread, NULL);
}

/* ---- iou ---- */

static int iou_work(void *data)
{
	(void)data;
	work();
	return 0;
}

static int on_job(void *data)
{
	iou_t **env = data;

	if (came())
		must(iou_op_async(*env, iou_op_of(env), iou_work, NULL, on_job, env), "iou_op_async");
	else
		iou_quit(*env);
	return 0;
}

static int on_read(void *data)
{
	(void)data;
	return 0;
}

static void iou_contender(int argc, char **argv)
{
	uint64_t before = cpu_ns();
	iou_t *iou = must_have(iou_new(64), "iou_new"), **env;
	int pipe_fds[2];
	iou_op_t *op;
	char byte;

	mode(argc, argv);
	must_errno(pipe(pipe_fds), "pipe");
	op = must_have(iou_op_new(iou), "iou_op_new");
	io_uring_prep_read(op->sqe, pipe_fds[0], &byte, 1, 0);
	iou_op_queue(iou, op, on_read, NULL);
	op = must_have(iou_op_new(iou), "iou_op_new");
	env = must_have(iou_op_env(op, sizeof(*env)), "iou_op_env");
	*env = iou;
	must(iou_op_async(iou, op, iou_work, NULL, on_job, env), "iou_op_async");
	must(iou_run(iou), "iou_run");
	report_all(before);
	iou_free(iou);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
static void uv_job(uv_work_t *req)
{
	(void)req;
	work();
}

static void uv_on_job(uv_work_t *req, int status)
{
	must(status, "uv_queue_work");
	if (came())
		must(uv_queue_work(req->loop, req, uv_job, uv_on_job), "uv_queue_work");
	else
		uv_stop(req->loop);
}

static void uv_give(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
	static char bytes[64];

	(void)handle, (void)size;
	*buf = uv_buf_init(bytes, sizeof(bytes));
}

static void uv_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	(void)stream, (void)n, (void)buf;
}

static void uv_contender(int argc, char **argv)
{
	uint64_t before = cpu_ns();
	int pipe_fds[2];
	uv_loop_t loop;
	uv_pipe_t in;
	uv_work_t req;

	mode(argc, argv);
	must_errno(pipe(pipe_fds), "pipe");
	must(uv_loop_init(&loop), "uv_loop_init");
	must(uv_pipe_init(&loop, &in, 0), "uv_pipe_init");
	must(uv_pipe_open(&in, pipe_fds[0]), "uv_pipe_open");
	must(uv_read_start((uv_stream_t *)&in, uv_give, uv_on_read), "uv_read_start");
	must(uv_queue_work(&loop, &req, uv_job, uv_on_job), "uv_queue_work");
	uv_run(&loop, UV_RUN_DEFAULT);
	report_all(before);
	uv_close((uv_handle_t *)&in, NULL);
	uv_run(&loop, UV_RUN_DEFAULT);
	uv_loop_close(&loop);
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
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
