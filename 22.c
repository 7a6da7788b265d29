#include "iou.h"

int main(void)
{
	iou_config_t config = { .engine = IOU_ENGINE_AUTO }; /* or IOU_ENGINE_RING, IOU_ENGINE_FALLBACK */
	iou_t *iou = iou_new_with(&config);

	if (!iou) {
		perror("iou_new_with");
		return 1;
	}
	printf("iou %s on %s\n", iou_version(), iou_engine_name(iou));
	printf("multishot accept: %s\n", iou_opcode_supported(iou, IORING_OP_ACCEPT) == 1 ? "try it" : "no");
	iou_free(iou);
	return 0;
}
