/* SPDX-License-Identifier: MIT */

/*
 * Random programs of iou's API, and the model that they are checked against. See sim.h.
 *
 *     sim [-s SEED] [-n RUNS] [-j PROCESSES]        TRACE=1 tells what happens
 *
 * A run makes an iou, acts on it (from outside, and from within each kind of callback, jobs, and
 * other threads), and ends it: mostly by cancelling all and running until nothing is pending, else
 * by a plain iou_free() in the middle of it all.
 */

#include "model.h"

#include <signal.h>
#include <stdarg.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

uint64_t sim_random, sim_seed;
bool sim_tracing;
unsigned sim_n_steps;

/* ---- Failure and trace ----------------------------------------------------------------------- */

void sim_trace(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("%10llu ", (unsigned long long)(world.now_ns - 1000000));
	vprintf(format, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
}

void sim_fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	world.running = false;
	va_start(args, format);
	fprintf(stderr, "sim: seed %llu: ", (unsigned long long)sim_seed);
	vfprintf(stderr, format, args);
	fprintf(stderr, " (%s:%d)\n", file, line);
	fprintf(stderr, "sim: replay it with: make check-sim SEED=%llu RUNS=1 TRACE=1%s%s\n",
		(unsigned long long)sim_seed, SIM_ASAN ? " SAN=address" : "",
		SIM_FINE ? " GRAIN=sim-fine" : ROUND_MAX < 1024 ? " GRAIN=sim-small" : "");
	va_end(args);
	fflush(stdout);
	_exit(1);
}

static void say_seed(void)
{
	char line[96];
	int n = snprintf(line, sizeof(line), "sim: seed %llu: died\n",
			 (unsigned long long)sim_seed);
	ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);

	(void)ignored;
}

static void on_signal(int number)
{
	say_seed();
	if (number == SIGVTALRM) {
		static const char hangs[] = "sim: that run does not come to an end\n";
		ssize_t ignored = write(STDERR_FILENO, hangs, sizeof(hangs) - 1);
		(void)ignored;
	}
	signal(number, SIG_DFL);
	raise(number);
}

/* ---- A run ----------------------------------------------------------------------------------- */

static void configure(iou_config_t *config)
{
	static const unsigned flags[] = {
		IORING_SETUP_CLAMP,
		IORING_SETUP_SUBMIT_ALL,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SQPOLL,
		IORING_SETUP_SQPOLL | IORING_SETUP_SINGLE_ISSUER,
	};

	*config = (iou_config_t){ .entries = 1 + pick(8), .workers = pick(4) };
	if (one_in(5))
		config->setup_flags = flags[pick(9)];
	if (model.embedded && one_in(6)) /* nothing tells of what waits in the kernel */
		config->setup_flags = flags[one_in(2) ? 2 : 4];
	if (one_in(20))
		config->spin_ns = 1 + pick(100);
}

static bool no_posts(const void *data)
{
	(void)data;
	return posters_idle();
}

/* Where iou may not sleep, the program waits by other means. */
static void let_go_on(void)
{
	for (unsigned n = 0; n < 8 && kernel_refuses(); n++) {
		uint64_t due_ns = kernel_due_ns(), job_ns = threads_due_ns();

		if (kernel_step() || threads_step() || model_help())
			continue;
		if (job_ns < due_ns)
			due_ns = job_ns;
		if (due_ns != NEVER && due_ns > world.now_ns)
			world.now_ns = due_ns;
	}
}

static void check_nothing_pending(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		CHECK(ops[i].state != PENDING, "op %u is still pending", i);
	for (unsigned i = 0; i < model.n_posts; i++)
		CHECK(!posts[i].accepted || posts[i].delivered, "post %u was lost", i);
	for (unsigned i = 0; i < MAX_BHS; i++)
		CHECK(!model.bhs[i].bh || !model.bhs[i].scheduled, "bottom half %u was lost", i);
}

/* Cancel all, and run until nothing is pending. False where a CQE was lost: nothing ends that. */
static bool run_to_the_end(void)
{
	for (unsigned n = 0;; n++) {
		CHECK(n < 200, "it does not come to an end");
		cancel_all();
		if (run() == 0 && !main_things_pending())
			return true;
		if (model.broken)
			return false;
		let_go_on();
	}
}

/* A quit of another thread may have hidden something. And each round that finds something of the
 * library's own (its poll ended, a bottom half was deleted) puts off the idle ones. */
static bool poll_to_the_end(void)
{
	unsigned n_idle = 0;

	for (unsigned n = 0; n_idle < (is_pending() ? 16 : 3); n++) {
		int ret = poll_once(0);

		CHECK(n < 200, "polls do not come to an end");
		n_idle = ret == 0 || ret == -EACCES ? n_idle + 1 : 0;
		if (model.broken)
			return false;
	}
	return true;
}

static void end_gracefully(void)
{
	while (model.holds > 0) {
		model.holds--;
		CALL_VOID(false, iou_unhold(model.iou));
	}
	model.budget = 0;
	if (!run_to_the_end() || !poll_to_the_end())
		return;
	check_nothing_pending();
	check_stats();
}

/* Another thread's iou_unhold() is its last touch: iou may go as soon as that is seen. */
static void end_by_unhold(void)
{
	end_gracefully();
	/* a post, unlike an unhold, may outlast its delivery */
	threads_until(no_posts, NULL, "a posting thread");
	if (model.broken)
		return;
	CALL_VOID(false, iou_hold(model.iou));
	model.holds++;
	model.order = UNHOLD;
	while (!poster_start(true))
		;
	for (unsigned n = 0; run() < 0 || main_things_pending(); n++) {
		CHECK(n < 200 && !model.broken, "it does not come to an end");
		let_go_on();
	}
}

