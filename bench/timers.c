/* SPDX-License-Identifier: MIT */
/*
 * timers CONTENDER N: N one-shot timers at random times, whole milliseconds (libuv has no finer).
 *
 *   start_ns    to make and start one, due in one to two hours
 *   cancel_ns   to end one, in random order; the loop runs after every 1,000, as it does where answers end the
 *               timers of their questions (iou calls back for each)
 *   fire_ns     one callback, when all are due at once
 *
 *   iou   iou_op_new() and iou_op_timer(), iou_op_cancel()
 *   uv    uv_timer_start(), uv_timer_stop(), handles in an array
 *   ev    ev_timer_start(), ev_timer_stop(), watchers in an array
 */
#include "bench.h"

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif
#ifdef HAVE_EV
#include <ev.h>
#endif

#define HOUR_MS 3600000
#define SOON_MS 200

static uint64_t seed = 88172645463325252, n_fired;
static unsigned *order; /* 0 to n-1, shuffled */
static uint64_t n;

static uint64_t later_ms(void)
{
	return HOUR_MS + random64(&seed) % HOUR_MS;
}

static uint64_t soon_ms(void)
{
	return 1 + random64(&seed) % SOON_MS;
}

static void shuffle(void)
{
	order = must_have(malloc(n * sizeof(*order)), "malloc");
	for (uint64_t i = 0; i < n; i++) {
		uint64_t j = random64(&seed) % (i + 1);

		order[i] = order[j];
		order[j] = (unsigned)i;
	}
}

/* What a contender can do with its n timers. */
struct timers {
	void (*start)(uint64_t (*ms)(void));
	void (*cancel)(unsigned i);
	void (*turn)(void);   /* one round of the loop, without waiting */
	void (*fire)(void);   /* all of them are due */
};

static double phase(uint64_t *since)
{
	uint64_t before = *since;

	*since = now_ns();
	return (double)(*since - before) / (double)n;
}

static void measure(int argc, char **argv, const struct timers *timers)
{
	struct timespec rest = {.tv_nsec = (SOON_MS + 50) * 1000000};
	uint64_t since;

	n = argument(argc, argv, 0, 1000000);
	shuffle();
	for (int warm = 0; warm < 2; warm++) {
		since = now_ns();
		timers->start(later_ms);
		if (warm)
			report("start_ns", phase(&since));
		for (uint64_t i = 0; i < n; i++) {
			timers->cancel(warm ? order[i] : (unsigned)i);
			if (i % 1000 == 999)
				timers->turn();
		}
		timers->turn();
		if (warm)
			report("cancel_ns", phase(&since));
	}
	timers->start(soon_ms);
	nanosleep(&rest, NULL);
	n_fired = 0;
	since = now_ns();
	timers->fire();
	report("fire_ns", phase(&since));
	must(n_fired == n ? 0 : -EIO, "timers lost");
}

/* ---- iou ---- */

static iou_t *iou;
static iou_op_t **ops;

static int on_timer(void *data)
{
	(void)data;
	n_fired++;
	return 0;
}

static void iou_start(uint64_t (*ms)(void))
{
	for (uint64_t i = 0; i < n; i++) {
		ops[i] = must_have(iou_op_new(iou), "iou_op_new");
		iou_op_timer(iou, ops[i], ms() * 1000000, 0, on_timer, NULL);
	}
}

static void iou_cancel(unsigned i)
{
	must(iou_op_cancel(iou, ops[i]), "iou_op_cancel");
}

static void iou_turn(void)
{
	must(iou_poll(iou, 0), "iou_poll");
}

static void iou_all(void)
{
	must(iou_run(iou), "iou_run");
}

static void iou_contender(int argc, char **argv)
{
	static const struct timers timers = {iou_start, iou_cancel, iou_turn, iou_all};

	ops = must_have(calloc(argument(argc, argv, 0, 1000000), sizeof(*ops)), "calloc");
	iou = must_have(iou_new(64), "iou_new");
	measure(argc, argv, &timers);
	iou_free(iou);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
static uv_loop_t uv;
static uv_timer_t *uv_timers;

static void uv_on_timer(uv_timer_t *timer)
{
	(void)timer;
	n_fired++;
}

static void uv_begin(uint64_t (*ms)(void))
{
	for (uint64_t i = 0; i < n; i++) {
		must(uv_timer_init(&uv, &uv_timers[i]), "uv_timer_init");
		must(uv_timer_start(&uv_timers[i], uv_on_timer, ms(), 0), "uv_timer_start");
	}
}

static void uv_cancel_one(unsigned i)
{
	uv_timer_stop(&uv_timers[i]);
}

static void uv_turn(void)
{
	uv_run(&uv, UV_RUN_NOWAIT);
}

static void uv_all(void)
{
	uv_run(&uv, UV_RUN_DEFAULT);
}

static void uv_contender(int argc, char **argv)
{
	static const struct timers timers = {uv_begin, uv_cancel_one, uv_turn, uv_all};

	uv_timers = must_have(calloc(argument(argc, argv, 0, 1000000), sizeof(*uv_timers)), "calloc");
	must(uv_loop_init(&uv), "uv_loop_init");
	measure(argc, argv, &timers);
}
#endif

/* ---- libev ---- */

#ifdef HAVE_EV
static struct ev_loop *ev;
static ev_timer *ev_timers;

static void ev_on_timer(struct ev_loop *loop, ev_timer *timer, int events)
{
	(void)loop, (void)timer, (void)events;
	n_fired++;
}

static void ev_begin(uint64_t (*ms)(void))
{
	ev_now_update(ev);
	for (uint64_t i = 0; i < n; i++) {
		ev_timer_init(&ev_timers[i], ev_on_timer, (double)ms() / 1e3, 0.);
		ev_timer_start(ev, &ev_timers[i]);
	}
}

static void ev_cancel_one(unsigned i)
{
	ev_timer_stop(ev, &ev_timers[i]);
}

static void ev_turn(void)
{
	ev_run(ev, EVRUN_NOWAIT);
}

static void ev_all(void)
{
	ev_run(ev, 0);
}

static void ev_contender(int argc, char **argv)
{
	static const struct timers timers = {ev_begin, ev_cancel_one, ev_turn, ev_all};

	ev_timers = must_have(calloc(argument(argc, argv, 0, 1000000), sizeof(*ev_timers)), "calloc");
	ev = must_have(ev_loop_new(EVFLAG_AUTO), "ev_loop_new");
	measure(argc, argv, &timers);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"iou", iou_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
#ifdef HAVE_EV
		{"ev", ev_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
