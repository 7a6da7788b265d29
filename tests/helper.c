/* SPDX-License-Identifier: MIT */

/* The fixture, the checks around an iou, and small tools for the suites: see helper.h. */

#define IOU_BACKEND
#include "helper.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define HAVE_VALGRIND 1
#endif
#endif

#ifndef __has_feature
#define __has_feature(x) 0
#endif

/* Under the sanitizers too much to allocate is an error for the caller, as elsewhere. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void)
{
	return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void)
{
	return "allocator_may_return_null=1";
}

/* ---- The fixture ----------------------------------------------------------------------------- */

#define MAX_IDS 8192

/* Numbers of the entries of a folder in /proc. */
typedef struct ids_t {
	int n;
	int id[MAX_IDS];
} ids_t;

static ids_t fds_before, threads_before, ids_now;
static char scratch_dir[PATH_MAX];
static bool said_flags; /* of this test */

static bool is_io_wq(int tid)
{
	char path[64], name[32] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/comm", tid);
	file = fopen(path, "re");
	if (!file)
		return true; /* gone meanwhile */
	if (!fgets(name, sizeof(name), file))
		name[0] = '\0';
	fclose(file);
	return strncmp(name, "iou-wrk-", 8) == 0;
}

static void read_ids(const char *path, bool threads, ids_t *ids)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	ck_assert_ptr_nonnull(dir);
	ids->n = 0;
	while ((entry = readdir(dir))) {
		int id = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || (!threads && id == dirfd(dir)) ||
		    (threads && is_io_wq(id)))
			continue;
		ck_assert_int_lt(ids->n, MAX_IDS);
		ids->id[ids->n++] = id;
	}
	closedir(dir);
}

static bool has_id(const ids_t *ids, int id)
{
	for (int i = 0; i < ids->n; i++)
		if (ids->id[i] == id)
			return true;
	return false;
}

/* An entry that was not there before, or -1. */
static int find_new(const ids_t *before, const ids_t *now)
{
	for (int i = 0; i < now->n; i++)
		if (!has_id(before, now->id[i]))
			return now->id[i];
	return -1;
}

static void *do_nothing(void *data)
{
	return data;
}

void ck_setup(void)
{
	if (is_slow()) /* TSan starts a thread of its own with the first that the program starts */
		join_thread(start_thread(do_nothing, NULL));
	n_order = 0;
	scratch_dir[0] = '\0';
	said_flags = false;
	read_ids("/proc/self/fd", false, &fds_before);
	read_ids("/proc/self/task", true, &threads_before);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static void check_threads(void)
{
	uint64_t until_ns = now_ns() + 5 * SECOND;
	int tid;

	for (;;) {
		read_ids("/proc/self/task", true, &ids_now);
		tid = find_new(&threads_before, &ids_now);
		if (tid < 0 || now_ns() > until_ns)
			break;
		nap();
	}
	ck_assert_msg(tid < 0, "thread %d is left", tid);
}

static void check_fds(void)
{
	char path[64], target[256] = "";
	int fd;

	read_ids("/proc/self/fd", false, &ids_now);
	fd = find_new(&fds_before, &ids_now);
	if (fd >= 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (readlink(path, target, sizeof(target) - 1) < 0)
			snprintf(target, sizeof(target), "?");
	}
	ck_assert_msg(fd < 0, "descriptor %d is left: %s", fd, target);
	ck_assert_msg(ids_now.n == fds_before.n, "a descriptor was closed that was not the test's");
}

void ck_teardown(void)
{
	if (scratch_dir[0])
		nftw(scratch_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	check_threads();
	check_fds();
}

TCase *ck_case(Suite *suite, const char *name, const TTest **tests)
{
	TCase *tcase = tcase_create(name);

	tcase_add_checked_fixture(tcase, ck_setup, ck_teardown);
	tcase_set_timeout(tcase, TEST_TIMEOUT);
	for (; *tests; tests++)
		tcase_add_test(tcase, *tests);
	suite_add_tcase(suite, tcase);
	return tcase;
}

void ck_skip(const char *func, const char *why)
{
	size_t len = strlen(func);

	if (len > 3 && strcmp(func + len - 3, "_fn") == 0)
		len -= 3; /* Check's suffix */
	fprintf(stderr, "SKIP %.*s: %s\n", (int)len, func, why);
}

/* ---- An iou in a test ------------------------------------------------------------------------ */

iou_t *new_iou(unsigned entries)
{
	iou_t *iou = iou_new(entries);

	ck_assert_msg(iou != NULL, "iou_new(%u): %s", entries, strerror(errno));
	return iou;
}

iou_t *new_iou_with(const iou_config_t *config)
{
	iou_t *iou = iou_new_with(config);

	ck_assert_msg(iou != NULL, "iou_new_with: %s", strerror(errno));
	return iou;
}

bool on_fallback(void)
{
	static int known = -1;
	iou_t *iou;

	if (known < 0) {
		iou = new_iou(1);
		known = strcmp(iou_engine_name(iou), "fallback") == 0;
		iou_free(iou);
	}
	return known;
}

bool ring_works(void)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.engine = IOU_ENGINE_RING});

	iou_free(iou);
	return iou != NULL;
}

