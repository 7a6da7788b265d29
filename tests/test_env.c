/* SPDX-License-Identifier: MIT */

/* Environments: storage for a closure's captures that lives and dies with its op. */

#include "helper.h"

#include <poll.h>
#include <sys/eventfd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

/* As strict as any type that a C compiler here knows. */
typedef union strict_t {
	long long integer;
	long double real;
	void *pointer;
	_Complex long double complex;
} strict_t;

static iou_t *the_iou;

static unsigned char *new_env(iou_op_t *op, size_t size)
{
	unsigned char *env = iou_op_env(op, size);

	ck_assert_msg(env != NULL, "iou_op_env(%zu): %s", size, strerror(errno));
	return env;
}

static bool is_filled(const unsigned char *env, size_t size, int with)
{
	for (size_t i = 0; i < size; i++)
		if (env[i] != (unsigned char)with)
			return false;
	return true;
}

/* In the pool's fresh memory, and in what others have used before. */
START_TEST(an_environment_is_zeroed_and_aligned)
{
	static const size_t sizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65,
					66, 80, 100, 127, 128, 129, 1000, 4096, 100000};
	enum { N = sizeof(sizes) / sizeof(*sizes) };
	iou_t *iou = new_iou(2);
	iou_op_t *ops[N];

	for (int repeat = 0; repeat < 4; repeat++) {
		for (int i = 0; i < N; i++) {
			size_t size = sizes[(i * 5 + repeat) % N];
			unsigned char *env;

			ops[i] = new_op(iou);
			env = new_env(ops[i], size);
			ck_assert_uint_eq((uintptr_t)env % _Alignof(strict_t), 0);
			ck_assert(is_filled(env, size, 0));
			ck_assert_ptr_eq(iou_op_of(env), ops[i]);
			memset(env, 0xee, size);
		}
		for (int i = 0; i < N; i++)
			iou_op_free(iou, ops[i]);
	}
	done(iou);
}
END_TEST

typedef struct capture_t {
	size_t size;
	unsigned char fill, bytes[];
} capture_t;

static int n_checked;

/* With nothing but its environment, the callback finds its op. */
static int on_capture(void *data)
{
	capture_t *capture = data;
	iou_op_t *op = iou_op_of(capture);

	if (op->result != 0 || !is_filled(capture->bytes, capture->size, capture->fill))
		return -EPROTO;
	n_checked++;
	return 0;
}

/* A thousand at once, of all sizes around the small ones, beside each other and beside what ops are
 * made of. */
START_TEST(each_op_has_its_own_environment)
{
	enum { N = 1000 };
	iou_t *iou = new_iou(2);

	n_checked = 0;
	for (int i = 0; i < N; i++) {
		iou_op_t *op = new_op(iou);
		size_t size = (size_t)(i % 150);
		capture_t *capture = iou_op_env(op, sizeof(*capture) + size);

		ck_assert_ptr_nonnull(capture);
		io_uring_prep_nop(op->sqe);
		capture->size = size;
		capture->fill = (unsigned char)i;
		memset(capture->bytes, i, size);
		iou_op_queue(iou, op, on_capture, capture);
	}
	run(iou);
	ck_assert_int_eq(n_checked, N);
	done(iou);
}
END_TEST

START_TEST(an_op_has_one_environment)
{
	iou_t *iou = new_iou(2);
	iou_op_t *op = new_op(iou);
	unsigned char *env = new_env(op, 10);

	memset(env, 7, 10);
	for (size_t size = 1; size < 1000; size *= 10) {
		errno = 0;
		ck_assert_ptr_null(iou_op_env(op, size));
		ck_assert_int_eq(errno, EEXIST);
	}
	ck_assert(is_filled(env, 10, 7));
	iou_op_free(iou, op);
	errno = 0;
	ck_assert_ptr_null(iou_op_env(NULL, 10));
	ck_assert_int_eq(errno, EINVAL);
	done(iou);
}
END_TEST

