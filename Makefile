# SPDX-License-Identifier: MIT
#
#   make [all]      build the library, its manual pages and the examples, in build/
#   make lib        build the library and its manual pages only
#   make demo       count the files and bytes below /usr with examples/walk
#   make check      run the tests. T="timer install" runs these two. SAN=address (ASan, UBSan and
#                   iou's own checks) or SAN=thread builds with a sanitizer. ENGINE=fallback runs
#                   without io_uring, ENGINE=ring fails without it
#   make check-all  run all proofs: check-sim check-faults check-engine check-spin check-destroy
#                   check-full check-kernels check-liburing check-ports check-valgrind
#                   check-mutants check-instr coverage. docs/testing.md explains them.
#                   make check-ci runs the quick ones, make figures writes down their figures
#   make bench      compare iou with the bare ring and other libraries. WHAT=nop measures one part.
#                   bench-docs writes the figures into docs/, clean-bench removes the results
#   make install    install the library that was built last. DESTDIR=, prefix=, libdir=,
#                   includedir=, docdir=, mandir= and url= (for iou.pc) change the places
#   make uninstall  remove the installed files
#   make deps       install the packages for `all` and `check`; deps-dev: for every test;
#                   deps-bench: for `bench`
#   make dist       make a tarball of the last commit
#   make clean      remove build/
#   make help       print this text
#
# You may set CC, AR, CFLAGS, CPPFLAGS, LDFLAGS and PKG_CONFIG. V=1 shows the commands. SHARED=no
# leaves libiou.so out. From another folder, `make -f FOLDER/Makefile` is `make -C FOLDER`.

# If it is named from another folder, or `deps` is among the goals: see the end of this file.
ifeq ($(findstring /,$(MAKEFILE_LIST))$(filter deps%,$(MAKECMDGOALS)),)
VERSION      := $(shell awk '/define IOU_VERSION_(MAJOR|MINOR|PATCH) / { v = v s $$3; s = "." } \
			END { print v }' iou.h)
SONAME       := libiou.so.$(firstword $(subst ., ,$(VERSION)))

PKG_CONFIG   ?= pkg-config
CFLAGS       ?= -O2 -g

# ---- Flags. Each way to build has its own folder: build, build/address, build/clang-NDEBUG, ... --
san-address  := -fsanitize=address,undefined -fno-sanitize-recover=all \
		-fno-omit-frame-pointer -DIOU_DEBUG
san-thread   := -fsanitize=thread -fno-omit-frame-pointer
ifneq ($(filter-out help clean dist,$(or $(MAKECMDGOALS),all)),)
$(if $(SAN),$(if $(san-$(SAN)),,$(error SAN=$(SAN): address or thread is expected)))
$(if $(filter-out fallback ring,$(ENGINE)),$(error ENGINE=$(ENGINE): fallback or ring is expected))
$(if $(filter-out yes no,$(SHARED)),$(error SHARED=$(SHARED): set it to no, or leave it out))
endif

empty        :=
variant      := $(SAN) $(filter-out cc gcc,$(notdir $(firstword $(CC)))) \
		$(patsubst -D%,%,$(filter -DNDEBUG,$(CFLAGS) $(CPPFLAGS)))
# `make install` takes the library that `make` or `make lib` built last and compiles nothing. If
# another folder is named beside it (by B=, SAN= or CC=), it takes the library there. If there is
# none yet, it builds one.
installs     := $(if $(filter-out install,$(MAKECMDGOALS)),,$(MAKECMDGOALS))
last         := $(if $(installs),$(if $(strip $(variant)),,$(shell cat build/last 2>/dev/null)))
folder       := build$(addprefix /,$(subst $(empty) $(empty),-,$(strip $(variant))))
B            ?= $(or $(patsubst %/libiou.a,%,$(wildcard $(last))),$(folder))
built        := $(if $(installs),$(wildcard $(B)/libiou.a))
changed      := $(if $(built),$(shell find iou*.c iou.h -newer $(built)))
$(if $(changed),$(error $(changed) changed after $(built) was built: run 'make' first))

pc            = $(shell $(PKG_CONFIG) $(1) 2>/dev/null)
found         = $(shell $(PKG_CONFIG) --exists $(1) 2>/dev/null && echo 1)
HAVE_CHECK   := $(call found,check)
HAVE_CRYPTO  := $(call found,libcrypto)
HAVE_GLIB    := $(call found,glib-2.0)

