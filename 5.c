struct job {
	const unsigned char *data;
	size_t size;
	unsigned sum;
};

static int add_up(void *data) /* on a worker */
{
	struct job *job = data;

	for (size_t i = 0; i < job->size; i++)
		job->sum += job->data[i];
	return 0;
}

static int on_sum(void *data) /* on the loop */
{
	struct job *job = data;

	printf("%u (%d)\n", job->sum, iou_op_of(job)->result);
	return 0;
}

static int sum_up(iou_t *iou, const void *data, size_t size)
{
	iou_op_t *op = iou_op_new(iou);
	struct job *job = op ? iou_op_env(op, sizeof(*job)) : NULL;
	int result;

	if (!job)
		return iou_op_free(iou, op), -ENOMEM;
	*job = (struct job){ .data = data, .size = size };
	result = iou_op_async(iou, op, add_up, job, on_sum, job);
	if (result < 0)
		iou_op_free(iou, op); /* refused: still yours */
	return result;
}
