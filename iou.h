/* SPDX-License-Identifier: MIT */
#ifndef IOU_H
#define IOU_H

/*
 * iou: one io_uring ring, pooled operations with closures, a few worker threads, one loop.
 *
 *     iou_op_t *op = iou_op_new(iou);                          take an op,
 *     io_uring_prep_read(op->sqe, fd, buf, sizeof(buf), 0);    prepare it as with liburing,
 *     iou_op_queue(iou, op, on_read, buf);                     queue it with a callback,
 *     int ret = iou_run(iou);                                  and run the loop.
 *
 * An op is anything that a program can wait for. A program gives it to the ring (iou_op_queue), to
 * the worker threads (iou_op_async) or to the clock (iou_op_timer). An op comes back in one way:
 * the loop calls its callback. Other threads reach the loop with posts and bottom halves.
 *
 * Who owns an op
 *
 *   1. iou_op_new() gives the op to the program.
 *   2. Queueing gives it to iou, until iou calls its callback for the last time. The last call is
 *      the one without IORING_CQE_F_MORE in op->flags.
 *   3. In that last callback the program may queue the op again. Then rule 2 applies again.
 *   4. If it does not, iou takes the op back when the callback returns. Do not use the pointer
 *      after that.
 *
 * Buffers, paths and other memory that an SQE points to must stay valid, and descriptors must stay
 * open, until the last callback begins.
 *
 * Errors
 *
 *   int         >= 0, or -errno
 *   a pointer   the pointer, or NULL with errno set
 *   void        cannot fail; wrong use is misuse
 *
 * A call that returns an error has done nothing, and its callback is never called. A call that
 * succeeds leads to exactly one last callback. NULL for a pointer that is needed gives EINVAL, or
 * is misuse if the call returns nothing.
 *
 * Misuse is wrong use that would corrupt memory. It writes one line to stderr, which names the
 * call, the rule and the op, and aborts the program. Examples: to queue an op twice, unprepared, or
 * after it was given back; to use an op of another iou; to call iou_free() in a callback. These
 * checks are always on. Otherwise the library never prints, exits or changes signal handling.
 *
 * Threads
 *
 * An iou belongs to the thread that first flushes, runs or polls it. Until then, it belongs to the
 * thread that sets it up. Each call has a tag:
 *
 *   [loop thread]   For the thread that owns the iou. From another thread, and in a child after
 *                   fork(), it gives EEXIST, or is misuse if it returns nothing.
 *   [any thread]    For every thread. None of these calls is a cancellation point.
 *
 *                                             in a job      in a signal handler
 *   iou_quit, iou_bh_schedule                 yes           yes
 *   other calls for any thread                yes           no
 *   iou_op_env of the job's own op            yes           no
 *   calls for the loop thread                 no            no
 *
 * Times are nanoseconds of CLOCK_MONOTONIC in 64 bits. Any value is valid.
 *
 * A callback is int (*cb)(void *cb_data). iou never reads the memory that cb_data points to. That
 * memory must be valid until the last callback begins. iou_op_env() gives memory that lives as long
 * as the op.
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
#define IOU_VERSION_MINOR 3
#define IOU_VERSION_PATCH 0

#if defined(__GNUC__)
#define IOU_MUST_USE __attribute__((warn_unused_result))
#define IOU_API __attribute__((visibility("default")))
#else
#define IOU_MUST_USE
#define IOU_API
#endif

/* A ring with its ops, timers and workers. Made by iou_new(), ended by iou_free(). */
typedef struct iou_t iou_t;

/*
 * An operation. While iou owns it, the program reads only `result` and `flags`, and only in its
 * callbacks. Programs hold pointers to ops; they never define, embed or assign an iou_op_t.
 */
typedef struct iou_op_t {
	struct io_uring_sqe *const sqe; /* all zero at first: prepare it before queueing */
	int result;                     /* valid in the callback: >= 0, or -errno */
	unsigned flags;                 /* valid in the callback: this CQE's IORING_CQE_F_* */
} iou_op_t;


