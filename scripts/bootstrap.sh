#!/bin/sh
# Start a script with Python, and get Python first where a bare machine has none.
#   bootstrap.sh PYTHON SCRIPT [ARGUMENT…]
set -eu
python=$1
shift
if ! command -v "$python" >/dev/null 2>&1; then
    if [ "$python" != python3 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$python is not here: install Python 3.11 or later, or say which one: make PYTHON=…" >&2
        exit 1
    fi
    sudo=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "Python is missing. Ask an administrator for: apt-get install python3 python3-venv" >&2
            exit 1
        fi
        sudo=sudo
    fi
    echo "==> Python is missing: apt-get install python3 python3-venv"
    $sudo apt-get -qq update
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends python3 python3-venv >/dev/null
fi
exec "$python" "$@"
