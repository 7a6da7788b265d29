/* SPDX-License-Identifier: MIT */
#ifndef IOU_H
#define IOU_H

/*
 * iou: one io_uring ring, pooled operations with closures, a few worker threads, one loop.
 *
 *     iou_op_t *op = iou_op_new(iou);                          take an op,
 *     io_uring_prep_read(op->sqe, fd, buf, sizeof(buf), 0);    prepare it as with liburing,
 *     iou_op_queue(iou, op, on_read, buf);                     queue it with a closure,
 *     int ret = iou_run(iou);                                  and run the loop: 0, or -errno.
 *
 * Everything that can be waited for is an op. An op leaves by one of three doors: the ring
 * (iou_op_queue), the worker threads (iou_op_async), the clock (iou_op_timer). It comes home
 * by one: its callback, on the thread that runs the loop. Other threads reach the loop with
 * posts and bottom halves.
 *
 * Conventions
 *   Tags      Each function is marked [loop thread] or [any thread]. An iou belongs to the thread
 *             that first flushes, runs or polls it; until then, to the one that sets it up. From
 *             another thread (and in a child after fork) a [loop thread] call gives -EEXIST, or
 *             NULL with errno EEXIST, or where it returns nothing is misuse.
 *   Errors    int functions return >= 0, or -errno. Pointer functions return NULL and set errno.
 *             Refused means that nothing happened; accepted means called back exactly once at the
 *             end.
 *   NULL      where a pointer is needed gives -EINVAL, NULL (EINVAL), or is misuse, as above.
 *   Misuse    that would corrupt memory writes one line to stderr and aborts: an op queued twice,
 *             unprepared or after it was given back, an op of another iou, a void call from a
 *             foreign thread, an unhold below zero, a deleted bottom half, iou_free within a
 *             callback. The line names the call, the rule, and the op. These checks are always on.
 *   Times     are CLOCK_MONOTONIC nanoseconds in 64 bits; any value is valid.
 *   Closures  are int (*cb)(void *cb_data). iou never looks behind cb_data. What it points to must
 *             live until the callback is entered for the last time; iou_op_env() makes it the op's
 *             own.
 */

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/types.h>
#include <sys/wait.h>

/*
 * liburing.h uses names that the C library may hide: glibc under a strict -std, musl without
 * _GNU_SOURCE. The headers above declare id_t and sigset_t in every mode. Each other type that is
 * hidden gets a stand-in while liburing.h is read; calls stay the same. SI_USER is hidden
 * together with siginfo_t, WEXITED with idtype_t, CPU_SETSIZE with musl's cpu_set_t.
 */
#ifndef AT_FDCWD
#define AT_FDCWD (-100)
#endif
#ifndef SI_USER
#define siginfo_t void
#endif
#ifndef WEXITED
#define idtype_t int
#endif
#ifndef CPU_SETSIZE
#define cpu_set_t void
#endif
#ifndef loff_t /* musl's is a macro */
#define loff_t int64_t
#define IOU_LOFF_T
#endif
#include <liburing.h>
#undef siginfo_t
#undef idtype_t
#undef cpu_set_t
#ifdef IOU_LOFF_T
#undef loff_t
#undef IOU_LOFF_T
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define IOU_VERSION_MAJOR 0
#define IOU_VERSION_MINOR 2
#define IOU_VERSION_PATCH 0

#if defined(__GNUC__)
#define IOU_MUST_USE __attribute__((warn_unused_result))
#define IOU_API __attribute__((visibility("default")))
#else
#define IOU_MUST_USE
#define IOU_API
#endif

/* A ring, its ops, timers, inbox and workers. Made by iou_new(), ended by iou_free(). */
typedef struct iou_t iou_t;

/* An operation. It is the program's from iou_op_new() until it is queued, and again in its last
 * callback; between those only `result` and `flags` may be read, in callbacks. Programs hold
 * pointers to ops; they never define, embed or assign an iou_op_t. */
