/* SPDX-License-Identifier: MIT */
/*
 * The same small questions to the kernel's ring and to the fallback engine, below iou: prints every
 * answer that differs, and exits with 1 if there is one. Each case runs in a child, once for each.
 *
 * tests/proof/engine.sh builds it (iou_fallback.c takes memory and threads from functions here,
 * which can refuse them) and runs it in several ways.
 *
 *     engine            all cases, both engines
 *     engine -v         show all answers
 *     engine NAME...    only the cases whose name contains one of these; ~NAME: not this one
 *     engine -f ...     the fallback alone (answers are shown)
 *     engine -x ...     no further case once one has failed
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define IOU_BACKEND
#include "iou.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define SOON_MS 30   /* how long to look for what should not come */
#define MUCH    (16 << 20)

/* ---- The kernel's ring, behind the same functions ---- */

static int ring_open(unsigned entries, struct io_uring *io, struct io_uring_params *params)
{
	return io_uring_queue_init_params(entries, io, params);
}

static void ring_close(struct io_uring *io) { io_uring_queue_exit(io); }

static int ring_enter(struct io_uring *io, unsigned n, unsigned min, unsigned flags, void *arg,
		      size_t size)
{
	return io_uring_enter2((unsigned)io->ring_fd, n, min, flags, arg, size);
}

static int ring_reg(struct io_uring *io, unsigned opcode, const void *arg, unsigned n)
{
	return io_uring_register((unsigned)io->ring_fd, opcode, arg, n);
}

static int ring_reserve(struct io_uring *io, size_t n)
{
	(void)io, (void)n;
	return 0;
}

static const iou_backend_t ring = {
	.name = "ring",
	.open = ring_open,
	.close = ring_close,
	.reserve = ring_reserve,
	.enter = ring_enter,
	.reg = ring_reg,
};

/* ---- What the engine is compiled to call: memory and threads that can be refused ---- */

void *engine_malloc(size_t size);
void *engine_calloc(size_t n, size_t size);
int engine_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg);

static long n_allocations = -1; /* that succeed before one fails; negative: all */
static bool no_memory_left;     /* all fail */
static unsigned n_refused;      /* that failed */
static int n_threads = -1;      /* that can be started; negative: all */
static unsigned n_started;      /* threads that were */

static bool refused(void)
{
	bool refuses = no_memory_left || (n_allocations >= 0 && n_allocations-- == 0);

	n_refused += refuses;
	return refuses;
}

void *engine_malloc(size_t size) { return refused() ? NULL : malloc(size); }
void *engine_calloc(size_t n, size_t size) { return refused() ? NULL : calloc(n, size); }

int engine_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg)
{
	if (n_threads == 0)
		return EAGAIN;
	n_threads -= n_threads > 0;
	n_started++;
	return pthread_create(id, attr, fn, arg);
}

/* ---- Asking ---- */

static const iou_backend_t *backend;
static struct io_uring io;
static bool is_open;
static unsigned n_queued, entries = 64, setup_flags = IORING_SETUP_SUBMIT_ALL;
static int last[2048];    /* the last result by user_data */
static unsigned n_cqes[2048];
static unsigned n_buffer[2048]; /* the provided buffer that a CQE told */
static bool hide_buffers; /* which provided buffer, differs */
static bool hide_fds;     /* results >= 0 are descriptors: their numbers differ */
static bool sort_answers; /* no order is promised */
static bool quiet;        /* look() prints nothing */
static char folder[96] = "/tmp/iou-engine-XXXXXX";

static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(3);
}

static int try_open(void)
{
	struct io_uring_params params = {.flags = setup_flags};
	int ret = backend->open(entries, &io, &params);

	is_open = ret >= 0;
	n_queued = 0;
	return ret;
}

static void start(void)
{
	int ret = try_open();

	if (ret < 0) {
		errno = -ret;
		die("open");
	}
}

static void end(void)
{
	if (is_open)
		backend->close(&io);
	is_open = false;
}

/* A new ring in place of the one that stands. */
static void restart(unsigned flags)
{
	end();
	setup_flags = flags;
	start();
}

static struct io_uring_sqe *sqe_next(unsigned user_data)
{
	struct io_uring_sqe *sqe = &io.sq.sqes[io.sq.sqe_tail++ & io.sq.ring_mask];

	memset(sqe, 0, sizeof(*sqe));
	sqe->user_data = user_data;
	n_queued++;
	return sqe;
}

/* Give n SQEs to enter, which does not wait. Returns what it says. */
static int submit(unsigned n, unsigned flags)
{
	int ret;

	__atomic_store_n(io.sq.ktail, io.sq.sqe_tail, __ATOMIC_RELEASE);
	ret = backend->enter(&io, n, 0, flags, NULL, _NSIG / 8);
	n_queued -= ret > 0 ? (unsigned)ret : 0;
	return ret;
}

/* prep NAME with user_data, then flags: Q(1, 0, read, fd, buf, 8, 0) */
#define Q(ud, flag, prep, ...) \
	do { \
		struct io_uring_sqe *sqe_ = sqe_next(ud); \
		io_uring_prep_##prep(sqe_, __VA_ARGS__); \
		sqe_->flags |= (unsigned char)(flag); \
		sqe_->user_data = (ud); \
	} while (0)
/* The same with a provided buffer of this group. */
#define QB(ud, group, prep, ...) \
	do { \
		Q(ud, IOSQE_BUFFER_SELECT, prep, __VA_ARGS__); \
		LAST->buf_group = (group); \
	} while (0)
#define LAST (&io.sq.sqes[(io.sq.sqe_tail - 1) & io.sq.ring_mask])

