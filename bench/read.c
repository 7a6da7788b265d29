/* SPDX-License-Identifier: MIT */
/*
 * read CONTENDER cached|direct DEPTH FILE: 4 KiB reads at random places of FILE, DEPTH of them in flight, from
 * the page cache or with O_DIRECT.
 *
 *   raw   io_uring_submit_and_wait() per batch
 *   iou   an op for each slot, queued again in its callback
 *   uv    uv_fs_read(), with as many threads as CPUs (cached; its default of 4 when direct)
 */
#include "bench.h"

#include <sys/stat.h>

#include <iou.h>
#ifdef HAVE_UV
#include <uv.h>
#endif

#include "raw.h"

#define BLOCK 4096

struct file {
	int fd;
	int direct;
	unsigned depth;
	uint64_t n_blocks;
	uint64_t seed;
	char *bufs; /* depth of BLOCK */
};

static void file_open(struct file *file, int argc, char **argv)
{
	struct stat st;

	if (argc != 3)
		die("usage: read CONTENDER cached|direct DEPTH FILE", EINVAL);
	file->direct = strcmp(argv[0], "direct") == 0;
	file->depth = (unsigned)argument(argc, argv, 1, 1);
	file->fd = must_errno(open(argv[2], O_RDONLY | (file->direct ? O_DIRECT : 0)), argv[2]);
	must_errno(fstat(file->fd, &st), argv[2]);
	file->n_blocks = (uint64_t)st.st_size / BLOCK;
	if (file->n_blocks == 0)
		die(argv[2], ENODATA);
	file->seed = 88172645463325252;
	file->bufs = must_have(aligned_alloc(BLOCK, (size_t)file->depth * BLOCK), "aligned_alloc");
	memset(file->bufs, 0, (size_t)file->depth * BLOCK);
	if (!file->direct) {
		for (uint64_t i = 0; i < file->n_blocks; i++)
			must_errno((int)pread(file->fd, file->bufs, BLOCK, (off_t)(i * BLOCK)), "pread");
	}
}

static uint64_t file_place(struct file *file)
{
	return random64(&file->seed) % file->n_blocks * BLOCK;
}

static void file_close(struct file *file)
{
	close(file->fd);
	free(file->bufs);
}

/* ---- raw ---- */

struct raw {
	struct io_uring ring;
	struct file file;
};

static void raw_queue(struct raw *raw, char *buf)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&raw->ring);

	io_uring_prep_read(sqe, raw->file.fd, buf, BLOCK, file_place(&raw->file));
	io_uring_sqe_set_data(sqe, buf);
}

static void raw_rounds(void *state, uint64_t n)
{
	struct raw *raw = state;
	struct io_uring_cqe *cqe;
	uint64_t queued = 0, done = 0;

	for (; queued < n && queued < raw->file.depth; queued++)
		raw_queue(raw, raw->file.bufs + queued * BLOCK);
	while (done < n) {
		unsigned head, seen = 0;

		must(io_uring_submit_and_wait(&raw->ring, 1), "io_uring_submit_and_wait");
		io_uring_for_each_cqe(&raw->ring, head, cqe) {
			must(cqe->res == BLOCK ? 0 : -EIO, "read");
			seen++;
			if (queued < n) {
				queued++;
				raw_queue(raw, io_uring_cqe_get_data(cqe));
			}
		}
		io_uring_cq_advance(&raw->ring, seen);
		done += seen;
	}
}

static void raw_run(int argc, char **argv)
{
	static struct raw raw;

	file_open(&raw.file, argc, argv);
	raw_ring_open(&raw.ring, raw.file.depth);
	report_each(raw_rounds, &raw, 1000);
	io_uring_queue_exit(&raw.ring);
	file_close(&raw.file);
}

/* ---- iou ---- */

struct reads {
	iou_t *iou;
	struct file file;
	uint64_t left;
};

struct slot {
	struct reads *reads;
	char *buf;
};