typedef struct iou_op_t {
	struct io_uring_sqe *const sqe; /* zeroed; prepare it before queueing. Pointer: iou's */
	int result;                     /* valid in the callback: >= 0, or -errno */
	unsigned flags;                 /* valid in the callback: this CQE's IORING_CQE_F_* */
} iou_op_t;


/* ---- Life ------------------------------------------------------------------------------------ */

/* What runs the ops: see "Engines" below. */
enum iou_engine_kind { IOU_ENGINE_AUTO, IOU_ENGINE_RING, IOU_ENGINE_FALLBACK };

/*
 * Settings. Zero the struct, then set what matters; reserved fields stay zero.
 */
typedef struct iou_config_t {
	unsigned entries;     /* SQ entries; 0: 64. Rounded up to a power of two, at most 32768 */
	unsigned workers;     /* most worker threads; 0: the CPUs this process may run on */
	unsigned setup_flags; /* 0: the library's own choice; else the IORING_SETUP_* to use */
	unsigned engine;      /* enum iou_engine_kind; 0: io_uring, or the fallback without it */
	uint64_t spin_ns;     /* longest busy poll for a completion before sleeping; 0: none */
	uint64_t reserved[4]; /* zero */
} iou_config_t;

/*
 * Make an iou with `entries` SQ entries: how many ops one system call can submit, no limit on ops.
 * No thread is started. The caller owns the result and ends it with iou_free().
 *
 * setup_flags may hold CLAMP, SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG, SINGLE_ISSUER, DEFER_TASKRUN
 * and SQPOLL (io_uring_setup(2)). They are used as given, or refused. Given and without
 * SINGLE_ISSUER, no thread owns the iou: it may be handed from thread to thread (one at a time),
 * and each must outlive what it submitted. SQPOLL keeps the credentials of its creation.
 *
 * spin_ns: looking for completions and finished jobs before sleeping costs CPU time and saves
 * wake-ups. The time spent looking adapts: it doubles up to spin_ns when something was found and
 * halves when not. A round that looks in vain takes two system calls instead of one. Where spin_ns
 * is set, a worker looks for its next job for 50 us before it sleeps.
 *
 * engine: IOU_ENGINE_AUTO takes io_uring. If that is refused (EPERM, ENOSYS or EACCES: seccomp,
 * kernel.io_uring_disabled) or older than IORING_FEAT_EXT_ARG (Linux 5.11), it takes the fallback,
 * if iou_fallback.c is compiled in. IOU_ENGINE_RING takes io_uring or fails. IOU_ENGINE_FALLBACK
 * takes the fallback without a look at io_uring (some filters kill who tries it). For AUTO, the
 * user's IOU_ENGINE=ring or IOU_ENGINE=fallback in the environment decides; any other value, and a
 * set-user-ID program, is as if it were not set. The engine never changes afterwards.
 *
 * Errors: EINVAL (entries 0 in iou_new, config NULL, an unknown flag or engine, a reserved field
 * set, SQPOLL on the fallback); ENOMEM (also RLIMIT_MEMLOCK); EMFILE, ENFILE. Without the fallback:
 * EPERM, ENOSYS or EACCES if io_uring is refused or too old; ENOSYS for IOU_ENGINE_FALLBACK.
 * An iou that was made can reach its ring. A call that failed may be tried again: no failure is
 * remembered. No cancellation point (pthreads(7)). [any thread]
 */
IOU_API iou_t *iou_new(unsigned entries) IOU_MUST_USE;
IOU_API iou_t *iou_new_with(const iou_config_t *config) IOU_MUST_USE;