static void nop(unsigned user_data, unsigned flags)
{
	sqe_next(user_data)->flags = (unsigned char)flags;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static const char *name_of(int res)
{
	static char text[64];

	if (res == -512)
		res = -EINTR;
	if (res < 0 && res > -200)
		snprintf(text, sizeof(text), "-%s", strerrorname_np(-res));
	else if (res >= 0 && hide_fds)
		snprintf(text, sizeof(text), "fd");
	else
		snprintf(text, sizeof(text), "%d", res);
	return text;
}

static int by_value(const void *a, const void *b) { return strcmp(a, b); }

static const char *buffer_of(const struct io_uring_cqe *cqe)
{
	static char text[16];

	if (!(cqe->flags & IORING_CQE_F_BUFFER))
		return "";
	if (hide_buffers)
		return "+BUF";
	snprintf(text, sizeof(text), "+BUF%u", cqe->flags >> IORING_CQE_BUFFER_SHIFT);
	return text;
}

/*
 * Submit what is queued; wait until there are n completions, or SOON_MS where n is 0. Print them.
 */
static void look(const char *label, unsigned n)
{
	static char text[512][96];
	unsigned n_text = 0;
	uint64_t until = now_ms() + (n ? 3000 : SOON_MS);

	for (;;) {
		struct __kernel_timespec ts = {.tv_nsec = 2000000};
		struct io_uring_getevents_arg arg = {.ts = (uintptr_t)&ts};
		struct io_uring_cqe *cqe;
		unsigned head;
		int ret;

		__atomic_store_n(io.sq.ktail, io.sq.sqe_tail, __ATOMIC_RELEASE);
		ret = backend->enter(&io, n_queued, 1,
				     IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg,
				     sizeof(arg));
		if (ret > 0)
			n_queued -= (unsigned)ret;
		else if (ret < 0 && ret != -ETIME && ret != -EINTR) {
			printf("    enter: %s\n", name_of(ret));
			return;
		}
		head = *io.cq.khead;
		for (; n_text < 512 && head != __atomic_load_n(io.cq.ktail, __ATOMIC_ACQUIRE);
		     head++) {
			cqe = &io.cq.cqes[head & io.cq.ring_mask];
			if (cqe->user_data < 2048) {
				last[cqe->user_data] = cqe->res;
				n_cqes[cqe->user_data]++;
				n_buffer[cqe->user_data] = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
			}
			snprintf(text[n_text++], sizeof(text[0]), " [%llu] %s%s%s%s",
				 (unsigned long long)cqe->user_data, name_of(cqe->res),
				 cqe->flags & IORING_CQE_F_MORE ? "+MORE" : "",
				 cqe->flags & IORING_CQE_F_NOTIF ? "+NOTIF" : "",
				 buffer_of(cqe));
		}
		__atomic_store_n(io.cq.khead, head, __ATOMIC_RELEASE);
		if ((n && n_text >= n) || now_ms() >= until)
			break;
	}
	if (quiet)
		return;
	if (sort_answers)
		qsort(text, n_text, sizeof(text[0]), by_value);
	printf("    %-32s", label);
	for (unsigned i = 0; i < n_text; i++)
		printf("%s", text[i]);
	printf("%s\n", n_text ? "" : " (pending)");
}

static void say(const char *format, ...)
{
	va_list args;

	printf("    ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

/* What the engine promises beside the ring's answers: a line, which differs, if it is not so. */
#define must(so, ...) \
	do { \
		if (!(so)) { \
			printf("    line %d: ", __LINE__); \
			say(__VA_ARGS__); \
		} \
	} while (0)

/* Of the engine's threads, those that block a signal; 0: all of them. They are known by name. */
static int n_blocking(int signal)
{
	char path[64], line[128];
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int n = 0;

	while ((entry = readdir(dir))) {
		unsigned long long blocked = 0;
		bool is_ours = false;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%.16s/status", entry->d_name);
		file = fopen(path, "r");
		while (file && fgets(line, sizeof(line), file)) {
			is_ours |= strcmp(line, "Name:\tiou-fallback\n") == 0;
			sscanf(line, "SigBlk: %llx", &blocked);
		}
		if (file)
			fclose(file);
		n += is_ours && (!signal || blocked >> (signal - 1) & 1);
	}
	closedir(dir);
	return n;
}

/* One that was joined may be listed a little longer. */
static int n_threads_left(void)
{
	for (unsigned i = 0; i < 100 && n_blocking(0); i++)
		usleep(2000);
	return n_blocking(0);
}

/* ---- Things to ask about ---- */

static void pipe_new(int fds[2], int flags)
{
	if (pipe2(fds, flags))
		die("pipe");
}

static void pair_new(int fds[2], int type)
{
	if (socketpair(AF_UNIX, type, 0, fds))
		die("socketpair");
}

static int listener_new(struct sockaddr_in *to, int backlog, int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
	socklen_t size = sizeof(*to);

	*to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	if (fd < 0 || bind(fd, (struct sockaddr *)to, size) || listen(fd, backlog) ||
	    getsockname(fd, (struct sockaddr *)to, &size))
		die("listen");
	return fd;
}

static void tcp_new(int fds[2])
{
	struct sockaddr_in to;
	int listener = listener_new(&to, 4, 0);

	fds[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fds[0], (struct sockaddr *)&to, sizeof(to)))
		die("connect");
	fds[1] = accept(listener, NULL, NULL);
	close(listener);
}

static const char *path_of(const char *name)
{
	static char paths[8][128];
	static unsigned next;
	char *path = paths[next++ % 8];

	snprintf(path, 128, "%s/%s", folder, name);
	return path;
}

static int file_new(const char *name, size_t size, int flags)
{
	int fd = open(path_of(name), O_CREAT | O_RDWR | O_TRUNC | flags, 0600);

	for (size_t i = 0; i < size; i++) {
		char c = (char)('a' + i % 26);

		if (write(fd, &c, 1) != 1)
			die("write");
	}
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static void put(int fd, size_t n)
{
	static char bytes[4096];

	memset(bytes, 'x', sizeof(bytes));
	if (write(fd, bytes, n) != (ssize_t)n)
		die("put");
}

static size_t fill(int fd)
{
	static char bytes[65536];
	size_t n = 0;
	ssize_t ret;
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while ((ret = write(fd, bytes, sizeof(bytes))) > 0)
		n += (size_t)ret;
	while ((ret = write(fd, bytes, 1)) > 0)
		n += (size_t)ret;
	fcntl(fd, F_SETFL, flags);
	return n;
}

static void drain_fd(int fd, size_t n)
{
	static char bytes[65536];
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while (n) {
		ssize_t ret = read(fd, bytes, n < sizeof(bytes) ? n : sizeof(bytes));

		if (ret <= 0)
			break;
		n -= (size_t)ret;
	}
	fcntl(fd, F_SETFL, flags);
}

static char buf[MUCH], buf2[65536];

#define L IOSQE_IO_LINK
#define H IOSQE_IO_HARDLINK
#define A IOSQE_ASYNC

/* ---- Reads and writes ---- */

static void read_pipe(void)
{
	int p[2];

	pipe_new(p, 0);
	Q(1, 0, read, p[0], buf, 8, 0);
	look("blocking, empty", 0);
	put(p[1], 3);
	look("after 3", 1);
	pipe_new(p, O_NONBLOCK);
	Q(2, 0, read, p[0], buf, 8, 0);
	look("O_NONBLOCK, empty", 0);
	put(p[1], 3);
	look("after 3", 1);
	Q(3, A, read, p[0], buf, 8, -1);
	look("ASYNC", 0);
	close(p[1]);
	look("closed", 1);
	pipe_new(p, 0);
	Q(4, 0, read, p[0], buf, 8, 0);
	LAST->rw_flags = 8;
	look("NOWAIT", 1);
	put(p[1], 8);
	Q(5, 0, read, p[0], buf, 1, 100);
	look("offset 100", 1);
	Q(6, 0, read, p[0], buf, 1, -1);
	look("offset -1", 1);
	Q(7, 0, read, p[0], buf, 1, (__u64)-2);
	look("offset -2", 1);
	struct iovec iov[3] = {{buf, 1}, {buf + 9, 2}, {buf + 20, 9}};
	Q(8, 0, readv, p[0], iov, 3, 0);
	look("readv 12 of 6", 1);
	Q(9, 0, read, p[0], buf, 0, 0);
	look("0 bytes", 1);
	Q(10, 0, read, p[1], buf, 1, 0);
	look("wrong end", 1);
	Q(11, 0, read, 999, buf, 1, 0);
	look("bad fd", 1);
}

static void three_readers(void)
{
	int p[2];

	pair_new(p, SOCK_STREAM);
	for (unsigned i = 1; i <= 3; i++) /* which of them is first is not promised */
		Q(1, 0, read, p[0], buf, 8, 0);
	look("three", 0);
	put(p[1], 3);
	look("one message", 1);
	put(p[1], 3);
	look("another", 1);
	put(p[1], 3);
	look("another", 1);
}

static void kinds(void)
{
	int e = eventfd(0, 0), t = timerfd_create(CLOCK_MONOTONIC, 0), n = inotify_init1(0), s, d;
	int pair[2];
	struct itimerspec at = {.it_value = {.tv_nsec = 1000000}};
	sigset_t set;
	uint64_t one = 1, full = UINT64_MAX - 1;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s = signalfd(-1, &set, 0);
	inotify_add_watch(n, folder, IN_CREATE);
	Q(1, 0, read, e, buf, 8, 0);
	Q(2, 0, read, t, buf, 8, 0);
	Q(3, 0, read, n, buf, 4096, 0);
	Q(4, 0, read, s, buf, 128, 0);
	look("all wait", 0);
	if (write(e, &one, 8) != 8)
		die("eventfd");
	look("eventfd", 1);
	timerfd_settime(t, 0, &at, NULL);
	look("timerfd", 1);
	close(file_new("watched", 1, 0));
	look("inotify", 1);
	kill(getpid(), SIGUSR1);
	look("signalfd", 1);
	Q(5, 0, write, e, &full, 8, 0);
	look("fill the eventfd", 1);
	Q(6, 0, write, e, &one, 8, 0);
	look("one more", 0);
	Q(7, 0, read, e, buf, 8, 7);
	sort_answers = true;
	look("read at 7", 2);
	Q(8, 0, read, e, buf, 4, 0);
	look("4 bytes", 1);
	pair_new(pair, SOCK_STREAM);
	s = pair[0];
	Q(9, 0, read, s, buf, 4, 55);
	look("socket at 55", 1);
	Q(9, 0, read, s, buf, 4, (__u64)-2);
	look("socket at -2", 1);
	d = open("/dev/zero", O_RDWR);
	Q(10, 0, read, d, buf, 8, 0);
	look("zero", 1);
	d = open("/dev/full", O_RDWR);
	Q(11, 0, write, d, buf, 8, 0);
	look("full", 1);
	d = open("/dev/urandom", O_RDONLY);
	Q(12, 0, read, d, buf, 80000, 0);
	look("urandom", 1);
	d = open("/proc/self/comm", O_RDONLY);
	Q(13, 0, read, d, buf, 80000, 0);
	look("/proc/self/comm", 1);
	d = open(folder, O_RDONLY);
	Q(14, 0, read, d, buf, 8, 0);
	look("directory", 1);
	d = open(folder, O_PATH);
	Q(15, 0, read, d, buf, 8, 0);
	look("O_PATH", 1);
}

static void tty(void)
{
	int m = posix_openpt(O_RDWR | O_NOCTTY), s;

	if (m < 0 || grantpt(m) || unlockpt(m))
		die("pty");
	s = open(ptsname(m), O_RDWR | O_NOCTTY);
	Q(1, 0, read, s, buf, 80, 55);
	look("blocking", 0);
	if (write(m, "hi\n", 3) != 3)
		die("pty");
	look("a line", 1);
	Q(2, 0, read, s, buf, 80, 0);
	look("again", 0);
	Q(1000, 0, cancel64, 2, 0);
	look("cancel", 2);
	Q(3, 0, write, s, "hello\n", 6, 0);
	look("write", 1);
}

static void write_pipe(void)
{
	int p[2];

	pipe_new(p, 0);
	Q(1, 0, write, p[1], buf, 1 << 20, 0);
	look("1 MiB to an empty pipe", 1);
	Q(2, 0, write, p[1], buf, 10, 0);
	look("10 to a full one", 0);
	drain_fd(p[0], 4096);
	look("4096 read", 1);
	drain_fd(p[0], 4096 - 10);
	drain_fd(p[0], 10);
	drain_fd(p[0], 1 << 20);
	fill(p[1]);
	drain_fd(p[0], 4096);
	Q(3, 0, write, p[1], buf, 4097, 0);
	look("4097 into 4096", 1);
	Q(4, 0, write, p[1], buf, 4096, 0);
	look("4096 into 0", 0);
	drain_fd(p[0], 1 << 20);
	look("drained", 1);
}

static void sigpipe(void)
{
	int p[2];

	pipe_new(p, 0);
	close(p[0]);
	Q(1, 0, write, p[1], buf, 10, 0);
	look("killed by SIGPIPE", 1);
}

static void no_sigpipe(void)
{
	int p[2];
	struct iovec iov = {buf, 9};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	pair_new(p, SOCK_STREAM);
	close(p[0]);
	Q(1, 0, send, p[1], buf, 10, 0);
	look("send", 1);
	Q(2, 0, sendmsg, p[1], &message, 0);
	look("sendmsg", 1);
}

static void offsets(void)
{
	int fd = file_new("offsets", 100, 0), r;

	Q(1, 0, read, fd, buf, 40, -1);
	Q(2, 0, read, fd, buf + 40, 40, -1);
	look("two at -1", 2);
	say("%.1s %.1s %d", buf, buf + 40, (int)lseek(fd, 0, SEEK_CUR));
	Q(3, A, read, fd, buf, 10, -1);
	Q(4, A, read, fd, buf + 40, 10, -1);
	look("ASYNC", 2);
	say("%.1s %.1s %d", buf, buf + 40, (int)lseek(fd, 0, SEEK_CUR));
	Q(5, 0, read, fd, buf, 10, 3);
	look("at 3", 1);
	say("%.1s %d", buf, (int)lseek(fd, 0, SEEK_CUR));
	Q(6, 0, read, fd, buf, 1000, 95);
	look("1000 at 95", 1);
	Q(7, 0, read, fd, buf, 10, 100);
	look("at the end", 1);
	Q(8, 0, read, fd, buf, 0, 0);
	look("0 bytes", 1);
	Q(9, 0, read, fd, buf, 9, 1ULL << 63);
	look("1 << 63", 1);
	Q(10, 0, read, fd, buf, 9, (__u64)-2);
	look("-2", 1);
	Q(11, 0, read, fd, (void *)8, 10, 0);
	look("EFAULT", 1);
	r = open(path_of("offsets"), O_RDONLY);
	Q(12, 0, write, r, buf, 10, 0);
	look("write on O_RDONLY", 1);
	Q(13, 0, read, fd, buf, 0xffffffff, 0);
	look("4G - 1", 1);
	Q(14, 0, read, fd, buf, 10, 0);
	LAST->rw_flags = 0x10000;
	look("rw_flags", 1);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	Q(15, 0, read, fd, buf, 1000, 0);
	look("not cached", 1);
	r = memfd_create("m", 0);
	Q(16, 0, write, r, buf, 5000, 0);
	look("memfd", 1);
	Q(17, 0, read, r, buf, 9000, 0);
	look("memfd", 1);
}

/* Long and short writes in turn: the short ones would overtake. The kernel's rarely do. */
static void order_of(const char *label, int flags, __u64 offset, unsigned char sqe_flags)
{
	const size_t size = 1 << 18;
	int fd = file_new("order", 0, flags);
	char order[64] = "", *all = buf + MUCH / 2;
	unsigned n = 0;
	ssize_t n_bytes;

	for (unsigned i = 0; i < 16; i++) {
		memset(buf + i * size, (int)('a' + i), size);
		Q(i, sqe_flags, write, fd, buf + i * size, i % 2 ? 1 : size, offset);
	}
	sort_answers = true;
	look(label, 16);
	n_bytes = pread(fd, all, MUCH / 2, 0);
	for (ssize_t i = 0; i < n_bytes && n < 60; i++)
		if (i == 0 || all[i] != all[i - 1])
			order[n++] = all[i];
	must(backend == &ring || strcmp(order, "abcdefghijklmnop") == 0, "%s", order);
	close(fd);
}

static void write_order(void)
{
	for (unsigned i = 0; i < 4; i++) {
		order_of("-1", 0, -1, 0);
		order_of("-1 ASYNC", 0, -1, A);
		order_of("O_APPEND", O_APPEND, 0, 0);
		order_of("O_APPEND ASYNC", O_APPEND, 0, A);
	}
}

/* ---- Sockets ---- */

static void recv_cases(void)
{
	int p[2], t[2], pp[2];
	struct iovec iov = {buf, 9};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	pair_new(p, SOCK_STREAM);
	Q(1, 0, recv, p[0], buf, 9, 0);
	look("empty", 0);
	put(p[1], 3);
	look("3", 1);
	Q(2, 0, recv, p[0], buf, 9, MSG_DONTWAIT);
	look("DONTWAIT", 1);
	Q(3, 0, recvmsg, p[0], &message, 0);
	look("recvmsg", 0);
	put(p[1], 4);
	look("4", 1);
	put(p[1], 4);
	Q(4, 0, recv, p[0], buf, 9, 0);
	LAST->ioprio = IORING_RECVSEND_POLL_FIRST;
	look("POLL_FIRST", 1);
	Q(5, 0, recv, p[0], buf, 9, 0);
	LAST->ioprio = 0x4000;
	look("ioprio", 1);
	put(p[1], 4);
	Q(6, 0, recv, p[0], buf, 2, MSG_PEEK);
	look("PEEK", 1);
	Q(7, 0, recv, p[0], buf, 9, 0);
	look("then", 1);
	pipe_new(pp, 0);
	Q(8, 0, recv, pp[0], buf, 9, 0);
	look("a pipe", 1);
	Q(9, 0, send, pp[1], buf, 9, 0);
	look("a pipe", 1);
	Q(10, 0, recv, p[0], buf, 9, 0);
	Q(11, 0, shutdown, p[0], SHUT_RD);
	sort_answers = true;
	look("shutdown", 2);
	sort_answers = false;
	t[0] = socket(AF_INET, SOCK_STREAM, 0);
	Q(12, 0, recv, t[0], buf, 9, 0);
	look("unconnected", 1);
	Q(13, 0, send, t[0], buf, 9, 0);
	look("unconnected", 1);
	Q(14, 0, shutdown, t[0], SHUT_RD);
	look("unconnected", 1);
	Q(15, 0, shutdown, pp[0], SHUT_RD);
	look("a pipe", 1);
	Q(16, 0, recv, t[0], buf, 9, 0);
	LAST->addr2 = 4;
	look("addr2", 1);
	tcp_new(t);
	fcntl(t[0], F_SETFL, O_NONBLOCK);
	Q(17, 0, recv, t[0], buf, 9, 0);
	Q(18, 0, read, t[0], buf2, 9, 0);
	look("TCP O_NONBLOCK", 0);
	close(t[1]);
	sort_answers = true;
	look("closed", 2);
	say("O_NONBLOCK %d %d", !!(fcntl(t[0], F_GETFL) & O_NONBLOCK),
	    !!(fcntl(p[0], F_GETFL) & O_NONBLOCK));
}

static void waitall(void)
{
	int p[2], t[2];
	struct iovec iov[2] = {{buf, 6}, {buf + 50, 50}};
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
	struct linger linger = {1, 0};

	pair_new(p, SOCK_STREAM);
	put(p[1], 5);
	Q(1, 0, recv, p[0], buf, 100, MSG_WAITALL);
	look("5 of 100", 0);
	put(p[1], 5);
	look("5 more", 0);
	shutdown(p[1], SHUT_WR);
	look("EOF", 1);
	pair_new(p, SOCK_STREAM);
	put(p[1], 5);
	Q(2, 0, recv, p[0], buf, 100, MSG_WAITALL);
	look("5 of 100", 0);
	Q(1000, 0, cancel64, 2, 0);
	look("cancel", 2);
	put(p[1], 5);
	Q(3, 0, recv, p[0], buf, 100, MSG_WAITALL | MSG_DONTWAIT);
	look("DONTWAIT", 1);
	put(p[1], 5);
	Q(4, 0, recvmsg, p[0], &message, MSG_WAITALL);
	look("recvmsg 5 of 56", 0);
	put(p[1], 5);
	look("5 more", 0);
	close(p[1]);
	look("EOF", 1);
	tcp_new(t);
	put(t[1], 5);
	Q(5, 0, recv, t[0], buf, 100, MSG_WAITALL);
	look("TCP", 0);
	setsockopt(t[1], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(t[1]);
	look("RST", 1);
	Q(6, 0, recv, t[0], buf, 100, 0);
	look("next", 1);
	pair_new(p, SOCK_DGRAM);
	put(p[1], 5);
	Q(7, L, recv, p[0], buf, 100, MSG_WAITALL);
	nop(8, 0);
	look("datagram", 2);
}

static void send_much(void)
{
	int p[2];
	size_t n;

	pair_new(p, SOCK_STREAM);
	Q(1, 0, send, p[0], buf, MUCH, 0);
	look("short", 1);
	pair_new(p, SOCK_STREAM);
	Q(2, 0, write, p[0], buf, MUCH, 0);
	look("short", 1);
	pair_new(p, SOCK_STREAM);
	Q(3, 0, send, p[0], buf, 1 << 20, MSG_WAITALL);
	look("WAITALL", 0);
	for (n = 0; n < 40 && !last[3]; n++) {
		drain_fd(p[1], 65536);
		if (n == 39)
			break;
	}
	for (n = 0; n < 200 && last[3] == 0; n++) {
		struct __kernel_timespec ts = {.tv_nsec = 1000000};
		struct io_uring_getevents_arg arg = {.ts = (uintptr_t)&ts};

		drain_fd(p[1], 1 << 20);
		backend->enter(&io, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg,
			       sizeof(arg));
		if (*io.cq.khead != *io.cq.ktail)
			break;
	}
	look("drained", 1);
	pair_new(p, SOCK_STREAM);
	Q(4, 0, send, p[0], buf, MUCH, MSG_WAITALL);
	look("WAITALL", 0);
	Q(1000, 0, cancel64, 4, 0);
	look("cancel", 2);
	Q(5, 0, send, p[0], buf, 100, 0);
	look("full", 0);
	close(p[1]);
	look("closed", 1);
}

static void messages(void)
{
	int u = socket(AF_INET, SOCK_DGRAM, 0), v = socket(AF_INET, SOCK_DGRAM, 0), p[2], got = -1;
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, from;
	socklen_t size = sizeof(to);
	struct iovec iov = {buf, 9}, iov2 = {buf2, 4};
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}}, control2;
	struct msghdr out = {&to, sizeof(to), &iov, 1, NULL, 0, 0};
	struct msghdr in = {&from, sizeof(from), &iov2, 1, NULL, 0, 0};

	if (bind(u, (struct sockaddr *)&to, size) || getsockname(u, (struct sockaddr *)&to, &size))
		die("bind");
	Q(1, 0, recvmsg, u, &in, 0);
	look("recvmsg", 0);
	Q(2, 0, sendmsg, v, &out, 0);
	sort_answers = true;
	look("sendmsg", 2);
	say("namelen %d flags %x family %d", (int)in.msg_namelen, (unsigned)in.msg_flags,
	    from.sin_family);
	pair_new(p, SOCK_STREAM);
	memcpy(CMSG_DATA(&control.head), &u, sizeof(u));
	out = (struct msghdr){NULL, 0, &iov, 1, &control, sizeof(control), 0};
	in = (struct msghdr){NULL, 0, &iov2, 1, &control2, sizeof(control2), 0};
	Q(3, 0, recvmsg, p[0], &in, 0);
	Q(4, 0, sendmsg, p[1], &out, 0);
	look("SCM_RIGHTS", 2);
	memcpy(&got, CMSG_DATA(&control2.head), sizeof(got));
	say("controllen %d flags %x fd %d", (int)in.msg_controllen, (unsigned)in.msg_flags,
	    got > 2 && fcntl(got, F_GETFD) >= 0);
	out.msg_iovlen = 5000;
	Q(5, 0, sendmsg, p[1], &out, 0);
	look("too many iovecs", 1);
}

static void accept_cases(void)
{
	struct sockaddr_in to;
	int l = listener_new(&to, 8, SOCK_NONBLOCK), p[2], c, b;

	Q(1, 0, accept, l, NULL, NULL, 0);
	look("O_NONBLOCK", 0);
	c = socket(AF_INET, SOCK_STREAM, 0);
	Q(2, 0, connect, c, (struct sockaddr *)&to, sizeof(to));
	hide_fds = sort_answers = true;
	look("connect", 2);
	say("NONBLOCK %d CLOEXEC %d", !!(fcntl(last[1], F_GETFL) & O_NONBLOCK),
	    !!(fcntl(last[1], F_GETFD) & FD_CLOEXEC));
	Q(3, 0, accept, l, NULL, NULL, SOCK_CLOEXEC);
	LAST->ioprio = 2;
	look("ACCEPT_DONTWAIT", 1);
	Q(4, 0, accept, l, NULL, NULL, SOCK_CLOEXEC);
	look("pending", 0);
	shutdown(l, SHUT_RDWR);
	look("shutdown", 1);
	pair_new(p, SOCK_STREAM);
	Q(5, 0, accept, p[0], NULL, NULL, 0);
	look("a socketpair", 1);
	Q(6, 0, accept, l, NULL, NULL, 0xffff);
	look("flags", 1);
	b = listener_new(&to, 8, 0);
	Q(7, 0, multishot_accept, b, NULL, NULL, 0);
	look("multishot", 0);
	for (unsigned i = 0; i < 2; i++) {
		c = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(c, (struct sockaddr *)&to, sizeof(to)))
			die("connect");
		look("connect", 1);
	}
	shutdown(b, SHUT_RDWR);
	look("shutdown", 1);
	Q(8, 0, multishot_accept, b, NULL, NULL, 0);
	LAST->ioprio |= 2;
	look("DONTWAIT", 1);
	b = listener_new(&to, 8, 0);
	Q(9, 0, multishot_accept, b, NULL, NULL, 0);
	look("multishot", 0);
	Q(1000, 0, cancel64, 9, 0);
	hide_fds = sort_answers = false;
	look("cancel", 2);
	say("blocking %d", !(fcntl(b, F_GETFL) & O_NONBLOCK));
}

static void connect_cases(void)
{
	struct sockaddr_in to;
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int l = listener_new(&to, 0, 0), c[4], i;

	close(l);
	c[0] = socket(AF_INET, SOCK_STREAM, 0);
	Q(1, 0, connect, c[0], (struct sockaddr *)&to, sizeof(to));
	look("refused", 1);
	Q(2, 0, connect, c[0], (struct sockaddr *)&to, sizeof(to));
	look("again", 1);
	c[1] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	Q(3, 0, connect, c[1], (struct sockaddr *)&to, sizeof(to));
	look("O_NONBLOCK refused", 1);
	l = listener_new(&to, 0, 0);
	for (i = 0; i < 4; i++) {
		c[i] = socket(AF_INET, SOCK_STREAM | (i & 1 ? SOCK_NONBLOCK : 0), 0);
		Q((unsigned)(10 + i), 0, connect, c[i], (struct sockaddr *)&to, sizeof(to));
		look(i ? "TCP, backlog 0" : "TCP", i ? 0 : 1);
	}
	snprintf(un.sun_path, sizeof(un.sun_path), "%s/socket", folder);
	l = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(l, (struct sockaddr *)&un, sizeof(un)) || listen(l, 0))
		die("unix");
	for (i = 0; i < 3; i++) {
		c[i] = socket(AF_UNIX, SOCK_STREAM | (i == 2 ? SOCK_NONBLOCK : 0), 0);
		Q((unsigned)(20 + i), 0, connect, c[i], (struct sockaddr *)&un, sizeof(un));
		look(i == 1 ? "AF_UNIX, full" : "AF_UNIX", i == 1 ? 0 : 1);
	}
	close(accept(l, NULL, NULL));
	look("after accept", 1);
	memset(&un, 0, sizeof(un));
	Q(30, 0, connect, c[0], (struct sockaddr *)&un, 4000);
	look("length", 1);
}

