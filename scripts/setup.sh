#!/usr/bin/env bash
# Installs what the build needs on Debian 12: a C++ linker, librocksdb 7.8 and libclang (for its bindings), and the lab's tools.
# Says nothing and does nothing where all is present. Run it as root, or as a user who may sudo.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

complain() {
    echo "setup: $*" >&2
    exit 1
}

packages=()
command -v cc >/dev/null 2>&1 && command -v c++ >/dev/null 2>&1 || packages+=(build-essential)
[ -n "${ROCKSDB_LIB_DIR:-}" ] && [ -e "$ROCKSDB_LIB_DIR/librocksdb.so" ] || packages+=(librocksdb-dev)
# libclang itself: libclang-cpp, which other packages bring along, is of no use to the bindings.
has_libclang() {
    local folder
    for folder in /usr/lib/llvm-*/lib "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64; do
        if compgen -G "$folder/libclang.so*" >/dev/null || compgen -G "$folder/libclang-[0-9]*.so*" >/dev/null; then
            return 0
        fi
    done
    return 1
}
[ -n "${LIBCLANG_PATH:-}" ] || has_libclang || packages+=(libclang-dev)
# Tests that cut networks make namespaces; without it they say so and pass.
command -v ip >/dev/null 2>&1 || packages+=(iproute2)
# The gate of benches/ counts instructions.
command -v valgrind >/dev/null 2>&1 || packages+=(valgrind)
# The lab cuts power, hangs disks, fails syncs and sets clocks with these; what is missing it leaves out, and says so.
command -v mkfs.ext4 >/dev/null 2>&1 || [ -x /sbin/mkfs.ext4 ] || packages+=(e2fsprogs)
command -v xfs_io >/dev/null 2>&1 || [ -x /usr/sbin/xfs_io ] || packages+=(xfsprogs)
command -v strace >/dev/null 2>&1 || packages+=(strace)
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || packages+=(libfaketime)
# Cargo fetches crates over https.
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)

if [ ${#packages[@]} -gt 0 ]; then
    command -v apt-get >/dev/null 2>&1 \
        || complain "missing: ${packages[*]} (Debian's names); install them with this system's package manager"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || complain "missing: ${packages[*]}; run this as root, or install sudo"
        as_root=(sudo)
    fi
    echo "setup: installing ${packages[*]}" >&2
    log="$(mktemp)"
    trap 'rm -f "$log"' EXIT
    if ! { "${as_root[@]}" apt-get update -qq \
        && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
        cat "$log" >&2
        complain "installing ${packages[*]} failed"
    fi
fi

command -v cargo >/dev/null 2>&1 || complain "Rust is missing; get it from https://rustup.rs"
wanted="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)"
found="$(rustc --version | awk '{print $2}')"
if [ "$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
    complain "Rust $found is too old, $wanted or newer is needed (rustup update)"
fi