/* ---- Life ------------------------------------------------------------------------------------ */

/* The engine that runs the ops: see "Engines" below. */
enum iou_engine_kind { IOU_ENGINE_AUTO, IOU_ENGINE_RING, IOU_ENGINE_FALLBACK };

/* Settings. Set all of it to zero, then the members that matter. Reserved members stay zero. */
typedef struct iou_config_t {
	unsigned entries;     /* SQ entries; 0: 64. Rounded up to a power of two, at most 32768 */
	unsigned workers;     /* most worker threads; 0: the CPUs this process may run on */
	unsigned setup_flags; /* 0: the library's own choice; else the IORING_SETUP_* to use */
	unsigned engine;      /* enum iou_engine_kind; 0: io_uring, or the fallback without it */
	uint64_t spin_ns;     /* longest busy poll for a completion before sleeping; 0: none */
	uint64_t reserved[4]; /* zero */
} iou_config_t;

/*
 * Make an iou. The caller owns it and ends it with iou_free(). No thread is started.
 *
 *   entries       How many ops one system call can submit. It does not limit the number of ops.
 *   setup_flags   CLAMP, SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG, SINGLE_ISSUER, DEFER_TASKRUN and
 *                 SQPOLL of io_uring_setup(2). iou uses them as given, or fails. If there are flags
 *                 and SINGLE_ISSUER is not one of them, no thread owns the iou: threads may hand it
 *                 on, one at a time, and a thread must live as long as the ops that it submitted.
 *                 With SQPOLL, ops have the credentials of the thread that made the iou.
 *   spin_ns       Before it sleeps, the loop looks for completions for a while. That saves wake-ups
 *                 and costs CPU time. Each search is twice as long as the last one, up to spin_ns,
 *                 if that found something, and else half as long. A round that finds nothing makes
 *                 two system calls, not one. With spin_ns, an idle worker looks for a job for 50 us
 *                 before it sleeps.
 *   engine        AUTO takes io_uring. If that is refused (EPERM, ENOSYS or EACCES) or too old
 *                 (Linux 5.11 has IORING_FEAT_EXT_ARG), it takes the fallback, if iou_fallback.c is
 *                 compiled in. RING takes io_uring or fails. FALLBACK never tries io_uring: some
 *                 seccomp filters kill a program that does. For AUTO the environment can decide:
 *                 IOU_ENGINE=ring or IOU_ENGINE=fallback, read by iou_fallback.c, and not in a
 *                 set-user-ID program. The engine never changes afterwards. See "Engines" below.
 *
 * A call that failed may be tried again.
 *
 * Errors: EINVAL (entries 0 in iou_new, config NULL, an unknown flag or engine, a reserved member
 * that is not zero, SQPOLL on the fallback); ENOMEM (also RLIMIT_MEMLOCK); EMFILE, ENFILE; EPERM,
 * ENOSYS or EACCES (io_uring is refused or too old, and there is no fallback). [any thread]
 */
IOU_API iou_t *iou_new(unsigned entries) IOU_MUST_USE;
IOU_API iou_t *iou_new_with(const iou_config_t *config) IOU_MUST_USE;

/*
 * End an iou. It cancels ops in flight, and waits until the kernel has let go of every buffer and
 * every running job has returned. That takes as long as a disk read that cannot be cancelled, or a
 * job. It drops jobs that have not started, timers, posts and bottom halves. It calls no callback.
 * Holds do not delay it. It always returns NULL; NULL is allowed.
 *
 * Afterwards iou touches no memory of an op, and iou's descriptors, threads and memory are gone. It
 * closes descriptors that undelivered ops would have returned: of accept, open, socket and pipe,
 * and those in undelivered messages (SCM_RIGHTS; not of a multishot receive, whose buffers iou does
 * not know). It releases direct descriptors and registered buffers.
 *
 * The owner calls it. Any thread may call it if no ring op is in flight (else errno is EEXIST, and
 * nothing is done). If another thread than the owner calls it, the kernel releases registered
 * files and buffers some tens of milliseconds later.
 *
 * In a forked child it frees the child's memory, and touches nothing of the parent's. In the child
 * it may be called within a callback; then that callback must not return (_exit, exec). If another
 * thread than the loop's forked, some memory is left to the end of the child. In the parent, a call
 * within a callback is misuse. [loop thread, or as said]
 */
