#!/usr/bin/env bash
# Build an image of a recipe and print its path.
# usage: images/build.sh [RECIPE]
#
# RECIPE is debian (the default), fortran or python-plot. Kept in the user's cache directory; a second run only prints
# the path. No root is needed but for installing what is missing. APPPOT names the command that builds it (default:
# the release, which is built first).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../setup/lib.sh
source "$here/../setup/lib.sh"

recipe=${1:-debian}

# What decides how the image is: the recipe, the builder, this machine's release.
input_key() {
    { cat "$here/$recipe.toml" "$repository"/src/image/build/*; cat /etc/os-release; } | sha256sum | cut -c1-16
}

build() {
    local apppot=${APPPOT:-}
    need_packages mmdebstrap passt
    need_some_kernel
    if [ -z "$apppot" ]; then
        need_rust
        build_release
        apppot=$(release_binary)
    fi
    say "building the image '$recipe' (about a minute)"
    "$apppot" image build --quiet --output "$1" "$here/$recipe.toml"
}

[ -e "$here/$recipe.toml" ] || die "there is no recipe '$recipe'"
built_once "$(image_cache)/$recipe-$(input_key).img" build
