/* SPDX-License-Identifier: MIT */
/* An echo server on epoll: level-triggered, reads and writes that do not block. See raw_echo.h. */

#include "raw_echo.h"

#include <stdbool.h>
#include <sys/epoll.h>

static int epoll_fd;

static void watch(int op, int fd, uint32_t events, void *who)
{
	struct epoll_event event = {.events = events, .data.ptr = who};

	must_errno(epoll_ctl(epoll_fd, op, fd, &event), "epoll_ctl");
}

static void accept_all(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct echo_connection *conn = echo_connection_new(fd);

		conn->n_received = conn->n_sent = 0;
		watch(EPOLL_CTL_ADD, fd, EPOLLIN, conn);
	}
}

/* True when all was sent, else the rest waits for room, or the connection has ended. */
static bool send_rest(struct echo_connection *conn, bool waited)
{
	ssize_t n = send(conn->fd, conn->buffer + conn->n_sent, (size_t)(conn->n_received - conn->n_sent), MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN) {
		echo_connection_end(conn);
		return false;
	}
	conn->n_sent += n > 0 ? (int)n : 0;
	if (conn->n_sent == conn->n_received)
		return true;
	if (!waited)
		watch(EPOLL_CTL_MOD, conn->fd, EPOLLOUT, conn);
	return false;
}

static void serve(struct echo_connection *conn)
{
	ssize_t n;

	if (conn->n_sent < conn->n_received) {
		if (send_rest(conn, true))
			watch(EPOLL_CTL_MOD, conn->fd, EPOLLIN, conn);
		return;
	}
	n = recv(conn->fd, conn->buffer, ECHO_BUFFER, 0);
	if (n > 0) {
		conn->n_received = (int)n;
		conn->n_sent = 0;
		send_rest(conn, false);
	} else if (n == 0 || errno != EAGAIN) {
		echo_connection_end(conn);
	}
}

int main(void)
{
	struct epoll_event events[256];
	int listener = echo_listen(SOCK_NONBLOCK);

	echo_raise_limit();
	epoll_fd = must_errno(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
	watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
	echo_say_port(listener);
	for (;;) {
		int n = epoll_wait(epoll_fd, events, 256, -1);

		if (n < 0 && errno != EINTR)
			die("epoll_wait", errno);
		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				serve(events[i].data.ptr);
			else
				accept_all(listener);
		}
	}
}
