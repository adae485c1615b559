#!/bin/sh
# Writes requirements/*.txt: what an installation gets, each package with the hashes of all its files (`make lock`).
# Versions are those of constraints.txt; change them there. Needs uv, and the package index for the hashes.
set -eu
cd "$(dirname "$0")/.."

uv=${1:-uv}

compile() { # compile NAME ARGUMENTS...
    name=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --constraints constraints.txt --generate-hashes \
        --no-annotate --custom-compile-command 'make lock' --output-file "requirements/$name.txt" "$@"
}

mkdir -p requirements
compile cpu pyproject.toml --extra cpu
compile gpu pyproject.toml --extra gpu
# without torch, whose builds for CPUs come from another index with other hashes, and without CUDA
compile torch pyproject.toml --extra cpu --extra torch --no-emit-package torch
awk '/^[a-z]/ { wanted = !/^(cuda|nvidia|triton)/ } wanted || /^#/' requirements/torch.txt >requirements/torch.tmp
mv requirements/torch.tmp requirements/torch.txt
python3 -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))' |
    compile build -
