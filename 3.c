static int on_work(void *queue)
{
	puts((const char *)queue); /* on the loop's thread, once for however many schedules */
	return 0;
}

static iou_bh_t *watch_queue(iou_t *iou, char *queue)
{
	return iou_bh_new(iou, on_work, queue);
}

static void *producer(void *bh)
{
	iou_bh_schedule(bh); /* wakes the loop if it sleeps; aio_notify has no counterpart */
	return NULL;
}
