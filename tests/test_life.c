/* SPDX-License-Identifier: MIT */

/* Making an iou, its settings and errors; freeing it with anything in flight; resizing it. */

#include "helper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static int never(void *data)
{
	(void)data;
	abort();
}

static int never_handler(iou_handler_t *handler)
{
	(void)handler;
	abort();
}

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
	(void)opaque;
	io_uring_prep_nop(sqe);
}

/* ---- Settings -------------------------------------------------------------------------------- */

static unsigned sq_entries(iou_t *iou)
{
	return iou_ring(iou)->sq.ring_entries;
}

START_TEST(the_sq_has_the_entries_rounded_up)
{
	static const struct {
		unsigned entries, expected;
	} table[] = {{1, 1}, {2, 2}, {3, 4}, {64, 64}, {65, 128}, {1000, 1024}, {4096, 4096}};
	iou_t *iou;

	errno = 0;
	ck_assert_ptr_null(iou_new(0));
	ck_assert_int_eq(errno, EINVAL);
	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		iou = new_iou(table[i].entries);
		ck_assert_uint_eq(sq_entries(iou), table[i].expected);
		done(iou);
	}
	iou = new_iou_with(&(iou_config_t){0});
	ck_assert_uint_eq(sq_entries(iou), 64);
	done(iou);
}
END_TEST

START_TEST(too_many_entries_are_clamped)
{
	static const unsigned many[] = {32768, 32769, 1U << 31, UINT32_MAX};
	iou_t *iou;

	for (unsigned i = 0; i < 4; i++) {
		iou = new_iou(many[i]);
		ck_assert_uint_eq(sq_entries(iou), 32768);
		start(iou, CQE, on_nothing, NULL);
		run(iou);
		done(iou);
	}
}
END_TEST

START_TEST(a_bad_config_is_refused)
{
	iou_config_t config = {0};

	errno = 0;
	ck_assert_ptr_null(iou_new_with(NULL));
	ck_assert_int_eq(errno, EINVAL);
	for (int i = 0; i < 4; i++) {
		config = (iou_config_t){0};
		config.reserved[i] = UINT64_C(1) << 63;
		errno = 0;
		ck_assert_ptr_null(iou_new_with(&config));
		ck_assert_int_eq(errno, EINVAL);
	}
	config = (iou_config_t){.engine = 3};
	errno = 0;
	ck_assert_ptr_null(iou_new_with(&config));
	ck_assert_int_eq(errno, EINVAL);
}
END_TEST

#define ALLOWED_FLAGS \
	(IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | \
	 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | \
	 IORING_SETUP_SQPOLL)

START_TEST(unknown_setup_flags_are_refused)
{
	for (int bit = 0; bit < 32; bit++) {
		iou_config_t config = {.setup_flags = 1U << bit};

		if (config.setup_flags & ALLOWED_FLAGS)
			continue;
		errno = 0;
		ck_assert_ptr_null(iou_new_with(&config));
		ck_assert_int_eq(errno, EINVAL);
		config.setup_flags |= IORING_SETUP_CLAMP;
		ck_assert_ptr_null(iou_new_with(&config));
		ck_assert_int_eq(errno, EINVAL);
	}
}
END_TEST

static int on_round_trip(void *data)
{
	++*(int *)data;
	return 0;
}

/* Each set of flags that the kernel takes is used as given, and all of the loop works with it. */
START_TEST(setup_flags_are_used_as_given)
{
	static const unsigned table[] = {
		IORING_SETUP_CLAMP,
		IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
		IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SQPOLL,
		IORING_SETUP_SQPOLL | IORING_SETUP_SINGLE_ISSUER,
	};

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		iou_t *iou = NEW_IOU_OF(4, table[i]);
		int fds[2], n = 0, n_all = 0;
		call_t read;

		if (!iou)
			continue;
		ck_assert_uint_eq(iou_ring(iou)->flags & ALLOWED_FLAGS & ~IORING_SETUP_CLAMP,
				  table[i] & ~IORING_SETUP_CLAMP);
		for (int round = 0; round < 50; round++)
			for (int kind = 0; kind < N_KINDS; kind++)
				if (kind != ENDED) {
					start(iou, (kind_t)kind, on_round_trip, &n);
					n_all++;
				}
		run(iou);
		ck_assert_int_eq(n, n_all);
		new_pipe(fds);
		call_read(iou, &read, 0, fds[0]); /* and is cancelled by iou_free(), or comes */
		ck_assert_int_eq(iou_poll(iou, (int64_t)MSEC), 0);
		if (i % 2) {
			ck_assert_int_eq(write(fds[1], "x", 1), 1);
			run(iou);
			ck_assert_int_eq(read.result, 1);
		}
		ck_assert_ptr_null(iou_free(iou));
		close_pair(fds);
	}
}
END_TEST

START_TEST(the_version_is_the_headers)
{
	char version[64];

	snprintf(version, sizeof(version), "%d.%d.%d", IOU_VERSION_MAJOR, IOU_VERSION_MINOR,
		 IOU_VERSION_PATCH);
	ck_assert_str_eq(iou_version(), version);
}
END_TEST

START_TEST(descriptors_are_close_on_exec)
{
	iou_t *iou = new_iou(4);
	call_t call = {0};

	ck_assert_int_ge(iou_fd(iou), 0);
	for (int kind = 0; kind < N_KINDS; kind++)
		make_ready(iou, (kind_t)kind, on_call, &call);
	run(iou);
	for (int fd = 3; fd < 1000; fd++) {
		char path[64], target[256] = "";
		int flags = fcntl(fd, F_GETFD);

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (flags < 0 || readlink(path, target, sizeof(target) - 1) < 0)
			continue;
		if (strncmp(target, "anon_inode:", 11) == 0) /* the ring, its eventfd, timers */
			ck_assert_msg(flags & FD_CLOEXEC, "%s stays open", target);
	}
	done(iou);
}
END_TEST

/* The library changes no signal's handling, nor what this thread blocks. */
START_TEST(signals_are_left_alone)
{
	struct sigaction before[65], after;
	sigset_t mask_before, mask_after;
	iou_t *iou;
	int n = 0;

	for (int sig = 1; sig < 65; sig++)
		if (sigaction(sig, NULL, &before[sig]) != 0)
			before[sig].sa_handler = SIG_DFL;
	pthread_sigmask(SIG_BLOCK, NULL, &mask_before);
	iou = new_iou(4);
	ck_assert_int_ge(iou_fd(iou), 0);
	for (int kind = 0; kind < N_KINDS; kind++)
		make_ready(iou, (kind_t)kind, on_round_trip, &n);
	run(iou);
	iou_quit(iou);
	ck_assert_int_eq(iou_resize(iou, 8), 0);
	for (int round = 0; round < 2; round++) {
		for (int sig = 1; sig < 65; sig++)
			if (sigaction(sig, NULL, &after) == 0)
				ck_assert_ptr_eq((void *)(uintptr_t)after.sa_handler,
						 (void *)(uintptr_t)before[sig].sa_handler);
		pthread_sigmask(SIG_BLOCK, NULL, &mask_after);
		for (int sig = 1; sig < 65; sig++)
			ck_assert_int_eq(sigismember(&mask_before, sig),
					 sigismember(&mask_after, sig));
		if (round == 0)
			done(iou);
	}
}
END_TEST

