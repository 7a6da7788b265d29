struct block {
	int *n_left;
	char bytes[4096];
};

static int on_written(void *data)
{
	struct block *block = data;

	if (iou_op_of(block)->result < 0)
		return iou_op_of(block)->result;
	if (--*block->n_left == 0)
		puts("all written");
	return 0;
}

static int write_blocks(iou_t *iou, int fd, int n, int *n_left)
{
	for (*n_left = 0; *n_left < n; ++*n_left) {
		iou_op_t *op = iou_op_new(iou);
		struct block *block = op ? iou_op_env(op, sizeof(*block)) : NULL;

		if (!block)
			return iou_op_free(iou, op), -ENOMEM;
		block->n_left = n_left;
		io_uring_prep_write(op->sqe, fd, block->bytes, sizeof(block->bytes), (uint64_t)*n_left * 4096);
		iou_op_queue(iou, op, on_written, block);
	}
	return 0;
}
