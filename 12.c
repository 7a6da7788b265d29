#include "iou.h"

static int on_written(void *data)
{
	iou_op_t *op = data;

	return op->result < 0 ? op->result : 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	int result = -ENOMEM;

	if (op) {
		io_uring_prep_write(op->sqe, 1, "hello\n", 6, -1);
		iou_op_queue(iou, op, on_written, op);
		result = iou_run(iou); /* returns when nothing is pending */
	}
	iou_free(iou);
	return result < 0;
}
