/* SPDX-License-Identifier: MIT */

/* The worker pool: its threads, the order of jobs and of their completions, the short form
 * iou_async(). */

#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

static iou_t *the_iou;

static iou_t *new_pool(unsigned workers)
{
	return new_iou_with(&(iou_config_t){.entries = 8, .workers = workers});
}

static int order_of_starts[1000], n_starts;

/* ---- Threads --------------------------------------------------------------------------------- */

static pid_t worker_tid;

static int note_tid(void *data)
{
	(void)data;
	__atomic_store_n(&worker_tid, gettid(), __ATOMIC_RELEASE);
	return 0;
}

/* Returns once the worker is idle again. */
static void one_job(iou_t *iou)
{
	pid_t tid;

	worker_tid = 0;
	ck_assert_int_eq(iou_async(iou, note_tid, NULL, on_nothing, NULL), 0);
	WAIT_UNTIL((tid = __atomic_load_n(&worker_tid, __ATOMIC_ACQUIRE)));
	WAIT_UNTIL(thread_sleeps(tid));
	run(iou);
}

START_TEST(threads_are_started_when_needed)
{
	iou_t *iou = new_pool(3);
	call_t call;

	start(iou, CQE, on_nothing, NULL);
	start(iou, TIMER, on_nothing, NULL);
	start(iou, POST, on_nothing, NULL);
	run(iou);
	ck_assert_int_eq(n_threads("iou-worker"), 0);
	for (int i = 0; i < 5; i++) { /* one idle worker is enough for one job at a time */
		one_job(iou);
		ck_assert_int_eq(n_threads("iou-worker"), 1);
	}
	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(iou_async(iou, on_nothing, NULL, on_nothing, NULL), 0);
	run(iou);
	ck_assert_int_le(n_threads("iou-worker"), 3);
	call_op(iou, &call, 0);
	ck_assert_int_ne(worker_tid, gettid());
	iou_op_free(iou, call.op);
	done(iou);
}
END_TEST

/* N jobs that wait for each other: they end only if N workers run them together. */
static pthread_barrier_t barrier;

static int meet(void *data)
{
	(void)data;
	pthread_barrier_wait(&barrier);
	return 0;
}

static void meet_together(iou_t *iou, int n, int n_repeats)
{
	pthread_barrier_init(&barrier, NULL, (unsigned)n);
	for (int repeat = 0; repeat < n_repeats; repeat++) {
		for (int i = 0; i < n; i++)
			ck_assert_int_eq(iou_async(iou, meet, NULL, on_nothing, NULL), 0);
		if (repeat % 2)
			run(iou); /* else the next ones are queued while these end */
	}
	run(iou);
	pthread_barrier_destroy(&barrier);
}

START_TEST(no_job_waits_while_a_worker_is_free)
{
	for (int n = 1; n <= 5; n++) {
		iou_t *iou = new_pool((unsigned)n);

		meet_together(iou, n, is_slow() ? 50 : 300);
		ck_assert_int_eq(n_threads("iou-worker"), n);
		done(iou);
	}
}
END_TEST

/* One job after the other, the next queued at every moment of the worker's falling asleep.
 * _i: workers; and whether they look for jobs before they sleep. */
START_TEST(a_job_finds_the_worker_that_falls_asleep)
{
	int n_jobs = is_slow() ? 1000 : 5000;
	uint64_t seed = 1;
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = (unsigned)_i / 2 + 1,
						  .spin_ns = _i % 2 ? 50 * USEC : 0});

	for (int i = 0; i < n_jobs; i++) {
		uint64_t until_ns = now_ns() + 20 * SECOND;
		int n = 0;

		if (iou_async(iou, on_nothing, NULL, on_nothing, NULL) != 0)
			ck_abort_msg("iou_async failed");
		/* awake, it sees the end at once */
		while ((n = iou_poll(iou, 0)) == 0 && now_ns() < until_ns)
			;
		if (n != 1)
			ck_abort_msg("iou_poll: %d", n);
		for (unsigned spin = random_below(&seed, 200); spin; spin--)
			__atomic_load_n(&n_starts, __ATOMIC_RELAXED);
	}
	done(iou);
}
END_TEST

