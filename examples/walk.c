/* SPDX-License-Identifier: MIT */
/*
 * walk: what is in directory trees, and how large it is; in parallel.
 *
 *     walk [-j N] [-x] [-l] [-q] [-n] [PATH...]
 *
 * For each PATH a line: directories, regular files (each link), symlinks, others, bytes (as du -sb counts them), bytes
 * on the disk (as du -sB1 does; a file with several links once), lines. The total is their sum, but a file with several
 * links is once in its bytes: what du -c says, where no PATH lies in another (du leaves the second out, this does not).
 * Symlinks are not followed. With -x a mount point is counted, but neither its size nor what lies below.
 *
 *     pile ---> lanes, each a job on a worker that walks a stack of its own ---> what is left of the stack,
 *      ^                                                                         counts, links, messages, files
 *      `------------------------------ the loop <------------------------------------'      |
 *                                                                                           v -l
 *                              readers: open ---> read ---> count the lines (on a worker) ---> close
 *                                                  ^-----------------'
 *
 * io_uring cannot read directories, and takes longer to stat a file than a thread does: so the walk is jobs, and long
 * ones: one per directory would cost more in wake-ups than the reading. A job ends when its time is up, or when
 * another lane has nothing to do and it has something to give away. The loop shares out, so that there is no lock.
 *
 * The unit of work is a batch: an open directory, and names in it still to be looked at. A stack of them is walked
 * depth first, and a wide directory is read on only when what was read of it is done. So memory is bounded by
 * depth, not by width. Descriptors are bounded too: those deep in the stack are closed, and opened again when their
 * turn comes: as the parent of the one that was done before, or by their path, which may be longer than PATH_MAX.
 */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* sizes, and a struct dirent as the kernel's, on 32 bits too */
#include "iou.h"

#include <dirent.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	DIR_BUFFER = 32 << 10,
	MAX_NAMES = 64 << 10,     /* bytes of names, before a directory's reading waits */
	MAX_RESULTS = 64 << 10,   /* bytes of messages, links or names of files that a job returns, or little more */
	SLICE_US = 20000,         /* a job's longest time */
	SHARE_US = 100,           /* its shortest: sharing takes some 50 us itself */
	MIN_FDS = 12,             /* with fewer there would be files that cannot be opened */
	MAX_FDS = 1024,           /* more are of no use */
	MIN_LANES = 8,            /* where -j does not say: stats that wait for the disk want it, others do not mind */
	MAX_LANES = 256,
	MAX_READERS = 32,
	READ_SIZE = 128 << 10,
	PROGRESS_NS = 100000000,
	SMALL = 8 << 10,          /* lines counted on the spot: handing it to a worker would take longer */
};

#define OPEN_DIR (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* A growing array of bytes. */
struct bytes {
	char *data;
	size_t size, room;
};

/* A directory's name, as long as there is a batch of it or of one below it. */
struct dir {
	struct dir *parent; /* NULL: a PATH */
	atomic_uint n_refs;
	char name[];
};

/* Entries of a directory: those in names, and where reading was not finished, what follows. */
struct batch {
	struct batch *next;
	struct dir *dir; /* NULL: the entry is a PATH */
	int fd;          /* the directory; -1: closed for lack of descriptors */
	bool more;       /* the directory was not read to its end */
	off_t position;  /* where it goes on */
	dev_t dev;       /* known when fd was closed */
	ino_t ino;
	unsigned n_open; /* with -l: files that are read */
	size_t at, size; /* what is left of names */
	char *names;     /* each with a byte for its type before and a zero behind */
};

struct stack {
	struct batch *top;
	size_t n;
	size_t n_fds;
};

struct link {
	dev_t dev;
	ino_t ino;
	uint64_t apparent, disk;
};

/* The files with several links that were seen: a hash table, open addressing. */
struct link_set {
	struct link_seen {
		dev_t dev;
		ino_t ino;
		unsigned path; /* the last in which it was seen; 0: this place is free */
	} *places;
	size_t n, room;
};

/* What is counted, in the order of the columns. */
enum { DIRS, FILES, SYMLINKS, OTHERS, APPARENT, DISK, LINES, N_COUNTS };

/* A job's: what it has to walk, and what it found. */
struct lane {
	struct walk *walk;
	struct lane *next; /* on the list of the idle */
	struct stack stack;
	uint64_t began_us;
	char *buffer;
	struct bytes names;     /* the subdirectories of the directory that is read */
	struct bytes files;     /* with -l: its files */
	uint64_t counts[N_COUNTS];
	struct bytes links;
	struct bytes messages;
	struct stack unread;    /* with -l: batches of files */
};

