static int on_tick(void *data)
{
	int *n_left = data;

	if (--*n_left == 0)
		iou_op_cancel(iou_current(), iou_op_of(data)); /* a last callback follows, with -ECANCELED */
	return 0;
}

static int ticks(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);
	int *n_left = op ? iou_op_env(op, sizeof(*n_left)) : NULL;
	int result;

	if (!n_left)
		return iou_op_free(iou, op), -ENOMEM;
	*n_left = 10;
	iou_op_timer(iou, op, 0, 1000000, on_tick, n_left); /* now, and then every millisecond */
	result = iou_poll(iou, 0);          /* UV_RUN_NOWAIT */
	if (result >= 0)
		result = iou_poll(iou, -1); /* UV_RUN_ONCE */
	if (result >= 0)
		result = iou_run(iou);      /* UV_RUN_DEFAULT */
	return result;
}