/* ---- Where it cannot be made ----------------------------------------------------------------- */

static int n_open(void)
{
	int n = 0;

	for (int fd = 0; fd < 64; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Fewer and fewer descriptors: EMFILE, or an iou that works; none is left open. */
static void few_descriptors(void *data)
{
	int n_before = n_open(), n_failed = 0, highest = 0;

	(void)data;
	for (int fd = 0; fd < 64; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			highest = fd;
	for (int spare = 0; spare < 8; spare++) {
		iou_t *iou;
		int n = 0;

		EXPECT(setrlimit(RLIMIT_NOFILE,
				 &(struct rlimit){(rlim_t)(highest + 1 + spare), 20000}) == 0);
		for (int fd = 0; fd < highest; fd++) /* fill the gaps */
			if (fcntl(fd, F_GETFD) < 0)
				EXPECT(dup2(0, fd) == fd);
		n_before = n_open();
		errno = 0;
		iou = iou_new(4);
		if (!iou) {
			EXPECT(errno == EMFILE);
			n_failed++;
		} else {
			start(iou, JOB, on_round_trip, &n);
			start(iou, CQE, on_round_trip, &n);
			EXPECT(iou_run(iou) == 0 && n == 2);
			n = iou_fd(iou);
			EXPECT(n >= 0 || n == -EMFILE);
			EXPECT(iou_free(iou) == NULL);
		}
		EXPECT(n_open() == n_before);
	}
	EXPECT(n_failed >= 1 && n_failed < 8);
}

START_TEST(a_lack_of_descriptors_is_an_error)
{
	in_good_child(few_descriptors, NULL);
}
END_TEST

/* Answer one system call with an error. */
static void deny(int nr, int error)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = 4, .filter = filter};

	EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	EXPECT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0);
}

typedef struct denied_t {
	int nr, error, expected;
	const char *engine; /* of an iou whose program leaves the choice; NULL: there is none */
} denied_t;

static void make_one(unsigned engine, int error, const char *name)
{
	int n_before = n_open(), n = 0;
	iou_t *iou;

	errno = 0;
	iou = iou_new_with(&(iou_config_t){.entries = 4, .engine = engine});
	if (error) {
		EXPECT(iou == NULL);
		EXPECT(errno == error);
	} else {
		EXPECT(iou != NULL); /* made means that it works */
		EXPECT(strcmp(iou_engine_name(iou), name) == 0);
		for (int kind = 0; kind < N_KINDS; kind++)
			if (kind != ENDED)
				start(iou, (kind_t)kind, on_round_trip, &n);
		EXPECT(iou_run(iou) == 0);
		EXPECT(n == N_KINDS - 1);
		EXPECT(iou_free(iou) == NULL);
	}
	EXPECT(n_open() == n_before);
}

static void make_denied(void *data)
{
	denied_t *denied = data;

	unsetenv("IOU_ENGINE");
	deny(denied->nr, denied->error);
	make_one(IOU_ENGINE_RING, denied->expected, "io_uring");
	make_one(IOU_ENGINE_AUTO, denied->engine ? 0 : denied->expected, denied->engine);
	if (denied->expected) { /* SQPOLL is io_uring's alone */
		errno = 0;
		EXPECT(!iou_new_with(&(iou_config_t){.setup_flags = IORING_SETUP_SQPOLL}));
		EXPECT(errno == denied->expected);
	}
	make_one(IOU_ENGINE_FALLBACK, 0, "fallback");
	setenv("IOU_ENGINE", "ring", 1);
	make_one(IOU_ENGINE_AUTO, denied->expected, "io_uring");
	setenv("IOU_ENGINE", "fallback", 1);
	make_one(IOU_ENGINE_AUTO, 0, "fallback");
	make_one(IOU_ENGINE_RING, denied->expected, "io_uring");
	setenv("IOU_ENGINE", "Fallback", 1); /* as unset */
	make_one(IOU_ENGINE_AUTO, denied->engine ? 0 : denied->expected, denied->engine);
}

START_TEST(io_uring_is_refused)
{
	denied_t table[] = {
		{SYS_io_uring_setup, EPERM, EPERM, "fallback"},
		{SYS_io_uring_setup, ENOSYS, ENOSYS, "fallback"},
		{SYS_io_uring_setup, EACCES, EACCES, "fallback"},
		{SYS_io_uring_setup, ENOMEM, ENOMEM, NULL},
		{SYS_io_uring_setup, EMFILE, EMFILE, NULL},
		{SYS_io_uring_enter, EPERM, EPERM, "fallback"},
		{SYS_io_uring_enter, ENOSYS, ENOSYS, "fallback"},
		{SYS_io_uring_register, EPERM, 0, "fallback"},
		{SYS_io_uring_register, ENOSYS, 0, "fallback"},
		{SYS_io_uring_register, EACCES, 0, "fallback"},
	};

	if (!ring_works())
		SKIP("needs io_uring");
	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		in_good_child(make_denied, &table[i]);
}
END_TEST

/* The iou is there, then the kernel refuses it: told, each time, with nothing lost; what needs no
 * ring goes on. */
static void refused_later(void *data)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.entries = 4, .engine = IOU_ENGINE_RING});
	int n = 0;

	(void)data;
	EXPECT(iou != NULL);
	start(iou, JOB, on_round_trip, &n);
	start(iou, CQE, on_round_trip, &n);
	EXPECT(iou_run(iou) == 0 && n == 2);
	deny(SYS_io_uring_enter, EPERM);
	start(iou, CQE, on_round_trip, &n);
	for (int i = 0; i < 3; i++) {
		EXPECT(iou_run(iou) == -EPERM);
		EXPECT(iou_flush(iou) == -EPERM);
		EXPECT(iou_poll(iou, -1) == -EPERM);
	}
	EXPECT(n == 2 && n_pending(iou) == 1);
	post(iou, on_round_trip, &n);
	while (n < 3)
		EXPECT(iou_poll(iou, 0) != 0);
	EXPECT(iou_free(iou) == NULL);
}

START_TEST(io_uring_is_refused_later)
{
	if (!ring_works())
		SKIP("needs io_uring");
	in_good_child(refused_later, NULL);
}
END_TEST

/* More than a thread can register rings (16). */
START_TEST(many_ious_share_a_thread)
{
	enum { N = 40 };
	iou_t *ious[N];
	int n = 0;

	for (int i = 0; i < N; i++)
		ious[i] = new_iou(4);
	for (int round = 1; round <= 3; round++) {
		for (int i = 0; i < N; i++) {
			start(ious[i], CQE, on_round_trip, &n);
			start(ious[i], POST, on_round_trip, &n);
			run(ious[i]);
		}
		ck_assert_int_eq(n, 2 * N * round);
	}
	for (int i = 0; i < N; i++)
		done(ious[(i * 7) % N]);
}
END_TEST

