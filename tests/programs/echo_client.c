/* SPDX-License-Identifier: MIT */
/*
 * echo_client TEST ECHO [OPTION...]: starts examples/echo on a free port and drives it;
 * tests/programs/echo.sh says how.
 *
 * Exits 0 when all went as it should, else says on stderr what did not. The server must end with
 * status 0 when it is told to, with no descriptor left over from its connections, and with totals
 * that fit.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXPECT(cond, ...) \
	do { \
		if (!(cond)) \
			failed(__LINE__, #cond, __VA_ARGS__); \
	} while (0)

static struct server {
	pid_t pid;
	FILE *out;
	uint16_t port;
	int n_fds; /* while it serves nobody */
} server;

struct totals {
	unsigned long n_connections, n_bytes, n_idle, n_failed;
};

__attribute__((noreturn, format(printf, 3, 4)))
static void failed(int line, const char *cond, const char *format, ...)
{
	int error = errno;
	va_list args;

	fprintf(stderr, "echo_client.c:%d: %s: ", line, cond);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s)\n", strerror(error));
	if (server.pid > 0)
		kill(server.pid, SIGKILL);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void nap(void)
{
	poll(NULL, 0, 5);
}

static uint64_t seed;

static unsigned random_below(unsigned n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((seed >> 33) % n);
}

/* What connection `id` sends at `place`. */
static char byte_at(unsigned id, size_t place)
{
	return (char)(id * 31 + place * 7 + (place >> 8) * 3);
}

static void fill(unsigned id, size_t place, char *buffer, size_t size)
{
	for (size_t i = 0; i < size; i++)
		buffer[i] = byte_at(id, place + i);
}

static void check(unsigned id, size_t place, const char *buffer, size_t size)
{
	for (size_t i = 0; i < size; i++)
		EXPECT(buffer[i] == byte_at(id, place + i),
		       "connection %u, byte %zu of what came back", id, place + i);
}


/* ---- The server ------------------------------------------------------------------------------ */

static int server_fds(void)
{
	char path[64];
	DIR *dir;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)server.pid);
	dir = opendir(path);
	EXPECT(dir, "%s", path);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* 0: as many open files as the system allows, for all the connections */
static void set_files(rlim_t n)
{
	struct rlimit limit;

	EXPECT(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
	limit.rlim_cur = n ? n : limit.rlim_max;
	limit.rlim_max = n ? n : limit.rlim_max;
	EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

static void start_server(char **argv, rlim_t n_files)
{
	unsigned port = 0;
	char line[128];
	int out[2];

	EXPECT(pipe(out) == 0, "pipe");
	server.pid = fork();
	EXPECT(server.pid >= 0, "fork");
	if (server.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		if (n_files)
			set_files(n_files);
		execv(argv[0], argv);
		_exit(127);
	}
	close(out[1]);
	server.out = fdopen(out[0], "r");
	EXPECT(server.out && fgets(line, sizeof(line), server.out), "no word from the server");
	EXPECT(sscanf(line, "listening on port %u", &port) == 1 && port > 0 && port < 65536,
	       "it said: %s", line);
	server.port = (uint16_t)port;
	server.n_fds = server_fds();
}

static double server_cpu(void)
{
	struct timespec used;
	clockid_t clock;

	EXPECT(clock_getcpuclockid(server.pid, &clock) == 0 && clock_gettime(clock, &used) == 0,
	       "its CPU time");
	return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

/* Wait until it has closed what it had open for its connections. */
static void expect_no_connections(void)
{
	double end = now() + 20;

	while (server_fds() > server.n_fds) {
		EXPECT(now() < end, "%d descriptors open in the server, %d at first", server_fds(),
		       server.n_fds);
		nap();
	}
}

static void tell_server(int signo)
{
	EXPECT(kill(server.pid, signo) == 0, "kill");
}

static struct totals server_end(void)
{
	struct totals totals;
	char line[256];
	int status;

	EXPECT(fgets(line, sizeof(line), server.out), "no totals");
	EXPECT(sscanf(line, "%lu connections, %lu bytes echoed, %lu closed as idle, %lu failed",
		      &totals.n_connections, &totals.n_bytes, &totals.n_idle,
		      &totals.n_failed) == 4,
	       "it said: %s", line);
	EXPECT(waitpid(server.pid, &status, 0) == server.pid, "waitpid");
	server.pid = 0;
	EXPECT(status == 0, "the server's wait status is %#x", (unsigned)status);
	return totals;
}


/* ---- Connections ----------------------------------------------------------------------------- */

static bool have_ipv6;
static unsigned long n_connecting; /* so far */

static int start_connecting(unsigned id, int type)
{
	struct sockaddr_in6 to6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons(server.port),
				   .sin6_addr = in6addr_loopback};
	struct sockaddr_in to4 = {.sin_family = AF_INET, .sin_port = htons(server.port)};
	bool v6 = have_ipv6 && id % 2;
	int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0);

	to4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	EXPECT(fd >= 0, "socket");
	n_connecting++;
	if (connect(fd, v6 ? (void *)&to6 : (void *)&to4, v6 ? sizeof(to6) : sizeof(to4)) != 0 &&
	    errno != EINPROGRESS) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* Connections of even numbers are of IPv4, those of odd ones of IPv6. */
static int connect_to_server(unsigned id)
{
	int fd = start_connecting(id, 0);

	EXPECT(fd >= 0, "connect");
	return fd;
}

static bool readable_within(int fd, int ms)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, ms) == 1;
}

