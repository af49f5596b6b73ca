#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the appliance kernel: User-Mode Linux from Debian's kernel source, with the configuration
# and the patches beside this script, as one static binary.
#
# The source comes from the Debian mirror that the machine's own package sources name, through a
# private apt configuration: the machine's sources and lists stay as they are. Results are kept per
# set of inputs in the user's cache directory; a second run only copies.
set -euo pipefail

usage() {
	cat <<'TEXT'
usage: build.sh [options]

  --install DIR   put `linux`, `linux.config` and `linux.build-info` into DIR
                  (default: $XDG_DATA_HOME/apppot, that is ~/.local/share/apppot)
  --update        look for a newer kernel source, record it in SOURCE and build that
  --mirror URI    the Debian mirror to use instead of the one of the machine's package sources
  --jobs N        compile with N processes (default: the number of processors)
  --force         build even if the cache has the result
  -h, --help      show this text
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/apppot/kernel
install_dir=${XDG_DATA_HOME:-$HOME/.local/share}/apppot
jobs=$(nproc)
mirror=
update=false
force=false
work=

# Commands without which nothing works, and the packages that bring them. libc6-dev has the static
# C library, libelf-dev the headers that some of the kernel's build tools want.
needed_packages=(gcc make libc6-dev flex bison bc libelf-dev cpio xz-utils zstd patch)

say() { printf 'kernel: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

parse_options() {
	while (($#)); do
		case $1 in
		--install) install_dir=${2:?--install needs a directory}; shift ;;
		--mirror) mirror=${2:?--mirror needs a URI}; shift ;;
		--jobs) jobs=${2:?--jobs needs a number}; shift ;;
		--update) update=true ;;
		--force) force=true ;;
		-h | --help) usage; exit 0 ;;
		*) usage >&2; die "unknown option '$1'" ;;
		esac
		shift
	done
}

# ---- Cleanliness ------------------------------------------------------------------------------

# Everything temporary is below $work, which is locked as long as we live: what an interrupted run
# could not remove is recognised by the missing lock and removed by the next run.
make_work_dir() {
	local old
	mkdir -p "$cache"
	for old in "$cache"/build.*; do
		if [ -d "$old" ] && flock -n "$old" true; then rm -rf "$old"; fi
	done
	work=$(mktemp -d "$cache/build.XXXXXX")
	exec 8<"$work"
	flock 8
}

clean_up() {
	local pids
	pids=$(jobs -p)
	# shellcheck disable=SC2086 # one word per process
	[ -z "$pids" ] || kill $pids 2>/dev/null || true
	wait || true
	[ -z "$work" ] || rm -rf "$work"
}

# Long commands run in the background, so that a signal is answered at once.
run() {
	"$@" 8>&- 9>&- &
	wait $!
}

# ---- Packages ---------------------------------------------------------------------------------

