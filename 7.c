struct channel {
	iou_t *iou;
	int socket;
	char bytes[512];
};

static int on_received(void *data);

static void receive(struct channel *channel)
{
	iou_op_t *op = iou_op_of(channel);

	io_uring_prep_recv(op->sqe, channel->socket, channel->bytes, sizeof(channel->bytes), 0);
	iou_op_queue(channel->iou, op, on_received, channel);
}

static int on_received(void *data) /* on the reader's loop */
{
	struct channel *channel = data;
	int size = iou_op_of(channel)->result;

	if (size <= 0)
		return size;
	fwrite(channel->bytes, 1, (size_t)size, stdout);
	receive(channel);
	return 0;
}

static int on_sent(void *data) /* on the writer's loop */
{
	return iou_op_of(data)->result < 0 ? iou_op_of(data)->result : 0;
}

static int start(iou_t *iou, int socket, bool reads)
{
	iou_op_t *op = iou_op_new(iou);
	struct channel *channel = op ? iou_op_env(op, sizeof(*channel)) : NULL;

	if (!channel)
		return iou_op_free(iou, op), -ENOMEM;
	channel->iou = iou;
	channel->socket = socket;
	if (reads) {
		receive(channel);
	} else {
		io_uring_prep_send(op->sqe, socket, channel->bytes, sizeof(channel->bytes),
				   MSG_NOSIGNAL);
		iou_op_queue(iou, op, on_sent, channel);
	}
	return 0;
}
