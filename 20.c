#include "iou.h"
#include <pthread.h>

static iou_t *home, *helper;

static int on_answer(void *number) /* on the loop of home */
{
	printf("the answer is %d\n", *(int *)number);
	return 0;
}

static int on_question(void *number) /* on the loop of helper */
{
	int result;

	*(int *)number *= 2;
	result = iou_post(home, on_answer, number);
	iou_unhold(home); /* the helper does not use home any more */
	return result;
}

static void *help(void *data)
{
	if (iou_run(helper) < 0)
		fputs("the helper failed\n", stderr);
	iou_free(helper);
	return data;
}

int main(void)
{
	int number = 21, result = -1;
	pthread_t thread;

	home = iou_new(8);
	helper = iou_new(8);
	if (!home || !helper)
		return 1;
	iou_hold(home);   /* for the helper's thread */
	iou_hold(helper); /* for this thread */
	if (pthread_create(&thread, NULL, help, NULL) == 0) {
		if (iou_post(helper, on_question, &number) == 0)
			result = iou_run(home);
		iou_unhold(helper);
		pthread_join(thread, NULL);
	}
	iou_free(home);
	return result < 0;
}