static void say(int fd, unsigned id, size_t place, size_t size)
{
	char buffer[4096];

	fill(id, place, buffer, size);
	EXPECT(send(fd, buffer, size, MSG_NOSIGNAL) == (ssize_t)size, "send");
}

static void expect_echo(int fd, unsigned id, size_t place, size_t size)
{
	char buffer[4096];

	EXPECT(recv(fd, buffer, size, MSG_WAITALL) == (ssize_t)size, "recv");
	check(id, place, buffer, size);
}

/* Send from `place` on, and take nothing, until the sockets are full and the server waits with a
 * send. Returns the place where it ended. */
static size_t fill_up(int fd, unsigned id, size_t place)
{
	struct pollfd room = {.fd = fd, .events = POLLOUT};
	char buffer[65536];

	while (poll(&room, 1, 100) == 1) {
		ssize_t n;

		fill(id, place, buffer, sizeof(buffer));
		n = send(fd, buffer, sizeof(buffer), MSG_NOSIGNAL | MSG_DONTWAIT);
		EXPECT(n > 0, "send");
		place += (size_t)n;
	}
	return place;
}

/* Take what comes back. */
static void drain(int fd, unsigned id, size_t place, size_t end)
{
	char buffer[65536];

	while (place < end) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

		EXPECT(n > 0, "after %zu of %zu bytes", place, end);
		check(id, place, buffer, (size_t)n);
		place += (size_t)n;
	}
}

static void expect_end(int fd)
{
	char byte;

	EXPECT(readable_within(fd, 20000), "the server does not close");
	EXPECT(recv(fd, &byte, 1, 0) == 0, "no end, but more bytes or an error");
	close(fd);
}

/* The same, where it may not even have been accepted. */
static void expect_end_or_reset(int fd)
{
	char byte;

	EXPECT(readable_within(fd, 20000), "the server does not close");
	EXPECT(recv(fd, &byte, 1, 0) == 0 || errno == ECONNRESET,
	       "no end, but more bytes or an error");
	close(fd);
}

/* So it has been told to end. */
static void expect_no_more_accepting(void)
{
	double end = now() + 20;
	int fd;

	while ((fd = start_connecting(1, 0)) >= 0) {
		EXPECT(now() < end, "still accepting");
		close(fd);
		nap();
	}
	EXPECT(errno == ECONNREFUSED || errno == ECONNRESET, "connect");
}

static void reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}


/* ---- Tests ----------------------------------------------------------------------------------- */

/* Many at once: half of them get all that they sent back, the others are closed or reset at a
 * random moment. */

enum fate { COMPLETE, CLOSE, RESET };

