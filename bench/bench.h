/* SPDX-License-Identifier: MIT */
#ifndef BENCH_H
#define BENCH_H

/*
 * What the bench programs share: a clock, a way to fail, and how a figure is taken.
 *
 * A program is called  PROGRAM CONTENDER [ARGUMENT...]  and runs one contender once, in a process of its own, so
 * that the driver (bench/run) can take the contenders in turn. It prints a line  METRIC VALUE  for each
 * figure. A contender whose library was not there when the program was built exits with 77.
 *
 * In the environment: BENCH_MS, how long to measure in milliseconds (300); BENCH_PLACE, where the threads run:
 * "apart" puts the main thread on the first CPU and all others on the second, "together" all on the first. A
 * wake-up across CPUs can cost thirty times one on the same CPU, and which it is the scheduler decides by
 * chance: figures that consist of wake-ups compare only with the places fixed.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BENCH_MISSING 77 /* exit status: no such contender in this build */

/* One contender of a program: its name on the command line, and what runs it. */
struct contender {
	const char *name;
	void (*run)(int argc, char **argv); /* the arguments after the name */
};

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

__attribute__((noreturn)) static inline void die(const char *what, int error)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

/* For calls that answer 0 or more, or -errno. */
static inline int must(int result, const char *what)
{
	if (result < 0)
		die(what, result);
	return result;
}

/* For calls that answer -1 and set errno, and for pointers. */
static inline int must_errno(int result, const char *what)
{
	if (result < 0)
		die(what, errno);
	return result;
}

static inline void *must_have(void *pointer, const char *what)
{
	if (!pointer)
		die(what, errno);
	return pointer;
}

static inline void report(const char *metric, double value)
{
	printf("%s %.3f\n", metric, value);
}

static inline uint64_t argument(int argc, char **argv, int i, uint64_t otherwise)
{
	return i < argc ? strtoull(argv[i], NULL, 10) : otherwise;
}

static inline uint64_t bench_ns(void)
{
	const char *ms = getenv("BENCH_MS");

	return (ms && atoi(ms) > 0 ? (uint64_t)atoi(ms) : 300) * 1000000;
}

static inline uint64_t cpu_ns(void)
{
	struct rusage use;

	getrusage(RUSAGE_SELF, &use);
	return (uint64_t)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000000 +
	       (uint64_t)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1000;
}

/* xorshift64*: the same cheap sequence for every contender. */
static inline uint64_t random64(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1d;
}

/* Puts the threads that exist now in their places, see above. Threads that may not be moved stay. */
static inline void place_threads(void)
{
	const char *how = getenv("BENCH_PLACE");
	static cpu_set_t allowed; /* before the first call */
	cpu_set_t first, second;
	struct dirent *task;
	int cpu = 0;
	DIR *tasks;

	if (!how || (CPU_COUNT(&allowed) == 0 && sched_getaffinity(0, sizeof(allowed), &allowed) < 0))
		return;
	CPU_ZERO(&first);
	CPU_ZERO(&second);
	while (!CPU_ISSET(cpu, &allowed))
		cpu++;
	CPU_SET(cpu, &first);
	do
		cpu++;
	while (cpu < CPU_SETSIZE && !CPU_ISSET(cpu, &allowed));
	if (strcmp(how, "apart") != 0 || cpu == CPU_SETSIZE)
		second = first;
	else
		CPU_SET(cpu, &second);
	tasks = must_have(opendir("/proc/self/task"), "/proc/self/task");
	while ((task = readdir(tasks))) {
		pid_t tid = atoi(task->d_name);

		if (tid > 0)
			sched_setaffinity(tid, sizeof(first), tid == getpid() ? &first : &second);
	}
	closedir(tasks);
}

static inline int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

#define SLICES 9

/* How long one of n takes, where run(state, n) does n of them, by the wall clock and in CPU time (by `cpu`: of the
 * process or of the thread, the kernel's part included). Warmed up, scaled to last BENCH_MS in all, and the median of
 * SLICES parts, so that a neighbour's short burst does not count. CPU time hardly knows the neighbours at all. */
static inline void measure_each(void (*run)(void *state, uint64_t n), void *state, uint64_t n, clockid_t cpu,
				double *ns, double *cpu_ns)
{
	uint64_t want = bench_ns() / SLICES, wall[SLICES], busy[SLICES];

	for (;;) {
		wall[0] = now_ns();
		run(state, n);
		wall[0] = now_ns() - wall[0];
		place_threads(); /* those that the first run started */
		if (wall[0] >= want / 2)
			break;
		n *= wall[0] < want / 16 ? 8 : 2;
	}
	n = 1 + (uint64_t)((double)n * (double)want / (double)wall[0]);
	for (int i = 0; i < SLICES; i++) {
		busy[i] = clock_ns(cpu);
		wall[i] = now_ns();
		run(state, n);
		wall[i] = now_ns() - wall[i];
		busy[i] = clock_ns(cpu) - busy[i];
	}
	qsort(wall, SLICES, sizeof(*wall), compare_u64);
	qsort(busy, SLICES, sizeof(*busy), compare_u64);
	*ns = (double)wall[SLICES / 2] / (double)n;
	*cpu_ns = (double)busy[SLICES / 2] / (double)n;
}

static inline void report_each(void (*run)(void *state, uint64_t n), void *state, uint64_t n)
{
	double ns, cpu_ns;

	measure_each(run, state, n, CLOCK_PROCESS_CPUTIME_ID, &ns, &cpu_ns);
	report("ns", ns);
	report("cpu_ns", cpu_ns);
}

/* Sorts the samples and reports their median and, where asked, their 99.9th percentile, in us. */
static inline void report_percentiles(uint64_t *ns, size_t n, int with_tail)
{
	qsort(ns, n, sizeof(*ns), compare_u64);
	report("p50_us", (double)ns[n / 2] / 1e3);
	if (with_tail)
		report("p999_us", (double)ns[n - 1 - n / 1000] / 1e3);
}

/* main() of every program: find the contender and run it. */
static inline int bench_main(int argc, char **argv, const struct contender *contenders)
{
	for (const struct contender *c = contenders; argc > 1 && c->name; c++) {
		if (strcmp(c->name, argv[1]) == 0) {
			c->run(argc - 2, argv + 2);
			return 0;
		}
	}
	fprintf(stderr, "%s: no contender %s in this build\n", argv[0], argc > 1 ? argv[1] : "(none named)");
	return BENCH_MISSING;
}

#endif