void get_events(iou_t *iou)
{
	if (on_fallback())
		iou_fallback.enter(iou_ring(iou), 0, 0, IORING_ENTER_GETEVENTS, NULL, 8);
	else
		io_uring_get_events(iou_ring(iou));
}

/* What the kernel itself says of the flags. */
static int ask_kernel(unsigned entries, unsigned setup_flags)
{
	struct io_uring_params params = {.flags = setup_flags | IORING_SETUP_CLAMP};
	struct io_uring ring;
	int ret = -ENOMEM;

	/* that of rings just closed comes back a little later */
	for (int i = 0; i < 1000 && ret == -ENOMEM; i++) {
		ret = io_uring_queue_init_params(entries, &ring, &params);
		if (ret == -ENOMEM)
			nap();
	}
	if (ret == 0)
		io_uring_queue_exit(&ring);
	return ret;
}

/* What the engine is to say of them. The fallback has no SQPOLL, else it is as new as any kernel;
 * who leaves the choice gets the kernel's answer to SQPOLL. */
static int ask_engine(unsigned entries, unsigned setup_flags)
{
	const unsigned lazy = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN;
	const char *wanted = getenv("IOU_ENGINE");

	if (!on_fallback() ||
	    (setup_flags & IORING_SETUP_SQPOLL && !(wanted && strcmp(wanted, "fallback") == 0)))
		return ask_kernel(entries, setup_flags);
	if (setup_flags & IORING_SETUP_SQPOLL ||
	    (setup_flags & IORING_SETUP_TASKRUN_FLAG && !(setup_flags & lazy)) ||
	    (setup_flags & IORING_SETUP_DEFER_TASKRUN &&
	     !(setup_flags & IORING_SETUP_SINGLE_ISSUER)))
		return -EINVAL;
	return 0;
}

iou_t *ck_new_iou_of(const char *func, unsigned entries, unsigned setup_flags)
{
	iou_t *iou = iou_new_with(&(iou_config_t){.entries = entries, .setup_flags = setup_flags});
	int error = iou ? 0 : errno, ret = ask_engine(entries, setup_flags);
	char why[64];

	ck_assert_msg(ret == -error, "setup_flags %#x: the engine says %s, iou_new_with %s",
		      setup_flags, strerror(-ret), strerror(error));
	if (!iou && !said_flags) { /* once for a test: each line counts as one that was skipped */
		snprintf(why, sizeof(why), "in part: needs IORING_SETUP flags %#x", setup_flags);
		ck_skip(func, why);
		said_flags = true;
	}
	return iou;
}

