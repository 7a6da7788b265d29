# SPDX-License-Identifier: MIT
#
# The proofs: targets that go further than `make check`. Included by the Makefile, whose variables
# they use. Each prints one line with its figures at the end. JOBS is how many processes share the
# work.
#
#   make check-sim       random programs on a fake kernel: SEED=, RUNS=, TRACE=1
#   make check-faults    each call to the outside fails
#   make check-engine    iou_fallback.c gives the answers of the kernel's ring; T="CASE..."
#   make check-destroy   iou_free() in the middle of it all, DESTROYS= times
#   make check-full      the Check program and walk.sh at full size
#   make check-mutants   faults put into iou.c and iou_fallback.c; T="NAME..." for some
#   make check-kernels   older and newer kernels in QEMU; T="RELEASE..." of Debian
#   make check-ports     32-bit programs, musl, arm64 in QEMU; T="i386 musl arm64" for some
#   make check-liburing  newer liburings; T="RELEASE..." of Debian
#   make check-spin      the wake-up protocols as models, and HANDOFFS= real ones
#   make check-valgrind  memcheck; T="SUITE..."
#   make coverage        lines and branches of iou.c
#   make figures         write what they last measured into docs/testing.md
#   make check-ci        those that fit into CI;  make check-all: all of them

noted = sh tests/noted '$@'

JOBS ?= $(shell nproc 2>/dev/null || echo 1)

# ---- check-sim: deterministic simulation, tests/sim/ ---------------------------------------------
SEED ?= 1
RUNS ?= 10000000

sim-wraps := io_uring_queue_init_params io_uring_queue_exit io_uring_ring_dontfork \
	io_uring_register io_uring_enter2 \
	eventfd eventfd_read timerfd_create timerfd_settime close clock_gettime nanosleep syscall \
	pthread_create pthread_join pthread_setcancelstate pthread_sigmask pthread_setname_np \
	sched_getaffinity sched_yield \
	pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock \
	malloc calloc realloc aligned_alloc posix_memalign free
sim-link   = $(link) \
	$(if $(findstring fine,$@),-DSIM_FINE) $(if $(findstring -,$(@F)),-DROUND_MAX=3) \
	-o $@ $(filter %.c %.o,$^) -I. $(sim-wraps:%=-Wl,--wrap=%) $(libs)
sim-src   := $(filter-out %/atomics.c,$(wildcard tests/sim/*.c))
sim-headers := $(wildcard tests/sim/*.h)

$(B)/tests/sim: $(sim-src) $(B)/iou.o $(sim-headers)
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(sim-link)

# sim-small: slabs are so small that each run uses some again, and rounds are over after three of
# each source. sim-fine: the same, with iou.c taken apart at each atomic operation too.
small := sed -e 's/^\#define SLAB_SIZE .*/\#define SLAB_SIZE 128/' \
	-e 's/^\#define ROUND_MAX .*/\#define ROUND_MAX 3/'
$(B)/tests/sim-small: $(sim-src) $(B)/tests/iou-small.o $(sim-headers)
	$(call say,CC)
	$(Q)$(sim-link)

$(B)/tests/sim-fine: $(sim-src) tests/sim/atomics.c $(B)/tests/iou-fine.o $(sim-headers)
	$(call say,CC)
	$(Q)$(sim-link)

$(B)/tests/iou-small.o $(B)/tests/iou-fine.o: iou.c iou.h $(B)/flags
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(small) $< | \
		$(compile) $(if $(findstring fine,$@),-fsanitize=thread) -x c -c -o $@ -

.PHONY: check-sim check-sim-part
check-sim-part: $(B)/tests/$(or $(GRAIN),sim)
	$(Q)sh tests/noted 'check-sim$(GRAIN:sim%=%)$(SAN:%=-%)' $< -s $(SEED) -n $(RUNS) -j $(JOBS)

# RUNS=1 replays one seed. Else a tenth of the seeds is run again with short rounds, in the finer
# grain, and under ASan and UBSan.
sim-again = $(make) --no-print-directory RUNS=$$(($(RUNS) / 10)) check-sim-part
check-sim: check-sim-part
	$(Q)$(if $(filter 1,$(RUNS))$(GRAIN)$(SAN),,\
		$(sim-again) GRAIN=sim-small && \
		$(sim-again) GRAIN=sim-fine && \
		$(sim-again) SAN=address B='$(B)/address')

# ---- check-faults: each call to the outside fails, tests/proof/faults.c --------------------------
fault-wraps := malloc calloc aligned_alloc posix_memalign free mmap madvise \
	pthread_create pthread_join sched_getaffinity eventfd syscall timerfd_create nanosleep \
	io_uring_queue_init_params io_uring_queue_exit io_uring_register io_uring_enter2

$(B)/tests/faults: tests/proof/faults.c $(B)/iou.o
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $^ $(fault-wraps:%=-Wl,--wrap=%) $(libs)

.PHONY: check-faults
check-faults: $(B)/tests/faults
	$(Q)$(noted) $(B)/tests/faults -j $$(($(JOBS) * 2))
	$(Q)B='$(B)' JOBS='$(JOBS)' bash tests/proof/strace.sh

# ---- check-engine: iou_fallback.c against the kernel's ring, tests/proof/engine.c ----------------
.PHONY: check-engine
check-engine:
	$(Q)B='$(B)' CC='$(CC)' $(noted) sh tests/proof/engine.sh $(T)

# ---- check-destroy: nothing is written after iou_free(), tests/proof/destroy.c -------------------
DESTROYS ?= 1000
$(B)/tests/destroy: tests/proof/destroy.c $(B)/libiou.a
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $^ $(libs)

.PHONY: check-destroy
check-destroy: $(B)/tests/destroy
	$(Q)$(noted) $(B)/tests/destroy $(DESTROYS); case $$? in \
		0) echo '1 passed, 0 failed, 0 skipped' ;; \
		77) echo '0 passed, 0 failed, 1 skipped' ;; \
		*) echo '0 passed, 1 failed, 0 skipped'; exit 1 ;; esac