struct guest {
	int fd;
	unsigned id;
	enum fate fate;
	size_t size;  /* it sends so much, */
	/* but leaves when so much came back, or was sent if nothing is to come back */
	size_t leave;
	size_t n_sent;
	size_t n_received;
};

static int epoll_fd;

static void new_guest(struct guest *guest, unsigned id)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = guest};
	int small = 32768;

	guest->id = id;
	/* each in IPv4 and IPv6 */
	guest->fate = id % 4 < 2 ? COMPLETE : id % 8 < 4 ? CLOSE : RESET;
	guest->size = 1 + random_below(id % 16 < 2 ? 500000 : 20000);
	guest->leave = random_below((unsigned)guest->size);
	guest->fd = start_connecting(id, SOCK_NONBLOCK);
	EXPECT(guest->fd >= 0, "connect");
	if (id % 32 == 0) /* makes the server send in parts */
		setsockopt(guest->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	EXPECT(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, guest->fd, &event) == 0, "epoll_ctl");
}

static bool take(struct guest *guest)
{
	char buffer[8192];
	ssize_t n = recv(guest->fd, buffer, 1 + random_below(sizeof(buffer)), 0);

	if (n < 0 && errno == EAGAIN)
		return false;
	EXPECT(n >= 0, "connection %u after %zu of %zu bytes", guest->id, guest->n_received,
	       guest->size);
	check(guest->id, guest->n_received, buffer, (size_t)n);
	guest->n_received += (size_t)n;
	EXPECT(n > 0 || guest->n_received == guest->size,
	       "connection %u ends after %zu of %zu bytes", guest->id, guest->n_received,
	       guest->size);
	return n == 0;
}

static void give(struct guest *guest)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = guest};
	char buffer[8192];
	size_t most = guest->size - guest->n_sent;
	ssize_t n;

	if (most > sizeof(buffer))
		most = 1 + random_below(sizeof(buffer));
	fill(guest->id, guest->n_sent, buffer, most);
	n = send(guest->fd, buffer, most, MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN)
		return;
	EXPECT(n > 0, "connection %u after %zu of %zu bytes", guest->id, guest->n_sent,
	       guest->size);
	guest->n_sent += (size_t)n;
	if (guest->n_sent < guest->size)
		return;
	shutdown(guest->fd, SHUT_WR);
	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, guest->fd, &event);
}

/* True when the guest has gone. */
static bool go_on(struct guest *guest, uint32_t events)
{
	size_t so_far = guest->id & 64 ? guest->n_sent : guest->n_received;

	if (guest->fate != COMPLETE && so_far >= guest->leave) {
		if (guest->fate == RESET)
			reset(guest->fd);
		else
			close(guest->fd);
		return true;
	}
	if (events & EPOLLOUT)
		give(guest);
	if (events & ~(uint32_t)EPOLLOUT && take(guest)) {
		close(guest->fd);
		return true;
	}
	return false;
}

static void storm(int n)
{
	struct guest *guests = calloc((size_t)n, sizeof(*guests));
	unsigned long n_complete = 0, n_bytes = 0;
	int n_here = n;
	struct totals totals;

	EXPECT(guests, "memory");
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < n; i++)
		new_guest(&guests[i], (unsigned)i);
	while (n_here > 0) {
		struct epoll_event events[64];
		int n_events = epoll_wait(epoll_fd, events, 64, 20000);

		EXPECT(n_events > 0 || (n_events < 0 && errno == EINTR),
		       "nothing happens, and %d are still here", n_here);
		for (int i = 0; i < n_events; i++)
			n_here -= go_on(events[i].data.ptr, events[i].events);
	}
	expect_no_connections();
	tell_server(SIGINT);
	totals = server_end();
	for (int i = 0; i < n; i++) {
		n_complete += guests[i].fate == COMPLETE;
		n_bytes += guests[i].n_received;
	}
	EXPECT(totals.n_connections >= n_complete && totals.n_connections <= n_connecting,
	       "%lu of %lu, %lu complete", totals.n_connections, n_connecting, n_complete);
	EXPECT(totals.n_bytes >= n_bytes, "%lu bytes echoed, %lu received", totals.n_bytes,
	       n_bytes);
	EXPECT(totals.n_failed <= (unsigned long)n - n_complete, "%lu failed", totals.n_failed);
	free(guests);
}

