/* SPDX-License-Identifier: MIT */

/*
 * Each door once, and each way that another thread has to the loop, in a program that needs no more
 * than iou and a C library: for those that the Check program is not built with. Prints a line and
 * exits with 0, or says what failed.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "iou.h"

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_ROUNDS 1000 /* of a byte through the pipe; a job with each */
#define N_POSTS  50000
#define MS       UINT64_C(1000000)
#define SECOND   (1000 * MS)

#define MUST(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "FAIL smoke: line %d: %s\n", __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

typedef struct smoke_t {
	iou_t *iou;
	int fds[2];
	iou_op_t *reader, *writer, *job, *ticker;
	char in, out;
	int n_read, n_written, n_jobs, n_posts, n_ticks, n_bhs, n_handled, n_late, n_far;
	iou_bh_t *bh;
	pthread_t loop, worker;
} smoke_t;

/* ---- The ring, and jobs: a byte goes through the pipe, then a worker counts it --------------- */

static int on_read(void *data);

static void queue_read(smoke_t *smoke)
{
	io_uring_prep_read(smoke->reader->sqe, smoke->fds[0], &smoke->in, 1, (uint64_t)-1);
	iou_op_queue(smoke->iou, smoke->reader, on_read, smoke);
}

static int on_write(void *data)
{
	smoke_t *smoke = data;

	MUST(smoke->writer->result == 1);
	smoke->n_written++;
	return 0;
}

static void queue_write(smoke_t *smoke)
{
	smoke->writer = iou_op_new(smoke->iou);
	MUST(smoke->writer);
	smoke->out = (char)smoke->n_jobs;
	io_uring_prep_write(smoke->writer->sqe, smoke->fds[1], &smoke->out, 1, (uint64_t)-1);
	iou_op_queue(smoke->iou, smoke->writer, on_write, smoke);
}

static int work(void *data)
{
	smoke_t *smoke = data;

	MUST(!pthread_equal(pthread_self(), smoke->loop));
	return (unsigned char)smoke->in;
}

static int on_job(void *data)
{
	smoke_t *smoke = *(smoke_t **)data; /* the op's environment */
	iou_op_t *op = iou_op_of(data);

	MUST(pthread_equal(pthread_self(), smoke->loop) && iou_current() == smoke->iou);
	MUST(op == smoke->job && op->result == smoke->n_jobs % 256);
	if (++smoke->n_jobs < N_ROUNDS) {
		queue_read(smoke);
		queue_write(smoke);
	}
	return 0;
}

static int on_read(void *data)
{
	smoke_t *smoke = data;
	smoke_t **env;

	MUST(smoke->reader->result == 1 && smoke->in == (char)smoke->n_read);
	if (++smoke->n_read < N_ROUNDS) /* else it is given back */
		smoke->reader = iou_op_new(smoke->iou);
	smoke->job = iou_op_new(smoke->iou);
	MUST(smoke->reader && smoke->job);
	env = iou_op_env(smoke->job, smoke->n_read % 2 ? sizeof(*env) : 1000);
	MUST(env);
	*env = smoke;
	MUST(iou_op_async(smoke->iou, smoke->job, work, smoke, on_job, env) == 0);
	return 0;
}

/* ---- Another thread -------------------------------------------------------------------------- */

static int on_post(void *data)
{
	((smoke_t *)data)->n_posts++;
	return 0;
}

static int on_bh(void *data)
{
	((smoke_t *)data)->n_bhs++;
	return 0;
}

static void *poster(void *data)
{
	smoke_t *smoke = data;

	for (int i = 0; i < N_POSTS; i++) {
		MUST(iou_post(smoke->iou, on_post, smoke) == 0);
		if (i % 100 == 0)
			iou_bh_schedule(smoke->bh);
	}
	iou_unhold(smoke->iou);
	return NULL;
}

/* ---- The clock ------------------------------------------------------------------------------- */

static int on_tick(void *data)
{
	smoke_t *smoke = data;

	if (!(smoke->ticker->flags & IORING_CQE_F_MORE)) {
		MUST(smoke->ticker->result == -ECANCELED);
		return 0;
	}
	smoke->n_ticks += smoke->ticker->result;
	if (smoke->n_ticks >= 20)
		MUST(iou_op_cancel(smoke->iou, smoke->ticker) == 0);
	return 0;
}

static int on_late(void *data)
{
	smoke_t *smoke = *(smoke_t **)data;

	MUST(iou_op_of(data)->result == -ETIME);
	smoke->n_late++;
	return 0;
}