/*
 * End it. Cancels what is in flight and waits until the kernel has let go of every buffer and each
 * running job has returned: that can take as long as an uncancellable disk read or a job takes.
 * Jobs not started, timers, posts and bottom halves are dropped. No callback is called.
 * Descriptors that ops still return are closed: those of accept, open, socket and pipe, and those
 * that undelivered messages carry (SCM_RIGHTS; but not those of a multishot IORING_OP_RECVMSG,
 * which lie in a buffer that only the program knows). Direct descriptors and registered buffers are
 * released. Afterwards nothing that an op referred to is touched, and iou's descriptors, threads
 * and memory are gone. Holds do not delay it. It is no cancellation point, and waits for no thread
 * by spinning.
 *
 * By the owner; by any thread where nothing of the program is in flight (else NULL, errno EEXIST,
 * nothing done). Where another thread frees an iou that has run, the kernel releases what is
 * registered on the ring some tens of milliseconds later, and keeps the ring's own memory until its
 * owner ends. In a forked child it frees the child's memory and nothing of the parent's; within a
 * callback too, which then must not return (_exit, exec). If another thread than the loop's forked,
 * the child's memory is left to the end of the process. Within a callback of this iou it is misuse
 * in the parent. NULL is fine. Always returns NULL. [loop thread, or as said]
 */
IOU_API iou_t *iou_free(iou_t *iou);

/*
 * Change the SQ's size. Queued ops stay queued. What the program registered on the ring (files,
 * buffers, limits) is not carried over; iou_fd() is. Errors: -EBUSY while ring ops are in flight,
 * -EINVAL (entries 0), -ENOMEM, -EMFILE; the old ring then goes on. [loop thread]
 */
IOU_API int iou_resize(iou_t *iou, unsigned entries) IOU_MUST_USE;

/*
 * The ring, for reading its features, and for registering on it with liburing's functions, which
 * know io_uring alone (iou_register() knows each engine). The program submits nothing on it, reaps
 * nothing from it, and sends it no messages. Before the first flush, run or poll it is still
 * disabled (IORING_SETUP_R_DISABLED) where the kernel knows that.
 *
 * It is misuse, which nothing notices, to register on it what iou's own work rests on:
 * IORING_REGISTER_ENABLE_RINGS, _RESIZE_RINGS, _RING_FDS and their opposites, _CLOCK, _SYNC_CANCEL,
 * _SEND_MSG_RING, and eventfds once iou_fd() was called.
 *
 * Restrictions (IORING_REGISTER_RESTRICTIONS) must allow IORING_OP_POLL_ADD and
 * IORING_OP_ASYNC_CANCEL, with iou_fd() IORING_REGISTER_EVENTFD and IORING_UNREGISTER_EVENTFD too.
 * Where they do not, a run or poll that would have to sleep, or to cancel, returns -EACCES after it
 * delivered what is ready; and if IORING_REGISTER_SYNC_CANCEL is refused too (or unknown: before
 * Linux 6.0), iou_free() cannot stop what is in flight: it leaks the ops' memory, and their buffers
 * may be written until the kernel has ended the ring. NULL for NULL. [loop thread]
 */
IOU_API struct io_uring *iou_ring(iou_t *iou);

/*
 * iou_free() calls fn(data) last, when nothing is touched any more; of several, the latest first.
 * Not in a forked child. Errors: -ENOMEM, -EINVAL. [loop thread]
 */
IOU_API int iou_at_free(iou_t *iou, void (*fn)(void *data), void *data) IOU_MUST_USE;


/* ---- Engines --------------------------------------------------------------------------------- */

/*
 * An engine runs the SQEs: the kernel's io_uring, or the fallback (iou_fallback.c), which uses
 * epoll for what can be polled and threads of its own for files. A program runs on both, unchanged:
 * results, errors and promised orders are the same. On the fallback,
 *
 *   - a pending op does not keep its file open: keep the descriptor open until the last callback
 *     (as programs must anyway), and the other side of a socket that is closed with an op pending
 *     sees the end at once;
 *   - a bad address in an SQE is a fault (SIGSEGV), not -EFAULT;
 *   - liburing's register functions on iou_ring() fail: use iou_register();
 *   - IORING_SETUP_SQPOLL is refused, and other setup flags change nothing;
 *   - a multishot poll may report more ready bits than changed, or once more;
 *   - O_NONBLOCK of a descriptor may be set for a moment, by accept, connect and others: another
 *     process that shares the open file may see that;
 *   - file operations have the credentials and working directory of the process;
 *   - if several ops wait for one event, any of them may get it;
 *   - opcodes that iou_opcode_supported() denies end with -EINVAL.
 *
 * It needs Linux 4.18. Its threads are named "iou-fallback", at most 4 for each CPU; the first is
 * started when it is needed, and each ends after some idle seconds. If none can be started, file
 * operations end with -EAGAIN.
 */