iou_op_t *new_op(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);

	ck_assert_msg(op != NULL, "iou_op_new: %s", strerror(errno));
	return op;
}

uint64_t n_pending(const iou_t *iou)
{
	iou_stats_t stats;

	iou_stats(iou, &stats);
	return stats.pending;
}

void run(iou_t *iou)
{
	int ret = iou_run(iou);

	ck_assert_msg(ret == 0, "iou_run: %d", ret);
}

void flush(iou_t *iou)
{
	int ret = iou_flush(iou);

	ck_assert_msg(ret == 0, "iou_flush: %d", ret);
}

/* Lines with `key` below the heading, in the fdinfo of the ring; -1 where the heading is
 * missing. */
static int count_fdinfo(iou_t *iou, const char *heading, const char *key)
{
	char path[64], line[256];
	bool inside = false;
	int n = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", iou_ring(iou)->ring_fd);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, heading, strlen(heading)) == 0) {
			inside = true;
			n = 0;
		} else if (line[0] != ' ' && line[0] != '\t') {
			inside = false;
		} else if (inside && strstr(line, key)) {
			n++;
		}
	}
	fclose(file);
	return n;
}

int n_polled(iou_t *iou)
{
	return count_fdinfo(iou, "PollList:", "op=");
}

/* A descriptor of that kind that the test has opened, the lowest or the highest; or -1. */
static int find_anon(const char *kind, bool highest)
{
	char path[64], target[64];
	int found = -1;

	read_ids("/proc/self/fd", false, &ids_now);
	for (int i = 0; i < ids_now.n; i++) {
		int fd = ids_now.id[i];

		if (has_id(&fds_before, fd) || (found >= 0 && (found < fd) != highest))
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		memset(target, 0, sizeof(target));
		if (readlink(path, target, sizeof(target) - 1) > 0 && strcmp(target, kind) == 0)
			found = fd;
	}
	return found;
}

int wake_eventfd(void)
{
	int fd = find_anon("anon_inode:[eventfd]", false);

	ck_assert_int_ge(fd, 0);
	return fd;
}

int bell_eventfd(void)
{
	int fd = find_anon("anon_inode:[eventfd]", true);

	ck_assert_int_ge(fd, 0);
	return fd;
}

int64_t eventfd_count(int fd)
{
	char path[64], line[256];
	unsigned long long count;
	int64_t found = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "eventfd-count: %llx", &count) == 1)
			found = (int64_t)count;
	fclose(file);
	return found;
}

void fill_eventfd(int fd)
{
	uint64_t most = UINT64_MAX - 1, ignored;

	ck_assert(read(fd, &ignored, sizeof(ignored)) > 0 || errno == EAGAIN);
	ck_assert_int_eq(write(fd, &most, sizeof(most)), sizeof(most));
}

/* A timerfd is there only where iou_fd() was called, for some iou of this test. */
void done(iou_t *iou)
{
	int n_own = 1, n = n_polled(iou); /* once: SQPOLL's thread may be arming one */

	ck_assert_msg(n_pending(iou) == 0, "%d ops are pending", (int)n_pending(iou));
	if (n > 1 && find_anon("anon_inode:[timerfd]", false) >= 0)
		n_own = 2;
	ck_assert_msg(n <= n_own, "the kernel still polls for %d ops", n);
	ck_assert_int_le(count_fdinfo(iou, "CqOverflowList:", "user_data="), 0);
	ck_assert_ptr_null(iou_free(iou));
}

void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

bool thread_sleeps(pid_t tid)
{
	char path[64], line[512], *state;
	bool sleeps = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	file = fopen(path, "re");
	if (!file)
		return false;
	if (fgets(line, sizeof(line), file)) {
		state = strrchr(line, ')');
		sleeps = state && state[1] == ' ' && state[2] == 'S';
	}
	fclose(file);
	return sleeps;
}

