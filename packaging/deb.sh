#!/usr/bin/env bash
# packaging/deb.sh [DIRECTORY]: makes a Debian package of the wheel that packaging/build.sh left in
# DIRECTORY (dist/), and puts it there, too.
#
# The wheel is for every Python from 3.11 on, and so is the package: one serves Debian 12 and 13 and
# Ubuntu 24.04. Needs dpkg-deb and Python 3.11 (PYTHON, or
# python3). The same wheel gives the same bytes. DEBFULLNAME and DEBEMAIL say who
# answers for it, as for Debian's own tools.
set -euo pipefail
umask 022

here=$(dirname -- "$(readlink -f -- "$0")")
out=$(realpath -m -- "${1:-$here/../dist}")
wheels=("$out"/uringfs-*-manylinux*.whl)
[ -e "${wheels[0]}" ] || { echo "$0: no wheel in $out; packaging/build.sh makes it" >&2 && exit 1; }
[ ${#wheels[@]} -eq 1 ] || { echo "$0: several wheels in $out; leave one" >&2 && exit 1; }
wheel=$(basename -- "${wheels[0]}")
version=$(cut -d- -f2 <<<"$wheel")
libc=$(grep -o 'manylinux_[0-9]*_[0-9]*' <<<"$wheel" | head -n 1)
libc=${libc#manylinux_}
maintainer="${DEBFULLNAME:-The uringfs authors} <${DEBEMAIL:-root@$(hostname)}>"
# The wheel's own time is the first of its entries'.
SOURCE_DATE_EPOCH=$(python3 - "${wheels[0]}" <<'END'
import calendar, sys, zipfile
print(calendar.timegm((*zipfile.ZipFile(sys.argv[1]).infolist()[0].date_time, 0, 0, 0)))
END
)
export SOURCE_DATE_EPOCH

root=$(mktemp -d)
trap 'rm -rf -- "$root"' EXIT
chmod 755 "$root"
packages=$root/usr/lib/python3/dist-packages
install -d "$packages" "$root/DEBIAN" "$root/usr/bin" "$root/usr/share/doc/uringfs"
python3 -m zipfile -e "${wheels[0]}" "$packages"
rm -r "$packages"/uringfs-*.dist-info/licenses # says the same as copyright

script() { # path function
    install -D -m 755 /dev/stdin "$root/$1" <<END
#!/usr/bin/python3
import sys
from uringfs.cli import $2
sys.exit($2())
END
}
script usr/bin/uringfs main
script usr/bin/uringfs-virtiofsd virtiofsd
# What mount(8) runs for `-t uringfs` and `-t fuse.uringfs`.
script usr/sbin/mount.uringfs mount_helper
ln -s mount.uringfs "$root/usr/sbin/mount.fuse.uringfs"

install -D -m 644 "$here/uringfs@.service" "$root/usr/lib/systemd/system/uringfs@.service"
install -d "$root/etc/uringfs" # what the unit's instances are told

made() { PYTHONPATH=$packages "${PYTHON:-python3}" -B -m "$@"; }
made uringfs.reference.man "$root/usr/share/man"
find "$root/usr/share/man" -name '*.[18]' -exec gzip --no-name -9 {} +
ln -s mount.uringfs.8.gz "$root/usr/share/man/man8/mount.fuse.uringfs.8.gz"
completion() { # shell path
    made uringfs completion "$1" | install -D -m 644 /dev/stdin "$root/usr/share/$2"
}
completion bash bash-completion/completions/uringfs
completion zsh zsh/vendor-completions/_uringfs
completion fish fish/vendor_completions.d/uringfs.fish

# Where libvirt and others look for what can serve a file system (QEMU's vhost-user.json).
install -D -m 644 "$here/50-uringfs.json" "$root/usr/share/qemu/vhost-user/50-uringfs.json"

doc=$root/usr/share/doc/uringfs
install -m 644 "$here/copyright" "$here"/{grafana,seccomp-uringfs}.json "$doc"
gzip --no-name -9 <"$here/../CHANGELOG.md" >"$doc/changelog.gz"
gzip --no-name -9 >"$doc/changelog.Debian.gz" <<END
uringfs ($version-1) unstable; urgency=medium

  * What is new is in changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
END

cat >"$root/DEBIAN/control" <<END
Package: uringfs
Version: $version-1
Architecture: $(dpkg --print-architecture)
Maintainer: $maintainer
Section: utils
Priority: optional
Installed-Size: $(du --summarize --apparent-size --block-size=1K "$root/usr" | cut -f1)
Depends: python3 (>= 3.11), python3-aiofiles (>= 23.1), python3-cffi-backend (>= 1.15.1), libc6 (>= ${libc/_/.})
Recommends: fuse3, libseccomp2
Suggests: python3-rich
Description: FUSE passthrough file system on io_uring
 Mirrors a directory at a mount point. File data moves through one io_uring,
 which is also the heart of the server's event loop: Python decides, the ring
 moves the bytes.
 .
 fuse3 is needed where users other than root mount, libseccomp2 to leave the
 server no system calls but those that it makes.
END
cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && command -v py3compile >/dev/null; then
    py3compile -p uringfs
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
END
cat >"$root/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if command -v py3clean >/dev/null; then
    py3clean -p uringfs
fi
END
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"

find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --build "$root" "$out"
