#include "iou.h"
#include <string.h>

static int on_said(void *data)
{
	return iou_op_of(data)->result < 0 ? iou_op_of(data)->result : 0; /* afterwards the text is freed */
}

static int say_hello(iou_t *iou, const char *name)
{
	iou_op_t *op = iou_op_new(iou);
	char *text = op ? iou_op_env(op, 64) : NULL;

	if (!text) {
		iou_op_free(iou, op); /* NULL is fine */
		return -ENOMEM;
	}
	snprintf(text, 64, "hello, %s\n", name);
	io_uring_prep_write(op->sqe, 1, text, strlen(text), -1);
	iou_op_queue(iou, op, on_said, text);
	return 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	int result = iou ? say_hello(iou, "reader") : -errno;

	if (result == 0)
		result = iou_run(iou);
	iou_free(iou);
	return result < 0;
}