/* RLIMIT_MEMLOCK of nothing: refused with ENOMEM where the kernel counts rings, else it works. */
static void without_memory(void *data)
{
	int n_before, n = 0;
	iou_t *iou;

	(void)data;
	EXPECT(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 &&
	       setresuid(65534, 65534, 65534) == 0);
	EXPECT(setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){0, 0}) == 0);
	n_before = n_open();
	for (int i = 0; i < 3; i++) {
		errno = 0;
		iou = iou_new(32768);
		if (iou) {
			start(iou, CQE, on_round_trip, &n);
			EXPECT(iou_run(iou) == 0 && n == i + 1);
			iou_free(iou);
		} else {
			EXPECT(errno == ENOMEM);
			n++;
		}
		EXPECT(n_open() == n_before);
	}
}

#define TOO_MANY 7 /* exit status */

/* Some kernels count a ring's memory until a moment after it was closed: one after the other must
 * do. */
static void ring_after_ring(void *data)
{
	uint64_t until_ns = now_ns() + 20 * SECOND;
	int n = 0, n_made = 0, n_failed = 0;
	iou_t *iou;

	(void)data;
	EXPECT(setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){8 << 20, 8 << 20}) == 0);
	EXPECT(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 &&
	       setresuid(65534, 65534, 65534) == 0);
	while (n_made < 16) {
		iou = iou_new(32768);
		if (!iou) {
			EXPECT(errno == ENOMEM);
			EXPECT(now_ns() < until_ns);
			n_failed++;
			nanosleep(&(struct timespec){.tv_nsec = 200 * 1000 * 1000}, NULL);
			continue;
		}
		start(iou, CQE, on_round_trip, &n);
		EXPECT(iou_run(iou) == 0 && n == ++n_made);
		EXPECT(iou_free(iou) == NULL);
	}
	if (n_failed > 3) /* without patience it is 7 or 8 */
		_exit(TOO_MANY);
}

/* On a busy machine the moment may be longer than the library has patience: the best of some
 * tries. */
START_TEST(a_ring_just_freed_makes_room)
{
	uint64_t until_ns = now_ns() + 20 * SECOND;
	char said[4096];
	int status;

	if (geteuid() != 0)
		SKIP("needs root, to become a user with limits");
	do
		status = in_child(ring_after_ring, NULL, said, sizeof(said));
	while (WIFEXITED(status) && WEXITSTATUS(status) == TOO_MANY && now_ns() < until_ns);
	ck_assert_msg(status == 0, "the child ended with status %#x: %s", status, said);
}
END_TEST

START_TEST(a_lack_of_memory_to_lock_is_an_error)
{
	if (geteuid() != 0)
		SKIP("needs root, to become a user with limits");
	in_good_child(without_memory, NULL);
}
END_TEST

/* ---- iou_free -------------------------------------------------------------------------------- */

START_TEST(free_of_nothing_is_harmless)
{
	ck_assert_ptr_null(iou_free(NULL));
	for (int i = 0; i < 20; i++)
		ck_assert_ptr_null(iou_free(new_iou(4))); /* never run */
}
END_TEST

/* One of everything, in every state; no callback is called, nothing is left (the fixture, ASan
 * look). */
START_TEST(free_drops_everything)
{
	for (int flushed = 0; flushed < 3; flushed++) {
		static iou_handler_t handler = {.cb = never_handler};
		iou_t *iou = new_iou(4);
		iou_op_t *op;
		int fds[2];
		char buf[64];

		new_socketpair(fds);
		new_op(iou);
		ck_assert_ptr_nonnull(iou_op_env(new_op(iou), 1000));
		for (int kind = 0; kind < N_KINDS; kind++) {
			if (flushed)
				make_ready(iou, (kind_t)kind, never, NULL);
			else if (kind != ENDED)
				start(iou, (kind_t)kind, never, NULL);
		}
		for (int i = 0; i < 20; i++) {
			op = new_op(iou);
			io_uring_prep_recv(op->sqe, fds[0], buf, sizeof(buf), 0);
			op->sqe->flags = i % 3 == 1 ? IOSQE_ASYNC : i % 3 == 2 ? IOSQE_IO_LINK : 0;
			ck_assert_ptr_nonnull(iou_op_env(op, 1000));
			iou_op_deadline(iou, op, (uint64_t)i * SECOND);
			iou_op_queue(iou, op, never, NULL);
		}
		op = new_op(iou);
		io_uring_prep_nop(op->sqe);
		op->sqe->flags = IOSQE_IO_DRAIN;
		iou_op_queue(iou, op, never, NULL);
		start(iou, CQE, never, NULL);
		iou_op_timer(iou, new_op(iou), SECOND, SECOND, never, NULL);
		iou_op_timer(iou, new_op(iou), UINT64_MAX, 0, never, NULL);
		ck_assert_int_eq(iou_add_sqe(iou, prep_nop, NULL, &handler), 0);
		iou_hold(iou);
		iou_quit(iou);
		if (flushed == 2) {
			flush(iou);
			ck_assert_int_ge(iou_fd(iou), 0);
		}
		ck_assert_ptr_null(iou_free(iou));
		close_pair(fds);
	}
}
END_TEST

/* Reads of a disk that are under way when the iou is freed: the kernel has let go of every byte. */
#define N_READS   64
#define READ_SIZE (1 << 20)

static bool is_untouched(const unsigned char *mem, size_t size)
{
	return mem[0] == 0xa5 && memcmp(mem, mem + 1, size - 1) == 0;
}

START_TEST(no_byte_is_written_after_free)
{
	size_t size = (size_t)N_READS * READ_SIZE;
	unsigned char *mem =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int n_rounds = is_slow() ? 5 : 100, fd;
	uint64_t began_ns = now_ns();
	const char *path = scratch_path("disk");
	unsigned n_over = 0;
	int n_busy = 0;

	ck_assert_ptr_ne(mem, MAP_FAILED);
	memset(mem, 1, size);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
	if (fd < 0) {
		munmap(mem, size);
		SKIP("needs O_DIRECT where TMPDIR is");
	}
	for (int i = 0; i < N_READS; i++)
		ck_assert_int_eq(pwrite(fd, mem, READ_SIZE, (off_t)i * READ_SIZE), READ_SIZE);
	for (int round = 0; round < n_rounds; round++) {
		iou_t *iou = new_iou(N_READS);

		for (int i = 0; i < N_READS; i++) {
			iou_op_t *op = new_op(iou);

			io_uring_prep_read(op->sqe, fd, mem + (size_t)i * READ_SIZE, READ_SIZE,
					   (__u64)i * READ_SIZE);
			op->sqe->flags = round % 3 == 2 ? IOSQE_ASYNC : 0;
			iou_op_queue(iou, op, never, NULL);
		}
		flush(iou);
		if (round % 2) { /* how many are over? */
			get_events(iou);
			n_over = io_uring_cq_ready(iou_ring(iou));
		}
		ck_assert_ptr_null(iou_free(iou));
		n_busy += round % 2 && n_over < N_READS;
		memset(mem, 0xa5, size);
		nap();
		ck_assert_msg(is_untouched(mem, size),
			      "the kernel wrote after iou_free(), round %d", round);
		if (round > 10 && !is_full() && now_ns() - began_ns > 3 * SECOND)
			break; /* a slow disk */
	}
	nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
	ck_assert(is_untouched(mem, size));
	close(fd);
	munmap(mem, size);
	if (!n_busy)
		SKIP("needs a file system where TMPDIR is whose reads take some time");
}
END_TEST

