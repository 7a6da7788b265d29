#include "iou.h"

struct sum {
	long n, total;
};

static int add_up(void *data) /* on a worker thread */
{
	struct sum *sum = data;

	for (long i = 1; i <= sum->n; i++)
		sum->total += i;
	return 0;
}

static int on_sum(void *data) /* on the loop */
{
	struct sum *sum = data;

	printf("the sum of 1 to %ld is %ld\n", sum->n, sum->total);
	return iou_op_of(sum)->result;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	struct sum *sum = op ? iou_op_env(op, sizeof(*sum)) : NULL;
	int result = -ENOMEM;

	if (sum) {
		sum->n = 1000000;
		result = iou_op_async(iou, op, add_up, sum, on_sum, sum);
	}
	if (result == 0)
		result = iou_run(iou);
	iou_free(iou);
	return result < 0;
}