static void check_buffers(void)
{
	for (unsigned i = 1; i <= model.n_ops; i++)
		for (unsigned j = 0;
		     ops[i].state == GONE && ops[i].seq && j < sizeof(ops[i].buffer); j++)
			CHECK(ops[i].buffer[j] == 0x5a,
			      "the buffer of op %u was written to after its last callback", i);
}

/* One iou's life, between iou_new_with() and its return from iou_free(). */
static void live(void)
{
	world.posters = one_in(2);
	world.signals = one_in(4);
	for (unsigned n = 0; model.budget && n < 256; n++)
		act();
	threads_until(no_posts, NULL, "a posting thread");
	world.posters = world.signals = false;
	if (!model.broken && !one_in(4))
		end_gracefully();
	if (!model.broken && one_in(8))
		end_by_unhold();
	else
		threads_until(no_posts, NULL, "a posting thread");
	model.freeing = true;
	TRACE("iou_free");
	CALL(false, iou_free(model.iou));
	threads_until(no_posts, NULL, "a posting thread");
}

/* All that the seed decides at the beginning. */
static void begin(uint64_t seed)
{
	sim_seed = seed;
	sim_random = seed * UINT64_C(0x9e3779b97f4a7c15); /* far apart on the same round */
	sim_n_steps = 0;
	memset(&model, 0, sizeof(model));
	world = (world_t){ .now_ns = 1000000, .step_one_in = 1U << (1 + pick(5)) };
	world.faults = one_in(2) ? 0 : pick(6);
	world.drops = one_in(500);
	kernel_reset();
	threads_reset();
	model.fd = -1;
	model.budget = one_in(2) ? 1 + pick(4) : 2 + pick(one_in(6) ? 60 : 10);
	model.actions = one_in(2) ? ~UINT64_C(0) : random64() | random64();
	model.embedded = one_in(6);
	configure(&model.config);
	world.tick_ns = model.config.spin_ns ? 64 : 16;
	world.clock_is_coarse = one_in(4);
	world.may_spin = model.config.spin_ns;
}

static void simulate(uint64_t seed)
{
	begin(seed);
	world.running = true;
	TRACE("-- seed %llu", (unsigned long long)seed);
	model.iou = CALL(true, iou_new_with(&model.config));
	if (model.iou)
		live();
	threads_check_end();
	kernel_check_end();
	CHECK(world.n_allocs == 0 || model.broken || kernel_left_ops(),
	      "%u pieces of memory are left", world.n_allocs);
	threads_free_all();
	check_buffers();
	world.running = false;
}

/* ---- main ------------------------------------------------------------------------------------ */

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static void simulate_many(uint64_t seed, uint64_t runs, unsigned part, unsigned parts,
			  int result_fd)
{
	const bool tracing = sim_tracing;
	uint64_t counts[3] = { 0, 0, 0 };
	const struct itimerval patience = { .it_value = { .tv_sec = 10 } };

	signal(SIGVTALRM, on_signal);
	setitimer(ITIMER_VIRTUAL, &patience, NULL);
#if SIM_ASAN
	__sanitizer_set_death_callback(say_seed);
#else
	signal(SIGSEGV, on_signal);
	signal(SIGBUS, on_signal);
#endif
	signal(SIGABRT, on_signal);
	sim_tracing = false;
	/* what iou.c does once in a process is not part of any run */
	for (uint64_t i = 0; i < 32; i++)
		simulate((UINT64_C(1) << 62) + i);
	sim_tracing = tracing;
	total_calls = total_callbacks = 0;
	for (uint64_t i = part; i < runs; i += parts) {
		if (counts[0] % 1024 == 0)
			setitimer(ITIMER_VIRTUAL, &patience, NULL);
		simulate(seed + i);
		counts[0]++;
	}
	counts[1] = total_calls;
	counts[2] = total_callbacks;
	if (write(result_fd, counts, sizeof(counts)) != sizeof(counts))
		exit(2);
	exit(0);
}

/* A process for each part of the seeds. Adds up what they did, and returns how many failed. */
static unsigned simulate_all(uint64_t seed, uint64_t runs, unsigned parts, uint64_t sums[3])
{
	uint64_t counts[3];
	unsigned failed = 0;
	int fds[2], status;

	if (pipe(fds) < 0)
		exit(2);
	for (unsigned i = 0; i < parts; i++)
		if (fork() == 0)
			simulate_many(seed, runs, i, parts, fds[1]);
	while (wait(&status) > 0) {
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			failed++;
		else if (read(fds[0], counts, sizeof(counts)) == sizeof(counts))
			for (unsigned i = 0; i < 3; i++)
				sums[i] += counts[i];
	}
	return failed;
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	if (end == text || *end) {
		fprintf(stderr, "sim: '%s' is not a number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	uint64_t seed = 1, runs = 1000000, sums[3] = { 0, 0, 0 };
	unsigned parts = 1, failed;
	double from = seconds(), took;
	int option;

	while ((option = getopt(argc, argv, "s:n:j:")) >= 0) {
		if (option == 's')
			seed = number(optarg);
		else if (option == 'n')
			runs = number(optarg);
		else if (option == 'j')
			parts = (unsigned)number(optarg);
		else
			return 2;
	}
	sim_tracing = getenv("TRACE") && *getenv("TRACE") && strcmp(getenv("TRACE"), "0");
	failed = simulate_all(seed, runs, parts, sums);
	took = seconds() - from;
	printf("sim: %llu sequences from seed %llu, %llu calls, %llu callbacks, %u failed, ",
	       (unsigned long long)sums[0], (unsigned long long)seed, (unsigned long long)sums[1],
	       (unsigned long long)sums[2], failed);
	printf("%.1f s (%.0f per second)\n", took, (double)sums[0] / took);
	return failed != 0;
}
