/* SPDX-License-Identifier: MIT */

/*
 * The fake threads: coroutines, mutexes, futexes, the clock, and memory that can run short.
 *
 * The loop thread is the program's own stack. It steps the others where it calls something wrapped;
 * a stepped one runs until it blocks, or until chance hands back at something that it calls. A
 * mutex's state stands in iou's own memory, as with the real ones; a futex is known by its address
 * alone.
 */

#include "sim.h"

#include <linux/futex.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define N_POSTERS   2
#define MAX_THREADS (1 + N_POSTERS + 16)
#define STACK_SIZE  (SIM_ASAN ? 512 * 1024 : 64 * 1024)

enum thread_state { NONE, PARKED, RUNS, WAITS_MUTEX, WAITS_FUTEX, SLEEPS, ENDED };

typedef struct fake_mutex_t {
	unsigned owner; /* thread number + 1; 0: free */
} fake_mutex_t;

typedef struct thread_t {
	enum thread_state state;
	const void *waits_for;
	bool woken;
	bool no_cancel; /* PTHREAD_CANCEL_DISABLE */
	uint64_t until_ns;
	const bool *flag;
	void *(*main)(void *data);
	void *data;
	bool has_context;
	jmp_buf jump;
	ucontext_t context;
	void *stack;
	size_t stack_size;
	void *shadow_stack; /* ASan's */
} thread_t;

world_t world;

static thread_t threads[MAX_THREADS];
static unsigned n_threads = 1 + N_POSTERS, current;

void *__real_aligned_alloc(size_t alignment, size_t size);

/* ---- Coroutines ------------------------------------------------------------------------------ */

static void switch_to(unsigned to)
{
	thread_t *before = &threads[current], *after = &threads[to];
	int saved = errno;

	current = to;
#if SIM_ASAN
	__sanitizer_start_switch_fiber(&before->shadow_stack, after->stack, after->stack_size);
#endif
	before->has_context = true;
	if (_setjmp(before->jump) == 0) {
		if (after->has_context)
			_longjmp(after->jump, 1);
		setcontext(&after->context);
	}
#if SIM_ASAN
	__sanitizer_finish_switch_fiber(threads[current].shadow_stack, NULL, NULL);
#endif
	errno = saved;
}

static void thread_main(void)
{
#if SIM_ASAN
	const void *bottom;
	size_t size;

	__sanitizer_finish_switch_fiber(NULL, &bottom, &size);
	if (!threads[0].stack) { /* the first switch comes from there */
		threads[0].stack = (void *)(uintptr_t)bottom;
		threads[0].stack_size = size;
	}
#endif
	for (;;) {
		thread_t *thread = &threads[current];

		thread->main(thread->data);
		thread->state = ENDED;
		world.events++;
		switch_to(0);
	}
}

static void *poster_main(void *data)
{
	unsigned number = (unsigned)(uintptr_t)data;

	for (;;) {
		threads[number].state = PARKED;
		switch_to(0);
		poster_act(number);
	}
	return NULL;
}

static void thread_prepare(unsigned number, void *(*main)(void *), void *data)
{
	thread_t *thread = &threads[number];

	thread->main = main;
	thread->data = data;
	thread->state = RUNS;
	thread->no_cancel = false;
	if (thread->stack)
		return;
	thread->stack = __real_aligned_alloc(4096, STACK_SIZE);
	thread->stack_size = STACK_SIZE;
	getcontext(&thread->context);
	thread->context.uc_stack.ss_sp = thread->stack;
	thread->context.uc_stack.ss_size = STACK_SIZE;
	thread->context.uc_link = NULL;
	makecontext(&thread->context, thread_main, 0);
}

void threads_reset(void)
{
	for (unsigned i = 1; i <= N_POSTERS; i++) {
		if (!threads[i].stack) {
			thread_prepare(i, poster_main, (void *)(uintptr_t)i);
			switch_to(i); /* it parks */
		}
	}
	n_threads = 1 + N_POSTERS;
}

static bool can_run(const thread_t *thread)
{
	switch (thread->state) {
	case RUNS:
		return true;
	case WAITS_MUTEX:
		return ((const fake_mutex_t *)thread->waits_for)->owner == 0;
	case WAITS_FUTEX:
		return thread->woken;
	case SLEEPS:
		return thread->until_ns <= world.now_ns || *thread->flag;
	default:
		return false;
	}
}

