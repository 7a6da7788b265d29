/* SPDX-License-Identifier: MIT */
/*
 * sum: SHA-256 of files, in parallel; its output is that of sha256sum.
 *
 *     sum [FILE...]         print the sums; FILE - or none: standard input
 *     sum -c [LIST...]      check the sums in LIST, which sum or sha256sum printed
 *
 *     names ---> window: a place for each file, in the order of the names ---> lines of output
 *                  |                                           ^
 *                  `-> lane:  open ---> read ---> hash ---> the sum
 *                                        ^ `-- chunk --^
 *
 * A lane takes one file at a time. It reads through the ring into one of its two chunks while a worker
 * hashes the other, so that even a single file keeps the disk and a CPU busy; many lanes keep all CPUs busy.
 * The window says how far the reading may be ahead of the output. So memory has a bound whatever the files
 * are: MAX_LANES pairs of chunks (8 MiB), and WINDOW names and sums.
 */

#define _GNU_SOURCE
#include "iou.h"

#include <ctype.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	CHUNK = 256 << 10,
	MAX_LANES = 16,
	WINDOW = 1024,
	SMALL = 8 << 10, /* hashed on the spot: handing it to a worker would take longer */
	SUM_SIZE = 32,
};

/* A file, from its name's turn until its line is printed. */
struct file {
	const char *name;
	char *line; /* with -c: what the name lies in */
	bool done;
	int error;
	unsigned char sum[SUM_SIZE];
	unsigned char expected[SUM_SIZE]; /* with -c */
};

struct lane {
	struct sum *sum;
	struct lane *next;  /* on the list of the idle or the waiting */
	struct file *file;
	iou_op_t *reader;   /* opens and reads; NULL: nothing under way */
	iou_op_t *hasher;   /* the same */
	int fd;
	bool at_end;        /* nothing more is read: that was all, or there was an error */
	int error;
	unsigned n_read;    /* chunks; the i-th lies in chunks[i % 2] */
	unsigned n_hashed;
	size_t sizes[2];
	unsigned char *chunks[2];
	EVP_MD_CTX *digest;
};

struct sum {
	iou_t *iou;
	EVP_MD *sha256; /* fetched once: that takes longer than hashing a small file */

	char **names;   /* without -c: those still to come */
	FILE *list;     /* with -c */

	uint64_t head;  /* the file whose line is next */
	uint64_t tail;  /* the file that is started next */
	struct file window[WINDOW];

	unsigned n_lanes;
	struct lane *lanes[MAX_LANES];
	struct lane *idle;
	struct lane *waiting; /* for another lane to end: out of descriptors, or it reads standard input */
	unsigned n_open;
	bool stdin_is_read;

	uint64_t n_good, n_bad, n_unread, n_malformed; /* with -c, in this list */
	bool failed;
};


/* ---- Output, in the order of the names -------------------------------------------------------- */

static void put_escaped(const char *name, FILE *out)
{
	for (; *name; name++) {
		if (*name == '\n')
			fputs("\\n", out);
		else if (*name == '\r')
			fputs("\\r", out);
		else if (*name == '\\')
			fputs("\\\\", out);
		else
			putc(*name, out);
	}
}

static void complain(struct sum *sum, const char *name, const char *what)
{
	fputs("sum: ", stderr);
	put_escaped(name, stderr);
	fprintf(stderr, ": %s\n", what);
	sum->failed = true;
}

/* A name that would break its line is escaped, and its line says so by its first character. */
static void print_sum(const struct file *file)
{
	if (strpbrk(file->name, "\\\n\r"))
		putchar('\\');
	for (int i = 0; i < SUM_SIZE; i++) {
		putchar("0123456789abcdef"[file->sum[i] >> 4]);
		putchar("0123456789abcdef"[file->sum[i] & 15]);
	}
	fputs("  ", stdout);
	put_escaped(file->name, stdout);
	putchar('\n');
}

static void print_verdict(struct sum *sum, const struct file *file)
{
	const char *verdict = "OK";

	if (file->error) {
		verdict = "FAILED open or read";
		sum->n_unread++;
	} else if (memcmp(file->sum, file->expected, SUM_SIZE) != 0) {
		verdict = "FAILED";
		sum->n_bad++;
	} else {
		sum->n_good++;
	}
	if (strchr(file->name, '\n')) { /* nothing else is escaped here */
		putchar('\\');
		put_escaped(file->name, stdout);
	} else {
		fputs(file->name, stdout);
	}
	printf(": %s\n", verdict);
}

static void print_done(struct sum *sum)
{
	for (; sum->head < sum->tail && sum->window[sum->head % WINDOW].done; sum->head++) {
		struct file *file = &sum->window[sum->head % WINDOW];

		if (file->error)
			complain(sum, file->name, strerror(-file->error));
		if (sum->list)
			print_verdict(sum, file);
		else if (!file->error)
			print_sum(file);
		free(file->line);
	}
}


/* ---- Lanes ------------------------------------------------------------------------------------ */

static void start_files(struct sum *sum);
static int go_on(struct lane *lane);

static void open_file(struct lane *lane);

/* The file is done, and the lane free for the next. */
static void finish(struct lane *lane)
{
	struct sum *sum = lane->sum;
	struct lane *waiting = sum->waiting;

	if (lane->fd == STDIN_FILENO)
		sum->stdin_is_read = false;
	else if (lane->fd > 0 && sum->n_open--)
		close(lane->fd);
	if (!lane->error && !EVP_DigestFinal_ex(lane->digest, lane->file->sum, NULL))
		lane->error = -EIO;
	lane->file->error = lane->error;
	lane->file->done = true;
	lane->next = sum->idle;
	sum->idle = lane;

	sum->waiting = NULL;
	while (waiting) {
		struct lane *next = waiting->next;

		open_file(waiting);
		waiting = next;
	}
}

static void wait_for_another(struct lane *lane)
{
	lane->next = lane->sum->waiting;
	lane->sum->waiting = lane;
}

/* No more is read; what has been read is of no use either. */
static void fail(struct lane *lane, int error)
{
	lane->at_end = true;
	if (!lane->error)
		lane->error = error;
}

static int on_open(void *data)
{
	struct lane *lane = data;
	int result = lane->reader->result;

	lane->reader = NULL;
	if ((result == -EMFILE || result == -ENFILE) && lane->sum->n_open > 0) {
		wait_for_another(lane);
		return 0;
	}
	if (result < 0) {
		fail(lane, result);
	} else {
		lane->fd = result;
		lane->sum->n_open++;
	}
	return go_on(lane);
}

static void open_file(struct lane *lane)
{
	struct sum *sum = lane->sum;

	if (strcmp(lane->file->name, "-") == 0) {
		if (sum->stdin_is_read) {
			wait_for_another(lane);
			return;
		}
		sum->stdin_is_read = true;
		lane->fd = STDIN_FILENO;
		go_on(lane);
		return;
	}
	lane->reader = iou_op_new(sum->iou);
	if (!lane->reader) {
		fail(lane, -ENOMEM);
		finish(lane);
		return;
	}
	io_uring_prep_openat(lane->reader->sqe, AT_FDCWD, lane->file->name, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
	iou_op_queue(sum->iou, lane->reader, on_open, lane);
}