/* An op in flight holds its file: freed, the other side sees the end at once. */
START_TEST(peers_see_the_end_at_once)
{
	if (on_fallback())
		SKIP("needs io_uring, where an op holds its file");
	for (int i = 0; i < (is_slow() ? 20 : 100); i++) {
		iou_t *iou = new_iou(4);
		iou_op_t *op = new_op(iou);
		char buf[16];
		int fds[2];

		new_socketpair(fds);
		io_uring_prep_recv(op->sqe, fds[0], buf, sizeof(buf), 0);
		op->sqe->flags = i % 2 ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
		flush(iou);
		if (i % 4 == 3)
			/* io-wq has it; before, the kernel may not have looked the descriptor up */
			nap();
		close(fds[0]);
		if (i % 2 == 0)
			ck_assert_int_eq(recv(fds[1], buf, 1, MSG_DONTWAIT), -1);
		ck_assert_ptr_null(iou_free(iou));
		ck_assert_int_eq(recv(fds[1], buf, 1, MSG_DONTWAIT), 0);
		close(fds[1]);
	}
}
END_TEST

static int new_listener(struct sockaddr_in *addr)
{
	socklen_t len = sizeof(*addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*addr = (struct sockaddr_in){.sin_family = AF_INET,
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	ck_assert_int_eq(bind(fd, (struct sockaddr *)addr, len), 0);
	ck_assert_int_eq(listen(fd, 16), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)addr, &len), 0);
	return fd;
}

/* Opened, accepted, created, and not yet delivered: closed by iou_free(), as the fixture sees. What
 * is not a descriptor is left alone: a read's length, an index in the ring's own table. */
START_TEST(descriptors_still_returned_are_closed)
{
	struct sockaddr_in addr;
	int listener = new_listener(&addr), clients[4], fds[2];
	iou_t *iou = new_iou(32);
	char buf[64] = "";
	iou_op_t *op;

	new_pipe(fds);
	/* the read's result is an open descriptor */
	ck_assert_int_eq(write(fds[1], buf, (size_t)fds[1]), fds[1]);
	for (int i = 0; i < 16; i++) {
		op = new_op(iou);
		if (i % 4 == 0)
			io_uring_prep_openat(op->sqe, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC,
					     0);
		else if (i % 4 == 1)
			io_uring_prep_accept(op->sqe, listener, NULL, NULL, SOCK_CLOEXEC);
		else if (i % 4 == 2)
			io_uring_prep_socket(op->sqe, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0, 0);
		else if (i == 3)
			io_uring_prep_read(op->sqe, fds[0], buf, sizeof(buf), 0);
		else
			io_uring_prep_nop(op->sqe);
		op->sqe->flags = i >= 8 && i % 4 == 0 ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
	}
	flush(iou);
	for (int i = 0; i < 4; i++) {
		clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ck_assert_int_eq(connect(clients[i], (struct sockaddr *)&addr, sizeof(addr)), 0);
	}
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_int_ge(fcntl(fds[1], F_GETFD), 0);
	for (int i = 0; i < 4; i++)
		close(clients[i]);
	close(listener);
	close_pair(fds);
}
END_TEST

/* By their numbers: liburing may be older than the kernel. */
#define OPCODE_FIXED_FD_INSTALL 54
#define OPCODE_PIPE             62

/* Prepares one of those that return descriptors in some other way than by IORING_OP_OPENAT and the
 * like. */
static void prep_returning(struct io_uring_sqe *sqe, int opcode, int pipe_fds[2])
{
	static struct open_how how = {.flags = O_RDONLY | O_CLOEXEC};

	if (opcode == IORING_OP_OPENAT2) {
		io_uring_prep_openat2(sqe, AT_FDCWD, "/dev/null", &how);
	} else if (opcode == OPCODE_PIPE) {
		io_uring_prep_rw(opcode, sqe, 0, pipe_fds, 0, 0);
		sqe->rw_flags = O_CLOEXEC;
	} else {
		/* of the ring's table, close-on-exec */
		io_uring_prep_rw(opcode, sqe, 0, NULL, 0, 0);
		sqe->flags = IOSQE_FIXED_FILE;
	}
}

static int n_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1000; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* _i: which. They are there when iou_free() is called, as the count shows, and are not
 * afterwards. */
START_TEST(descriptors_of_other_kinds_are_closed)
{
	static const struct {
		int opcode;
		const char *why;
		int n; /* descriptors of one op */
	} table[] = {
		{IORING_OP_OPENAT2, "needs IORING_OP_OPENAT2 (5.6)", 1},
		{OPCODE_FIXED_FD_INSTALL, "needs IORING_OP_FIXED_FD_INSTALL (6.8)", 1},
		{OPCODE_PIPE, "needs IORING_OP_PIPE (6.16)", 2},
	};
	int pipes[4][2] = {{0}}, file = open("/dev/null", O_RDONLY | O_CLOEXEC), n_before = n_fds();
	iou_t *iou = new_iou(8);
	int n_own;

	flush(iou);
	if (!have_op(iou, table[_i].opcode) ||
	    iou_register(iou, IORING_REGISTER_FILES, &file, 1) != 0) {
		iou_free(iou);
		close(file);
		SKIP(table[_i].why);
	}
	n_own = n_fds();
	for (int i = 0; i < 4; i++) {
		iou_op_t *op = new_op(iou);

		prep_returning(op->sqe, table[_i].opcode, pipes[i]);
		iou_op_queue(iou, op, never, NULL);
	}
	flush(iou);
	WAIT_UNTIL((get_events(iou), io_uring_cq_ready(iou_ring(iou)) >= 4));
	ck_assert_int_eq(n_fds(), n_own + 4 * table[_i].n);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_int_eq(n_fds(), n_before);
	close(file);
}
END_TEST

START_TEST(a_multishot_accept_is_closed_too)
{
	struct sockaddr_in addr;
	int listener = new_listener(&addr), clients[8];
	iou_t *iou = new_iou(32);
	iou_op_t *op;
	char c;

	op = new_op(iou);
	io_uring_prep_multishot_accept(op->sqe, listener, NULL, NULL, SOCK_CLOEXEC);
	iou_op_queue(iou, op, never, NULL);
	flush(iou);
	for (int i = 0; i < 8; i++) {
		clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ck_assert_int_eq(connect(clients[i], (struct sockaddr *)&addr, sizeof(addr)), 0);
	}
	ck_assert_ptr_null(iou_free(iou));
	close(listener);
	for (int i = 0; i < 8; i++) { /* none is accepted and forgotten */
		ck_assert_int_le(recv(clients[i], &c, 1, 0), 0);
		close(clients[i]);
	}
}
END_TEST

/* An index of the ring's table of direct descriptors is no descriptor: 0 is not standard input. */
START_TEST(direct_descriptors_are_left_alone)
{
	iou_t *iou = new_iou(8);
	struct stat before, after;
	iou_op_t *op;
	int fds[4] = {-1, -1, -1, -1};

	flush(iou);
	if (iou_register(iou, IORING_REGISTER_FILES, fds, 4) != 0) {
		iou_free(iou);
		SKIP("needs IORING_REGISTER_FILES");
	}
	ck_assert_int_eq(fstat(0, &before), 0);
	for (unsigned i = 0; i < 4; i++) {
		op = new_op(iou);
		io_uring_prep_openat_direct(op->sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0,
					    i < 2 ? i : (unsigned)IORING_FILE_INDEX_ALLOC);
		iou_op_queue(iou, op, never, NULL);
	}
	flush(iou);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_int_eq(fstat(0, &after), 0);
	ck_assert_uint_eq(before.st_ino, after.st_ino);
	for (int fd = 0; fd < 3; fd++)
		ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
}
END_TEST

