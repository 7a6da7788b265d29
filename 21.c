#include "iou.h"
#include <poll.h>
#include <stdbool.h>

static bool is_over;

static int on_time(void *text)
{
	puts(text);
	is_over = true;
	return 0;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;
	struct pollfd mine = { .events = POLLIN };
	int result = -ENOMEM;

	if (op) {
		iou_op_timer(iou, op, 10000000, 0, on_time, "10 ms are over");
		result = mine.fd = iou_fd(iou);
	}
	while (result >= 0 && !is_over) {
		poll(&mine, 1, -1); /* this is the program's loop, with its other descriptors */
		if (mine.revents)
			result = iou_poll(iou, 0);
	}
	iou_free(iou);
	return result < 0;
}
