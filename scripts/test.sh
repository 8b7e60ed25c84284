#!/usr/bin/env bash
# Everything that must hold before a change goes in; what continuous integration runs.
#   scripts/test.sh                 all stages
#   scripts/test.sh tests doctests  these stages
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(format lints tests doctests docs gate licences)

# Seconds; several times as many as they take on two cores.
TESTS_MAX=4000

format() { cargo fmt --all -- --check; }
lints() { cargo clippy --quiet --locked --workspace --all-targets -- -D warnings; }
tests() {
    # The programs that the tests start, with the features that the tests are built with: nothing is built twice.
    cargo build --quiet --locked --workspace --all-targets
    # Seeds of the simulation cost a twentieth in an optimized program: some hundred of them pay for building it.
    cargo build --quiet --locked --profile tools -p rollcall-sim
    ROLLCALL_SIM="$(realpath "${CARGO_TARGET_DIR:-target}/tools/rollcall-sim")"
    export ROLLCALL_SIM
    # A test that hangs must not keep the others from being reported; those that take over a minute are named as they run.
    timeout --kill-after=30 "$TESTS_MAX" cargo test --quiet --locked --workspace --all-targets --no-fail-fast &
    local tests=$! code=0
    # They are a group of their own: whoever ends this one means them as well.
    trap 'kill "$tests"' INT TERM
    wait "$tests" || code=$?
    trap - INT TERM
    [ $code -ne 124 ] || echo "the tests were ended after $TESTS_MAX s: the last one named above hangs" >&2
    return $code
}
doctests() { cargo test --quiet --locked --workspace --doc; }
docs() { RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps; }
# Instruction counts of the hot paths against their budgets.
gate() { scripts/gate.sh; }
licences() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny --log-level error check
    else
        echo "cargo-deny is not installed; skipped"
    fi
}

timings=() finished=no
# Whoever is ended from outside comes by here as well, with a code that says nothing.
report() {
    local code=$?
    echo
    printf '%s\n' "${timings[@]}"
    if [ $code -eq 0 ] && [ $finished = yes ]; then
        echo "all green in ${SECONDS} s"
    else
        echo "FAILED after ${SECONDS} s"
    fi
}
trap report EXIT

stage() {
    local name=$1 from=$SECONDS code
    echo "== $name"
    # Not called from a condition: there `set -e` would not hold inside.
    set +e
    (set -e; "$name")
    code=$?
    set -e
    timings+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - from)) "$([ $code -eq 0 ] && echo ok || echo FAILED)")")
    return $code
}

for name in "${stages[@]}"; do
    case $name in
        format | lints | tests | doctests | docs | gate | licences) ;;
        *) echo "unknown stage $name; there are: format lints tests doctests docs gate licences" >&2; exit 2 ;;
    esac
done
setup() { scripts/setup.sh; }
stage setup
for name in "${stages[@]}"; do stage "$name"; done
finished=yes
