#!/usr/bin/env bash
# Fetches what Rollcall is measured against, into target/peers: etcd and ZooKeeper as Debian packages them, unpacked and
# not installed, so that no service starts; r-nacos from crates.io. Does nothing where all is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

rnacos_version=0.8.8
peers="${CARGO_TARGET_DIR:-target}/peers"
mkdir -p "$peers/debs/partial"
peers="$(realpath "$peers")"

# A Java that runs (ZooKeeper); the only thing that is installed in the system, and no service.
if ! command -v java >/dev/null 2>&1; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless
fi

jar="$peers/debian/usr/share/java/zookeeper.jar"
if [ ! -x "$peers/debian/usr/bin/etcd" ] || [ ! -e "$jar" ]; then
    echo "bench: fetching etcd and ZooKeeper from Debian" >&2
    if ! apt-cache show etcd-server zookeeper >/dev/null 2>&1; then
        apt-get update -qq || sudo apt-get update -qq
    fi
    # The packages themselves, installed or not, then whatever they need that is not.
    (cd "$peers/debs" && apt-get download -qq etcd-server zookeeper libzookeeper-java)
    apt-get install -y -qq --no-install-recommends --download-only \
        -o Dir::Cache::archives="$peers/debs" -o Debug::NoLocking=1 etcd-server zookeeper >"$peers/apt.log" 2>&1 \
        || { cat "$peers/apt.log" >&2; exit 1; }
    for package in "$peers"/debs/*.deb; do
        dpkg -x "$package" "$peers/debian"
    done
fi

if [ "$("$peers/rnacos/bin/rnacos" --version 2>/dev/null | awk '{print $NF}')" != "$rnacos_version" ]; then
    echo "bench: building r-nacos $rnacos_version (ten minutes or so on two processors)" >&2
    # Left out if it cannot be built: the harness says so in its report.
    cargo install --quiet rnacos --version "$rnacos_version" --locked --root "$peers/rnacos" \
        --target-dir "$peers/rnacos-build" || echo "bench: r-nacos was not built, and is left out" >&2
fi
