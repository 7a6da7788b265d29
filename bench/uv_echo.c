/* SPDX-License-Identifier: MIT */
/*
 * An echo server on libuv: a stream handle for each connection, read into its own buffer, written with its own request.
 * While a write waits for room it does not read. See raw_echo.h.
 */

#include "raw_echo.h"

#include <uv.h>

struct connection {
	uv_tcp_t stream;
	uv_write_t write;
	char buffer[ECHO_BUFFER];
};

static void must_uv(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "bench: %s: %s\n", what, uv_strerror(result));
		exit(1);
	}
}

static void on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void end(struct connection *conn)
{
	if (!uv_is_closing((uv_handle_t *)&conn->stream))
		uv_close((uv_handle_t *)&conn->stream, on_closed);
}

static void on_buffer(uv_handle_t *handle, size_t size, uv_buf_t *buffer)
{
	struct connection *conn = handle->data;

	(void)size;
	*buffer = uv_buf_init(conn->buffer, sizeof(conn->buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer);

static void on_written(uv_write_t *write, int status)
{
	struct connection *conn = write->data;

	if (status < 0)
		end(conn);
	else if (!uv_is_active((uv_handle_t *)&conn->stream))
		must_uv(uv_read_start((uv_stream_t *)&conn->stream, on_buffer, on_read), "uv_read_start");
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
	struct connection *conn = stream->data;
	uv_buf_t text = uv_buf_init(buffer->base, (unsigned)(n > 0 ? n : 0));

	if (n == 0)
		return;
	if (n < 0 || uv_write(&conn->write, stream, &text, 1, on_written) < 0)
		end(conn);
	else if (uv_stream_get_write_queue_size(stream) > 0)
		uv_read_stop(stream);
}

static void on_connection(uv_stream_t *listener, int status)
{
	struct connection *conn;

	must_uv(status, "listen");
	conn = must_have(malloc(sizeof(*conn)), "memory");
	must_uv(uv_tcp_init(listener->loop, &conn->stream), "uv_tcp_init");
	conn->stream.data = conn->write.data = conn;
	if (uv_accept(listener, (uv_stream_t *)&conn->stream) < 0) {
		end(conn);
		return;
	}
	uv_tcp_nodelay(&conn->stream, 1);
	must_uv(uv_read_start((uv_stream_t *)&conn->stream, on_buffer, on_read), "uv_read_start");
}

int main(void)
{
	uv_loop_t *loop = uv_default_loop();
	uv_tcp_t listener;
	struct sockaddr_in address;
	uv_os_fd_t fd;

	echo_raise_limit();
	signal(SIGPIPE, SIG_IGN);
	must_uv(uv_ip4_addr("127.0.0.1", 0, &address), "address");
	must_uv(uv_tcp_init(loop, &listener), "uv_tcp_init");
	must_uv(uv_tcp_bind(&listener, (struct sockaddr *)&address, 0), "bind");
	must_uv(uv_listen((uv_stream_t *)&listener, ECHO_BACKLOG, on_connection), "listen");
	must_uv(uv_fileno((uv_handle_t *)&listener, &fd), "uv_fileno");
	echo_say_port(fd);
	return uv_run(loop, UV_RUN_DEFAULT);
}