/* Reads one file at a time. */
struct reader {
	struct walk *walk;
	struct reader *next; /* on the list of the idle */
	iou_op_t *op;        /* does one thing after another, as long as there is a file */
	struct batch *batch; /* in which the name lies */
	const char *name;
	int fd;
	int n_read;
	char *buffer;
};

/* All of it is the loop's; a job reads the settings, and root and dev once they are known. */
struct walk {
	iou_t *iou;
	bool one_fs, read_files, counts_only, quiet;
	unsigned n_lanes, n_readers;
	size_t fds_per_lane;
	size_t unread_fds; /* so many wait for the readers, then the lanes do */

	unsigned path;  /* which PATH this is, from 1 */
	int root;       /* its directory */
	dev_t dev;      /* and file system */
	struct stack pile;
	struct stack unread;
	struct lane *idle_lanes;
	struct reader *idle_readers;
	unsigned n_idle_lanes, n_idle_readers;
	atomic_uint n_hungry; /* lanes that have nothing to do; running ones look at it */

	iou_op_t *progress; /* a timer */
	bool progress_shown;
	uint64_t counts[N_COUNTS]; /* of this PATH */
	uint64_t total[N_COUNTS];
	struct link_set links;
	bool failed;

	struct lane lanes[MAX_LANES];
	struct reader readers[MAX_READERS];
};


/* ---- Small things ----------------------------------------------------------------------------- */

static void *must(void *memory)
{
	if (!memory) {
		fputs("walk: out of memory\n", stderr);
		_exit(EXIT_FAILURE);
	}
	return memory;
}

static void append(struct bytes *bytes, const void *data, size_t size)
{
	if (bytes->room - bytes->size < size) {
		bytes->room = (bytes->size + size) * 2;
		bytes->data = must(realloc(bytes->data, bytes->room));
	}
	memcpy(bytes->data + bytes->size, data, size);
	bytes->size += size;
}

/* So that a message stays one line, and does to a terminal what a line does. */
static void append_escaped(struct bytes *bytes, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		char code[8];

		if (c >= ' ' && c != 0x7f && c != '\\')
			append(bytes, text, 1);
		else if (c == '\\' || c == '\n')
			append(bytes, c == '\n' ? "\\n" : "\\\\", 2);
		else
			append(bytes, code, (size_t)snprintf(code, sizeof(code), "\\%03o", c));
	}
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void add_counts(uint64_t *to, const uint64_t *from)
{
	for (int i = 0; i < N_COUNTS; i++)
		to[i] += from[i];
}

static void push(struct stack *stack, struct batch *batch)
{
	batch->next = stack->top;
	stack->top = batch;
	stack->n++;
	stack->n_fds += batch->fd >= 0;
}

static struct batch *pop(struct stack *stack)
{
	struct batch *batch = stack->top;

	stack->top = batch->next;
	stack->n--;
	stack->n_fds -= batch->fd >= 0;
	return batch;
}


/* ---- Directories and batches ------------------------------------------------------------------ */

static void put_dir(struct dir *dir)
{
	while (dir && atomic_fetch_sub_explicit(&dir->n_refs, 1, memory_order_acq_rel) == 1) {
		struct dir *parent = dir->parent;

		free(dir);
		dir = parent;
	}
}

static struct dir *new_dir(struct dir *parent, const char *name)
{
	size_t size = strlen(name) + 1;
	struct dir *dir = must(malloc(sizeof(*dir) + size));

	dir->parent = parent;
	atomic_init(&dir->n_refs, 0);
	memcpy(dir->name, name, size);
	if (parent)
		atomic_fetch_add_explicit(&parent->n_refs, 1, memory_order_relaxed);
	return dir;
}

static struct batch *new_batch(struct dir *dir, int fd, const char *names, size_t size)
{
	struct batch *batch = must(calloc(1, sizeof(*batch)));

	batch->dir = dir;
	batch->fd = fd;
	if (dir)
		atomic_fetch_add_explicit(&dir->n_refs, 1, memory_order_relaxed);
	if (size) {
		batch->names = must(malloc(size));
		memcpy(batch->names, names, size);
		batch->size = size;
	}
	return batch;
}

static void free_batch(struct batch *batch)
{
	if (batch->fd >= 0)
		close(batch->fd);
	put_dir(batch->dir);
	free(batch->names);
	free(batch);
}

static char *next_name(struct batch *batch)
{
	char *name = batch->names + batch->at;

	batch->at += strlen(name) + 1;
	return name;
}