# ---- check-full: the tests that `make check` scales down, as they are meant ----------------------
.PHONY: check-full
check-full: all $(check-bin)
	$(Q)IOU_TEST_FULL=1 CK_TIMEOUT_MULTIPLIER=40 TIMEOUT=7200 B='$(B)' CC='$(CC)' \
		MAKE='$(make)' PKG_CONFIG='$(PKG_CONFIG)' SAN='$(SAN)' V='$(V)' \
		$(noted) sh tests/run $(or $(T),check walk)

# What the scripts that link iou.o anew need to know.
proof-env = B='$(B)' CC='$(CC)' JOBS='$(JOBS)' \
	FLAGS='$(own) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS)' \
	SIM_SRC='$(sim-src)' SIM_WRAPS='$(sim-wraps:%=-Wl,--wrap=%)' SMALL="$(small)" \
	FAULT_WRAPS='$(fault-wraps:%=-Wl,--wrap=%)' \
	CHECK_OBJECTS='$(check-src:%.c=$(B)/%.o)' CHECK_LIBS='$(check-libs)' LIBS='$(libs)'

# ---- check-mutants: faults put into iou.c and iou_fallback.c, each caught by some test -----------
.PHONY: check-mutants
check-mutants: $(check-bin)
	$(Q)$(proof-env) $(noted) bash tests/proof/mutants.sh $(T)

# ---- check-kernels: the Check program on older and newer kernels ---------------------------------
.PHONY: check-kernels
check-kernels:
	$(Q)B='$(B)' CC='$(CC)' MAKE='$(make)' $(noted) sh tests/proof/kernels.sh $(T)

# ---- check-ports: on 32 bits, with musl, on arm64 ------------------------------------------------
$(B)/tests/smoke: tests/proof/smoke.c $(B)/libiou.a
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $^ $(libs)

.PHONY: check-ports
check-ports:
	$(Q)B='$(B)' CC='$(CC)' MAKE='$(make)' $(noted) sh tests/proof/ports.sh $(T)

# ---- check-liburing: the Check program and the scripts with newer liburings ----------------------
.PHONY: check-liburing
check-liburing:
	$(Q)B='$(B)' CC='$(CC)' MAKE='$(make)' JOBS='$(JOBS)' $(noted) sh tests/proof/liburing.sh $(T)

# ---- check-spin: the wake-up protocols as models, and for real -----------------------------------
HANDOFFS ?= 10000000
$(B)/tests/handoff: tests/proof/handoff.c $(B)/libiou.a
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(LDFLAGS) -o $@ $^ $(libs)

.PHONY: check-spin
check-spin: $(B)/tests/handoff
	$(Q)B='$(B)' CC='$(CC)' HANDOFFS=$(HANDOFFS) $(noted) sh tests/proof/spin.sh

# ---- check-valgrind: memcheck over the Check program ---------------------------------------------
$(B)/valgrind/check: tests/proof/valgrind.c $(check-src:%.c=$(B)/%.o) $(B)/libiou.a
	$(call say,LD)
	$(Q)mkdir -p $(@D) && \
		$(compile) $(LDFLAGS) -o $@ $^ -Wl,--wrap=io_uring_enter2 $(check-libs) $(libs)

.PHONY: check-valgrind
check-valgrind: $(B)/valgrind/check
	$(Q)B='$(B)' JOBS='$(JOBS)' $(noted) bash tests/proof/valgrind.sh $(T)

# ---- coverage: of iou.c, over the Check program, the simulation, and the faults ------------------
.PHONY: coverage
coverage: $(check-bin)
	$(Q)$(proof-env) $(noted) bash tests/proof/coverage.sh

# ---- The last figures of all of these, into docs/testing.md --------------------------------------
.PHONY: figures
figures:
	$(Q)awk -f tests/figures.awk docs/testing.md >$(B)/testing.md && mv $(B)/testing.md docs/testing.md

# ---- Those that CI runs, a few minutes on two CPUs; and all of them ------------------------------
# One that fails is no reason to leave out the others. What prints no sum of its own counts as one.
part = $(make) --no-print-directory $(1) || bad=1;
one  = if $(make) --no-print-directory $(1); then echo '1 passed, 0 failed, 0 skipped'; \
	else echo '0 passed, 1 failed, 0 skipped'; bad=1; fi;

.PHONY: check-ci check-all
check-ci:
	$(Q)bad=0; $(call one,check-sim RUNS=10000000) $(call one,check-faults) \
		$(call part,check-engine) $(call part,check-spin HANDOFFS=1000000) \
		$(call part,check-destroy DESTROYS=100) $(call part,check-liburing T=sid) exit $$bad

check-all:
	$(Q)bad=0; $(call one,check-sim) $(call one,check-faults) \
		$(call part,check-engine) $(call part,check-spin) $(call part,check-destroy) \
		$(call part,check-full) $(call part,check-kernels) $(call part,check-liburing) \
		$(call part,check-ports) $(call part,check-valgrind) $(call one,check-mutants) \
		$(call one,check-instr) $(call one,coverage) exit $$bad
