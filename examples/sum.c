/* SPDX-License-Identifier: MIT */
/*
 * sum: SHA-256 of files, in parallel; what it prints is what `sha256sum FILE...` and `sha256sum -c LIST...` print.
 *
 *     sum [FILE...]
 *     sum -c [LIST...]
 *
 *     names ---> window: a place for each file, in the order of the names ---> lines of output
 *                  |                                           ^
 *                  `-> lane:  open ---> read ---> hash ---> the sum
 *                                        ^ `-- chunk --^
 *
 * A lane takes one file at a time. As long as the file is in the page cache, a worker reads it and hashes it alone: the
 * bytes stay in that CPU's cache. From where it is not, the ring reads into one of the lane's two chunks while a
 * worker hashes the other, so that even a single file keeps the disk and a CPU busy; many lanes keep all CPUs busy.
 * The window says how far the reading may be ahead of the output. So memory has a bound whatever the files
 * are: MAX_LANES pairs of chunks (16 MiB), and WINDOW names and sums.
 */

#define _GNU_SOURCE
#include "iou.h"

#include <ctype.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	CHUNK = 256 << 10,
	CACHED = 128 << 10, /* read at once from the page cache: small enough to stay in a CPU's */
	MAX_LANES = 32,
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
	bool is_stdin;
	bool cached;        /* as far as is known: the ring need not read yet */
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
	enum { UNKNOWN, TWO_SPACES, ONE_SPACE } form; /* of its lines; sha256sum takes no mixture */

	uint64_t head;  /* the file whose line is next */
	uint64_t tail;  /* the file that is started next */
	struct file window[WINDOW];

	struct lane lanes[MAX_LANES];
	unsigned char *chunks; /* of all lanes */
	struct lane *idle;
	struct lane *waiting; /* for another lane to end: out of descriptors, or it reads standard input */
	unsigned n_open; /* files that are open or being opened */
	bool stdin_is_read;

	uint64_t n_checked, n_bad, n_unread, n_malformed; /* with -c, in this list */
	bool failed;
};


/* ---- Output, in the order of the names -------------------------------------------------------- */

#define ESCAPED "\\\n\r"

static void put_escaped(const char *name)
{
	for (;;) {
		size_t n = strcspn(name, ESCAPED);

		fwrite(name, 1, n, stdout);
		name += n;
		if (!*name)
			return;
		fputs(*name == '\n' ? "\\n" : *name == '\r' ? "\\r" : "\\\\", stdout);
		name++;
	}
}

/* Stays one line, and does to a terminal what a line does, whatever the name is. */
static void complain(struct sum *sum, const char *name, const char *what)
{
	fputs("sum: ", stderr);
	for (; *name; name++) {
		unsigned char c = (unsigned char)*name;

		if (c == '\\' || c == '\n')
			fputs(c == '\n' ? "\\n" : "\\\\", stderr);
		else if (c < ' ' || c == 0x7f)
			fprintf(stderr, "\\%03o", c);
		else
			putc(c, stderr);
	}
	fprintf(stderr, ": %s\n", what);
	sum->failed = true;
}

/* A name that would break its line is escaped, and its line says so by its first character. */
static void print_sum(const struct file *file)
{
	char hex[2 * SUM_SIZE];

	if (strpbrk(file->name, ESCAPED))
		putchar('\\');
	for (int i = 0; i < SUM_SIZE; i++) {
		hex[2 * i] = "0123456789abcdef"[file->sum[i] >> 4];
		hex[2 * i + 1] = "0123456789abcdef"[file->sum[i] & 15];
	}
	fwrite(hex, 1, sizeof(hex), stdout);
	fputs("  ", stdout);
	put_escaped(file->name);
	putchar('\n');
}

