/* SPDX-License-Identifier: MIT */
/*
 * instr KIND N: N ops of one kind, for bench/instr.sh to count instructions of. Every run does the same.
 *
 *   nop      NOPs, 32 in flight, each a new op
 *   nop1     one at a time
 *   job      empty jobs, 32 at a time, one worker; the loop runs when it has done them, since Valgrind (3.19) keeps
 *            its lock while a thread sleeps in io_uring_enter(2), and would wait for ever
 *   post     posts by the loop's own thread, 32 at a time
 *   timer    timers started at mixed times among 1,000 others, half of them cancelled, half of them fired
 */
#include "bench.h"

#include <iou.h>

static iou_t *iou;
static uint64_t left;

static void queue_nop(void);

static int on_nop(void *data)
{
	(void)data;
	if (left) {
		left--;
		queue_nop();
	}
	return 0;
}

static void queue_nop(void)
{
	iou_op_t *op = must_have(iou_op_new(iou), "iou_op_new");

	io_uring_prep_nop(op->sqe);
	iou_op_queue(iou, op, on_nop, NULL);
}

static void nops(uint64_t n, uint64_t depth)
{
	left = n - depth;
	while (depth--)
		queue_nop();
	must(iou_run(iou), "iou_run");
}

static int no_work(void *data)
{
	(void)data;
	return 0;
}

static int on_job(void *data)
{
	(void)data;
	left--;
	return 0;
}

static void jobs(uint64_t n)
{
	struct timespec rest = {.tv_nsec = 2000000};

	for (; n; n -= 32) {
		for (left = 0; left < 32; left++) {
			iou_op_t *op = must_have(iou_op_new(iou), "iou_op_new");

			must(iou_op_async(iou, op, no_work, NULL, on_job, NULL), "iou_op_async");
		}
		while (left) {
			nanosleep(&rest, NULL);
			must(iou_poll(iou, 0), "iou_poll");
		}
	}
}

static void posts(uint64_t n)
{
	for (; n; n -= 32) {
		for (int i = 0; i < 32; i++)
			must(iou_post(iou, no_work, NULL), "iou_post");
		must(iou_run(iou), "iou_run");
	}
}

static void timers(uint64_t n)
{
	uint64_t seed = 88172645463325252, hour = UINT64_C(3600000000000);

	for (int i = 0; i < 1000; i++) {
		iou_op_t *op = must_have(iou_op_new(iou), "iou_op_new");

		iou_op_timer(iou, op, 2 * hour + random64(&seed) % hour, 0, no_work, NULL);
	}
	for (; n; n -= 2) {
		iou_op_t *fires = must_have(iou_op_new(iou), "iou_op_new");
		iou_op_t *ends = must_have(iou_op_new(iou), "iou_op_new");

		iou_op_timer(iou, fires, 0, 0, no_work, NULL);
		iou_op_timer(iou, ends, hour + random64(&seed) % (2 * hour), 0, no_work, NULL);
		must(iou_op_cancel(iou, ends), "iou_op_cancel");
		must(iou_poll(iou, 0), "iou_poll");
	}
}

int main(int argc, char **argv)
{
	iou_config_t config = {.workers = 1};
	uint64_t n = argument(argc, argv, 2, 1000);
	const char *kind = argc > 1 ? argv[1] : "";

	iou = must_have(iou_new_with(&config), "iou_new_with");
	if (strcmp(kind, "nop") == 0)
		nops(n, 32);
	else if (strcmp(kind, "nop1") == 0)
		nops(n, 1);
	else if (strcmp(kind, "job") == 0)
		jobs(n);
	else if (strcmp(kind, "post") == 0)
		posts(n);
	else if (strcmp(kind, "timer") == 0)
		timers(n);
	else
		die("usage: instr nop|nop1|job|post|timer N", EINVAL);
	iou_free(iou);
	return 0;
}