IOU_API iou_t *iou_free(iou_t *iou);

/*
 * Change the number of SQ entries. Queued ops stay queued, and iou_fd() stays the same descriptor.
 * Files, buffers, limits and restrictions that the program registered are not carried over. If it
 * fails, the old ring goes on. Errors: -EBUSY (ring ops are in flight), -EINVAL (entries 0),
 * -ENOMEM, -EMFILE, -ENFILE. [loop thread]
 */
IOU_API int iou_resize(iou_t *iou, unsigned entries) IOU_MUST_USE;

/*
 * The ring: to read its features, and to register on it with liburing's functions (these know
 * io_uring only; iou_register() knows each engine). The program submits nothing on it, reaps
 * nothing from it, and sends it no messages. Until the first flush, run or poll it is
 * disabled (IORING_SETUP_R_DISABLED) if it has IORING_SETUP_SINGLE_ISSUER (Linux 6.0), and on the
 * fallback.
 *
 * iou itself needs some registrations, so do not use them: IORING_REGISTER_ENABLE_RINGS,
 * _RESIZE_RINGS, _RING_FDS and their opposites, _CLOCK, _SYNC_CANCEL, _SEND_MSG_RING; and eventfds
 * once iou_fd() was called. That is misuse which iou does not notice.
 *
 * Restrictions (IORING_REGISTER_RESTRICTIONS) must allow IORING_OP_POLL_ADD and
 * IORING_OP_ASYNC_CANCEL. With iou_fd(), they must also allow IORING_REGISTER_EVENTFD and
 * IORING_UNREGISTER_EVENTFD. If they do not, a run or poll that has to sleep or to cancel delivers
 * the callbacks that are ready, then returns -EACCES. If they refuse IORING_REGISTER_SYNC_CANCEL
 * too (or the kernel is older than 6.0), iou_free() cannot stop ops in flight: it leaks their
 * memory, and the kernel may write to their buffers until it has ended the ring.
 *
 * Errors: EINVAL, EEXIST. [loop thread]
 */
IOU_API struct io_uring *iou_ring(iou_t *iou);

/*
 * Make iou_free() call fn(data) at its very end, when it has let go of all memory of the ops. The
 * function that was given last is called first. In a forked child none is called. Errors: -ENOMEM,
 * -EINVAL. [loop thread]
 */
IOU_API int iou_at_free(iou_t *iou, void (*fn)(void *data), void *data) IOU_MUST_USE;


/* ---- Engines --------------------------------------------------------------------------------- */

/*
 * An engine runs the SQEs. There are two: the kernel's io_uring, and the fallback (iou_fallback.c),
 * which uses epoll, and threads of its own for files. A program runs on both without change and
 * gets equal results, errors and orders. These differences remain on the fallback:
 *
 *   - A pending op does not keep its file open. If a descriptor is closed while an op on it is
 *     pending, the peer sees the end at once, and the op may never end unless it is cancelled. If
 *     the number is used again, the op may work on the new file. An IORING_OP_CLOSE waits for file
 *     operations that were started on its descriptor; close(2) does not.
 *   - A bad address in an SQE can be a fault (SIGSEGV) in place of -EFAULT.
 *   - liburing's register functions on iou_ring() fail. iou_register() works.
 *   - IORING_SETUP_SQPOLL is refused. The other setup flags change nothing.
 *   - A multishot poll may report more ready bits than have changed, or report once more.
 *   - Ops set O_NONBLOCK on a descriptor for a moment (accept, connect and others). A process that
 *     shares the open file may see that. Processes that accept on one listening socket should set
 *     O_NONBLOCK on it themselves, or one's end of the moment may block the other.
 *   - File operations have the credentials and the working directory of the process.
 *   - If several ops wait for the same event, any of them may get it.
 *   - A registered file takes a descriptor of its own. Registering with tags is refused.
 *   - A zero-copy send makes a copy.
 *   - Opcodes that iou_opcode_supported() denies end with -EINVAL.
 *
 * The fallback needs Linux 4.18. Its threads are named "iou-fallback". There are at most four for
 * each CPU; they start when they are needed and end when they were idle for some seconds. If none
 * can be started, file operations end with -EAGAIN.
 */

