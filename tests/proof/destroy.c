/* SPDX-License-Identifier: MIT */

/*
 * destroy N [FOLDER]: after iou_free() nothing that an op referred to is touched any more. An iou
 * is freed in the middle of reads of a disk, of pipes and sockets, of work in io-wq, timers and
 * jobs; until N times reads of the disk were under way at iou_free(), which blocks tell whose last
 * byte is not there yet. Right after each iou_free()
 *   - all buffers are scribbled; they are compared one destroy later: 0 bytes may have changed;
 *   - each socket's peer reads the end once our own end is closed, what is written to the pipe
 *     stays in it, and the FIFO that was being opened has no reader;
 *   - the descriptors are those that there were before, and no thread is left.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "iou.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	N_BLOCKS = 64,
	BLOCK = 1 << 20,
	N_PIPE_READS = 8, /* every other one in io-wq */
	N_SOCKETS = 8, /* every other one in io-wq */
	/* of a FIFO, in io-wq, until somebody opens its other end; the last, tried at once, works */
	N_OPENS = 4,
	N_TIMERS = 4, /* of each kind */
	N_JOBS = 6, /* for two workers */
	N_SMALL = N_PIPE_READS + N_SOCKETS + N_JOBS,
	SMALL = 64,
	SIZE = N_BLOCKS * BLOCK + 4096,
};

#define NEW 0x11 /* a buffer nobody has written to */
#define DISK 0x77
#define SCRIBBLE 0xa5
#define PATIENCE_NS UINT64_C(60000000000)

static const unsigned setup_flags[] = {0, IORING_SETUP_SUBMIT_ALL, IORING_SETUP_COOP_TASKRUN, 0};

static char folder[PATH_MAX - 16], disk_path[PATH_MAX], fifo_path[PATH_MAX];
static int disk_fd, pipe_fds[2], sockets[N_SOCKETS][2];
static unsigned round_number, n_threads_before;
static atomic_uint n_working;

static void clean_up(void)
{
	unlink(disk_path);
	unlink(fifo_path);
	rmdir(folder);
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "FAIL destroy %u: ", round_number);
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	clean_up();
	_exit(1);
}

#define EXPECT(condition) \
	do { \
		if (!(condition)) \
			fail("line %d: %s", __LINE__, #condition); \
	} while (0)

static void on_alarm(int sig)
{
	(void)sig;
	fail("it hangs");
}

__attribute__((noreturn)) static void skip(const char *why)
{
	printf("SKIP destroy: %s\n", why);
	clean_up();
	exit(77);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* ---- What there is before and after ---------------------------------------------------------- */

static bool is_io_wq(const char *tid)
{
	char path[320], name[32] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%s/comm", tid);
	file = fopen(path, "re");
	if (!file)
		return true; /* gone meanwhile */
	if (!fgets(name, sizeof(name), file))
		name[0] = '\0';
	fclose(file);
	return strncmp(name, "iou-wrk-", 8) == 0;
}

/* The kernel's own threads for io-wq stay with the thread that submitted, and end after some idle
 * seconds. */
static unsigned n_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *entry;
	unsigned n = 0;

	EXPECT(dir);
	while ((entry = readdir(dir)))
		n += entry->d_name[0] != '.' && !is_io_wq(entry->d_name);
	closedir(dir);
	return n;
}

/* What the descriptors are, but for the one that reads them, as a text. */
static void read_fds(char *text, size_t size)
{
	DIR *dir = opendir("/proc/self/fd");
	const struct dirent *entry;
	size_t end = 0;

	EXPECT(dir);
	while ((entry = readdir(dir))) {
		char path[320], target[256];
		ssize_t n;

		if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(dir))
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = '\0';
		end += (size_t)snprintf(text + end, size - end, "%s %s\n", entry->d_name, target);
		EXPECT(end < size);
	}
	closedir(dir);
}

/* ---- In flight ------------------------------------------------------------------------------- */

static int never(void *data)
{
	(void)data;
	fail("a callback was called");
}

static iou_op_t *new_op(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);

	EXPECT(op);
	return op;
}

/* Writes to its buffer for about 2 ms. */
static int job(void *data)
{
	unsigned char *bytes = data;

	atomic_fetch_add(&n_working, 1);
	for (int i = 0; i < SMALL; i++) {
		__atomic_store_n(&bytes[i], 1, __ATOMIC_RELAXED);
		nanosleep(&(struct timespec){.tv_nsec = 30000}, NULL);
	}
	return 0;
}

static unsigned char *small(unsigned char *mem, int i)
{
	return mem + (size_t)N_BLOCKS * BLOCK + (size_t)i * SMALL;
}

