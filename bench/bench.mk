# SPDX-License-Identifier: MIT
#
# make bench         build and run the comparisons of bench/run; WHAT="nop jobs" for some parts, ROUNDS=5,
#                    BENCH_MS=250, WALK_FILES=, SUM_MIB= for other sizes. $(B)/bench/table.txt has the table,
#                    samples.tsv the samples
# make bench-docs    put the picture and the tables of the last run into docs/
# make check-instr   instructions per op (callgrind) against bench/instr.bounds; skipped without valgrind
# make clean-bench   remove the programs, results and scratch files

HAVE_UV      := $(call found,libuv)
HAVE_EV      := $(shell echo '\#include <ev.h>' | $(CC) $(CPPFLAGS) -E -x c - >/dev/null 2>&1 && echo 1)

bench-lack   := $(if $(HAVE_UV),,bench/uv_echo.c) $(if $(HAVE_CRYPTO),,bench/raw_sum.c)
bench-src    := $(filter-out $(bench-lack),$(wildcard bench/*.c))
bench-bin    := $(bench-src:bench/%.c=$(B)/bench/%)
bench-flags  := $(if $(HAVE_UV),-DHAVE_UV $(call pc,--cflags libuv)) \
		$(if $(HAVE_GLIB),-DHAVE_GLIB $(call pc,--cflags glib-2.0)) $(if $(HAVE_EV),-DHAVE_EV)
bench-libs   := -Wl,--as-needed $(if $(HAVE_UV),$(call pc,--libs libuv)) $(if $(HAVE_GLIB),$(call pc,--libs glib-2.0)) \
		$(if $(HAVE_EV),-lev) $(if $(HAVE_CRYPTO),$(call pc,--libs libcrypto))

$(bench-bin): $(B)/bench/%: bench/%.c $(B)/libiou.a $(B)/flags
	$(call say,CC)
	$(Q)mkdir -p $(@D) && \
		$(compile) $(bench-flags) $(LDFLAGS) -MMD -MP -MT $@ -o $@ $< $(B)/libiou.a $(bench-libs) $(libs)

bench-parts  := $(shell sed -n "s/^parts='\(.*\)'/\1/p" bench/plan)
$(foreach part,$(filter-out all $(bench-parts),$(WHAT)),$(error WHAT=$(part): the parts are $(bench-parts)))

bench: $(bench-bin) $(if $(filter all walk sum echo,$(or $(WHAT),all)),$(examples))
	$(Q)B='$(B)' WHAT='$(WHAT)' ROUNDS='$(ROUNDS)' sh bench/run

.PHONY: bench-docs
bench-docs:
	$(Q)test -s $(B)/bench/tables.md || { echo "iou: no figures yet: run 'make bench' first" >&2; exit 1; }
	$(Q)cp $(B)/bench/speed.svg docs/speed.svg
	$(Q)awk '/^<!-- end of figures -->$$/ { inside = 0 } !inside; \
		/^<!-- figures -->$$/ { inside = 1; while ((getline line < "$(B)/bench/tables.md") > 0) print line }' \
		docs/performance.md >$(B)/bench/performance.md && mv $(B)/bench/performance.md docs/performance.md

.PHONY: check-instr
check-instr: $(B)/bench/instr
	$(Q)B='$(B)' sh tests/noted check-instr sh bench/instr.sh || [ $$? = 77 ]

clean-bench:
	$(Q)rm -rf $(B)/bench
