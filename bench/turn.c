/* SPDX-License-Identifier: MIT */
/*
 * turn [-q] [-t SECONDS] COMMAND [ARGUMENT...]: one turn of one contender. Runs the command and prints, after what it
 * printed itself (-q: thrown away), how long it took and who else was running on the machine:
 *
 *     wall_ms cpu_ms rss_mib   of the command
 *     others                   CPU time that others used meanwhile, and that the hypervisor took, in % of one CPU
 *
 * Exits as the command does; 77 where there is no such command; 124 when it was ended after SECONDS (120).
 */
#include "bench.h"

#include <signal.h>
#include <sys/wait.h>

static pid_t child;

/* Busy time of all CPUs since boot, in clock ticks, what was stolen included. */
static double busy_ticks(void)
{
	double user = 0, nice = 0, sys = 0, idle, iowait, irq = 0, softirq = 0, steal = 0;
	FILE *file = fopen("/proc/stat", "r");

	if (!file || fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &sys, &idle, &iowait, &irq,
			    &softirq, &steal) != 8)
		user = 0;
	if (file)
		fclose(file);
	return user + nice + sys + irq + softirq + steal;
}

static double seconds(struct timeval time)
{
	return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

/* The command and all that it started. */
static void out_of_time(int sig)
{
	(void)sig;
	kill(-child, SIGKILL);
}

static void start(char **argv, int quiet)
{
	child = must_errno(fork(), "fork");
	if (child != 0)
		return;
	setpgid(0, 0);
	if (quiet && !freopen("/dev/null", "w", stdout))
		die("/dev/null", errno);
	execvp(argv[0], argv);
	_exit(errno == ENOENT ? BENCH_MISSING : 126);
}

int main(int argc, char **argv)
{
	int quiet = 0, limit = 120, status, opt;
	double busy, wall, cpu;
	struct rusage use;
	uint64_t begun;

	while ((opt = getopt(argc, argv, "+qt:")) != -1) {
		if (opt == 't')
			limit = atoi(optarg);
		else
			quiet = 1;
	}
	if (optind == argc)
		die("usage: turn [-q] [-t SECONDS] COMMAND [ARGUMENT...]", EINVAL);
	signal(SIGALRM, out_of_time);
	busy = busy_ticks();
	begun = now_ns();
	start(argv + optind, quiet);
	setpgid(child, child);
	alarm((unsigned)limit);
	while (wait4(child, &status, 0, &use) < 0)
		must_errno(errno == EINTR ? 0 : -1, "wait4");
	wall = (double)(now_ns() - begun) / 1e9;
	cpu = seconds(use.ru_utime) + seconds(use.ru_stime);
	busy = (busy_ticks() - busy) / (double)sysconf(_SC_CLK_TCK);
	report("wall_ms", wall * 1e3);
	report("cpu_ms", cpu * 1e3);
	report("rss_mib", (double)use.ru_maxrss / 1024);
	report("others", busy > cpu ? (busy - cpu) / wall * 100 : 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) == SIGKILL ? 124 : 1;
}