/* As many connections as the server has room for and more, silent: it waits. Then as above. */
static void shortage(int n)
{
	int *fds = calloc((size_t)n, sizeof(*fds));
	double used = 1;

	EXPECT(fds, "memory");
	for (int i = 0; i < n; i++)
		fds[i] = connect_to_server((unsigned)i);
	say(fds[0], 0, 0, 100);
	expect_echo(fds[0], 0, 0, 100);
	/* it may still be busy with their arrival */
	for (int tries = 5; tries > 0 && used >= 0.02; tries--) {
		double before = server_cpu();

		poll(NULL, 0, 500);
		used = server_cpu() - before;
	}
	EXPECT(used < 0.02, "it spends %f s of 0.5 s waiting", used);
	for (int i = 0; i < n; i++)
		close(fds[i]);
	expect_no_connections();
	storm(n);
	free(fds);
}

/* A peer that does not read what it sent before the server cannot send any more: nothing is
 * lost. */
static void full(int rounds)
{
	int fd = connect_to_server(0);
	size_t n_sent = 0;

	while (rounds-- > 0) {
		size_t n_received = n_sent;

		n_sent = fill_up(fd, 0, n_sent);
		drain(fd, 0, n_received, n_sent);
	}
	shutdown(fd, SHUT_WR);
	expect_end(fd);
	tell_server(SIGTERM);
	EXPECT(server_end().n_bytes == n_sent, "%zu bytes", n_sent);
}

/* Sending to a peer that has ended and reset the connection: where the server finds both at once,
 * the socket's error is EPIPE, which would come with SIGPIPE. */
static void broken(int n)
{
	for (int i = 0; i < n; i++) {
		int fd = connect_to_server((unsigned)i);

		say(fd, (unsigned)i, 0, 100);
		expect_echo(fd, (unsigned)i, 0, 100);
		tell_server(SIGSTOP);
		say(fd, (unsigned)i, 100, 100);
		shutdown(fd, SHUT_WR);
		reset(fd);
		tell_server(SIGCONT);
	}
	expect_no_connections();
	tell_server(SIGTERM);
	EXPECT(server_end().n_connections == (unsigned long)n, "not %d connections", n);
}

/* With `-t 1`: who is silent, or takes nothing, is closed after a second; who says a word now and
 * then is not. */
static void idle(int unused)
{
	int silent = connect_to_server(0), lively = connect_to_server(1),
	    stuck = start_connecting(2, SOCK_NONBLOCK);
	double start = now(), closed = 0, let_go = 0;
	char buffer[65536];
	size_t place = 0;
	struct totals totals;

	(void)unused;
	memset(buffer, 'x', sizeof(buffer));
	while (!closed || !let_go || now() < start + 2.5) {
		EXPECT(now() < start + 60, "not closed: silent %d, stuck %d", !closed, !let_go);
		say(lively, 1, place, 100);
		expect_echo(lively, 1, place, 100);
		place += 100;
		while (!let_go && send(stuck, buffer, sizeof(buffer), MSG_NOSIGNAL) > 0) {
		}
		if (!let_go && errno != EAGAIN) {
			EXPECT(errno == ECONNRESET || errno == EPIPE, "stuck");
			let_go = now();
		}
		if (closed) {
			poll(NULL, 0, 100);
		} else if (readable_within(silent, 100)) {
			expect_end(silent);
			closed = now();
		}
	}
	EXPECT(closed - start > 0.9 && let_go - start > 0.9, "closed after %f s, %f s",
	       closed - start, let_go - start);
	shutdown(lively, SHUT_WR);
	expect_end(lively);
	close(stuck);
	expect_no_connections();
	tell_server(SIGTERM);
	totals = server_end();
	EXPECT(totals.n_connections == 3, "%lu connections", totals.n_connections);
	EXPECT(totals.n_idle == 2, "%lu closed as idle", totals.n_idle);
}

