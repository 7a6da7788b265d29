/* SPDX-License-Identifier: MIT */
#ifndef BENCH_RAW_ECHO_H
#define BENCH_RAW_ECHO_H

/* What the echo servers of bench/ have in common: they listen on a free port of the loopback, say which on
 * stdout, as examples/echo does, and echo until they are killed. */

#include "bench.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { ECHO_BUFFER = 4096, ECHO_BACKLOG = 4096 };

struct echo_connection {
	int fd;
	int n_received;
	int n_sent;
	char buffer[ECHO_BUFFER];
};

static inline struct echo_connection *echo_connection_new(int fd)
{
	struct echo_connection *conn = must_have(malloc(sizeof(*conn)), "memory");

	conn->fd = fd;
	return conn;
}

static inline void echo_connection_end(struct echo_connection *conn)
{
	close(conn->fd);
	free(conn);
}

static inline void echo_say_port(int fd)
{
	struct sockaddr_in address;
	socklen_t size = sizeof(address);

	must_errno(getsockname(fd, (struct sockaddr *)&address, &size), "getsockname");
	printf("listening on port %u\n", ntohs(address.sin_port));
	fflush(stdout);
}

/* A socket that listens; `type` may hold SOCK_NONBLOCK. */
static inline int echo_listen(int type)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = must_errno(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0), "socket"), on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* accepted sockets inherit it */
	must_errno(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
	must_errno(listen(fd, ECHO_BACKLOG), "listen");
	return fd;
}

/* As many descriptors as the system allows. */
static inline void echo_raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

#endif