START_TEST(there_is_a_worker_for_each_cpu_by_default)
{
	cpu_set_t cpus, one;
	iou_t *iou;
	int n;

	ck_assert_int_eq(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	n = CPU_COUNT(&cpus);
	if (n == 1)
		SKIP("needs two CPUs, to tell them from one");
	if (n > 64) /* a barrier for all would be slow */
		n = 64;
	iou = new_pool(0);
	meet_together(iou, n, 20);
	for (int i = 0; i < 2000; i++)
		ck_assert_int_eq(iou_async(iou, on_nothing, NULL, on_nothing, NULL), 0);
	run(iou);
	ck_assert_int_le(n_threads("iou-worker"), CPU_COUNT(&cpus));
	done(iou);

	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
		if (CPU_ISSET(cpu, &cpus))
			CPU_SET(cpu, &one);
	ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
	iou = new_iou(8);
	for (int i = 0; i < 200; i++)
		ck_assert_int_eq(iou_async(iou, on_nothing, NULL, on_nothing, NULL), 0);
	run(iou);
	ck_assert_int_eq(n_threads("iou-worker"), 1);
	done(iou);
	ck_assert_int_eq(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
}
END_TEST

START_TEST(many_workers_are_allowed)
{
	iou_t *iou = new_pool(UINT32_MAX);

	meet_together(iou, 20, 2);
	ck_assert_int_ge(n_threads("iou-worker"), 20);
	done(iou);
}
END_TEST

/* What a worker did between two jobs: the CPU time of it. */
#define N_GAPS 21

static uint64_t gaps[N_GAPS + 1], last_cpu_ns;
static int n_gaps;

static int note_gap(void *data)
{
	gaps[n_gaps++] = thread_cpu_ns() - last_cpu_ns;
	note_tid(data);
	last_cpu_ns = thread_cpu_ns();
	return 0;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values, size_t n)
{
	qsort(values, n, sizeof(*values), compare);
	return values[n / 2];
}

/* Some are interrupted, or cut short by others that want the CPU. */
static uint64_t usual_gap(uint64_t spin_ns)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 1, .spin_ns = spin_ns});
	pid_t tid;

	n_gaps = 0;
	for (int i = 0; i < N_GAPS + 1; i++) {
		worker_tid = 0;
		ck_assert_int_eq(iou_async(iou, note_gap, NULL, on_nothing, NULL), 0);
		WAIT_UNTIL((tid = __atomic_load_n(&worker_tid, __ATOMIC_ACQUIRE)));
		WAIT_UNTIL(thread_sleeps(tid));
		run(iou);
	}
	done(iou);
	return median(gaps + 1, N_GAPS); /* the first is none */
}

/* They look for their next job for 50 us before they sleep where spin_ns is set, and not at all
 * where it is not. */
START_TEST(workers_spin_only_where_told)
{
	uint64_t quiet_ns = 0, spinning_ns = 0;

	for (int i = 0; i < 4 && quiet_ns + 25 * USEC >= spinning_ns; i++) {
		uint64_t quiet[5], spinning[5];

		for (int j = 0; j < 5; j++) {
			quiet[j] = usual_gap(0);
			spinning[j] = usual_gap(50 * USEC);
		}
		quiet_ns = median(quiet, 5);
		spinning_ns = median(spinning, 5);
	}
	ck_assert_msg(quiet_ns + 25 * USEC < spinning_ns, "%d us by default, %d us with spin_ns",
		      (int)(quiet_ns / 1000), (int)(spinning_ns / 1000));
}
END_TEST

static int count_blocked(void *data)
{
	sigset_t set;
	int *n = data;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	*n = 0;
	for (int sig = 1; sig < 32; sig++)
		*n += sigismember(&set, sig) == 1 && sig != SIGKILL && sig != SIGSTOP;
	for (int sig = SIGRTMIN; sig <= SIGRTMAX; sig++)
		*n += sigismember(&set, sig) == 1;
	return 0;
}

static int n_handled;

static void on_signal(int sig)
{
	(void)sig;
	__atomic_fetch_add(&n_handled, 1, __ATOMIC_RELAXED);
}

