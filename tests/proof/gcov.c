/* SPDX-License-Identifier: MIT */

/* What ran before an abort() or an _exit() counts too: misuse, and forked children. For
 * coverage.sh. */

void __gcov_dump(void);

void __real_abort(void) __attribute__((noreturn));
void __wrap_abort(void) __attribute__((noreturn));
void __real__exit(int status) __attribute__((noreturn));
void __wrap__exit(int status) __attribute__((noreturn));

void __wrap_abort(void)
{
	__gcov_dump();
	__real_abort();
}

void __wrap__exit(int status)
{
	__gcov_dump();
	__real__exit(status);
}