/* ---- What the ring holds of the program ------------------------------------------------------ */

static bool is_at_end(int fd)
{
	char c;

	return recv(fd, &c, 1, MSG_DONTWAIT) == 0;
}

static int on_resize_ring(void *data)
{
	ck_assert_int_eq(iou_resize(data, 16), 0);
	return 0;
}

/* The ways in which a ring ends, by its owner. */
enum ring_end { FREED, FREED_UNUSED, RESIZED, RESIZED_UNUSED, RESIZED_IN_CALLBACK, N_RING_ENDS };

static iou_t *begin_ring(enum ring_end how)
{
	iou_t *iou = new_iou(8);

	if (how != FREED_UNUSED && how != RESIZED_UNUSED)
		flush(iou);
	return iou;
}

/* Returns the iou if it still is one. */
static iou_t *end_ring(iou_t *iou, enum ring_end how)
{
	if (how == FREED || how == FREED_UNUSED)
		return iou_free(iou);
	if (how == RESIZED_IN_CALLBACK) {
		post(iou, on_resize_ring, iou);
		run(iou);
	} else {
		ck_assert_int_eq(iou_resize(iou, 16), 0);
	}
	return iou;
}

/* _i: how the ring ends. A socket that lives in its table alone is closed: the other side sees the
 * end. */
START_TEST(registered_files_are_let_go_of)
{
	for (int i = 0; i < 5; i++) {
		iou_t *iou = begin_ring((enum ring_end)_i);
		int fds[2];

		new_socketpair(fds);
		if (iou_register(iou, IORING_REGISTER_FILES, fds, 1) != 0) {
			close_pair(fds);
			iou_free(iou);
			SKIP("needs to register files on a ring that is disabled");
		}
		close(fds[0]);
		ck_assert(!is_at_end(fds[1]));
		iou = end_ring(iou, (enum ring_end)_i);
		ck_assert(is_at_end(fds[1]));
		close(fds[1]);
		iou_free(iou);
	}
}
END_TEST

/* As above, with a receive from it in flight. */
START_TEST(a_registered_file_in_use_is_let_go_of)
{
	for (int i = 0; i < 8; i++) {
		iou_t *iou = new_iou(8);
		iou_op_t *op = new_op(iou);
		char buf[16];
		int fds[2];

		flush(iou);
		new_socketpair(fds);
		ck_assert_int_eq(iou_register(iou, IORING_REGISTER_FILES, fds, 1), 0);
		io_uring_prep_recv(op->sqe, 0, buf, sizeof(buf), 0);
		op->sqe->flags = IOSQE_FIXED_FILE | (i % 2 ? IOSQE_ASYNC : 0);
		iou_op_queue(iou, op, never, NULL);
		flush(iou);
		close(fds[0]);
		ck_assert(!is_at_end(fds[1]));
		ck_assert_ptr_null(iou_free(iou));
		ck_assert(is_at_end(fds[1]));
		close(fds[1]);
	}
}
END_TEST

/* _i: how the ring ends. What an op put into the table. */
START_TEST(direct_descriptors_are_let_go_of)
{
	struct sockaddr_in addr;
	int listener = new_listener(&addr), none = -1;
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	iou_t *iou = begin_ring((enum ring_end)_i);
	call_t accepted = {.result = -EINVAL};

	if (iou_register(iou, IORING_REGISTER_FILES, &none, 1) == 0) {
		io_uring_prep_accept_direct(call_op(iou, &accepted, 0), listener, NULL, NULL, 0, 0);
		call_queue(iou, &accepted);
		ck_assert_int_eq(connect(client, (struct sockaddr *)&addr, sizeof(addr)), 0);
		run(iou);
	}
	close(listener);
	if (accepted.result < 0) {
		close(client);
		iou_free(iou);
		SKIP("needs accept to a direct descriptor (5.15)");
	}
	ck_assert(!is_at_end(client));
	iou = end_ring(iou, (enum ring_end)_i);
	ck_assert(is_at_end(client));
	close(client);
	iou_free(iou);
}
END_TEST

/* Memory of this process that is pinned, in kB. */
static long pinned(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];
	long found = -1;

	ck_assert_ptr_nonnull(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "VmPin: %ld", &found);
	fclose(file);
	return found;
}

/* _i: how the ring ends. */
START_TEST(registered_buffers_are_let_go_of)
{
	static char mem[64 * 1024];
	struct iovec iov = {mem, sizeof(mem)};
	long before = pinned();
	iou_t *iou = begin_ring((enum ring_end)_i);
	int ret = iou_register(iou, IORING_REGISTER_BUFFERS, &iov, 1);

	if (ret != 0 || pinned() <= before || !(iou_ring(iou)->features & IORING_FEAT_RSRC_TAGS)) {
		iou_free(iou);
		SKIP("needs buffers that count as pinned, and are let go of without a wait (5.13)");
	}
	iou = end_ring(iou, (enum ring_end)_i);
	ck_assert_int_eq(pinned(), before);
	iou_free(iou);
}
END_TEST

/* ---- Descriptors in messages ----------------------------------------------------------------- */

#define N_PASSED 3

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif

typedef struct message_t {
	struct msghdr header;
	struct iovec iov;
	char byte;
	_Alignas(struct cmsghdr) char control[256];
} message_t;

static void message_init(message_t *message, size_t control_size)
{
	message->iov = (struct iovec){&message->byte, 1};
	message->header = (struct msghdr){.msg_iov = &message->iov, .msg_iovlen = 1,
					  .msg_control = message->control,
					  .msg_controllen = control_size};
}

static void send_descriptors(int socket_fd)
{
	message_t message = {.byte = 'x'};
	struct cmsghdr *part;
	int fds[N_PASSED];

	message_init(&message, CMSG_SPACE(sizeof(fds)));
	part = CMSG_FIRSTHDR(&message.header);
	part->cmsg_level = SOL_SOCKET;
	part->cmsg_type = SCM_RIGHTS;
	part->cmsg_len = CMSG_LEN(sizeof(fds));
	for (int i = 0; i < N_PASSED; i++)
		fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	memcpy(CMSG_DATA(part), fds, sizeof(fds));
	ck_assert_int_eq(sendmsg(socket_fd, &message.header, 0), 1);
	for (int i = 0; i < N_PASSED; i++)
		close(fds[i]);
}

static message_t received;

static void prep_receive(struct io_uring_sqe *sqe, void *fd)
{
	message_init(&received, sizeof(received.control));
	io_uring_prep_recvmsg(sqe, *(int *)fd, &received.header, MSG_CMSG_CLOEXEC);
}

enum receive { PLAIN, BY_IO_WQ, IN_CHAIN, WITH_DEADLINE, BY_HANDLER, WITH_PIDFD, N_RECEIVES };

/* _i: how it is received. The message has come and is not delivered: iou_free() closes what is in
 * it. */
