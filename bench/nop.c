/* SPDX-License-Identifier: MIT */
/*
 * nop CONTENDER DEPTH: IORING_OP_NOP, DEPTH of them kept in flight: the cost of the machinery alone, in CPU time.
 *
 *   raw        one io_uring_submit_and_wait() per batch
 *   raw-first  registered ring fd; submits first, and waits only where nothing came
 *   iou        each NOP is a new op with a closure; the callback queues the next
 *   iou-again  DEPTH ops for ever: each callback queues its own op again
 */
#include "bench.h"

#include <iou.h>

#include "raw.h"

/* ---- raw ---- */

struct raw {
	struct io_uring ring;
	unsigned depth;
	int submit_first;
	uint64_t done;
};

static void raw_enter(struct raw *raw)
{
	if (raw->submit_first) {
		must(io_uring_submit(&raw->ring), "io_uring_submit");
		if (io_uring_cq_ready(&raw->ring))
			return;
	}
	must(io_uring_submit_and_wait(&raw->ring, 1), "io_uring_submit_and_wait");
}

static void raw_rounds(void *state, uint64_t n)
{
	struct raw *raw = state;
	struct io_uring_cqe *cqe;
	uint64_t queued = 0;

	raw->done = 0;
	while (raw->done < n) {
		unsigned head, seen = 0;

		for (; queued < n && queued - raw->done < raw->depth; queued++) {
			struct io_uring_sqe *sqe = io_uring_get_sqe(&raw->ring);

			io_uring_prep_nop(sqe);
			io_uring_sqe_set_data(sqe, raw);
		}
		raw_enter(raw);
		io_uring_for_each_cqe(&raw->ring, head, cqe) {
			struct raw *owner = io_uring_cqe_get_data(cqe);

			must(cqe->res, "nop");
			owner->done++;
			seen++;
		}
		io_uring_cq_advance(&raw->ring, seen);
	}
}

static void raw_measure(int argc, char **argv, int submit_first)
{
	struct raw raw = {.depth = (unsigned)argument(argc, argv, 0, 1), .submit_first = submit_first};

	raw_ring_open(&raw.ring, raw.depth);
	if (submit_first)
		must(io_uring_register_ring_fd(&raw.ring), "io_uring_register_ring_fd");
	report_each(raw_rounds, &raw, 10000);
	io_uring_queue_exit(&raw.ring);
}

static void raw_run(int argc, char **argv)
{
	raw_measure(argc, argv, 0);
}

static void raw_first_run(int argc, char **argv)
{
	raw_measure(argc, argv, 1);
}

/* ---- iou ---- */

struct nops {
	iou_t *iou;
	unsigned depth;
	uint64_t left; /* to be queued yet */
};

static int on_nop(void *data);

static void queue_new(struct nops *nops)
{
	iou_op_t *op = must_have(iou_op_new(nops->iou), "iou_op_new");

	io_uring_prep_nop(op->sqe);
	iou_op_queue(nops->iou, op, on_nop, nops);
}

static int on_nop(void *data)
{
	struct nops *nops = data;

	if (nops->left) {
		nops->left--;
		queue_new(nops);
	}
	return 0;
}

static void iou_rounds(void *state, uint64_t n)
{
	struct nops *nops = state;

	nops->left = n > nops->depth ? n - nops->depth : 0;
	for (uint64_t i = 0; i < n && i < nops->depth; i++)
		queue_new(nops);
	must(iou_run(nops->iou), "iou_run");
}

static int on_nop_again(void *data);

static void queue_again(struct nops **env)
{
	iou_op_t *op = iou_op_of(env);

	io_uring_prep_nop(op->sqe);
	iou_op_queue((*env)->iou, op, on_nop_again, env);
}

static int on_nop_again(void *data)
{
	struct nops **env = data;

	if ((*env)->left) {
		(*env)->left--;
		queue_again(env);
	}
	return 0;
}

static void again_rounds(void *state, uint64_t n)
{
	struct nops *nops = state;

	nops->left = n > nops->depth ? n - nops->depth : 0;
	for (uint64_t i = 0; i < n && i < nops->depth; i++) {
		iou_op_t *op = must_have(iou_op_new(nops->iou), "iou_op_new");
		struct nops **env = must_have(iou_op_env(op, sizeof(*env)), "iou_op_env");

		*env = nops;
		queue_again(env);
	}
	must(iou_run(nops->iou), "iou_run");
}

static void iou_measure(int argc, char **argv, void (*rounds)(void *state, uint64_t n))
{
	struct nops nops = {.depth = (unsigned)argument(argc, argv, 0, 1)};

	nops.iou = must_have(iou_new(nops.depth), "iou_new");
	report_each(rounds, &nops, 10000);
	iou_free(nops.iou);
}

static void iou_contender(int argc, char **argv)
{
	iou_measure(argc, argv, iou_rounds);
}

static void again_contender(int argc, char **argv)
{
	iou_measure(argc, argv, again_rounds);
}

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"raw", raw_run},
		{"raw-first", raw_first_run},
		{"iou", iou_contender},
		{"iou-again", again_contender},
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