/* ---- Chains ---- */

static void link_short(void)
{
	int fd = file_new("short", 50, 0), p[2], q[2], s[2];

	Q(1, L, read, fd, buf, 100, 0);
	nop(2, 0);
	look("short read", 2);
	Q(3, H, read, fd, buf, 100, 0);
	nop(4, 0);
	look("HARDLINK", 2);
	Q(5, L, read, fd, buf, 0, 0);
	nop(6, 0);
	look("0 bytes", 2);
	pair_new(p, SOCK_STREAM);
	put(p[1], 3);
	Q(7, L, recv, p[0], buf, 9, 0);
	nop(8, 0);
	look("short recv", 2);
	put(p[1], 3);
	Q(9, L, read, p[0], buf, 9, 0);
	nop(10, 0);
	look("short read of a socket", 2);
	Q(11, L, send, p[0], buf, MUCH, 0);
	nop(12, 0);
	look("short send", 2);
	pipe_new(q, 0);
	Q(13, L, write, q[1], buf, 1 << 20, 0);
	nop(14, 0);
	look("short write", 2);
	pair_new(s, SOCK_STREAM);
	close(s[1]);
	Q(15, L, recv, s[0], buf, 9, 0);
	nop(16, 0);
	look("EOF", 2);
	Q(17, L, recv, s[0], buf, 9, MSG_WAITALL);
	nop(18, 0);
	look("EOF, WAITALL", 2);
}

static void link_fail(void)
{
	struct __kernel_timespec ts = {.tv_nsec = 1000000};
	int p[2];

	nop(1, L);
	nop(2, L);
	LAST->opcode = 200;
	nop(3, 0);
	look("bad opcode", 3);
	nop(1, L);
	Q(2, L, read, 999, buf, 1, 0);
	nop(3, 0);
	look("bad fd", 3);
	nop(1, H);
	nop(2, H);
	LAST->opcode = 200;
	nop(3, 0);
	look("HARD bad opcode", 3);
	Q(1, H, read, 999, buf, 1, 0);
	nop(2, L);
	nop(3, 0);
	look("HARD bad fd", 3);
	Q(1, L, timeout, &ts, 0, 0);
	nop(2, 0);
	look("timeout", 2);
	Q(1, L, timeout, &ts, 0, IORING_TIMEOUT_ETIME_SUCCESS);
	nop(2, 0);
	look("ETIME_SUCCESS", 2);
	nop(1, L | 0x80);
	nop(2, 0);
	look("flag 0x80", 2);
	nop(3, 0);
	LAST->ioprio = 5;
	look("ioprio", 1);
	nop(4, 0);
	LAST->personality = 7;
	look("personality", 1);
	Q(5, 0, fsync, 1, 0x80);
	look("fsync flags", 1);
	nop(6, 0);
	LAST->opcode = 63;
	look("opcode 63", 1);
	nop(7, 0);
	LAST->rw_flags = 0x1000;
	look("nop flags", 1);
	nop(8, L);
	look("an open chain ends", 1);
	nop(9, 0);
	look("and is no part of the next", 1);
	pipe_new(p, 0);
	Q(10, L, read, p[0], buf, 3, 0);
	Q(11, L, write, p[1], buf, 3, 0);
	nop(12, 0);
	look("waits", 0);
	put(p[1], 3);
	look("goes on", 3);
}

static void link_timeout(void)
{
	struct __kernel_timespec ts = {.tv_nsec = 10000000}, ten = {.tv_sec = 10};
	int p[2];

	pair_new(p, SOCK_STREAM);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, 0, link_timeout, &ts, 0);
	look("fires", 2);
	put(p[1], 1);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, 0, link_timeout, &ts, 0);
	look("at once", 2);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, 0, link_timeout, &ten, 0);
	look("waits", 0);
	put(p[1], 1);
	look("data", 2);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, L, link_timeout, &ts, 0);
	nop(3, 0);
	look("fires, nop", 3);
	put(p[1], 1);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, L, link_timeout, &ts, 0);
	nop(3, 0);
	look("data, nop", 3);
	Q(4, 0, link_timeout, &ts, 0);
	look("alone", 1);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, 0, link_timeout, &ten, 0);
	look("waits", 0);
	Q(1000, 0, cancel64, 1, 0);
	look("cancel recv", 3);
	Q(1, L, recv, p[0], buf, 9, 0);
	Q(2, 0, link_timeout, &ten, 0);
	look("waits", 0);
	Q(1000, 0, cancel64, 2, 0);
	look("cancel the limit", 1);
	Q(1001, 0, timeout_update, &ts, 2, IORING_LINK_TIMEOUT_UPDATE);
	look("update it", 3);
	nop(1, L);
	Q(2, 0, recv, p[0], buf, 9, 0);
	look("nop, recv", 1);
	Q(1000, 0, cancel64, 2, 0);
	look("cancel it", 2);
	Q(1, L, recv, p[0], buf, 9, 0);
	nop(2, 0);
	look("recv, nop", 0);
	Q(1000, 0, cancel64, 2, 0);
	look("cancel the nop", 1);
	Q(1000, 0, cancel64, 1, 0);
	look("cancel the head", 3);
	Q(1, L, recv, p[0], buf, 9, MSG_WAITALL);
	Q(2, 0, link_timeout, &ts, 0);
	put(p[1], 4);
	look("after a part", 2);
}

/* ---- Cancels, timeouts, polls ---- */

static void cancels(void)
{
	struct __kernel_timespec ten = {.tv_sec = 10};
	int p[2];

	pair_new(p, SOCK_STREAM);
	Q(1, 0, recv, p[0], buf, 9, 0);
	Q(1000, 0, cancel64, 1, 0);
	look("in one submit", 2);
	Q(1000, 0, cancel64, 1, 0);
	look("not found", 1);
	for (unsigned i = 0; i < 3; i++)
		Q(5, 0, recv, p[0], buf, 9, 0);
	Q(1000, 0, cancel64, 5, 0);
	look("one of three", 2);
	Q(1000, 0, cancel64, 5, IORING_ASYNC_CANCEL_ALL);
	look("ALL", 3);
	Q(6, 0, recv, p[0], buf, 9, 0);
	Q(8, 0, poll_add, p[0], POLLPRI);
	Q(9, 0, timeout, &ten, 0, 0);
	look("wait", 0);
	Q(1000, 0, cancel_fd, p[0], IORING_ASYNC_CANCEL_ALL);
	sort_answers = true;
	look("FD ALL", 3);
	Q(7, 0, recv, p[0], buf, 9, 0);
	Q(1000, 0, cancel64, 0, IORING_ASYNC_CANCEL_ANY);
	look("ANY", 3);
	Q(1000, 0, cancel64, 0, IORING_ASYNC_CANCEL_ANY);
	look("ANY, none", 1);
	Q(1000, 0, cancel_fd, 999, IORING_ASYNC_CANCEL_ALL);
	look("bad fd", 1);
	Q(1000, 0, cancel_fd, p[0], 0);
	look("FD, none", 1);
	Q(1000, 0, cancel64, 77, IORING_ASYNC_CANCEL_ALL);
	look("ALL, none", 1);
	Q(1000, 0, cancel64, 77, 0x1000);
	look("flag", 1);
	Q(9, 0, timeout, &ten, 0, 0);
	Q(1000, 0, cancel64, 9, 0);
	look("timeout", 2);
	Q(10, 0, poll_add, p[0], POLLIN);
	Q(11, 0, recv, p[0], buf, 9, 0);
	Q(1000, 0, cancel64, 0, 1 << 5);
	LAST->len = IORING_OP_RECV;
	look("OP", 2);
	Q(1000, 0, cancel_fd, p[0], IORING_ASYNC_CANCEL_FD | 1 << 5);
	LAST->len = IORING_OP_RECV;
	look("FD OP, none", 1);
	Q(1000, 0, cancel_fd, p[0], IORING_ASYNC_CANCEL_FD | 1 << 4);
	LAST->addr = 10;
	look("FD USERDATA", 2);
	Q(12, 0, recv, p[0], buf, 9, 0);
	look("waits", 0);
	struct io_uring_sync_cancel_reg all = {.addr = 12, .timeout = {-1, -1}};
	say("sync: %s", name_of(backend->reg(&io, IORING_REGISTER_SYNC_CANCEL, &all, 1)));
	look("by sync_cancel", 1);
	say("sync: %s", name_of(backend->reg(&io, IORING_REGISTER_SYNC_CANCEL, &all, 1)));
}

