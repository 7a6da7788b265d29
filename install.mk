# SPDX-License-Identifier: MIT
#
# make install, make uninstall: the places of all files. The Makefile includes this file. Its
# variable `built` is the library that was built last, if there is one.

PREFIX       ?= /usr/local
prefix       ?= $(PREFIX)
libdir       ?= $(prefix)/lib
includedir   ?= $(prefix)/include
pkgconfigdir ?= $(libdir)/pkgconfig
datarootdir  ?= $(prefix)/share
docdir       ?= $(datarootdir)/doc/iou
mandir       ?= $(datarootdir)/man
INSTALL      ?= install
# URL in iou.pc: the documentation. A distribution may name a page on the web.
url          ?= file://$(docdir)/$(firstword $(filter README.md,$(documents)) LICENSE)

to           := $(DESTDIR)
documents    := LICENSE CHANGELOG.md $(wildcard README.md docs/*.md docs/*.svg)
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
# The place of a page, and $(call for-each-link,COMMAND): a link for each function, as iou_run.3 to
# iou_loop.3. The command finds the names in $$link and $$page.
page-place    = $(mandir)/man$(subst .,,$(suffix $(1)))/$(notdir $(1))
links        := $(mandir)/man3/iou_*.3 (links)
for-each-link = awk -v list=1 -f man/make.awk iou.h | \
		while read -r link page; do $(1) || exit 1; done

install: $(if $(built),,lib) $(man-pages)
	$(Q)$(INSTALL) -d '$(to)$(includedir)' '$(to)$(libdir)' '$(to)$(pkgconfigdir)' \
		'$(to)$(docdir)' $(if $(filter docs/%,$(documents)),'$(to)$(docdir)/docs') \
		$(if $(man-pages),'$(to)$(mandir)/man3' '$(to)$(mandir)/man7')
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
		-e 's|@url@|$(url)|' \
		$(if $(shared),,$(static-pc)) iou.pc.in > '$(to)$(pkgconfigdir)/iou.pc' && \
		chmod 644 '$(to)$(pkgconfigdir)/iou.pc'
	$(foreach file,$(documents),$(call put,644,$(file),$(docdir)/$(file)))
	$(foreach file,$(man-pages),$(call put,644,$(file),$(call page-place,$(file))))
ifneq ($(man-pages),)
	$(call say,INSTALL,$(to)$(links))
	$(Q)$(call for-each-link,ln -sf "$$page.3" '$(to)$(mandir)'/man3/"$$link.3")
endif

uninstall:
	$(call take-away,$(includedir)/iou.h)
	$(call take-away,$(libdir)/libiou.a)
	$(call take-away,$(libdir)/libiou.so.$(VERSION))
	$(call take-away,$(libdir)/$(SONAME))
	$(call take-away,$(libdir)/libiou.so)
	$(call take-away,$(pkgconfigdir)/iou.pc)
	$(foreach file,$(documents),$(call take-away,$(docdir)/$(file)))
	$(Q)rmdir '$(to)$(docdir)/docs' '$(to)$(docdir)' 2>/dev/null || :
	$(foreach file,$(man-pages),$(call take-away,$(call page-place,$(file))))
ifneq ($(man-pages),)
	$(call say,RM,$(to)$(links))
	$(Q)$(call for-each-link,rm -f '$(to)$(mandir)'/man3/"$$link.3")
endif
