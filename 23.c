#include "iou.h"
#include <unistd.h>

static int on_time(void *text)
{
	puts(text);
	return 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	int result, status = 1;
	pid_t child;

	if (!op)
		return 1;
	iou_op_timer(iou, op, 10000000, 0, on_time, "the parent's timer");
	child = fork();
	if (child == 0) {
		result = iou_run(iou);
		iou_free(iou);
		_exit(result == -EEXIST ? 0 : 1);
	}
	result = iou_run(iou);
	iou_free(iou);
	waitpid(child, &status, 0);
	return result < 0 || status != 0;
}