/* A signal to the process that the program blocks stays pending: no worker takes it. */
START_TEST(workers_block_signals)
{
	struct sigaction action = {.sa_handler = on_signal}, before;
	sigset_t set, mask, mask_after;
	iou_t *iou = new_pool(2);
	int n_blocked, sig;

	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	ck_assert_int_eq(iou_async(iou, count_blocked, &n_blocked, on_nothing, NULL), 0);
	run(iou);
	/* 1 to 31 without KILL, STOP and six that a fault raises, and the real-time ones; the C
	 * library keeps two or three. */
	ck_assert_int_eq(n_blocked, 31 - 2 - 6 + SIGRTMAX - SIGRTMIN + 1);
	pthread_sigmask(SIG_BLOCK, NULL, &mask_after);
	for (sig = 1; sig <= SIGRTMAX; sig++) /* the caller's mask is as before */
		ck_assert_int_eq(sigismember(&mask, sig), sigismember(&mask_after, sig));

	sigaction(SIGUSR1, &action, &before);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	kill(getpid(), SIGUSR1);
	for (int i = 0; i < 20; i++)
		one_job(iou);
	ck_assert_int_eq(__atomic_load_n(&n_handled, __ATOMIC_RELAXED), 0);
	ck_assert_int_eq(sigtimedwait(&set, NULL, &(struct timespec){0}), SIGUSR1);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	sigaction(SIGUSR1, &before, NULL);
	done(iou);
}
END_TEST

/* Those that a fault of the job's own raises. */
static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
#define N_FAULTS ((int)(sizeof(faults) / sizeof(faults[0])))

static int count_blocked_faults(void *data)
{
	sigset_t set;

	(void)data;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	for (int i = 0; i < N_FAULTS; i++)
		if (sigismember(&set, faults[i]))
			return -faults[i];
	return 0;
}

