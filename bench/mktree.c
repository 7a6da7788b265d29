/* SPDX-License-Identifier: MIT */
/*
 * mktree: make a scratch tree for the walks and sums, fast and always the same.
 *
 *     mktree [-d DIRS] [-f FILES] [-w WIDTH] [-s MIN[:MAX]] [-j N] ROOT
 *
 * DIRS directories (ROOT is the first of them) with WIDTH subdirectories each, numbered as in a heap:
 * directory i lies in directory (i - 1) / WIDTH. FILES regular files are dealt out to them in turn. Sizes
 * are spread evenly over MIN..MAX bytes; the contents are lines of text. N threads share the work: each
 * makes the subtrees below ROOT whose number is its own modulo N. ROOT must not exist yet.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATTERN (1u << 20)

static struct {
	uint64_t n_dirs, n_files, width, size_min, size_max;
	unsigned n_threads;
	int root;
	char *pattern;
} tree = { 1000, 20000, 10, 0, 0, 2, -1, NULL };

static void die(const char *what)
{
	fprintf(stderr, "mktree: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The same number for the same file, whoever makes it (splitmix64). */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static void fill_pattern(void)
{
	tree.pattern = malloc(PATTERN);
	if (!tree.pattern)
		die("memory");
	for (size_t i = 0; i < PATTERN; i++) {
		uint64_t r = mix(i);

		tree.pattern[i] = r % 40 == 0 ? '\n' : (char)('a' + (r >> 8) % 26);
	}
}

static void make_file(int dir, uint64_t number)
{
	char name[32];
	uint64_t spread = tree.size_max - tree.size_min + 1;
	uint64_t left = tree.size_min + (spread ? mix(number) % spread : 0);
	size_t at = mix(~number) % (PATTERN / 2);
	int fd;

	snprintf(name, sizeof(name), "file%07llu", (unsigned long long)number);
	if (!left) {
		if (mknodat(dir, name, S_IFREG | 0644, 0))
			die(name);
		return;
	}
	fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		die(name);
	while (left) {
		size_t most = PATTERN - at;
		ssize_t n = write(fd, tree.pattern + at, left < most ? left : most);

		if (n <= 0)
			die(name);
		left -= (uint64_t)n;
		at = 0;
	}
	close(fd);
}

static void fill_dir(int fd, uint64_t number)
{
	for (uint64_t i = number; i < tree.n_files; i += tree.n_dirs)
		make_file(fd, i);
}

/* Directory `number` and all below it; the depth is the logarithm of the number. */
static void make_dir(int parent, uint64_t number)
{
	char name[32];
	int fd;

	snprintf(name, sizeof(name), "dir%06llu", (unsigned long long)number);
	if (mkdirat(parent, name, 0755))
		die(name);
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		die(name);
	fill_dir(fd, number);
	for (uint64_t i = 1; i <= tree.width && number * tree.width + i < tree.n_dirs; i++)
		make_dir(fd, number * tree.width + i);
	close(fd);
}

static void *make_share(void *arg)
{
	unsigned share = (unsigned)(uintptr_t)arg;

	for (uint64_t i = 1; i <= tree.width && i < tree.n_dirs; i++)
		if (i % tree.n_threads == share)
			make_dir(tree.root, i);
	return NULL;
}

static uint64_t number(const char *text, char **end)
{
	uint64_t value;

	errno = 0;
	value = strtoull(text, end, 10);
	if (errno || *end == text || *text == '-') {
		fprintf(stderr, "mktree: not a number: %s\n", text);
		exit(2);
	}
	return value;
}

static uint64_t whole_number(const char *text)
{
	char *end;
	uint64_t value = number(text, &end);

	if (*end) {
		fprintf(stderr, "mktree: not a number: %s\n", text);
		exit(2);
	}
	return value;
}

static void usage(FILE *out)
{
	fputs("usage: mktree [-d DIRS] [-f FILES] [-w WIDTH] [-s MIN[:MAX]] [-j N] ROOT\n", out);
}

static int options(int argc, char **argv)
{
	char *end;
	int c;

	while ((c = getopt(argc, argv, "d:f:w:s:j:h")) != -1) {
		switch (c) {
		case 'd': tree.n_dirs = whole_number(optarg); break;
		case 'f': tree.n_files = whole_number(optarg); break;
		case 'w': tree.width = whole_number(optarg); break;
		case 'j': tree.n_threads = (unsigned)whole_number(optarg); break;
		case 's':
			tree.size_min = tree.size_max = number(optarg, &end);
			if (*end == ':')
				tree.size_max = whole_number(end + 1);
			break;
		case 'h': usage(stdout); exit(0);
		default: usage(stderr); exit(2);
		}
	}
	if (optind + 1 != argc || !tree.n_dirs || !tree.width || !tree.n_threads || tree.n_threads > 64 ||
	    tree.size_max < tree.size_min) {
		usage(stderr);
		exit(2);
	}
	return optind;
}

int main(int argc, char **argv)
{
	const char *root = argv[options(argc, argv)];
	pthread_t threads[64];

	fill_pattern();
	if (mkdir(root, 0755))
		die(root);
	tree.root = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree.root < 0)
		die(root);
	for (unsigned i = 0; i < tree.n_threads; i++)
		if ((errno = pthread_create(&threads[i], NULL, make_share, (void *)(uintptr_t)i)))
			die("thread");
	fill_dir(tree.root, 0);
	for (unsigned i = 0; i < tree.n_threads; i++)
		pthread_join(threads[i], NULL);
	free(tree.pattern);
	close(tree.root);
	return 0;
}
