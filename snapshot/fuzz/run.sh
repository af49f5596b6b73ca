#!/usr/bin/env bash
# Fuzzes everything here that reads what others wrote, each for FUZZ_SECONDS (30), or only those named as arguments.
# Installs cargo-fuzz when it is missing. The crate has no unsafe code of its own, so no sanitizer is needed and
# a compiler without sanitizer runtimes will do.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-30}
if [ $# -eq 0 ]; then
    set -- archive base image manifest
fi

if rustup run nightly rustc --version >/dev/null 2>&1; then
    cargo=(rustup run nightly cargo)
else
    # libFuzzer's instrumentation is unstable; this lets a stable compiler give it.
    export RUSTC_BOOTSTRAP=1
    cargo=("${CARGO:-cargo}")
fi

"${cargo[@]}" fuzz --version >/dev/null 2>&1 || "${CARGO:-cargo}" install --locked cargo-fuzz

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target; do
    mkdir -p "fuzz/corpus/$target"
    "${cargo[@]}" fuzz build --sanitizer none "$target"
    echo "fuzzing $target for $seconds s"
    if ! "${cargo[@]}" fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 100 "$log" >&2
        exit 1
    fi
    grep -E 'number_of_executed_units|average_exec_per_sec|peak_rss' "$log"
done
