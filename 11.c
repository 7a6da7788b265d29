static int on_done(void *name)
{
	int result = iou_op_of(name)->result;

	if (result < 0)
		fprintf(stderr, "%s: %s\n", (char *)name, result == -ETIME ? "took too long" : strerror(-result));
	return 0;
}

/* `data` must live, and fd stay open, until both have come to on_done. */
static int save(iou_t *iou, int fd, const void *data, unsigned size)
{
	iou_op_t *write = iou_op_new(iou), *sync = iou_op_new(iou);
	char *write_name = write ? iou_op_env(write, 8) : NULL;
	char *sync_name = sync ? iou_op_env(sync, 8) : NULL;

	if (!write_name || !sync_name) {
		iou_op_free(iou, write);
		iou_op_free(iou, sync);
		return -ENOMEM;
	}
	io_uring_prep_write(write->sqe, fd, data, size, 0);
	write->sqe->flags |= IOSQE_IO_LINK;
	iou_op_queue(iou, write, on_done, strcpy(write_name, "write"));
	io_uring_prep_fsync(sync->sqe, fd, 0);
	iou_op_deadline(iou, sync, 5000000000);
	iou_op_queue(iou, sync, on_done, strcpy(sync_name, "fsync"));
	return 0;
}