static void start_reads(iou_t *iou, unsigned char *mem)
{
	unsigned char *bytes = small(mem, 0);
	iou_op_t *op;

	for (int i = 0; i < N_BLOCKS; i++) {
		op = new_op(iou);
		io_uring_prep_read(op->sqe, disk_fd, mem + (size_t)i * BLOCK, BLOCK,
				   (__u64)i * BLOCK);
		op->sqe->flags = round_number % 3 == 2 || i % 8 == 7 ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
	}
	for (int i = 0; i < N_PIPE_READS; i++, bytes += SMALL) {
		op = new_op(iou);
		io_uring_prep_read(op->sqe, pipe_fds[0], bytes, SMALL, 0);
		op->sqe->flags = i % 2 ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
	}
	for (int i = 0; i < N_SOCKETS; i++, bytes += SMALL) {
		op = new_op(iou);
		io_uring_prep_recv(op->sqe, sockets[i][0], bytes, SMALL, 0);
		op->sqe->flags = i % 2 ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
	}
}

static void start_others(iou_t *iou, unsigned char *mem, struct __kernel_timespec *time)
{
	iou_op_t *op;

	for (int i = 0; i < N_OPENS; i++) {
		op = new_op(iou);
		io_uring_prep_openat(op->sqe, AT_FDCWD, fifo_path, O_RDONLY | O_CLOEXEC, 0);
		op->sqe->flags = i + 1 < N_OPENS ? IOSQE_ASYNC : 0;
		iou_op_queue(iou, op, never, NULL);
	}
	op = new_op(iou); /* this one ends, with a descriptor */
	io_uring_prep_openat(op->sqe, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC, 0);
	iou_op_queue(iou, op, never, NULL);
	for (int i = 0; i < N_TIMERS; i++) {
		iou_op_timer(iou, new_op(iou), UINT64_C(1000000000) * (i + 100), i, never, NULL);
		op = new_op(iou);
		io_uring_prep_timeout(op->sqe, time, 0, 0);
		iou_op_deadline(iou, op, PATIENCE_NS);
		iou_op_queue(iou, op, never, NULL);
	}
	for (int i = 0; i < N_JOBS; i++)
		EXPECT(iou_op_async(iou, new_op(iou), job, small(mem, N_PIPE_READS + N_SOCKETS + i),
				    never, NULL) == 0);
}

/* ---- Afterwards ------------------------------------------------------------------------------ */

static unsigned n_unread(const unsigned char *mem)
{
	unsigned n = 0;

	for (int i = 0; i < N_BLOCKS; i++)
		n += __atomic_load_n(&mem[(size_t)(i + 1) * BLOCK - 1], __ATOMIC_RELAXED) == NEW;
	return n;
}

static void check_untouched(const unsigned char *mem)
{
	size_t n = 0;

	if (mem[0] == SCRIBBLE && memcmp(mem, mem + 1, SIZE - 1) == 0)
		return;
	for (size_t i = 0; i < SIZE; i++)
		n += mem[i] != SCRIBBLE;
	fail("%zu bytes changed after iou_free()", n);
}

static void check_peers(void)
{
	char bytes[SMALL];

	for (int i = 0; i < N_SOCKETS; i++) {
		ssize_t n;

		close(sockets[i][0]);
		n = recv(sockets[i][1], bytes, sizeof(bytes), MSG_DONTWAIT);
		if (n != 0)
			fail("peer %d does not see the end: %s", i,
			     n < 0 ? strerror(errno) : "bytes");
		close(sockets[i][1]);
	}
	EXPECT(write(pipe_fds[1], "nobody", 6) == 6);
	nap();
	EXPECT(read(pipe_fds[0], bytes, sizeof(bytes)) == 6);
	EXPECT(open(fifo_path, O_WRONLY | O_NONBLOCK | O_CLOEXEC) < 0 && errno == ENXIO);
}

static void check_threads(void)
{
	uint64_t until_ns = now_ns() + PATIENCE_NS;

	while (n_threads() > n_threads_before) { /* one that was joined is listed a little longer */
		if (now_ns() > until_ns)
			fail("%u threads are left", n_threads() - n_threads_before);
		nap();
	}
}