static void timeouts(void)
{
	struct __kernel_timespec ts = {.tv_nsec = 10000000}, zero = {0}, bad = {.tv_sec = -1},
				 one = {.tv_sec = 1}, big = {.tv_nsec = 2000000000}, now;
	struct timespec real;
	uint64_t before = now_ms();

	Q(1, 0, timeout, &ts, 0, 0);
	look("10 ms", 1);
	say("early: %d", now_ms() < before + 9);
	Q(2, 0, timeout, &zero, 0, 0);
	look("0", 1);
	Q(3, 0, timeout, &zero, 0, IORING_TIMEOUT_ABS);
	look("abs 0", 1);
	Q(4, 0, timeout, &bad, 0, 0);
	look("-1 s", 1);
	Q(5, 0, timeout, &big, 0, 0);
	look("2e9 ns", 0);
	Q(1000, 0, timeout_remove, 5, 0);
	look("remove", 2);
	Q(6, 0, timeout, &one, 2, 0);
	look("count 2", 0);
	nop(100, 0);
	look("nop", 1);
	nop(101, 0);
	look("nop", 2);
	nop(102, 0);
	Q(7, 0, timeout, &one, 1, 0);
	nop(103, 0);
	look("nop, count 1, nop", 3);
	Q(8, 0, timeout, &ts, 3, 1 << 6);
	look("multishot 3", 3);
	ts.tv_nsec = 60000000;
	Q(9, 0, timeout, &ts, 0, 1 << 6);
	look("multishot", 3);
	Q(10, 0, timeout_remove, 77, 0);
	look("not found", 1);
	Q(1000, 0, cancel64, 9, 0);
	look("cancel", 2);
	ts.tv_nsec = 10000000;
	Q(11, 0, timeout, &one, 0, 0);
	Q(12, 0, timeout_update, &ts, 11, 0);
	look("update", 2);
	clock_gettime(CLOCK_REALTIME, &real);
	now = (struct __kernel_timespec){real.tv_sec, real.tv_nsec};
	Q(13, 0, timeout, &now, 0, IORING_TIMEOUT_ABS | IORING_TIMEOUT_REALTIME);
	look("REALTIME abs", 1);
	Q(14, 0, timeout, &ts, 0, IORING_TIMEOUT_CLOCK_MASK);
	look("both clocks", 1);
	Q(15, 0, timeout, &ts, 0, IORING_TIMEOUT_BOOTTIME);
	look("BOOTTIME", 1);
	Q(16, 0, timeout, &ts, 0, 0);
	LAST->len = 2;
	look("len 2", 1);
	for (unsigned i = 20; i < 23; i++)
		Q(i, 0, timeout, &ts, 0, 0);
	look("three equal", 3);
	Q(30, 0, timeout, &ts, 0, 0);
	submit(n_queued, 0);
	ts.tv_sec = 100;
	look("overwritten", 1);
	Q(31, 0, timeout, &zero, 3, (1 << 6) | IORING_TIMEOUT_ABS);
	look("multishot abs", 1);
	clock_gettime(CLOCK_MONOTONIC, &real);
	for (unsigned i = 0; i < 60; i++) {
		uint64_t ns = (uint64_t)real.tv_nsec + 300000000 + (i * 37) % 60 * 10000000;

		ts = (struct __kernel_timespec){real.tv_sec + (int64_t)(ns / 1000000000),
						(int64_t)(ns % 1000000000)};
		Q(200 + (i * 37) % 60, 0, timeout, &ts, 0, IORING_TIMEOUT_ABS);
		submit(n_queued, 0);
		if (i % 7 == 3) {
			Q(1000, 0, cancel64, 200 + (i * 37) % 60, 0);
			look("", 2);
		}
	}
	look("many, by time", 52);
}

static void polls(void)
{
	int fd = file_new("poll", 5, 0), p[2], e = epoll_create1(0), q[2];
	struct epoll_event event = {.events = EPOLLIN};

	Q(1, 0, poll_add, fd, POLLIN | POLLOUT);
	look("file IN OUT", 1);
	Q(2, 0, poll_add, fd, POLLPRI);
	look("file PRI", 1);
	Q(3, 0, poll_add, open(folder, O_RDONLY), POLLIN);
	look("directory", 1);
	Q(4, 0, poll_add, open("/dev/null", O_RDWR), POLLIN | POLLOUT);
	look("/dev/null", 1);
	Q(5, 0, poll_add, 999, POLLIN);
	look("bad fd", 1);
	Q(6, 0, poll_add, open(folder, O_PATH), POLLIN);
	look("O_PATH", 1);
	Q(7, 0, poll_multishot, fd, POLLIN);
	look("file multishot", 1);
	pipe_new(p, 0);
	Q(8, 0, poll_add, p[0], POLLIN);
	look("pipe", 0);
	put(p[1], 1);
	look("data", 1);
	Q(9, 0, poll_add, p[0], 0);
	look("mask 0", 0);
	close(p[1]);
	look("closed", 1);
	Q(10, 0, poll_add, p[0], POLLIN);
	look("data and HUP", 1);
	pipe_new(q, 0);
	epoll_ctl(e, EPOLL_CTL_ADD, q[0], &event);
	Q(11, 0, poll_add, e, POLLIN);
	look("epoll fd", 0);
	put(q[1], 1);
	look("event", 1);
	Q(12, 0, poll_add, q[0], POLLIN);
	LAST->off = 1;
	look("off", 1);
	Q(13, 0, poll_add, q[0], POLLIN);
	LAST->len = 8;
	look("LEVEL", 1);
	Q(14, 0, poll_multishot, 999, POLLIN);
	look("bad fd multishot", 1);
}

static void poll_multi(void)
{
	struct __kernel_timespec ts = {.tv_nsec = 200000000};
	int p[2], s[2], e = eventfd(0, 0);
	uint64_t one = 1;

	pipe_new(p, 0);
	Q(1, 0, poll_multishot, p[0], POLLIN);
	look("armed", 0);
	put(p[1], 1);
	look("1", 1);
	look("not read", 0);
	drain_fd(p[0], 1);
	look("read", 0);
	put(p[1], 1);
	look("1", 1);
	close(p[1]);
	look("closed", 1);
	Q(1000, 0, cancel64, 1, 0);
	look("cancel", 2);
	Q(2, 0, poll_multishot, e, POLLIN);
	look("eventfd", 0);
	for (unsigned i = 0; i < 3; i++) {
		if (write(e, &one, 8) != 8)
			die("eventfd");
		look("written", 1);
	}
	Q(3, 0, poll_remove, 2);
	look("remove", 2);
	Q(3, 0, poll_remove, 2);
	look("again", 1);
	pair_new(s, SOCK_STREAM);
	Q(6, 0, poll_add, s[0], POLLIN);
	look("single", 0);
	Q(9, 0, poll_update, 6, 8, POLLOUT,
	  IORING_POLL_UPDATE_EVENTS | IORING_POLL_UPDATE_USER_DATA);
	look("update both", 2);
	Q(10, 0, poll_multishot, s[0], POLLIN);
	look("multi", 0);
	Q(12, 0, poll_update, 10, 11, 0, IORING_POLL_UPDATE_USER_DATA);
	look("update user_data", 1);
	put(s[1], 1);
	look("event", 1);
	Q(13, 0, poll_update, 10, 11, 0, IORING_POLL_UPDATE_USER_DATA);
	look("not found", 1);
	drain_fd(s[0], 1);
	Q(14, L, poll_add, s[0], POLLIN);
	Q(15, 0, link_timeout, &ts, 0);
	look("with a limit", 0);
	Q(16, 0, poll_update, 14, 17, POLLPRI,
	  IORING_POLL_UPDATE_EVENTS | IORING_POLL_UPDATE_USER_DATA);
	look("update", 1);
	look("its end", 2);
}

/* ---- Registered files and buffers, provided buffers ---- */

static int reg(unsigned opcode, const void *arg, unsigned n)
{
	return backend->reg(&io, opcode, arg, n);
}

static void fixed_files(void)
{
	int p[2], fds[4] = {-1, -1, -1, -1}, updates[2] = {-1, -2};
	struct io_uring_files_update update = {.offset = 0};
	struct io_uring_file_index_range range = {.off = 2, .len = 2};
	char b[16];

	pipe_new(p, 0);
	say("unregister: %s", name_of(reg(IORING_UNREGISTER_FILES, NULL, 0)));
	fds[0] = p[0];
	say("register: %s", name_of(reg(IORING_REGISTER_FILES, fds, 4)));
	say("again: %s", name_of(reg(IORING_REGISTER_FILES, fds, 4)));
	put(p[1], 10);
	Q(1, IOSQE_FIXED_FILE, read, 0, b, 4, -1);
	look("read", 1);
	close(p[0]);
	Q(2, IOSQE_FIXED_FILE, read, 0, b, 4, -1);
	look("after close", 1);
	Q(3, IOSQE_FIXED_FILE, read, 1, b, 4, -1);
	look("empty", 1);
	Q(4, IOSQE_FIXED_FILE, read, 9, b, 4, -1);
	look("out of range", 1);
	Q(5, 0, openat_direct, AT_FDCWD, "/dev/zero", O_RDONLY, 0, 1);
	look("open into 1", 1);
	Q(6, IOSQE_FIXED_FILE, read, 1, b, 4, 0);
	look("read it", 1);
	Q(7, 0, openat_direct, AT_FDCWD, "/dev/zero", O_RDONLY | O_CLOEXEC, 0, 1);
	look("close-on-exec", 1);
	Q(8, 0, openat_direct, AT_FDCWD, "/dev/zero", O_RDONLY, 0, 7);
	look("open into 7", 1);
	say("range: %s", name_of(reg(IORING_REGISTER_FILE_ALLOC_RANGE, &range, 0)));
	for (unsigned i = 10; i < 13; i++) {
		Q(i, 0, openat_direct, AT_FDCWD, "/dev/zero", O_RDONLY, 0, IORING_FILE_INDEX_ALLOC - 1);
		look("open anywhere", 1);
	}
	Q(13, 0, close_direct, 2);
	look("close 2", 1);
	Q(14, 0, close_direct, 2);
	look("again", 1);
	Q(15, 0, close_direct, 20);
	look("out of range", 1);
	Q(16, 0, socket_direct, AF_UNIX, SOCK_STREAM, 0, 2, 0);
	look("socket", 1);
	fds[0] = p[1];
	Q(17, 0, files_update, fds, 1, 2);
	look("update", 1);
	Q(18, IOSQE_FIXED_FILE, write, 2, "abc", 3, -1);
	look("write", 1);
	Q(19, IOSQE_FIXED_FILE, poll_add, 0, POLLPRI);
	look("poll", 0);
	update.fds = (uintptr_t)updates;
	say("update: %s", name_of(reg(IORING_REGISTER_FILES_UPDATE, &update, 2)));
	look("goes on", 0);
	Q(1000, 0, cancel64, 19, 0);
	look("cancel", 2);
	update.offset = 3;
	say("beyond: %s", name_of(reg(IORING_REGISTER_FILES_UPDATE, &update, 2)));
	say("unregister: %s", name_of(reg(IORING_UNREGISTER_FILES, NULL, 0)));
	Q(20, IOSQE_FIXED_FILE, read, 0, b, 4, -1);
	look("without a table", 1);
	Q(21, 0, openat_direct, AT_FDCWD, "/dev/zero", O_RDONLY, 0, 1);
	look("open", 1);
	Q(22, 0, close_direct, 1);
	look("close", 1);
}

static void fixed_buffers(void)
{
	static char memory[8192];
	struct iovec iov[2] = {{memory, 4096}, {memory + 4096, 4096}}, none = {NULL, 1};
	int fd = file_new("fixed", 100, 0);

	say("unregister: %s", name_of(reg(IORING_UNREGISTER_BUFFERS, NULL, 0)));
	Q(1, 0, read_fixed, fd, memory, 10, 0, 0);
	look("without", 1);
	say("bad: %s", name_of(reg(IORING_REGISTER_BUFFERS, &none, 1)));
	say("register: %s", name_of(reg(IORING_REGISTER_BUFFERS, iov, 2)));
	say("again: %s", name_of(reg(IORING_REGISTER_BUFFERS, iov, 2)));
	Q(2, 0, read_fixed, fd, memory + 10, 10, 5, 0);
	look("read", 1);
	say("%.10s", memory + 10);
	Q(3, 0, read_fixed, fd, memory + 4000, 200, 0, 0);
	look("beyond", 1);
	Q(4, 0, read_fixed, fd, memory + 4096, 10, 0, 0);
	look("another's", 1);
	Q(5, 0, read_fixed, fd, memory, 10, 0, 2);
	look("no such buffer", 1);
	Q(6, 0, write_fixed, fd, memory + 10, 10, 0, 0);
	look("write", 1);
	Q(7, L, read_fixed, fd, memory, 200, 0, 0);
	nop(8, 0);
	look("short", 2);
	say("unregister: %s", name_of(reg(IORING_UNREGISTER_BUFFERS, NULL, 0)));
}

static void provided(void)
{
	static char memory[8][16];
	int s[2], d[2], fd = file_new("provided", 20, 0);
	char b[16];

	pair_new(s, SOCK_STREAM);
	pair_new(d, SOCK_DGRAM);
	Q(1, 0, provide_buffers, memory, 16, 4, 7, 10);
	look("provide", 1);
	put(s[1], 5);
	QB(2, 7, recv, s[0], NULL, 0, 0);
	look("receive", 1);
	QB(3, 7, recv, s[0], NULL, 3, 0);
	look("waits", 0);
	put(s[1], 5);
	look("3 of 5", 1);
	drain_fd(s[0], 2);
	QB(4, 8, recv, s[0], NULL, 0, 0);
	look("no such group", 1);
	QB(5, 7, read, fd, NULL, 0, 0);
	look("file", 1);
	QB(6, 7, read, fd, NULL, 0, 100);
	look("its end", 1);
	QB(7, 7, recv_multishot, d[0], NULL, 0, 0);
	look("multishot", 0);
	put(d[1], 9);
	look("1", 1);
	put(d[1], 9);
	look("none is left", 1);
	drain_fd(d[0], 9);
	Q(8, 0, provide_buffers, memory, 16, 2, 7, 0);
	look("provide", 1);
	QB(9, 7, recv_multishot, s[0], NULL, 0, 0);
	put(s[1], 3);
	look("multishot", 1);
	shutdown(s[1], SHUT_WR);
	look("end", 1);
	Q(10, 0, recv_multishot, d[0], b, 16, 0);
	look("without buffers", 1);
	Q(11, 0, remove_buffers, 5, 7);
	look("remove", 1);
	Q(12, 0, remove_buffers, 5, 9);
	look("no such group", 1);
	Q(13, 0, provide_buffers, memory, 16, 2, 7, 65535);
	look("too high a number", 1);
	Q(14, IOSQE_BUFFER_SELECT, write, fd, NULL, 0, 0);
	look("write", 1);
}

/* Newer than liburing 2.3. */
static struct io_uring_sqe *newer(unsigned user_data, int opcode, int fd, void *addr, unsigned len)
{
	struct io_uring_sqe *sqe = sqe_next(user_data);

	io_uring_prep_rw(opcode, sqe, fd, addr, len, 0);
	sqe->user_data = user_data;
	return sqe;
}

