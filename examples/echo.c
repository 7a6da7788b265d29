/* SPDX-License-Identifier: MIT */
/*
 * echo: a TCP echo server.
 *
 *     echo [-p PORT] [-t IDLE_SECONDS] [-c MAX]
 *
 * Two state machines, each one op for its whole life, queued again in its own callback:
 *
 *     acceptor     ACCEPT (multishot) --- at the cap, or out of descriptors ---> timer
 *                     ^  `--> a connection for each result                         |
 *                     `------ a connection ended, or the pause is over ------------'
 *
 *     connection   RECV --> SEND --> RECV --> ... --> closed and given back
 *                            `-> SEND (the rest of a partial send)
 *
 * A connection is its op's environment, so it needs one allocation, and one call that can fail. Each of its
 * ops has a deadline: a peer that sends nothing, or takes nothing, for IDLE_SECONDS is closed.
 *
 * SIGINT and SIGTERM schedule a bottom half, which starts the graceful end. It cancels every op; in their callbacks
 * the acceptor and the idle end, while those who were in the middle of an exchange go on with it. They have a
 * second, then all that is left is cancelled. Nothing is pending any more, so iou_run() returns. A second signal cuts
 * the second short.
 */

#define _GNU_SOURCE
#include "iou.h"

#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SECOND_NS UINT64_C(1000000000)
#define SHORTAGE_PAUSE_NS (SECOND_NS / 10)
#define GRACE_NS SECOND_NS
#define QUIET_NS (SECOND_NS / 10) /* in the end: who sends nothing for so long after an exchange is done */
#define NEVER_NS UINT64_MAX

enum { BUFFER_SIZE = 4096 };

struct connection;

struct server {
	iou_t *iou;
	int listener;
	iou_op_t *acceptor;         /* in the ring or in the clock; NULL once the server ends */
	bool multishot;             /* false where the kernel lacks it (before 5.19) */
	bool paused;                /* the acceptor is in the clock */
	int last_shortage;          /* why an accept failed; 0 once it is over */
	unsigned n_at_shortage;     /* so many were served */
	bool ending;                /* nothing new is accepted */
	bool ended;                 /* nothing more is done: what completes in spite of its cancel is dropped */
	iou_op_t *grace;            /* the timer of the graceful end */
	uint64_t idle_ns;           /* 0: no limit */
	unsigned max_connections;
	unsigned n_serving;         /* never above the maximum */
	struct connection *waiting; /* accepted beyond it, before the accept was cancelled; first one first */
	struct connection **waiting_end;

	uint64_t n_connections;
	uint64_t n_bytes;
	uint64_t n_idle;
	uint64_t n_failed;
};

struct connection {
	struct server *server;
	struct connection *next; /* while it waits */
	int fd;
	unsigned n_received;
	unsigned n_sent;
	char buffer[BUFFER_SIZE];
};

static void receive(struct connection *conn, int flags);
static void accept_more(struct server *server, uint64_t pause_ns);
static void pause_accepting(struct server *server, uint64_t pause_ns);


/* ---- A connection ----------------------------------------------------------------------------- */

static void queue(struct connection *conn, uint64_t limit_ns, int (*cb)(void *cb_data))
{
	iou_op_t *op = iou_op_of(conn);

	if (limit_ns)
		iou_op_deadline(conn->server->iou, op, limit_ns);
	iou_op_queue(conn->server->iou, op, cb, conn);
}

static void serve(struct connection *conn)
{
	conn->server->n_serving++;
	receive(conn, 0);
}

/* The last that happens to a connection: `error` < 0 says why. Its op is in its last callback, or was never queued. */
static void hang_up(struct connection *conn, int error)
{
	struct server *server = conn->server;

	if (error == -ETIME && !server->ending)
		server->n_idle++;
	else if (error < 0 && error != -ETIME && error != -ECANCELED)
		server->n_failed++;
	close(conn->fd);
	iou_op_free(server->iou, iou_op_of(conn));
}

/* A connection that was served has ended: its place goes to one that waits, else to the acceptor. */
static int finish(struct connection *conn, int error)
{
	struct server *server = conn->server;
	struct connection *next = server->waiting;

	hang_up(conn, error);
	server->n_serving--;
	if (server->n_serving <= server->n_at_shortage / 2)
		server->last_shortage = 0;
	if (next) {
		server->waiting = next->next;
		if (!server->waiting)
			server->waiting_end = &server->waiting;
		serve(next);
	} else if (server->paused && !server->ending) {
		pause_accepting(server, 0);
	} else if (server->grace && server->n_serving == 0) {
		iou_op_cancel(server->iou, server->grace);
	}
	return 0;
}

static int on_sent(void *cb_data);

