static int on_time(void *fired)
{
	*(bool *)fired = true;
	return 0;
}

static int pause_ms(iou_t *iou, uint64_t ms, bool *fired) /* which lives as long as the timer */
{
	iou_op_t *timer = iou_op_new(iou);
	int n = 1;

	if (!timer)
		return -ENOMEM;
	iou_op_timer(iou, timer, ms * 1000000, 0, on_time, fired);
	while (!*fired && (n = iou_poll(iou, -1)) > 0) /* everything else goes on meanwhile */
		;
	return n < 0 ? n : 0;
}
