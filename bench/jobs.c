/* SPDX-License-Identifier: MIT */
/*
 * jobs CONTENDER OUTSTANDING WORKERS [SPIN_NS]: empty jobs handed to WORKERS threads, OUTSTANDING of them at any time;
 * each completion, back on the loop's thread, hands over the next.
 *
 *   wake-futex    no queue: two threads wake each other in turn, by futex
 *   wake-eventfd  the same, by a pair of eventfds (blocking read and write)
 *   raw           a list behind a mutex and a condition variable in each direction, put and taken by the batch
 *   iou           iou_op_async(), the op queued again in its callback; SPIN_NS is its spin_ns
 *   uv            uv_queue_work(), the request used again
 *   glib          g_thread_pool_push(), and g_main_context_invoke() on the way back
 */
#include "bench.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif
#ifdef HAVE_GLIB
#include <glib.h>
#endif

/* ---- a pair of wake-ups ---- */

struct pair {
	int there, back;      /* eventfds */
	uint32_t turn;        /* futex word: 0 the loop's, 1 the worker's, 2 the end */
	pthread_t thread;
};

static void futex_wait_while(uint32_t *word, uint32_t value)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value)
		syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_hand(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *futex_thread(void *data)
{
	struct pair *pair = data;

	for (;;) {
		futex_wait_while(&pair->turn, 0);
		if (__atomic_load_n(&pair->turn, __ATOMIC_ACQUIRE) == 2)
			return NULL;
		futex_hand(&pair->turn, 0);
	}
}

static void futex_rounds(void *state, uint64_t n)
{
	struct pair *pair = state;

	for (; n; n--) {
		futex_hand(&pair->turn, 1);
		futex_wait_while(&pair->turn, 1);
	}
}

static void futex_run(int argc, char **argv)
{
	struct pair pair = {.turn = 0};

	(void)argc, (void)argv;
	must(-pthread_create(&pair.thread, NULL, futex_thread, &pair), "pthread_create");
	report_each(futex_rounds, &pair, 100);
	futex_hand(&pair.turn, 2);
	pthread_join(pair.thread, NULL);
}

static void *eventfd_thread(void *data)
{
	struct pair *pair = data;
	eventfd_t value;

	while (eventfd_read(pair->there, &value) == 0 && value == 1)
		eventfd_write(pair->back, 1);
	return NULL;
}

static void eventfd_rounds(void *state, uint64_t n)
{
	struct pair *pair = state;
	eventfd_t value;

	for (; n; n--) {
		eventfd_write(pair->there, 1);
		eventfd_read(pair->back, &value);
	}
}

static void eventfd_run(int argc, char **argv)
{
	struct pair pair = {.there = eventfd(0, 0), .back = eventfd(0, 0)};

	(void)argc, (void)argv;
	must(-pthread_create(&pair.thread, NULL, eventfd_thread, &pair), "pthread_create");
	report_each(eventfd_rounds, &pair, 100);
	eventfd_write(pair.there, 2);
	pthread_join(pair.thread, NULL);
}

/* ---- raw ---- */

struct job {
	struct job *next;
};

struct list {
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t more;
	struct job *head, **tail;
	unsigned n, n_waiting;
	int closed;
};

struct raw {
	struct list todo, done;
	unsigned outstanding, workers;
	struct job *jobs;
};

static void list_init(struct list *list)
{
	pthread_mutex_init(&list->lock, NULL);
	pthread_cond_init(&list->more, NULL);
	list->head = NULL;
	list->tail = &list->head;
	list->n = list->n_waiting = 0;
	list->closed = 0;
}

/* Appends n jobs, from *first to the one whose next is *last. */
static void list_put(struct list *list, struct job *first, struct job **last, unsigned n)
{
	unsigned n_waiting;

	*last = NULL;
	pthread_mutex_lock(&list->lock);
	*list->tail = first;
	list->tail = last;
	list->n += n;
	n_waiting = list->n_waiting;
	pthread_mutex_unlock(&list->lock);
	if (n_waiting > 1 && n > 1)
		pthread_cond_broadcast(&list->more);
	else if (n_waiting)
		pthread_cond_signal(&list->more);
}

/* Takes 1/share of what is there, at least one, waiting for it. Returns their number, 0 at the end. */
static unsigned list_take(struct list *list, unsigned share, struct job **first, struct job ***last)
{
	unsigned n = 0;

	pthread_mutex_lock(&list->lock);
	while (!list->head && !list->closed) {
		list->n_waiting++;
		pthread_cond_wait(&list->more, &list->lock);
		list->n_waiting--;
	}
	*first = list->head;
	if (list->head && share == 1) {
		n = list->n;
		*last = list->tail;
		list->head = NULL;
		list->tail = &list->head;
	} else if (list->head) {
		struct job **end = &list->head;

		for (n = 0; *end && n <= list->n / share; n++)
			end = &(*end)->next;
		*last = end;
		list->head = *end;
		if (!*end)
			list->tail = &list->head;
		*end = NULL;
	}
	list->n -= n;
	pthread_mutex_unlock(&list->lock);
	return n;
}

static void *raw_thread(void *data)
{
	struct raw *raw = data;
	struct job *first, **last;
	unsigned n;

	while ((n = list_take(&raw->todo, 2 * raw->workers, &first, &last)) > 0)
		list_put(&raw->done, first, last, n);
	return NULL;
}

static void raw_rounds(void *state, uint64_t n)
{
	struct raw *raw = state;
	uint64_t left = n, done = 0;
	struct job *first, **last;
	unsigned i;

	for (i = 0; i < raw->outstanding && left; i++, left--)
		list_put(&raw->todo, &raw->jobs[i], &raw->jobs[i].next, 1);
	while (done < n) {
		unsigned again = 0;

		done += list_take(&raw->done, 1, &first, &last);
		for (last = &first; *last && left; again++, left--)
			last = &(*last)->next;
		if (again)
			list_put(&raw->todo, first, last, again);
	}
}

static void raw_run(int argc, char **argv)
{
	static struct raw raw;
	pthread_t threads[64];

	raw.outstanding = (unsigned)argument(argc, argv, 0, 1);
	raw.workers = (unsigned)argument(argc, argv, 1, 2) % 65;
	raw.jobs = must_have(calloc(raw.outstanding, sizeof(*raw.jobs)), "calloc");
	list_init(&raw.todo);
	list_init(&raw.done);
	for (unsigned i = 0; i < raw.workers; i++)
		must(-pthread_create(&threads[i], NULL, raw_thread, &raw), "pthread_create");
	report_each(raw_rounds, &raw, 100);
	pthread_mutex_lock(&raw.todo.lock);
	raw.todo.closed = 1;
	pthread_cond_broadcast(&raw.todo.more);
	pthread_mutex_unlock(&raw.todo.lock);
	for (unsigned i = 0; i < raw.workers; i++)
		pthread_join(threads[i], NULL);
	free(raw.jobs);
}

/* ---- iou ---- */

struct jobs {
	iou_t *iou;
	unsigned outstanding;
	uint64_t left;
};

static int no_work(void *data)
{
	(void)data;
	return 0;
}

static int on_job(void *data)
{
	struct jobs **env = data;
	struct jobs *jobs = *env;

	if (jobs->left) {
		jobs->left--;
		must(iou_op_async(jobs->iou, iou_op_of(env), no_work, NULL, on_job, env), "iou_op_async");
	}
	return 0;
}

static void iou_rounds(void *state, uint64_t n)
{
	struct jobs *jobs = state;

	jobs->left = n > jobs->outstanding ? n - jobs->outstanding : 0;
	for (uint64_t i = 0; i < n && i < jobs->outstanding; i++) {
		iou_op_t *op = must_have(iou_op_new(jobs->iou), "iou_op_new");
		struct jobs **env = must_have(iou_op_env(op, sizeof(*env)), "iou_op_env");

		*env = jobs;
		must(iou_op_async(jobs->iou, op, no_work, NULL, on_job, env), "iou_op_async");
	}
	must(iou_run(jobs->iou), "iou_run");
}

static void iou_contender(int argc, char **argv)
{
	struct jobs jobs = {.outstanding = (unsigned)argument(argc, argv, 0, 1)};
	iou_config_t config = {
		.workers = (unsigned)argument(argc, argv, 1, 2),
		.spin_ns = argument(argc, argv, 2, 0),
	};

	jobs.iou = must_have(iou_new_with(&config), "iou_new_with");
	report_each(iou_rounds, &jobs, 100);
	iou_free(jobs.iou);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
struct uv_jobs {
	uv_loop_t loop;
	unsigned outstanding;
	uint64_t left;
	uv_work_t *reqs;
};

static void uv_no_work(uv_work_t *req)
{
	(void)req;
}

static void uv_on_job(uv_work_t *req, int status)
{
	struct uv_jobs *jobs = req->loop->data;

	must(status, "uv_queue_work");
	if (jobs->left) {
		jobs->left--;
		must(uv_queue_work(req->loop, req, uv_no_work, uv_on_job), "uv_queue_work");
	}
}

static void uv_rounds(void *state, uint64_t n)
{
	struct uv_jobs *jobs = state;

	jobs->left = n > jobs->outstanding ? n - jobs->outstanding : 0;
	for (uint64_t i = 0; i < n && i < jobs->outstanding; i++)
		must(uv_queue_work(&jobs->loop, &jobs->reqs[i], uv_no_work, uv_on_job), "uv_queue_work");
	uv_run(&jobs->loop, UV_RUN_DEFAULT);
}

static void uv_contender(int argc, char **argv)
{
	struct uv_jobs jobs = {.outstanding = (unsigned)argument(argc, argv, 0, 1)};

	if (argc > 1)
		setenv("UV_THREADPOOL_SIZE", argv[1], 1);
	must(uv_loop_init(&jobs.loop), "uv_loop_init");
	jobs.loop.data = &jobs;
	jobs.reqs = must_have(calloc(jobs.outstanding, sizeof(*jobs.reqs)), "calloc");
	report_each(uv_rounds, &jobs, 100);
	uv_loop_close(&jobs.loop);
	free(jobs.reqs);
}
#endif

/* ---- GLib ---- */

#ifdef HAVE_GLIB
struct g_jobs {
	GThreadPool *pool;
	GMainLoop *loop;
	unsigned outstanding;
	uint64_t left, running;
};

static gboolean g_on_job(gpointer data)
{
	struct g_jobs *jobs = data;

	if (jobs->left) {
		jobs->left--;
		g_thread_pool_push(jobs->pool, jobs, NULL);
	} else if (--jobs->running == 0) {
		g_main_loop_quit(jobs->loop);
	}
	return G_SOURCE_REMOVE;
}

static void g_no_work(gpointer data, gpointer user_data)
{
	(void)user_data;
	g_main_context_invoke(NULL, g_on_job, data);
}

static void g_rounds(void *state, uint64_t n)
{
	struct g_jobs *jobs = state;

	jobs->running = n < jobs->outstanding ? n : jobs->outstanding;
	jobs->left = n - jobs->running;
	for (uint64_t i = 0, first = jobs->running; i < first; i++)
		g_thread_pool_push(jobs->pool, jobs, NULL);
	g_main_loop_run(jobs->loop);
}

static void glib_contender(int argc, char **argv)
{
	struct g_jobs jobs = {.outstanding = (unsigned)argument(argc, argv, 0, 1)};

	/* The main thread owns its context for good: a worker must never run the callback itself. */
	g_main_context_acquire(NULL);
	jobs.loop = g_main_loop_new(NULL, FALSE);
	jobs.pool = g_thread_pool_new(g_no_work, NULL, (gint)argument(argc, argv, 1, 2), TRUE, NULL);
	report_each(g_rounds, &jobs, 100);
	g_thread_pool_free(jobs.pool, FALSE, TRUE);
	g_main_loop_unref(jobs.loop);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"wake-futex", futex_run},
		{"wake-eventfd", eventfd_run},
		{"raw", raw_run},
		{"iou", iou_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
#ifdef HAVE_GLIB
		{"glib", glib_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
