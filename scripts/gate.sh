#!/usr/bin/env bash
# The regression gate: counts the instructions of the hot paths with callgrind and compares them with the budgets in
# benches/budgets.json. More than 5 % above fails; more than 5 % below asks to be recorded.
#   scripts/gate.sh                    the rooms: what CI runs
#   scripts/gate.sh --all              the client's paths and the wire's as well: more to build
#   scripts/gate.sh [--all] record     writes the budgets anew
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

features=(--no-default-features)
if [ "${1:-}" = --all ]; then
    features=()
    shift
fi
action="${1:-check}"
[ $# -eq 0 ] || shift

if ! command -v valgrind >/dev/null 2>&1; then
    echo "gate: valgrind is missing; scripts/setup.sh installs it" >&2
    exit 1
fi
cargo build --quiet --locked --profile tools -p rollcall-benches --bin rollcall-gate "${features[@]}"
exec "${CARGO_TARGET_DIR:-target}/tools/rollcall-gate" "$action" benches/budgets.json "$@"
