# Sourced by the other scripts: where the tools and the system's RocksDB are.
# shellcheck shell=bash

ROLLCALL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export ROLLCALL_ROOT
cd "$ROLLCALL_ROOT"

# A rustup installation of this user is found even where the login shell has not been restarted since.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
fi

# .cargo/config.toml names the folder of x86-64 Debian; other processors keep their libraries elsewhere.
if [ -z "${ROCKSDB_LIB_DIR:-}" ]; then
    for folder in "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64 /usr/lib; do
        if [ -e "$folder/librocksdb.so" ]; then
            export ROCKSDB_LIB_DIR="$folder"
            break
        fi
    done
fi