/* The path of a directory below another one, or all of it. Neither has a bound in length. */
static char *path_below(const struct dir *above, const struct dir *dir)
{
	size_t size = 1;
	char *path, *p;

	for (const struct dir *d = dir; d != above; d = d->parent)
		size += strlen(d->name) + 1;
	path = must(malloc(size));
	p = path + size - 1;
	*p = '\0';
	for (const struct dir *d = dir; d != above; d = d->parent) {
		size_t length = strlen(d->name);

		if (*p && d->name[length - 1] != '/')
			*--p = '/';
		p -= length;
		memcpy(p, d->name, length);
	}
	memmove(path, p, strlen(p) + 1);
	return path;
}

static void complain(struct bytes *messages, const struct dir *dir, const char *name, int error)
{
	char *path = path_below(NULL, dir);

	append(messages, "walk: ", 6);
	append_escaped(messages, path);
	if (name && *path && path[strlen(path) - 1] != '/')
		append(messages, "/", 1);
	append_escaped(messages, name ? name : "");
	append(messages, ": ", 2);
	append(messages, strerror(error), strlen(strerror(error)));
	append(messages, "\n", 1);
	free(path);
}


/* ---- Descriptors ------------------------------------------------------------------------------ */

/* Close half of them, those that are needed last. */
static void close_some(struct stack *stack)
{
	size_t n_left = (stack->n_fds + 1) / 2, n_kept = 0;
	struct stat st;

	for (struct batch *batch = stack->top; stack->n_fds > n_left; batch = batch->next) {
		if (batch->fd < 0 || n_kept++ < n_left)
			continue;
		if (fstat(batch->fd, &st) == 0) {
			batch->dev = st.st_dev;
			batch->ino = st.st_ino;
		}
		close(batch->fd);
		batch->fd = -1;
		stack->n_fds--;
	}
}

/* Open a path of any length, through no symlink. */
static int open_below(int fd, char *path)
{
	struct open_how how = { .flags = OPEN_DIR, .resolve = RESOLVE_NO_SYMLINKS };
	int at = -1;

	for (;;) {
		size_t length = strlen(path);
		char *slash = NULL;
		int next;

		if (length >= PATH_MAX) {
			slash = memrchr(path, '/', PATH_MAX - 1);
			*slash = '\0';
		}
		next = (int)syscall(SYS_openat2, at < 0 ? fd : at, *path ? path : ".", &how, sizeof(how));
		if (at >= 0)
			close(at);
		if (next < 0 || !slash)
			return next;
		at = next;
		path = slash + 1;
	}
}

static bool opened_again(struct lane *lane, struct batch *batch, int fd)
{
	if (fd >= 0 && batch->more && lseek(fd, batch->position, SEEK_SET) < 0) {
		close(fd);
		fd = -1;
	}
	batch->fd = fd;
	lane->stack.n_fds += fd >= 0;
	return fd >= 0;
}

/* Open the directory on the top by its path. */
static bool open_top(struct lane *lane)
{
	const struct dir *root = lane->stack.top->dir;
	char *path;
	int fd;

	while (root->parent)
		root = root->parent;
	path = path_below(root, lane->stack.top->dir);
	fd = open_below(lane->walk->root, path);
	free(path);
	return opened_again(lane, lane->stack.top, fd);
}

/* The directory on the top is done: open the one whose turn is next, if it was closed and lies above. */
static void climb(struct lane *lane)
{
	struct batch *from = lane->stack.top, *to = from->next;
	char path[PATH_MAX], *p = path + 1;
	const struct dir *dir = from->dir;
	struct stat st;
	int fd;

	if (from->fd < 0 || !to || to->fd != -1)
		return;
	memcpy(path, ".", 2);
	for (; dir && dir != to->dir && p + 4 < path + sizeof(path); dir = dir->parent, p += 3)
		memcpy(p, "/..", 4);
	fd = dir == to->dir ? openat(from->fd, path, OPEN_DIR) : -1;
	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_ino != to->ino || st.st_dev != to->dev)) { /* it was moved */
		close(fd);
		fd = -1;
	}
	opened_again(lane, to, fd);
}


/* ---- A lane's job ----------------------------------------------------------------------------- */

static void add_size(struct lane *lane, const struct stat *st)
{
	uint64_t apparent = st->st_size > 0 ? (uint64_t)st->st_size : 0;
	uint64_t disk = (uint64_t)st->st_blocks * 512;

	if (st->st_nlink > 1 && !S_ISDIR(st->st_mode)) { /* the loop knows whether it was seen before */
		struct link link = { .dev = st->st_dev, .ino = st->st_ino, .apparent = apparent, .disk = disk };

		append(&lane->links, &link, sizeof(link));
		return;
	}
	lane->counts[APPARENT] += apparent;
	lane->counts[DISK] += disk;
}