/* "io_uring" or "fallback". NULL with errno EINVAL if iou is NULL. [any thread] */
IOU_API const char *iou_engine_name(const iou_t *iou);

/*
 * 1 if the engine knows the opcode (IORING_OP_*), else 0. It says nothing about flags.
 * Errors: those of io_uring_register(2). [loop thread]
 */
IOU_API int iou_opcode_supported(iou_t *iou, unsigned opcode) IOU_MUST_USE;

/*
 * io_uring_register(2) on the engine: buffers, files, limits, restrictions, a probe. Returns as the
 * system call, or -errno; -EINVAL also for what the engine does not know, and for what iou's own
 * work rests on: IORING_REGISTER_ENABLE_RINGS, _RESIZE_RINGS, _RING_FDS and their opposites,
 * _CLOCK, _SYNC_CANCEL, _SEND_MSG_RING, and eventfds once iou_fd() was called. [loop thread]
 */
IOU_API int iou_register(iou_t *iou, unsigned opcode, const void *arg,
			 unsigned nr_args) IOU_MUST_USE;


/* ---- Ops ------------------------------------------------------------------------------------- */

/*
 * Take an op from the pool: sqe zeroed, no environment, no deadline. It may be prepared now or
 * after any number of rounds. The caller owns it: queue it by one of the doors, or give it back
 * with iou_op_free(). After this call, neither queueing, timing, cancelling nor completing the op
 * needs memory. (Two calls can still fail: iou_op_env() for more than 64 bytes, and iou_op_async()
 * if there is no worker thread yet.)
 * Errors: ENOMEM. The pool grows as needed and is freed by iou_free(). [loop thread]
 */
IOU_API iou_op_t *iou_op_new(iou_t *iou) IOU_MUST_USE;

/* Give back an op that is not queued, with its environment. Its pointer is dead. NULL is fine. In
 * the op's last callback: the same, taking effect when the callback returns. [loop thread] */
IOU_API void iou_op_free(iou_t *iou, iou_op_t *op);

/*
 * Queue the op for the ring. The op is iou's until its last callback, in which it may be queued
 * again (by any door), else it is given back when that callback returns: op pointers are dead from
 * then on.
 *
 * Nothing reaches the kernel before iou_flush(), iou_run() or iou_poll(). Ops reach it in the order
 * in which they were queued. What sqe refers to (buffers, paths, timespecs, descriptors) stays
 * valid and open until the last callback.
 *
 * cb is called once for each CQE; while op->flags has IORING_CQE_F_MORE, more follow and the op
 * stays queued (multishot, zero-copy send: that flag alone tells). A negative return ends the
 * innermost iou_run() or iou_poll() with that value.
 *
 * iou owns sqe->user_data: it is the op's address, so liburing's cancel, poll-update and
 * timeout-update helpers take (__u64)(uintptr_t)op as their key. IOSQE_CQE_SKIP_SUCCESS is not
 * passed on.
 *
 * When the last callback of a ring op begins, *op->sqe is all zero, as in a new op: prepare it
 * again before you queue it again, a multishot op too. (liburing's prepare helpers clear the fields
 * that they do not use up to version 2.6 only.) In callbacks with IORING_CQE_F_MORE it stands as
 * queued; timers and jobs leave it alone. To queue an SQE that is all zero is misuse; a prepared
 * NOP has fd -1.
 *
 * Ops queued one after another with IOSQE_IO_LINK or IOSQE_IO_HARDLINK reach the kernel in one
 * submission. The chain ends with the first op without either flag, or at the next flush, poll or
 * round of the loop. A chain longer than the SQ ends whole with -E2BIG.
 * IOSQE_IO_DRAIN is iou's own: the op (or the chain with such a member) is submitted when every
 * ring op queued before has ended, and none queued after it before it has ended. [loop thread]
 */
