#!/usr/bin/env bash
# Build the command as one static file and print where it is.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
build_release
release_binary
