/* SPDX-License-Identifier: MIT */
/*
 * instr KIND N: N ops of one kind, for bench/instr.sh to count instructions of. Every run does the same.
 *
 *   nop      NOPs, 32 in flight, each a new op
 *   nop1     one at a time
 *   job      empty jobs, 32 at a time, one worker. Valgrind (3.19) keeps its lock while a thread sleeps in
 *            io_uring_enter(2): a loop that waited for a job there would wait for ever. So the loop runs only when all
 *            are done, which a job after them tells
 *   post     posts by the loop's own thread, 32 at a time
 *   timer    timers started at mixed times among 1,000 others, half of them cancelled, half of them fired
 */
#include "bench.h"

#include <sys/eventfd.h>

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

static int done, go_on; /* eventfds */

/* The worker has done what was queued before; and does no more until the loop has seen it. */
static int gate(void *data)
{
	eventfd_t value;

	(void)data;
	eventfd_write(done, 1);
	return eventfd_read(go_on, &value);
}

static void queue_job(int (*work)(void *data))
{
	iou_op_t *op = must_have(iou_op_new(iou), "iou_op_new");

	must(iou_op_async(iou, op, work, NULL, no_work, NULL), "iou_op_async");
}

static void jobs(uint64_t n)
{
	struct timespec rest = {.tv_nsec = 1000000};
	eventfd_t value;

	done = must_errno(eventfd(0, 0), "eventfd");
	go_on = must_errno(eventfd(0, 0), "eventfd");
	for (; n; n -= 32) {
		for (int i = 0; i < 32; i++)
			queue_job(no_work);
		queue_job(gate);
		must_errno(eventfd_read(done, &value), "eventfd");
		must(iou_poll(iou, 0), "iou_poll");
		eventfd_write(go_on, 1);
	}
	while (must(iou_poll(iou, 0), "iou_poll") == 0)
		nanosleep(&rest, NULL); /* for the last gate */
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
