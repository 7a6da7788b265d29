static int wait_until(iou_t *iou, const bool *done)
{
	int n = 1;

	while (!*done && (n = iou_poll(iou, -1)) > 0) /* everything else goes on meanwhile */
		;
	return *done ? 0 : n; /* a negative error; or 0: nothing is pending, so nothing can set *done */
}