START_TEST(descriptors_in_messages_are_closed)
{
	static iou_handler_t handler = {.cb = never_handler};
	int fds[2], n_before, one = 1;
	iou_t *iou = new_iou(8);
	iou_op_t *op;

	new_socketpair(fds);
	if (_i == WITH_PIDFD) /* one more descriptor, of the sender; unknown before 6.5 */
		setsockopt(fds[0], SOL_SOCKET, SO_PASSPIDFD, &one, sizeof(one));
	flush(iou);
	n_before = n_fds();
	if (_i == BY_HANDLER) {
		ck_assert_int_eq(iou_add_sqe(iou, prep_receive, &fds[0], &handler), 0);
	} else {
		op = new_op(iou);
		prep_receive(op->sqe, &fds[0]);
		op->sqe->flags |= _i == BY_IO_WQ ? IOSQE_ASYNC : _i == IN_CHAIN ? IOSQE_IO_LINK : 0;
		if (_i == WITH_DEADLINE)
			iou_op_deadline(iou, op, 100 * SECOND);
		iou_op_queue(iou, op, never, NULL);
		nop_queue(iou, new_op(iou), never, NULL);
	}
	flush(iou);
	send_descriptors(fds[1]);
	WAIT_UNTIL((get_events(iou), n_fds() >= n_before + N_PASSED));
	WAIT_UNTIL((get_events(iou),
		    io_uring_cq_ready(iou_ring(iou)) >= (_i == BY_HANDLER ? 1 : 2)));
	ck_assert_ptr_null(iou_free(iou));
	ck_assert_int_lt(n_fds(), n_before); /* the ring's own are gone too; the fixture counts */
	close_pair(fds);
}
END_TEST

/* Once it is delivered, they are the program's. */
START_TEST(descriptors_of_a_delivered_message_stay)
{
	int fds[2], passed[N_PASSED];
	iou_t *iou = new_iou(8);
	call_t call;

	new_socketpair(fds);
	prep_receive(call_op(iou, &call, 0), &fds[0]);
	call_queue(iou, &call);
	send_descriptors(fds[1]);
	run(iou);
	ck_assert_int_eq(call.result, 1);
	ck_assert_ptr_null(iou_free(iou));
	memcpy(passed, CMSG_DATA(CMSG_FIRSTHDR(&received.header)), sizeof(passed));
	for (int i = 0; i < N_PASSED; i++)
		ck_assert_int_eq(close(passed[i]), 0);
	close_pair(fds);
}
END_TEST

/* ---- iou_free and jobs ----------------------------------------------------------------------- */

static sem_t job_started, job_may_end;
static bool job_ended;

static int long_job(void *data)
{
	(void)data;
	sem_post(&job_started);
	sem_wait(&job_may_end);
	job_ended = true;
	return 0;
}

static void *let_end(void *data)
{
	pid_t *tid = data;

	WAIT_UNTIL(thread_sleeps(*tid));
	sem_post(&job_may_end);
	return NULL;
}

START_TEST(free_waits_for_running_jobs_and_drops_the_rest)
{
	iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 1});
	pid_t tid = gettid();
	pthread_t thread;

	sem_init(&job_started, 0, 0);
	sem_init(&job_may_end, 0, 0);
	job_ended = false;
	ck_assert_int_eq(iou_async(iou, long_job, NULL, never, NULL), 0);
	for (int i = 0; i < 10; i++)
		start_job(iou, new_op(iou), never, NULL, never, NULL);
	sem_wait(&job_started);
	thread = start_thread(let_end, &tid);
	ck_assert_ptr_null(iou_free(iou));
	ck_assert(job_ended);
	join_thread(thread);
	sem_destroy(&job_started);
	sem_destroy(&job_may_end);
}
END_TEST

static int posting_job(void *data)
{
	iou_t *iou = data;
	iou_bh_t *bh;

	sem_post(&job_started);
	for (int i = 0; i < 100; i++) {
		bh = new_bh(iou, never, NULL);
		post(iou, never, NULL);
		iou_bh_schedule(bh);
		iou_quit(iou);
		if (i % 2)
			iou_bh_delete(bh);
	}
	return 0;
}

/* The job may call whatever any thread may, until it returns. */
START_TEST(a_running_job_still_posts)
{
	sem_init(&job_started, 0, 0);
	for (int i = 0; i < 20; i++) {
		iou_t *iou = new_iou_with(&(iou_config_t){.entries = 4, .workers = 2});

		ck_assert_int_eq(iou_async(iou, posting_job, iou, never, NULL), 0);
		ck_assert_int_eq(iou_async(iou, posting_job, iou, never, NULL), 0);
		sem_wait(&job_started);
		ck_assert_ptr_null(iou_free(iou));
	}
	sem_destroy(&job_started);
}
END_TEST

/* ---- iou_free by others ---------------------------------------------------------------------- */

static void free_it(void *data)
{
	EXPECT(iou_free(data) == NULL);
}

static void *run_it(void *data)
{
	EXPECT(iou_run(data) == 0);
	return NULL;
}

START_TEST(another_thread_frees_an_idle_iou)
{
	int n = 0;
	iou_t *iou = new_iou(4);

	in_thread(free_it, iou); /* never run */
	iou = new_iou(4);
	for (int kind = 0; kind < N_KINDS; kind++)
		if (kind != ENDED)
			start(iou, (kind_t)kind, on_round_trip, &n);
	run(iou);
	start(iou, POST, never, NULL);
	iou_op_timer(iou, new_op(iou), SECOND, 0, never, NULL);
	in_thread(free_it, iou);

	iou = new_iou(4);
	post(iou, on_round_trip, &n);
	join_thread(start_thread(run_it, iou)); /* its owner has ended */
	ck_assert_ptr_null(iou_free(iou));
}
END_TEST

static void free_in_vain(void *data)
{
	errno = 0;
	EXPECT(iou_free(data) == NULL);
	EXPECT(errno == EEXIST);
}

START_TEST(another_thread_may_not_free_a_busy_iou)
{
	iou_t *iou = new_iou(4);
	call_t call, post_call = {0};
	int fds[2];

	new_pipe(fds);
	call_read(iou, &call, 0, fds[0]);
	flush(iou);
	post(iou, on_call, &post_call);
	in_thread(free_in_vain, iou);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	run(iou); /* nothing was done to it */
	ck_assert_int_eq(call.result, 1);
	ck_assert_int_eq(post_call.n, 1);
	close_pair(fds);
	done(iou);
}
END_TEST

/* ---- iou_resize ------------------------------------------------------------------------------ */

static void round_trips(iou_t *iou)
{
	int n = 0, n_all = 0;

	for (int i = 0; i < 20; i++)
		for (int kind = 0; kind < N_KINDS; kind++)
			if (kind != ENDED) {
				start(iou, (kind_t)kind, on_round_trip, &n);
				n_all++;
			}
	run(iou);
	ck_assert_int_eq(n, n_all);
}

START_TEST(resize_changes_the_sq)
{
	static const struct {
		unsigned entries, expected;
	} table[] = {{1, 1}, {100, 128}, {3, 4}, {32768, 32768}, {UINT32_MAX, 32768},
		     {8, 8}, {8, 8}};
	iou_t *iou = new_iou(4);

	for (int started = 0; started < 2; started++) {
		for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
			ck_assert_int_eq(iou_resize(iou, table[i].entries), 0);
			ck_assert_uint_eq(sq_entries(iou), table[i].expected);
			if (started)
				round_trips(iou);
		}
		ck_assert_int_eq(iou_resize(iou, 0), -EINVAL);
		round_trips(iou);
	}
	done(iou);
}
END_TEST

