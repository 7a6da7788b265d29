/* SPDX-License-Identifier: MIT */

/* Engines: which one runs an iou, what it knows, what is registered with it, the end of its life. */

#include "helper.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

static iou_t *the_iou;

static void begin(void) { the_iou = new_iou(8); }
static void end(void) { done(the_iou); }

static const char *chosen(unsigned engine)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.engine = engine});
	const char *name = iou ? iou_engine_name(iou) : strerror(errno);

	iou_free(iou);
	return name;
}

START_TEST(an_iou_says_which_engine_runs_it)
{
	const char *name = iou_engine_name(the_iou);

	ck_assert(strcmp(name, "io_uring") == 0 || strcmp(name, "fallback") == 0);
	errno = 0;
	ck_assert_ptr_null(iou_engine_name(NULL));
	ck_assert_int_eq(errno, EINVAL);
	if (!on_fallback())
		ck_assert_str_eq(chosen(IOU_ENGINE_RING), "io_uring");
}
END_TEST

START_TEST(the_fallback_is_taken_if_it_is_asked_for)
{
	ck_assert_str_eq(chosen(IOU_ENGINE_FALLBACK), "fallback");
}
END_TEST

/* _i: the engine. */
START_TEST(the_engine_stays)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.engine = (unsigned)_i});
	const char *name;
	char text[512] = "";
	FILE *out;

	if (!iou && _i == IOU_ENGINE_RING && !ring_works())
		SKIP("needs io_uring");
	ck_assert_ptr_nonnull(iou);
	name = iou_engine_name(iou);
	ck_assert_int_eq(iou_resize(iou, 256), 0);
	nop_queue(iou, new_op(iou), on_nothing, NULL);
	run(iou);
	ck_assert_int_eq(iou_resize(iou, 4), 0);
	ck_assert_str_eq(iou_engine_name(iou), name);
	out = fmemopen(text, sizeof(text), "w");
	iou_dump(iou, out);
	fclose(out);
	ck_assert(strncmp(text, name, strlen(name)) == 0 && strstr(text, ": 0 ops pending"));
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

START_TEST(sqpoll_is_not_for_the_fallback)
{
	iou_config_t config = {.engine = IOU_ENGINE_FALLBACK, .setup_flags = IORING_SETUP_SQPOLL};

	errno = 0;
	ck_assert_ptr_null(iou_new_with(&config));
	ck_assert_int_eq(errno, EINVAL);
}
END_TEST

START_TEST(an_unknown_engine_is_refused)
{
	errno = 0;
	ck_assert_ptr_null(iou_new_with(&(iou_config_t){.engine = IOU_ENGINE_FALLBACK + 1}));
	ck_assert_int_eq(errno, EINVAL);
}
END_TEST

START_TEST(an_engine_knows_its_opcodes)
{
	static const unsigned known[] = {IORING_OP_NOP, IORING_OP_READ, IORING_OP_WRITE,
					 IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		ck_assert_int_eq(iou_opcode_supported(the_iou, known[i]), 1);
	ck_assert_int_eq(iou_opcode_supported(the_iou, 250), 0);
	ck_assert_int_eq(iou_opcode_supported(the_iou, UINT32_MAX), 0);
	ck_assert_int_eq(iou_opcode_supported(NULL, IORING_OP_NOP), -EINVAL);
}
END_TEST

static void ask_another_thread(void *data)
{
	int *ret = data;

	ret[0] = iou_opcode_supported(the_iou, IORING_OP_NOP);
	ret[1] = iou_register(the_iou, IORING_UNREGISTER_FILES, NULL, 0);
	ret[2] = iou_at_free(the_iou, free, NULL);
}

START_TEST(these_calls_are_the_loop_threads)
{
	int ret[3];

	flush(the_iou);
	in_thread(ask_another_thread, ret);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(ret[i], -EEXIST);
}
END_TEST

/* A buffer that was registered is read into. */
START_TEST(buffers_are_registered)
{
	char text[64] = "";
	struct iovec iov = {text, sizeof(text)};
	call_t call;
	int fds[2];
	int ret = iou_register(the_iou, IORING_REGISTER_BUFFERS, &iov, 1);

	ck_assert_int_eq(ret, 0);
	new_pipe(fds);
	ck_assert_int_eq(write(fds[1], "hello", 5), 5);
	call_op(the_iou, &call, 0);
	io_uring_prep_read_fixed(call.op->sqe, fds[0], text, 5, 0, 0);
	iou_op_queue(the_iou, call.op, on_call, &call);
	run(the_iou);
	ck_assert_int_eq(call.result, 5);
	ck_assert_str_eq(text, "hello");
	ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
	ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_BUFFERS, NULL, 0), -ENXIO);
	close_pair(fds);
}
END_TEST