/* With -x: on another file system than its PATH. */
static bool is_elsewhere(const struct walk *walk, const struct stat *st)
{
	return walk->one_fs && st->st_dev != walk->dev;
}

/* Count it, unless it is a directory. Returns its type. */
static int look_at(struct lane *lane, const struct batch *batch, int type, const char *name)
{
	bool sizes = !lane->walk->counts_only, is_good = true;
	struct stat st;

	if (type == DT_UNKNOWN || (sizes && type != DT_DIR)) {
		is_good = fstatat(batch->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
		if (!is_good)
			complain(&lane->messages, batch->dir, name, errno);
		else
			type = IFTODT(st.st_mode);
		if (is_good && sizes && type != DT_DIR && !(batch->dir && is_elsewhere(lane->walk, &st)))
			add_size(lane, &st);
	}
	if (type != DT_DIR && type != DT_UNKNOWN)
		lane->counts[type == DT_REG ? FILES : type == DT_LNK ? SYMLINKS : OTHERS]++;
	if (type == DT_REG && is_good && lane->walk->read_files)
		append(&lane->files, name, strlen(name) + 1);
	return type;
}

/* A lane that has to wait gets something, once this one has enough done to make it worth it. */
static bool is_wanted(const struct lane *lane)
{
	return atomic_load_explicit(&lane->walk->n_hungry, memory_order_relaxed) > 0 &&
	       now_us() - lane->began_us >= SHARE_US;
}

static bool can_share(const struct lane *lane)
{
	const struct batch *top = lane->stack.top;

	return top->next || (top->at < top->size && top->at + strlen(top->names + top->at) + 1 < top->size);
}

static bool is_over(const struct lane *lane)
{
	return lane->messages.size > MAX_RESULTS || lane->links.size > MAX_RESULTS || lane->files.size > MAX_RESULTS ||
	       lane->unread.n_fds > lane->walk->fds_per_lane / 2 || now_us() - lane->began_us > SLICE_US;
}

/* Read the directory, to its end or until there is enough to do. Its subdirectories' turn comes afterwards. */
static void read_on(struct lane *lane, struct batch *batch)
{
	bool leave = false; /* all of it for others */

	lane->names.size = 0;
	do {
		ssize_t n = syscall(SYS_getdents64, batch->fd, lane->buffer, DIR_BUFFER);

		if (n < 0)
			complain(&lane->messages, batch->dir, NULL, errno);
		batch->more = n > 0;
		for (char *p = lane->buffer; p < lane->buffer + n;) {
			struct dirent *entry = (struct dirent *)p;
			const char *name = entry->d_name;
			int type = entry->d_type;

			p += entry->d_reclen;
			batch->position = entry->d_off;
			if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
				continue;
			if (leave || (type = look_at(lane, batch, type, name)) == DT_DIR) {
				char byte = (char)(type + 1);

				append(&lane->names, &byte, 1);
				append(&lane->names, name, strlen(name) + 1);
			} else if (!lane->walk->counts_only) {
				leave = is_wanted(lane);
			}
		}
	} while (batch->more && !leave && lane->names.size < MAX_NAMES && !is_over(lane));
	free(batch->names);
	batch->at = 0;
	batch->size = lane->names.size;
	batch->names = batch->size ? must(malloc(batch->size)) : NULL;
	if (batch->size)
		memcpy(batch->names, lane->names.data, batch->size);
}

/* Open a directory and count it. Returns a batch with all that is in it, or NULL. */
static struct batch *enter(struct lane *lane, const struct batch *batch, const char *name)
{
	struct walk *walk = lane->walk;
	struct batch *child;
	bool is_known = false;
	struct stat st;
	int fd, error;

	if (lane->stack.n_fds + lane->unread.n_fds >= walk->fds_per_lane)
		close_some(&lane->stack);
	fd = openat(batch->fd, name, OPEN_DIR);
	error = errno;
	if (!walk->counts_only || walk->one_fs)
		is_known = (fd >= 0 ? fstat(fd, &st) : fstatat(batch->fd, name, &st, AT_SYMLINK_NOFOLLOW)) == 0;
	if (is_known && !batch->dir)
		walk->dev = st.st_dev;
	lane->counts[DIRS]++;
	if (is_known && is_elsewhere(walk, &st)) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	if (is_known && !walk->counts_only)
		add_size(lane, &st);
	if (fd < 0) {
		complain(&lane->messages, batch->dir, name, error);
		return NULL;
	}
	if (!batch->dir)
		walk->root = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	child = new_batch(new_dir(batch->dir, name), fd, NULL, 0);
	child->more = true;
	return child;
}

/* With -l: the files that were found in the directory, for the readers. */
static void hand_over_files(struct lane *lane, struct batch *batch, bool is_done)
{
	int fd = batch->fd;

	if (fd >= 0 && is_done) {
		batch->fd = -1;
		lane->stack.n_fds--;
	} else if (fd >= 0) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	}
	push(&lane->unread, new_batch(batch->dir, fd, lane->files.data, lane->files.size));
	lane->files.size = 0;
}