/* What is queued, timed, working or posted goes on; what is in flight forbids it. */
START_TEST(resize_carries_what_is_queued)
{
	iou_t *iou = new_iou(4);
	call_t read, calls[30], timer, posted = {0};
	uint64_t submitted;
	int fds[2];

	new_pipe(fds);
	round_trips(iou);
	call_read(iou, &read, 0, fds[0]);
	flush(iou);
	ck_assert_int_eq(iou_resize(iou, 64), -EBUSY);
	ck_assert_uint_eq(sq_entries(iou), 4);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	run(iou);
	ck_assert_int_eq(read.result, 1);

	submitted = get_stats(iou).submitted;
	for (int i = 0; i < 30; i++) {
		io_uring_prep_nop(call_op(iou, &calls[i], i));
		call_queue(iou, &calls[i]);
	}
	call_op(iou, &timer, 100);
	iou_op_timer(iou, timer.op, MSEC, 0, on_call, &timer);
	post(iou, on_call, &posted);
	ck_assert_int_eq(iou_resize(iou, 16), 0);
	run(iou);
	for (int i = 0; i < 30; i++)
		ck_assert_int_eq(calls[i].n, 1);
	ck_assert_int_eq(timer.n, 1);
	ck_assert_int_eq(posted.n, 1);
	ck_assert_uint_ge(get_stats(iou).submitted, submitted + 30); /* the counters go on */
	close_pair(fds);
	done(iou);
}
END_TEST

/* The program registers on the new ring right away: iou needs none of its places. */
START_TEST(resize_forgets_registrations)
{
	iou_t *iou = new_iou(4);
	char buf[1];
	call_t call;
	int fds[2];

	new_pipe(fds);
	for (int i = 0; i < 2; i++) {
		flush(iou);
		ck_assert_int_eq(iou_register(iou, IORING_REGISTER_FILES, fds, 2), 0);
		ck_assert_int_eq(write(fds[1], "x", 1), 1);
		io_uring_prep_read(call_op(iou, &call, 0), 0, buf, 1, 0);
		call.op->sqe->flags = IOSQE_FIXED_FILE;
		call_queue(iou, &call);
		run(iou);
		ck_assert_int_eq(call.result, 1);
		ck_assert_int_eq(iou_resize(iou, 8), 0);
	}
	io_uring_prep_read(call_op(iou, &call, 0), 0, buf, 1, 0);
	call.op->sqe->flags = IOSQE_FIXED_FILE;
	call_queue(iou, &call);
	run(iou);
	ck_assert_int_eq(call.result, -EBADF);
	close_pair(fds);
	done(iou);
}
END_TEST

static pid_t loop_tid;

static void *post_to_the_sleeper(void *data)
{
	WAIT_UNTIL(loop_sleeps(loop_tid));
	post(data, on_nothing, NULL);
	return NULL;
}

START_TEST(resize_keeps_the_wake_up)
{
	iou_t *iou = new_iou(4);
	pthread_t thread;

	loop_tid = gettid();
	iou_hold(iou);
	for (unsigned i = 0; i < 10; i++) {
		thread = start_thread(post_to_the_sleeper, iou);
		ck_assert_int_eq(iou_poll(iou, (int64_t)(20 * SECOND)), 1);
		join_thread(thread);
		ck_assert_int_eq(iou_resize(iou, 1U << i), 0);
	}
	iou_unhold(iou);
	done(iou);
}
END_TEST

static void resize_without_descriptors(void *data)
{
	iou_t *iou = iou_new(4);
	int n = 0, fd;

	(void)data;
	EXPECT(iou != NULL);
	start(iou, CQE, on_round_trip, &n);
	EXPECT(iou_run(iou) == 0 && n == 1);
	fd = dup(0);
	EXPECT(setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)fd, 20000}) == 0);
	start(iou, CQE, on_round_trip, &n);
	EXPECT(iou_resize(iou, 16) == -EMFILE);
	EXPECT(sq_entries(iou) == 4);
	start(iou, JOB, on_round_trip, &n);
	EXPECT(iou_run(iou) == 0 && n == 3);
	EXPECT(setrlimit(RLIMIT_NOFILE, &(struct rlimit){1024, 20000}) == 0);
	EXPECT(iou_resize(iou, 16) == 0);
	start(iou, CQE, on_round_trip, &n);
	EXPECT(iou_run(iou) == 0 && n == 4);
	EXPECT(iou_free(iou) == NULL);
}

START_TEST(a_failed_resize_changes_nothing)
{
	in_good_child(resize_without_descriptors, NULL);
}
END_TEST

static iou_t *the_iou;

static int on_resize(void *data)
{
	call_t *call = data;

	on_call(call);
	ck_assert_int_eq(iou_resize(the_iou, 4U << call->n), 0);
	if (call->n < 8)
		start(the_iou, (kind_t)(call->n % 4), on_resize, call);
	return 0;
}

START_TEST(a_resize_works_in_a_callback)
{
	call_t call = {0};

	the_iou = new_iou(4);
	start(the_iou, CQE, on_resize, &call);
	run(the_iou);
	ck_assert_int_eq(call.n, 8);
	ck_assert_uint_eq(sq_entries(the_iou), 1024);
	done(the_iou);
}
END_TEST

/* ---- What failed once is tried again --------------------------------------------------------- */

/* Works, and ends. */
static void use_up(iou_t *iou)
{
	int n = 0;

	EXPECT(iou != NULL);
	start(iou, POST, on_round_trip, &n);
	start(iou, CQE, on_round_trip, &n);
	EXPECT(iou_run(iou) == 0 && n == 2);
	EXPECT(iou_free(iou) == NULL);
}

/* The first that this process makes, while it can map no memory; three times, and then it can. */
static void first_without_memory(void *data)
{
	struct rlimit before, none;

	(void)data;
	EXPECT(getrlimit(RLIMIT_AS, &before) == 0);
	none = (struct rlimit){1, before.rlim_max};
	for (int i = 0; i < 3; i++) {
		iou_t *iou;
		int error;

		EXPECT(setrlimit(RLIMIT_AS, &none) == 0);
		iou = iou_new(4);
		error = errno;
		EXPECT(setrlimit(RLIMIT_AS, &before) == 0);
		EXPECT(iou == NULL && error == ENOMEM);
	}
	use_up(iou_new(4));
}

START_TEST(a_first_iou_without_memory_spoils_no_later_one)
{
	in_good_child(first_without_memory, NULL);
}
END_TEST

/* Calls that need memory. Each returns 0 or the error, and changes nothing that another one would
 * see. */
typedef struct needy_t {
	iou_t *iou;
	iou_op_t *op;
	call_t posts;
	int n_posts;
} needy_t;

static int want_posts(needy_t *needy)
{
	int ret = 0;

	for (int i = 0; i < 100000 && ret == 0; i++) { /* there may be some memory left for them */
		ret = iou_post(needy->iou, on_round_trip, &needy->posts.n);
		needy->n_posts += ret == 0;
	}
	return -ret;
}

