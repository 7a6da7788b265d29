/* SPDX-License-Identifier: MIT */
/*
 * raw_walk: what a tree walk costs without iou: threads, getdents64, openat, and fstatat for sizes.
 *
 *     raw_walk [-j THREADS] [-b BUFFER_KIB] [-n] PATH
 *
 * Prints directories, files, symlinks and others, then apparent size and disk usage (-n: counts only), in
 * the order of the walker's columns. A limit to measure against, not a tool: it holds a descriptor for each directory
 * with pending subdirectories, counts a hard-linked file's size each time, and stops at the first error.
 *
 * Each thread keeps a stack of pending directories. One that runs dry says so and sleeps; one that sees this
 * puts half of its stack on the shared one.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

struct node {
	struct node *next, *parent;
	atomic_uint n_refs; /* its own reading and its children still to be opened */
	int fd;
	char name[];
};

struct count {
	uint64_t n_dirs, n_files, n_links, n_others, apparent, disk;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards shared, n_waiting's changes, total */
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static struct node *shared;
static atomic_uint n_waiting;
static struct count total;
static unsigned n_threads = 2;
static size_t buffer_size = 32 << 10;
static bool counts_only;

static void die(const char *what)
{
	fprintf(stderr, "raw_walk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct node *node_new(struct node *parent, const char *name)
{
	size_t length = strlen(name) + 1;
	struct node *node = malloc(sizeof(*node) + length);

	if (!node)
		die(name);
	node->parent = parent;
	atomic_init(&node->n_refs, 1);
	memcpy(node->name, name, length);
	return node;
}

static void node_put(struct node *node)
{
	if (atomic_fetch_sub_explicit(&node->n_refs, 1, memory_order_acq_rel) == 1) {
		close(node->fd);
		free(node);
	}
}

static void add_size(int fd, const char *name, struct count *count)
{
	struct stat st;

	if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW))
		die(name);
	count->apparent += (uint64_t)st.st_size;
	count->disk += (uint64_t)st.st_blocks * 512;
}

static struct node *read_dir(struct node *dir, struct node *stack, char *buffer, struct count *count)
{
	ssize_t n;

	dir->fd = openat(dir->parent ? dir->parent->fd : AT_FDCWD, dir->name,
			 O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir->fd < 0)
		die(dir->name);
	if (dir->parent)
		node_put(dir->parent);
	while ((n = getdents64(dir->fd, buffer, buffer_size)) > 0) {
		for (char *p = buffer; p < buffer + n;) {
			struct dirent64 *entry = (struct dirent64 *)p;
			const char *name = entry->d_name;

			p += entry->d_reclen;
			if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
				continue;
			if (!counts_only)
				add_size(dir->fd, name, count);
			if (entry->d_type == DT_DIR) {
				struct node *child = node_new(dir, name);

				atomic_fetch_add_explicit(&dir->n_refs, 1, memory_order_relaxed);
				child->next = stack;
				stack = child;
				count->n_dirs++;
			} else if (entry->d_type == DT_REG) {
				count->n_files++;
			} else if (entry->d_type == DT_LNK) {
				count->n_links++;
			} else {
				count->n_others++;
			}
		}
	}
	if (n < 0)
		die(dir->name);
	node_put(dir);
	return stack;
}

/* Half of the stack, every other one, for those who wait. */
static void share(struct node *stack)
{
	pthread_mutex_lock(&lock);
	while (stack && stack->next) {
		struct node *gift = stack->next;

		stack->next = gift->next;
		gift->next = shared;
		shared = gift;
		stack = stack->next;
	}
	pthread_cond_broadcast(&more);
	pthread_mutex_unlock(&lock);
}

/* Some of what is shared, or NULL when all threads wait for it: then nothing is left. */
static struct node *take(void)
{
	struct node *stack;

	pthread_mutex_lock(&lock);
	n_waiting++;
	while (!shared && n_waiting < n_threads)
		pthread_cond_wait(&more, &lock);
	stack = shared;
	shared = NULL;
	if (stack)
		n_waiting--;
	else
		pthread_cond_broadcast(&more);
	pthread_mutex_unlock(&lock);
	return stack;
}

static void *run(void *arg)
{
	struct count count = { 0 };
	char *buffer = malloc(buffer_size);
	struct node *stack;

	if (!buffer)
		die("memory");
	while ((stack = take())) {
		while (stack) {
			struct node *dir = stack;

			stack = read_dir(dir, stack->next, buffer, &count);
			if (stack && stack->next && atomic_load_explicit(&n_waiting, memory_order_relaxed))
				share(stack);
		}
	}
	pthread_mutex_lock(&lock);
	total.n_dirs += count.n_dirs;
	total.n_files += count.n_files;
	total.n_links += count.n_links;
	total.n_others += count.n_others;
	total.apparent += count.apparent;
	total.disk += count.disk;
	pthread_mutex_unlock(&lock);
	free(buffer);
	return arg;
}

static const char *options(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "j:b:n")) != -1) {
		switch (c) {
		case 'j': n_threads = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'b': buffer_size = strtoul(optarg, NULL, 10) << 10; break;
		case 'n': counts_only = true; break;
		default: n_threads = 0;
		}
	}
	if (optind + 1 != argc || !n_threads || n_threads > 64 || !buffer_size || buffer_size > 16 << 20) {
		fputs("usage: raw_walk [-j THREADS] [-b BUFFER_KIB] [-n] PATH\n", stderr);
		exit(2);
	}
	return argv[optind];
}

int main(int argc, char **argv)
{
	const char *path = options(argc, argv);
	pthread_t threads[64];
	struct rlimit files;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	shared = node_new(NULL, path);
	shared->next = NULL;
	total.n_dirs = 1;
	if (!counts_only)
		add_size(AT_FDCWD, path, &total);
	for (unsigned i = 0; i < n_threads; i++)
		if ((errno = pthread_create(&threads[i], NULL, run, NULL)))
			die("thread");
	for (unsigned i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
	printf("%llu %llu %llu %llu", (unsigned long long)total.n_dirs, (unsigned long long)total.n_files,
	       (unsigned long long)total.n_links, (unsigned long long)total.n_others);
	if (!counts_only)
		printf(" %llu %llu", (unsigned long long)total.apparent, (unsigned long long)total.disk);
	putchar('\n');
	return 0;
}