IOU_API void iou_op_queue(iou_t *iou, iou_op_t *op, int (*cb)(void *cb_data), void *cb_data);

/*
 * Zeroed storage of `size` bytes that lives and dies with the op: its closure's captures. Aligned
 * for any type; up to 64 bytes cost no allocation. It stays while the op is queued again.
 * Errors: ENOMEM; EEXIST where the op has one already; EINVAL. [loop thread, or the op's job]
 */
IOU_API void *iou_op_env(iou_op_t *op, size_t size) IOU_MUST_USE;

/* The op that owns this environment: the pointer that iou_op_env() returned, of an op that was not
 * given back. Anything else is misuse, which is noticed where a cheap check can see it. [any
 * thread] */
IOU_API iou_op_t *iou_op_of(const void *env);

/*
 * Run work(work_data) on a worker thread, then cb(cb_data) on the loop with work's return value as
 * op->result, whatever it is: only cb's own return value can end the loop. Jobs start at once,
 * without the loop running, in the order in which they were queued; their callbacks come in the
 * order in which they finished. `work` may use no [loop thread] call, and nothing stops it once it
 * runs.
 *
 * A worker is an ordinary thread named "iou-worker". It inherits CPU affinity and scheduling policy
 * from the loop's thread. It blocks all signals but those that a fault raises (SIGSEGV, SIGBUS,
 * SIGFPE, SIGILL, SIGTRAP, SIGSYS), and cannot be cancelled. A job that starts a program sets that
 * program's signal mask. A child that a job forks and that returns from the job runs no other job;
 * its thread ends, and with it the child, as by exit(0): leave such a child with _exit().
 * Errors, nothing taken: -EAGAIN where not even one worker could be started; -EINVAL. [loop thread]
 */