/* Go on with the batch on the top: to the next subdirectory, or to its end. */
static void step(struct lane *lane)
{
	struct batch *batch = lane->stack.top, *child = NULL;
	bool is_done;

	if (batch->fd == -1 && !open_top(lane)) {
		complain(&lane->messages, batch->dir, NULL, errno);
		batch->at = batch->size;
		batch->more = false;
	}
	while (batch->at < batch->size && !child) {
		char *entry = next_name(batch);

		if (look_at(lane, batch, entry[0] - 1, entry + 1) == DT_DIR)
			child = enter(lane, batch, entry + 1);
		if (!child && (is_over(lane) || is_wanted(lane)))
			break;
	}
	if (batch->at == batch->size && batch->more && !child)
		read_on(lane, batch);
	is_done = batch->at == batch->size && !batch->more;
	if (is_done && !child)
		climb(lane);
	if (lane->files.size > 0)
		hand_over_files(lane, batch, is_done);
	if (is_done)
		free_batch(pop(&lane->stack));
	if (child)
		push(&lane->stack, child);
}

static int walk_on(void *data) /* on a worker thread */
{
	struct lane *lane = data;

	lane->began_us = now_us();
	while (lane->stack.top && !is_over(lane) && !(is_wanted(lane) && can_share(lane)))
		step(lane);
	return 0;
}


/* ---- The readers, with -l --------------------------------------------------------------------- */

static int share_out(struct walk *walk);
static int read_on_file(struct reader *reader);

static void hide_progress(struct walk *walk)
{
	if (walk->progress_shown)
		fputs("\r\033[K", stderr);
	walk->progress_shown = false;
}

static void print_messages(struct walk *walk, struct bytes *messages)
{
	if (!messages->size)
		return;
	hide_progress(walk);
	fwrite(messages->data, 1, messages->size, stderr);
	messages->size = 0;
	walk->failed = true;
}

static void complain_of_file(struct reader *reader, int error)
{
	struct bytes messages = { .data = NULL };

	complain(&messages, reader->batch->dir, reader->name, error);
	print_messages(reader->walk, &messages);
	free(messages.data);
}

static int on_open(void *data);

static void open_file(struct reader *reader)
{
	struct walk *walk = reader->walk;
	struct batch *batch = reader->batch = walk->unread.top;

	batch->n_open++;
	reader->name = next_name(batch);
	if (batch->at == batch->size)
		pop(&walk->unread); /* the last of its readers frees it */
	io_uring_prep_openat(reader->op->sqe, batch->fd, reader->name, O_RDONLY | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, 0);
	iou_op_queue(walk->iou, reader->op, on_open, reader);
}

static int start_readers(struct walk *walk)
{
	while (walk->unread.top && walk->idle_readers) {
		struct reader *reader = walk->idle_readers;

		reader->op = iou_op_new(walk->iou);
		if (!reader->op)
			return -ENOMEM;
		walk->idle_readers = reader->next;
		walk->n_idle_readers--;
		open_file(reader);
	}
	return 0;
}

/* In its last callback: the op is queued again for the next file, or goes back to the pool. */
static int on_finished(void *data)
{
	struct reader *reader = data;
	struct walk *walk = reader->walk;
	struct batch *batch = reader->batch;

	if (--batch->n_open == 0 && batch->at == batch->size)
		free_batch(batch);
	if (walk->unread.top) {
		open_file(reader);
	} else {
		reader->next = walk->idle_readers;
		walk->idle_readers = reader;
		walk->n_idle_readers++;
	}
	return share_out(walk);
}

static int count_lines(void *data) /* on a worker thread, or not */
{
	struct reader *reader = data;
	const char *p = reader->buffer, *end = p + reader->n_read;
	int n = 0;

	while ((p = memchr(p, '\n', (size_t)(end - p)))) {
		p++;
		n++;
	}
	return n;
}

static int on_counted(void *data)
{
	struct reader *reader = data;

	reader->walk->counts[LINES] += (uint64_t)reader->op->result;
	return read_on_file(reader);
}

