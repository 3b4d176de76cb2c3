#!/usr/bin/env bash
# The one door into a checkout of uringfs; `./bootstrap.sh help` says what it opens.
set -euo pipefail

ROOT=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
VENV=$ROOT/.venv
PATH=$PATH:/usr/sbin:/sbin # where mkfs and its like are, and users' shells do not look
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The tests start some thousand servers; compiling all of one takes longer than starting it.
unset PYTHONDONTWRITEBYTECODE

# What is needed from the distribution: kind of check, what is looked for, package that has it.
BUILD_NEEDS=(
    "command  cc             gcc"
    "file     /usr/include/stdio.h libc6-dev"
    "command  pkg-config     pkg-config"
    "library  liburing       liburing-dev"
    "command  fusermount3    fuse3"
    "command  mount          mount"
)
PYFUSE3_NEEDS=("library  fuse3  libfuse3-dev")
TEST_NEEDS=(
    "${PYFUSE3_NEEDS[@]}"
    "command  curl           curl"
    "command  fio            fio"
    "command  git            git"
    "command  groff          groff-base"
    "command  sqlite3        sqlite3"
    "command  setfattr       attr"
    "command  setfacl        acl"
    "command  capsh          libcap2-bin"
    "command  mkfs.ext4      e2fsprogs"
    "command  mkfs.xfs       xfsprogs"
    "command  strace         strace"
    "command  cpio           cpio"
    "command  qemu-system-x86_64 qemu-system-x86"
    "command  qemu-img       qemu-utils"
    "file     /usr/share/doc/busybox-static busybox-static"
)
PYTHONS=(3.13 3.12 3.11)
REPEATED=3 # tests that may fail beside others, if they pass alone

usage() {
    cat <<'END'
Usage: ./bootstrap.sh COMMAND

  mount SOURCE MOUNTPOINT [options]   mirror SOURCE at MOUNTPOINT (uringfs mount --help)
  test [pytest arguments]             every check there is; with arguments, only these tests
  build                               make .venv/ ready, and no more
  help                                this text

What is missing on a Debian or Ubuntu machine is installed with apt, which needs root.
PYTHON=/path/to/python chooses the interpreter of a new .venv.
END
}

say() { printf 'bootstrap.sh: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

have() { # kind name
    case $1 in
        command) command -v -- "$2" >/dev/null ;;
        file) [ -e "$2" ] ;;
        library) command -v pkg-config >/dev/null && pkg-config --exists "$2" ;;
    esac
}

lacking() { # need...: prints the packages
    local kind name package
    for need in "$@"; do
        read -r kind name package <<<"$need"
        have "$kind" "$name" || printf '%s\n' "$package"
    done
}

