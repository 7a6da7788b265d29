/* SPDX-License-Identifier: MIT */
/*
 * post CONTENDER flat|trip: callbacks that another thread asks for.
 *
 *   flat   one thread sends as fast as it can: time per callback (ns)
 *   trip   to a sleeping loop, whose callback sends to the first loop, which slept meanwhile: p50_us, p999_us
 *
 *   raw       flat: a lock-free stack of malloc'ed nodes, and an eventfd when the taker sleeps; trip: two eventfds
 *   iou       iou_post()
 *   iou-bh    iou_bh_schedule()
 *   uv, ev    uv_async_send(), ev_async_send(): many sends can become one callback
 *   ev-queue  flat: a list behind a mutex beside the ev_async, as libev's manual advises, so that each message arrives
 */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif
#ifdef HAVE_EV
#include <ev.h>
#endif

/* ---- Flat out: a sender thread that is given a number, or 0 to end ---- */

struct sender {
	pthread_t thread;
	int start;                /* eventfd */
	void (*send)(void *to);
	void *to;
	atomic_int enough;        /* for those whose sends are not counted */
	int counted;
	atomic_uint_fast64_t sent;
};

static void *sender_main(void *data)
{
	struct sender *sender = data;
	eventfd_t n;

	while (eventfd_read(sender->start, &n) == 0 && --n) {
		for (; sender->counted ? n != 0 : !atomic_load_explicit(&sender->enough, memory_order_acquire); n--)
			sender->send(sender->to);
		atomic_fetch_add(&sender->sent, 1);
	}
	return NULL;
}

static void sender_start(struct sender *sender, void (*send)(void *to), void *to, int counted)
{
	*sender = (struct sender){.send = send, .to = to, .counted = counted};
	sender->start = must_errno(eventfd(0, 0), "eventfd");
	must(-pthread_create(&sender->thread, NULL, sender_main, sender), "pthread_create");
}

static void sender_go(struct sender *sender, uint64_t n)
{
	atomic_store(&sender->enough, 0);
	atomic_store(&sender->sent, 0);
	eventfd_write(sender->start, n + 1);
}

/* Until it has let go of what it sends to. */
static void sender_rest(struct sender *sender)
{
	atomic_store_explicit(&sender->enough, 1, memory_order_release);
	while (!atomic_load(&sender->sent))
		sched_yield();
}

static void sender_end(struct sender *sender)
{
	eventfd_write(sender->start, 1);
	pthread_join(sender->thread, NULL);
	close(sender->start);
}

/* ---- A round trip: two sides, each with a thread ---- */

#define MAX_SAMPLES 1000000
static uint64_t samples[MAX_SAMPLES];
static size_t n_samples;
static uint64_t begun_ns, sent_ns;

/* A trip is over. Returns whether another one shall follow. */
static int came_back(void)
{
	uint64_t now = now_ns();

	if (!begun_ns) {
		place_threads();
		begun_ns = now;
	} else {
		samples[n_samples++] = now - sent_ns;
	}
	sent_ns = now_ns();
	return n_samples < MAX_SAMPLES && now - begun_ns < bench_ns();
}

static void report_trips(void)
{
	report_percentiles(samples, n_samples, 1);
}

static int is_trip(int argc, char **argv)
{
	return argc > 0 && strcmp(argv[0], "trip") == 0;
}

/* ---- raw ---- */

struct message {
	struct message *next;
};

struct raw {
	_Atomic(struct message *) top;
	atomic_int sleeping;
	int wake;
	struct sender sender;
};

static void raw_send(void *to)
{
	struct raw *raw = to;
	struct message *message = must_have(malloc(sizeof(*message)), "malloc");

	message->next = atomic_load_explicit(&raw->top, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&raw->top, &message->next, message))
		;
	if (atomic_load(&raw->sleeping) && atomic_exchange(&raw->sleeping, 0))
		eventfd_write(raw->wake, 1);
}

