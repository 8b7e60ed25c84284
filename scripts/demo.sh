#!/usr/bin/env bash
# Builds and runs the demo: three servers, real services, real faults, and a timeline. Arguments go to it
# (`--json FILE` writes the results). About two minutes once built.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

scripts/setup.sh
cargo build --quiet --locked --bin rollcalld --bin rollcall-demo
exec "${CARGO_TARGET_DIR:-target}/debug/rollcall-demo" run "$@"