/* Whatever is blocked where a worker is started. */
START_TEST(workers_let_faults_through)
{
	iou_t *iou = new_pool(1);
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ck_assert_int_eq(iou_async(iou, count_blocked_faults, NULL, on_nothing, NULL), 0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	run(iou);
	done(iou);
}
END_TEST

static char *bad_page;
static size_t page_size;
static int handled_sig;
static pid_t handled_by;

/* What a program does that maps pages on demand. */
static void on_bad_page(int sig)
{
	__atomic_store_n(&handled_sig, sig, __ATOMIC_RELAXED);
	handled_by = gettid();
	EXPECT(mmap(bad_page, page_size, PROT_READ | PROT_WRITE,
		    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == bad_page);
}

static int touch_bad_page(void *data)
{
	touch_badly(bad_page);
	return note_tid(data);
}

static void handle(int sig, void (*handler)(int sig), struct sigaction *before)
{
	ck_assert_int_eq(sigaction(sig, &(struct sigaction){.sa_handler = handler}, before), 0);
}

/* _i: a page that may not be touched (SIGSEGV), or that its file does not reach to (SIGBUS) */
START_TEST(a_page_fault_in_a_job_is_handled)
{
	struct sigaction before;
	iou_t *iou = new_pool(1);
	int fd = -1;

	page_size = (size_t)sysconf(_SC_PAGESIZE);
	if (_i) {
		write_file(scratch_path("empty"), "", 0);
		fd = open(scratch_path("empty"), O_RDWR | O_CLOEXEC);
		ck_assert_int_ge(fd, 0);
	}
	bad_page = mmap(NULL, page_size, _i ? PROT_READ | PROT_WRITE : PROT_NONE,
			_i ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	ck_assert_ptr_ne(bad_page, MAP_FAILED);
	handle(faults[_i], on_bad_page, &before);
	ck_assert_int_eq(iou_async(iou, touch_bad_page, NULL, on_nothing, NULL), 0);
	run(iou);
	ck_assert_int_eq(handled_sig, faults[_i]);
	ck_assert_int_eq(handled_by, worker_tid);
	ck_assert_int_ne(handled_by, gettid());
	sigaction(faults[_i], &before, NULL);
	munmap(bad_page, page_size);
	if (fd >= 0)
		close(fd);
	done(iou);
}
END_TEST

static void on_raised(int sig)
{
	__atomic_store_n(&handled_sig, sig, __ATOMIC_RELAXED);
}

static int raise_it(void *data)
{
	return raise(*(const int *)data);
}

/* _i: which of them, sent by the worker to itself */
START_TEST(a_fault_in_a_job_is_handled)
{
	struct sigaction before;
	iou_t *iou = new_pool(1);
	int sig = faults[_i];

	handle(sig, on_raised, &before);
	ck_assert_int_eq(iou_async(iou, raise_it, &sig, on_nothing, NULL), 0);
	run(iou);
	ck_assert_int_eq(__atomic_load_n(&handled_sig, __ATOMIC_RELAXED), sig);
	sigaction(sig, &before, NULL);
	done(iou);
}
END_TEST

/* ---- Order ----------------------------------------------------------------------------------- */

typedef struct job_t {
	call_t call;
	sem_t *wait, *tell;
	int ret;
	bool ran;
} job_t;


static int do_job(void *data)
{
	job_t *job = data;

	order_of_starts[__atomic_fetch_add(&n_starts, 1, __ATOMIC_RELAXED) % 1000] = job->call.id;
	if (job->wait)
		while (sem_wait(job->wait) != 0)
			;
	job->ran = true;
	if (job->tell)
		sem_post(job->tell);
	return job->ret;
}

static void queue_job(iou_t *iou, job_t *job, int id)
{
	call_op(iou, &job->call, id);
	start_job(iou, job->call.op, do_job, job, on_call, &job->call);
}

/* The only worker runs this job until the semaphore is posted. */
static void block_worker(iou_t *iou, job_t *job, sem_t *sem)
{
	sem_init(sem, 0, 0);
	n_starts = 0;
	job->wait = sem;
	queue_job(iou, job, 0);
	WAIT_UNTIL(__atomic_load_n(&n_starts, __ATOMIC_RELAXED) == 1);
}

/* One worker: they run and come back in the order in which they were queued; so do those of a
 * burst. */
START_TEST(jobs_start_in_order)
{
	enum { N = 1000 };
	iou_t *iou = new_pool(1);
	job_t *jobs = calloc(N, sizeof(*jobs));

	n_starts = 0;
	for (int i = 0; i < N; i++)
		queue_job(iou, &jobs[i], i);
	run(iou);
	ck_assert_int_eq(n_order, N);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(order_of_starts[i], i);
		ck_assert_int_eq(order[i], i);
	}
	free(jobs);
	done(iou);
}
END_TEST

/* Each waits for the one after it: they finish in the opposite order, and so they come back. */
START_TEST(jobs_come_back_in_the_order_of_finishing)
{
	enum { N = 4 };
	iou_t *iou = new_pool(N);
	job_t jobs[N] = {{.ret = 0}};
	sem_t sems[N];

	for (int i = 0; i < N; i++)
		sem_init(&sems[i], 0, 0);
	for (int i = 0; i < N; i++) {
		jobs[i].wait = i < N - 1 ? &sems[i + 1] : NULL;
		queue_job(iou, &jobs[i], i);
	}
	for (int i = N - 1; i >= 0; i--) {
		POLL_UNTIL(iou, jobs[i].call.n);
		ck_assert_int_eq(n_order, N - i);
		sem_post(&sems[i]);
	}
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(order[i], N - 1 - i);
		sem_destroy(&sems[i]);
	}
	done(iou);
}
END_TEST

/* All finished, in a known order, before the loop looks: it still tells them in that order. */
START_TEST(finished_jobs_wait_in_order)
{
	enum { N = 50 };
	iou_t *iou = new_pool(2);
	job_t blocker = {.ret = 0}, jobs[N] = {{.ret = 0}};
	sem_t sem, told;

	sem_init(&sem, 0, 0);
	sem_init(&told, 0, 0);
	blocker.wait = &sem;
	queue_job(iou, &blocker, N);
	for (int i = 0; i < N; i++) {
		jobs[i].tell = i == N - 1 ? &told : NULL;
		queue_job(iou, &jobs[i], i); /* one after the other on the second worker */
	}
	sem_wait(&told);
	sem_post(&sem);
	run(iou);
	ck_assert_int_eq(n_order, N + 1);
	for (int i = 0; i < N - 1; i++) /* the last of them and the blocker finish side by side */
		ck_assert_int_eq(order[i], i);
	sem_destroy(&sem);
	sem_destroy(&told);
	done(iou);
}
END_TEST

static int set_flag(void *data)
{
	__atomic_store_n((bool *)data, true, __ATOMIC_RELEASE);
	return 0;
}

START_TEST(jobs_start_without_the_loop)
{
	iou_t *iou = new_pool(1);
	bool ran = false;
	call_t call = {0};

	ck_assert_int_eq(iou_async(iou, set_flag, &ran, on_call, &call), 0);
	WAIT_UNTIL(__atomic_load_n(&ran, __ATOMIC_ACQUIRE));
	ck_assert_int_eq(call.n, 0);
	run(iou);
	ck_assert_int_eq(call.n, 1);
	done(iou);
}
END_TEST

/* Jobs that come and are cancelled while others wait for a busy worker: those keep their order and
 * are all that runs, however many there were. */
START_TEST(jobs_keep_their_order_while_others_are_cancelled)
{
	enum { N = 300, N_CANCELLED = 20000 };
	iou_t *iou = new_pool(1);
	job_t blocker = {.ret = 0}, victim, *jobs = calloc(N, sizeof(*jobs));
	sem_t sem;

	block_worker(iou, &blocker, &sem);
	for (int i = 0; i < N_CANCELLED; i++) {
		if (i % (N_CANCELLED / N) == 0 && i / (N_CANCELLED / N) < N)
			queue_job(iou, &jobs[i / (N_CANCELLED / N)], i / (N_CANCELLED / N) + 1);
		victim = (job_t){.ret = 0};
		queue_job(iou, &victim, -1);
		if (iou_op_cancel(iou, victim.call.op) != 0 ||
		    iou_poll(iou, (int64_t)(10 * SECOND)) != 1 || victim.ran)
			ck_abort_msg("not cancelled");
	}
	ck_assert_int_eq(iou_op_cancel(iou, jobs[N / 2].call.op), 0); /* it may have moved */
	sem_post(&sem);
	run(iou);
	ck_assert_int_eq(n_starts, N);
	for (int i = 1, id = 1; i < N; i++, id++) {
		id += id == N / 2 + 1;
		ck_assert_int_eq(order_of_starts[i], id);
	}
	for (int i = 0; i < N; i++)
		ck_assert(jobs[i].ran == (i != N / 2));
	free(jobs);
	sem_destroy(&sem);
	done(iou);
}
END_TEST

/* The pool of ops grows while jobs run, wait, and have finished: nothing of them is lost. */
START_TEST(jobs_outlast_the_growth_of_the_op_pool)
{
	enum { N = 100, N_OPS = 5000 };
	iou_t *iou = new_pool(1);
	job_t blocker = {.ret = 7}, *jobs = calloc(2 * N, sizeof(*jobs));
	iou_op_t **ops = calloc(N_OPS, sizeof(iou_op_t *));
	sem_t sem;

	sem_init(&sem, 0, 0);
	n_starts = 0;
	blocker.wait = &sem;
	for (int i = 0; i < 2 * N; i++) {
		jobs[i].ret = i;
		if (i == N)
			queue_job(iou, &blocker, N);
		queue_job(iou, &jobs[i], i < N ? i : i + 1);
	}
	WAIT_UNTIL(__atomic_load_n(&n_starts, __ATOMIC_RELAXED) == N + 1);
	for (int i = 0; i < N_OPS; i++)
		ck_assert_ptr_nonnull(ops[i] = iou_op_new(iou));
	sem_post(&sem);
	run(iou);
	ck_assert_int_eq(n_order, 2 * N + 1);
	for (int i = 0; i <= 2 * N; i++)
		ck_assert_int_eq(order[i], i);
	for (int i = 0; i < 2 * N; i++)
		ck_assert_int_eq(jobs[i].call.result, i);
	for (int i = 0; i < N_OPS; i++)
		iou_op_free(iou, ops[i]);
	free(ops);
	free(jobs);
	sem_destroy(&sem);
	done(iou);
}
END_TEST

/* ---- Results --------------------------------------------------------------------------------- */

static const int results[] = {0, 1, INT32_MAX, -1, -EIO, -ECANCELED, INT32_MIN};

START_TEST(the_result_of_a_job_is_what_it_returned)
{
	iou_t *iou = new_pool(2);

	for (unsigned i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
		job_t job = {.ret = results[i]};

		queue_job(iou, &job, 0);
		run(iou); /* a negative result alone ends nothing */
		ck_assert_int_eq(job.call.n, 1);
		ck_assert_int_eq(job.call.result, results[i]);
		ck_assert_uint_eq(job.call.flags, 0);
	}
	ck_assert_uint_eq(get_stats(iou).jobs, 7);
	done(iou);
}
END_TEST

static int return_it(void *data)
{
	return *(int *)data;
}

/* The short form: a negative result of the job ends the loop once the completion was called, whose
 * own negative value comes first. */
START_TEST(async_reports_a_failed_job)
{
	static const struct {
		int work, cb, expected;
	} table[] = {
		{0, 0, 0},   {5, 0, 0},	   {5, 7, 0},	{-5, 0, -5},
		{-5, 7, -5}, {-5, -7, -7}, {5, -7, -7}, {INT32_MIN, 0, INT32_MIN},
	};
	iou_t *iou = new_pool(1);

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		for (int poll = 0; poll < 2; poll++) {
			call_t call = {.ret = table[i].cb}, after = {0};
			int work = table[i].work, ret;

			ck_assert_int_eq(iou_async(iou, return_it, &work, on_call, &call), 0);
			if (poll)
				ret = iou_poll(iou, -1) - (table[i].expected == 0);
			else
				ret = iou_run(iou);
			ck_assert_int_eq(ret, table[i].expected);
			ck_assert_int_eq(call.n, 1);
			post(iou, on_call, &after);
			run(iou);
			ck_assert_int_eq(after.n, 1);
			ck_assert_int_eq(call.n, 1);
		}
	}
	done(iou);
}
END_TEST