/* The engine: "io_uring" or "fallback". Errors: EINVAL. [any thread] */
IOU_API const char *iou_engine_name(const iou_t *iou);

/*
 * Return 1 if the engine knows the opcode (IORING_OP_*), else 0. That says nothing about flags.
 * Errors: -EINVAL, -EEXIST; those of io_uring_register(2). [loop thread]
 */
IOU_API int iou_opcode_supported(iou_t *iou, unsigned opcode) IOU_MUST_USE;

/*
 * io_uring_register(2) on either engine: files, buffers, buffer rings, limits, restrictions, a
 * probe. It returns the result of the system call. Errors: -EINVAL (the engine does not know the
 * opcode; or iou itself needs it, see iou_ring()); those of io_uring_register(2). [loop thread]
 */
IOU_API int iou_register(iou_t *iou, unsigned opcode, const void *arg,
			 unsigned nr_args) IOU_MUST_USE;


/* ---- Ops ------------------------------------------------------------------------------------- */

/*
 * Take an op from the pool. Its SQE is all zero; it has no environment and no deadline. The caller
 * owns it. The caller gives it to iou by iou_op_queue(), iou_op_async() or iou_op_timer(), or gives
 * it back with iou_op_free(). It may be prepared now or many rounds later.
 *
 * Once the program has an op, it needs no more memory to queue it, to set its time, to cancel it or
 * to complete it. Two calls can still fail: iou_op_env() for more than 64 bytes, and iou_op_async()
 * if no worker thread is there yet. Errors: ENOMEM, EINVAL, EEXIST. [loop thread]
 */
IOU_API iou_op_t *iou_op_new(iou_t *iou) IOU_MUST_USE;

/*
 * Give back an op that is not queued, with its environment. In the op's last callback, this takes
 * effect when the callback returns. NULL is allowed. [loop thread]
 */
IOU_API void iou_op_free(iou_t *iou, iou_op_t *op);

/*
 * Queue the op for the ring. Nothing reaches the kernel before the next iou_flush(), iou_run() or
 * iou_poll(). Ops reach it in the order in which they were queued.
 *
 * The loop calls cb(cb_data) once for each CQE, with op->result and op->flags set. If op->flags has
 * IORING_CQE_F_MORE, more CQEs follow and the op stays queued (multishot, zero-copy send). The call
 * without that flag is the last one: see "Who owns an op". If cb returns a negative value, the
 * innermost iou_run() or iou_poll() ends with that value.
 *
 * When the last callback begins, *op->sqe is all zero again. So prepare it again before you queue
 * it again, a multishot op too. (From liburing 2.7 on, the prepare helpers do not clear the fields
 * that they do not use.) In callbacks with IORING_CQE_F_MORE, the SQE is as it was queued. Timers
 * and jobs do not change it. To queue an SQE that is all zero is misuse; a prepared NOP has fd
 * -1.
 *
 * iou sets sqe->user_data to the op's address. So liburing's helpers that cancel or update another
 * op take (__u64)(uintptr_t)op as its user_data. iou clears IOSQE_CQE_SKIP_SUCCESS.
 *
 * Ops that are queued one after another with IOSQE_IO_LINK or IOSQE_IO_HARDLINK are a chain. It
 * reaches the kernel in one submission. It ends with the first op without such a flag, or with the
 * next flush, run or poll. A chain that is longer than the SQ ends with -E2BIG, all of it.
 *
 * IOSQE_IO_DRAIN: iou submits the op (or its chain) when every ring op that was queued before has
 * ended. It submits later ops when the drained one has ended. [loop thread]
 */
