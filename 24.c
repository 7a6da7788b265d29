#include "iou.h"
#include <unistd.h>

static char buffer[64];

static int on_read(void *data)
{
	iou_op_t *op = data;

	if (op->result == -ECANCELED)
		puts("cancelled; now the buffer is free");
	return 0;
}

static int on_time(void *iou)
{
	return iou_cancel_all(iou);
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *read_op = iou ? iou_op_new(iou) : NULL, *timer = iou ? iou_op_new(iou) : NULL;
	int fds[2], result = -1;

	if (read_op && timer && pipe(fds) == 0) {
		io_uring_prep_read(read_op->sqe, fds[0], buffer, sizeof(buffer), -1); /* nobody writes */
		iou_op_queue(iou, read_op, on_read, read_op);
		iou_op_timer(iou, timer, 10000000, 0, on_time, iou);
		result = iou_run(iou);
	}
	iou_free(iou);
	return result < 0;
}