/* ---- Cancelling: before, while and after they run -------------------------------------------- */

START_TEST(jobs_are_cancelled)
{
	iou_t *iou = new_pool(1);
	job_t running = {.ret = 0}, queued[3] = {{.ret = 0}}, last = {.ret = 0};
	sem_t sem;

	block_worker(iou, &running, &sem);
	for (int i = 0; i < 3; i++)
		queue_job(iou, &queued[i], i + 1);
	queue_job(iou, &last, 4);
	ck_assert_int_eq(iou_op_cancel(iou, running.call.op), -EALREADY);
	ck_assert_int_eq(iou_op_cancel(iou, queued[1].call.op), 0);
	ck_assert_int_eq(iou_op_cancel(iou, queued[1].call.op), 0);
	/* at once, though the worker is busy */
	ck_assert_int_eq(iou_poll(iou, (int64_t)(10 * SECOND)), 1);
	ck_assert_int_eq(queued[1].call.result, -ECANCELED);
	ck_assert_int_eq(iou_op_cancel(iou, queued[2].call.op), 0);
	ck_assert_int_eq(iou_op_cancel(iou, queued[0].call.op), 0);
	ck_assert_int_eq(iou_poll(iou, (int64_t)(10 * SECOND)), 2);
	sem_post(&sem);
	run(iou);
	ck_assert_int_eq(running.call.result, 0);
	ck_assert_int_eq(last.call.result, 0);
	ck_assert(running.ran && last.ran);
	for (int i = 0; i < 3; i++) {
		ck_assert(!queued[i].ran);
		ck_assert_int_eq(queued[i].call.n, 1);
	}
	sem_destroy(&sem);
	done(iou);
}
END_TEST

