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
sim-link   = $(link) $(if $(findstring fine,$@),-DSIM_FINE) -o $@ $(filter %.c %.o,$^) -I. $(sim-wraps:%=-Wl,--wrap=%) $(libs)
sim-src   := $(filter-out %_atomics.c,$(wildcard tests/sim*.c))

$(B)/tests/sim: $(sim-src) $(B)/iou.o $(wildcard tests/sim*.h)
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(sim-link)

# The same with iou.c taken apart at each atomic operation.
$(B)/tests/sim-fine: $(sim-src) tests/sim_atomics.c $(B)/tests/iou-fine.o $(wildcard tests/sim*.h)
	$(call say,CC)
	$(Q)$(sim-link)

$(B)/tests/iou-fine.o: iou.c iou.h $(B)/flags
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) -fsanitize=thread -c -o $@ $<

.PHONY: check-sim check-sim-part
check-sim-part: $(B)/tests/$(or $(GRAIN),sim)
	$(Q)$< -s $(SEED) -n $(RUNS) -j $(JOBS)

# RUNS=1 replays one seed; else a tenth of the seeds is run again in the finer grain, and under ASan and UBSan.
check-sim: check-sim-part
	$(Q)$(if $(filter 1,$(RUNS))$(GRAIN)$(SAN),,\
		$(make) --no-print-directory RUNS=$$(($(RUNS) / 10)) GRAIN=sim-fine check-sim-part && \
		$(make) --no-print-directory RUNS=$$(($(RUNS) / 10)) SAN=address B='$(B)/address' check-sim-part)

# ---- check-faults: each call to the outside fails, tests/faults.c ---------------------------------------
fault-wraps := malloc calloc aligned_alloc free pthread_create pthread_join mmap madvise sched_getaffinity eventfd \
	timerfd_create io_uring_queue_init_params io_uring_register io_uring_enter2 nanosleep

$(B)/tests/faults: tests/faults.c $(B)/iou.o
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ tests/faults.c $(B)/iou.o $(fault-wraps:%=-Wl,--wrap=%) $(libs)

.PHONY: check-faults
check-faults: $(B)/tests/faults
	$(Q)$(B)/tests/faults -j $$(($(JOBS) * 2))

# ---- check-mutants: faults put into iou.c, each caught by some test -------------------------------------
.PHONY: check-mutants
check-mutants: export FLAGS = $(own) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS)
check-mutants: export SIM_SRC = $(sim-src)
check-mutants: export SIM_WRAPS = $(sim-wraps:%=-Wl,--wrap=%)
check-mutants: export FAULT_WRAPS = $(fault-wraps:%=-Wl,--wrap=%)
check-mutants: export CHECK_OBJECTS = $(check-src:%.c=$(B)/%.o)
check-mutants: export CHECK_LIBS = $(check-libs)
check-mutants: export LIBS = $(libs)
check-mutants: $(check-bin)
	$(Q)B='$(B)' CC='$(CC)' JOBS='$(JOBS)' bash tests/proof/mutants.sh $(T)

# ---- check-kernels: the Check program on older and newer kernels ----------------------------------------
.PHONY: check-kernels
check-kernels:
	$(Q)B='$(B)' CC='$(CC)' MAKE='$(make)' sh tests/proof/kernels.sh $(T)

# ---- check-spin: the wake-up protocols as models, and for real ------------------------------------------
HANDOFFS ?= 10000000
$(B)/tests/handoff: tests/handoff.c $(B)/libiou.a
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $^ $(libs)

.PHONY: check-spin
check-spin: $(B)/tests/handoff
	$(Q)B='$(B)' CC='$(CC)' HANDOFFS=$(HANDOFFS) sh tests/proof/spin.sh