/* In a thread: a file that is not in the page cache, reads that stand behind a write, errors. */
static void provided_to_threads(void)
{
	static char memory[8][4096], bytes[4096];
	int fd[4], d = open(folder, O_RDONLY | O_DIRECTORY), s[2];
	char name[16];

	pair_new(s, SOCK_STREAM);
	Q(1, 0, provide_buffers, memory, 4096, 8, 7, 0);
	look("provide", 1);
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "cold%d", i);
		fd[i] = file_new(name, 0, 0);
		memset(bytes, 'a' + i, sizeof(bytes));
		if (write(fd[i], bytes, sizeof(bytes)) != sizeof(bytes) || fsync(fd[i]) ||
		    posix_fadvise(fd[i], 0, 0, POSIX_FADV_DONTNEED))
			die("cold");
		lseek(fd[i], 0, SEEK_SET);
	}
	sort_answers = hide_buffers = true; /* which of them is first is a matter of luck */
	for (unsigned i = 0; i < 4; i++)
		QB(2 + i, 7, read, fd[i], NULL, 0, 0);
	look("cold files", 4);
	for (unsigned i = 0; i < 4; i++) {
		const char *got = memory[n_buffer[2 + i]];

		say("%d: %c, all: %d", i, got[0], !memcmp(got, got + 1, 4095));
	}
	Q(6, 0, write, fd[0], bytes, sizeof(bytes), 4096);
	QB(7, 7, read, fd[0], NULL, 100, -1);
	look("behind a write", 2);
	QB(8, 7, read, d, NULL, 0, 0);
	look("a directory", 1);
	QB(9, 7, recv, s[0], NULL, 0, 0);
	put(s[1], 5);
	look("the next", 1);
	hide_buffers = false;
	Q(10, 0, remove_buffers, 9, 7);
	look("left", 1);
	QB(11, 7, read, fd[1], NULL, 0, 0);
	look("none", 1);
	newer(12, 49, fd[1], NULL, 0)->flags = IOSQE_BUFFER_SELECT;
	look("multishot", 1);
}

static void buffer_rings(void)
{
	static char memory[8][16];
	struct io_uring_buf_ring *r = aligned_alloc(4096, 4096);
	struct io_uring_buf_reg told = {.ring_addr = (uintptr_t)r, .ring_entries = 8, .bgid = 3};
	int s[2];

	memset(r, 0, 4096);
	pair_new(s, SOCK_STREAM);
	say("unregister: %s", name_of(reg(23, &told, 1)));
	say("register: %s", name_of(reg(22, &told, 1)));
	say("again: %s", name_of(reg(22, &told, 1)));
	told.ring_entries = 7;
	say("odd: %s", name_of(reg(22, &told, 1)));
	QB(1, 3, recv, s[0], NULL, 0, 0);
	put(s[1], 4);
	look("empty", 1);
	for (int i = 0; i < 2; i++)
		io_uring_buf_ring_add(r, memory[i], 16, (unsigned short)(20 + i), 7, i);
	io_uring_buf_ring_advance(r, 2);
	QB(2, 3, recv, s[0], NULL, 0, 0);
	look("one", 1);
	QB(3, 3, recv_multishot, s[0], NULL, 0, 0);
	look("waits", 0);
	put(s[1], 4);
	look("another", 1);
	put(s[1], 4);
	look("none is left", 1);
	Q(4, 0, provide_buffers, memory, 16, 1, 3, 0);
	look("provide to a ring", 1);
	say("unregister: %s", name_of(reg(23, &told, 1)));
	free(r);
}

static void zero_copy(void)
{
	static char bytes[1000];
	int t[2], s[2], p[2];

	tcp_new(t);
	pair_new(s, SOCK_STREAM);
	pipe_new(p, 0);
	Q(1, 0, send_zc, t[0], bytes, 1000, 0, 0);
	look("TCP", 2);
	drain_fd(t[1], 1000);
	Q(2, 0, send_zc, s[0], bytes, 1000, 0, 0);
	look("AF_UNIX", 2);
	Q(3, 0, send_zc, p[1], bytes, 1000, 0, 0);
	look("pipe", 2);
}

static void other_ops(void)
{
	struct epoll_event event = {.events = EPOLLIN}, got[4];
	int e = epoll_create1(0), p[2], q[2], fd = file_new("xattr", 1, 0);
	struct io_uring_sqe *sqe;
	char value[16] = "";
	siginfo_t info = {0};
	pid_t pid;

	pipe_new(p, 0);
	pipe_new(q, 0);
	epoll_ctl(e, EPOLL_CTL_ADD, p[0], &event);
	newer(1, 59, e, got, 4);
	look("epoll_wait", 0);
	put(p[1], 1);
	look("event", 1);
	Q(2, 0, fsetxattr, fd, "user.one", "two", 0, 3);
	look("fsetxattr", 1);
	Q(3, 0, fgetxattr, fd, "user.one", value, sizeof(value));
	look(value, 1);
	say("%s", value);
	Q(4, 0, getxattr, "user.none", value, path_of("xattr"), sizeof(value));
	look("none", 1);
	Q(5, 0, setxattr, "user.three", "four", path_of("xattr"), XATTR_CREATE, 4);
	look("setxattr", 1);
	Q(6, 0, setxattr, "user.three", "four", path_of("xattr"), XATTR_CREATE, 4);
	look("again", 1);
	pid = fork();
	if (pid == 0) { /* until it is told */
		if (read(q[0], value, 1) != 1)
			die("child");
		_exit(3);
	}
	sqe = newer(7, 50, pid, NULL, P_PID);
	sqe->addr2 = (uintptr_t)&info;
	sqe->file_index = WEXITED;
	look("waitid", 0);
	put(q[1], 1);
	look("end", 1);
	say("status %d", info.si_status);
	newer(8, 50, pid, NULL, P_PID)->file_index = WEXITED;
	look("no child", 1);
}

/* ---- Files ---- */

static void files(void)
{
	struct statx st = {0};
	struct { __u64 flags, mode, resolve; } how = {O_RDWR | O_CREAT, 0600, 0};
	int d = open(folder, O_RDONLY | O_DIRECTORY), fd, p[2], s[2];
	char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	pair_new(s, SOCK_STREAM);
	hide_fds = true;
	Q(1, 0, openat, d, "one", O_RDWR | O_CREAT | O_EXCL, 0600);
	look("create", 1);
	fd = last[1];
	Q(2, 0, openat, d, "one", O_RDWR | O_CREAT | O_EXCL, 0600);
	look("again", 1);
	Q(3, 0, openat, AT_FDCWD, folder, O_RDWR, 0);
	look("directory", 1);
	Q(4, 0, openat, AT_FDCWD, "", O_RDONLY, 0);
	look("empty path", 1);
	Q(5, 0, openat2, d, "two", (void *)&how);
	look("openat2", 1);
	say("NONBLOCK %d", !!(fcntl(last[5], F_GETFL) & O_NONBLOCK));
	how.resolve = 1 << 20;
	Q(6, 0, openat2, d, "two", (void *)&how);
	look("resolve", 1);
	Q(7, 0, openat2, d, "two", (void *)&how);
	LAST->len = 8;
	look("short how", 1);
	hide_fds = false;
	Q(8, 0, statx, d, "one", 0, STATX_SIZE, &st);
	look("statx", 1);
	Q(9, 0, statx, d, "nothing", 0, STATX_SIZE, &st);
	look("ENOENT", 1);
	Q(10, 0, statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st);
	look("EMPTY_PATH", 1);
	Q(11, 0, statx, d, "one", 0, STATX_SIZE, (void *)8);
	look("EFAULT", 1);
	Q(12, 0, fallocate, fd, 0, 0, 10000);
	look("fallocate", 1);
	nop(13, 0);
	io_uring_prep_rw(55, LAST, fd, NULL, 0, 5);
	LAST->user_data = 13;
	look("ftruncate", 1);
	fstat(fd, &(struct stat){0});
	say("size %d", (int)lseek(fd, 0, SEEK_END));
	Q(14, 0, fsync, fd, 0);
	Q(15, 0, fsync, fd, IORING_FSYNC_DATASYNC);
	Q(16, 0, sync_file_range, fd, 0, 0, 0);
	Q(17, 0, fadvise, fd, 0, 0, POSIX_FADV_WILLNEED);
	Q(18, 0, madvise, m, 4096, MADV_DONTNEED);
	Q(19, 0, madvise, m + 1, 4096, MADV_DONTNEED);
	sort_answers = true;
	look("fsync, advice", 6);
	pipe_new(p, 0);
	Q(20, 0, fadvise, p[0], 0, 0, POSIX_FADV_WILLNEED);
	look("fadvise of a pipe", 1);
	Q(21, 0, fsync, p[0], 0);
	look("fsync of a pipe", 1);
	Q(22, 0, mkdirat, d, "dir", 0700);
	look("mkdir", 1);
	Q(23, 0, mkdirat, d, "dir", 0700);
	look("again", 1);
	Q(24, 0, symlinkat, "one", d, "link");
	look("symlink", 1);
	Q(25, 0, linkat, d, "one", d, "hard", 0);
	look("link", 1);
	Q(26, 0, renameat, d, "hard", d, "soft", 0);
	look("rename", 1);
	Q(27, 0, renameat, d, "one", d, "two", 1);
	look("NOREPLACE", 1);
	Q(28, 0, unlinkat, d, "dir", 0);
	look("unlink a directory", 1);
	Q(29, 0, unlinkat, d, "dir", AT_REMOVEDIR);
	look("REMOVEDIR", 1);
	Q(30, 0, unlinkat, d, "link", 0x10000000);
	look("flags", 1);
	Q(31, 0, unlinkat, d, "nothing", 0);
	look("ENOENT", 1);
	Q(32, 0, close, fd);
	look("close", 1);
	Q(33, 0, close, fd);
	look("again", 1);
	Q(34, 0, close, p[0]);
	look("a pipe", 1);
	Q(35, 0, close, p[1]);
	LAST->off = 1;
	look("off", 1);
	Q(36, 0, close, io.ring_fd);
	look("the ring", 1);
	Q(37, IOSQE_FIXED_FILE, read, 0, buf, 1, 0);
	look("FIXED_FILE", 1);
	Q(38, 0, read_fixed, p[1], buf, 1, 0, 0);
	look("READ_FIXED", 1);
	nop(39, IOSQE_BUFFER_SELECT);
	look("BUFFER_SELECT nop", 1);
	Q(40, IOSQE_BUFFER_SELECT, recv, s[1], NULL, 1, 0);
	look("BUFFER_SELECT recv", 1);
	Q(41, 0, openat_direct, d, "one", O_RDONLY, 0, 3);
	look("direct", 1);
}

static void fifos(void)
{
	const char *path = path_of("fifo");
	int fd;

	hide_fds = true;
	mkfifo(path, 0600);
	Q(1, 0, openat, AT_FDCWD, path, O_WRONLY, 0);
	look("O_WRONLY", 1);
	Q(2, 0, openat, AT_FDCWD, path, O_RDONLY, 0);
	look("O_RDONLY", 1);
	say("NONBLOCK %d", !!(fcntl(last[2], F_GETFL) & O_NONBLOCK));
	Q(3, 0, openat, AT_FDCWD, path, O_WRONLY, 0);
	look("with a reader", 1);
	close(last[2]);
	close(last[3]);
	Q(4, A, openat, AT_FDCWD, path, O_RDONLY, 0);
	look("ASYNC O_RDONLY", 0);
	fd = open(path, O_WRONLY);
	look("a writer", 1);
	put(fd, 3);
	Q(5, 0, read, last[4], buf, 9, 0);
	hide_fds = false;
	look("read", 1);
	hide_fds = true;
	close(fd);
	close(last[4]);
	Q(6, A, openat, AT_FDCWD, path, O_WRONLY, 0);
	look("ASYNC O_WRONLY", 0);
	fd = open(path, O_RDONLY | O_NONBLOCK); /* else it may wait for this thread's next enter */
	look("a reader", 1);
	close(fd);
	close(last[6]);
	Q(7, A, openat, AT_FDCWD, path, O_RDWR, 0);
	look("O_RDWR", 1);
	close(last[7]);
	Q(8, 0, openat, AT_FDCWD, path, O_WRONLY | O_TRUNC, 0);
	look("O_TRUNC", 0);
	fd = open(path, O_RDONLY | O_NONBLOCK);
	look("a reader", 1);
	Q(9, 0, openat, AT_FDCWD, path, O_RDONLY | O_NONBLOCK, 0);
	look("O_NONBLOCK", 1);
	say("NONBLOCK %d", !!(fcntl(last[9], F_GETFL) & O_NONBLOCK));
}

static void splices(void)
{
	int a[2], b[2], fd = file_new("splice", 100, 0), s[2];

	pipe_new(a, 0);
	pipe_new(b, 0);
	put(a[1], 5);
	Q(1, 0, splice, a[0], -1, b[1], -1, 10, 0);
	look("pipe to pipe", 1);
	Q(2, 0, tee, b[0], a[1], 10, 0);
	look("tee", 1);
	drain_fd(a[0], 100);
	Q(3, 0, splice, a[0], -1, b[1], -1, 10, 0);
	look("empty", 0);
	put(a[1], 5);
	look("5", 1);
	Q(4, 0, splice, a[0], -1, b[1], -1, 10, SPLICE_F_NONBLOCK);
	look("NONBLOCK, empty", 1);
	Q(5, L, splice, fd, 0, b[1], -1, 10, 0);
	nop(6, 0);
	look("file to pipe", 2);
	Q(7, L, splice, fd, 95, b[1], -1, 10, 0);
	nop(8, 0);
	look("short", 2);
	Q(9, 0, splice, b[0], -1, fd, 100, 10, 0);
	look("pipe to file", 1);
	Q(10, 0, splice, fd, 0, 1, 0, 10, 0);
	LAST->fd = fd;
	look("file to file", 1);
	Q(11, 0, splice, 999, 0, b[1], -1, 10, 0);
	look("bad fd", 1);
	pair_new(s, SOCK_STREAM);
	Q(12, 0, splice, s[0], -1, a[1], -1, 10, 0);
	look("socket", 0);
	put(s[1], 7);
	look("7", 1);
	Q(13, 0, splice, a[0], -1, s[0], -1, 10, 0);
	look("to a socket", 1);
	Q(14, 0, splice, a[0], -1, b[1], -1, 10, 0x1000);
	look("flags", 1);
	Q(15, 0, splice, a[0], -1, b[1], -1, 0, 0);
	look("0", 1);
}