/* Finished, not yet delivered: asked in vain, the result stands. */
START_TEST(a_finished_job_keeps_its_result)
{
	iou_t *iou = new_pool(1);
	job_t job = {.ret = 42};
	sem_t told;
	int ret;

	sem_init(&told, 0, 0);
	job.tell = &told;
	queue_job(iou, &job, 0);
	sem_wait(&told);
	ret = iou_op_cancel(iou, job.call.op);
	ck_assert(ret == 0 || ret == -EALREADY);
	run(iou);
	ck_assert_int_eq(job.call.n, 1);
	ck_assert_int_eq(job.call.result, 42);
	sem_destroy(&told);
	done(iou);
}
END_TEST

/* iou_cancel_all() stops those that have not started: their completion is called, the run does not
 * fail. */
START_TEST(cancel_all_stops_jobs)
{
	iou_t *iou = new_pool(1);
	call_t calls[20] = {{0}};
	job_t running = {.ret = 0};
	bool ran = false;
	sem_t sem;

	block_worker(iou, &running, &sem);
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(iou_async(iou, set_flag, &ran, on_call, &calls[i]), 0);
	ck_assert_int_eq(iou_cancel_all(iou), 0);
	sem_post(&sem);
	run(iou);
	ck_assert(!ran);
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(calls[i].n, 1);
	ck_assert_int_eq(running.call.result, 0);
	sem_destroy(&sem);
	done(iou);
}
END_TEST

/* ---- Chains of jobs -------------------------------------------------------------------------- */

typedef struct hop_t {
	iou_op_t *op;
	int n, max;
	char *env;
} hop_t;

/* By every door in turn, one op for all. */
static int on_hop(void *data)
{
	hop_t *hop = data;

	ck_assert_str_eq(hop->env, "mine");
	if (++hop->n == hop->max)
		return 0;
	if (hop->n % 3 == 0)
		nop_queue(the_iou, hop->op, on_hop, hop);
	else if (hop->n % 3 == 1)
		start_job(the_iou, hop->op, on_nothing, NULL, on_hop, hop);
	else
		iou_op_timer(the_iou, hop->op, 0, 0, on_hop, hop);
	return 0;
}