/* ENABLE_RINGS, RING_FDS and back, SYNC_CANCEL, CLOCK, SEND_MSG_RING, RESIZE_RINGS; and those by a
 * registered index. */
START_TEST(what_iou_rests_on_is_not_registered)
{
	static const unsigned ours[] = {12, 20, 21, 24, 29, 31, 33, 1U << 31};

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		ck_assert_int_eq(iou_register(the_iou, ours[i], NULL, 0), -EINVAL);
	ck_assert_int_eq(iou_register(NULL, IORING_UNREGISTER_FILES, NULL, 0), -EINVAL);
}
END_TEST

START_TEST(eventfds_are_the_programs_until_iou_fd)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	int ret = iou_register(the_iou, IORING_REGISTER_EVENTFD, &fd, 1);

	ck_assert(ret == 0 || ret == -EBUSY); /* before 5.18 iou takes it at once */
	if (ret == 0)
		ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_EVENTFD, NULL, 0), 0);
	ck_assert_int_ge(iou_fd(the_iou), 0);
	ck_assert_int_eq(iou_register(the_iou, IORING_REGISTER_EVENTFD, &fd, 1), -EINVAL);
	ck_assert_int_eq(iou_register(the_iou, IORING_UNREGISTER_EVENTFD, NULL, 0), -EINVAL);
	close(fd);
}
END_TEST

/* _i: on a ring that a resize made. All ops that the program has wait at once. */
START_TEST(ops_in_flight_need_no_memory)
{
	enum { N = 300 };
	iou_t *iou = new_iou(8);
	call_t calls[N];
	int fds[2], ret;
	char byte;

	if (is_watched()) {
		done(iou);
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	}
	new_pipe(fds);
	for (int i = 0; i < N; i++)
		call_op(iou, &calls[i], i);
	if (_i)
		ck_assert_int_eq(iou_resize(iou, 16), 0);
	starve();
	for (int i = 0; i < N; i++) {
		io_uring_prep_read(calls[i].op->sqe, fds[0], &byte, 1, -1);
		call_queue(iou, &calls[i]);
	}
	ret = iou_flush(iou);
	feed();
	ck_assert_int_eq(ret, 0);
	ck_assert_uint_eq(get_stats(iou).backlog, 0);
	iou_cancel_all(iou);
	run(iou);
	for (int i = 0; i < N; i++)
		ck_assert_int_eq(calls[i].result, -ECANCELED);
	close_pair(fds);
	done(iou);
}
END_TEST

/* ---- iou_at_free() --------------------------------------------------------------------------- */

static char letters[8];
static bool op_was_freed;

static void note_letter(void *data) { strncat(letters, data, 1); }

static int on_end(void *data)
{
	(void)data;
	return 0;
}

static void look_at_pipe(void *data)
{
	char byte;

	op_was_freed = read(*(int *)data, &byte, 1) == 0; /* the job's end was closed before */
}

START_TEST(the_latest_is_called_first)
{
	iou_t *iou = new_iou(8);

	ck_assert_int_eq(iou_at_free(iou, note_letter, "a"), 0);
	ck_assert_int_eq(iou_at_free(iou, note_letter, "b"), 0);
	ck_assert_int_eq(iou_at_free(iou, note_letter, "c"), 0);
	ck_assert_int_eq(iou_at_free(iou, NULL, "d"), -EINVAL);
	run(iou);
	ck_assert_str_eq(letters, "");
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_str_eq(letters, "cba");
}
END_TEST

static sem_t job_runs;

static int close_later(void *data)
{
	sem_post(&job_runs);
	nap();
	return close(*(int *)data);
}

/* Last: a job that still runs when iou_free() begins has ended. */
START_TEST(nothing_is_touched_any_more)
{
	iou_t *iou = new_iou(8);
	iou_op_t *op = new_op(iou);
	int fds[2];

	new_pipe(fds);
	ck_assert_int_eq(iou_at_free(iou, look_at_pipe, &fds[0]), 0);
	sem_init(&job_runs, 0, 0);
	ck_assert_int_eq(iou_op_async(iou, op, close_later, &fds[1], on_end, NULL), 0);
	sem_wait(&job_runs);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert(op_was_freed);
	close(fds[0]);
	sem_destroy(&job_runs);
}
END_TEST

