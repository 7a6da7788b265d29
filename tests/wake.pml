/* SPDX-License-Identifier: MIT */

/*
 * How the loop and the threads that give it something reach each other, and how the loop reaches the workers: two
 * protocols of iou.c as a model for spin. tests/proof/spin.sh checks that neither loses a wake-up, and that each
 * BROKEN variant does.
 *
 * 1. doze() and wake(). A waker publishes (on a stack, or in pool.done), then looks at `sleeping`; the loop sets it, then
 *    looks at what was published, then sleeps. Who changes `sleeping` back rings the bell, and the kernel's poll of the
 *    eventfd ends the sleep. All are seq_cst, so the model's interleavings are all there are.
 *      BROKEN=1   the loop looks first, and sets `sleeping` afterwards
 *      BROKEN=2   the waker looks at `sleeping` first, and publishes afterwards
 *
 * 2. job_queue() and the workers. The loop raises n_queued, then looks at n_idle, calling and n_looking without the
 *    lock; a worker that is to sleep raises n_idle, then looks at n_queued, then waits on the condition variable. One
 *    who has been called and not yet come calls the next himself. Withdrawn jobs, and pool_move(), which lowers n_queued
 *    under the lock, are not in the model.
 *      BROKEN=3   the worker does not look at n_queued once more
 *      BROKEN=4   a worker that was called does not call the next
 *
 * A lost wake-up shows as an invalid end state: someone sleeps, and nobody is left to wake him.
 */

#ifndef BROKEN
#define BROKEN 0
#endif

#ifdef LOOP

#define WAKERS 3
#define POSTS  2 /* of each */

byte mail, taken;     /* the stack, as a count */
bool sleeping, rings; /* the eventfd is readable */

proctype waker()
{
	byte i;
	bool asleep;

	for (i : 1 .. POSTS) {
#if BROKEN == 2
		asleep = sleeping;
		mail++;
#else
		mail++;
		asleep = sleeping;
#endif
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
}

active proctype loop()
{
	bool wait;
	byte i;

	for (i : 1 .. WAKERS) {
		run waker()
	}
	do
	:: taken == WAKERS * POSTS -> break
	:: else ->
#if BROKEN == 1
		wait = (mail == 0);
		sleeping = true;
#else
		sleeping = true;  /* doze() */
		wait = (mail == 0);
#endif
		if
		:: wait -> rings  /* io_uring_enter(): blocks until it rings */
		:: else
		fi;
		rings = false;    /* its CQE is reaped; one more of them costs a round, no more */
		sleeping = false;
		d_step { /* list_take() */
			taken = taken + mail;
			mail = 0
		}
	od
}

#else

#ifndef WORKERS
#define WORKERS 2
#endif
#define JOBS 4

byte n_queued, n_seen, n_taken; /* the latter two: under the lock */
byte n_done;
byte n_idle, n_looking, n_waiting, n_signals;
bool calling, stop, locked;

#define LOCK   atomic { !locked -> locked = true }
#define UNLOCK locked = false

/* pthread_cond_signal(): one of those who wait, if any. */
inline cond_signal()
{
	d_step {
		if
		:: n_signals < n_waiting -> n_signals++
		:: else
		fi
	}
}

inline cond_wait()
{
	d_step { n_waiting++; locked = false }
	atomic { n_signals > 0 -> n_signals--; n_waiting-- }
	LOCK
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

inline call_worker(call)
{
	if
	:: n_idle == 0 || calling -> call = false
	:: else -> calling = true; call = true
	fi
}

inline take_job()
{
	n_taken++;
#if BROKEN != 4
	if
	:: n_idle > 0 ->
		has_job(has);
		call = false;
		if
		:: has -> call_worker(call)
		:: else
		fi;
		if
		:: call -> cond_signal()
		:: else
		fi
	:: else
	fi
#endif
}

proctype worker()
{
	bool call, has;

	do
	:: LOCK; /* worker_wait() */
		n_looking--;
		has_job(has);
		do
		:: has || stop -> break
		:: else ->
			n_idle++;
#if BROKEN != 3
			has_job(has);
#endif
			if
			:: !has ->
				cond_wait();
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
		UNLOCK;
		do
		:: n_done++; /* the job, */
			n_done >= WORKERS; /* which waits for another: while a job is queued, no worker may sleep */
			LOCK; /* worker_swap() */
			has_job(has);
			if
			:: has -> take_job(); UNLOCK
			:: else -> n_looking++; UNLOCK; break
			fi
		od
	od
}

active proctype loop()
{
	bool call;
	byte i;

	/* They have been started: pool_add_worker() counts them as looking. */
	n_looking = WORKERS;
	for (i : 1 .. WORKERS) {
		run worker()
	}
	for (i : 1 .. JOBS) {
		n_queued++;
		call = (n_idle > 0); /* three loads, one after the other */
		if
		:: call -> call = !calling
		:: else
		fi;
		if
		:: call -> call = (n_looking == 0)
		:: else
		fi;
		if
		:: call ->
			LOCK;
			call_worker(call);
			UNLOCK;
			if
			:: call -> cond_signal()
			:: else
			fi
		:: else
		fi
	}
	n_done == JOBS;
	LOCK;
	stop = true;
	UNLOCK;
	d_step { n_signals = n_waiting } /* broadcast */
	_nr_pr == 1
}

#endif
