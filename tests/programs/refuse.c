/* SPDX-License-Identifier: MIT */

/*
 * refuse CALL HOW COMMAND [ARGUMENT...]: run a command and refuse io_uring to it, as containers do.
 * CALL is setup, enter, register (io_uring_setup and so on), or all of them. HOW is the error that
 * it ends with (EPERM, ENOSYS, EACCES), or KILL: it ends the process. Exits with 77 if the kernel
 * takes no filter.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define N(array) (sizeof(array) / sizeof((array)[0]))
#define NO_CALL 0xffffffff
#define IS(nr, then) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), (then), 0)

static const struct {
	const char *name;
	unsigned nr;
} calls[] = {
	{"setup", SYS_io_uring_setup},
	{"enter", SYS_io_uring_enter},
	{"register", SYS_io_uring_register},
};

static const struct {
	const char *name;
	unsigned action;
} hows[] = {
	{"EPERM", SECCOMP_RET_ERRNO | EPERM},
	{"ENOSYS", SECCOMP_RET_ERRNO | ENOSYS},
	{"EACCES", SECCOMP_RET_ERRNO | EACCES},
	{"KILL", SECCOMP_RET_KILL_PROCESS},
};

static int usage(void)
{
	fputs("usage: refuse setup|enter|register|all EPERM|ENOSYS|EACCES|KILL COMMAND "
	      "[ARGUMENT...]\n",
	      stderr);
	return 2;
}

int main(int argc, char **argv)
{
	unsigned nrs[] = {NO_CALL, NO_CALL, NO_CALL}, n_refused = 0, action = SECCOMP_RET_ALLOW;

	if (argc < 4)
		return usage();
	for (size_t i = 0; i < N(calls); i++)
		if (strcmp(argv[1], calls[i].name) == 0 || strcmp(argv[1], "all") == 0)
			nrs[n_refused++] = calls[i].nr;
	for (size_t i = 0; i < N(hows); i++)
		if (strcmp(argv[2], hows[i].name) == 0)
			action = hows[i].action;
	if (n_refused == 0 || action == SECCOMP_RET_ALLOW)
		return usage();

	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		IS(nrs[0], 3),
		IS(nrs[1], 2),
		IS(nrs[2], 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, action),
	};
	struct sock_fprog program = {.len = N(filter), .filter = filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
		fprintf(stderr, "refuse: %s\n", strerror(errno));
		return 77;
	}
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* those that are killed leave none */
	execvp(argv[3], argv + 3);
	fprintf(stderr, "refuse: %s: %s\n", argv[3], strerror(errno));
	return 126;
}