static int on_late(void *data)
{
	iou_op_t *op = *(iou_op_t **)data;

	*(void **)data = iou_op_env(op, 1);
	return 0;
}

/* Also one that its op had no use for before its callback. */
START_TEST(an_environment_may_come_late)
{
	iou_t *iou = new_iou(2);
	iou_op_t *op = new_op(iou);
	void *data = op;

	io_uring_prep_nop(op->sqe);
	iou_op_queue(iou, op, on_late, &data);
	run(iou);
	ck_assert_ptr_nonnull(data);
	ck_assert_ptr_ne(data, op);
	done(iou);
}
END_TEST

START_TEST(a_huge_environment_is_refused)
{
	static const size_t sizes[] = {SIZE_MAX,      SIZE_MAX - 1,  SIZE_MAX - 8,
					SIZE_MAX - 16, SIZE_MAX - 64, SIZE_MAX / 2};
	iou_t *iou = new_iou(2);
	iou_op_t *op = new_op(iou);
	call_t call;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		errno = 0;
		ck_assert_ptr_null(iou_op_env(op, sizes[i]));
		ck_assert_int_eq(errno, ENOMEM);
	}
	memset(new_env(op, 10), 1, 10); /* a smaller one can be had */
	iou_op_free(iou, op);
	io_uring_prep_nop(call_op(iou, &call, 0));
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	done(iou);
}
END_TEST

START_TEST(small_environments_cost_no_allocation)
{
	void *small = NULL, *large = NULL;
	int error;
	iou_op_t *op[2];
	iou_t *iou;

	if (is_watched())
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	iou = new_iou(2);
	op[0] = new_op(iou);
	op[1] = new_op(iou);
	starve();
	small = iou_op_env(op[0], 64);
	errno = 0;
	large = iou_op_env(op[1], 1 << 20);
	error = errno;
	feed();
	ck_assert_ptr_nonnull(small);
	ck_assert_ptr_null(large);
	ck_assert_int_eq(error, ENOMEM);
	large = new_env(op[1], 1 << 20); /* nothing had happened */
	ck_assert_ptr_eq(iou_op_of(large), op[1]);
	ck_assert_ptr_eq(iou_op_of(small), op[0]);
	iou_op_free(iou, op[0]);
	iou_op_free(iou, op[1]);
	done(iou);
}
END_TEST

typedef struct life_t {
	int step;
	size_t size;
	char text[8];
	unsigned char rest[];
} life_t;

static int on_life(void *data)
{
	life_t *life = data;
	iou_op_t *op = iou_op_of(life);

	if (strcmp(life->text, "still") != 0 || !is_filled(life->rest, life->size, 0x5a) ||
	    iou_op_env(op, 1))
		return -EPROTO;
	switch (++life->step) {
	case 1:
	case 4:
		nop_queue(the_iou, op, on_life, life);
		return 0;
	case 2:
		start_job(the_iou, op, on_nothing, life, on_life, life);
		return 0;
	case 3:
	case 5:
		iou_op_timer(the_iou, op, 1, 0, on_life, life);
		return 0;
	case 6: /* nested loops see it too */
		start(the_iou, CQE, on_nothing, NULL);
		return iou_poll(the_iou, -1) == 1 && life->step == 6 ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
}

/* While it is queued again, by whatever door, the environment stays. */
START_TEST(an_environment_stays_for_the_ops_life)
{
	static const size_t sizes[] = {0, 10, 1000};

	the_iou = new_iou(2);
	for (int i = 0; i < 3; i++) {
		iou_op_t *op = new_op(the_iou);
		life_t *life = iou_op_env(op, sizeof(*life) + sizes[i]);

		ck_assert_ptr_nonnull(life);
		life->size = sizes[i];
		strcpy(life->text, "still");
		memset(life->rest, 0x5a, life->size);
		nop_queue(the_iou, op, on_life, life);
		run(the_iou);
	}
	for (int i = 0; i < 10; i++) { /* the next ops have none of it */
		iou_op_t *op = new_op(the_iou);

		ck_assert(is_filled(new_env(op, 64), 64, 0));
		iou_op_free(the_iou, op);
	}
	done(the_iou);
}
END_TEST

static int on_event(void *data)
{
	int *n = data;

	(*n)++;
	return iou_op_of(n)->flags & IORING_CQE_F_MORE ? 0 : -100;
}

START_TEST(an_environment_stays_between_the_cqes_of_a_multishot_op)
{
	iou_t *iou = new_iou(2);
	iou_op_t *op = new_op(iou);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), *n = (int *)(void *)new_env(op, 500);
	uint64_t one = 1;

	io_uring_prep_poll_multishot(op->sqe, fd, POLLIN);
	iou_op_queue(iou, op, on_event, n);
	for (int i = 1; i <= 4; i++) {
		ck_assert_int_eq(write(fd, &one, sizeof(one)), sizeof(one));
		POLL_UNTIL(iou, *n == i);
	}
	ck_assert_int_eq(iou_op_cancel(iou, op), 0);
	ck_assert_int_eq(iou_run(iou), -100);
	close(fd);
	done(iou);
}
END_TEST