bool loop_sleeps(pid_t tid)
{
	char path[64];
	int nr = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)tid);
	file = fopen(path, "re");
	if (!file)
		return thread_sleeps(tid);
	if (fscanf(file, "%d", &nr) != 1)
		nr = -1;
	fclose(file);
	return (nr == SYS_io_uring_enter || nr == SYS_epoll_pwait || nr == SYS_ppoll ||
		nr == 441 || /* epoll_pwait2 */
		nr == SYS_restart_syscall /* poll(2), which task work interrupted */
#ifdef SYS_epoll_wait
		|| nr == SYS_epoll_wait || nr == SYS_poll
#endif
		) && thread_sleeps(tid);
}

int n_io_wq_blocked(void)
{
	DIR *dir = on_fallback() ? NULL : opendir("/proc/self/task");
	struct dirent *entry;
	char path[300], where[64];
	int n = 0;
	FILE *file;

	if (!dir)
		return -1;
	while ((entry = readdir(dir))) {
		int tid = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || !is_io_wq(tid) || !thread_sleeps(tid))
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);
		file = fopen(path, "re");
		memset(where, 0, sizeof(where));
		if (!file || !fgets(where, sizeof(where), file) || strcmp(where, "0") == 0)
			n = -1;
		if (file)
			fclose(file);
		if (n < 0)
			break;
		n += strstr(where, "io_wq") == NULL; /* there it waits for work */
	}
	closedir(dir);
	return n;
}

/* ---- Recording ------------------------------------------------------------------------------- */

int order[MAX_ORDER];
int n_order;

int on_call(void *data)
{
	call_t *call = data;

	call->n++;
	if (call->op) {
		call->result = call->op->result;
		call->flags = call->op->flags;
	}
	if (!(call->flags & IORING_CQE_F_MORE))
		call->n_last++;
	if (n_order == MAX_ORDER)
		/* no ck_assert(): it would write a note each time */
		ck_abort_msg("more calls than are recorded");
	order[n_order++] = call->id;
	return call->ret;
}

struct io_uring_sqe *call_op(iou_t *iou, call_t *call, int id)
{
	*call = (call_t){.op = new_op(iou), .id = id};
	return call->op->sqe;
}

void call_queue(iou_t *iou, call_t *call)
{
	iou_op_queue(iou, call->op, on_call, call);
}

void nop_queue(iou_t *iou, iou_op_t *op, int (*cb)(void *cb_data), void *cb_data)
{
	io_uring_prep_nop(op->sqe);
	iou_op_queue(iou, op, cb, cb_data);
}

int on_nothing(void *data)
{
	(void)data;
	return 0;
}

/* ---- Clock, kernel, files -------------------------------------------------------------------- */

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

struct __kernel_timespec kernel_time(uint64_t ns)
{
	return (struct __kernel_timespec){.tv_sec = (int64_t)(ns / SECOND),
					  .tv_nsec = (long long)(ns % SECOND)};
}

bool have_op(iou_t *iou, int opcode)
{
	return iou_opcode_supported(iou, (unsigned)opcode) == 1;
}

bool kernel_at_least(int major, int minor)
{
	struct utsname name;
	int has_major = 0, has_minor = 0;

	uname(&name);
	if (sscanf(name.release, "%d.%d", &has_major, &has_minor) != 2)
		return false;
	return has_major > major || (has_major == major && has_minor >= minor);
}

const char *scratch(void)
{
	const char *tmp = getenv("TMPDIR");

	if (!scratch_dir[0]) {
		snprintf(scratch_dir, sizeof(scratch_dir), "%s/iou-test-XXXXXX",
			 tmp && tmp[0] ? tmp : "/tmp");
		ck_assert_ptr_nonnull(mkdtemp(scratch_dir));
	}
	return scratch_dir;
}