static void send_rest(struct connection *conn)
{
	iou_op_t *op = iou_op_of(conn);

	io_uring_prep_send(op->sqe, conn->fd, conn->buffer + conn->n_sent, conn->n_received - conn->n_sent,
			   MSG_NOSIGNAL);
	queue(conn, conn->server->idle_ns, on_sent);
}

static int on_sent(void *cb_data)
{
	struct connection *conn = cb_data;
	int result = iou_op_of(conn)->result;

	if (result == -ECANCELED && !conn->server->ended)
		result = 0; /* by the stop: nothing was sent, and all of it still is to be */
	if (result < 0 || conn->server->ended)
		return finish(conn, result);
	conn->n_sent += (unsigned)result;
	conn->server->n_bytes += (uint64_t)result;
	if (conn->n_sent < conn->n_received)
		send_rest(conn);
	else
		receive(conn, 0);
	return 0;
}

static int on_received(void *cb_data)
{
	struct connection *conn = cb_data;
	int result = iou_op_of(conn)->result;

	if (result == -ECANCELED && !conn->server->ended) { /* by the stop: a last look, without waiting */
		receive(conn, MSG_DONTWAIT);
		return 0;
	}
	if (result <= 0 || conn->server->ended)
		return finish(conn, result == -EAGAIN ? 0 : result);
	conn->n_received = (unsigned)result;
	conn->n_sent = 0;
	send_rest(conn);
	return 0;
}

static void receive(struct connection *conn, int flags)
{
	io_uring_prep_recv(iou_op_of(conn)->sqe, conn->fd, conn->buffer, BUFFER_SIZE, flags);
	queue(conn, conn->server->ending ? QUIET_NS : conn->server->idle_ns, on_received);
}


/* ---- The acceptor ----------------------------------------------------------------------------- */

static void new_connection(struct server *server, int fd)
{
	iou_op_t *op = iou_op_new(server->iou);
	struct connection *conn = op ? iou_op_env(op, sizeof(*conn)) : NULL;

	if (!conn) {
		iou_op_free(server->iou, op);
		close(fd);
		server->n_failed++;
		return;
	}
	conn->server = server;
	conn->fd = fd;
	server->n_connections++;
	if (server->ending) {
		hang_up(conn, 0);
	} else if (server->n_serving < server->max_connections) {
		serve(conn);
	} else {
		*server->waiting_end = conn;
		server->waiting_end = &conn->next;
	}
}

static int on_pause_over(void *cb_data)
{
	struct server *server = cb_data;

	server->paused = false;
	accept_more(server, 0);
	return 0;
}

/* Also cuts a pause short: a timer that is pending is moved. */
static void pause_accepting(struct server *server, uint64_t pause_ns)
{
	server->paused = true;
	iou_op_timer(server->iou, server->acceptor, pause_ns, 0, on_pause_over, server);
}

static int on_accepted(void *cb_data)
{
	struct server *server = cb_data;
	iou_op_t *op = server->acceptor;
	uint64_t pause_ns = 0;

	if (op->result >= 0) {
		new_connection(server, op->result);
	} else if (op->result == -EINVAL && server->multishot) {
		server->multishot = false;
	} else if (op->result != -ECANCELED && op->result != -ECONNABORTED) {
		/* Above all EMFILE: the peer stays in the listen queue, so accepting at once again would spin. */
		if (op->result != server->last_shortage)
			fprintf(stderr, "echo: accept: %s\n", strerror(-op->result));
		server->last_shortage = op->result;
		server->n_at_shortage = server->n_serving;
		pause_ns = SHORTAGE_PAUSE_NS;
	}
	if (!(op->flags & IORING_CQE_F_MORE))
		accept_more(server, pause_ns);
	else if (server->n_serving >= server->max_connections)
		iou_op_cancel(server->iou, op);
	return 0;
}

/* Where the acceptor goes from its last callback. */
static void accept_more(struct server *server, uint64_t pause_ns)
{
	iou_op_t *op = server->acceptor;

	if (server->ending) {
		server->acceptor = NULL;
		close(server->listener);
	} else if (server->n_serving >= server->max_connections) {
		pause_accepting(server, NEVER_NS);
	} else if (pause_ns) {
		pause_accepting(server, pause_ns);
	} else {
		if (server->multishot)
			io_uring_prep_multishot_accept(op->sqe, server->listener, NULL, NULL, SOCK_CLOEXEC);
		else
			io_uring_prep_accept(op->sqe, server->listener, NULL, NULL, SOCK_CLOEXEC);
		iou_op_queue(server->iou, op, on_accepted, server);
	}
}


/* ---- The end ---------------------------------------------------------------------------------- */

static iou_bh_t *stop_bh; /* the signal handler's way to the loop */

static void on_signal(int signo)
{
	(void)signo;
	iou_bh_schedule(stop_bh);
}

static void cancel_rest(struct server *server)
{
	server->ended = true;
	iou_cancel_all(server->iou);
}

