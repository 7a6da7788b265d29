#include "iou.h"

static int count(void *n_called)
{
	++*(int *)n_called;
	return 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	int n_called = 0, n = iou ? 0 : -errno;

	for (int i = 0; i < 3 && n == 0; i++) {
		iou_op_t *op = iou_op_new(iou);

		if (op) {
			io_uring_prep_nop(op->sqe);
			iou_op_queue(iou, op, count, &n_called);
		} else {
			n = -errno;
		}
	}
	printf("queued: %d callbacks\n", n_called);
	while (n >= 0 && (n = iou_poll(iou, -1)) > 0) /* 0: nothing is pending any more */
		;
	printf("polled: %d callbacks\n", n_called);
	iou_free(iou);
	return n < 0;
}