bool threads_step(void)
{
	unsigned from;

	CHECK(current == 0, "threads_step on thread %u", current);
	if (n_threads == 1)
		return false;
	from = 1 + pick(n_threads - 1);
	for (unsigned i = 1; i < n_threads; i++) {
		unsigned at = from + i - 1 < n_threads ? from + i - 1 : from + i - n_threads;
		thread_t *thread = &threads[at];

		/* a futex may wake for no reason */
		if (can_run(thread) || (thread->state == WAITS_FUTEX && one_in(100))) {
			thread->state = RUNS;
			switch_to(at);
			return true;
		}
	}
	return false;
}

/* Hand back to the loop thread; this one goes on when it can. */
static void thread_yield(enum thread_state state, const void *waits_for)
{
	threads[current].state = state;
	threads[current].waits_for = waits_for;
	switch_to(0);
}

void sim_point(void)
{
	unsigned n;

	if (!world.running)
		return;
	if (current) {
		if (one_in(3))
			thread_yield(RUNS, NULL);
		return;
	}
	n = pick(4 * world.step_one_in);
	if (world.signals && one_in(100)) {
		world.signals = false; /* it does not interrupt itself */
		world.in_signal = true;
		signal_arrives();
		world.in_signal = false;
		world.signals = true;
	}
	if (n < 2)
		threads_step();
	else if (n == 2)
		kernel_step();
	else if (n == 3 && poster_start(false))
		threads_step();
}

bool on_other_thread(void)
{
	return current != 0;
}

unsigned thread_number(void)
{
	return current;
}

void thread_sleep(uint64_t until_ns, const bool *flag)
{
	threads[current].until_ns = until_ns;
	threads[current].flag = flag;
	thread_yield(SLEEPS, NULL);
}

uint64_t threads_due_ns(void)
{
	uint64_t due_ns = NEVER;

	for (unsigned i = 1; i < n_threads; i++)
		if (threads[i].state == SLEEPS && threads[i].until_ns < due_ns)
			due_ns = threads[i].until_ns;
	return due_ns;
}

unsigned threads_n_workers(void)
{
	unsigned n = 0;

	for (unsigned i = 1 + N_POSTERS; i < n_threads; i++)
		n += threads[i].state != ENDED && threads[i].state != NONE;
	return n;
}

unsigned threads_n_free(void)
{
	unsigned n = 0;

	for (unsigned i = 1 + N_POSTERS; i < n_threads; i++)
		n += threads[i].state == WAITS_FUTEX && !threads[i].woken;
	return n;
}

void threads_find_lost(void)
{
	for (unsigned i = 1 + N_POSTERS; i < n_threads; i++)
		if (threads[i].state == WAITS_FUTEX)
			threads[i].woken = true;
	world.wake_up_lost = false;
}

void threads_until(bool (*cond)(const void *data), const void *data, const char *what)
{
	for (unsigned n = 0; !cond(data); n++) {
		uint64_t due_ns = threads_due_ns(), kernel_ns = kernel_due_ns();

		CHECK(n < 100000, "%s does not come to an end", what);
		if (threads_step() || kernel_step())
			continue;
		if (kernel_ns < due_ns)
			due_ns = kernel_ns;
		if (due_ns != NEVER && due_ns > world.now_ns)
			world.now_ns = due_ns;
		else if (due_ns == NEVER)
			model_rescue();
	}
}

bool poster_start(bool forced)
{
	unsigned number = 1 + pick(N_POSTERS);

	if ((!forced && !world.posters) || threads[number].state != PARKED)
		return false;
	threads[number].state = RUNS;
	return true;
}

bool posters_idle(void)
{
	for (unsigned i = 1; i <= N_POSTERS; i++)
		if (threads[i].state != PARKED)
			return false;
	return true;
}

void threads_check_end(void)
{
	CHECK(threads_n_workers() == 0, "%u workers are left", threads_n_workers());
}

/* ---- pthreads -------------------------------------------------------------------------------- */

static bool has_ended(const void *data)
{
	return ((const thread_t *)data)->state == ENDED;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*main)(void *),
			  void *data);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*main)(void *),
			  void *data)
{
	(void)attr;
	world.n_starts++;
	if (fault(10)) {
		world.thread_refused = true;
		world.n_refused++;
		return EAGAIN;
	}
	world.n_refused = 0;
	CHECK(current == 0, "a worker starts a thread");
	CHECK(n_threads < MAX_THREADS, "%u threads", n_threads);
	thread_prepare(n_threads, main, data);
	TRACE("thread %u: started", n_threads);
	*thread = n_threads++;
	sim_point();
	return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result);