static void free_in_child(void *data) { EXPECT(iou_free(data) == NULL && *letters == '\0'); }

START_TEST(a_child_calls_none)
{
	iou_t *iou = new_iou(8);

	ck_assert_int_eq(iou_at_free(iou, note_letter, "a"), 0);
	in_good_child(free_in_child, iou);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_str_eq(letters, "a");
}
END_TEST

/* ---- Loops that share a descriptor ------------------------------------------------------------ */

enum { N_LOOPS = 3 };

static int listener;
static sem_t posted;

typedef struct accepter_t {
	iou_t *iou;
	iou_op_t *op;
	bool stops;
} accepter_t;

static int on_connection(void *data)
{
	accepter_t *self = data;

	if (self->op->result < 0)
		return 0;
	close(self->op->result);
	if (self->stops)
		return 0;
	io_uring_prep_accept(self->op->sqe, listener, NULL, NULL, 0);
	iou_op_queue(self->iou, self->op, on_connection, self);
	return 0;
}

static int on_posted(void *data)
{
	(void)data;
	return sem_post(&posted);
}

static int on_stop(void *data)
{
	accepter_t *self = data;

	self->stops = true;
	return iou_cancel_all(self->iou);
}

static void *accepter_main(void *data)
{
	accepter_t *self = data;

	io_uring_prep_accept(self->op->sqe, listener, NULL, NULL, 0);
	iou_op_queue(self->iou, self->op, on_connection, self);
	ck_assert_int_eq(iou_run(self->iou), 0);
	return iou_free(self->iou);
}

static bool all_loops_answer(accepter_t *loops)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 20; /* a loop that blocks never answers */
	for (int i = 0; i < N_LOOPS; i++)
		if (iou_post(loops[i].iou, on_posted, NULL) < 0)
			return false;
	for (int i = 0; i < N_LOOPS; i++)
		if (sem_timedwait(&posted, &until) < 0)
			return false;
	return true;
}

/* The listener blocks. None of the loops does, whoever gets the connection. */
START_TEST(loops_share_a_listener)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t size = sizeof(to);
	int n_connections = is_slow() ? 200 : 1500;
	accepter_t loops[N_LOOPS];
	pthread_t threads[N_LOOPS];

	listener = socket(AF_INET, SOCK_STREAM, 0);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&to, size), 0);
	ck_assert_int_eq(listen(listener, 64), 0);
	ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&to, &size), 0);
	sem_init(&posted, 0, 0);
	for (int i = 0; i < N_LOOPS; i++) {
		loops[i].iou = new_iou(8);
		loops[i].op = new_op(loops[i].iou);
		loops[i].stops = false;
		iou_hold(loops[i].iou);
		pthread_create(&threads[i], NULL, accepter_main, &loops[i]);
	}
	for (int i = 0; i < n_connections; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		ck_assert_int_eq(connect(fd, (struct sockaddr *)&to, size), 0);
		ck_assert_msg(i % 4 || all_loops_answer(loops), "connection %d", i);
		close(fd);
	}
	for (int i = 0; i < N_LOOPS; i++) {
		ck_assert_int_eq(iou_post(loops[i].iou, on_stop, &loops[i]), 0);
		iou_unhold(loops[i].iou);
	}
	for (int i = 0; i < N_LOOPS; i++)
		pthread_join(threads[i], NULL);
	close(listener);
	sem_destroy(&posted);
}
END_TEST

Suite *engine_suite(void)
{
	Suite *suite = suite_create("engine");
	TCase *tcase;

	tcase = TEST_CASE(suite, "engine", an_iou_says_which_engine_runs_it,
			  the_fallback_is_taken_if_it_is_asked_for, sqpoll_is_not_for_the_fallback,
			  an_unknown_engine_is_refused, an_engine_knows_its_opcodes,
			  these_calls_are_the_loop_threads, buffers_are_registered,
			  what_iou_rests_on_is_not_registered, eventfds_are_the_programs_until_iou_fd);
	tcase_add_checked_fixture(tcase, begin, end);
	tcase = TEST_CASE(suite, "kinds", NULL);
	tcase_add_loop_test(tcase, the_engine_stays, 0, 3);
	tcase_add_loop_test(tcase, ops_in_flight_need_no_memory, 0, 2);
	TEST_CASE(suite, "shared", loops_share_a_listener);
	TEST_CASE(suite, "at_free", the_latest_is_called_first, nothing_is_touched_any_more,
		  a_child_calls_none);
	return suite;
}
