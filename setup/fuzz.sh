#!/usr/bin/env bash
# Fuzz everything that reads what others wrote: each target for FUZZ_SECONDS (30).
# usage: setup/fuzz.sh [CRATE [TARGET...]]
#
# The crates have no unsafe code of their own, so no sanitizer is needed and a compiler without sanitizer
# runtimes will do.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=${FUZZ_SECONDS:-30}

choose_cargo() {
    if rustup run nightly rustc --version >/dev/null 2>&1; then
        cargo=(rustup run nightly cargo)
    else
        # libFuzzer's instrumentation is unstable; this lets a stable compiler give it.
        export RUSTC_BOOTSTRAP=1
        cargo=(cargo)
    fi
    "${cargo[@]}" fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
}

# fuzz TARGET: in the crate's directory.
fuzz() {
    local options=("-max_total_time=$seconds" -max_len=8192 -print_final_stats=1)
    if [ -e fuzz/tokens.dict ]; then options+=(-dict=fuzz/tokens.dict); fi
    mkdir -p "fuzz/corpus/$1"
    "${cargo[@]}" fuzz build --sanitizer none "$1"
    say "fuzzing $1 for $seconds s"
    if ! "${cargo[@]}" fuzz run --sanitizer none "$1" "fuzz/corpus/$1" "fuzz/seeds/$1" -- \
        "${options[@]}" >"$log" 2>&1; then
        tail -n 100 "$log" >&2
        exit 1
    fi
    grep -E 'number_of_executed_units|average_exec_per_sec|peak_rss' "$log"
}

# fuzz_crate CRATE [TARGET...]
fuzz_crate() {
    local target
    cd "$repository/$1"
    shift
    if (($# == 0)); then
        for target in fuzz/fuzz_targets/*.rs; do set -- "$@" "$(basename "$target" .rs)"; done
    fi
    for target; do fuzz "$target"; done
}

need_rust
need_packages g++
choose_cargo
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if (($#)); then
    fuzz_crate "$@"
else
    for crate in "$repository"/*/fuzz; do fuzz_crate "$(basename "$(dirname "$crate")")"; done
fi