int __wrap_pthread_join(pthread_t thread, void **result)
{
	(void)result;
	CHECK(thread < n_threads && threads[thread].state != NONE, "pthread_join of no thread");
	thread_cancel_point("pthread_join");
	threads_until(has_ended, &threads[thread], "pthread_join");
	threads[thread].state = NONE;
	return 0;
}

int __wrap_pthread_setcancelstate(int state, int *old);
int __wrap_pthread_setcancelstate(int state, int *old)
{
	thread_t *thread = &threads[current];

	if (old)
		*old = thread->no_cancel ? PTHREAD_CANCEL_DISABLE : PTHREAD_CANCEL_ENABLE;
	thread->no_cancel = state == PTHREAD_CANCEL_DISABLE;
	return 0;
}

void thread_cancel_point(const char *function)
{
	if (current || world.in_signal || !world.may_cancel)
		CHECK(threads[current].no_cancel, "%s() is a cancellation point", function);
}

bool threads_may_cancel(void)
{
	return !threads[0].no_cancel;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	(void)how;
	(void)set;
	(void)old;
	return 0;
}

int __wrap_pthread_setname_np(pthread_t thread, const char *name);
int __wrap_pthread_setname_np(pthread_t thread, const char *name)
{
	(void)thread;
	(void)name;
	return 0;
}

int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set);
int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
	(void)pid;
	memset(set, 0, size);
	CPU_SET(0, set);
	CPU_SET(1, set);
	return 0;
}

int __real_sched_yield(void);
int __wrap_sched_yield(void);
int __wrap_sched_yield(void)
{
	CHECK(!world.running, "sched_yield() waits for nobody of less priority");
	return __real_sched_yield(); /* a sanitizer's own */
}

int __real_nanosleep(const struct timespec *time, struct timespec *rest);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest)
{
	if (!world.running) /* a sanitizer's own */
		return __real_nanosleep(time, rest);
	(void)rest;
	CHECK(current == 0, "a worker sleeps");
	CHECK(++sim_n_steps < 100000, "a run does not come to an end");
	thread_cancel_point("nanosleep");
	world.now_ns += (uint64_t)time->tv_sec * 1000000000 + (uint64_t)time->tv_nsec;
	if (!threads_step())
		kernel_step();
	sim_point();
	return 0;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr);
int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
	(void)attr;
	((fake_mutex_t *)mutex)->owner = 0;
	return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex)
{
	CHECK(((fake_mutex_t *)mutex)->owner == 0, "a locked mutex is destroyed");
	((fake_mutex_t *)mutex)->owner = 0xdead;
	return 0;
}

static void mutex_take(fake_mutex_t *mutex)
{
	CHECK(mutex->owner <= MAX_THREADS, "lock of a mutex that is gone");
	CHECK(mutex->owner != current + 1, "a mutex is locked twice");
	while (mutex->owner) {
		if (current)
			thread_yield(WAITS_MUTEX, mutex);
		else if (!threads_step())
			FAIL("deadlock: a mutex is held by thread %u", mutex->owner - 1);
	}
	mutex->owner = current + 1;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
	sim_point();
	mutex_take((fake_mutex_t *)mutex);
	sim_point();
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	CHECK(((fake_mutex_t *)mutex)->owner == current + 1,
	      "unlock of a mutex that thread %u holds", ((fake_mutex_t *)mutex)->owner - 1);
	((fake_mutex_t *)mutex)->owner = 0;
	sim_point();
	return 0;
}

/* ---- System calls that iou makes by number --------------------------------------------------- */

static bool is_woken(const void *data)
{
	return ((const thread_t *)data)->woken;
}

/* Sleep while the word has that value, or not: it may return early. */
static int futex_wait(const unsigned *word, unsigned value)
{
	thread_t *thread = &threads[current];

	sim_point();
	if (__atomic_load_n(word, __ATOMIC_SEQ_CST) != value)
		return EAGAIN;
	if (one_in(16))
		return one_in(2) ? EINTR : 0;
	thread->woken = false;
	if (current) {
		thread_yield(WAITS_FUTEX, word);
		return 0;
	}
	thread->state = WAITS_FUTEX;
	thread->waits_for = word;
	threads_until(is_woken, thread, "the loop thread's wait for a futex");
	thread->state = RUNS;
	return 0;
}

