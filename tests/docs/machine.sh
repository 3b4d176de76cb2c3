#!/usr/bin/env bash
# A machine for one block of a page: this one, as an overlay that is thrown away, with mounts and
# processes of its own. Called as `machine.sh SCRATCH CHECKOUT PREFIX BLOCK`: an empty directory; a
# checkout, which is where the reader stands; the Python installation that has uringfs; a script.
set -euo pipefail

scratch=$1 checkout=$2 prefix=$3 block=$4
here=$(dirname -- "$(readlink -f -- "$0")")
[ $$ -eq 1 ] || exec unshare --mount --propagation private --pid --fork --kill-child "$0" "$@"

mount -t tmpfs tmpfs "$scratch"
root=$scratch/root
mkdir "$root"
cover() { # directory: the same, but what is written to it is not
    local layer
    layer=$(mktemp -d "$scratch/XXXX")
    mkdir "$layer"/{upper,work}
    mount -t overlay -o "lowerdir=$1,upperdir=$layer/upper,workdir=$layer/work" overlay "$root$1"
}
cover /
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/srv"
rm -rf -- "${root:?}/mnt"
mkdir "$root/mnt"
for directory in "$checkout" "$prefix"; do
    [ -e "$root$directory/." ] || { mkdir -p "$root$directory" && cover "$directory"; }
done
cp "$block" "$root/run/block"

# What the pages take for given: a checkout, a source, a mount point, other trees to show.
stand=$root$checkout
mkdir -p "$stand"/{SOURCE,MOUNTPOINT} "$root"/srv/{a,b,c}
mount -t tmpfs tmpfs "$stand/SOURCE"
for tree in "$stand/SOURCE" "$root"/srv/{a,b,c}; do
    mkdir "$tree/directory"
    echo 'from the source' >"$tree/file"
done

# Stand-ins: nobody has to become root, and what stays in the foreground gets a terminal of its own.
tools=$root/run/tools
mkdir "$tools" "$root/run/terminals"
printf '#!/bin/sh\nexec "$@"\n' >"$tools/sudo"
cat >"$tools/uringfs" <<END
#!/bin/bash
case " \$* " in
    *' --daemon '* | *' --help '* | *' --print-capabilities '*) ;;
    ' mount '* | ' serve '*) exec "$here/reader.sh" "$prefix/bin/uringfs" "\$@" ;;
esac
exec "$prefix/bin/uringfs" "\$@"
END
mv "$stand/bootstrap.sh" "$stand/.bootstrap.sh"
cat >"$stand/bootstrap.sh" <<END
#!/bin/bash
[ "\$1" = mount ] || exec "$checkout/.bootstrap.sh" "\$@"
exec "$here/reader.sh" "$checkout/.bootstrap.sh" "\$@"
END
chmod +x "$tools"/* "$stand/bootstrap.sh"

export PATH=/run/tools:$prefix/bin:$PATH TERMINALS=/run/terminals HOME=/root
# Not as the last word of this script: PID 1 must not be what a signal is sent to.
chroot "$root" bash -c "cd '$checkout' && bash -e -o pipefail /run/block"
