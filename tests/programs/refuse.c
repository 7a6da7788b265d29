/* SPDX-License-Identifier: MIT */

/*
 * refuse setup|enter|all EPERM|ENOSYS COMMAND [ARGUMENT...]: run a command and refuse io_uring to
 * it, as containers do: io_uring_setup, io_uring_enter, or these two and io_uring_register end with
 * that error. Exits with 77 if the kernel takes no filter.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define IS(nr, then) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), (then), 0)
#define NO_CALL 0xffffffff

int main(int argc, char **argv)
{
	const char *what = argc > 3 ? argv[1] : "";
	unsigned setup = strcmp(what, "enter") != 0 ? SYS_io_uring_setup : NO_CALL;
	unsigned enter = strcmp(what, "setup") != 0 ? SYS_io_uring_enter : NO_CALL;
	unsigned others = strcmp(what, "all") == 0 ? SYS_io_uring_register : NO_CALL;
	unsigned error = argc > 3 && strcmp(argv[2], "ENOSYS") == 0 ? ENOSYS : EPERM;
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		IS(setup, 3),
		IS(enter, 2),
		IS(others, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
	};
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};

	if (argc < 4) {
		fputs("usage: refuse setup|enter|all EPERM|ENOSYS COMMAND [ARGUMENT...]\n", stderr);
		return 2;
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
		fprintf(stderr, "refuse: %s\n", strerror(errno));
		return 77;
	}
	execvp(argv[3], argv + 3);
	fprintf(stderr, "refuse: %s: %s\n", argv[3], strerror(errno));
	return 126;
}
