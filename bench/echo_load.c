/* SPDX-License-Identifier: MIT */
/*
 * echo_load CONNECTIONS SERVER [ARGUMENT...]: how many messages of 128 bytes a second an echo server echoes.
 *
 * Starts the server with `-p 0` after its arguments, reads from its stdout on which port it listens, and keeps one
 * message under way on each connection for BENCH_MS. The load has the first CPU and the server the second, if there
 * are two. It runs on the bare ring, so that the server is what limits, if anything; and since that is never sure on
 * one machine it also reports what CPU time a message cost the server (per_message_ns).
 */

#include "bench.h"
#include "raw.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { MESSAGE = 128 };

struct client {
	int fd;
	unsigned n_received;
	char text[MESSAGE];
	char echoed[MESSAGE];
};

static struct io_uring ring;
static uint64_t n_messages;

static void run_on(int nth)
{
	static cpu_set_t allowed;
	cpu_set_t one;

	if (CPU_COUNT(&allowed) == 0)
		must_errno(sched_getaffinity(0, sizeof(allowed), &allowed), "sched_getaffinity");
	if (CPU_COUNT(&allowed) < 2)
		return;
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && nth-- == 0)
			CPU_SET(cpu, &one);
	must_errno(sched_setaffinity(0, sizeof(one), &one), "sched_setaffinity");
}

/* Returns its process id; *port is where it listens. */
static pid_t start_server(char **argv, int argc, uint16_t *port)
{
	char **args = must_have(calloc((size_t)argc + 3, sizeof(*args)), "memory"), line[128];
	unsigned number = 0;
	int out[2];
	FILE *said;
	pid_t pid;

	must_errno(pipe(out), "pipe");
	pid = must_errno(fork(), "fork");
	if (pid == 0) {
		for (int i = 0; i < argc; i++)
			args[i] = argv[i];
		args[argc] = "-p";
		args[argc + 1] = "0";
		run_on(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		execvp(args[0], args);
		_exit(errno == ENOENT ? BENCH_MISSING : 1);
	}
	free(args);
	close(out[1]);
	said = must_have(fdopen(out[0], "r"), "fdopen");
	if (!fgets(line, sizeof(line), said) || sscanf(line, "listening on port %u", &number) != 1) {
		int status = 0;

		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	*port = (uint16_t)number; /* `said` stays open: the server may print on */
	return pid;
}

static uint64_t cpu_of(pid_t pid)
{
	struct timespec used;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
		return 0;
	return (uint64_t)used.tv_sec * 1000000000 + (uint64_t)used.tv_nsec;
}

static void connect_to(struct client *client, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	client->fd = must_errno(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	must_errno(connect(client->fd, (struct sockaddr *)&address, sizeof(address)), "connect");
	for (int i = 0; i < MESSAGE; i++)
		client->text[i] = (char)(client->fd * 7 + i);
}

static struct io_uring_sqe *next_sqe(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe) {
		must(io_uring_submit(&ring), "io_uring_submit");
		sqe = must_have(io_uring_get_sqe(&ring), "io_uring_get_sqe");
	}
	return sqe;
}

static void receive(struct client *client)
{
	struct io_uring_sqe *sqe = next_sqe();

	io_uring_prep_recv(sqe, client->fd, client->echoed + client->n_received, MESSAGE - client->n_received, 0);
	io_uring_sqe_set_data(sqe, client);
}

/* The send has no part in what follows: its completion (data NULL) only says that nothing went wrong. */
static void send_message(struct client *client)
{
	struct io_uring_sqe *sqe = next_sqe();

	io_uring_prep_send(sqe, client->fd, client->text, MESSAGE, MSG_NOSIGNAL | MSG_WAITALL);
	io_uring_sqe_set_data(sqe, NULL);
	client->n_received = 0;
	receive(client);
}

static void on_completion(struct client *client, int result)
{
	if (result <= 0)
		die(client ? "recv" : "send", result ? result : ECONNRESET);
	if (!client)
		return;
	client->n_received += (unsigned)result;
	if (client->n_received < MESSAGE) {
		receive(client);
		return;
	}
	if (memcmp(client->text, client->echoed, MESSAGE) != 0)
		die("what came back", EPROTO);
	n_messages++;
	send_message(client);
}

static void load_until(uint64_t end_ns)
{
	while (now_ns() < end_ns) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;
		int ret = io_uring_submit_and_wait(&ring, 1);

		if (ret != -EINTR)
			must(ret, "io_uring_submit_and_wait");
		io_uring_for_each_cqe(&ring, head, cqe) {
			on_completion(io_uring_cqe_get_data(cqe), cqe->res);
			n++;
		}
		io_uring_cq_advance(&ring, n);
	}
}

int main(int argc, char **argv)
{
	int n_clients = argc > 2 ? atoi(argv[1]) : 0;
	uint64_t start_ns, took_ns, used_ns, n_before;
	struct client *clients;
	struct rlimit limit;
	uint16_t port = 0;
	pid_t server;

	if (n_clients < 1) {
		fprintf(stderr, "usage: echo_load CONNECTIONS SERVER [ARGUMENT...]\n");
		return 2;
	}
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	server = start_server(argv + 2, argc - 2, &port);
	run_on(0);
	raw_ring_open(&ring, 2048);
	clients = must_have(calloc((size_t)n_clients, sizeof(*clients)), "memory");
	for (int i = 0; i < n_clients; i++)
		connect_to(&clients[i], port);
	for (int i = 0; i < n_clients; i++)
		send_message(&clients[i]);
	load_until(now_ns() + bench_ns() / 5); /* warm */

	n_before = n_messages;
	used_ns = cpu_of(server);
	start_ns = now_ns();
	load_until(start_ns + bench_ns());
	took_ns = now_ns() - start_ns;
	used_ns = cpu_of(server) - used_ns;
	n_messages -= n_before;

	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	report("per_s", (double)n_messages * 1e9 / (double)took_ns);
	report("per_message_ns", (double)used_ns / (double)(n_messages ? n_messages : 1));
	return 0;
}
