/* SPDX-License-Identifier: MIT */

/*
 * handoff N: N things handed from thread to thread, none lost. The loop sleeps in the kernel as
 * often as it can: a job goes out when the one before it came back, and two threads each post, or
 * schedule a bottom half, when the one before was answered. A wake-up that is lost shows as no
 * progress, six times ten seconds long: a process that was stopped meanwhile gets one alarm for all
 * that time.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "iou.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define N_POSTERS 2

typedef struct poster_t {
	iou_t *iou;
	iou_bh_t *bh;
	sem_t answered;
	unsigned long n; /* to do */
	pthread_t thread;
} poster_t;

static atomic_ulong n_handed;
static unsigned long n_jobs, n_last_seen;

static void fail(const char *what)
{
	fprintf(stderr, "FAIL handoff: %s after %lu\n", what, atomic_load(&n_handed));
	_exit(1);
}

static void on_alarm(int sig)
{
	static int n_in_vain;
	unsigned long n = atomic_load(&n_handed);

	(void)sig;
	n_in_vain = n == n_last_seen ? n_in_vain + 1 : 0;
	if (n_in_vain == 6)
		fail("nothing moved for a minute");
	n_last_seen = n;
	alarm(10);
}

static int on_post(void *data)
{
	poster_t *poster = data;

	atomic_fetch_add(&n_handed, 1);
	sem_post(&poster->answered);
	return 0;
}

static void *post_all(void *data)
{
	poster_t *poster = data;

	for (unsigned long i = 0; i < poster->n; i++) {
		if (i % 2)
			iou_bh_schedule(poster->bh);
		else if (iou_post(poster->iou, on_post, poster) < 0)
			fail("a post was refused");
		while (sem_wait(&poster->answered) < 0)
			;
	}
	iou_unhold(poster->iou);
	return NULL;
}

static int job(void *data)
{
	(void)data;
	return 1;
}

static int on_job(void *data)
{
	iou_op_t *op = iou_op_of(data);

	atomic_fetch_add(&n_handed, 1);
	if (op->result != 1)
		fail("a job did not run");
	return --n_jobs ? iou_op_async(*(iou_t **)data, op, job, NULL, on_job, data) : 0;
}

int main(int argc, char **argv)
{
	unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
	iou_t *iou = iou_new_with(&(iou_config_t){.entries = 4, .workers = 2});
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	iou_t **env = op ? iou_op_env(op, sizeof(*env)) : NULL;
	poster_t posters[N_POSTERS];
	iou_stats_t stats;

	if (!env)
		fail("no iou");
	*env = iou;
	n_jobs = n - n / 3 * N_POSTERS;
	if (iou_op_async(iou, op, job, NULL, on_job, env) < 0)
		fail("no worker");
	signal(SIGALRM, on_alarm);
	alarm(10);
	for (int i = 0; i < N_POSTERS; i++) {
		posters[i] = (poster_t){
			.iou = iou, .n = n / 3, .bh = iou_bh_new(iou, on_post, &posters[i])};
		sem_init(&posters[i].answered, 0, 0);
		iou_hold(iou);
		if (!posters[i].bh ||
		    pthread_create(&posters[i].thread, NULL, post_all, &posters[i]) != 0)
			fail("no thread");
	}
	if (iou_run(iou) != 0)
		fail("iou_run");
	for (int i = 0; i < N_POSTERS; i++)
		pthread_join(posters[i].thread, NULL);
	if (n_handed != n)
		fail("some are missing");
	iou_stats(iou, &stats);
	printf("%lu handed over, %llu wake-ups, 0 lost\n", n, (unsigned long long)stats.wakeups);
	iou_free(iou);
	return 0;
}