static int on_far(void *data)
{
	smoke_t *smoke = *(smoke_t **)data;

	MUST(iou_op_of(data)->result == -ECANCELED);
	smoke->n_far++;
	return 0;
}

static iou_op_t *op_of(smoke_t *smoke, smoke_t ***env)
{
	iou_op_t *op = iou_op_new(smoke->iou);

	MUST(op);
	*env = iou_op_env(op, sizeof(**env));
	MUST(*env);
	**env = smoke;
	return op;
}

/* Times of more seconds than 32 bits hold: not due, nor as seen by who waits on the descriptor. */
static void far_timers(smoke_t *smoke)
{
	struct pollfd readable = {.fd = iou_fd(smoke->iou), .events = POLLIN};

	MUST(readable.fd >= 0);
	for (int bits = 30; bits <= 33; bits++) {
		smoke_t **env;
		iou_op_t *op = op_of(smoke, &env);

		iou_op_timer(smoke->iou, op, 100 * MS, 0, on_far, env);
		for (int i = 0; poll(&readable, 1, 0) == 1; i++)
			MUST(i < 20 && iou_poll(smoke->iou, 0) == 0);
		/* moved */
		iou_op_timer(smoke->iou, op, (UINT64_C(1) << bits) * SECOND + 100 * MS, 0, on_far,
			     env);
		for (int i = 0; poll(&readable, 1, 0) == 1; i++)
			MUST(i < 20 && iou_poll(smoke->iou, 0) == 0);
		MUST(poll(&readable, 1, 150) == 0);
		MUST(iou_poll(smoke->iou, 20 * MS) == 0);
		MUST(iou_op_cancel(smoke->iou, op) == 0 && iou_run(smoke->iou) == 0 &&
		     smoke->n_far == bits - 29);
	}
}

/* ---- A completion in the program's own memory ------------------------------------------------ */

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

static smoke_t smoke;

static int on_handler(iou_handler_t *handler)
{
	MUST(handler->result == 0);
	smoke.n_handled++;
	return 0;
}

int main(void)
{
	iou_handler_t handler = {.cb = on_handler};
	iou_stats_t stats;
	iou_op_t *late;
	smoke_t **env;
	int n_ticks;

	smoke.loop = pthread_self();
	smoke.iou = iou_new(8);
	if (!smoke.iou) {
		fprintf(stderr, "smoke: io_uring: %s\n", strerror(errno));
		return 1;
	}
	MUST(pipe(smoke.fds) == 0);
	smoke.reader = iou_op_new(smoke.iou);
	smoke.ticker = iou_op_new(smoke.iou);
	smoke.bh = iou_bh_new(smoke.iou, on_bh, &smoke);
	MUST(smoke.reader && smoke.ticker && smoke.bh);
	iou_hold(smoke.iou);
	MUST(pthread_create(&smoke.worker, NULL, poster, &smoke) == 0);
	queue_read(&smoke);
	queue_write(&smoke);
	iou_op_timer(smoke.iou, smoke.ticker, MS, MS, on_tick, &smoke);
	late = op_of(&smoke, &env); /* no urgent data comes through a pipe */
	io_uring_prep_poll_add(late->sqe, smoke.fds[0], POLLPRI);
	iou_op_deadline(smoke.iou, late, 10 * MS);
	iou_op_queue(smoke.iou, late, on_late, env);
	MUST(iou_add_sqe(smoke.iou, prep_nop, NULL, &handler) == 0);
	MUST(iou_run(smoke.iou) == 0);
	MUST(pthread_join(smoke.worker, NULL) == 0);
	MUST(smoke.n_read == N_ROUNDS && smoke.n_written == N_ROUNDS && smoke.n_jobs == N_ROUNDS);
	MUST(smoke.n_posts == N_POSTS && smoke.n_bhs >= 1 && smoke.n_handled == 1 &&
	     smoke.n_late == 1);
	n_ticks = smoke.n_ticks;
	far_timers(&smoke);
	iou_stats(smoke.iou, &stats);
	MUST(stats.pending == 0 && stats.jobs == N_ROUNDS &&
	     stats.posts == (uint64_t)(N_POSTS + smoke.n_bhs));
	MUST(!iou_free(smoke.iou));
	printf("smoke: %d bytes, %d jobs, %d posts, %d expirations\n", smoke.n_read, smoke.n_jobs,
	       smoke.n_posts, n_ticks);
	return 0;
}