const char *scratch_path(const char *name)
{
	static char path[2 * PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", scratch(), name);
	return path;
}

void write_file(const char *path, const void *data, size_t size)
{
	FILE *file = fopen(path, "we");

	ck_assert_ptr_nonnull(file);
	ck_assert_uint_eq(fwrite(data, 1, size, file), size);
	ck_assert_int_eq(fclose(file), 0);
}

const char *new_fifo(const char *name)
{
	const char *path = scratch_path(name);

	ck_assert_int_eq(mkfifo(path, 0600), 0);
	return path;
}

void new_pipe(int fds[2])
{
	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
}

void new_socketpair(int fds[2])
{
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

void new_tcp_pair(int fds[2])
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_ge(listener, 0);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&addr, len), 0);
	ck_assert_int_eq(listen(listener, 1), 0);
	ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_ge(fds[0], 0);
	ck_assert_int_eq(connect(fds[0], (struct sockaddr *)&addr, len), 0);
	fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	ck_assert_int_ge(fds[1], 0);
	close(listener);
}

void close_pair(const int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

void touch_badly(volatile char *page)
{
#ifdef HAVE_VALGRIND
	VALGRIND_DISABLE_ERROR_REPORTING;
#endif
	*page = 1;
#ifdef HAVE_VALGRIND
	VALGRIND_ENABLE_ERROR_REPORTING;
#endif
}

void ck_defined(const void *data, size_t size)
{
#ifdef HAVE_VALGRIND
	VALGRIND_MAKE_MEM_DEFINED(data, size);
#else
	(void)data, (void)size;
#endif
}

bool is_watched(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	__has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
	return true;
#elif defined(HAVE_VALGRIND)
	return RUNNING_ON_VALGRIND;
#else
	return false;
#endif
}

bool is_slow(void) { return is_watched() || getenv("IOU_TEST_SLOW"); }

bool is_tsan(void)
{
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
	return true;
#else
	return false;
#endif
}

bool is_full(void)
{
	const char *full = getenv("IOU_TEST_FULL");

	return full && strcmp(full, "1") == 0;
}

/* ---- Things to deliver ----------------------------------------------------------------------- */

const char *const kind_names[N_KINDS] = {"timer", "post", "bottom half", "job", "ended", "CQE"};

void post(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	int ret = iou_post(iou, cb, cb_data);

	EXPECT(ret == 0);
}

iou_bh_t *new_bh(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	iou_bh_t *bh = iou_bh_new(iou, cb, cb_data);

	EXPECT(bh != NULL);
	return bh;
}

void start_job(iou_t *iou, iou_op_t *op, int (*work)(void *work_data), void *work_data,
	       int (*cb)(void *cb_data), void *cb_data)
{
	int ret = iou_op_async(iou, op, work, work_data, cb, cb_data);

	ck_assert_msg(ret == 0, "iou_op_async: %s", strerror(-ret));
}

iou_stats_t get_stats(const iou_t *iou)
{
	iou_stats_t stats;

	iou_stats(iou, &stats);
	return stats;
}

void call_read(iou_t *iou, call_t *call, int id, int fd)
{
	static char byte;

	io_uring_prep_read(call_op(iou, call, id), fd, &byte, 1, 0);
	call_queue(iou, call);
}

iou_op_t *start(iou_t *iou, kind_t kind, int (*cb)(void *cb_data), void *cb_data)
{
	iou_op_t *op = kind == POST || kind == BH ? NULL : new_op(iou);

	switch (kind) {
	case TIMER:
		iou_op_timer(iou, op, 0, 0, cb, cb_data);
		break;
	case POST:
		post(iou, cb, cb_data);
		break;
	case BH:
		iou_bh_schedule(new_bh(iou, cb, cb_data));
		break;
	case JOB:
		start_job(iou, op, on_nothing, NULL, cb, cb_data);
		break;
	case CQE:
		nop_queue(iou, op, cb, cb_data);
		break;
	default:
		ck_abort_msg("no such kind to start");
	}
	return op;
}

static int note_tid(void *tid)
{
	__atomic_store_n((pid_t *)tid, gettid(), __ATOMIC_RELEASE);
	return 0;
}

/* A job whose worker sleeps again is in the queue of the finished. */
static iou_op_t *make_job_ready(iou_t *iou, int (*cb)(void *cb_data), void *cb_data)
{
	iou_op_t *op = new_op(iou);
	pid_t *tid = iou_op_env(op, sizeof(*tid)), worker;

	ck_assert_ptr_nonnull(tid);
	start_job(iou, op, note_tid, tid, cb, cb_data);
	WAIT_UNTIL((worker = __atomic_load_n(tid, __ATOMIC_ACQUIRE)));
	WAIT_UNTIL(thread_sleeps(worker));
	return op;
}

iou_op_t *make_ready(iou_t *iou, kind_t kind, int (*cb)(void *cb_data), void *cb_data)
{
	iou_op_t *op;

	if (kind == JOB)
		return make_job_ready(iou, cb, cb_data);
	if (kind == ENDED) {
		op = new_op(iou);
		iou_op_timer(iou, op, UINT64_MAX, 0, cb, cb_data);
		ck_assert_int_eq(iou_op_cancel(iou, op), 0);
		return op;
	}
	op = start(iou, kind, cb, cb_data);
	flush(iou); /* a no-op completes as it is submitted */
	return op;
}

/* ---- Other threads, other processes ---------------------------------------------------------- */

void expect_failed(const char *file, int line, const char *cond)
{
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, cond);
	_exit(EXIT_FAILURE);
}