START_TEST(one_op_is_a_read_a_timer_and_a_job_in_turn)
{
	hop_t hop = {.max = 1000};

	the_iou = new_pool(2);
	hop.op = new_op(the_iou);
	hop.env = iou_op_env(hop.op, 64);
	ck_assert_ptr_nonnull(hop.env);
	memcpy(hop.env, "mine", 5);
	nop_queue(the_iou, hop.op, on_hop, &hop);
	run(the_iou);
	ck_assert_int_eq(hop.n, 1000);
	done(the_iou);
}
END_TEST

static int env_job(void *data)
{
	iou_op_t *op = data;
	int *env = iou_op_env(op, 1000);

	if (!env)
		return -ENOMEM;
	env[0] = 7;
	return iou_op_of(env) == op ? env[249] : -EINVAL;
}

START_TEST(a_job_makes_its_environment)
{
	iou_t *iou = new_pool(1);
	call_t call;

	call_op(iou, &call, 0);
	start_job(iou, call.op, env_job, call.op, on_call, &call);
	run(iou);
	ck_assert_int_eq(call.result, 0);
	done(iou);
}
END_TEST

static int quit_job(void *data)
{
	iou_quit(data);
	return 0;
}

START_TEST(a_job_quits)
{
	iou_t *iou = new_pool(1);

	iou_hold(iou);
	ck_assert_int_eq(iou_async(iou, quit_job, iou, on_nothing, NULL), 0);
	run(iou);
	iou_unhold(iou);
	run(iou);
	done(iou);
}
END_TEST

static int see_no_iou(void *data)
{
	(void)data;
	return iou_current() == NULL ? 0 : -EPERM;
}

START_TEST(a_job_has_no_current_iou)
{
	iou_t *iou = new_pool(1);

	ck_assert_int_eq(iou_async(iou, see_no_iou, NULL, on_nothing, NULL), 0);
	run(iou);
	done(iou);
}
END_TEST

/* ---- No threads to be had -------------------------------------------------------------------- */

static void become_nobody(void)
{
	if (geteuid() != 0)
		return; /* a user has limits already */
	EXPECT(setgroups(0, NULL) == 0);
	EXPECT(setresgid(65534, 65534, 65534) == 0);
	EXPECT(setresuid(65534, 65534, 65534) == 0);
}

static struct rlimit threads_before;

static void forbid_threads(void)
{
	struct rlimit none;

	EXPECT(getrlimit(RLIMIT_NPROC, &threads_before) == 0);
	none = threads_before;
	none.rlim_cur = 0;
	EXPECT(setrlimit(RLIMIT_NPROC, &none) == 0);
}

static void allow_threads(void)
{
	EXPECT(setrlimit(RLIMIT_NPROC, &threads_before) == 0);
}

static void no_first_worker(void *data)
{
	call_t call = {0};
	iou_op_t *op;
	iou_t *iou;
	int fds[2];

	(void)data;
	become_nobody();
	iou = iou_new(4);
	EXPECT(iou != NULL);
	forbid_threads();
	op = iou_op_new(iou);
	EXPECT(op != NULL);
	iou_op_deadline(iou, op, 10 * MSEC);
	for (int i = 0; i < 20; i++) {
		EXPECT(iou_op_async(iou, op, on_nothing, NULL, on_call, &call) == -EAGAIN);
		EXPECT(iou_async(iou, on_nothing, NULL, on_call, &call) == -EAGAIN);
	}
	EXPECT(n_pending(iou) == 0);
	EXPECT(iou_run(iou) == 0);
	EXPECT(call.n == 0);
	EXPECT(pipe2(fds, O_CLOEXEC) == 0);
	io_uring_prep_poll_add(op->sqe, fds[0], POLLIN); /* still the caller's, its deadline too */
	call.op = op;
	iou_op_queue(iou, op, on_call, &call);
	EXPECT(iou_run(iou) == 0);
	EXPECT(call.n == 1 && call.result == -ETIME);
	allow_threads(); /* the next call tries again */
	call.op = NULL;
	EXPECT(iou_async(iou, on_nothing, NULL, on_call, &call) == 0);
	EXPECT(iou_run(iou) == 0);
	EXPECT(call.n == 2);
	EXPECT(iou_free(iou) == NULL);
}

