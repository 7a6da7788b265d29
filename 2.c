struct request {
	iou_handler_t handler;
	int fd;
	char block[4096];
};

static void prepare(struct io_uring_sqe *sqe, void *opaque)
{
	struct request *request = opaque;

	io_uring_prep_read(sqe, request->fd, request->block, sizeof(request->block), 0);
}

static int on_block(iou_handler_t *handler)
{
	struct request *request = (struct request *)handler; /* its first member */
	int result = handler->result;

	free(request); /* entered for the last time: iou does not touch it any more */
	return result < 0 ? result : 0;
}

static int submit(iou_t *iou, struct request *request)
{
	request->handler.cb = on_block;
	return iou_add_sqe(iou, prepare, request, &request->handler); /* -ENOMEM: not taken */
}