static void raw_flat(void *state, uint64_t n)
{
	struct raw *raw = state;
	eventfd_t value;

	sender_go(&raw->sender, n);
	while (n) {
		struct message *message = atomic_exchange(&raw->top, NULL);

		if (!message) {
			atomic_store(&raw->sleeping, 1);
			if (!atomic_load(&raw->top) || !atomic_exchange(&raw->sleeping, 0))
				eventfd_read(raw->wake, &value);
		}
		while (message) {
			struct message *next = message->next;

			free(message);
			message = next;
			n--;
		}
	}
	sender_rest(&raw->sender);
}

static void *raw_other(void *data)
{
	int *fds = data;
	eventfd_t value;

	while (eventfd_read(fds[0], &value) == 0 && value == 1)
		eventfd_write(fds[1], 1);
	return NULL;
}

static void raw_trip(void)
{
	int fds[2] = {must_errno(eventfd(0, 0), "eventfd"), must_errno(eventfd(0, 0), "eventfd")};
	eventfd_t value;
	pthread_t other;

	must(-pthread_create(&other, NULL, raw_other, fds), "pthread_create");
	do {
		eventfd_write(fds[0], 1);
		eventfd_read(fds[1], &value);
	} while (came_back());
	eventfd_write(fds[0], 2);
	pthread_join(other, NULL);
	report_trips();
}

static void raw_run(int argc, char **argv)
{
	struct raw raw = {.wake = must_errno(eventfd(0, 0), "eventfd")};

	if (is_trip(argc, argv)) {
		raw_trip();
		return;
	}
	sender_start(&raw.sender, raw_send, &raw, 1);
	report_each(raw_flat, &raw, 1000);
	sender_end(&raw.sender);
}

/* ---- iou ---- */

struct loop {
	iou_t *iou;
	struct loop *other;
	iou_bh_t *bh;
	int use_bh;
	uint64_t left;
	struct sender sender;
};

static int on_flat(void *data)
{
	struct loop *loop = data;

	if (loop->left && --loop->left == 0)
		iou_quit(loop->iou);
	return 0;
}

static void flat_send(void *to)
{
	struct loop *loop = to;

	if (loop->use_bh)
		iou_bh_schedule(loop->bh);
	else
		must(iou_post(loop->iou, on_flat, loop), "iou_post");
}

static void iou_flat(void *state, uint64_t n)
{
	struct loop *loop = state;

	loop->left = n;
	sender_go(&loop->sender, n);
	must(iou_run(loop->iou), "iou_run");
	sender_rest(&loop->sender);
}

static void trip_send(struct loop *loop);

/* On the far side. */
static int on_there(void *data)
{
	struct loop *loop = data;

	trip_send(loop->other);
	return 0;
}

/* Back on the near one, which is the one with a `left`. */
static int on_back(void *data)
{
	struct loop *loop = data;

	if (came_back())
		trip_send(loop->other);
	else
		iou_quit(loop->iou);
	return 0;
}

static void trip_send(struct loop *loop)
{
	if (loop->use_bh)
		iou_bh_schedule(loop->bh);
	else
		must(iou_post(loop->iou, loop->left ? on_back : on_there, loop), "iou_post");
}

static void *other_main(void *data)
{
	struct loop *loop = data;

	must(iou_run(loop->iou), "iou_run");
	return NULL;
}

static void iou_trip(struct loop *near)
{
	struct loop far = {.iou = must_have(iou_new(64), "iou_new"), .other = near, .use_bh = near->use_bh};
	pthread_t other;

	near->other = &far;
	near->left = 1;
	near->bh = must_have(iou_bh_new(near->iou, on_back, near), "iou_bh_new");
	far.bh = must_have(iou_bh_new(far.iou, on_there, &far), "iou_bh_new");
	iou_hold(far.iou);
	must(-pthread_create(&other, NULL, other_main, &far), "pthread_create");
	trip_send(&far);
	must(iou_run(near->iou), "iou_run");
	iou_quit(far.iou);
	pthread_join(other, NULL);
	iou_unhold(far.iou);
	iou_free(far.iou);
	report_trips();
}