static void makers(void)
{
	int e = epoll_create1(0), p[2] = {-1, -1}, fd;
	struct epoll_event event = {.events = EPOLLIN};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};

	hide_fds = true;
	Q(1, 0, socket, AF_INET, SOCK_STREAM, 0, 0);
	look("socket", 1);
	fd = last[1];
	hide_fds = false;
	Q(2, 0, socket, 9999, SOCK_STREAM, 0, 0);
	look("family", 1);
	nop(3, 0);
	io_uring_prep_rw(56, LAST, fd, &to, 0, sizeof(to));
	LAST->user_data = 3;
	look("bind", 1);
	nop(4, 0);
	io_uring_prep_rw(57, LAST, fd, NULL, 5, 0);
	LAST->user_data = 4;
	look("listen", 1);
	nop(5, 0);
	io_uring_prep_rw(62, LAST, 0, p, 0, 0);
	LAST->user_data = 5;
	LAST->rw_flags = O_CLOEXEC;
	look("pipe", 1);
	say("pipe %d", p[0] > 2 && p[1] > 2);
	Q(6, 0, epoll_ctl, e, p[0], EPOLL_CTL_ADD, &event);
	look("epoll_ctl", 1);
	Q(7, 0, epoll_ctl, e, p[0], EPOLL_CTL_ADD, &event);
	look("again", 1);
	Q(8, 0, epoll_ctl, e, p[0], EPOLL_CTL_DEL, NULL);
	look("DEL", 1);
}

/* ---- The ring itself ---- */

static void overflow(void)
{
	unsigned n_entries = io.cq.ring_entries, n = 3 * n_entries, head;
	bool was = false;

	for (unsigned i = 0; i < n; i++) {
		nop(i, 0);
		submit(1, 0);
	}
	was = *io.sq.kflags & IORING_SQ_CQ_OVERFLOW;
	say("flag %d, dropped %u, ready %d", was, *io.cq.koverflow,
	    *io.cq.ktail - *io.cq.khead == n_entries);
	for (unsigned i = 0; i < n;) {
		backend->enter(&io, 0, 1, IORING_ENTER_GETEVENTS, NULL, _NSIG / 8);
		for (head = *io.cq.khead; head != *io.cq.ktail; head++, i++)
			if (io.cq.cqes[head & io.cq.ring_mask].user_data != i)
				say("wrong order at %u", i);
		*io.cq.khead = head;
	}
	say("flag %d", !!(*io.sq.kflags & IORING_SQ_CQ_OVERFLOW));
}

static void on_alarm(int signal) { (void)signal; }

static void entering(void)
{
	struct sigaction action = {.sa_handler = on_alarm};
	struct __kernel_timespec ts = {.tv_nsec = 5000000}, bad = {.tv_sec = -1};
	struct io_uring_getevents_arg arg = {.ts = (uintptr_t)&ts};
	uint64_t memory[80] = {0};
	struct io_uring_probe *probe = (void *)memory;
	unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
	struct pollfd fd = {.fd = io.ring_fd, .events = POLLIN};
	uint64_t before = now_ms();
	int p[2];

	say("timeout: %s", name_of(backend->enter(&io, 0, 1, flags, &arg, sizeof(arg))));
	say("early: %d", now_ms() < before + 4);
	say("min 0: %s", name_of(backend->enter(&io, 0, 0, flags, &arg, sizeof(arg))));
	say("size: %s", name_of(backend->enter(&io, 0, 1, flags, &arg, 3)));
	arg.ts = (uintptr_t)&bad;
	sigaction(SIGALRM, &action, NULL);
	ualarm(5000, 0);
	flags = IORING_ENTER_GETEVENTS;
	say("signal: %s", name_of(backend->enter(&io, 0, 1, flags, NULL, _NSIG / 8)));
	say("flags: %s", name_of(backend->enter(&io, 0, 0, 1 << 20, NULL, 0)));
	say("probe: %s", name_of(backend->reg(&io, IORING_REGISTER_PROBE, probe, 64)));
	say("unregister: %s", name_of(backend->reg(&io, IORING_UNREGISTER_EVENTFD, NULL, 0)));
	say("unregister: %s", name_of(backend->reg(&io, IORING_UNREGISTER_FILES, NULL, 0)));
	for (unsigned i = 0; i <= IORING_OP_SHUTDOWN; i++)
		if (i != 20 && i != 31 && i != 32 && !(probe->ops[i].flags & 1))
			say("no opcode %u", i);
	pipe_new(p, 0);
	Q(1, 0, read, p[0], buf, 8, 0);
	look("a read", 0);
	say("ring_fd: %d", poll(&fd, 1, 0));
	put(p[1], 1);
	say("ring_fd: %d", poll(&fd, 1, 100));
	look("a read", 1);
	Q(2, 0, fsync, file_new("ring", 3, 0), 0);
	submit(1, 0);
	say("ring_fd: %d", poll(&fd, 1, 1000));
	look("fsync", 1);
	ts.tv_nsec = 1000000;
	Q(3, 0, timeout, &ts, 0, 0);
	submit(1, 0);
	say("ring_fd: %d", poll(&fd, 1, 1000));
	look("timeout", 1);
}

/* The SQE's parameters may change once it was submitted. */
static void stable(void)
{
	char path[64] = "/tmp", *second = path + 32;
	struct statx st;
	int p[2];
	struct iovec iov[2] = {{buf, 2}, {buf + 10, 2}};

	pipe_new(p, 0);
	Q(1, L, readv, p[0], iov, 2, 0);
	Q(2, 0, statx, AT_FDCWD, path, 0, STATX_SIZE, &st);
	look("submitted", 0);
	memset(iov, 0, sizeof(iov));
	memset(path, '?', sizeof(path) - 1);
	(void)second;
	put(p[1], 4);
	look("changed", 2);
}

/* Many at once: threads, and one writer after another. */
static void many(void)
{
	int fd = file_new("many", 0, 0);
	struct stat st;
	unsigned n = 0;

	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 50; i++, n++) {
			if (i % 5 == 4)
				Q(n, 0, openat, AT_FDCWD, "/dev/null", O_RDONLY, 0);
			else
				Q(n, 0, write, fd, buf, 100, -1);
		}
		hide_fds = sort_answers = true;
		look("", 50);
	}
	fstat(fd, &st);
	say("size %d", (int)st.st_size);
}

