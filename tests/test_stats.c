/* SPDX-License-Identifier: MIT */

/* iou_stats() and iou_dump(): the counters count what they say, and the dump names what is
 * pending. */

#include "helper.h"

#include <errno.h>
#include <semaphore.h>

START_TEST(a_new_iou_has_done_nothing)
{
	iou_t *iou = new_iou(4);
	iou_stats_t stats;

	memset(&stats, 0xff, sizeof(stats));
	iou_stats(iou, &stats);
	ck_assert_uint_eq(
		stats.submitted + stats.completed + stats.jobs + stats.timers + stats.posts, 0);
	ck_assert_uint_eq(stats.wakeups + stats.pending + stats.backlog + stats.backlog_max, 0);
	for (int i = 0; i < 8; i++)
		ck_assert_uint_eq(stats.reserved[i], 0);
	done(iou);
}
END_TEST

/* The SQEs and CQEs of the library's own (wake-up, cancels) are not the program's. */
START_TEST(ring_ops_are_counted)
{
	iou_t *iou = new_iou(4);
	call_t call = {0}, reads[3];
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 10; i++) {
		start(iou, CQE, on_call, &call);
		ck_assert_uint_eq(get_stats(iou).pending, (unsigned)i + 1);
		ck_assert_uint_eq(get_stats(iou).backlog, (unsigned)i + 1);
	}
	ck_assert_uint_eq(get_stats(iou).submitted, 0);
	flush(iou);
	ck_assert_uint_eq(get_stats(iou).backlog, 0);
	ck_assert_uint_eq(get_stats(iou).backlog_max, 10);
	ck_assert_uint_ge(get_stats(iou).submitted, 10);
	/* the polls of the library's own, two at most */
	ck_assert_uint_le(get_stats(iou).submitted, 12);
	ck_assert_uint_ge(get_stats(iou).enters, 3); /* the SQ has 4 entries */
	run(iou);
	ck_assert_uint_ge(get_stats(iou).submitted, 10);
	ck_assert_uint_le(get_stats(iou).submitted, 12);
	ck_assert_uint_eq(get_stats(iou).completed, 10);
	ck_assert_uint_eq(get_stats(iou).pending, 0);

	for (int i = 0; i < 3; i++)
		call_read(iou, &reads[i], i, fds[0]);
	ck_assert_int_eq(iou_poll(iou, 0), 0);
	ck_assert_uint_eq(get_stats(iou).completed, 10);
	ck_assert_uint_eq(get_stats(iou).pending, 3);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	run(iou);
	ck_assert_uint_eq(get_stats(iou).completed, 13);
	ck_assert_uint_eq(get_stats(iou).backlog_max, 10);
	ck_assert_uint_eq(get_stats(iou).jobs + get_stats(iou).posts + get_stats(iou).timers, 0);
	close_pair(fds);
	done(iou);
}
END_TEST

START_TEST(callbacks_of_each_kind_are_counted)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};
	iou_stats_t stats;
	iou_bh_t *bh = new_bh(iou, on_call, &call);

	for (int i = 0; i < 5; i++) {
		start(iou, JOB, on_call, &call);
		ck_assert_int_eq(iou_async(iou, on_nothing, NULL, on_call, &call), 0);
		start(iou, TIMER, on_call, &call);
		iou_bh_schedule(bh);
		iou_bh_schedule(bh);
		post(iou, on_call, &call);
		ck_assert_uint_eq(get_stats(iou).pending, 3); /* ops: two jobs and a timer */
		run(iou);
	}
	stats = get_stats(iou);
	ck_assert_uint_eq(stats.jobs, 10);
	ck_assert_uint_eq(stats.timers, 5);
	ck_assert_uint_eq(stats.posts, 10);
	ck_assert_uint_eq(stats.completed, 0);
	ck_assert_uint_eq(stats.pending, 0);
	done(iou);
}
END_TEST

static pid_t loop_tid;

static void *post_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(data, on_nothing, NULL);
	return NULL;
}

START_TEST(wakeups_are_counted)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;

	loop_tid = gettid();
	iou_hold(iou);
	for (unsigned i = 1; i <= 5; i++) {
		thread = start_thread(post_to_the_sleeper, iou);
		ck_assert_int_eq(iou_poll(iou, -1), 1);
		join_thread(thread);
		ck_assert_uint_eq(get_stats(iou).wakeups, i);
	}
	iou_unhold(iou);
	done(iou);
}
END_TEST