static int on_read(void *data)
{
	struct slot *slot = data;
	struct reads *reads = slot->reads;
	iou_op_t *op = iou_op_of(slot);

	must(op->result == BLOCK ? 0 : -EIO, "read");
	if (reads->left) {
		reads->left--;
		io_uring_prep_read(op->sqe, reads->file.fd, slot->buf, BLOCK, file_place(&reads->file));
		iou_op_queue(reads->iou, op, on_read, slot);
	}
	return 0;
}

static void iou_rounds(void *state, uint64_t n)
{
	struct reads *reads = state;
	uint64_t first = n < reads->file.depth ? n : reads->file.depth;

	reads->left = n - first;
	for (uint64_t i = 0; i < first; i++) {
		iou_op_t *op = must_have(iou_op_new(reads->iou), "iou_op_new");
		struct slot *slot = must_have(iou_op_env(op, sizeof(*slot)), "iou_op_env");

		*slot = (struct slot){.reads = reads, .buf = reads->file.bufs + i * BLOCK};
		io_uring_prep_read(op->sqe, reads->file.fd, slot->buf, BLOCK, file_place(&reads->file));
		iou_op_queue(reads->iou, op, on_read, slot);
	}
	must(iou_run(reads->iou), "iou_run");
}

static void iou_contender(int argc, char **argv)
{
	static struct reads reads;

	file_open(&reads.file, argc, argv);
	reads.iou = must_have(iou_new(reads.file.depth), "iou_new");
	report_each(iou_rounds, &reads, 1000);
	iou_free(reads.iou);
	file_close(&reads.file);
}

/* ---- libuv ---- */

#ifdef HAVE_UV
struct uv_reads {
	uv_loop_t loop;
	struct file file;
	uint64_t left;
	struct uv_slot {
		uv_fs_t req;
		uv_buf_t buf;
	} *slots;
};

static void uv_queue(struct uv_reads *reads, struct uv_slot *slot);

static void uv_on_read(uv_fs_t *req)
{
	struct uv_reads *reads = req->loop->data;

	must(req->result == BLOCK ? 0 : -EIO, "uv_fs_read");
	uv_fs_req_cleanup(req);
	if (reads->left) {
		reads->left--;
		uv_queue(reads, (struct uv_slot *)req);
	}
}

static void uv_queue(struct uv_reads *reads, struct uv_slot *slot)
{
	must(uv_fs_read(&reads->loop, &slot->req, reads->file.fd, &slot->buf, 1,
			(int64_t)file_place(&reads->file), uv_on_read), "uv_fs_read");
}

static void uv_rounds(void *state, uint64_t n)
{
	struct uv_reads *reads = state;
	uint64_t first = n < reads->file.depth ? n : reads->file.depth;

	reads->left = n - first;
	for (uint64_t i = 0; i < first; i++)
		uv_queue(reads, &reads->slots[i]);
	uv_run(&reads->loop, UV_RUN_DEFAULT);
}

static void uv_contender(int argc, char **argv)
{
	static struct uv_reads reads;
	char threads[16];

	file_open(&reads.file, argc, argv);
	snprintf(threads, sizeof(threads), "%ld", reads.file.direct ? 4 : sysconf(_SC_NPROCESSORS_ONLN));
	setenv("UV_THREADPOOL_SIZE", threads, 0);
	must(uv_loop_init(&reads.loop), "uv_loop_init");
	reads.loop.data = &reads;
	reads.slots = must_have(calloc(reads.file.depth, sizeof(*reads.slots)), "calloc");
	for (unsigned i = 0; i < reads.file.depth; i++)
		reads.slots[i].buf = uv_buf_init(reads.file.bufs + (size_t)i * BLOCK, BLOCK);
	report_each(uv_rounds, &reads, 1000);
	uv_loop_close(&reads.loop);
	free(reads.slots);
	file_close(&reads.file);
}
#endif

int main(int argc, char **argv)
{
	static const struct contender contenders[] = {
		{"raw", raw_run},
		{"iou", iou_contender},
#ifdef HAVE_UV
		{"uv", uv_contender},
#endif
		{NULL, NULL},
	};

	return bench_main(argc, argv, contenders);
}