IOU_API int iou_op_async(iou_t *iou, iou_op_t *op, int (*work)(void *work_data), void *work_data,
			 int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/*
 * The short form, without an op: run async_cb(async_cb_data) on a worker thread, then
 * completion_cb(completion_cb_data) on the loop. A negative result of the job ends iou_run() with
 * that value after the completion was called, unless that returned a negative value itself. A job
 * that iou_cancel_all() stopped before it started has no result. Errors: -ENOMEM, and as above.
 * [loop thread]
 */
IOU_API int iou_async(iou_t *iou, int (*async_cb)(void *async_cb_data), void *async_cb_data,
		      int (*completion_cb)(void *completion_cb_data),
		      void *completion_cb_data) IOU_MUST_USE;

/*
 * Call cb after `after_ns`, then, unless period_ns is 0, every period_ns without drift, with
 * IORING_CQE_F_MORE in op->flags. Never early. op->result is the number of expirations since the
 * last call. Due timers run in the order of their due time, equal ones in the order they were
 * started. A time too far for the clock is never due. On a timer that is pending it moves it, and
 * gives it this closure; where it was cancelled, only the closure: the cancel stands. O(log n), no
 * system call. [loop thread]
 */
IOU_API void iou_op_timer(iou_t *iou, iou_op_t *op, uint64_t after_ns, uint64_t period_ns,
			  int (*cb)(void *cb_data), void *cb_data);

/*
 * Before queueing on the ring or as a job: if the op has not completed after_ns after it was
 * queued, it is cancelled, and its result is -ETIME where it would be -ECANCELED. An op that
 * completed keeps its result; a job that runs is left to finish; a chain member that the kernel has
 * not started is cancelled when it starts, if it still is to. For a multishot op the time runs to
 * its last callback. Spent with the last callback: set it again before queueing again. Ignored on a
 * timer. On an op that is pending it is misuse. [loop thread]
 */
IOU_API void iou_op_deadline(iou_t *iou, iou_op_t *op, uint64_t after_ns);

/*
 * Ask one pending op to end. Asking twice is harmless; iou repeats the request where the kernel
 * needs it.
 *   0          asked (or the op has completed and waits to be delivered): the last callback
 *              follows, with -ECANCELED or with what the op had come to by then. A job not started,
 *              a timer, and an op still in the backlog end without fail, the latter with those
 *              linked after it (a chain still open is ended by that: what is queued later belongs
 *              to another).
 *   -EALREADY  cannot be stopped now: its job is running, or it waits in the kernel behind another
 *              op of its chain (iou asks again once it starts). Its last callback follows all the
 *              same.
 *   -EINVAL    not pending: not queued, or in its last callback.
 * A cancel that was asked while its op was pending never hits another op. But an op's pointer is
 * dead once its last callback has returned without queueing it again: it may be another op's by
 * then. [loop thread]
 */
IOU_API int iou_op_cancel(iou_t *iou, iou_op_t *op);

/* iou_op_cancel() for every op pending now; returns 0. Posts and bottom halves are still delivered,
 * holds stay, ops queued afterwards are not affected. iou_run() then delivers the last callbacks: a
 * graceful end. [loop thread] */
IOU_API int iou_cancel_all(iou_t *iou);

/*
 * A completion in the caller's memory. prep_sqe(sqe, opaque) is called at once, and prepares a
 * zeroed SQE; handler->cb(handler) once for each CQE with result and flags filled in, as in
 * iou_op_queue(). The handler must live until its last callback is entered; so a loop within its
 * callback, which may deliver its next completion, leaves that one's result and flags in it.
 * Errors: -ENOMEM, -EINVAL. [loop thread]
 */
typedef struct iou_handler_t iou_handler_t;
struct iou_handler_t {
	int (*cb)(iou_handler_t *handler);
	int result;
	unsigned flags;
};
IOU_API int iou_add_sqe(iou_t *iou, void (*prep_sqe)(struct io_uring_sqe *sqe, void *opaque),
			void *opaque, iou_handler_t *handler) IOU_MUST_USE;


/* ---- The loop -------------------------------------------------------------------------------- */

/*
 * Rounds. Callbacks run only inside iou_run() and iou_poll(), one at a time. A round submits what
 * is queued, sleeps if nothing is ready and it may, then delivers what is ready at that moment: due
 * timers, posts and bottom halves, jobs (in line with what ended in iou itself: cancelled timers,
 * and ops cancelled in the backlog), then CQEs. What becomes ready later belongs to the next round.
 *
 * A round is short, however much has piled up: it delivers, expires and cancels at most 1,024 of
 * each source and leaves the rest, in order, to the next. It also submits no more than 1,024 ops,
 * or as many as the SQ holds, and cancels beside these. Nothing pushes back: a thread that posts
 * faster than the loop delivers uses memory.
 *
 * Callbacks may call everything but iou_free(), iou_poll() and iou_run() included. The inner loop
 * delivers what the outer one had still to deliver, so another completion of the same op may come
 * in there. Afterwards op->result and op->flags are the outer callback's own again; but the op may
 * have had its last callback, or be queued again: a program remembers that in its own data. Each
 * level of nesting takes some 400 bytes of stack beside the callback's own.
 *
 * Callbacks return; no longjmp, exception or pthread_exit. Where one forks, the child that returns
 * from it runs no other callback: its iou_run() or iou_poll() returns -EEXIST.
 */

/* Hand the whole backlog to the kernel without waiting. 0, or -errno with nothing lost: call it (or
 * run) again. -EAGAIN, -EBUSY, -ENOMEM where the kernel stayed short of something. [loop thread] */
IOU_API int iou_flush(iou_t *iou);

/*
 * Run until iou_quit() (returns 0), until nothing is pending (returns 0), or until a callback or
 * the kernel reports an error (returns it, negative). Pending are: ops queued or in flight, jobs,
 * timers, posts and scheduled bottom halves not yet delivered, and holds. It can be called again
 * and goes on where it stopped. The kernel's errors: as iou_flush(); -EBADF, -EPERM or the like
 * where the ring is gone or refused; -EBADR where the kernel ran out of memory and dropped a
 * completion: an op will never end, every later run says so too, and iou_free() then gives the ops'
 * memory up. [loop thread]
 */
IOU_API int iou_run(iou_t *iou) IOU_MUST_USE;

/* End the iou_run() calls that are active, nested ones included: no further callback starts in
 * them. With none active, the next returns at once. iou_poll() does not see it. Returns 0; keeps
 * errno. No cancellation point. [any thread, signal handlers] */
IOU_API int iou_quit(iou_t *iou);

/*
 * One round (two where iou_fd() is in use: see there): wait until at least one callback can run, at
 * most timeout_ns (0: not at all; negative: without limit), and run what is ready. Returns the
 * number of callbacks run, those of nested calls not counted; 0 when the time is up, and at once
 * when nothing is pending; or a negative error as iou_run() does. A callback waits for something
 * with
 *     while (!done && (n = iou_poll(iou, -1)) > 0)
 * where 0 says that nothing is pending that could set `done`. [loop thread]
 */
IOU_API int iou_poll(iou_t *iou, int64_t timeout_ns) IOU_MUST_USE;

/*
 * A descriptor that polls readable whenever iou_poll(iou, 0) has something to do: for embedding in
 * epoll, GLib, libuv. Wait for it with poll, epoll or the like (level-triggered), then call
 * iou_poll(iou, 0); neither read nor close it. It stays the same until iou_free(), which closes it.
 * It starts readable. What callbacks queued is submitted before iou_poll() returns, so that an
 * event now and then costs one iou_poll() and two io_uring_enter(2).
 *
 * Inside a callback too: it may be readable once without need, and is exact after an iou_poll(iou,
 * 0) there. So a callback may run the program's loop around it until something has happened.
 *
 * The ring's eventfd registration belongs to iou from the first call on. Wait on this descriptor,
 * not on the ring's own: under DEFER_TASKRUN that one does not wake a sleeping epoll. Under
 * COOP_TASKRUN (kernels before 6.1) the foreign wait can return EINTR without a signal. Errors:
 * -EMFILE, -ENFILE, -ENOMEM, -EPERM where registering is refused. [loop thread]
 */
IOU_API int iou_fd(iou_t *iou) IOU_MUST_USE;

/* The iou whose callback this thread is running, or NULL. [any thread] */
IOU_API iou_t *iou_current(void);

/*
 * A hold keeps iou_run() from ending for lack of work; holds are counted. A thread that may still
 * post or schedule holds the iou: its iou_unhold() is its last touch, and iou_free() may follow as
 * soon as its effect is seen. An unhold below zero is misuse. No cancellation points. [any thread]
 */
IOU_API void iou_hold(iou_t *iou);
IOU_API void iou_unhold(iou_t *iou);


/* ---- From other threads ---------------------------------------------------------------------- */

/* Call cb(cb_data) once, on the loop thread. Posts of one thread arrive in its order. No
 * cancellation point. Not in signal handlers, since it may allocate: schedule a bottom half there.
 * Errors: -ENOMEM, -EINVAL. [any thread] */
IOU_API int iou_post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/*
 * A bottom half: a post that is made once and scheduled often. Scheduling takes no lock and no
 * memory, makes a system call only where the loop sleeps, and keeps errno. None of these calls is a
 * cancellation point. To schedule, cancel or delete one that was deleted is misuse, noticed as long
 * as iou has it.
 */
typedef struct iou_bh_t iou_bh_t;

/* Make one; delete it, or leave it to iou_free(). Errors: ENOMEM, EINVAL. [any thread] */
IOU_API iou_bh_t *iou_bh_new(iou_t *iou, int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/* Run its callback once on the loop, however often it is scheduled before that; from within the
 * callback: again in the next round. First scheduled, first run, in line with posts.
 * [any thread, signal handlers] */
IOU_API void iou_bh_schedule(iou_bh_t *bh);

/* The same, when a round would otherwise find nothing to do. iou_bh_schedule() overrides it; it
 * keeps the place that it has in line. [any thread] */
IOU_API void iou_bh_schedule_idle(iou_bh_t *bh);

/* Unschedule it. On the loop thread (before the first run: on any): it does not run, and when it is
 * scheduled again it goes to the end of the line. From another thread: it does not run unless it
 * was about to, and keeps its place in line. [any thread] */
IOU_API void iou_bh_cancel(iou_bh_t *bh);

/* Free it. At any time, in its own callback too; after this returned on the loop thread its
 * callback runs no more. NULL is fine. [any thread] */
IOU_API void iou_bh_delete(iou_bh_t *bh);


/* ---- Looking inside -------------------------------------------------------------------------- */

typedef struct iou_stats_t {
	uint64_t enters;      /* io_uring_enter(2) calls */
	uint64_t submitted;   /* SQEs the kernel took, iou's own included */
	uint64_t completed;   /* CQEs of the program's ops */
	uint64_t jobs;        /* jobs that came back */
	uint64_t timers;      /* timer callbacks */
	uint64_t posts;       /* posts and bottom halves run */
	uint64_t wakeups;     /* times another thread had to wake the loop */
	uint64_t pending;     /* ops pending now */
	uint64_t backlog;     /* of these, queued and not yet in the SQ */
	uint64_t backlog_max; /* most there have been at once */
	uint64_t reserved[8];
} iou_stats_t;

/* Fill in *stats. [loop thread] */
IOU_API void iou_stats(const iou_t *iou, iou_stats_t *stats);

/* Print a line for each pending op: where it is (backlog, ring, job queue, worker, timer, done),
 * its opcode, fd and callback; then holds, posts and bottom halves. For the question "why does my
 * loop not end?". [loop thread] */
IOU_API void iou_dump(const iou_t *iou, FILE *out);

/* "0.2.0": the version of the library that is linked. [any thread] */
IOU_API const char *iou_version(void);

#ifdef IOU_BACKEND
/*
 * The seam between iou.c and an engine other than the kernel's io_uring; programs do not need it.
 * One thread at a time calls these, for each ring. iou.c takes an engine named iou_fallback, if one
 * is linked.
 *
 * open   as io_uring_queue_init_params(3): fills *io, whose SQ and CQ lie in the engine's memory,
 *        so that it reads as a real ring. io->ring_fd polls readable if enter has work.
 * close  ends the ring. Nothing that an op refers to is touched afterwards.
 * reserve memory for n SQEs in flight, at any time: those n need no more. 0 or -ENOMEM.
 * enter  as io_uring_enter2(2), with IORING_ENTER_EXT_ARG too. Nothing completes outside of it.
 * reg    as io_uring_register(2).
 * wanted enum iou_engine_kind: the user's wish, for a program that left the choice (AUTO).
 */
typedef struct iou_backend_t {
	const char *name;
	int (*open)(unsigned entries, struct io_uring *io, struct io_uring_params *params);
	void (*close)(struct io_uring *io);
	int (*reserve)(struct io_uring *io, size_t n);
	int (*enter)(struct io_uring *io, unsigned n, unsigned min, unsigned flags, void *arg,
		     size_t size);
	int (*reg)(struct io_uring *io, unsigned opcode, const void *arg, unsigned n);
	unsigned (*wanted)(void);
} iou_backend_t;

extern const iou_backend_t iou_fallback __attribute__((weak, visibility("hidden")));
#endif

#ifdef __cplusplus
}
#endif
#endif
