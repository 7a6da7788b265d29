#include "iou.h"

static int on_tick(void *data)
{
	int *n_ticks = data;
	iou_op_t *op = iou_op_of(n_ticks);

	if (op->result == -ECANCELED) {
		puts("cancelled");
	} else {
		*n_ticks += 1;
		printf("tick %d\n", *n_ticks);
		if (*n_ticks == 3)
			iou_op_cancel(iou_current(), op); /* a last callback follows */
	}
	return 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	int *n_ticks = op ? iou_op_env(op, sizeof(*n_ticks)) : NULL;
	int result = -ENOMEM;

	if (n_ticks) {
		iou_op_timer(iou, op, 1000000, 20000000, on_tick, n_ticks); /* after 1 ms, then every 20 ms */
		result = iou_run(iou);
	}
	iou_free(iou);
	return result < 0;
}