have_package() {
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
	local package missing=() sudo=()
	for package in "${needed_packages[@]}"; do
		have_package "$package" || missing+=("$package")
	done
	((${#missing[@]})) || return 0
	if (($(id -u) != 0)); then
		sudo -n true 2>/dev/null || die "these packages are missing: ${missing[*]}"
		sudo=(sudo -n)
	fi
	say "installing ${missing[*]}"
	apt_install "${missing[@]}" || { run "${sudo[@]}" apt-get -q update && apt_install "${missing[@]}"; }
}

apt_install() {
	run "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends "$@" >&2
}

# ---- Source -----------------------------------------------------------------------------------

# SOURCE pins what was tested: read one of its fields.
pinned() { sed -n "s/^$1=//p" "$here/SOURCE"; }

# The mirror of the machine's own package sources, not the one for security updates.
own_mirror() {
	apt-get --print-uris update 2>/dev/null |
		sed -n "s,^'\(.*\)/dists/\([^/]*\)/InRelease'.*,\2 \1,p" |
		awk '$1 !~ /security/ && !seen++ { print $2 }'
}

debian_keyring() {
	local file
	for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
		if [ -r "$file" ]; then echo "$file"; return; fi
	done
	die "no keyring of the Debian archive: install debian-archive-keyring"
}

# A private apt: our own sources, lists and cache; of the machine's configuration only how it
# reaches the network (proxies).
setup_apt() {
	local suite apt=$work/apt
	[ -n "$mirror" ] || mirror=$(own_mirror)
	[ -n "$mirror" ] || die "the machine's package sources name no mirror: use --mirror"
	mkdir -p "$apt"/{etc/apt.conf.d,etc/preferences.d,lists/partial,cache/archives/partial}
	: >"$apt/etc/sources.list"
	for suite in "$@"; do
		printf 'deb [signed-by=%s] %s %s main\n' "$(debian_keyring)" "$mirror" "$suite"
	done >"$apt/etc/sources.list"
	{
		apt-config dump Acquire | grep -E '::(Proxy|Proxy-Auto-Detect|https?::[^:]*) ' || true
		printf '%s "%s";\n' \
			Dir::Etc::sourcelist "$apt/etc/sources.list" Dir::Etc::sourceparts "$apt/etc/none" \
			Dir::Etc::main "$apt/etc/none" Dir::Etc::parts "$apt/etc/apt.conf.d" \
			Dir::Etc::preferences "$apt/etc/none" \
			Dir::Etc::preferencesparts "$apt/etc/preferences.d" \
			Dir::State "$apt" Dir::State::lists "$apt/lists" Dir::State::status "$apt/status" \
			Dir::Cache "$apt/cache" Acquire::Languages none APT::Sandbox::User "" \
			APT::Get::List-Cleanup false
	} >"$apt/apt.conf"
	: >"$apt/status"
	mkdir -p "$apt/etc/none"
	export APT_CONFIG=$apt/apt.conf
	run apt-get -q=2 update >&2 || die "cannot read the package lists of $mirror"
}

# "package version sha256" of every linux-source-7.x that the private apt sees.
available_sources() {
	apt-cache search --names-only '^linux-source-[7-9][.][0-9]+$' | awk '{ print $1 }' |
		xargs -r apt-cache show |
		awk -F': ' '$1 == "Package" { p = $2 } $1 == "Version" { v = $2 }
			$1 == "SHA256" { print p, v, $2 }'
}

# The newest one, by version.
newest_source() {
	local line best=
	while read -r line; do
		if [ -z "$best" ] || dpkg --compare-versions "$(cut -d' ' -f2 <<<"$line")" gt \
			"$(cut -d' ' -f2 <<<"$best")"; then
			best=$line
		fi
	done < <(available_sources)
	echo "$best"
}

# Sets package, version, sha256: the pinned source, or else the newest that the mirror has.
choose_source() {
	local found
	setup_apt "$(pinned suite)"
	found=$(available_sources | grep -F " $(pinned version) $(pinned sha256)" | sed -n 1p || true)
	if [ -z "$found" ]; then
		setup_apt trixie-backports testing unstable
		found=$(newest_source)
		[ -n "$found" ] || die "the mirror has no linux-source-7.x package"
		say "warning: the mirror no longer has $(pinned package) $(pinned version)"
		say "warning: using $found instead, with which this kernel was not tested"
	fi
	read -r package version sha256 <<<"$found"
}

# Record the newest source in SOURCE (--update). Backports are preferred: they are kept longer.
update_source() {
	local suite found
	for suite in trixie-backports testing unstable; do
		setup_apt "$suite"
		found=$(newest_source)
		[ -z "$found" ] || break
	done
	[ -n "$found" ] || die "the mirror has no linux-source-7.x package"
	read -r package version sha256 <<<"$found"
	printf '%s\n' "package=$package" "version=$version" "suite=$suite" "sha256=$sha256" >"$work/SOURCE"
	if cmp -s "$work/SOURCE" "$here/SOURCE"; then
		say "$package $version is still the newest"
	else
		cp "$work/SOURCE" "$here/SOURCE"
		say "SOURCE now names $package $version: check that the patches apply, run test.sh"
	fi
}

# Download the package, check it, unpack the kernel into $work/src. What UML cannot use stays packed.
unpack_source() {
	local deb
	say "downloading $package $version"
	(cd "$work" && run apt-get -q=2 download "$package=$version" >&2) || die "download failed"
	deb=$(echo "$work/$package"_*.deb)
	echo "$sha256  $deb" | sha256sum --quiet -c - >&2 || die "$deb is not what the package list says"
	mkdir "$work/src"
	run unpack_deb "$deb"
	rm "$deb"
}

unpack_deb() {
	dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/src/$package.tar.xz" | xz -dc |
		tar -x -C "$work/src" --strip-components=1 --wildcards \
			--exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' \
			--exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' \
			--exclude='*/drivers/scsi/*.[ch]' --exclude='*/drivers/staging/*.[ch]' \
			--exclude='*/sound/*.[ch]' --exclude='*/Documentation/*.rst' \
			--exclude='*/tools/testing/*' --exclude='*/arch/*/boot/dts/*'
}

apply_patches() {
	local file
	for file in "$here"/patches/*.patch; do
		patch -d "$work/src" -p1 -s -f --no-backup-if-mismatch <"$file" >&2 ||
			die "$(basename "$file") does not apply to $package $version"
	done
}

# ---- Build ------------------------------------------------------------------------------------

kernel_make() {
	run make -C "$work/src" ARCH=um -s "$@" >&2
}

# Same inputs, same bytes: no time, user, host name or path of this machine gets into the result.
reproducible_environment() {
	SOURCE_DATE_EPOCH=$(stat -c %Y "$work/src/Makefile")
	export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC KBUILD_BUILD_VERSION=1 \
		KBUILD_BUILD_USER=apppot KBUILD_BUILD_HOST=apppot
	KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$SOURCE_DATE_EPOCH")
	export KBUILD_BUILD_TIMESTAMP
	unset MAKEFLAGS MAKELEVEL MAKEOVERRIDES MFLAGS
}

configure() {
	export KCONFIG_ALLCONFIG=$here/config
	kernel_make allnoconfig >/dev/null
	unset KCONFIG_ALLCONFIG
	check_config
}

# An option that a newer kernel renamed, or whose dependencies are not met, vanishes silently.
check_config() {
	local line lost=()
	while read -r line; do
		case $line in
		CONFIG_*=*) grep -qxF -- "$line" "$work/src/.config" || lost+=("$line") ;;
		'# CONFIG_'*' is not set')
			line=${line#\# } line=${line%% *}
			! grep -q "^$line=" "$work/src/.config" || lost+=("no $line")
			;;
		esac
	done <"$here/config"
	((${#lost[@]} == 0)) || die "not in the resulting configuration: ${lost[*]}"
}

build_info() {
	local file
	printf '%s\n' "package=$package" "version=$version" "sha256=$sha256" \
		"kernel=$("$1" --version)" "compiler=$(compiler)" "inputs=$key" "linux-sha256=$(sha256sum <"$1" | cut -d' ' -f1)"
	for file in "$here"/patches/*.patch; do
		printf 'patch=%s %s\n' "$(basename "$file")" "$(sha256sum <"$file" | cut -d' ' -f1)"
	done
}

build() {
	choose_source
	unpack_source
	apply_patches
	reproducible_environment
	configure
	say "compiling $package $version with $jobs processes"
	kernel_make -j"$jobs" linux
	mkdir "$work/out"
	strip -s -o "$work/out/linux" "$work/src/linux"
	cp "$work/src/.config" "$work/out/config"
	build_info "$work/out/linux" >"$work/out/build-info"
	rm -rf "${cache:?}/$key"
	mv -T "$work/out" "$cache/$key"
}

# ---- Cache ------------------------------------------------------------------------------------

compiler() { gcc --version 2>/dev/null | sed -n 1p; }

# All that the result depends on.
input_key() {
	{
		cat "$here/build.sh" "$here/config" "$here/SOURCE" "$here"/patches/*.patch
		compiler
		uname -m
	} | sha256sum | cut -c1-16
}

install_result() {
	local name
	mkdir -p "$install_dir"
	for name in config build-info; do
		install -m 644 "$cache/$key/$name" "$install_dir/.linux.$name.$$"
		mv "$install_dir/.linux.$name.$$" "$install_dir/linux.$name"
	done
	install -m 755 "$cache/$key/linux" "$install_dir/.linux.$$"
	mv "$install_dir/.linux.$$" "$install_dir/linux"
	echo "$install_dir/linux"
}

main() {
	parse_options "$@"
	[ "$(uname -m)" = x86_64 ] || die "this kernel is for x86_64"
	trap clean_up EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	if $update; then
		make_work_dir
		update_source
		unset APT_CONFIG
	fi
	key=$(input_key)
	if $force || [ ! -e "$cache/$key/linux" ]; then
		[ -n "$work" ] || make_work_dir
		install_packages
		key=$(input_key) # the compiler may be new
		exec 9>"$cache/lock"
		flock -n 9 || { say "waiting for another build"; flock 9; }
		if $force || [ ! -e "$cache/$key/linux" ]; then build; fi
	fi
	install_result
}

main "$@"