IOU_API void iou_op_queue(iou_t *iou, iou_op_t *op, int (*cb)(void *cb_data), void *cb_data);

/*
 * Memory for the callback's data that lives as long as the op. It is zeroed, and aligned for any
 * type. Up to 64 bytes need no allocation. It stays if the op is queued again.
 * Errors: ENOMEM, EEXIST (the op has an environment), EINVAL. [loop thread, or the op's own job]
 */
IOU_API void *iou_op_env(iou_op_t *op, size_t size) IOU_MUST_USE;

/*
 * The op of an environment. env is the pointer that iou_op_env() returned, and its op was not given
 * back since. Any other pointer is misuse, which is noticed if a cheap check can see it.
 * [any thread]
 */
IOU_API iou_op_t *iou_op_of(const void *env);

/*
 * A job: run work(work_data) on a worker thread, then cb(cb_data) on the loop. op->result is the
 * value that work returned. Jobs start in the order in which they were queued, and do not wait for
 * the loop. Their callbacks come in the order in which they finished. Nothing stops a job that
 * runs.
 *
 * A worker is a thread named "iou-worker". It has the CPU affinity and the scheduling policy of the
 * loop's thread. It blocks all signals but those that a fault raises (SIGSEGV, SIGBUS, SIGFPE,
 * SIGILL, SIGTRAP, SIGSYS), and cannot be cancelled. A job that starts a program sets the signal
 * mask of that program itself. A child that a job forks should end with _exit() or exec: if it
 * returns from the job, it ends as by exit(0).
 *
 * Errors: -EAGAIN (no worker is there, and none can be started; the op stays the caller's),
 * -EINVAL. [loop thread]
 */
