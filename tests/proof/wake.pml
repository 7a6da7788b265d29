/* SPDX-License-Identifier: MIT */

/*
 * How the loop and the threads that give it something reach each other, how the loop reaches the workers, and
 * how iou_free() waits for visitors: three protocols of iou.c as models for spin. tests/proof/spin.sh checks
 * that none loses a wake-up, and that each BROKEN variant does.
 *
 * 1. LOOP: mail_push(), mail_next(), doze() and wake(). A waker puts its node in the place of `last`, links it to the
 *    one before, then looks at `sleeping`. The loop sets that, looks for mail that it can reach, then sleeps. The one that
 *    sets `sleeping` back rings the bell, and the kernel's poll of the eventfd ends the sleep. All are seq_cst, so the
 *    model's interleavings are all there are.
 *      BROKEN=1   the loop looks first, and sets `sleeping` afterwards
 *      BROKEN=2   the waker looks at `sleeping` first, and pushes afterwards
 *      BROKEN=3   the waker looks at `sleeping` before it links its node
 *      BROKEN=4   the loop puts the stub behind the last node, and does not look whether another was just pushed there
 *
 * 2. The workers: job_queue(), worker_call(), worker_wait(). The loop raises n_queued, then looks at n_idle, n_looking
 *    and `calling` without the lock. A worker that is to sleep reads n_calls, raises n_idle, looks at n_queued, then waits
 *    for n_calls to change. One that was called and has come sets `calling` back, and calls the next. A wait may end
 *    early once (EARLY=1). LOST=1: one of the calls is not heard, and the last job is queued in a later round. Withdrawn
 *    jobs, and pool_move(), which lowers n_queued under the lock, are not in the model.
 *      BROKEN=5   the worker does not look at n_queued once more
 *      BROKEN=6   a worker that was called does not call the next
 *      BROKEN=7   a worker waits for n_calls to change from the value that it has when the lock has been given back
 *      BROKEN=8   the loop calls without the lock: the worker that it takes for asleep may be on its way to the job
 *      BROKEN=9   with LOST=1: a later round does not repeat the call
 *
 * 3. FREE: visitor_leave() and visitors_wait().
 *      BROKEN=10  iou_free() does not set FREE_WAITS before it waits
 *      BROKEN=11  it sleeps whatever the word has become
 *
 * A lost wake-up shows as an invalid end state: a thread sleeps, and none is left to wake it.
 */

#ifndef BROKEN
#define BROKEN 0
#endif
#ifndef LOST
#define LOST 0
#endif

#ifdef LOOP

#ifndef WAKERS
#define WAKERS 2
#endif
#ifndef POSTS
#define POSTS  2 /* of each */
#endif
#define STUB   0
#define NONE   255

byte last = STUB, next[WAKERS * POSTS + 1] = NONE;
bool sleeping, rings; /* the eventfd is readable */

inline push(node)
{
	next[node] = NONE;
	d_step { /* atomic_exchange */
		before = last;
		last = node
	}
	next[before] = node
}

inline wake()
{
	if
	:: asleep ->
		d_step { /* atomic_exchange */
			asleep = sleeping;
			sleeping = false
		}
		if
		:: asleep -> rings = true
		:: else
		fi
	:: else
	fi
}

proctype waker(byte number)
{
	byte i, before, node;
	bool asleep;

	for (i : 1 .. POSTS) {
		node = number * POSTS + i;
#if BROKEN == 2
		asleep = sleeping;
		push(node);
#elif BROKEN == 3
		next[node] = NONE;
		d_step {
			before = last;
			last = node
		}
		asleep = sleeping;
		next[before] = node;
#else
		push(node);
		asleep = sleeping;
#endif
		wake()
	}
}

active proctype loop()
{
	bool wait, behind;
	byte i, taken, first = STUB, after;

	for (i : 1 .. WAKERS) {
		run waker(i - 1)
	}
	do
	:: taken == WAKERS * POSTS -> break
	:: else ->
#if BROKEN != 1
		sleeping = true; /* doze() */
#endif
		wait = (next[first] == NONE); /* mail_ready() */
		if
		:: wait && first != STUB -> wait = (first != last)
		:: else
		fi;
#if BROKEN == 1
		sleeping = true;
#endif
		if
		:: wait -> rings  /* io_uring_enter(): blocks until it rings */
		:: else
		fi;
		rings = false;    /* its CQE is reaped; one more of them costs a round, no more */
		sleeping = false;
		do /* mail_next() */
		:: after = next[first];
			if
			:: first == STUB && after == NONE -> break
			:: first == STUB && after != NONE ->
				first = after;
				after = next[first]
			:: else
			fi;
			if
			:: after == NONE ->
				next[STUB] = NONE;
				atomic { /* compare_exchange */
					behind = (last != first && BROKEN != 4);
					if
					:: !behind -> last = STUB; after = STUB
					:: else
					fi
				}
				if
				:: behind -> after = next[first]
				:: else
				fi
			:: else
			fi;
			if
			:: after == NONE -> break
			:: else ->
				taken++;
				first = after
			fi
		od
	od
}

#elif defined(FREE)

#define VISITORS 3
#define WAITS    128