apt_install() { # package...
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "no apt on this machine: install what provides $*"
    is_root || die "must be root to install $*: try sudo $0"
    export DEBIAN_FRONTEND=noninteractive
    say "installing with apt: $*"
    local lists=(/var/lib/apt/lists/*_Packages*)
    [ -e "${lists[0]}" ] || apt_get update
    # Old lists name versions that the mirror has dropped since.
    apt_get install "$@" || { apt_get update && apt_get install "$@"; } ||
        die "apt could not install $*"
}

apt_get() {
    local log
    log=$(apt-get -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" 2>&1) ||
        { printf '%s\n' "$log" >&2 && return 1; }
}

# Prints the real path of an interpreter, then the packages it lacks; fails if it is none or too old.
probe_python() { # python
    "$1" - 2>/dev/null <<'END'
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit(1)
found = [os.path.realpath(sys.executable)]
name = "python%d.%d" % sys.version_info[:2]
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    found.append(name + "-dev")
try:
    import ensurepip, venv
except ImportError:
    found.append(name + "-venv")
print(*found)
END
}

# Sets PYTHON to an interpreter that can build: the first that is complete, or else the
# distribution's own, which apt can complete.
choose_python() {
    local candidates=(python3 /usr/bin/python3 "${PYTHONS[@]/#/python}") candidate path lacks
    local completable='' completion=''
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        read -r path lacks < <(probe_python "$candidate") || continue
        if [ -z "$lacks" ]; then
            PYTHON=$path
            return
        fi
        if [ -z "$completable" ] && [[ $path == /usr/bin/* ]]; then
            completable=$path completion=$lacks
        fi
    done
    [ -n "$completable" ] ||
        die "needs Python 3.11 or newer with its headers; ${candidates[0]} is $("${candidates[0]}" -V 2>&1 || true)"
    # shellcheck disable=SC2086  # a list of package names
    apt_install $completion
    PYTHON=$completable
}

# What a build was made of. An editable install takes Python sources as they are.
fingerprint() {
    (
        cd "$ROOT"
        printf '%s\n' "$ROOT" "$(readlink -e .venv/bin/python)" uringfs/ring/_uring*.so
        find pyproject.toml setup.py uringfs/ring/_build.py uringfs/ring/csrc uringfs/ring/cdef \
            -type f -exec sha256sum {} + | sort
    ) | sha256sum
}

# A checkout of another user must not be left with files of root in it.
hand_back() {
    if is_root && [ "$(stat -c %u "$ROOT")" -ne 0 ]; then
        local made
        for made in "$VENV" "$ROOT"/{build,.tox,.*_cache,.hypothesis,*.egg-info} "$ROOT"/uringfs/ring/*.so \
            "$ROOT"/{uringfs,tests,perf}/{,*/,*/*/}__pycache__; do
            [ ! -e "$made" ] || chown -R --no-dereference --reference="$ROOT" "$made"
        done
    fi
}

# Makes .venv with the given extras of pyproject.toml, unless it was made of the same things before.
build() { # extras need...
    local extras=$1 stamp=$VENV/.built${1:+-$1} packages
    shift
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then
        return
    fi
    mapfile -t packages < <(lacking "$@")
    apt_install "${packages[@]}"
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        choose_python
        say "making .venv with $PYTHON"
        "$PYTHON" -m venv --clear "$VENV" || die "cannot make $VENV"
    fi
    [ -w "$VENV" ] || die "$VENV belongs to $(stat -c %U "$VENV"): run as that user, or with sudo"
    say "building (a minute or two the first time)"
    "$VENV/bin/python" -m pip install --quiet --editable "$ROOT${extras:+[$extras]}" ||
        die "the build failed; pip says why above"
    fingerprint >"$VENV/.built"
    [ -z "$extras" ] || cp "$VENV/.built" "$stamp"
    hand_back
}

# Two at once would spoil each other's .venv. The lock is on the checkout and leaves no file.
build_once() {
    local lock
    exec {lock}<"$ROOT"
    flock "$lock"
    build "$@"
    exec {lock}<&-
}

# tox looks for interpreters on PATH; pyenv keeps most of its own off it.
pyenv_path() {
    ! command -v pyenv >/dev/null || printf ':%s' "$(pyenv root)"/versions/*/bin
}

run_tests() { # pytest argument...
    cd "$ROOT"
    [ $# -eq 0 ] || exec "$VENV/bin/python" -m pytest "$@"

    local own envs=lint,types,sanitize,threads version said failed=''
    own=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for version in "${PYTHONS[@]}"; do
        # The whole suite runs on our own interpreter below, the quick part on the others.
        [ "$version" = "$own" ] || envs+=,py${version/./}
    done
    said=$(mktemp -d)
    run_suites "$said" "$envs" || failed=yes
    rm -r "$said"
    hand_back
    [ -z "$failed" ] || die "the tests failed, see above"
}

run_tox() { # environments pytest argument...
    local envs=$1
    shift
    # The benchmark is for our own interpreter.
    PATH=$PATH$(pyenv_path) unshare --mount "$VENV/bin/tox" run -e "$envs" -- \
        -m 'not slow and not mount' --ignore=tests/perf "$@"
}

run_mounts() { "$VENV/bin/python" -m pytest tests/mount "$@"; }

run_others() { unshare --mount "$VENV/bin/python" -m pytest --ignore=tests/mount "$@"; }

# Side by side, or it takes longer than anybody waits. Each has mounts of its own: a test that makes
# a namespace would copy those of the others, and so keep them from ending. Who runs behind is heard
# when the mounts' tests are through.
run_suites() { # directory environments
    local said=$1 envs=$2 name failed=()
    local -A behind
    run_tox "$envs" >"$said/tox" 2>&1 &
    behind[tox]=$!
    run_others -o cache_dir="$said/others.cache" >"$said/others" 2>&1 &
    behind[others]=$!
    trap 'kill "${behind[@]}" 2>/dev/null' EXIT
    run_mounts -o cache_dir="$said/mounts.cache" | tee "$said/mounts" || failed+=(mounts)
    for name in "${!behind[@]}"; do
        say "waiting for: $name"
        wait "${behind[$name]}" || failed+=("$name")
        cat "$said/$name"
    done
    trap - EXIT
    for name in ${failed[@]+"${failed[@]}"}; do
        if [ "$name" = tox ]; then
            again "$said/tox" run_tox "$(sed -n 's/^  \([a-z0-9]*\): FAIL.*/\1/p' "$said/tox" | paste -sd,)"
        else
            again "$said/$name" "run_$name" -o cache_dir="$said/$name.cache"
        fi || return 1
    done
}

# Where three suites share two processors, a few may fail that do not alone. What fails alone fails.
again() { # log command...
    local log=$1 count
    shift
    count=$(grep -cE '^(FAILED|ERROR) ' "$log" || true)
    say "failed beside the others:"
    grep -E '^(FAILED|ERROR) |: FAIL ' "$log" >&2 || tail -n 20 "$log" >&2
    [ "$count" -gt 0 ] && [ "$count" -le "$REPEATED" ] || return 1
    say "alone, once more:"
    "$@" --last-failed --last-failed-no-failures=none
}

main() {
    local command=${1:-}
    [ $# -eq 0 ] || shift
    case $command in
        mount)
            # An extra of the package, which is itself built from source.
            case " $* " in
                *pyfuse3*) build_once pyfuse3 "${BUILD_NEEDS[@]}" "${PYFUSE3_NEEDS[@]}" ;;
                *) build_once '' "${BUILD_NEEDS[@]}" ;;
            esac
            exec "$VENV/bin/uringfs" mount "$@"
            ;;
        test)
            is_root || die "the tests mount file systems, so they must run as root: sudo $0 test"
            build_once dev "${BUILD_NEEDS[@]}" "${TEST_NEEDS[@]}"
            run_tests "$@"
            ;;
        build) build_once '' "${BUILD_NEEDS[@]}" ;;
        help | -h | --help) usage ;;
        '')
            usage >&2
            exit 2
            ;;
        *)
            say "unknown command '$command': mount, test, build or help"
            exit 2
            ;;
    esac
}

main "$@"