static void *post_ten(void *data)
{
	for (int i = 0; i < 10; i++)
		post(data, on_nothing, NULL);
	return NULL;
}

/* While it rests, its descriptor watched from outside: ten posts are one wake-up. */
START_TEST(a_loop_watched_from_outside_is_woken_once)
{
	iou_t *iou = new_iou(4);

	ck_assert_int_ge(iou_fd(iou), 0);
	for (unsigned i = 1; i <= 5; i++) {
		ck_assert_int_ge(iou_poll(iou, 0), 0);
		ck_assert_int_eq(iou_poll(iou, 0), 0);
		join_thread(start_thread(post_ten, iou));
		ck_assert_uint_eq(get_stats(iou).wakeups, i);
		ck_assert_int_eq(iou_poll(iou, 0), 10);
	}
	done(iou);
}
END_TEST

/* ---- iou_dump -------------------------------------------------------------------------------- */

static char dumped[1 << 16];

static void dump(const iou_t *iou)
{
	FILE *out = fmemopen(dumped, sizeof(dumped), "w");

	ck_assert_ptr_nonnull(out);
	iou_dump(iou, out);
	fclose(out);
}

/* Lines that have all of these in them. */
static int n_lines(const char *a, const char *b, const char *c)
{
	char *copy = strdup(dumped), *save = NULL;
	int n = 0;

	for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		n += strstr(line, a) && strstr(line, b) && strstr(line, c);
	free(copy);
	return n;
}

static sem_t job_may_end;

static int wait_job(void *data)
{
	__atomic_store_n((bool *)data, true, __ATOMIC_RELEASE);
	while (sem_wait(&job_may_end) != 0)
		;
	return 0;
}

static int on_a(void *data) { return data ? 0 : 1; }
static int on_b(void *data) { return data ? 0 : 2; }

START_TEST(a_dump_tells_what_is_pending)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 1});
	char fd[32], a[32], b[32];
	bool started = false;
	int fds[2], n_lines_idle = 0;
	iou_op_t *op;

	new_pipe(fds);
	snprintf(fd, sizeof(fd), "%d", fds[0]);
	snprintf(a, sizeof(a), "%p", (void *)(uintptr_t)on_a);
	snprintf(b, sizeof(b), "%p", (void *)(uintptr_t)on_b);
	sem_init(&job_may_end, 0, 0);
	dump(iou);
	ck_assert_int_eq(n_lines(a, "", "") + n_lines(b, "", ""), 0);

	op = new_op(iou);
	io_uring_prep_read(op->sqe, fds[0], &started, 1, 0);
	iou_op_queue(iou, op, on_a, NULL);
	dump(iou);
	ck_assert_msg(n_lines("backlog", fd, a) == 1, "%s", dumped);
	flush(iou);
	dump(iou);
	ck_assert_msg(n_lines("backlog", "", a) == 0, "%s", dumped);
	ck_assert_msg(n_lines("ring", fd, a) == 1, "%s", dumped);
	ck_assert_msg(n_lines("read", fd, a) + n_lines("READ", fd, a) == 1, "%s", dumped);

	start_job(iou, new_op(iou), wait_job, &started, on_b, NULL);
	start_job(iou, new_op(iou), on_nothing, NULL, on_b, NULL);
	WAIT_UNTIL(__atomic_load_n(&started, __ATOMIC_ACQUIRE));
	iou_op_timer(iou, new_op(iou), 100 * SECOND, 0, on_b, NULL);
	iou_hold(iou);
	dump(iou);
	ck_assert_msg(n_lines("worker", "", b) == 1, "%s", dumped);
	ck_assert_msg(n_lines("queue", "", b) == 1, "%s", dumped);
	ck_assert_msg(n_lines("timer", "", b) == 1, "%s", dumped);
	ck_assert_msg(n_lines("hold", "1", "") >= 1, "%s", dumped);

	ck_assert_msg(n_lines("post", "", "") == 0, "%s", dumped);
	post(iou, on_nothing, NULL);
	dump(iou);
	ck_assert_msg(n_lines("post", "", "") == 1, "%s", dumped);

	sem_post(&job_may_end);
	iou_unhold(iou);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	while (iou_run(iou) != 0)
		;
	dump(iou);
	n_lines_idle = n_lines(a, "", "") + n_lines(b, "", "");
	ck_assert_int_eq(n_lines_idle, 0);
	sem_destroy(&job_may_end);
	close_pair(fds);
	done(iou);
}
END_TEST