static int on_read(void *data)
{
	struct reader *reader = data;
	iou_t *iou = reader->walk->iou;
	int n = reader->n_read = reader->op->result;

	if (n > SMALL && iou_op_async(iou, reader->op, count_lines, reader, on_counted, reader) == 0)
		return 0;
	if (n > 0) {
		reader->walk->counts[LINES] += (uint64_t)count_lines(reader);
		return read_on_file(reader);
	}
	if (n < 0)
		complain_of_file(reader, -n);
	io_uring_prep_close(reader->op->sqe, reader->fd);
	iou_op_queue(iou, reader->op, on_finished, reader);
	return 0;
}

static int read_on_file(struct reader *reader)
{
	io_uring_prep_read(reader->op->sqe, reader->fd, reader->buffer, READ_SIZE, (uint64_t)-1);
	iou_op_queue(reader->walk->iou, reader->op, on_read, reader);
	return 0;
}

static int on_open(void *data)
{
	struct reader *reader = data;

	reader->fd = reader->op->result;
	if (reader->fd >= 0)
		return read_on_file(reader);
	complain_of_file(reader, -reader->fd);
	return on_finished(reader);
}


/* ---- The loop: sharing out, and adding up ------------------------------------------------------ */

static struct link_seen *find_link(const struct link_set *set, dev_t dev, ino_t ino)
{
	size_t i = (size_t)((ino * 31 + dev) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (set->room - 1);

	while (set->places[i].path && (set->places[i].ino != ino || set->places[i].dev != dev))
		i = (i + 1) & (set->room - 1);
	return &set->places[i];
}

static void grow_links(struct link_set *set)
{
	struct link_set old = *set;

	set->room = old.room ? old.room * 2 : 1024;
	set->places = must(calloc(set->room, sizeof(*set->places)));
	for (size_t i = 0; i < old.room; i++)
		if (old.places[i].path)
			*find_link(set, old.places[i].dev, old.places[i].ino) = old.places[i];
	free(old.places);
}

/* A file with several links counts once for its PATH, and once in the total. */
static void add_links(struct walk *walk, struct bytes *links)
{
	for (size_t at = 0; at < links->size; at += sizeof(struct link)) {
		const struct link *link = (struct link *)(links->data + at);
		struct link_seen *seen;

		if (walk->links.n * 2 >= walk->links.room)
			grow_links(&walk->links);
		seen = find_link(&walk->links, link->dev, link->ino);
		if (seen->path == walk->path)
			continue;
		walk->counts[APPARENT] += link->apparent;
		walk->counts[DISK] += link->disk;
		if (seen->path) { /* in another PATH */
			walk->total[APPARENT] -= link->apparent;
			walk->total[DISK] -= link->disk;
		}
		walk->links.n += !seen->path;
		*seen = (struct link_seen){ .dev = link->dev, .ino = link->ino, .path = walk->path };
	}
	links->size = 0;
}

/* Fewer batches than lanes: cut up the one with most names. */
static void cut_up(struct stack *pile, size_t n_wanted)
{
	struct batch *longest = pile->top;

	for (struct batch *batch = pile->top; batch; batch = batch->next)
		if (batch->size - batch->at > longest->size - longest->at)
			longest = batch;
	for (size_t n_parts = n_wanted + 1 - pile->n; n_parts > 1; n_parts--) {
		size_t left = longest->size - longest->at, size = left / n_parts;
		char *names;

		if (!left)
			return;
		names = longest->names + longest->at;
		size += strlen(names + size) + 1;
		if (size == left)
			return;
		push(pile, new_batch(longest->dir, fcntl(longest->fd, F_DUPFD_CLOEXEC, 0), names, size));
		longest->at += size;
	}
}

/* The first n of one to another, in the same order, before what is there. */
static void move(struct stack *to, struct stack *from, size_t n)
{
	struct batch *rest = to->top, **end = &to->top;

	if (!rest && n == from->n) { /* all, as is usual */
		*to = *from;
		*from = (struct stack){ .top = NULL };
		return;
	}
	while (n--) {
		struct batch *batch = *end = pop(from);

		end = &batch->next;
		to->n++;
		to->n_fds += batch->fd >= 0;
	}
	*end = rest;
}

static int on_walked(void *data)
{
	struct lane *lane = data;
	struct walk *walk = lane->walk;
	int ret;

	add_counts(walk->counts, lane->counts);
	memset(lane->counts, 0, sizeof(lane->counts));
	add_links(walk, &lane->links);
	print_messages(walk, &lane->messages);
	move(&walk->pile, &lane->stack, lane->stack.n);
	move(&walk->unread, &lane->unread, lane->unread.n);
	lane->next = walk->idle_lanes;
	walk->idle_lanes = lane;
	walk->n_idle_lanes++;
	ret = start_readers(walk);
	return ret < 0 ? ret : share_out(walk);
}

/* What lies on the pile, to all idle lanes; unless enough waits for the readers. */
static int share_out(struct walk *walk)
{
	bool has_room = walk->unread.n_fds <= walk->unread_fds;
	int ret = 0;

	if (has_room && walk->pile.top && walk->pile.n < walk->n_idle_lanes)
		cut_up(&walk->pile, walk->n_idle_lanes);
	while (has_room && walk->pile.top && walk->idle_lanes && ret == 0) {
		struct lane *lane = walk->idle_lanes;

		move(&lane->stack, &walk->pile, (walk->pile.n + walk->n_idle_lanes - 1) / walk->n_idle_lanes);
		walk->idle_lanes = lane->next;
		walk->n_idle_lanes--;
		ret = iou_async(walk->iou, walk_on, lane, on_walked, lane);
	}
	atomic_store_explicit(&walk->n_hungry, has_room ? walk->n_idle_lanes : 0, memory_order_relaxed);
	if (walk->progress && walk->n_idle_lanes == walk->n_lanes && walk->n_idle_readers == walk->n_readers) {
		iou_op_cancel(walk->iou, walk->progress); /* all is done */
		walk->progress = NULL;
	}
	return ret;
}


/* ---- The program ------------------------------------------------------------------------------ */

static int on_progress(void *data)
{
	struct walk *walk = data;

	if (walk->progress) {
		fprintf(stderr, "\r%" PRIu64 " directories, %" PRIu64 " files\033[K", walk->counts[DIRS],
			walk->counts[FILES]);
		walk->progress_shown = true;
	}
	return 0;
}

/* A line of the table; its header where counts is NULL. */
static void print_line(const struct walk *walk, const uint64_t *counts, const char *path)
{
	static const struct {
		const char *name;
		int width;
	} columns[] = { { "directories", 11 }, { "files", 11 }, { "symlinks", 10 }, { "others", 8 },
			{ "bytes", 15 }, { "on disk", 15 }, { "lines", 13 } };
	struct bytes escaped = { .data = NULL };

	for (int i = 0; i < N_COUNTS; i++) {
		if ((walk->counts_only && (i == APPARENT || i == DISK)) || (!walk->read_files && i == LINES))
			continue;
		if (counts)
			printf("%*" PRIu64 " ", columns[i].width, counts[i]);
		else
			printf("%*s ", columns[i].width, columns[i].name);
	}
	append_escaped(&escaped, path);
	append(&escaped, "\n", 1);
	fwrite(" ", 1, 1, stdout);
	fwrite(escaped.data, 1, escaped.size, stdout);
	free(escaped.data);
}

static int walk_path(struct walk *walk, const char *path)
{
	char type = DT_UNKNOWN + 1;
	struct bytes entry = { .data = NULL };
	int ret;

	append(&entry, &type, 1);
	append(&entry, path, strlen(path) + 1);
	push(&walk->pile, new_batch(NULL, AT_FDCWD, entry.data, entry.size));
	free(entry.data);
	walk->path++;
	walk->root = -1;
	memset(walk->counts, 0, sizeof(walk->counts));
	walk->progress = walk->quiet ? NULL : iou_op_new(walk->iou);
	if (walk->progress)
		iou_op_timer(walk->iou, walk->progress, PROGRESS_NS, PROGRESS_NS, on_progress, walk);
	ret = share_out(walk);
	if (ret == 0)
		ret = iou_run(walk->iou);
	hide_progress(walk);
	if (walk->root >= 0)
		close(walk->root);
	add_counts(walk->total, walk->counts);
	if (walk->counts[DIRS] + walk->counts[FILES] + walk->counts[SYMLINKS] + walk->counts[OTHERS] > 0)
		print_line(walk, walk->counts, path);
	fflush(stdout);
	return ret;
}

static unsigned count_cpus(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (unsigned)CPU_COUNT(&cpus) : 1;
}

static void add_readers(struct walk *walk, unsigned long n)
{
	for (; walk->n_readers < n; walk->n_readers++, walk->n_idle_readers++) {
		struct reader *reader = &walk->readers[walk->n_readers];

		*reader = (struct reader){ .walk = walk, .next = walk->idle_readers };
		reader->buffer = must(malloc(READ_SIZE));
		walk->idle_readers = reader;
	}
}

static void add_lanes(struct walk *walk, unsigned long n)
{
	for (; walk->n_lanes < n; walk->n_lanes++, walk->n_idle_lanes++) {
		struct lane *lane = &walk->lanes[walk->n_lanes];

		*lane = (struct lane){ .walk = walk, .next = walk->idle_lanes };
		lane->buffer = must(malloc(DIR_BUFFER));
		walk->idle_lanes = lane;
	}
}

/* As many lanes and readers as there are descriptors for, and an iou with threads for all. */
static void set_up(struct walk *walk, unsigned long n_lanes, unsigned long n_cpus)
{
	iou_config_t config = { .entries = 2 * MAX_READERS };
	struct rlimit limit;
	unsigned long n_fds = 0;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur > MAX_FDS)
		limit.rlim_cur = MAX_FDS;
	for (int fd = 0; fd < (int)limit.rlim_cur; fd++)
		n_fds += fcntl(fd, F_GETFD) < 0;
	if (n_fds < MIN_FDS) {
		fprintf(stderr, "walk: too few file descriptors: %d have to be free (ulimit -n)\n", MIN_FDS);
		exit(EXIT_FAILURE);
	}
	n_fds -= 8; /* iou's, and the root */
	if (walk->read_files) {
		add_readers(walk, n_fds / 8 < 1 ? 1 : n_fds / 8 > MAX_READERS ? MAX_READERS : n_fds / 8);
		n_fds -= 2 * walk->n_readers; /* the file, and its directory */
		walk->unread_fds = n_fds / 4;
		n_fds -= walk->unread_fds;
	}
	add_lanes(walk, n_lanes > n_fds / 12 + 1 ? n_fds / 12 + 1 : n_lanes);
	walk->fds_per_lane = n_fds / walk->n_lanes;
	walk->fds_per_lane = walk->fds_per_lane < 8 ? 4 : walk->fds_per_lane - 4;
	config.workers = walk->n_lanes + (walk->read_files ? (unsigned)n_cpus : 0); /* so that lines need not wait */
	walk->iou = iou_new_with(&config);
	if (!walk->iou) {
		fprintf(stderr, "walk: io_uring: %s\n", strerror(errno));
		exit(EXIT_FAILURE);
	}
}

