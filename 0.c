/* SPDX-License-Identifier: MIT */
/* hello [FILE]: read it through the ring, count its lines on a worker thread, print how many there are. */

#include "iou.h"

#include <string.h>

struct text {
	iou_t *iou;
	int fd, size;
	long n_lines;
	char bytes[65536];
};

static int count_lines(void *data) /* on a worker thread */
{
	struct text *text = data;

	for (int i = 0; i < text->size; i++)
		text->n_lines += text->bytes[i] == '\n';
	return 0;
}

static int on_read(void *data);

static int read_more(void *data) /* the first read; after each count the next, with the same op */
{
	struct text *text = data;
	iou_op_t *op = iou_op_of(text);

	io_uring_prep_read(op->sqe, text->fd, text->bytes, sizeof(text->bytes), -1);
	iou_op_queue(text->iou, op, on_read, text);
	return 0;
}

static int on_read(void *data) /* on the loop, as all callbacks */
{
	struct text *text = data;
	iou_op_t *op = iou_op_of(text);

	text->size = op->result;
	if (op->result > 0)
		return iou_op_async(text->iou, op, count_lines, text, read_more, text);
	if (op->result == 0)
		printf("%ld lines\n", text->n_lines);
	return op->result; /* an error ends iou_run() */
}

int main(int argc, char **argv)
{
	if (argc > 2) {
		fputs("usage: hello [FILE]\n", stderr);
		return 2;
	}

	const char *path = argc > 1 ? argv[1] : "/dev/stdin";
	int fd = open(path, O_RDONLY);
	iou_t *iou = fd < 0 ? NULL : iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	struct text *text = op ? iou_op_env(op, sizeof(*text)) : NULL; /* lives and dies with the op */
	int result = text ? 0 : -errno;

	if (text) {
		text->iou = iou;
		text->fd = fd;
		read_more(text);
		result = iou_run(iou);
	}
	if (result == 0 && (fflush(stdout) != 0 || ferror(stdout))) {
		path = "standard output";
		result = -errno;
	}
	if (result < 0)
		fprintf(stderr, "hello: %s: %s\n", fd >= 0 && !iou ? "io_uring" : path, strerror(-result));
	iou_free(iou);
	return result < 0;
}