/* Now and then one for a worker gets lost. The word may be gone: its address is but a key. */
static unsigned futex_wake(const unsigned *word, unsigned most)
{
	unsigned from = pick(n_threads), n = 0;

	sim_point();
	for (unsigned i = 0; i < n_threads && n < most; i++) {
		unsigned at = from + i < n_threads ? from + i : from + i - n_threads;
		thread_t *thread = &threads[at];

		if (thread->state != WAITS_FUTEX || thread->waits_for != word || thread->woken)
			continue;
		n++;
		if (at > N_POSTERS && most == 1 && fault(20)) {
			TRACE("-- the wake-up of thread %u gets lost", at);
			world.wake_up_lost = true;
			world.lost_poll = world.n_polls;
		} else {
			thread->woken = true;
			world.wake_up_lost &= at <= N_POSTERS; /* a later one has to do for both */
		}
	}
	sim_point();
	return n;
}

static long futex(const unsigned *word, int what, unsigned value)
{
	int error;

	if (what == FUTEX_WAKE_PRIVATE)
		return futex_wake(word, value);
	CHECK(what == FUTEX_WAIT_PRIVATE, "futex operation %d", what);
	error = futex_wait(word, value);
	if (!error)
		return 0;
	errno = error;
	return -1;
}

/* None of them is a cancellation point. */
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	const void *at;
	va_list args;
	long ret = 0;
	int n;

	CHECK(world.running, "system call %ld, and nothing runs", number);
	va_start(args, number);
	switch (number) {
	case SYS_futex:
		at = va_arg(args, const void *);
		n = va_arg(args, int);
		ret = futex(at, n, va_arg(args, unsigned));
		break;
	case SYS_write:
		n = va_arg(args, int);
		at = va_arg(args, const void *);
		ret = kernel_write(n, at, va_arg(args, size_t));
		break;
	default:
		FAIL("system call %ld", number);
	}
	va_end(args);
	return ret;
}

/* ---- Clock, chance, memory ------------------------------------------------------------------- */

int __real_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	if (!world.running)
		return __real_clock_gettime(clock, ts);
	CHECK(clock == CLOCK_MONOTONIC, "clock %d is read", clock);
	sim_point();
	if (!world.clock_stands && (!world.clock_is_coarse || one_in(16)))
		world.now_ns += pick(world.tick_ns);
	/* which takes its time on a coarse clock too */
	if (current && world.may_spin && !world.clock_stands)
		world.now_ns += pick(1000);
	ts->tv_sec = (time_t)(world.now_ns / 1000000000);
	ts->tv_nsec = (long)(world.now_ns % 1000000000);
	return 0;
}

bool fault(unsigned n)
{
	if (!world.faults || !one_in(n))
		return false;
	world.faults--;
	world.n_faults++;
	TRACE("-- a fault");
	return true;
}

static bool memory_is_short(void)
{
	CHECK(current || world.may_alloc, "iou allocates memory where it must not need any");
	return fault(current ? 40 : 25);
}

#define MAX_ALLOCS 1024
static void *allocs[MAX_ALLOCS];

static void *count(void *memory)
{
	CHECK(world.n_allocs < MAX_ALLOCS, "iou holds %d pieces of memory", MAX_ALLOCS);
	if (memory)
		allocs[world.n_allocs++] = memory;
	return memory;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
	return !world.running	   ? __real_malloc(size)
	       : memory_is_short() ? NULL
				   : count(__real_malloc(size));
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return !world.running	   ? __real_calloc(n, size)
	       : memory_is_short() ? NULL
				   : count(__real_calloc(n, size));
}

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size)
{
	void *grown;

	if (!world.running)
		return __real_realloc(memory, size);
	if (memory_is_short())
		return NULL;
	grown = __real_realloc(memory, size);
	if (!memory)
		count(grown);
	return grown;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
	if (!world.running)
		return __real_aligned_alloc(alignment, size);
	return memory_is_short() ? NULL : count(__real_aligned_alloc(alignment, size));
}

int __real_posix_memalign(void **memory, size_t alignment, size_t size);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
	int error = world.running && memory_is_short()
			    ? ENOMEM
			    : __real_posix_memalign(memory, alignment, size);

	if (world.running && !error)
		count(*memory);
	return error;
}

void __real_free(void *memory);
void __wrap_free(void *memory);
void __wrap_free(void *memory)
{
	if (world.running && memory) {
		unsigned at = world.n_allocs;

		while (at && allocs[at - 1] != memory)
			at--;
		CHECK(at, "memory is freed that was not allocated");
		allocs[at - 1] = allocs[--world.n_allocs];
#if !SIM_ASAN
		memset(memory, 0xdd,
		       malloc_usable_size(memory) < 2048 ? malloc_usable_size(memory) : 2048);
#endif
	}
	__real_free(memory);
}

void threads_free_all(void)
{
	while (world.n_allocs)
		__real_free(allocs[--world.n_allocs]);
}
