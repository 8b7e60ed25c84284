#!/usr/bin/env bash
# What takes hours: seeds of the simulation, the lab, bad packets, mutants. Everything is bounded by --hours, and a summary
# comes last.
#   scripts/nightly.sh                    eight hours
#   scripts/nightly.sh --hours 0.5        half an hour
#   scripts/nightly.sh --out FOLDER       where histories and pages go (default: nightly-out)
#   scripts/nightly.sh --programs FOLDER  programs that were built before; otherwise they are built
#   scripts/nightly.sh lab mutants        these parts only
# As root the lab has a network of its own; otherwise it does what it can.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

hours=8 out=nightly-out programs="" parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --hours) hours=${2:?} && shift 2 ;;
        --out) out=${2:?} && shift 2 ;;
        --programs) programs=${2:?} && shift 2 ;;
        sim | lab | fuzz | mutants) parts+=("$1") && shift ;;
        *) echo "unknown: $1; there are: --hours H, --out FOLDER, --programs FOLDER, sim lab fuzz mutants" >&2; exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(sim lab fuzz mutants)
# Shares of the time, in percent; what a part does not need is lost, so that the end is known beforehand.
declare -A share=([sim]=35 [lab]=40 [fuzz]=5 [mutants]=20)
whole=0
for part in "${parts[@]}"; do whole=$((whole + share[$part])); done
seconds_of() { awk -v h="$hours" -v s="${share[$1]}" -v w="$whole" 'BEGIN { printf "%d", h * 3600 * s / w }'; }

mkdir -p "$out"
summary=() failed=0
told() {
    local code=$?
    printf '\n%s\n' "${summary[@]}"
    if [ $code -eq 0 ] && [ $failed -eq 0 ]; then echo "all good in $((SECONDS / 60)) minutes"; else
        echo "SOMETHING WAS FOUND in $((SECONDS / 60)) minutes; look into $out"; fi
}
trap told EXIT
sum() { summary+=("$(printf '%-8s %s' "$1" "$2")"); }

# Runs a program, its words in a file; 0: nothing was found.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1
}

# A hundred seeds at a time, as long as there is time; what is under way then is stopped, and what it had found until then
# counts: after its hundred a seed that fails is run again and again with less.
sim() {
    local until=$((SECONDS + $1)) log=$out/sim.log runs=0 bad=() seed code
    if ! [ -x "$programs/rollcall-sim" ]; then
        sum sim "not in this build"
        return
    fi
    while [ $SECONDS -lt $until ]; do
        seed=$(((RANDOM << 15) + RANDOM)) code=0
        quietly "$log" timeout $((until - SECONDS)) "$programs/rollcall-sim" --seed "$seed" --seeds 100 --jobs "$(nproc)" || code=$?
        if [ $code -eq 124 ]; then
            if grep -qE '^seed [0-9]+: ' "$log"; then
                bad+=("$seed")
                mv "$log" "$out/sim-$seed.log"
            fi
            break
        fi
        runs=$((runs + 1))
        if [ $code -ne 0 ]; then
            bad+=("$seed")
            mv "$log" "$out/sim-$seed.log"
        fi
        echo "sim: $((runs * 100)) seeds, ${#bad[@]} hundreds with findings, $(((until - SECONDS) / 60)) minutes left"
    done
    # Nothing that was done proves nothing.
    [ ${#bad[@]} -eq 0 ] && [ $runs -gt 0 ] || failed=1
    sum sim "$((runs * 100)) seeds, ${#bad[@]} hundreds with findings${bad[*]:+: from seeds ${bad[*]}}"
}

lab() {
    local until=$((SECONDS + $1)) runs=0 bad=() seed length=120 servers reads nemesis
    # The last run and its end in peace must fit in.
    while [ $((SECONDS + length + 90)) -lt $until ] || [ $runs -eq 0 ]; do
        seed=$(((RANDOM << 15) + RANDOM))
        servers=$((runs % 2 ? 5 : 3)) reads=$([ $((runs % 3)) -eq 2 ] && echo leased || echo linearizable)
        # Where a wall clock was ahead, little is asked of AP groups.
        nemesis=$([ $((runs / 2 % 2)) -eq 0 ] && echo all,-clock,-clock-rate || echo all)
        [ $((until - SECONDS)) -gt $((length + 90)) ] || length=20
        runs=$((runs + 1))
        if quietly "$out/lab.log" "$jepsen" lab --seed "$seed" --seconds $length --servers $servers --reads $reads \
            --nemesis "$nemesis" --out "$out/lab-$seed"; then
            rm -rf "$out/lab-$seed"
        else
            bad+=("$seed")
            mv "$out/lab.log" "$out/lab-$seed/output.log" 2>/dev/null || true
            echo "lab: seed $seed, $servers servers, $reads: found something"
        fi
        echo "lab: $runs runs, ${#bad[@]} with findings, $(((until - SECONDS) / 60)) minutes left"
    done
    [ ${#bad[@]} -eq 0 ] || failed=1
    sum lab "$runs runs, ${#bad[@]} with findings${bad[*]:+: seeds ${bad[*]}}"
}

fuzz() {
    local minutes log=$out/fuzz.log
    minutes=$(awk -v s="$1" 'BEGIN { printf "%.2f", s / 60 }')
    if quietly "$log" "$programs/rollcall-gossip-fuzz" --minutes "$minutes"; then
        sum fuzz "$minutes minutes of bad packets, nothing broken"
    else
        failed=1
        sum fuzz "FAILED, see $log"
    fi
}

mutants() {
    local log=$out/mutants.log code
    # Its code is looked at here.
    set +e
    timeout "$1" "$jepsen" mutants --out "$out/mutants" | tee "$log"
    code=${PIPESTATUS[0]}
    set -e
    case $code in
        0) sum mutants "$(tail -1 "$log")" ;;
        124)
            sum mutants "out of time: $(grep -c ': caught by' "$log" || true) caught until then"
            if grep -qE ': ESCAPED$|^NOT CLEAN: ' "$log"; then
                failed=1
                sum mutants "FAILED, see $log"
            fi
            ;;
        *) failed=1; sum mutants "FAILED, see $log" ;;
    esac
}

if [ -z "$programs" ]; then
    scripts/setup.sh
    cargo build --release --locked --bin rollcalld --bin rollcall-jepsen --bin rollcall-gossip-fuzz --bin rollcall-sim
    programs=${CARGO_TARGET_DIR:-target}/release
fi
jepsen=$programs/rollcall-jepsen
for part in "${parts[@]}"; do
    echo "== $part, $(($(seconds_of "$part") / 60)) minutes"
    "$part" "$(seconds_of "$part")"
done
exit $failed
