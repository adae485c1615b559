#!/bin/sh
# Makes the virtual environment that the Makefile installs into, or leaves alone one that is as it should be.
#
#   environment.sh FOLDER PYTHON [explicit]
#
# Everything is checked before anything is written. An environment that does not work, that an interrupted run left
# unfinished, or that was made in another folder is made again. So is one of another Python, if PYTHON was asked for
# explicitly: a plain `make serve` keeps what `make serve PYTHON=python3.12` made.
set -eu

folder=$1
python=$2
explicit=${3:-}
oldest=3.11 # as pyproject.toml says, which a test compares
stamp=$folder/.python
home=$(pwd -P)/$folder

refuse() {
    printf 'rerankd: %s\n' "$@" >&2
    exit 1
}

# What two interpreters share when they are the same Python: its version, and the folder that it is installed in.
identity() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3] + " in " + getattr(sys, "base_prefix", sys.prefix))' 2>/dev/null
}

is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$oldest'.split('.'))))" 2>/dev/null
}

# Another Python on this machine that would do.
suggestion() {
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        if is_new_enough "$name"; then
            echo "try: make ${MAKECMDGOALS:-serve} PYTHON=$name"
            return
        fi
    done
    echo "install one, then name it, for example: make ${MAKECMDGOALS:-serve} PYTHON=python3.12"
}

# Why the environment cannot be kept; nothing if it can.
fault() {
    if [ ! -f "$stamp" ] || ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "it is unfinished or does not work"
    elif [ -s "$stamp" ] && [ "$(cat "$stamp")" != "$home" ]; then
        echo "it was not made in this folder"
    elif ! is_new_enough "$folder/bin/python"; then
        echo "its Python is older than $oldest"
    elif [ -n "$explicit" ] && [ "$(identity "$folder/bin/python")" != "$(identity "$python")" ]; then
        echo "its Python is not $python"
    fi
}

if [ -e "$folder" ]; then
    fault=$(fault)
    [ -n "$fault" ] || exit 0
fi

version=$(identity "$python") || refuse "cannot run $python, and rerankd needs Python $oldest or newer." "$(suggestion)"
is_new_enough "$python" || refuse "$python is Python ${version%% *}, and rerankd needs $oldest or newer." "$(suggestion)"
"$python" -c 'import ensurepip, venv' 2>/dev/null || refuse \
    "$python has no venv module, so it cannot make $folder." \
    "Debian and Ubuntu have it in a package of its own: apt install python3-venv"

if [ -e "$folder" ]; then
    [ -d "$folder" ] || refuse "$folder is not a folder." "Move it away, then run make again."
    echo "making $folder again: $fault"
    rm -rf "$folder"
fi
"$python" -m venv "$folder"
printf '%s\n' "$home" >"$stamp"
