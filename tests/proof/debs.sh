# shellcheck shell=sh
# SPDX-License-Identifier: MIT
#
# Sourced by scripts that need packages of some Debian release and architecture: apt fetches them into a folder of
# the build. The system does not change, and need not be root's.
: "${MIRROR:=http://deb.debian.org/debian}"

# debs_open FOLDER RELEASE ARCH: from then on apt works in that folder. For a subshell, which it may end.
debs_open() {
	mkdir -p "$1/lists/partial" "$1/archives/partial" "$1/none"
	cd "$1" || exit 1
	echo "deb $MIRROR $2 main" >sources.list
	cat >apt.conf <<-END_OF_CONF
		Dir::State "$PWD";
		Dir::State::lists "$PWD/lists";
		Dir::State::status "/dev/null";
		Dir::Cache "$PWD";
		Dir::Etc::sourcelist "$PWD/sources.list";
		Dir::Etc::sourceparts "$PWD/none";
		Dir::Etc::preferencesparts "$PWD/none";
		Acquire::Languages "none";
		Acquire::Retries "3";
		APT::Architecture "$3";
		APT::Architectures { "$3"; };
		APT::Sandbox::User "root";
	END_OF_CONF
	export APT_CONFIG="$PWD/apt.conf"
	rm -rf tree ./*.deb
	apt-get update -qq || exit 1
}

# debs_depends PACKAGE PATTERN: the first package like that which this one depends on.
debs_depends() { apt-cache depends "$1" | sed -n "s/.*Depends: \\($2.*\\)/\\1/p" | head -1; }

# debs_unpack PACKAGE...: all that is in them, below the folder's tree/.
debs_unpack() {
	for package; do apt-get download -qq "$package" || exit 1; done
	for deb in ./*.deb; do dpkg -x "$deb" tree || exit 1; done
	rm -rf ./*.deb
}

# Away with what apt needed.
debs_close() { rm -rf lists archives none ./*.bin; }
