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
sim-link   = $(link) -o $@ $(filter %.c %.o,$^) -I. $(sim-wraps:%=-Wl,--wrap=%) $(libs)
sim-src   := tests/sim.c tests/sim_kernel.c tests/sim_threads.c

$(B)/tests/sim: $(sim-src) $(B)/iou.o tests/sim.h
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(sim-link)

# The same with iou.c taken apart at each atomic operation.
$(B)/tests/sim-fine: $(sim-src) tests/sim_atomics.c $(B)/tests/iou-fine.o tests/sim.h
	$(call say,CC)
	$(Q)$(sim-link)

$(B)/tests/iou-fine.o: iou.c iou.h $(B)/flags
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) -fsanitize=thread -c -o $@ $<

.PHONY: check-sim check-sim-part
check-sim-part: $(B)/tests/sim
	$(Q)$(B)/tests/sim -s $(SEED) -n $(RUNS) -j $(JOBS)

# One seed alone, to replay it; else a tenth of the seeds again under ASan and UBSan.
check-sim: check-sim-part
	$(Q)$(if $(or $(SAN),$(filter 1,$(RUNS))),,$(make) --no-print-directory SAN=address \
		B='$(B)/address' RUNS=$$(($(RUNS) / 10)) SEED=$(SEED) check-sim-part)

# ---- check-faults: each call to the outside fails, tests/faults.c ---------------------------------------
fault-wraps := malloc calloc aligned_alloc free pthread_create pthread_join mmap madvise sched_getaffinity eventfd \
	timerfd_create io_uring_queue_init_params io_uring_register io_uring_enter2 nanosleep

$(B)/tests/faults: tests/faults.c $(B)/iou.o
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ tests/faults.c $(B)/iou.o $(fault-wraps:%=-Wl,--wrap=%) $(libs)