static void iou_measure(int argc, char **argv, int use_bh)
{
	struct loop loop = {.iou = must_have(iou_new(64), "iou_new"), .use_bh = use_bh};

	iou_hold(loop.iou);
	if (is_trip(argc, argv)) {
		iou_trip(&loop);
	} else {
		loop.bh = must_have(iou_bh_new(loop.iou, on_flat, &loop), "iou_bh_new");
		sender_start(&loop.sender, flat_send, &loop, !use_bh);
		report_each(iou_flat, &loop, 1000);
		sender_end(&loop.sender);
	}
	iou_unhold(loop.iou);
	iou_free(loop.iou);
}

static void iou_contender(int argc, char **argv)
{
	iou_measure(argc, argv, 0);
}

static void bh_contender(int argc, char **argv)
{
	iou_measure(argc, argv, 1);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
struct uv_side {
	uv_loop_t loop;
	uv_async_t async;
	struct uv_side *other;
	uint64_t left;
	struct sender sender;
};

static void uv_flat_send(void *to)
{
	uv_async_send(&((struct uv_side *)to)->async);
}

static void uv_on_flat(uv_async_t *async)
{
	struct uv_side *side = async->data;

	if (side->left && --side->left == 0)
		uv_stop(&side->loop);
}

static void uv_flat(void *state, uint64_t n)
{
	struct uv_side *side = state;

	side->left = n;
	sender_go(&side->sender, 1);
	uv_run(&side->loop, UV_RUN_DEFAULT);
	sender_rest(&side->sender);
}

static void uv_on_there(uv_async_t *async)
{
	struct uv_side *side = async->data;

	if (side->left == 0)
		uv_stop(&side->loop);
	else
		uv_async_send(&side->other->async);
}

static void uv_on_back(uv_async_t *async)
{
	struct uv_side *side = async->data;

	if (!came_back()) {
		side->other->left = 0; /* seen with the last send */
		uv_stop(&side->loop);
	}
	uv_async_send(&side->other->async);
}

static void uv_side_open(struct uv_side *side, uv_async_cb cb)
{
	must(uv_loop_init(&side->loop), "uv_loop_init");
	must(uv_async_init(&side->loop, &side->async, cb), "uv_async_init");
	side->async.data = side;
}

static void uv_side_close(struct uv_side *side)
{
	uv_close((uv_handle_t *)&side->async, NULL);
	uv_run(&side->loop, UV_RUN_DEFAULT);
	uv_loop_close(&side->loop);
}

static void *uv_other(void *data)
{
	uv_run(&((struct uv_side *)data)->loop, UV_RUN_DEFAULT);
	return NULL;
}

static void uv_contender(int argc, char **argv)
{
	static struct uv_side near, far;
	pthread_t other;

	if (is_trip(argc, argv)) {
		near.other = &far;
		far.other = &near;
		far.left = 1;
		uv_side_open(&near, uv_on_back);
		uv_side_open(&far, uv_on_there);
		must(-pthread_create(&other, NULL, uv_other, &far), "pthread_create");
		uv_async_send(&far.async);
		uv_run(&near.loop, UV_RUN_DEFAULT);
		pthread_join(other, NULL);
		uv_side_close(&far);
		report_trips();
	} else {
		uv_side_open(&near, uv_on_flat);
		sender_start(&near.sender, uv_flat_send, &near, 0);
		report_each(uv_flat, &near, 1000);
		sender_end(&near.sender);
	}
	uv_side_close(&near);
}
#endif

/* ---- libev ---- */

#ifdef HAVE_EV
struct ev_side {
	struct ev_loop *loop;
	ev_async async;
	struct ev_side *other;
	uint64_t left;
	struct sender sender;
	pthread_mutex_t lock; /* guards messages */
	struct message *messages;
};

static void ev_flat_send(void *to)
{
	struct ev_side *side = to;

	ev_async_send(side->loop, &side->async);
}

static void ev_on_flat(struct ev_loop *loop, ev_async *async, int events)
{
	struct ev_side *side = async->data;

	(void)events;
	if (side->left && --side->left == 0)
		ev_break(loop, EVBREAK_ALL);
}

static void ev_queue_send(void *to)
{
	struct ev_side *side = to;
	struct message *message = must_have(malloc(sizeof(*message)), "malloc");

	pthread_mutex_lock(&side->lock);
	message->next = side->messages;
	side->messages = message;
	pthread_mutex_unlock(&side->lock);
	ev_async_send(side->loop, &side->async);
}

static void ev_on_queue(struct ev_loop *loop, ev_async *async, int events)
{
	struct ev_side *side = async->data;
	struct message *message, *next;

	(void)events;
	pthread_mutex_lock(&side->lock);
	message = side->messages;
	side->messages = NULL;
	pthread_mutex_unlock(&side->lock);
	for (; message; message = next) {
		next = message->next;
		free(message);
		if (side->left && --side->left == 0)
			ev_break(loop, EVBREAK_ALL);
	}
}

static void ev_flat(void *state, uint64_t n)
{
	struct ev_side *side = state;

	side->left = n;
	sender_go(&side->sender, n);
	ev_run(side->loop, 0);
	sender_rest(&side->sender);
}

static void ev_on_there(struct ev_loop *loop, ev_async *async, int events)
{
	struct ev_side *side = async->data;

	(void)events;
	if (side->left == 0)
		ev_break(loop, EVBREAK_ALL);
	else
		ev_async_send(side->other->loop, &side->other->async);
}

static void ev_on_back(struct ev_loop *loop, ev_async *async, int events)
{
	struct ev_side *side = async->data;

	(void)events;
	if (!came_back()) {
		side->other->left = 0; /* seen with the last send */
		ev_break(loop, EVBREAK_ALL);
	}
	ev_async_send(side->other->loop, &side->other->async);
}

static void ev_side_open(struct ev_side *side, void (*cb)(struct ev_loop *loop, ev_async *async, int events))
{
	side->loop = must_have(ev_loop_new(EVFLAG_AUTO), "ev_loop_new");
	pthread_mutex_init(&side->lock, NULL);
	ev_async_init(&side->async, cb);
	side->async.data = side;
	ev_async_start(side->loop, &side->async);
}

static void ev_side_close(struct ev_side *side)
{
	ev_async_stop(side->loop, &side->async);
	ev_loop_destroy(side->loop);
}

static void *ev_other(void *data)
{
	ev_run(((struct ev_side *)data)->loop, 0);
	return NULL;
}

static void ev_trip(void)
{
	static struct ev_side near, far;
	pthread_t other;

	near.other = &far;
	far.other = &near;
	far.left = 1;
	ev_side_open(&near, ev_on_back);
	ev_side_open(&far, ev_on_there);
	must(-pthread_create(&other, NULL, ev_other, &far), "pthread_create");
	ev_async_send(far.loop, &far.async);
	ev_run(near.loop, 0);
	pthread_join(other, NULL);
	ev_side_close(&far);
	ev_side_close(&near);
	report_trips();
}

static void ev_measure(void (*cb)(struct ev_loop *loop, ev_async *async, int events), void (*send)(void *to),
		       int counted)
{
	static struct ev_side side;

	ev_side_open(&side, cb);
	sender_start(&side.sender, send, &side, counted);
	report_each(ev_flat, &side, 1000);
	sender_end(&side.sender);
	ev_side_close(&side);
}

static void ev_contender(int argc, char **argv)
{
	if (is_trip(argc, argv))
		ev_trip();
	else
		ev_measure(ev_on_flat, ev_flat_send, 0);
}

static void ev_queue_contender(int argc, char **argv)
{
	(void)argc, (void)argv;
	ev_measure(ev_on_queue, ev_queue_send, 1);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"raw", raw_run},
		{"iou", iou_contender},
		{"iou-bh", bh_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
#ifdef HAVE_EV
		{"ev", ev_contender},
		{"ev-queue", ev_queue_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
