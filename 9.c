static int on_progress(void *percent)
{
	printf("%d %%\n", atomic_load((atomic_int *)percent)); /* as after uv_async_send: the latest will do */
	return 0;
}

struct teller {
	iou_t *iou;
	iou_bh_t *bh; /* made by iou_bh_new(iou, on_progress, &percent); the starter called iou_hold(iou) */
	atomic_int percent;
};

static void *tell(void *data)
{
	struct teller *teller = data;

	for (int i = 1; i <= 100; i++) {
		atomic_store(&teller->percent, i);
		iou_bh_schedule(teller->bh);
	}
	iou_unhold(teller->iou); /* the last touch: iou_run may end now */
	return NULL;
}