pthread_t start_thread(void *(*func)(void *data), void *data)
{
	pthread_t thread;

	EXPECT(pthread_create(&thread, NULL, func, data) == 0);
	return thread;
}

void join_thread(pthread_t thread)
{
	EXPECT(pthread_join(thread, NULL) == 0);
}

typedef struct errand_t {
	void (*func)(void *data);
	void *data;
} errand_t;

static void *run_errand(void *data)
{
	errand_t *errand = data;

	errand->func(errand->data);
	return NULL;
}

void in_thread(void (*func)(void *data), void *data)
{
	join_thread(start_thread(run_errand, &(errand_t){func, data}));
}

pid_t fork_child(void)
{
	sigset_t set;
	pid_t pid = fork();

	EXPECT(pid >= 0);
	if (pid == 0) {
		sigemptyset(&set);
		sigaddset(&set, SIGALRM);
		signal(SIGALRM, SIG_DFL);
		pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* workers block it */
		alarm(TEST_TIMEOUT / 2);
	}
	return pid;
}

/*
 * The sanitizers of gcc 12 do not keep the locks of their own allocators from being copied by
 * fork(). If another thread held one, the child waits for ever at its next malloc() or free().
 */
int wait_child(pid_t pid)
{
	int status;

	EXPECT(waitpid(pid, &status, 0) == pid);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	__has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) {
		printf("SKIP a test of fork: a child hung, as the sanitizer's allocator may make it\n");
		fflush(stdout);
		_exit(EXIT_SUCCESS);
	}
#endif
	return status;
}

int in_child(void (*func)(void *data), void *data, char *said, size_t size)
{
	size_t used = 0;
	char rest[256];
	int fds[2];
	ssize_t n;
	pid_t pid;

	new_pipe(fds);
	fflush(stdout); /* what is in the buffer is not the child's */
	pid = fork_child();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		func(data);
		fflush(stdout);
		_exit(EXIT_SUCCESS);
	}
	close(fds[1]);
	do {
		bool full = used + 1 >= size;

		n = read(fds[0], full ? rest : said + used, full ? sizeof(rest) : size - 1 - used);
		used += n > 0 && !full ? (size_t)n : 0;
	} while (n > 0);
	said[used] = '\0';
	close(fds[0]);
	return wait_child(pid);
}