/* With `-c MAX`: more are served when, and only when, one of the MAX has ended. */
static void cap(int max)
{
	enum { MORE = 3 };
	int *fds = calloc((size_t)max + MORE, sizeof(*fds));
	struct totals totals;

	EXPECT(fds, "memory");
	for (int i = 0; i < max; i++) {
		fds[i] = connect_to_server((unsigned)i);
		say(fds[i], (unsigned)i, 0, 100);
		expect_echo(fds[i], (unsigned)i, 0, 100);
	}
	for (int i = max; i < max + MORE; i++) {
		fds[i] = connect_to_server((unsigned)i);
		say(fds[i], (unsigned)i, 0, 100);
	}
	for (int i = 0; i < max; i++) { /* so there was time for the others too */
		say(fds[i], (unsigned)i, 100, 100);
		expect_echo(fds[i], (unsigned)i, 100, 100);
	}
	for (int i = max; i < max + MORE; i++)
		EXPECT(!readable_within(fds[i], 50), "one more than %d is served", max);
	close(fds[0]);
	expect_echo(fds[max], (unsigned)max, 0, 100);
	EXPECT(!readable_within(fds[max + 1], 50), "two for one are served");
	for (int i = 1; i < max; i++)
		reset(fds[i]);
	for (int i = max + 1; i < max + MORE; i++)
		expect_echo(fds[i], (unsigned)i, 0, 100);
	for (int i = max; i < max + MORE; i++)
		close(fds[i]);
	expect_no_connections();
	tell_server(SIGTERM);
	totals = server_end();
	EXPECT(totals.n_connections == (unsigned long)max + MORE, "%lu connections",
	       totals.n_connections);
	free(fds);
}

/* The end with nobody there. */
static void stop_alone(int unused)
{
	struct totals totals;

	(void)unused;
	tell_server(SIGTERM);
	totals = server_end();
	EXPECT(totals.n_connections == 0 && totals.n_bytes == 0, "%lu connections, %lu bytes",
	       totals.n_connections, totals.n_bytes);
}

/* The end with connections open (with `-c 5`): no more are accepted, an exchange under way is
 * finished, the idle are closed, and those that wait for a place too. */
static void stop(int n)
{
	int *fds = calloc((size_t)n, sizeof(*fds)), busy = connect_to_server(0);
	size_t n_sent;

	EXPECT(fds, "memory");
	for (int i = 0; i < n; i++) {
		fds[i] = connect_to_server((unsigned)i);
		if (i < 4) {
			say(fds[i], (unsigned)i, 0, 10);
			expect_echo(fds[i], (unsigned)i, 0, 10);
		}
	}
	n_sent = fill_up(busy, 0, 0);
	tell_server(SIGTERM);
	expect_no_more_accepting();
	drain(busy, 0, 0, n_sent);
	expect_end(busy);
	for (int i = 0; i < n; i++)
		(i < 4 ? expect_end : expect_end_or_reset)(fds[i]);
	EXPECT(server_end().n_bytes >= n_sent, "%zu bytes came back", n_sent);
	free(fds);
}

/* The end with nothing in flight: nobody waits for those who are silent. */
static void stop_idle(int n)
{
	int *fds = calloc((size_t)n, sizeof(*fds));
	struct totals totals;
	double start;

	EXPECT(fds, "memory");
	for (int i = 0; i < n; i++) {
		fds[i] = connect_to_server((unsigned)i);
		say(fds[i], (unsigned)i, 0, 100);
		expect_echo(fds[i], (unsigned)i, 0, 100);
	}
	start = now();
	tell_server(SIGINT);
	totals = server_end();
	EXPECT(now() - start < 0.5, "it ended after %f s", now() - start);
	EXPECT(totals.n_idle == 0 && totals.n_failed == 0, "%lu idle, %lu failed", totals.n_idle,
	       totals.n_failed);
	for (int i = 0; i < n; i++)
		expect_end(fds[i]);
	free(fds);
}