/* Environments of ops that never end are freed with the iou: LeakSanitizer would tell. */
START_TEST(free_takes_environments_along)
{
	iou_t *iou = new_iou(2);
	call_t calls[4];
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 4; i++) {
		call_op(iou, &calls[i], i);
		memset(new_env(calls[i].op, 5000), 1, 5000);
	}
	io_uring_prep_read(calls[0].op->sqe, fds[0], new_env(new_op(iou), 100), 1, 0);
	call_queue(iou, &calls[0]);
	flush(iou);
	io_uring_prep_nop(calls[1].op->sqe);
	call_queue(iou, &calls[1]);
	iou_op_timer(iou, calls[2].op, SECOND * 1000, 0, on_call, &calls[2]);
	ck_assert_ptr_null(iou_free(iou));
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(calls[i].n, 0);
	close_pair(fds);
}
END_TEST

#ifdef __SANITIZE_ADDRESS__
/* A use of an op or of its environment after the last callback is seen. */
START_TEST(an_op_given_back_is_poisoned_with_its_environment)
{
	iou_t *iou = new_iou(2);
	unsigned char *env;
	call_t call;

	for (int i = 0; i < 2; i++) {
		io_uring_prep_nop(call_op(iou, &call, 0));
		env = new_env(call.op, 64);
		ck_assert(!__asan_address_is_poisoned(&call.op->result));
		ck_assert(!__asan_address_is_poisoned(call.op->sqe));
		ck_assert(!__asan_address_is_poisoned(env));
		if (i) {
			iou_op_free(iou, call.op);
		} else {
			call_queue(iou, &call);
			run(iou);
		}
		ck_assert(__asan_address_is_poisoned(&call.op->result));
		ck_assert(__asan_address_is_poisoned(&call.op->sqe));
		ck_assert(__asan_address_is_poisoned(env));
	}
	done(iou);
}
END_TEST
#endif

Suite *env_suite(void)
{
	Suite *suite = suite_create("env");

	TEST_CASE(suite, "storage", an_environment_is_zeroed_and_aligned,
		  each_op_has_its_own_environment, an_op_has_one_environment,
		  an_environment_may_come_late, a_huge_environment_is_refused,
		  small_environments_cost_no_allocation);
	TEST_CASE(suite, "life", an_environment_stays_for_the_ops_life,
		  an_environment_stays_between_the_cqes_of_a_multishot_op,
		  free_takes_environments_along);
#ifdef __SANITIZE_ADDRESS__
	TEST_CASE(suite, "poison", an_op_given_back_is_poisoned_with_its_environment);
#endif
	return suite;
}