own          := -Wall -Wextra -Wshadow -Wstrict-prototypes -I. -pthread \
		$(call pc,--cflags liburing) $(san-$(SAN))
compile       = $(CC) $(own) $(CPPFLAGS) $(CFLAGS)
link          = $(CC) $(own) $(CFLAGS) $(LDFLAGS)
libs         := $(or $(call pc,--libs liburing),-luring) -pthread
# A line for each file that is made, or $(2); none with make -s.
verbose      := $(filter-out 0,$(V))
Q            := $(if $(verbose),,@)
quiet         = $(verbose)$(findstring s,$(firstword -$(MAKEFLAGS)))
say           = $(if $(quiet),,@echo '  $(1)	$(or $(2),$@)')

shared       := $(if $(built),$(wildcard $(B)/$(SONAME)),$(B)/$(SONAME))
shared       := $(if $(filter no,$(SHARED)),,$(shared))
library      := $(B)/libiou.a $(shared)
parts        := iou.c $(wildcard iou_fallback.c)
symbols      := $(wildcard libiou.map)
man-pages    := $(if $(wildcard man),$(addprefix $(B)/man/,iou.7 iou_life.3 iou_engines.3 \
		iou_ops.3 iou_loop.3 iou_threads.3 iou_inspect.3))
example-src  := $(filter-out $(if $(HAVE_CRYPTO),,examples/sum.c),$(wildcard examples/*.c))
examples     := $(example-src:%.c=$(B)/%)
check-src    := $(wildcard tests/main.c tests/helper*.c tests/test_*.c)
check-bin    := $(B)/tests/check
# By this name, since `make -n` would run the lines that have the other.
make         := $(MAKE)

.PHONY: all lib check demo bench clean-bench install uninstall dist clean help FORCE
all: lib $(examples)

# ---- The library ---------------------------------------------------------------------------------
named        := $(SAN)$(filter-out file,$(origin B))
lib: $(library) $(man-pages)
	$(Q)$(if $(shared),,rm -f $(B)/libiou.so $(B)/$(SONAME))
	$(Q)$(if $(named),,echo $< | cmp -s - build/last || echo $< >build/last)

$(parts:%.c=$(B)/%.o): $(B)/%.o: %.c $(B)/flags
	$(call say,CC)
	$(Q)$(compile) -fvisibility=hidden -MMD -MP -c -o $@ $<

$(parts:%.c=$(B)/%.pic.o): $(B)/%.pic.o: %.c $(B)/flags
	$(call say,CC)
	$(Q)$(compile) -fvisibility=hidden -fPIC -MMD -MP -c -o $@ $<

# One member: iou.c's reference to the fallback is weak, and would not take another one out.
$(B)/libiou.a: $(parts:%.c=$(B)/%.o)
	$(call say,AR)
	$(Q)rm -f $@ && $(CC) $(CFLAGS) -r -nostdlib -o $(B)/libiou.o $^ && $(AR) rcs $@ $(B)/libiou.o

$(B)/$(SONAME): $(parts:%.c=$(B)/%.pic.o) $(symbols)
	$(call say,LD)
	$(Q)$(link) -shared -Wl,-soname,$(SONAME) $(symbols:%=-Wl,--version-script=%) -o $@ \
		$(filter %.o,$^) $(libs) && ln -sf $(SONAME) $(B)/libiou.so

$(man-pages): $(B)/man/%: man/make.awk man/iou.7.in iou.h
	$(call say,MAN)
	$(Q)mkdir -p $(@D) && rm -f $@ && \
		awk -v page=$* -f man/make.awk iou.h man/iou.7.in >$@.new && mv $@.new $@

# ---- Programs ------------------------------------------------------------------------------------
example-libs  = $(libs) $(if $(findstring sum,$@),$(call pc,--cflags --libs libcrypto))
$(examples): $(B)/examples/%: examples/%.c $(B)/libiou.a
	$(call say,CC)
	$(Q)mkdir -p $(@D) && \
		$(compile) $(LDFLAGS) -MMD -MP -MT $@ -o $@ $< $(B)/libiou.a $(example-libs)

ifneq ($(HAVE_CHECK),)
check-flags  := -Itests $(call pc,--cflags check) \
		$(if $(HAVE_GLIB),-DHAVE_GLIB $(call pc,--cflags glib-2.0))
check-libs   := $(call pc,--libs check) $(if $(HAVE_GLIB),$(call pc,--libs glib-2.0))
$(check-src:%.c=$(B)/%.o): $(B)/%.o: %.c $(B)/flags
	$(call say,CC)
	$(Q)mkdir -p $(@D) && $(compile) $(check-flags) -MMD -MP -c -o $@ $<

$(check-bin): $(check-src:%.c=$(B)/%.o) $(B)/libiou.a
	$(call say,LD)
	$(Q)$(link) -o $@ $^ $(check-libs) $(libs)
else
.PHONY: $(check-bin)
$(check-bin):
	@echo "iou: Check is not installed: run 'make deps'" >&2; exit 1
endif

ifneq ($(filter check,$(MAKECMDGOALS)),)
tests        := check $(patsubst tests/programs/%.sh,%,$(wildcard tests/programs/*.sh)) \
		$(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))
$(if $(filter-out $(tests),$(T)),$(error T=$(filter-out $(tests),$(T)): the tests are $(tests)))
endif
# Notes its figures if the Check program is among the tests.
noted-check   = $(if $(filter check,$(or $(T),check)),sh tests/noted \
		'$(strip check $(ENGINE:%=ENGINE=%) $(SAN:%=SAN=%) $(filter-out $(SAN),$(variant)))')
check: $(library) $(examples) $(check-bin)
	$(Q)B='$(B)' CC='$(CC)' MAKE='$(make)' PKG_CONFIG='$(PKG_CONFIG)' SAN='$(SAN)' \
		V='$(verbose)' $(ENGINE:%=IOU_ENGINE=%) \
		$(noted-check) sh tests/run $(T)

demo: $(B)/examples/walk
	$(B)/examples/walk /usr

# ---- Files of their own, which use the variables above: install; check-*, coverage; bench --------
include install.mk
-include $(wildcard tests/proof/proof.mk bench/bench.mk)

# ---- A tarball, an empty folder, help ------------------------------------------------------------
dist:
	$(Q)mkdir -p build && \
		git archive --prefix=iou-$(VERSION)/ -o build/iou-$(VERSION).tar.gz HEAD
	@echo build/iou-$(VERSION).tar.gz

clean:
	$(Q)rm -rf build

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

# ---- What was built with other flags is built again; liburing and the compiler are asked for once 
$(B)/flags: export flags = $(compile) $(LDFLAGS) $(HAVE_GLIB)
$(B)/flags: FORCE
	@fail() { echo "iou: $$*" >&2; exit 1; }; \
	mkdir -p $(B) && printf '%s\n' "$$flags" | cmp -s - $@ || { \
		command -v $(firstword $(CC)) >/dev/null || \
			fail "no C compiler '$(CC)': run 'make deps', or set CC"; \
		$(compile) -x c -fsyntax-only /dev/null || exit 1; \
		printf '#include <liburing.h>\n' | \
			$(compile) -D_GNU_SOURCE -x c -fsyntax-only - 2>/dev/null || \
			fail "liburing's headers are not installed: run 'make deps'"; \
		printf '%s\n' "$$flags" > $@; }
-include $(wildcard $(B)/*.d $(B)/*/*.d)

else ifneq ($(findstring /,$(MAKEFILE_LIST)),)
# ---- If it is named from another folder, it runs in its own --------------------------------------
.PHONY: its-own-folder $(MAKECMDGOALS)
$(or $(MAKECMDGOALS),all): its-own-folder
its-own-folder:
	@$(MAKE) --no-print-directory -C "$$(dirname '$(strip $(MAKEFILE_LIST))')" $(MAKECMDGOALS)

else
# ---- Goals named beside `deps` run after it, in a make of their own that sees what was installed -
.NOTPARALLEL:
.PHONY: $(MAKECMDGOALS)
$(filter-out deps%,$(MAKECMDGOALS)): $(filter deps%,$(MAKECMDGOALS))
	@$(MAKE) --no-print-directory $@
$(filter deps%,$(MAKECMDGOALS)):
	@CC='$(CC)' PKG_CONFIG='$(PKG_CONFIG)' sh .ci/deps $@

endif
