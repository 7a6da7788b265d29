/* SPDX-License-Identifier: MIT */
/*
 * The raw limit for `sum`: SHA-256 of files with nothing between the program and the system.
 *
 *     raw_sum [-j THREADS] [-b KIB] [-m] < LIST
 *
 * LIST has one file name a line. Each thread takes the next name, opens the file, reads it into one
 * buffer of its own that stays in its core's cache (or maps it: -m) and hashes it with libcrypto. The
 * sums are printed in the list's order when all are there, in sha256sum's form (names without escapes).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct file {
	char *name;
	int error;
	unsigned char sum[32];
};

static struct file *files;
static size_t n_files;
static atomic_size_t next_file;
static const EVP_MD *sha256;
static size_t buffer_size = 128 << 10;
static bool mapped;

static int hash_read(int fd, EVP_MD_CTX *ctx, void *buffer)
{
	ssize_t n;

	while ((n = read(fd, buffer, buffer_size)) > 0)
		EVP_DigestUpdate(ctx, buffer, (size_t)n);
	return n < 0 ? errno : 0;
}

static int hash_mapped(int fd, EVP_MD_CTX *ctx)
{
	struct stat st;
	void *map;

	if (fstat(fd, &st) != 0)
		return errno;
	if (st.st_size == 0)
		return 0;
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (map == MAP_FAILED)
		return errno;
	EVP_DigestUpdate(ctx, map, (size_t)st.st_size);
	munmap(map, (size_t)st.st_size);
	return 0;
}

static void *hash_files(void *unused)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	void *buffer = aligned_alloc(4096, buffer_size);
	size_t i;

	(void)unused;
	if (!ctx || !buffer)
		abort();
	while ((i = atomic_fetch_add_explicit(&next_file, 1, memory_order_relaxed)) < n_files) {
		int fd = open(files[i].name, O_RDONLY | O_CLOEXEC);

		if (fd < 0) {
			files[i].error = errno;
			continue;
		}
		EVP_DigestInit_ex2(ctx, sha256, NULL);
		files[i].error = mapped ? hash_mapped(fd, ctx) : hash_read(fd, ctx, buffer);
		EVP_DigestFinal_ex(ctx, files[i].sum, NULL);
		close(fd);
	}
	free(buffer);
	EVP_MD_CTX_free(ctx);
	return NULL;
}

static void read_list(void)
{
	size_t room = 0, size = 0;
	char *line = NULL;
	ssize_t n;

	while ((n = getline(&line, &size, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (n_files == room && !(files = realloc(files, (room = room * 2 + 1024) * sizeof(*files))))
			abort();
		files[n_files++] = (struct file){ .name = line };
		line = NULL;
		size = 0;
	}
	free(line);
}

static int print_sums(void)
{
	int status = 0;

	for (size_t i = 0; i < n_files; i++) {
		if (files[i].error) {
			fprintf(stderr, "raw_sum: %s: %s\n", files[i].name, strerror(files[i].error));
			status = 1;
			continue;
		}
		for (int k = 0; k < 32; k++) {
			putchar_unlocked("0123456789abcdef"[files[i].sum[k] >> 4]);
			putchar_unlocked("0123456789abcdef"[files[i].sum[k] & 15]);
		}
		printf("  %s\n", files[i].name);
	}
	return fflush(stdout) ? 1 : status;
}

int main(int argc, char **argv)
{
	pthread_t threads[256];
	int n_threads, opt;
	cpu_set_t cpus;

	n_threads = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
	while ((opt = getopt(argc, argv, "j:b:m")) != -1) {
		if (opt == 'j')
			n_threads = atoi(optarg);
		else if (opt == 'b')
			buffer_size = (size_t)atoi(optarg) << 10;
		else if (opt == 'm')
			mapped = true;
		else
			return 2;
	}
	if (n_threads < 1 || n_threads > 256 || buffer_size < 4096)
		return 2;
	sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (!sha256)
		return 1;
	read_list();
	for (int i = 0; i < n_threads; i++) {
		if (pthread_create(&threads[i], NULL, hash_files, NULL) != 0)
			abort();
	}
	for (int i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
	return print_sums();
}