byte word, n_waiting, n_signals;

proctype visitor()
{
	byte before;

	d_step { /* atomic_fetch_sub: it is counted since before iou_free() */
		before = word;
		word--
	}
	if
	:: before == (WAITS | 1) ->
		d_step { /* futex_wake() */
			if
			:: n_signals < n_waiting -> n_signals++
			:: else
			fi
		}
	:: else
	fi
}

active proctype free()
{
	byte i, n;
	bool waits;

	word = VISITORS;
	for (i : 1 .. VISITORS) {
		run visitor()
	}
#if BROKEN == 10
	n = word;
#else
	atomic { /* atomic_fetch_or */
		n = word | WAITS;
		word = n
	}
#endif
	do
	:: n == 0 || n == WAITS -> break
	:: else ->
		atomic { /* futex_wait() */
			waits = (word == n || BROKEN == 11);
			n_waiting = n_waiting + waits
		}
		if
		:: waits -> atomic { n_signals > 0 -> n_signals--; n_waiting-- }
		:: else
		fi;
		n = word
	od
}

#else

#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef JOBS
#define JOBS 4
#endif
#ifndef EARLY
#define EARLY 1
#endif

byte n_queued, n_seen, n_taken; /* the latter two: under the lock */
byte n_done;
byte n_idle, n_looking, n_calls, n_waiting, n_signals;
bool calling, stop, locked;
bool early = EARLY; /* one wait may end so */
bool lost = LOST;

#define LOCK   atomic { !locked -> locked = true }
#define UNLOCK locked = false

/* One of those that wait, if any. */
inline futex_wake()
{
	d_step {
		if
		:: lost -> lost = false
		:: else ->
			if
			:: n_signals < n_waiting -> n_signals++
			:: else
			fi
		fi
	}
}

inline futex_wait(value)
{
	atomic {
		if
		:: n_calls == value -> n_waiting++; waits = true
		:: else -> waits = false
		fi
	}
	if
	:: waits ->
		atomic {
			if
			:: n_signals > 0 -> n_signals--; n_waiting--
			:: early && n_signals < n_waiting -> early = false; n_waiting--
			fi
		}
	:: else
	fi
}

/* With the lock held. */
inline has_job(has)
{
	if
	:: n_taken == n_seen -> n_seen = n_queued
	:: else
	fi;
	has = (n_taken != n_seen)
}

inline worker_call(call, again)
{
	call = (n_idle > 0);
	if
	:: call -> call = (!calling || again)
	:: else
	fi;
	if
	:: call -> calling = true; n_calls++
	:: else
	fi
}

/* True in `call`: wake one when the lock is free. */
inline take_job()
{
	n_taken++;
	call = false;
#if BROKEN != 6
	if
	:: n_idle > 0 ->
		has_job(has);
		if
		:: has -> worker_call(call, false)
		:: else
		fi
	:: else
	fi
#endif
}

inline unlock_and_wake()
{
	UNLOCK;
	if
	:: call -> futex_wake()
	:: else
	fi
}

proctype worker()
{
	bool call, has, waits;
	byte seen;

	do
	:: LOCK; /* worker_wait() */
		n_looking--;
		has_job(has);
		do
		:: has || stop -> break
		:: else ->
			seen = n_calls;
			n_idle++;
#if BROKEN != 5
			has_job(has);
#endif
			if
			:: !has ->
				UNLOCK;
#if BROKEN == 7
				seen = n_calls;
#endif
				futex_wait(seen);
				LOCK;
				calling = false
			:: else
			fi;
			n_idle--;
			has_job(has)
		od;
		if
		:: stop -> UNLOCK; break
		:: else
		fi;
		take_job();
		unlock_and_wake();
		do
		:: n_done++; /* the job, */
			n_done >= WORKERS; /* which waits for another: while a job is queued, no worker may sleep */
			LOCK; /* worker_swap() */
			has_job(has);
			if
			:: has -> take_job(); unlock_and_wake()
			:: else -> n_looking++; UNLOCK; break
			fi
		od
	od
}

active proctype loop()
{
	bool call, again;
	byte i;

	/* They have been started: pool_add_worker() counts them as looking. */
	n_looking = WORKERS;
	for (i : 1 .. WORKERS) {
		run worker()
	}
	for (i : 1 .. JOBS) {
#if LOST
		if
		:: i == JOBS ->
			n_looking == 0; /* whoever looks finds it without a call */
			lost = false;
			again = (BROKEN != 9)
		:: else
		fi;
#endif
		n_queued++;
		call = (n_idle > 0); /* three loads, one after the other */
		if
		:: call -> call = (n_looking == 0)
		:: else
		fi;
		if
		:: call -> call = (!calling || again)
		:: else
		fi;
		if
		:: call ->
#if BROKEN == 8
			worker_call(call, again);
#else
			LOCK;
			worker_call(call, again);
			UNLOCK;
#endif
			if
			:: call -> futex_wake()
			:: else
			fi
		:: else
		fi
	}
	n_done == JOBS;
	LOCK;
	stop = true;
	n_calls++;
	UNLOCK;
	d_step { n_signals = n_waiting } /* to all */
	_nr_pr == 1
}

#endif