static int want_bh(needy_t *needy)
{
	iou_bh_t *bh = iou_bh_new(needy->iou, on_nothing, NULL);
	int error = errno;

	iou_bh_delete(bh);
	return bh ? 0 : error;
}

static int want_env(needy_t *needy)
{
	return iou_op_env(needy->op, 5000) ? 0 : errno;
}

static int want_ring(needy_t *needy)
{
	return -iou_resize(needy->iou, 256);
}

static int want_iou(needy_t *needy)
{
	iou_t *iou = iou_new(4);
	int error = errno;

	(void)needy;
	iou_free(iou);
	return iou ? 0 : error;
}

START_TEST(calls_work_again_once_memory_comes_back)
{
	int (*const wants[])(needy_t *) = {want_posts, want_bh, want_env, want_ring, want_iou};
	enum { N = sizeof(wants) / sizeof(wants[0]) };
	needy_t needy = {.n_posts = 0};
	int errors[N];

	if (is_watched())
		SKIP("the sanitizers' and valgrind's malloc does not obey RLIMIT_AS");
	needy.iou = new_iou(4);
	needy.op = new_op(needy.iou);
	for (int turn = 0; turn < 3; turn++) {
		starve();
		for (int i = 0; i < N; i++)
			errors[i] = wants[i](&needy);
		feed();
		for (int i = 0; i < N; i++)
			ck_assert_msg(errors[i] == ENOMEM, "call %d without memory: %s", i,
				      strerror(errors[i]));
	}
	for (int i = 0; i < N; i++)
		ck_assert_msg(wants[i](&needy) == 0, "call %d fails though there is memory", i);
	run(needy.iou);
	ck_assert_int_eq(needy.posts.n, needy.n_posts);
	iou_op_free(needy.iou, needy.op);
	done(needy.iou);
}
END_TEST

/* iou_fd() while there are descriptors for part of what it needs. */
static void fd_without_descriptors(void *data)
{
	int highest = 2, n_failed = 0;
	struct rlimit before;
	iou_t *iou = iou_new(4);
	struct pollfd pollfd = {.events = POLLIN};

	(void)data;
	EXPECT(iou != NULL);
	EXPECT(iou_run(iou) == 0);
	EXPECT(getrlimit(RLIMIT_NOFILE, &before) == 0);
	for (int fd = 0; fd < 64; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			highest = fd;
	for (int fd = 0; fd < highest; fd++) /* fill the gaps */
		if (fcntl(fd, F_GETFD) < 0)
			EXPECT(dup2(0, fd) == fd);
	for (int spare = 0; spare < 8 && pollfd.fd <= 0; spare++) {
		struct rlimit few = {(rlim_t)(highest + 1 + spare), before.rlim_max};

		/* and again, with as many as before */
		for (int i = 0; i < 2 && pollfd.fd <= 0; i++) {
			EXPECT(setrlimit(RLIMIT_NOFILE, &few) == 0);
			pollfd.fd = iou_fd(iou);
			EXPECT(setrlimit(RLIMIT_NOFILE, &before) == 0);
			EXPECT(pollfd.fd > 0 || pollfd.fd == -EMFILE);
			n_failed += pollfd.fd < 0;
		}
	}
	EXPECT(n_failed > 0 && pollfd.fd > 0);
	start(iou, POST, on_nothing, NULL);
	iou_op_timer(iou, iou_op_new(iou), 20 * MSEC, 0, on_nothing, NULL);
	while (n_pending(iou)) { /* that clock is one of the descriptors */
		EXPECT(poll(&pollfd, 1, 10000) == 1);
		EXPECT(iou_poll(iou, 0) >= 0);
	}
	use_up(iou);
}

START_TEST(calls_work_again_once_descriptors_come_back)
{
	in_good_child(fd_without_descriptors, NULL);
}
END_TEST

/* The ring has room for one eventfd. */
START_TEST(iou_fd_works_once_the_programs_own_eventfd_is_gone)
{
	iou_t *iou = new_iou(4);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int ret = iou_register(iou, IORING_REGISTER_EVENTFD, &fd, 1);

	if (ret == -EBUSY) {
		close(fd);
		done(iou);
		SKIP("before 5.18 iou takes it at once");
	}
	ck_assert_int_eq(ret, 0);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(iou_fd(iou), -EBUSY);
	ck_assert_int_eq(iou_register(iou, IORING_UNREGISTER_EVENTFD, NULL, 0), 0);
	ret = iou_fd(iou);
	ck_assert_int_ge(ret, 0);
	ck_assert_int_ge(iou_poll(iou, 0), 0);
	post(iou, on_nothing, NULL);
	ck_assert_int_eq(poll(&(struct pollfd){.fd = ret, .events = POLLIN}, 1, 10000), 1);
	run(iou);
	close(fd);
	done(iou);
}
END_TEST

Suite *life_suite(void)
{
	Suite *suite = suite_create("life");
	TCase *tcase;

	TEST_CASE(suite, "config", the_sq_has_the_entries_rounded_up, too_many_entries_are_clamped,
		  a_bad_config_is_refused, unknown_setup_flags_are_refused,
		  setup_flags_are_used_as_given, the_version_is_the_headers,
		  descriptors_are_close_on_exec, signals_are_left_alone);
	TEST_CASE(suite, "errors", a_lack_of_descriptors_is_an_error, io_uring_is_refused,
		  io_uring_is_refused_later, many_ious_share_a_thread,
		  a_lack_of_memory_to_lock_is_an_error, a_ring_just_freed_makes_room);
	tcase = TEST_CASE(suite, "free", free_of_nothing_is_harmless, free_drops_everything,
			  no_byte_is_written_after_free, peers_see_the_end_at_once,
			  descriptors_still_returned_are_closed, a_multishot_accept_is_closed_too,
			  direct_descriptors_are_left_alone,
			  free_waits_for_running_jobs_and_drops_the_rest, a_running_job_still_posts,
			  another_thread_frees_an_idle_iou, another_thread_may_not_free_a_busy_iou);
	tcase_add_loop_test(tcase, descriptors_of_other_kinds_are_closed, 0, 3);
	tcase = TEST_CASE(suite, "held", a_registered_file_in_use_is_let_go_of,
			  descriptors_of_a_delivered_message_stay);
	tcase_add_loop_test(tcase, registered_files_are_let_go_of, 0, N_RING_ENDS);
	tcase_add_loop_test(tcase, direct_descriptors_are_let_go_of, 0, N_RING_ENDS);
	tcase_add_loop_test(tcase, registered_buffers_are_let_go_of, 0, N_RING_ENDS);
	tcase_add_loop_test(tcase, descriptors_in_messages_are_closed, 0, N_RECEIVES);
	TEST_CASE(suite, "again", a_first_iou_without_memory_spoils_no_later_one,
		  calls_work_again_once_memory_comes_back,
		  calls_work_again_once_descriptors_come_back,
		  iou_fd_works_once_the_programs_own_eventfd_is_gone);
	TEST_CASE(suite, "resize", resize_changes_the_sq, resize_carries_what_is_queued,
		  resize_forgets_registrations, resize_keeps_the_wake_up,
		  a_failed_resize_changes_nothing, a_resize_works_in_a_callback);
	return suite;
}
