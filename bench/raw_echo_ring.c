/* SPDX-License-Identifier: MIT */
/* An echo server on the bare ring: multishot accept; RECV and SEND in turn for each connection. See raw_echo.h. */

#include "raw_echo.h"

#include "raw.h"

static struct io_uring ring;

static struct io_uring_sqe *next_sqe(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe) {
		must(io_uring_submit(&ring), "io_uring_submit");
		sqe = must_have(io_uring_get_sqe(&ring), "io_uring_get_sqe");
	}
	return sqe;
}

/* n_received says which op is under way: 0 is this one. */
static void receive(struct echo_connection *conn)
{
	struct io_uring_sqe *sqe = next_sqe();

	conn->n_sent = conn->n_received = 0;
	io_uring_prep_recv(sqe, conn->fd, conn->buffer, ECHO_BUFFER, 0);
	io_uring_sqe_set_data(sqe, conn);
}

static void send_rest(struct echo_connection *conn)
{
	struct io_uring_sqe *sqe = next_sqe();

	io_uring_prep_send(sqe, conn->fd, conn->buffer + conn->n_sent, (size_t)(conn->n_received - conn->n_sent),
			   MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, conn);
}

static void accept_more(int listener)
{
	struct io_uring_sqe *sqe = next_sqe();

	io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data(sqe, NULL);
}

static void serve(struct echo_connection *conn, int result)
{
	if (result <= 0) {
		echo_connection_end(conn);
	} else if (conn->n_received == 0) {
		conn->n_received = result;
		send_rest(conn);
	} else {
		conn->n_sent += result;
		if (conn->n_sent < conn->n_received)
			send_rest(conn);
		else
			receive(conn);
	}
}

int main(void)
{
	int listener = echo_listen(0);

	echo_raise_limit();
	raw_ring_open(&ring, 256);
	accept_more(listener);
	echo_say_port(listener);
	for (;;) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;
		int ret = io_uring_submit_and_wait(&ring, 1);

		if (ret < 0 && ret != -EINTR)
			die("io_uring_submit_and_wait", ret);
		io_uring_for_each_cqe(&ring, head, cqe) {
			struct echo_connection *conn = io_uring_cqe_get_data(cqe);

			n++;
			if (conn) {
				serve(conn, cqe->res);
				continue;
			}
			if (cqe->res >= 0)
				receive(echo_connection_new(cqe->res));
			if (!(cqe->flags & IORING_CQE_F_MORE))
				accept_more(listener);
		}
		io_uring_cq_advance(&ring, n);
	}
}