static int on_grace_over(void *cb_data)
{
	struct server *server = cb_data;

	server->grace = NULL;
	cancel_rest(server);
	return 0;
}

static int on_stop(void *cb_data)
{
	struct server *server = cb_data;

	if (server->ending) { /* the second signal */
		cancel_rest(server);
		return 0;
	}
	server->ending = true;
	iou_cancel_all(server->iou); /* the callbacks know which of it is to go on */
	while (server->waiting) {
		struct connection *conn = server->waiting;

		server->waiting = conn->next;
		hang_up(conn, 0);
	}
	if (server->n_serving == 0)
		return 0;
	server->grace = iou_op_new(server->iou);
	if (server->grace)
		iou_op_timer(server->iou, server->grace, GRACE_NS, 0, on_grace_over, server);
	else
		cancel_rest(server);
	return 0;
}

static int catch_signals(struct server *server)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	stop_bh = iou_bh_new(server->iou, on_stop, server);
	if (!stop_bh)
		return -errno;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	return 0;
}


/* ---- The start -------------------------------------------------------------------------------- */

static int bind_to_any(int family, uint16_t port)
{
	struct sockaddr_in6 any6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in any4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int off = 0, on = 1, error;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* accepted sockets inherit it */
	if (family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, family == AF_INET6 ? (void *)&any6 : (void *)&any4,
		 family == AF_INET6 ? sizeof(any6) : sizeof(any4)) == 0 && listen(fd, SOMAXCONN) == 0)
		return fd;
	error = errno;
	close(fd);
	return -error;
}

/* One socket serves IPv6 and IPv4; IPv4 alone where there is no IPv6. Returns the socket or -errno. */
static int start_listening(uint16_t port)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);
	int fd = bind_to_any(AF_INET6, port);

	if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL)
		fd = bind_to_any(AF_INET, port);
	if (fd < 0)
		return fd;
	getsockname(fd, (struct sockaddr *)&address, &size);
	/* the port is in the same place in both families */
	printf("listening on port %u\n", ntohs(((struct sockaddr_in *)(void *)&address)->sin_port));
	fflush(stdout);
	return fd;
}

/* As many descriptors as the system allows: each connection takes one. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int fail(const char *what, int error)
{
	fprintf(stderr, "echo: %s: %s\n", what, strerror(-error));
	return EXIT_FAILURE;
}

static int serve_until_signal(struct server *server, uint16_t port)
{
	int result = catch_signals(server);

	if (result < 0)
		return fail("signals", result);
	server->acceptor = iou_op_new(server->iou);
	if (!server->acceptor)
		return fail("acceptor", -errno);
	server->listener = start_listening(port);
	if (server->listener < 0)
		return fail("listen", server->listener);
	accept_more(server, 0);
	result = iou_run(server->iou);
	signal(SIGINT, SIG_IGN); /* the bottom half is about to go */
	signal(SIGTERM, SIG_IGN);
	printf("%" PRIu64 " connections, %" PRIu64 " bytes echoed, %" PRIu64 " closed as idle, %" PRIu64 " failed\n",
	       server->n_connections, server->n_bytes, server->n_idle, server->n_failed);
	return result < 0 ? fail("loop", result) : EXIT_SUCCESS;
}

static unsigned long number(const char *text, unsigned long min, unsigned long max)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || value < min || value > max) {
		fprintf(stderr, "echo: '%s' is not a number from %lu to %lu\n", text, min, max);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	static const char usage[] = "usage: echo [-p PORT] [-t IDLE_SECONDS] [-c MAX]\n"
				    "  -p PORT          listen there (7777); 0: a free port\n"
				    "  -t IDLE_SECONDS  close connections idle for so long (60); 0: never\n"
				    "  -c MAX           serve at most so many at once (10000)\n";
	struct server server = { .multishot = true, .idle_ns = 60 * SECOND_NS, .max_connections = 10000 };
	uint16_t port = 7777;
	int opt, status;

	opterr = 0; /* the usage says it */
	while ((opt = getopt(argc, argv, "p:t:c:h")) != -1) {
		if (opt == 'p') {
			port = (uint16_t)number(optarg, 0, UINT16_MAX);
		} else if (opt == 't') {
			server.idle_ns = number(optarg, 0, UINT32_MAX) * SECOND_NS;
		} else if (opt == 'c') {
			server.max_connections = (unsigned)number(optarg, 1, UINT_MAX);
		} else {
			fputs(usage, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? EXIT_SUCCESS : 2;
		}
	}
	if (optind < argc) {
		fputs(usage, stderr);
		return 2;
	}
	raise_file_limit();
	server.waiting_end = &server.waiting;
	server.iou = iou_new(256);
	if (!server.iou)
		return fail("io_uring", -errno);
	status = serve_until_signal(&server, port);
	iou_free(server.iou);
	return status;
}