static void tear_down(struct walk *walk)
{
	iou_free(walk->iou);
	free(walk->links.places);
	for (unsigned i = 0; i < walk->n_readers; i++)
		free(walk->readers[i].buffer);
	for (unsigned i = 0; i < walk->n_lanes; i++) {
		struct lane *lane = &walk->lanes[i];

		free(lane->buffer);
		free(lane->names.data);
		free(lane->files.data);
		free(lane->links.data);
		free(lane->messages.data);
	}
}

static unsigned long number(const char *text, unsigned long min, unsigned long max)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || value < min || value > max) {
		fprintf(stderr, "walk: '%s' is not a number from %lu to %lu\n", text, min, max);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	static const char usage[] = "usage: walk [-j N] [-x] [-l] [-q] [-n] [PATH...]\n"
				    "  -j N  walk on N threads (as there are CPUs, at least 8)\n"
				    "  -x    stay on one file system\n"
				    "  -l    count the lines of all regular files too; in /proc also, unless -x keeps out of it\n"
				    "  -q    no progress line on a terminal\n"
				    "  -n    counts only, no sizes\n";
	static char *here[] = { ".", NULL };
	static struct walk walk;
	unsigned long n_cpus = count_cpus(), n_lanes = n_cpus > MIN_LANES ? n_cpus : MIN_LANES;
	char **paths;
	int opt, ret = 0;

	opterr = 0; /* the usage says it */
	walk.quiet = !isatty(STDERR_FILENO);
	while ((opt = getopt(argc, argv, "j:xlqnh")) != -1) {
		switch (opt) {
		case 'j': n_lanes = number(optarg, 1, MAX_LANES); break;
		case 'x': walk.one_fs = true; break;
		case 'l': walk.read_files = true; break;
		case 'q': walk.quiet = true; break;
		case 'n': walk.counts_only = true; break;
		default:
			fputs(usage, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? EXIT_SUCCESS : 2;
		}
	}
	set_up(&walk, n_lanes, n_cpus);
	print_line(&walk, NULL, "path");
	paths = optind < argc ? argv + optind : here;
	for (; ret >= 0 && *paths; paths++)
		ret = walk_path(&walk, *paths);
	if (ret >= 0 && argc - optind > 1)
		print_line(&walk, walk.total, "total");
	if (ret < 0)
		fprintf(stderr, "walk: io_uring: %s\n", strerror(-ret));
	tear_down(&walk);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "walk: write error: %s\n", strerror(errno));
		ret = -EIO;
	}
	return ret < 0 || walk.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