START_TEST(a_job_is_refused_while_there_is_no_worker)
{
	in_good_child(no_first_worker, NULL);
}
END_TEST

enum { MOST_WORKERS = 4 };

/* Jobs that each want a worker: they run on those there are, and start one more if they can. */
static void want_workers(iou_t *iou, gate_t *gate)
{
	call_t call = {0};

	for (int i = 0; i < MOST_WORKERS; i++)
		EXPECT(iou_async(iou, gate_job, gate, on_call, &call) == 0);
	unblock_workers(gate, MOST_WORKERS);
	EXPECT(iou_run(iou) == 0);
	EXPECT(call.n == MOST_WORKERS);
	n_order = 0;
}

/* Of how many workers, and in how many batches of jobs. */
typedef struct shortage_t {
	int n_workers, n_times;
} shortage_t;

static void no_more_workers(void *data)
{
	const shortage_t *shortage = data;
	gate_t gate;
	iou_t *iou;
	int n_tries = 0;

	become_nobody();
	gate_init(&gate);
	iou = iou_new_with(&(iou_config_t){.entries = 4, .workers = MOST_WORKERS});
	EXPECT(iou != NULL);
	for (int i = 0; i < shortage->n_workers; i++)
		EXPECT(iou_async(iou, gate_job, &gate, on_nothing, NULL) == 0);
	for (int i = 0; i < shortage->n_workers; i++)
		gate_wait(&gate);
	forbid_threads();
	unblock_workers(&gate, shortage->n_workers);
	EXPECT(iou_run(iou) == 0);
	for (int i = 0; i < shortage->n_times; i++)
		want_workers(iou, &gate);
	EXPECT(n_threads("iou-worker") == shortage->n_workers);
	allow_threads();
	/* After failures in a row it is tried at every 1024th chance at the least; each batch has
	 * one or more. */
	while (n_threads("iou-worker") < MOST_WORKERS && n_tries < 2 * 1024 * MOST_WORKERS) {
		want_workers(iou, &gate);
		n_tries++;
	}
	EXPECT(n_threads("iou-worker") == MOST_WORKERS);
	/* Once: four refusals, then seven chances go by, and three workers are started. */
	EXPECT(shortage->n_times > 1 || n_tries <= 16);
	EXPECT(iou_free(iou) == NULL);
}

/* Those there are carry on, and the pool grows to its size later. _i: how many there are; once and
 * often */
START_TEST(the_workers_grow_in_number_after_a_shortage)
{
	shortage_t once = {_i, 1}, often = {_i, 100};

	in_good_child(no_more_workers, &once);
	in_good_child(no_more_workers, &often);
}
END_TEST

Suite *async_suite(void)
{
	Suite *suite = suite_create("async");
	TCase *threads;

	threads = TEST_CASE(suite, "threads", threads_are_started_when_needed,
			    no_job_waits_while_a_worker_is_free,
			    there_is_a_worker_for_each_cpu_by_default, many_workers_are_allowed,
			    workers_spin_only_where_told, workers_block_signals,
			    workers_let_faults_through, a_job_is_refused_while_there_is_no_worker);
	tcase_add_loop_test(threads, a_page_fault_in_a_job_is_handled, 0, 2);
	tcase_add_loop_test(threads, a_fault_in_a_job_is_handled, 0, N_FAULTS);
	tcase_add_loop_test(threads, the_workers_grow_in_number_after_a_shortage, 1, MOST_WORKERS);
	tcase_add_loop_test(threads, a_job_finds_the_worker_that_falls_asleep, 0, 4);
	TEST_CASE(suite, "order", jobs_start_in_order, jobs_come_back_in_the_order_of_finishing,
		  finished_jobs_wait_in_order, jobs_start_without_the_loop,
		  jobs_keep_their_order_while_others_are_cancelled,
		  jobs_outlast_the_growth_of_the_op_pool);
	TEST_CASE(suite, "results", the_result_of_a_job_is_what_it_returned,
		  async_reports_a_failed_job);
	TEST_CASE(suite, "cancel", jobs_are_cancelled, a_finished_job_keeps_its_result,
		  cancel_all_stops_jobs);
	TEST_CASE(suite, "chains", one_op_is_a_read_a_timer_and_a_job_in_turn,
		  a_job_makes_its_environment, a_job_quits, a_job_has_no_current_iou);
	return suite;
}