static void print_verdict(struct sum *sum, const struct file *file)
{
	bool good = !file->error && memcmp(file->sum, file->expected, SUM_SIZE) == 0;

	sum->n_unread += file->error != 0;
	sum->n_bad += !file->error && !good;
	sum->n_checked++;
	if (strpbrk(file->name, ESCAPED))
		putchar('\\');
	put_escaped(file->name);
	printf(": %s\n", file->error ? "FAILED open or read" : good ? "OK" : "FAILED");
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


/* ---- A lane ----------------------------------------------------------------------------------- */

static void start_files(struct sum *sum);
static void go_on(struct lane *lane);

/* The end of each callback. */
static int goes_on(struct lane *lane)
{
	go_on(lane);
	start_files(lane->sum);
	return 0;
}

/* Nothing more is read, and what was read is of no use. */
static void fail(struct lane *lane, int error)
{
	lane->at_end = true;
	lane->error = error;
}

/* What is in the page cache, from where the file is read next: up to its end (1), or to what is not there (0). */
static int hash_cached(struct lane *lane)
{
	static _Thread_local _Alignas(4096) unsigned char bytes[CACHED];
	struct iovec to = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct stat st;
	ssize_t n;

	while ((n = preadv2(lane->fd, &to, 1, -1, RWF_NOWAIT)) > 0)
		if (!EVP_DigestUpdate(lane->digest, bytes, (size_t)n))
			return -EIO;
	if (n < 0 || fstat(lane->fd, &st) < 0 || !S_ISREG(st.st_mode))
		return 0; /* the ring sees the end, or meets the error again */
	return lseek(lane->fd, 0, SEEK_CUR) >= st.st_size; /* on Linux 5.9 and 5.10, 0 may not be the end: readv(2) */
}

static int hash_chunk(struct lane *lane)
{
	unsigned i = lane->n_hashed % 2;

	return EVP_DigestUpdate(lane->digest, lane->chunks[i], lane->sizes[i]) ? 0 : -EIO;
}

static int hash(void *data) /* on a worker thread */
{
	struct lane *lane = data;

	return lane->cached ? hash_cached(lane) : hash_chunk(lane);
}

static void hashed(struct lane *lane, int result)
{
	lane->n_hashed += !lane->cached;
	lane->cached = false;
	lane->at_end |= result > 0;
	if (result < 0)
		fail(lane, result);
}

static int on_hashed(void *data)
{
	struct lane *lane = data;

	hashed(lane, lane->hasher->result);
	lane->hasher = NULL;
	return goes_on(lane);
}

static void hash_next(struct lane *lane)
{
	iou_t *iou = lane->sum->iou;

	if (lane->cached || lane->sizes[lane->n_hashed % 2] > SMALL) {
		lane->hasher = iou_op_new(iou);
		if (lane->hasher && iou_op_async(iou, lane->hasher, hash, lane, on_hashed, lane) == 0)
			return;
		iou_op_free(iou, lane->hasher); /* no memory or no thread is no reason to fail */
		lane->hasher = NULL;
	}
	hashed(lane, hash(lane));
}

static int on_read(void *data)
{
	struct lane *lane = data;
	int result = lane->reader->result;

	lane->reader = NULL;
	if (result < 0)
		fail(lane, result);
	lane->at_end |= result == 0;
	if (result > 0)
		lane->sizes[lane->n_read++ % 2] = (size_t)result;
	return goes_on(lane);
}

/* Into the chunk that is free. */
static void read_next(struct lane *lane)
{
	iou_op_t *op = iou_op_new(lane->sum->iou);

	if (!op) {
		fail(lane, -ENOMEM);
		return;
	}
	/* at the file's own position: the same for files, pipes, and terminals */
	io_uring_prep_read(op->sqe, lane->fd, lane->chunks[lane->n_read % 2], CHUNK, (uint64_t)-1);
	iou_op_queue(lane->sum->iou, op, on_read, lane);
	lane->reader = op;
}

static void open_file(struct lane *lane);

static void finish(struct lane *lane)
{
	struct sum *sum = lane->sum;
	struct lane *waiting = sum->waiting;

	if (!lane->error && !EVP_DigestFinal_ex(lane->digest, lane->file->sum, NULL))
		lane->error = -EIO;
	lane->file->error = lane->error;
	lane->file->done = true;
	if (lane->is_stdin) {
		sum->stdin_is_read = false;
	} else if (lane->fd >= 0) {
		close(lane->fd);
		sum->n_open--;
	}
	lane->next = sum->idle;
	sum->idle = lane;

	sum->waiting = NULL;
	while (waiting) {
		lane = waiting;
		waiting = lane->next;
		open_file(lane);
	}
}

/* Start whatever the lane can do now. It hashes and reads at the same time, each in the order of the file. */
static void go_on(struct lane *lane)
{
	while (!lane->hasher && !lane->error && (lane->cached || lane->n_hashed < lane->n_read))
		hash_next(lane);
	if (!lane->reader && !lane->at_end && !lane->cached && lane->n_read - lane->n_hashed < 2)
		read_next(lane);
	if (!lane->reader && !lane->hasher && lane->at_end)
		finish(lane);
}

/* Open the file when another lane has ended. */
static int wait_for_another(struct lane *lane)
{
	lane->next = lane->sum->waiting;
	lane->sum->waiting = lane;
	return 0;
}

static int on_open(void *data)
{
	struct lane *lane = data;
	int result = lane->reader->result;

	lane->reader = NULL;
	lane->sum->n_open -= result < 0;
	if ((result == -EMFILE || result == -ENFILE) && lane->sum->n_open > 0)
		return wait_for_another(lane);
	if (result < 0)
		fail(lane, result);
	else
		lane->fd = result;
	return goes_on(lane);
}

static void open_file(struct lane *lane)
{
	struct sum *sum = lane->sum;
	const char *name = lane->file->name;

	if (strcmp(name, "-") == 0) {
		if (sum->stdin_is_read) {
			wait_for_another(lane);
			return;
		}
		sum->stdin_is_read = lane->is_stdin = true;
		lane->fd = STDIN_FILENO;
	} else {
		lane->reader = iou_op_new(sum->iou);
		if (lane->reader) {
			io_uring_prep_openat(lane->reader->sqe, AT_FDCWD, name, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
			iou_op_queue(sum->iou, lane->reader, on_open, lane);
			sum->n_open++;
			return;
		}
		fail(lane, -ENOMEM);
	}
	go_on(lane);
}

static void new_file(struct lane *lane, struct file *file)
{
	lane->file = file;
	lane->fd = -1;
	lane->is_stdin = lane->at_end = false;
	lane->cached = true;
	lane->error = 0;
	lane->n_read = lane->n_hashed = 0;
	if (!EVP_DigestInit_ex2(lane->digest, lane->sum->sha256, NULL))
		fail(lane, -ENOMEM);
}

static bool new_lanes(struct sum *sum)
{
	unsigned char *chunks = aligned_alloc(4096, MAX_LANES * 2 * CHUNK);

	sum->chunks = chunks; /* those that are not used take no memory */
	for (int i = MAX_LANES - 1; chunks && i >= 0; i--) {
		struct lane *lane = &sum->lanes[i];

		lane->sum = sum;
		lane->chunks[0] = chunks + 2 * i * CHUNK;
		lane->chunks[1] = lane->chunks[0] + CHUNK;
		lane->digest = EVP_MD_CTX_new();
		if (!lane->digest)
			return false;
		lane->next = sum->idle;
		sum->idle = lane;
	}
	return chunks != NULL;
}

static void free_lanes(struct sum *sum)
{
	for (int i = 0; i < MAX_LANES; i++)
		EVP_MD_CTX_free(sum->lanes[i].digest);
	free(sum->chunks);
}


/* ---- Names, from the arguments or from a list ------------------------------------------------- */

static int hex_value(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : isxdigit((unsigned char)c) ? (c | 32) - 'a' + 10 : -1;
}

/* Undo put_escaped() in place. */
static bool unescape(char *name)
{
	char *to = name;

	for (char *from = name; *from; from++) {
		if (*from == '\\') {
			from++;
			if (*from != 'n' && *from != 'r' && *from != '\\')
				return false;
			*to++ = *from == 'n' ? '\n' : *from == 'r' ? '\r' : '\\';
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
	return true;
}

/* The digits at `hex`. Returns what follows, or NULL. */
static char *parse_sum(char *hex, unsigned char *sum)
{
	for (int i = 0; i < SUM_SIZE; i++, hex += 2) {
		int high = hex_value(hex[0]), low = high < 0 ? -1 : hex_value(hex[1]);

		if (low < 0)
			return NULL;
		sum[i] = (unsigned char)(high << 4 | low);
	}
	return hex;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* "SHA256 (NAME) = SUM", from the parenthesis on: what sha256sum --tag and BSDs print. */
static char *parse_tagged(char *line, unsigned char *sum)
{
	char *end = *line == '(' ? strrchr(line, ')') : NULL, *hex = end ? end + 1 + strspn(end + 1, " \t") : NULL;

	if (!hex || *hex != '=')
		return NULL;
	hex = parse_sum(hex + 1 + strspn(hex + 1, " \t"), sum);
	*end = '\0';
	return hex && !*hex ? line + 1 : NULL;
}

/* "SUM  NAME", with an asterisk for the second space where it was read as binary, which means nothing; or "SUM NAME". */
static char *parse_plain(struct sum *sum, char *line, unsigned char *expected)
{
	char *name = parse_sum(line, expected);
	bool one_space;

	if (!name || !is_blank(name[0]) || !name[1])
		return NULL;
	name++;
	one_space = !name[1] || (*name != ' ' && *name != '*');
	if (sum->form == UNKNOWN)
		sum->form = one_space ? ONE_SPACE : TWO_SPACES;
	if (sum->form == TWO_SPACES)
		return one_space ? NULL : name + 1;
	return name;
}

static bool parse(struct sum *sum, char *line, struct file *file)
{
	bool escaped, tagged;
	char *name;

	line += strspn(line, " \t");
	escaped = *line == '\\';
	line += escaped;
	tagged = strncmp(line, "SHA256", 6) == 0;
	name = tagged ? parse_tagged(line + 6 + (line[6] == ' '), file->expected) : parse_plain(sum, line, file->expected);
	file->name = name;
	return name && (!escaped || unescape(name));
}

/* On the loop, where the line is needed: a list that comes slowly, through a pipe, holds up the files before it. */
static bool next_in_list(struct sum *sum, struct file *file)
{
	size_t room = 0;
	ssize_t n;

	while ((n = getline(&file->line, &room, sum->list)) >= 0) {
		char *line = file->line;

		while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
			line[--n] = '\0';
		if (n == 0 || line[0] == '#')
			continue;
		/* standard input cannot be the list and in the list */
		if (parse(sum, line, file) && !(sum->list == stdin && strcmp(file->name, "-") == 0))
			return true;
		sum->n_malformed++;
	}
	free(file->line);
	return false;
}

static bool next_argument(struct sum *sum, struct file *file)
{
	file->name = *sum->names;
	return *sum->names && sum->names++;
}

static void start_files(struct sum *sum)
{
	for (;;) {
		struct file *file = &sum->window[sum->tail % WINDOW];
		struct lane *lane;

		print_done(sum);
		if (sum->tail - sum->head == WINDOW || !sum->idle)
			return;
		*file = (struct file){ .name = NULL };
		if (!(sum->list ? next_in_list(sum, file) : next_argument(sum, file)))
			return;
		sum->tail++;
		lane = sum->idle;
		sum->idle = lane->next;
		new_file(lane, file);
		open_file(lane);
	}
}


/* ---- The program ------------------------------------------------------------------------------ */

static void run(struct sum *sum)
{
	int result;

	start_files(sum);
	result = iou_run(sum->iou);
	if (result < 0)
		complain(sum, "io_uring", strerror(-result));
}

static void warn(uint64_t n, const char *one, const char *many)
{
	if (n)
		fprintf(stderr, "sum: WARNING: %" PRIu64 " %s\n", n, n == 1 ? one : many);
}

static void check_list(struct sum *sum, const char *name)
{
	bool is_stdin = strcmp(name, "-") == 0;

	sum->list = is_stdin ? stdin : fopen(name, "re");
	if (!sum->list) {
		complain(sum, name, strerror(errno));
		return;
	}
	name = is_stdin ? "standard input" : name;
	sum->n_checked = sum->n_bad = sum->n_unread = sum->n_malformed = 0;
	run(sum);
	fflush(stdout); /* before what is said about it */
	if (ferror(sum->list)) {
		complain(sum, name, "read error");
	} else if (sum->n_checked == 0) {
		complain(sum, name, "no properly formatted checksum lines found");
	} else {
		warn(sum->n_malformed, "line is improperly formatted", "lines are improperly formatted");
		warn(sum->n_unread, "listed file could not be read", "listed files could not be read");
		warn(sum->n_bad, "computed checksum did NOT match", "computed checksums did NOT match");
		sum->failed |= sum->n_bad > 0;
	}
	if (!is_stdin)
		fclose(sum->list);
	sum->list = NULL;
}

int main(int argc, char **argv)
{
	static const char usage[] = "usage: sum [FILE...]     print the SHA-256 of each; - or none: standard input\n"
				    "       sum -c [LIST...]  check the sums that are listed there, as sum or sha256sum prints them\n";
	static char *standard_input[] = { "-", NULL };
	static struct sum sum;
	bool check = false;
	char **names;
	int opt;

	opterr = 0; /* the usage says it */
	while ((opt = getopt(argc, argv, "ch")) != -1) {
		if (opt != 'c') {
			fputs(usage, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? EXIT_SUCCESS : 2;
		}
		check = true;
	}
	names = optind < argc ? argv + optind : standard_input;
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* who waits for a line gets it when it is known */
	if (fcntl(STDIN_FILENO, F_GETFD) < 0 && open("/dev/null", O_WRONLY) != STDIN_FILENO)
		return EXIT_FAILURE; /* else the ring would be standard input; reading this gives EBADF */
	sum.sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	sum.iou = sum.sha256 ? iou_new(2 * MAX_LANES) : NULL;
	if (!sum.sha256) {
		complain(&sum, "libcrypto", "no SHA-256");
	} else if (!sum.iou) {
		complain(&sum, "io_uring", strerror(errno));
	} else if (!new_lanes(&sum)) {
		complain(&sum, "start", "out of memory");
	} else if (check) {
		for (; *names; names++)
			check_list(&sum, *names);
	} else {
		sum.names = names;
		run(&sum);
	}
	iou_free(sum.iou);
	free_lanes(&sum);
	EVP_MD_free(sum.sha256);
	if (fflush(stdout) != 0 || ferror(stdout))
		complain(&sum, "write error", strerror(errno));
	return sum.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