/* Returns how many reads of the disk were under way at iou_free(); adds how long that took. */
static unsigned destroy(unsigned char *mem, uint64_t *took_ns)
{
	struct __kernel_timespec time = {.tv_sec = 1000};
	iou_config_t config = {.entries = round_number % 2 ? 256 : 16, .workers = 2,
			       .setup_flags = setup_flags[round_number % 4]};
	char before[16384], after[16384];
	iou_stats_t stats;
	iou_t *iou;
	unsigned n;

	memset(mem, NEW, SIZE);
	read_fds(before, sizeof(before));
	for (int i = 0; i < N_SOCKETS; i++)
		EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets[i]) == 0);
	iou = iou_new_with(&config);
	if (!iou && errno == EINVAL && config.setup_flags)
		iou = iou_new_with(&(iou_config_t){.entries = 64, .workers = 2});
	if (!iou)
		fail("iou_new_with: %s", strerror(errno));
	atomic_store(&n_working, 0);
	start_others(iou, mem, &time);
	start_reads(iou, mem);
	EXPECT(iou_flush(iou) == 0);
	for (unsigned i = 0; round_number % 2 && i < 50 && !atomic_load(&n_working); i++)
		nap(); /* until jobs run, and io-wq does */
	iou_stats(iou, &stats);
	n = n_unread(mem);
	EXPECT(stats.backlog == 0 && stats.pending >= N_BLOCKS + N_PIPE_READS + N_SOCKETS +
							      N_OPENS + N_TIMERS * 2 + N_JOBS);
	*took_ns -= now_ns();
	EXPECT(iou_free(iou) == NULL);
	*took_ns += now_ns();
	memset(mem, SCRIBBLE, SIZE);
	time = (struct __kernel_timespec){-1, -1};
	check_peers();
	check_threads();
	read_fds(after, sizeof(after));
	if (strcmp(before, after) != 0 || strstr(after, "io_uring"))
		fail("descriptors were\n%sand are\n%s", before, after);
	return n;
}

static void *nothing(void *data)
{
	return data;
}

static void prepare(const char *in, unsigned char *mem)
{
	pthread_t thread;

	snprintf(folder, sizeof(folder), "%s/iou-destroy-XXXXXX", in);
	if (!mkdtemp(folder)) {
		printf("SKIP destroy: no folder can be made in %s\n", in);
		exit(77);
	}
	snprintf(disk_path, sizeof(disk_path), "%s/disk", folder);
	snprintf(fifo_path, sizeof(fifo_path), "%s/fifo", folder);
	disk_fd = open(disk_path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
	if (disk_fd < 0)
		skip("needs a folder on a file system with O_DIRECT: set TMPDIR");
	memset(mem, DISK, SIZE);
	for (int i = 0; i < N_BLOCKS; i++)
		if (pwrite(disk_fd, mem, BLOCK, (off_t)i * BLOCK) != BLOCK)
			skip("no room for 64 MiB: set TMPDIR");
	EXPECT(mkfifo(fifo_path, 0600) == 0);
	EXPECT(pipe2(pipe_fds, O_CLOEXEC) == 0);
	/* TSan starts a thread of its own with the first that the program starts. */
	EXPECT(pthread_create(&thread, NULL, nothing, NULL) == 0 &&
	       pthread_join(thread, NULL) == 0);
	for (int i = 0; i < 100 && n_threads() > 1; i++)
		nap();
	n_threads_before = n_threads();
}

int main(int argc, char **argv)
{
	unsigned n = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000, n_busy = 0;
	const char *tmp = getenv("TMPDIR");
	unsigned char *mem[2];
	uint64_t n_reads = 0, took_ns = 0;

	for (int i = 0; i < 2; i++) {
		mem[i] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			      0);
		EXPECT(mem[i] != MAP_FAILED);
	}
	prepare(argc > 2 ? argv[2] : tmp && *tmp ? tmp : "/var/tmp", mem[0]);
	signal(SIGALRM, on_alarm);
	for (; n_busy < n; round_number++) {
		unsigned n_under_way;

		alarm(300);
		if (round_number > 4 * n + 100)
			fail("reads of the disk were under way in %u destroys only", n_busy);
		n_under_way = destroy(mem[round_number % 2], &took_ns);
		n_busy += n_under_way > 0;
		n_reads += n_under_way;
		if (round_number)
			/* scribbled one destroy ago */
			check_untouched(mem[(round_number + 1) % 2]);
	}
	nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
	for (unsigned i = 0; i < 2 && i < round_number; i++)
		check_untouched(mem[i]);
	clean_up();
	printf("check-destroy: %u destroys, with reads of the disk under way in %u "
	       "(%.1f of %d on average), %.1f ms each; "
	       "0 bytes changed, 0 descriptors and threads left, %u peers saw the end at once\n",
	       round_number, n_busy, (double)n_reads / n_busy, N_BLOCKS,
	       (double)took_ns / 1e6 / round_number, round_number * N_SOCKETS);
	return 0;
}
