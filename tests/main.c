/* SPDX-License-Identifier: MIT */

/*
 * Runs every suite. Check's own environment variables select and tell: CK_RUN_SUITE, CK_RUN_CASE,
 * CK_FORK=no, CK_VERBOSITY=verbose, CK_TIMEOUT_MULTIPLIER, CK_TAP_LOG_FILE_NAME. With an argument
 * it runs none. "refused": prints why io_uring cannot be used here, or nothing if it can.
 * "engine": prints the engine that runs the tests, or why there is none.
 */

#include "helper.h"

#include <sys/resource.h>

#define ADD_SUITE(name) srunner_add_suite(runner, name##_suite());

/* The kernel is asked without iou: what iou does wrong is no reason to skip its tests. */
static int print_refusal(void)
{
	struct io_uring_params params = {0};
	struct io_uring ring;
	int ret = io_uring_queue_init_params(4, &ring, &params);

	if (ret == 0) {
		io_uring_prep_nop(io_uring_get_sqe(&ring));
		ret = io_uring_submit_and_wait(&ring, 1);
		if (ret >= 0) /* -ENXIO: there is none, and register is allowed */
			ret = io_uring_unregister_eventfd(&ring);
		if (!(params.features & IORING_FEAT_EXT_ARG))
			ret = -ENOSYS;
		io_uring_queue_exit(&ring);
	}
	if (ret == -EPERM || ret == -EACCES || ret == -ENOSYS)
		puts(strerror(-ret));
	return EXIT_SUCCESS;
}

static int print_engine(void)
{
	iou_t *iou = iou_new(4);
	bool is_there = iou != NULL;

	puts(is_there ? iou_engine_name(iou) : strerror(errno));
	iou_free(iou);
	return is_there ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	SRunner *runner;
	int n_failed;

	if (argc > 1 && strcmp(argv[1], "refused") == 0)
		return print_refusal();
	if (argc > 1 && strcmp(argv[1], "engine") == 0)
		return print_engine();
	runner = srunner_create(NULL);
	/* Misuse tests abort on purpose: no core files. */
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	SUITES(ADD_SUITE)
	srunner_run_all(runner, CK_ENV);
	n_failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return n_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
