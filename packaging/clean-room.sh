#!/usr/bin/env bash
# packaging/clean-room.sh [DIRECTORY]: installs what packaging/build.sh and packaging/deb.sh left in
# DIRECTORY (dist/) in a Debian that has nothing else, and mounts, reads, writes and unmounts there:
# the wheel in a virtual environment, the package with apt.
#
# Needs root, debootstrap and a Debian mirror. SUITE is bookworm if not given.
set -euo pipefail

out=$(realpath -- "${1:-$(dirname -- "$0")/../dist}")
# What is mounted here is mounted in a namespace of its own, which ends with it.
[ -n "${CLEAN_ROOM:-}" ] || CLEAN_ROOM=1 exec unshare --mount --propagation private "$0" "$@"
room=$(mktemp -d)
chmod 755 "$room"
trap 'umount --recursive --lazy "$room"/{dev,proc,run} || true; rm -rf --one-file-system -- "$room"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "${SUITE:-bookworm}" "$room" >/dev/null
mount --rbind /dev "$room/dev"
mount -t proc proc "$room/proc"
mount -t tmpfs run "$room/run"
cp -L /etc/resolv.conf "$room/etc/" 2>/dev/null || true
mkdir "$room/wheels" "$room/packages"
cp "$out"/uringfs-*-manylinux*.whl "$room/wheels"
cp "$out"/uringfs_*.deb "$room/packages"
# What the wheel depends on comes from PyPI, as for anybody; pip here knows how to reach it.
python3 -m pip download --quiet --only-binary :all: --dest "$room/wheels" --python-version \
    "$(chroot "$room" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" \
    "$room"/wheels/uringfs-*.whl

cat >"$room/try" <<'END'
set -eux
export DEBIAN_FRONTEND=noninteractive
for tool in cc gcc ld make; do ! command -v $tool; done
! test -e /usr/include/stdio.h
try() {
    mkdir -p /source /mountpoint && echo there >/source/file
    timeout 30 "$@" mount --daemon /source /mountpoint
    test "$(cat /mountpoint/file)" = there
    echo back >/mountpoint/file
    test "$(cat /source/file)" = back
    "$@" ctl /mountpoint status | grep '"io"'
    "$@" umount /mountpoint
    test -z "$(ls /mountpoint)"
}
python3 -m venv /venv
/venv/bin/pip install --quiet --no-index --find-links /wheels uringfs
try /venv/bin/uringfs
apt-get install -y -q --no-install-recommends /packages/uringfs_*.deb
try uringfs
uringfs doctor /source
mount -t fuse.uringfs -o entry_timeout=1 /source /mountpoint
test "$(cat /mountpoint/file)" = back
umount /mountpoint
apt-get purge -y -q uringfs
! test -e /usr/lib/python3/dist-packages/uringfs
END
chroot "$room" bash /try
echo "$0: both install, mount, read, write and unmount in a clean ${SUITE:-bookworm}"
