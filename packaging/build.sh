#!/usr/bin/env bash
# packaging/build.sh [DIRECTORY]: makes what is published, in dist/ if nothing else is said: the
# source distribution, and one wheel for every CPython from 3.11 on.
#
# liburing is linked into the wheel: installing it takes neither a compiler nor headers. The same
# commit and tools give the same bytes; times are SOURCE_DATE_EPOCH's or else the last commit's.
# Needs liburing-dev, cc and the extra `release`; PYTHON says where that is installed.
set -euo pipefail
umask 022

out=$(realpath -m -- "${1:-$(dirname -- "$0")/../dist}")
cd "$(dirname -- "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y PKG-INFO)}
# The interpreter's own would link with the paths of its machine; and debug information names ours.
LDSHARED='cc -shared -s'
URINGFS_STATIC_LIBURING=1
export SOURCE_DATE_EPOCH LDSHARED URINGFS_STATIC_LIBURING

# One at a time: setuptools works in the checkout.
exec {lock}<.
flock "$lock"
"$python" -m build --sdist --outdir "$scratch/sdist" .
exec {lock}<&-
sdist=$(basename -- "$scratch"/sdist/*.tar.gz)
tar -xzf "$scratch/sdist/$sdist" -C "$scratch"
mkdir -p "$out"
tar -C "$scratch" --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=root:0 --group=root:0 \
    --mode=u+rwX,go+rX,go-w "${sdist%.tar.gz}" | gzip --no-name -9 >"$out/$sdist"

"$python" -m build --wheel --outdir "$scratch/wheel" "$scratch/${sdist%.tar.gz}"
# Names the oldest C library that will do, after a look at what the extension links with.
PATH=$(dirname -- "$python"):$PATH "$python" -m auditwheel repair --wheel-dir "$out" "$scratch"/wheel/*.whl
