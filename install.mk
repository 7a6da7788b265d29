# SPDX-License-Identifier: MIT
#
# make install, make uninstall: what goes where. Included by the Makefile, whose variables it uses:
# there `built` is what was built last, if anything was.

PREFIX       ?= /usr/local
prefix       ?= $(PREFIX)
libdir       ?= $(prefix)/lib
includedir   ?= $(prefix)/include
pkgconfigdir ?= $(libdir)/pkgconfig
datarootdir  ?= $(prefix)/share
docdir       ?= $(datarootdir)/doc/iou
INSTALL      ?= install

to           := $(DESTDIR)
in-prefix     = $(patsubst $(prefix)/%,$${prefix}/%,$(1))
# If there is no libiou.so, programs link the archive, and pkg-config lists what that needs.
static-pc    := -e 's/^Requires.private/Requires/' -e '/^Libs.private/d' \
		-e '/^Libs:/s/$$/ -pthread/'
# $(call put,MODE,FILE,WHERE), $(call put-link,TO,WHERE), $(call take-away,WHERE)
define put
$(call say,INSTALL,$(to)$(3))
$(Q)$(INSTALL) -m $(1) $(2) '$(to)$(3)'
endef
define put-link
$(call say,INSTALL,$(to)$(2))
$(Q)ln -sf $(1) '$(to)$(2)'
endef
define take-away
$(call say,RM,$(to)$(1))
$(Q)rm -f '$(to)$(1)'
endef

install: $(if $(built),,lib)
	$(Q)$(INSTALL) -d '$(to)$(includedir)' '$(to)$(libdir)' '$(to)$(pkgconfigdir)' \
		'$(to)$(docdir)'
	$(call put,644,iou.h,$(includedir)/iou.h)
	$(call put,644,$(B)/libiou.a,$(libdir)/libiou.a)
ifneq ($(shared),)
	$(call put,755,$(shared),$(libdir)/libiou.so.$(VERSION))
	$(call put-link,libiou.so.$(VERSION),$(libdir)/$(SONAME))
	$(call put-link,$(SONAME),$(libdir)/libiou.so)
endif
	$(call say,INSTALL,$(to)$(pkgconfigdir)/iou.pc)
	$(Q)sed -e 's|@prefix@|$(prefix)|' -e 's|@libdir@|$(call in-prefix,$(libdir))|' \
		-e 's|@includedir@|$(call in-prefix,$(includedir))|' -e 's|@version@|$(VERSION)|' \
		$(if $(shared),,$(static-pc)) iou.pc.in > '$(to)$(pkgconfigdir)/iou.pc' && \
		chmod 644 '$(to)$(pkgconfigdir)/iou.pc'
	$(call put,644,LICENSE,$(docdir)/LICENSE)
	$(call put,644,CHANGELOG.md,$(docdir)/CHANGELOG.md)

uninstall:
	$(call take-away,$(includedir)/iou.h)
	$(call take-away,$(libdir)/libiou.a)
	$(call take-away,$(libdir)/libiou.so.$(VERSION))
	$(call take-away,$(libdir)/$(SONAME))
	$(call take-away,$(libdir)/libiou.so)
	$(call take-away,$(pkgconfigdir)/iou.pc)
	$(call take-away,$(docdir)/LICENSE)
	$(call take-away,$(docdir)/CHANGELOG.md)
	$(Q)rmdir '$(to)$(docdir)' 2>/dev/null || :