/* Without memory enter takes no SQE, and loses none. */
static void no_memory(void)
{
	static char path[512];
	unsigned n_short = 0;
	int p[2];

	memset(path, '/', sizeof(path) - 1); /* too long for the request itself */
	pipe_new(p, 0);
	hide_fds = sort_answers = true;
	for (unsigned i = 0; i < 60; i += 4) {
		nop(i, L);
		Q(i + 1, L, openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
		nop(i + 2, 0);
		Q(i + 3, 0, read, p[0], buf, 1, 0);
	}
	while (n_queued) {
		int ret;

		n_allocations = n_short % 3;
		ret = submit(n_queued, IORING_ENTER_GETEVENTS);
		if (ret < 0 && ret != -EAGAIN)
			say("enter: %s", name_of(ret));
		n_short++;
	}
	n_allocations = -1;
	say("short: %d", backend == &ring || n_short > 5);
	close(p[1]);
	look("all", 60);
}

/* With none to be had: an error, and the next one tries again. With one: all is done. */
static void threads(void)
{
	int fd = file_new("threads", 0, 0);
	bool refuses = backend != &ring;

	n_threads = 0;
	Q(1, L, fsync, fd, 0);
	nop(2, 0);
	Q(3, 0, write, fd, "a", 1, -1);
	Q(4, 0, write, fd, "b", 1, -1);
	sort_answers = true;
	if (refuses) { /* the kernel has threads */
		look("none", 4);
		say("%d %d %d %d", last[1] == -EAGAIN, last[2] == -ECANCELED, last[3] == -EAGAIN,
		    last[4] == -EAGAIN);
		n_threads = 1;
	} else {
		say("%-32s [1] -EAGAIN [2] -ECANCELED [3] -EAGAIN [4] -EAGAIN", "none");
		n_queued = 0;
		io.sq.sqe_tail = *io.sq.ktail;
		say("1 1 1 1");
	}
	for (unsigned i = 10; i < 40; i++)
		Q(i, 0, fsync, fd, 0);
	Q(40, A, openat, AT_FDCWD, folder, O_RDONLY, 0);
	hide_fds = true;
	look("one", 31);
}

/* ---- What is registered, and how a ring is set up ---- */

static void restrict_to(const char *label, const struct io_uring_restriction *items, unsigned n)
{
	say("%s: %s", label, name_of(reg(IORING_REGISTER_RESTRICTIONS, items, n)));
}

static void restricted(void)
{
	const struct io_uring_restriction items[] = {
		{.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_PROBE},
		{.opcode = IORING_RESTRICTION_REGISTER_OP,
		 .register_op = IORING_REGISTER_ENABLE_RINGS},
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP},
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_TIMEOUT},
		{.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = L},
		{.opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = A},
	};
	const struct io_uring_restriction odd = {.opcode = 77},
		no_such_op = {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = 255},
		no_such_register = {.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = 255};
	uint64_t memory[80] = {0};
	unsigned limits[2] = {0};

	restrict_to("an open ring", items, 6);
	restart(setup_flags | IORING_SETUP_R_DISABLED);
	nop(1, A);
	say("enter, disabled: %s", name_of(submit(1, 0)));
	restrict_to("odd", &odd, 1);
	restrict_to("no such opcode", &no_such_op, 1);
	restrict_to("no such register opcode", &no_such_register, 1);
	say("free before: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2)));
	restrict_to("given", items, 6);
	restrict_to("twice", items, 6);
	say("enable: %s", name_of(reg(IORING_REGISTER_ENABLE_RINGS, NULL, 0)));
	restrict_to("enabled", items, 6);
	say("again: %s", name_of(reg(IORING_REGISTER_ENABLE_RINGS, NULL, 0)));
	look("the nop", 1);
	say("probe: %s", name_of(reg(IORING_REGISTER_PROBE, memory, 8)));
	say("limits: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2)));
	say("eventfd: %s", name_of(reg(IORING_UNREGISTER_EVENTFD, NULL, 0)));
	Q(2, A, read, 0, buf, 1, 0);
	look("an opcode", 1);
	nop(3, 0);
	look("without what is required", 1);
	nop(4, A | H);
	look("a flag", 1);
	nop(5, A | L);
	Q(6, A, read, 0, buf, 1, 0);
	look("in a chain", 2);
	nop(7, A | L);
	nop(8, A);
	look("allowed", 2);
	nop(9, A);
	LAST->opcode = 200;
	look("no opcode", 1);
	nop(10, A | 0x80);
	look("no flag", 1);

	restart(setup_flags);
	say("enable: %s", name_of(reg(IORING_REGISTER_ENABLE_RINGS, NULL, 0)));
	nop(1, 0);
	look("without restrictions", 1);
	restart(setup_flags);
	restrict_to("none", items, 0);
	say("enable: %s", name_of(reg(IORING_REGISTER_ENABLE_RINGS, NULL, 0)));
	restart(setup_flags & ~IORING_SETUP_R_DISABLED);
	say("enable: %s", name_of(reg(IORING_REGISTER_ENABLE_RINGS, NULL, 0)));
}

static void limits(void)
{
	unsigned want[2] = {1, 1}, got[2] = {0};
	int fd = file_new("limits", 0, 0);

	say("n: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, want, 1)));
	say("one: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, want, 2)));
	say("ask: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, got, 2)));
	say("%u", got[0]);
	sort_answers = true;
	for (unsigned i = 0; i < 30; i++)
		Q(i, 0, fsync, fd, 0);
	look("one thread", 30);
	must(n_started <= 1, "%u threads", n_started);
	want[0] = 2;
	say("two: %s", name_of(reg(IORING_REGISTER_IOWQ_MAX_WORKERS, want, 2)));
	say("were %u", want[0]);
	for (unsigned i = 0; i < 30; i++)
		Q(i, 0, fsync, fd, 0);
	look("two threads", 30);
	must(n_started <= 2, "%u threads", n_started);
	must(backend == &ring || n_blocking(SIGUSR1) == n_blocking(0), "SIGUSR1 comes");
	must(backend == &ring || n_blocking(SIGSEGV) == 0, "SIGSEGV is blocked");
}

/* The engine's opcodes are some of the kernel's; an SQE with another one says -EINVAL. */
static void probes(void)
{
	uint64_t memory[2][300] = {{0}};
	struct io_uring_probe *probe = (void *)memory[0], *kernel = (void *)memory[1];
	struct io_uring real;

	say("8: %s", name_of(reg(IORING_REGISTER_PROBE, probe, 8)));
	say("ops_len %u, %u %u", probe->ops_len, probe->ops[7].op, probe->ops[8].op);
	memset(memory, 0, sizeof(memory));
	say("0: %s", name_of(reg(IORING_REGISTER_PROBE, probe, 0)));
	memset(memory, 0, sizeof(memory));
	probe->ops_len = 1;
	say("not zero: %s", name_of(reg(IORING_REGISTER_PROBE, probe, 8)));
	memset(memory, 0, sizeof(memory));
	say("257: %s", name_of(reg(IORING_REGISTER_PROBE, probe, 257)));
	memset(memory, 0, sizeof(memory));
	say("256: %s", name_of(reg(IORING_REGISTER_PROBE, probe, 256)));
	if (backend == &ring)
		return;
	if (io_uring_queue_init(1, &real, 0) ||
	    io_uring_register((unsigned)real.ring_fd, IORING_REGISTER_PROBE, kernel, 256))
		die("the kernel's probe");
	for (unsigned i = 0; i < probe->ops_len; i++)
		must(!(probe->ops[i].flags & ~kernel->ops[i].flags), "the kernel knows no %u", i);
	for (unsigned i = 0; i < 256; i++) {
		bool known = i < probe->ops_len && probe->ops[i].flags & IO_URING_OP_SUPPORTED;
		int res;

		if (i == IORING_OP_RECVMSG || i == IORING_OP_READV)
			continue; /* these look at their address or length first */
		nop(1, IOSQE_BUFFER_SELECT); /* a known opcode has none, or takes none */
		LAST->opcode = (unsigned char)i;
		submit(1, IORING_ENTER_GETEVENTS);
		must(*io.cq.ktail - *io.cq.khead == 1, "opcode %u", i);
		res = io.cq.cqes[*io.cq.khead & io.cq.ring_mask].res;
		*io.cq.khead = *io.cq.ktail;
		must(known ? res == -EOPNOTSUPP || res == -ENOBUFS : res == -EINVAL,
		     "opcode %u: %s", i, name_of(res));
	}
	io_uring_queue_exit(&real);
}

static void signalled(const char *label, int fd)
{
	uint64_t n = 0;

	if (read(fd, &n, 8) != 8)
		n = 0;
	say("%s: %d", label, (int)n);
}

static void eventfds(void)
{
	int e = eventfd(0, EFD_NONBLOCK), other = dup(e), p[2], bad = 999;

	pipe_new(p, O_NONBLOCK);
	say("n: %s", name_of(reg(IORING_REGISTER_EVENTFD, &e, 2)));
	say("bad: %s", name_of(reg(IORING_REGISTER_EVENTFD, &bad, 1)));
	say("none: %s", name_of(reg(IORING_UNREGISTER_EVENTFD, NULL, 0)));
	say("register: %s", name_of(reg(IORING_REGISTER_EVENTFD, &e, 1)));
	say("again: %s", name_of(reg(IORING_REGISTER_EVENTFD, &e, 1)));
	for (unsigned i = 1; i <= 3; i++)
		nop(i, 0);
	submit(3, 0);
	signalled("a batch", other);
	look("three", 3);
	signalled("looked", other);
	Q(4, 0, read, p[0], buf, 8, 0);
	look("a read", 0);
	signalled("pending", other);
	put(p[1], 1);
	look("a read", 1);
	signalled("done", other);
	Q(5, 0, fsync, file_new("eventfd", 1, 0), 0);
	look("fsync", 1);
	signalled("done", other);
	__atomic_or_fetch(io.cq.kflags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
	nop(6, 0);
	look("disabled", 1);
	signalled("disabled", other);
	__atomic_and_fetch(io.cq.kflags, ~IORING_CQ_EVENTFD_DISABLED, __ATOMIC_RELAXED);
	nop(7, 0);
	look("enabled", 1);
	signalled("enabled", other);
	say("unregister: %s", name_of(reg(IORING_UNREGISTER_EVENTFD, NULL, 0)));
	say("again: %s", name_of(reg(IORING_UNREGISTER_EVENTFD, NULL, 0)));
	nop(8, 0);
	look("unregistered", 1);
	signalled("unregistered", other);

	/* The program may close it, and use its number for something else. */
	say("register: %s", name_of(reg(IORING_REGISTER_EVENTFD, &e, 1)));
	dup2(p[1], e);
	nop(9, 0);
	look("closed", 1);
	signalled("closed", other);
	say("in the pipe: %d", (int)read(p[0], buf, 9));
}

/* Each combination of the flags that the engine knows, and sizes. */
static void setups(void)
{
	static const unsigned flags[] = {
		IORING_SETUP_SUBMIT_ALL, IORING_SETUP_COOP_TASKRUN, IORING_SETUP_TASKRUN_FLAG,
		1U << 12 /* SINGLE_ISSUER */, 1U << 13 /* DEFER_TASKRUN */,
		IORING_SETUP_R_DISABLED, IORING_SETUP_CLAMP, IORING_SETUP_CQSIZE};
	static const unsigned sizes[][2] = {
		{1, 1}, {3, 0}, {3, 2}, {3, 5}, {0, 4}, {32768, 1}, {40000, 65536}, {7, 70000}};
	struct io_uring other;

	end();
	for (unsigned i = 0; i < 256 + 32; i++) {
		const unsigned *size = sizes[i < 256 ? 0 : i % 8];
		struct io_uring_params params = {.cq_entries = i < 256 ? 8 : size[1]};
		unsigned set = i < 256 ? i : (i - 256) / 8 << 6;
		int ret;

		for (unsigned j = 0; j < 8; j++)
			params.flags |= set >> j & 1 ? flags[j] : 0;
		for (unsigned n = 0; n < 10; n++) { /* the kernel's memory comes back late */
			ret = backend->open(i < 256 ? 4 : size[0], &other, &params);
			if (ret != -ENOMEM)
				break;
			usleep(10000);
		}
		say("%x %u %u: %s", params.flags, i < 256 ? 4 : size[0], size[1], name_of(ret));
		if (ret < 0)
			continue;
		say("%u %u", params.sq_entries, params.cq_entries);
		backend->close(&other);
	}
}

/* ---- More than one, and numbers that are used again ---- */

static void two_rings(void)
{
	struct io_uring first;
	int p[2], q[2], fd = file_new("two", 0, 0);

	pipe_new(p, 0);
	pipe_new(q, 0);
	Q(1, 0, read, p[0], buf, 1, 0);
	Q(2, 0, fsync, fd, 0);
	submit(n_queued, 0);
	first = io;
	start();
	Q(3, 0, poll_add, p[0], POLLIN);
	Q(4, 0, fsync, fd, 0);
	look("the second's fsync", 1);
	put(p[1], 1);
	look("the second's poll", 1);
	Q(5, 0, read, q[0], buf, 1, 0);
	Q(1000, 0, cancel64, 1, 0);
	look("the first's read from here", 1);
	end();
	io = first;
	is_open = true;
	sort_answers = true;
	look("both of the first", 2);
	put(p[1], 1);
	Q(6, 0, read, p[0], buf, 1, 0);
	look("goes on", 1);
}

/* A descriptor is closed while an op waits for it, and its number is used again. */
static void reused(void)
{
	int p[2], q[2];

	pipe_new(p, 0);
	pipe_new(q, 0);
	Q(1, 0, read, p[0], buf, 8, 0);
	look("waits", 0);
	put(p[1], 1);
	look("data", 1);
	close(p[0]);
	dup2(q[0], p[0]);
	Q(2, 0, read, p[0], buf, 8, 0);
	look("used again", 0);
	put(q[1], 1);
	look("data", 1);
	pipe_new(p, 0);
	Q(3, 0, poll_add, p[0], POLLPRI); /* it stays: HUP of the first pipe does not come */
	look("waits", 0);
	close(q[0]);
	pipe_new(q, 0);
	dup2(q[0], p[0]);
	Q(4, 0, poll_add, p[0], POLLIN);
	look("beside a wait for what was there", 0);
	put(q[1], 1);
	sort_answers = true;
	for (unsigned n = 0; n < 20 && !n_cqes[4]; n++)
		look("data", 0);
}

/* ---- The engine alone: the answers of the kernel are none ---- */

/* Takes n SQEs, and ends them, with no memory beside that which was reserved. */
static void reserved(void)
{
	unsigned n = 0, n_late = 0, sent = 0;
	struct iovec iov[4] = {{buf, 1}, {buf, 1}, {buf, 1}, {buf, 1}};
	int p[2], fd = file_new("reserved", 0, 0);

	if (backend == &ring)
		return;
	pair_new(p, SOCK_STREAM);
	must(backend->reserve(&io, 500) == 0, "500");
	must(backend->reserve(&io, 10) == 0, "less");
	n_allocations = 0;
	must(backend->reserve(&io, 100000) == -ENOMEM, "100000");
	must(backend->reserve(&io, 500) == 0, "what is there already");
	no_memory_left = true;
	while (sent < 500) {
		int ret;

		while (sent + n_queued < 500 && n_queued < entries) {
			unsigned i = sent + n_queued;

			switch (i % 5) {
			case 0: nop(i, i % 2 ? 0 : L); break;
			case 1: Q(i, 0, recv, p[0], buf, 1, 0); break;
			case 2: Q(i, 0, writev, fd, iov, 4, -1); break;
			case 3: Q(i, 0, openat, AT_FDCWD, folder, O_RDONLY | O_DIRECTORY, 0); break;
			case 4: Q(i, 0, poll_add, p[0], POLLPRI); break;
			}
		}
		ret = submit(n_queued, 0);
		must(ret > 0, "after %u: %s", sent, name_of(ret));
		if (ret <= 0)
			return;
		sent += (unsigned)ret;
	}
	must(n_refused == 1, "%u allocations", n_refused - 1);
	for (unsigned i = 0; i < 100; i++)
		put(p[1], 1);
	Q(1000, 0, cancel64, 0, IORING_ASYNC_CANCEL_ANY);
	for (uint64_t until = now_ms() + 5000; n < 501 && now_ms() < until;) {
		unsigned head = *io.cq.khead;

		submit(n_queued, IORING_ENTER_GETEVENTS);
		for (; head != *io.cq.ktail; head++, n++)
			n_late += io.cq.cqes[head & io.cq.ring_mask].res == -ENOMEM;
		__atomic_store_n(io.cq.khead, head, __ATOMIC_RELEASE);
	}
	must(n == 501 && !n_late, "%u of 501 completed, %u without memory", n, n_late);
	must(n_refused == 1, "%u allocations", n_refused - 1);
	no_memory_left = false;
}

static unsigned n_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}


/* Each n-th allocation fails: to open is an error; to submit takes less, and loses nothing. */
static void each_allocation(void)
{
	static char path[512];
	struct iovec iov[100];
	unsigned n, before;
	int p[2], ret;

	if (backend == &ring)
		return;
	end();
	before = n_fds();
	for (n = 0, ret = -1; ret < 0 && n < 100; n++) {
		n_allocations = n;
		n_refused = 0;
		ret = try_open();
		must(ret == (n_refused ? -ENOMEM : 0), "open: %s, %u refused", name_of(ret),
		     n_refused);
		must(ret == 0 || n_fds() == before, "descriptors after a failed open");
	}
	must(n > 5 && n < 100, "%u", n);
	memset(path, '/', sizeof(path) - 1);
	for (unsigned i = 0; i < 100; i++)
		iov[i] = (struct iovec){buf, 1};
	pipe_new(p, 0);
	for (n = 0, n_refused = 1; n_refused && n < 100; n++) {
		put(p[1], 392); /* what one turn reads */
		n_allocations = -1;
		restart(setup_flags);
		n_refused = 0;
		n_allocations = n;
		for (unsigned i = 0; i < 48; i += 3) {
			nop(i, L);
			Q(i + 1, 0, openat, AT_FDCWD, path, O_PATH, 0);
			Q(i + 2, 0, readv, p[0], iov, 2 + i, 0);
		}
		for (unsigned i = 0; i < 64 && n_queued; i++) {
			ret = submit(n_queued, IORING_ENTER_GETEVENTS);
			must(ret > 0 || ret == -EAGAIN, "enter: %s", name_of(ret));
		}
		must(!n_queued, "%u SQEs stay", n_queued);
		n_allocations = -1;
		memset(n_cqes, 0, sizeof(n_cqes));
		quiet = true;
		look("", 48);
		quiet = false;
		for (unsigned i = 0; i < 48; i++)
			must(n_cqes[i] == 1, "%u CQEs of %u at %u", n_cqes[i], i, n);
	}
	must(n > 10 && n < 100, "%u", n);
}

/* The n-th thread and all later ones are refused: only without any do ops fail. */
static void each_thread(void)
{
	int fd = file_new("each_thread", 0, 0);

	if (backend == &ring)
		return;
	for (int n = 0; n < 6; n++) {
		unsigned n_failed = 0, n_good = 0;

		restart(setup_flags);
		n_threads = n;
		memset(n_cqes, 0, sizeof(n_cqes));
		for (unsigned i = 0; i < 60; i++) {
			if (i % 2)
				Q(i, 0, fsync, fd, 0);
			else
				Q(i, 0, write, fd, buf, 1, -1);
		}
		quiet = true;
		look("", 60);
		for (unsigned i = 0; i < 60; i++) {
			must(n_cqes[i] == 1, "%u CQEs of %u with %d", n_cqes[i], i, n);
			n_failed += last[i] == -EAGAIN;
			n_good += last[i] >= 0;
		}
		must(n ? n_good == 60 : n_failed == 60, "%u failed with %d", n_failed, n);
		n_threads = -1;
		Q(1, 0, fsync, fd, 0);
		look("", 1);
		quiet = false;
		must(last[1] == 0, "then: %s", name_of(last[1]));
	}
}

/* The n-th descriptor is refused: to open is an error, and leaves none. */
static void each_descriptor(void)
{
	struct rlimit limit;
	struct __kernel_timespec ts = {.tv_nsec = 1000000};
	unsigned n, before;
	int next, ret = -1;

	if (backend == &ring)
		return;
	end();
	for (int fd = 3; fd < 1024; fd++) /* other cases' files: the numbers must have no holes */
		close(fd);
	before = n_fds();
	getrlimit(RLIMIT_NOFILE, &limit);
	next = dup(0);
	close(next);
	for (n = 0; ret < 0 && n < 10; n++) {
		limit.rlim_cur = (unsigned)next + n;
		setrlimit(RLIMIT_NOFILE, &limit);
		ret = try_open();
		must(ret == 0 || ret == -EMFILE, "open: %s", name_of(ret));
		must(ret == 0 || n_fds() == before, "%u left", n_fds() - before);
	}
	must(n > 2 && n < 10, "%u", n);
	quiet = true; /* now there is none left */
	Q(1, 0, timeout, &ts, 0, IORING_TIMEOUT_BOOTTIME);
	Q(2, 0, timeout, &ts, 0, 0);
	Q(3, 0, openat, AT_FDCWD, folder, O_RDONLY, 0);
	Q(4, 0, socket, AF_INET, SOCK_STREAM, 0, 0);
	look("", 4);
	must(last[1] == -EMFILE && last[2] == -ETIME && last[3] == -EMFILE && last[4] == -EMFILE,
	     "%d %d %d %d", last[1], last[2], last[3], last[4]);
	limit.rlim_cur = 1024;
	setrlimit(RLIMIT_NOFILE, &limit);
	Q(1, 0, timeout, &ts, 0, IORING_TIMEOUT_BOOTTIME);
	look("", 1);
	must(last[1] == -ETIME, "then: %s", name_of(last[1]));
}

/* A read that would wait for the disk is a thread's: RWF_NOWAIT does not help with O_DIRECT. */
static void direct(void)
{
	int fd = file_new("direct", 8192, 0), direct = open(path_of("direct"), O_RDONLY | O_DIRECT);
	char *aligned = aligned_alloc(4096, 8192);

	say("O_DIRECT %d", direct >= 0);
	if (direct < 0)
		return;
	fsync(fd);
	must(n_started == 0, "a thread too early");
	Q(1, 0, read, direct, aligned, 4096, 4096);
	submit(1, 0);
	must(backend == &ring || n_started == 1, "the caller reads");
	look("aligned", 1);
	say("%.4s", aligned);
	Q(2, 0, read, direct, aligned + 1, 100, 1);
	look("unaligned", 1);
	Q(3, 0, read, direct, aligned, 8192, -1);
	look("at -1", 1);
}

/*
 * A cancel comes while a thread works on the op, or has just worked on it. The cancel's result
 * depends on the moment. The op ends, and once.
 */
static void late_cancels(void)
{
	const char *path = path_of("late");

	if (backend == &ring)
		return;
	mkfifo(path, 0600);
	quiet = true;
	for (unsigned i = 0; i < 300; i++) {
		memset(n_cqes, 0, sizeof(n_cqes));
		Q(1, A, openat, AT_FDCWD, path, i % 3 ? O_RDONLY : O_WRONLY | O_TRUNC, 0);
		submit(1, 0);
		for (volatile unsigned n = 0; n < i % 60 * 1000; n++)
			;
		Q(2, 0, cancel64, 1, 0);
		look("", 2);
		must(n_cqes[1] == 1 && n_cqes[2] == 1, "%u and %u CQEs", n_cqes[1], n_cqes[2]);
		must(last[1] == -ECANCELED, "the op's end: %s", name_of(last[1]));
		must(!last[2] || last[2] == -EALREADY, "the cancel's: %s", name_of(last[2]));
		if (n_cqes[1] != 1)
			return;
	}
	quiet = false;
}

/* A forked child has no threads to wait for; what it closes are its copies. */
static void forked(void)
{
	int fd = file_new("forked", 0, 0), status;
	pid_t child;

	if (backend == &ring)
		return;
	quiet = true;
	Q(1, 0, fsync, fd, 0);
	look("", 1);
	child = fork();
	if (child == 0) {
		alarm(5);
		end();
		_exit(n_blocking(0));
	}
	waitpid(child, &status, 0);
	must(status == 0, "the child: %x", (unsigned)status);
	Q(2, 0, fsync, fd, 0);
	look("", 1);
	must(last[2] == 0, "the parent: %d", last[2]);
}

/* Closing with ops in every state: nothing is written afterwards, and nothing is left. */
static void closing(void)
{
	struct __kernel_timespec ten = {.tv_sec = 10};
	const char *path = path_of("closing-r"), *path2 = path_of("closing-w");
	int p[2], s[2], fd = file_new("closing", 0, 0);
	struct stat then, now;
	unsigned before;

	pipe_new(p, 0);
	pair_new(s, SOCK_STREAM);
	mkfifo(path, 0600);
	mkfifo(path2, 0600);
	end();
	before = n_fds();
	start();
	for (unsigned i = 0; i < 200; i++) { /* the CQ has room for 128 */
		nop(i, 0);
		submit(1, 0);
	}
	Q(1, 0, read, p[0], buf, 8, 0);
	Q(2, L, recv, s[0], buf, 8, MSG_WAITALL);
	nop(3, 0);
	Q(4, L, poll_add, p[0], POLLIN);
	Q(5, 0, link_timeout, &ten, 0);
	Q(6, 0, timeout, &ten, 0, 0);
	Q(7, A, openat, AT_FDCWD, path, O_RDONLY, 0);
	Q(8, L | A, openat, AT_FDCWD, path2, O_WRONLY, 0);
	Q(9, 0, link_timeout, &ten, 0);
	for (unsigned i = 0; i < 20; i++)
		Q(10 + i, 0, write, fd, buf2, sizeof(buf2), -1);
	Q(40, 0, poll_multishot, s[0], POLLPRI);
	Q(41, 0, timeout, &ten, 0, 1 << 6);
	put(s[1], 3);
	say("enter %d", submit(n_queued, 0));
	if (backend == &ring)
		return; /* closing it ends later */
	usleep(3000);
	submit(0, IORING_ENTER_GETEVENTS);
	end();
	must(n_fds() == before, "%u descriptors left", n_fds() - before);
	must(!n_threads_left(), "%d threads left", n_threads_left());
	memset(buf, '#', 64);
	put(p[1], 8);
	put(s[1], 8);
	fstat(fd, &then);
	usleep(20000);
	fstat(fd, &now);
	must(now.st_size == then.st_size, "the file grows");
	for (unsigned i = 0; i < 64; i++)
		must(buf[i] == '#', "byte %u is written", i);
}

/* A number that was waited for, whose file lives on elsewhere, becomes a timer of the engine's. */
static void stale_number(void)
{
	struct __kernel_timespec ts, limit = {.tv_sec = 2};
	struct io_uring_getevents_arg arg = {.ts = (uintptr_t)&limit};
	struct timespec now;
	uint64_t then;
	int p[2], copy;
	char c;

	pipe_new(p, 0);
	Q(1, 0, read, p[0], &c, 1, 0);
	look("wait for it", 0);
	put(p[1], 1);
	look("it comes", 1);
	copy = dup(p[0]);
	close(p[0]);
	clock_gettime(CLOCK_REALTIME, &now);
	ts = (struct __kernel_timespec){now.tv_sec, now.tv_nsec + 60000000};
	Q(2, 0, timeout, &ts, 0, IORING_TIMEOUT_ABS | IORING_TIMEOUT_REALTIME);
	say("enter %d", submit(1, 0));
	put(p[1], 1);
	quiet = true;
	look("", 0);
	quiet = false;
	then = now_ms();
	backend->enter(&io, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
	say("in time %d", now_ms() - then < 500);
	close(copy);
}

/* All eventfds have one inode. Their reads wait, and no thread does, behind what is a thread's. */
static void behind_a_job(void)
{
	int a = eventfd(0, 0), b = eventfd(0, 0), p[2];
	uint64_t value;
	char c;

	pipe_new(p, 0);
	sort_answers = true;
	Q(1, 0, fallocate, a, 0, 0, 10);
	Q(2, 0, read, b, &value, 8, -1);
	Q(3, 0, fallocate, p[1], 0, 0, 10);
	Q(4, 0, read, p[0], &c, 1, -1);
	look("fallocate, read", 0);
	Q(5, 0, cancel64, 2, 0);
	Q(6, 0, cancel64, 4, 0);
	look("cancel", 4);
}

/* Flags that no kernel knows are refused at once, whether there is something to read or not. */
static void odd_flags(void)
{
	int p[2], s[2], e = eventfd(0, 0);

	pipe_new(p, 0);
	pair_new(s, SOCK_STREAM);
	Q(1, 0, read, p[0], buf, 8, 0);
	LAST->rw_flags = 0x8000;
	look("pipe", 0);
	Q(1, 0, read, s[0], buf, 8, 0);
	LAST->rw_flags = 0x8000;
	look("socket", 0);
	Q(1, 0, read, e, buf, 8, 0);
	LAST->rw_flags = 0x8000;
	look("eventfd", 0);
}

/* A file of procfs that must wait: no thread does. */
static void kmsg(void)
{
	int fd = open("/proc/kmsg", O_RDONLY | O_NONBLOCK);

	if (fd < 0)
		return;
	while (read(fd, buf, 8192) > 0)
		;
	close(fd);
	fd = open("/proc/kmsg", O_RDONLY);
	Q(1, 0, read, fd, buf, 8192, -1);
	look("/proc/kmsg", 0);
	Q(2, 0, cancel64, 1, 0);
	look("cancel", 2);
}

/* A linked timeout whose clock can get no descriptor still ends its op. */
static void no_clocks(void)
{
	struct __kernel_timespec ts = {.tv_nsec = 20000000};
	struct rlimit limit, old;
	int p[2];
	char c;

	pipe_new(p, 0);
	getrlimit(RLIMIT_NOFILE, &old);
	limit = (struct rlimit){3, old.rlim_max};
	Q(1, IOSQE_IO_LINK, read, p[0], &c, 1, 0);
	Q(2, 0, link_timeout, &ts, IORING_TIMEOUT_BOOTTIME);
	setrlimit(RLIMIT_NOFILE, &limit);
	look("linked timeout", 2);
	setrlimit(RLIMIT_NOFILE, &old);
}

/* Writes that were submitted before the close of their file go to no other file. */
static void close_behind(void)
{
	int fd = file_new("behind", 0, 0), fd2;

	sort_answers = true;
	for (unsigned i = 0; i < 12; i++)
		Q(10 + i, 0, write, fd, buf, 1 << 20, -1);
	Q(30, 0, close, fd);
	Q(31, 0, openat, AT_FDCWD, path_of("other"), O_CREAT | O_RDWR, 0600);
	hide_fds = true;
	look("writes, close, open", 14);
	fd2 = open(path_of("other"), O_RDONLY);
	say("other has %ld", (long)lseek(fd2, 0, SEEK_END));
}

#define CASE(name) {#name, name, 0}

static const struct {
	const char *name;
	void (*run)(void);
	unsigned entries;
} cases[] = {
	CASE(read_pipe), CASE(three_readers), CASE(kinds), CASE(tty), CASE(write_pipe),
	CASE(sigpipe), CASE(no_sigpipe), CASE(offsets), CASE(write_order), CASE(recv_cases),
	CASE(waitall), CASE(send_much), CASE(messages), CASE(accept_cases), CASE(connect_cases),
	CASE(link_short), CASE(link_fail), CASE(link_timeout), CASE(cancels), CASE(timeouts),
	CASE(polls), CASE(poll_multi), CASE(files), CASE(fifos), CASE(splices), CASE(makers),
	{"overflow", overflow, 8}, CASE(fixed_files), CASE(fixed_buffers), CASE(provided), CASE(provided_to_threads),
	CASE(buffer_rings), CASE(zero_copy), CASE(other_ops), CASE(entering), CASE(stable), CASE(many), CASE(no_memory),
	CASE(threads), CASE(restricted), CASE(limits), CASE(probes), CASE(eventfds), CASE(setups),
	CASE(two_rings), CASE(reused), CASE(reserved), CASE(each_allocation), CASE(each_thread),
	CASE(each_descriptor), CASE(direct), CASE(late_cancels), CASE(forked),
	CASE(closing), CASE(stale_number), CASE(behind_a_job), CASE(odd_flags), CASE(kmsg),
	CASE(no_clocks), CASE(close_behind),
};

enum { N_CASES = sizeof(cases) / sizeof(cases[0]), N_AT_ONCE = 8 };

/* ---- Running them ---- */

static struct run {
	pid_t child; /* 0: none, or it has ended */
	FILE *out;
	int status;
} runs[N_CASES][2]; /* the ring's and the engine's */

/* Run a case in a child. Its answers, one line each, go to a file. */
static void run_case(unsigned i, const iou_backend_t *of)
{
	struct run *run = &runs[i][of != &ring];

	run->out = tmpfile();
	if (!run->out)
		die("tmpfile");
	fflush(stdout);
	run->child = fork();
	if (run->child)
		return;
	dup2(fileno(run->out), 1);
	setvbuf(stdout, NULL, _IOLBF, 4096);
	snprintf(folder + strlen(folder), sizeof(folder) - strlen(folder), "/%u-%s", i, of->name);
	if (mkdir(folder, 0700))
		die("mkdir");
	alarm(30);
	backend = of;
	if (cases[i].entries)
		entries = cases[i].entries;
	start();
	cases[i].run();
	end();
	must(backend == &ring || !n_threads_left(), "%d threads left", n_threads_left());
	fflush(stdout);
	exit(0);
}

static void wait_for_one(void)
{
	int status;
	pid_t child = wait(&status);

	for (unsigned i = 0; i < N_CASES * 2; i++) {
		if (child > 0 && runs[i / 2][i % 2].child == child)
			runs[i / 2][i % 2] = (struct run){0, runs[i / 2][i % 2].out, status};
	}
}

static char *answers_of(struct run *run, char *text, size_t size)
{
	size_t n;

	rewind(run->out);
	n = fread(text, 1, size - 64, run->out);
	fclose(run->out);
	run->out = NULL;
	text[n] = '\0';
	if (run->status)
		snprintf(text + n, 64, "    status %x\n", (unsigned)run->status);
	return text;
}

/* How many answers differ. */
static unsigned compare(unsigned i, bool all, bool alone)
{
	static char text[2][1 << 16];
	char *one, *two, *a, *b, *rest1, *rest2;
	unsigned n = 0;

	two = answers_of(&runs[i][1], text[1], sizeof(text[1]));
	if (alone) {
		printf("%s\n%s", cases[i].name, two);
		return 0;
	}
	one = answers_of(&runs[i][0], text[0], sizeof(text[0]));
	for (a = strtok_r(one, "\n", &rest1), b = strtok_r(two, "\n", &rest2); a || b;
	     a = a ? strtok_r(NULL, "\n", &rest1) : NULL,
	     b = b ? strtok_r(NULL, "\n", &rest2) : NULL) {
		if (a && b && strcmp(a, b) == 0) {
			if (all)
				printf("  %s: %s\n", cases[i].name, a);
			continue;
		}
		n++;
		printf("%s:\n  ring     %s\n  fallback %s\n", cases[i].name, a ? a : "-",
		       b ? b : "-");
	}
	return n;
}

static bool is_wanted(unsigned i, char **names)
{
	bool any = true, named = false;

	for (; *names; names++) {
		if (**names == '~' && strcmp(cases[i].name, *names + 1) == 0)
			return false;
		if (**names == '~')
			continue;
		any = false;
		named |= strstr(cases[i].name, *names) != NULL;
	}
	return any || named;
}

int main(int argc, char **argv)
{
	bool show = false, alone = false, first_only = false;
	unsigned n_bad = 0, n_good = 0, n_running = 0, next = 0;
	char command[128], top[sizeof(folder)];

	for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
		show |= argv[1][1] == 'v';
		alone |= argv[1][1] == 'f';
		first_only |= argv[1][1] == 'x';
	}
	if (!mkdtemp(folder))
		die("mkdtemp");
	strcpy(top, folder);
	for (unsigned i = 0; i < N_CASES && !(first_only && n_bad); i++) {
		if (is_wanted(i, argv + 1)) {
			if (!alone)
				run_case(i, &ring);
			run_case(i, &iou_fallback);
			n_running += 2 - alone;
		}
		for (; n_running > (i == N_CASES - 1 ? 0 : N_AT_ONCE); n_running--)
			wait_for_one();
		for (; next <= i && !runs[next][0].child && !runs[next][1].child; next++) {
			if (!runs[next][1].out)
				continue;
			if (compare(next, show, alone))
				n_bad++;
			else
				n_good++;
		}
	}
	while (n_running--)
		wait_for_one();
	printf("%u passed, %u failed\n", n_good, n_bad);
	snprintf(command, sizeof(command), "rm -rf %s", top);
	return system(command) || n_bad;
}
