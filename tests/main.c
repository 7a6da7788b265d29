/* SPDX-License-Identifier: MIT */

/*
 * Runs every suite. Check's own environment variables select and tell: CK_RUN_SUITE, CK_RUN_CASE,
 * CK_FORK=no, CK_VERBOSITY=verbose, CK_TIMEOUT_MULTIPLIER, CK_TAP_LOG_FILE_NAME.
 */

#include "helper.h"

#include <sys/resource.h>

#define ADD_SUITE(name) srunner_add_suite(runner, name##_suite());

int main(void)
{
	SRunner *runner = srunner_create(NULL);
	int n_failed;

	/* Misuse tests abort on purpose: no core files. */
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	SUITES(ADD_SUITE)
	srunner_run_all(runner, CK_ENV);
	n_failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return n_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
