#!/usr/bin/env bash
# Measures Rollcall against etcd, ZooKeeper and r-nacos on this machine, and renews benches/README.md and its plots.
#   scripts/bench.sh                         everything in the table
#   scripts/bench.sh --scale quick           to see that it works; writes no report
#   scripts/bench.sh --only watch,etcd,rollcall   these workloads, these products; writes no report
# More with --help; arguments go to `rollcall-compare compare`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

target="${CARGO_TARGET_DIR:-target}"
scripts/setup.sh
scripts/bench-peers.sh
cargo build --quiet --locked --profile tools -p rollcall-benches --bin rollcall-compare
measured=()
case " $* " in
    *" --rollcalld "* | *" --rollcalld="*) ;;
    *)
        cargo build --quiet --locked --release -p rollcall-server --bin rollcalld
        measured=(--rollcalld "$target/release/rollcalld")
        ;;
esac

report=(--report benches)
case " $* " in
    *" --only"* | *" quick "* | *"=quick "* | *" --report"* | *" --rollcalld"*) report=() ;;
esac
exec "$target/tools/rollcall-compare" compare --peers "$target/peers" --data "$target/bench-data" \
    "${measured[@]}" "${report[@]}" "$@"