void in_good_child(void (*func)(void *data), void *data)
{
	char said[4096];
	int status = in_child(func, data, said, sizeof(said));

	ck_assert_msg(status == 0, "the child ended with status %#x: %s", status, said);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

uint64_t thread_cpu_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t process_cpu_ns(void)
{
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

int n_threads(const char *name)
{
	char path[300], comm[32];
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int n = 0;

	EXPECT(dir != NULL);
	while ((entry = readdir(dir))) {
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		if (!file)
			continue;
		if (fgets(comm, sizeof(comm), file)) {
			comm[strcspn(comm, "\n")] = '\0';
			n += strcmp(comm, name) == 0;
		}
		fclose(file);
	}
	closedir(dir);
	return n;
}

unsigned random_below(uint64_t *seed, unsigned n)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((*seed >> 33) % n);
}

static void (*alarm_func)(void);

static void on_alarm(int sig)
{
	(void)sig;
	if (alarm_func)
		alarm_func();
}

static void set_alarms(uint64_t interval_ns)
{
	struct itimerval timer = {0};

	timer.it_interval.tv_sec = (time_t)(interval_ns / SECOND);
	timer.it_interval.tv_usec = (suseconds_t)(interval_ns % SECOND / 1000);
	timer.it_value = timer.it_interval;
	setitimer(ITIMER_REAL, &timer, NULL);
}

void start_alarms(uint64_t interval_ns, void (*func)(void))
{
	struct sigaction action = {.sa_handler = on_alarm};

	alarm_func = func;
	sigaction(SIGALRM, &action, NULL);
	set_alarms(interval_ns);
}

void stop_alarms(void)
{
	set_alarms(0);
	signal(SIGALRM, SIG_IGN);
}

/* ---- Blocking, starving ---------------------------------------------------------------------- */

void gate_init(gate_t *gate)
{
	*gate = (gate_t){.result = 0};
	EXPECT(sem_init(&gate->entered, 0, 0) == 0 && sem_init(&gate->open, 0, 0) == 0);
}

static void wait_for(sem_t *sem)
{
	while (sem_wait(sem) != 0)
		EXPECT(errno == EINTR);
}

int gate_job(void *data)
{
	gate_t *gate = data;

	sem_post(&gate->entered);
	wait_for(&gate->open);
	return gate->result;
}

void gate_wait(gate_t *gate)
{
	wait_for(&gate->entered);
}

void gate_open(gate_t *gate)
{
	sem_post(&gate->open);
}

void block_workers(iou_t *iou, gate_t *gate, int n)
{
	for (int i = 0; i < n; i++)
		start_job(iou, new_op(iou), gate_job, gate, on_nothing, NULL);
	for (int i = 0; i < n; i++)
		gate_wait(gate);
}

void unblock_workers(gate_t *gate, int n)
{
	while (n--)
		gate_open(gate);
}

static void *hoard;
static struct rlimit address_space;

/* Pages that the stack may need while no more can be had. */
static void touch_stack(void)
{
	volatile char room[256 * 1024];

	for (size_t i = 0; i < sizeof(room); i += 1024)
		room[i] = 1;
}

static bool take_more(size_t size)
{
	void **more = malloc(size);

	if (!more)
		return false;
	*more = hoard;
	hoard = more;
	return true;
}

void starve(void)
{
	struct rlimit none;

	touch_stack();
	getrlimit(RLIMIT_AS, &address_space);
	none = address_space;
	none.rlim_cur = 1;
	EXPECT(setrlimit(RLIMIT_AS, &none) == 0);
	for (size_t size = 1 << 20; size > 2048; size /= 2)
		while (take_more(size))
			;
	/* Each small size has a list of its own. */
	for (size_t size = 2048; size >= sizeof(void *); size -= sizeof(void *))
		while (take_more(size))
			;
}

void feed(void)
{
	setrlimit(RLIMIT_AS, &address_space);
	while (hoard) {
		void *next = *(void **)hoard;

		free(hoard);
		hoard = next;
	}
}