/* What was sent before the server was told to end is answered. */
static void stop_asked(int n)
{
	int *fds = calloc((size_t)n, sizeof(*fds));

	EXPECT(fds, "memory");
	for (int i = 0; i < n; i++) {
		fds[i] = connect_to_server((unsigned)i);
		say(fds[i], (unsigned)i, 0, 100);
		expect_echo(fds[i], (unsigned)i, 0, 100);
	}
	for (int i = 0; i < n; i++)
		say(fds[i], (unsigned)i, 100, 100);
	tell_server(SIGTERM);
	for (int i = 0; i < n; i++) {
		expect_echo(fds[i], (unsigned)i, 100, 100);
		expect_end(fds[i]);
	}
	server_end();
	free(fds);
}

/* The end, found together with the end of a connection while `-c 2` holds the acceptor back; and
 * with a word of the other, which is answered, and who is then closed without waiting for the rest
 * of the second. */
static void stop_paused(int unused)
{
	int gone = connect_to_server(0), here = connect_to_server(1);
	double start;

	(void)unused;
	say(gone, 0, 0, 100);
	expect_echo(gone, 0, 0, 100);
	say(here, 1, 0, 100);
	expect_echo(here, 1, 0, 100);
	tell_server(SIGSTOP);
	start = now();
	close(gone);
	say(here, 1, 100, 100);
	tell_server(SIGTERM);
	tell_server(SIGCONT);
	expect_echo(here, 1, 100, 100);
	expect_end(here);
	server_end();
	EXPECT(now() - start < 0.8, "it ended after %f s", now() - start);
}

/* The end though one peer takes nothing and another never stops talking; a second signal ends the
 * patience at once. */
static void stop_busy(int signals)
{
	int fd = connect_to_server(0), stuck = connect_to_server(1);
	char buffer[4096];
	double start;

	fill_up(stuck, 1, 0);
	for (int i = 0; i < 16; i++)
		say(fd, 0, 0, sizeof(buffer));
	start = now();
	tell_server(SIGTERM);
	if (signals > 1) { /* of a kind they are not counted: the first must have been heard */
		expect_no_more_accepting();
		tell_server(SIGTERM);
	}
	for (;;) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

		if (n <= 0 || send(fd, buffer, (size_t)n, MSG_NOSIGNAL) < 0)
			break;
		EXPECT(now() < start + 20, "it goes on");
	}
	close(fd);
	server_end();
	close(stuck);
	EXPECT((now() - start > 0.9) == (signals == 1), "it ended after %f s", now() - start);
}

static const struct test {
	const char *name;
	void (*run)(int number);
	int number;
	rlim_t n_files; /* of the server, 0: as here */
} tests[] = {
	{"storm", storm, 1000, 0},
	{"shortage", shortage, 200, 24},
	{"full", full, 3, 0},
	{"broken", broken, 20, 0},
	{"idle", idle, 0, 0},
	{"cap", cap, 8, 0},
	{"stop-alone", stop_alone, 0, 0},
	{"stop-idle", stop_idle, 100, 0},
	{"stop-asked", stop_asked, 200, 0},
	{"stop", stop, 4, 0},
	{"stop-cap", stop, 20, 0},
	{"stop-paused", stop_paused, 0, 0},
	{"stop-busy", stop_busy, 1, 0},
	{"stop-twice", stop_busy, 2, 0},
};

static bool ipv6_works(void)
{
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool works = fd >= 0 && bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0;

	close(fd);
	return works;
}

int main(int argc, char **argv)
{
	const char *given = getenv("SEED");

	have_ipv6 = ipv6_works();
	seed = given ? strtoull(given, NULL, 0) : (uint64_t)getpid() << 20 ^ (uint64_t)time(NULL);
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; argc > 2 && i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(tests[i].name, argv[1]) != 0)
			continue;
		fprintf(stderr, "%s: SEED=%#" PRIx64 "%s\n", argv[1], seed,
			have_ipv6 ? "" : ", no IPv6");
		alarm(100);
		set_files(0);
		start_server(argv + 2, tests[i].n_files);
		tests[i].run(tests[i].number);
		return 0;
	}
	fprintf(stderr, "usage: echo_client TEST ECHO [OPTION...]\n");
	return 2;
}