IOU_API int iou_op_async(iou_t *iou, iou_op_t *op, int (*work)(void *work_data), void *work_data,
			 int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/*
 * A job without an op: run async_cb(async_cb_data) on a worker thread, then
 * completion_cb(completion_cb_data) on the loop. If async_cb returned a negative value, iou_run()
 * ends with it after the completion, unless completion_cb returned a negative value itself. A job
 * that iou_cancel_all() stopped before it started has no result.
 * Errors: -ENOMEM, -EAGAIN (as iou_op_async()), -EINVAL. [loop thread]
 */
IOU_API int iou_async(iou_t *iou, int (*async_cb)(void *async_cb_data), void *async_cb_data,
		      int (*completion_cb)(void *completion_cb_data),
		      void *completion_cb_data) IOU_MUST_USE;

/*
 * A timer: call cb after after_ns, and then every period_ns, unless that is 0. All calls but the
 * last have IORING_CQE_F_MORE; a periodic timer has no last one until it is cancelled. op->result
 * says how many times it expired since the previous call: more than 1 if the loop was late. It
 * never comes early, and a period does not drift. Timers come in the order of their time; for the
 * same time, in the order in which they were started. A time too far for the clock never comes.
 *
 * On a timer that is pending, this call moves it and gives it this callback. (If it was cancelled,
 * the cancel stands.) It takes O(log n) and no system call. [loop thread]
 */
IOU_API void iou_op_timer(iou_t *iou, iou_op_t *op, uint64_t after_ns, uint64_t period_ns,
			  int (*cb)(void *cb_data), void *cb_data);

/*
 * Give an op a deadline, before it is queued for the ring or as a job. If it has not completed
 * after_ns after it was queued, iou cancels it, and its result is -ETIME in place of -ECANCELED. An
 * op that completes before the cancel reaches it keeps its result. A job that runs is left to
 * finish. For a member of a chain that the kernel has not started, iou asks again when it starts.
 * For a multishot op, the time runs until its last callback.
 *
 * A deadline applies once: set it again before queueing again. It means nothing for a timer. On an
 * op that is pending it is misuse. [loop thread]
 */
IOU_API void iou_op_deadline(iou_t *iou, iou_op_t *op, uint64_t after_ns);

/*
 * Ask a pending op to end. No callback is called within this call. To ask twice is harmless. If the
 * kernel needs to be asked again, iou does that.
 *
 *   0          The op was asked to end, or has completed and waits for delivery. Its last callback
 *              follows, with -ECANCELED, or with its own result if it completed before. A timer, a
 *              job that has not started, and an op in the backlog always end with -ECANCELED. The
 *              ops that are linked after an op in the backlog do so too. (If its chain is still
 *              open, the chain ends here.)
 *   -EALREADY  The op cannot be stopped now: its job is running, or it waits in the kernel behind
 *              another op of its chain. Its last callback follows too.
 *   -EINVAL    The op is not pending: it is not queued, or in its last callback.
 *
 * A cancel never hits another op, if its own op was pending when it was asked. [loop thread]
 */
IOU_API int iou_op_cancel(iou_t *iou, iou_op_t *op);

/*
 * Ask every op that is pending now to end, as iou_op_cancel(). The next iou_run() delivers their
 * last callbacks: a graceful end. Posts and bottom halves are still delivered; holds stay; ops that
 * are queued later are not affected. Returns 0 on success. Errors: -EINVAL, -EEXIST. [loop thread]
 */
IOU_API int iou_cancel_all(iou_t *iou);

/*
 * A completion in the caller's memory, without an op. This call calls prep_sqe(sqe, opaque) at
 * once, to prepare an SQE that is all zero. The loop calls handler->cb(handler) once for each CQE,
 * with result and flags set, as for iou_op_queue(). The handler must be valid until its last
 * callback begins. Errors: -ENOMEM, -EINVAL. [loop thread]
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
 * The loop goes in rounds. A round submits queued ops, sleeps if nothing is ready, then delivers
 * everything that is ready at that moment, in this order: due timers; posts and bottom halves;
 * jobs, and ops that ended in iou itself (cancelled timers, ops cancelled in the backlog); CQEs.
 * Events that come later belong to the next round. All callbacks run on the loop's thread, one at a
 * time, and only inside iou_run() and iou_poll().
 *
 * A round is short, even if much is ready. It delivers at most 1,024 of each source and leaves the
 * rest, in order, to the next round. It submits at most 1,024 ops, or as many as the SQ has room
 * for. But nothing slows down a thread that posts faster than the loop delivers: the posts use more
 * and more memory.
 *
 * A callback may call everything but iou_free(). It may call iou_poll() and iou_run(), which is a
 * nested loop. That loop also delivers the rest of the outer round, so an op whose callback is
 * running may get another callback in it. Afterwards op->result and op->flags are again those of
 * the outer callback. But the op may have ended meanwhile, or be queued again: note that in your
 * data. Each level of nesting takes some 400 bytes of stack, beside the callback's own.
 *
 * Callbacks return: no longjmp(), exception or pthread_exit() leaves them. If a callback forks, the
 * child that returns from it runs no other callback: its iou_run() or iou_poll() returns -EEXIST.
 */

/*
 * Submit all queued ops, without waiting. After an error nothing is lost: call it, or run, again.
 * Errors: -EAGAIN, -EBUSY, -ENOMEM (a lasting shortage in the kernel); as iou_run().
 * [loop thread]
 */
IOU_API int iou_flush(iou_t *iou);

/*
 * Run the loop until iou_quit() is called (returns 0), until nothing is pending (returns 0), or
 * until a callback or the kernel reports an error (returns it, negative). Pending are ops that are
 * queued or in flight, jobs, timers, posts and scheduled bottom halves, and holds. It can be called
 * again, and goes on where it stopped: an error loses nothing.
 *
 * Errors: the value that a callback returned; -EAGAIN, -EBUSY, -ENOMEM (a lasting shortage in the
 * kernel); -EBADF, -EPERM (the ring is gone, or is refused now); -EACCES (restrictions: see
 * iou_ring()); -EBADR (the kernel ran out of memory and dropped a completion: an op will never end,
 * and iou_free() gives up the ops' memory); -EINVAL, -EEXIST. [loop thread]
 */
IOU_API int iou_run(iou_t *iou) IOU_MUST_USE;

/*
 * End the iou_run() calls that are active, nested ones too. They start no further callback and
 * return 0. If none is active, the next iou_run() returns 0 at once. iou_poll() takes no notice.
 * It returns 0 on success, and keeps errno. Errors: -EINVAL. [any thread, signal handlers]
 */
IOU_API int iou_quit(iou_t *iou);

/*
 * One round: wait until a callback can run, at most timeout_ns (0: do not wait; negative: no
 * limit), and run the callbacks that are ready. (If iou_fd() is in use, there may be a second
 * round, which submits.) Returns how many callbacks ran, without those of nested calls. Returns 0
 * when the time is up, and at once if nothing is pending. So a callback waits for something with
 *
 *     while (!done && (n = iou_poll(iou, -1)) > 0)
 *             ;
 *
 * Here 0 means that nothing is pending that could set `done`. Errors: as iou_run(). [loop thread]
 */
IOU_API int iou_poll(iou_t *iou, int64_t timeout_ns) IOU_MUST_USE;

/*
 * A descriptor to embed iou in another loop (epoll, GLib, libuv). It polls readable if
 * iou_poll(iou, 0) has something to do. Wait for it, level-triggered, then call iou_poll(iou, 0).
 * Neither read it nor close it. It stays the same until iou_free(), which closes it. At first it is
 * readable. From the first call on, iou_poll() also submits the ops that its callbacks queued, so
 * that a single event costs one iou_poll() and two io_uring_enter(2).
 *
 * It works inside callbacks too: a callback may run the other loop until something has happened.
 * There it may be readable once although nothing is ready; after an iou_poll(iou, 0) it is exact.
 *
 * From the first call on, the ring's registered eventfd belongs to iou. Wait for this descriptor,
 * not for the ring's own: with DEFER_TASKRUN that one does not wake epoll. With COOP_TASKRUN
 * (kernels before 6.1) the other loop's wait can return EINTR without a signal.
 *
 * Errors: -EMFILE, -ENFILE, -ENOMEM; -EBUSY (the program has registered an eventfd); -EPERM,
 * -EACCES (registering is refused); -EINVAL, -EEXIST. [loop thread]
 */
IOU_API int iou_fd(iou_t *iou) IOU_MUST_USE;

/* The iou whose callback this thread is running, or NULL if there is none. [any thread] */
IOU_API iou_t *iou_current(void);

/*
 * Holds keep iou_run() from ending while nothing else is pending. They are counted. A thread that
 * may still post or schedule takes a hold, and iou_unhold() is its last call on the iou: iou_free()
 * may follow as soon as the loop sees the unhold. An unhold without a hold is misuse.
 * [any thread]
 */
IOU_API void iou_hold(iou_t *iou);
IOU_API void iou_unhold(iou_t *iou);


/* ---- From other threads ---------------------------------------------------------------------- */

/*
 * Call cb(cb_data) once, on the loop thread. Posts of one thread arrive in its order. It may
 * allocate, so it is not for signal handlers: schedule a bottom half there.
 * Errors: -ENOMEM, -EINVAL. [any thread]
 */
IOU_API int iou_post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/*
 * A bottom half is a post that is made once and scheduled often. To schedule it takes no lock and
 * no memory, and keeps errno. It makes a system call only if the loop sleeps. To use a bottom half
 * after it was deleted is misuse, which is noticed as long as iou has its memory.
 */
typedef struct iou_bh_t iou_bh_t;

/* Make a bottom half. Delete it, or leave it to iou_free(). Errors: ENOMEM, EINVAL. [any thread] */
IOU_API iou_bh_t *iou_bh_new(iou_t *iou, int (*cb)(void *cb_data), void *cb_data) IOU_MUST_USE;

/*
 * Make its callback run once on the loop, however often it is scheduled until then. In its own
 * callback: make it run again in the next round. Bottom halves and posts run in the order in which
 * they were scheduled. [any thread, signal handlers]
 */
IOU_API void iou_bh_schedule(iou_bh_t *bh);

/*
 * Make its callback run when a round has nothing else to do. iou_bh_schedule() overrides that. If
 * it is scheduled already, it keeps its place in line. [any thread]
 */
IOU_API void iou_bh_schedule_idle(iou_bh_t *bh);

/*
 * Unschedule it. On the loop thread (before the first run: on any), it does not run, and if it is
 * scheduled again it goes to the end of the line. From another thread, it does not run unless its
 * turn has just come, and it keeps its place in line. [any thread]
 */
IOU_API void iou_bh_cancel(iou_bh_t *bh);

/*
 * Free it, at any time, in its own callback too. After this returned on the loop thread, its
 * callback runs no more. NULL is allowed. [any thread]
 */
IOU_API void iou_bh_delete(iou_bh_t *bh);


/* ---- Looking inside -------------------------------------------------------------------------- */

typedef struct iou_stats_t {
	uint64_t enters;      /* calls of io_uring_enter(2), or of the fallback in its place */
	uint64_t submitted;   /* SQEs that the engine took, iou's own too */
	uint64_t completed;   /* CQEs of the program's ops */
	uint64_t jobs;        /* jobs that came back */
	uint64_t timers;      /* timer callbacks */
	uint64_t posts;       /* posts and bottom halves run */
	uint64_t wakeups;     /* times another thread had to wake the loop */
	uint64_t pending;     /* ops pending now */
	uint64_t backlog;     /* ops of these that wait for the SQ */
	uint64_t backlog_max; /* the largest backlog so far */
	uint64_t reserved[8];
} iou_stats_t;

/* Fill in *stats. [loop thread] */
IOU_API void iou_stats(const iou_t *iou, iou_stats_t *stats);

/*
 * Print a line for each pending op: its place (backlog, ring, job queue, worker, timer, done),
 * its opcode, descriptor and callback. The last line has the engine's name, the number of ops,
 * holds, posts and bottom halves. It answers "why does my loop not end?". [loop thread]
 */
IOU_API void iou_dump(const iou_t *iou, FILE *out);

/* The version of the library that is linked, such as "0.3.0". [any thread] */
IOU_API const char *iou_version(void);

#ifdef IOU_BACKEND
/*
 * The seam between iou.c and an engine other than the kernel's io_uring; programs do not need it.
 * One thread at a time calls these, for each ring. iou.c takes an engine named iou_fallback, if one
 * is linked.
 *
 * open     As io_uring_queue_init_params(3). It fills *io, whose SQ and CQ lie in the engine's
 *          memory, so that it reads as a real ring. io->ring_fd polls readable if enter has work.
 * close    It ends the ring. Nothing that an op refers to is touched afterwards.
 * reserve  Memory for n SQEs in flight, at any time: those n need no more. 0 or -ENOMEM.
 * enter    As io_uring_enter2(2), with IORING_ENTER_EXT_ARG too. Nothing completes outside of it.
 * reg      As io_uring_register(2).
 * wanted   The user's wish for a program that left the choice (AUTO): enum iou_engine_kind.
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
