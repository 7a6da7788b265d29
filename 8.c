static int search(void *text) /* uv_work_cb */
{
	return strstr(text, "needle") ? 1 : 0;
}

static int on_searched(void *text) /* uv_after_work_cb; where libuv says UV_ECANCELED it is -ECANCELED */
{
	printf("%s: %d\n", (char *)text, iou_op_of(text)->result);
	return 0;
}

static iou_op_t *start_search(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);
	char *text = op ? iou_op_env(op, 64) : NULL;

	if (text)
		strcpy(text, "a needle in the hay");
	if (text && iou_op_async(iou, op, search, text, on_searched, text) == 0)
		return op; /* until on_searched, iou_op_cancel(iou, op) may be called */
	iou_op_free(iou, op);
	return NULL;
}
