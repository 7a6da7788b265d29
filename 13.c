#include "iou.h"
#include <unistd.h>

struct reader {
	iou_t *iou;
	iou_op_t *op;
	int fd, n_reads, n_bytes;
	char bytes[8];
};

static int on_read(void *data);

static void read_more(struct reader *reader)
{
	io_uring_prep_read(reader->op->sqe, reader->fd, reader->bytes, sizeof(reader->bytes), -1);
	iou_op_queue(reader->iou, reader->op, on_read, reader);
}

static int on_read(void *data)
{
	struct reader *reader = data;
	int result = reader->op->result;

	if (result <= 0)
		return result; /* 0: the end of the pipe; negative: this ends iou_run() */
	reader->n_reads++;
	reader->n_bytes += result;
	read_more(reader);
	return 0;
}

int main(void)
{
	struct reader reader = { .iou = iou_new(8) };
	int fds[2], result = -1;

	if (reader.iou && (reader.op = iou_op_new(reader.iou)) && pipe(fds) == 0 &&
	    write(fds[1], "one op, many reads", 18) == 18 && close(fds[1]) == 0) {
		reader.fd = fds[0];
		read_more(&reader);
		result = iou_run(reader.iou);
		printf("%d bytes in %d reads\n", reader.n_bytes, reader.n_reads);
	}
	iou_free(reader.iou);
	return result < 0;
}