static int on_handler(iou_handler_t *handler) { return handler ? 0 : 3; }

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

/* Not the library's own, that stand in between for the short forms. */
START_TEST(a_dump_names_the_programs_callbacks)
{
	iou_handler_t handler = {.cb = on_handler};
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 1});
	char a[32], b[32], c[32];
	bool started = false;

	snprintf(a, sizeof(a), "%p", (void *)(uintptr_t)on_a);
	snprintf(b, sizeof(b), "%p", (void *)(uintptr_t)on_b);
	snprintf(c, sizeof(c), "%p", (void *)(uintptr_t)on_handler);
	sem_init(&job_may_end, 0, 0);
	ck_assert_int_eq(iou_async(iou, wait_job, &started, on_b, NULL), 0);
	WAIT_UNTIL(__atomic_load_n(&started, __ATOMIC_ACQUIRE));
	ck_assert_int_eq(iou_async(iou, on_a, &started, on_b, NULL), 0);
	ck_assert_int_eq(iou_add_sqe(iou, prep_nop, NULL, &handler), 0);
	dump(iou);
	ck_assert_msg(n_lines("worker", b, "") == 1, "%s", dumped);
	ck_assert_msg(n_lines("queue", a, b) == 1, "%s", dumped);
	ck_assert_msg(n_lines("backlog", c, "") == 1, "%s", dumped);
	sem_post(&job_may_end);
	while (n_pending(iou))
		ck_assert_int_ne(iou_run(iou), -1);
	sem_destroy(&job_may_end);
	done(iou);
}
END_TEST

/* The kernel's names, in the order of its numbers. */
static const char *const opcodes[] = {
	"NOP", "READV", "WRITEV", "FSYNC", "READ_FIXED", "WRITE_FIXED", "POLL_ADD", "POLL_REMOVE",
	"SYNC_FILE_RANGE", "SENDMSG", "RECVMSG", "TIMEOUT", "TIMEOUT_REMOVE", "ACCEPT",
	"ASYNC_CANCEL", "LINK_TIMEOUT", "CONNECT", "FALLOCATE", "OPENAT", "CLOSE", "FILES_UPDATE",
	"STATX", "READ", "WRITE", "FADVISE", "MADVISE", "SEND", "RECV", "OPENAT2", "EPOLL_CTL",
	"SPLICE", "PROVIDE_BUFFERS", "REMOVE_BUFFERS", "TEE", "SHUTDOWN", "RENAMEAT", "UNLINKAT",
	"MKDIRAT", "SYMLINKAT", "LINKAT", "MSG_RING", "FSETXATTR", "SETXATTR", "FGETXATTR",
	"GETXATTR", "SOCKET", "URING_CMD", "SEND_ZC", "SENDMSG_ZC",
};

/* Opcodes of liburing 2.3 have their names, newer ones their numbers. */
START_TEST(opcodes_have_names)
{
	int n_known = (int)(sizeof(opcodes) / sizeof(opcodes[0]));
	iou_t *iou = new_iou(4);
	char *line, *save = NULL, expected[64];

	for (int opcode = 0; opcode < 256; opcode++) {
		iou_op_t *op = new_op(iou);

		op->sqe->opcode = (__u8)opcode;
		op->sqe->fd = 10000 + opcode;
		iou_op_queue(iou, op, on_a, NULL);
	}
	dump(iou);
	line = strtok_r(dumped, "\n", &save);
	for (int opcode = 0; opcode < 256; opcode++, line = strtok_r(NULL, "\n", &save)) {
		ck_assert_ptr_nonnull(line);
		if (opcode < n_known)
			snprintf(expected, sizeof(expected), " %s fd %d ", opcodes[opcode],
				 10000 + opcode);
		else
			snprintf(expected, sizeof(expected), " opcode %d fd %d ", opcode,
				 10000 + opcode);
		ck_assert_msg(strstr(line, expected), "opcode %d: %s", opcode, line);
	}
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

Suite *stats_suite(void)
{
	Suite *suite = suite_create("stats");

	TEST_CASE(suite, "stats", a_new_iou_has_done_nothing, ring_ops_are_counted,
		  callbacks_of_each_kind_are_counted, wakeups_are_counted,
		  a_loop_watched_from_outside_is_woken_once);
	TEST_CASE(suite, "dump", a_dump_tells_what_is_pending, a_dump_names_the_programs_callbacks,
		  opcodes_have_names);
	return suite;
}
