# SPDX-License-Identifier: MIT
#
# The proofs: targets that go further than `make check`. Included by the Makefile, whose variables they use.
# Each prints one line with its figures at the end. JOBS is how many processes share the work.
#
#   make check-sim    random programs on a fake kernel: SEED=, RUNS=, TRACE=1

JOBS ?= $(shell nproc 2>/dev/null || echo 1)

# ---- check-sim: deterministic simulation, tests/sim*.c --------------------------------------------------
SEED ?= 1
RUNS ?= 10000000

sim-wraps := io_uring_queue_init_params io_uring_queue_exit io_uring_ring_dontfork io_uring_register io_uring_enter2 \
	eventfd eventfd_read eventfd_write timerfd_create timerfd_settime close clock_gettime nanosleep \
	pthread_create pthread_join pthread_setcancelstate pthread_sigmask pthread_setname_np sched_getaffinity sched_yield \
	pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock pthread_cond_init \
	pthread_cond_destroy pthread_cond_wait pthread_cond_signal pthread_cond_broadcast \
	malloc calloc realloc aligned_alloc free
sim-src   := $(wildcard tests/sim*.c)

$(B)/tests/sim: $(sim-src) tests/sim.h $(B)/iou.o
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $(sim-src) $(B)/iou.o $(sim-wraps:%=-Wl,--wrap=%) $(libs)

.PHONY: check-sim check-sim-part
check-sim-part: $(B)/tests/sim
	$(Q)$(B)/tests/sim -s $(SEED) -n $(RUNS) -j $(JOBS)

# One seed alone, to replay it; else a tenth of the seeds again under ASan and UBSan.
check-sim: check-sim-part
	$(Q)$(if $(or $(SAN),$(filter 1,$(RUNS))),,$(make) --no-print-directory SAN=address \
		B='$(B)/address' RUNS=$$(($(RUNS) / 10)) SEED=$(SEED) check-sim-part)
