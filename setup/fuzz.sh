#!/usr/bin/env bash
# Fuzz the decoders of the contract.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
need_packages g++
exec "$repository/contract/fuzz/run.sh" "$@"
