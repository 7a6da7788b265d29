#include "iou.h"
#include <pthread.h>

static int on_news(void *text) /* on the loop */
{
	puts(text);
	return 0;
}

static void *reporter(void *iou) /* on a thread of its own */
{
	if (iou_post(iou, on_news, "first") < 0 || iou_post(iou, on_news, "second") < 0)
		fputs("no memory\n", stderr);
	iou_unhold(iou); /* the last use of iou by this thread */
	return NULL;
}

int main(void)
{
	iou_t *iou = iou_new(8);
	pthread_t thread;
	int result = -ENOMEM;

	if (iou) {
		iou_hold(iou);
		if (pthread_create(&thread, NULL, reporter, iou) == 0) {
			result = iou_run(iou);
			pthread_join(thread, NULL);
		}
	}
	iou_free(iou);
	return result < 0;
}
