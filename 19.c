#include "iou.h"
#include <stdbool.h>

static bool is_over;

static int set_over(void *data)
{
	(void)data;
	is_over = true;
	return 0;
}

static int on_start(void *data)
{
	iou_t *iou = data;
	iou_op_t *timer = iou_op_new(iou);
	int n = 1;

	if (!timer)
		return -errno;
	iou_op_timer(iou, timer, 10000000, 0, set_over, NULL);
	puts("wait");
	while (!is_over && (n = iou_poll(iou, -1)) > 0)
		;
	puts(is_over ? "go on" : "stopped");
	return n < 0 ? n : 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	int result = iou ? iou_post(iou, on_start, iou) : -errno;

	if (result == 0)
		result = iou_run(iou);
	iou_free(iou);
	return result < 0;
}
