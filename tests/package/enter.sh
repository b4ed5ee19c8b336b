#!/bin/sh
# Starts Debian's systemd, as process 1 of name spaces of its own, on a copy of this machine's root file system that is gone afterwards, and runs check.sh under it.
# `enter.sh PACKAGE` prints what check.sh prints. It needs root.
set -eu

# Inside of the name spaces: processes, network, mounts, control groups.
if [ "$1" = inside ]; then
    package=$2 scratch=$3 root=$3/root
    mount -t tmpfs scratch "$scratch"
    mkdir "$scratch/upper" "$scratch/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs run "$root/run"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    # Where no folder of the machine, whose names nobody knows, can be in the way.
    mkdir "$root/run/check"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    # The same hierarchies as on the host, each from where enter.sh has put this process.
    groups=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' "$scratch.groups")
    case $groups in
    "/sys/fs/cgroup "*) ;;
    *) mount -t tmpfs -o mode=755 groups "$root/sys/fs/cgroup" ;;
    esac
    echo "$groups" | while read -r place type options; do
        controllers=$(echo "$options" | tr , '\n' | grep -vxE 'r[wo]|nosuid|nodev|noexec|relatime|noatime|nsdelegate|memory_.*|release_agent=.*|xattr|clone_children' | paste -sd,)
        case $controllers in name=*) controllers=none,$controllers ;; esac
        mkdir -p "$root$place"
        if [ "$type" = cgroup2 ]; then
            mount -t cgroup2 cgroup2 "$root$place"
        else
            mount -t cgroup -o "$controllers" cgroup "$root$place"
        fi
    done

    # As udev makes them.
    chroot "$root" groupadd --force --system kvm
    kvm=$(chroot "$root" getent group kvm | cut -d: -f3)
    mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
    ln -s /proc/self/fd "$root/dev/fd"
    for device in null zero full random urandom tty; do
        cp -a "/dev/$device" "$root/dev/"
        chmod 666 "$root/dev/$device"
    done
    for device in kvm net/tun userfaultfd; do
        [ ! -e "/dev/$device" ] || cp -a "/dev/$device" "$root/dev/$device"
    done
    chgrp "$kvm" "$root/dev/kvm"
    chmod 660 "$root/dev/kvm"
    chmod 666 "$root/dev/net/tun"

    ip link set lo up
    cp "$package" "$root/run/check/foraker.deb"
    cp "$(dirname "$0")/check.sh" "$root/run/check/check.sh"
    touch "$root/run/check/results"
    mount --bind "$scratch.results" "$root/run/check/results"
    units=$root/etc/systemd/system
    cat >"$units/check.service" <<-UNIT
	[Service]
	Type=oneshot
	ExecStart=/bin/sh /run/check/check.sh
	StandardOutput=append:/run/check/results
	StandardError=append:/run/check/results
	TimeoutStartSec=170
	ExecStopPost=systemctl poweroff --force
	UNIT
    cat >"$units/check.target" <<-UNIT
	[Unit]
	Requires=basic.target
	Wants=check.service
	After=basic.target
	AllowIsolate=yes
	UNIT
    # Containers have it keep services from being started.
    rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/machine-id"
    chroot "$root" systemd-machine-id-setup >/dev/null 2>&1
    exec env -i container=check PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" /lib/systemd/systemd --unit=check.target --log-target=null --show-status=no
fi

package=$(realpath "$1")
scratch=$(mktemp -d)
: >"$scratch.results"
awk '$3 == "cgroup" || $3 == "cgroup2"' /proc/self/mounts >"$scratch.groups"
name=foraker-check-$$

# What systemd makes and removes is below a group of its own.
move() {
    while read -r _ place _; do
        { [ -z "$1" ] || mkdir -p "$place/$1"; } && echo $$ >"$place/$1/cgroup.procs" || true
    done <"$scratch.groups" 2>/dev/null
}
leave() {
    move ""
    while read -r _ place _; do
        # Processes that have just been ended may take a moment.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$place/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$place/$name" ] || break
            sleep 0.1
        done
    done <"$scratch.groups"
    rm -rf "$scratch" "$scratch.groups" "$scratch.results"
}
trap leave EXIT
trap 'exit 130' INT TERM HUP
move "$name"

# The status says how the machine was ended; the results say the rest.
timeout --kill-after=5 180 unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child \
    sh "$0" inside "$package" "$scratch" || true
cat "$scratch.results"
