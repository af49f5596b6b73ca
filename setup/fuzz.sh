#!/usr/bin/env bash
# Fuzz everything that reads what others wrote: the contract, archives, bases, images.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
need_packages g++
"$repository/contract/fuzz/run.sh"
"$repository/snapshot/fuzz/run.sh"
