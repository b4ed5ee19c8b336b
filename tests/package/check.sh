#!/bin/sh
# Installs /run/check/foraker.deb under a running systemd, uses it as people do, and removes it. Prints what the test harness of Rust would.

images=/usr/share/foraker/images
state=/var/lib/foraker
socket=/run/foraker/vmm.sock
# The rights that the supervisor may have: CAP_NET_ADMIN and CAP_NET_BIND_SERVICE.
rights=0000000000001400
# Worst exposure that `systemd-analyze security` may find, in tenths.
exposure=22

# Somebody in the group, and somebody who is not.
operator() { setpriv --reuid nobody --regid foraker --clear-groups env -i PATH="$PATH" "$@"; }
stranger() { setpriv --reuid nobody --regid nogroup --clear-groups env -i PATH="$PATH" "$@"; }
supervisor() { systemctl show --property MainPID --value foraker.service; }
cells() { operator vmm system cells | awk 'NR > 1 { print $2 }'; }
# Asks for a page until it comes.
page() {
    for _ in $(seq 100); do
        ! curl --silent --max-time 2 http://127.0.0.1/hello.txt | grep -x 'Hello from a guest.' || return 0
        sleep 0.1
    done
    return 1
}

it_installs_and_listens() {
    dpkg --install /run/check/foraker.deb
    dpkg --verify foraker
    systemctl is-active foraker.socket foraker.service
    systemctl is-enabled foraker.socket foraker.service
    id foraker
    [ "$(stat --format '%a %U:%G' $socket)" = '660 root:foraker' ]
    [ "$(stat --format '%a %U:%G' $state)" = '700 foraker:foraker' ]
}

its_units_are_sound() {
    [ -z "$(systemd-analyze verify foraker.service foraker.socket 2>&1 | tee /dev/stderr)" ]
    systemd-analyze security --offline=true --no-pager --threshold=$exposure foraker.service >/run/check/exposure ||
        { cat /run/check/exposure && false; }
    tail -n 1 /run/check/exposure
}

its_papers_can_be_read() {
    gzip --test /usr/share/man/man1/vmm.1.gz /usr/share/man/man1/vmm-*.1.gz /usr/share/doc/foraker/*.gz
    bash -n /usr/share/bash-completion/completions/vmm
    [ -s /usr/share/zsh/vendor-completions/_vmm ]
    [ -s /usr/share/fish/vendor_completions.d/vmm.fish ]
}

it_does_as_its_configuration_says() {
    # As the rule of the package has udev do.
    [ ! -e /dev/userfaultfd ] || chown foraker /dev/userfaultfd
    echo 'FORAKER_OPTIONS=--cells 2 --first-subnet 10.162.0.0' >/etc/default/foraker
    systemctl restart foraker.service
    [ "$(cells | wc -l)" = 2 ]
}

a_client_starts_the_supervisor_and_runs_a_guest() {
    systemctl stop foraker.service
    [ "$(supervisor)" = 0 ]
    operator vmm run --rm $images/hello | grep 'hello from hello'
    [ "$(supervisor)" != 0 ]
}

a_stranger_is_refused() {
    if stranger vmm ps; then false; fi
    if stranger vmm run --rm $images/hello; then false; fi
}

nobody_has_more_rights_than_said() {
    for process in $(supervisor) $(cells); do
        [ "$(ps -o ruser=,euser=,suser= "$process" | xargs)" = 'foraker foraker foraker' ]
        [ "$(awk '/^NoNewPrivs:/ { print $2 }' "/proc/$process/status")" = 1 ]
        [ "$(awk '/^CapBnd:/ { print $2 }' "/proc/$process/status")" = $rights ]
    done
    # Its launcher starts cells; itself it has none.
    [ "$(awk '/^CapEff:/ { print $2 }' "/proc/$(supervisor)/status")" = 0000000000000000 ]
}

guests_start_from_templates_by_faults() {
    [ -e /dev/userfaultfd ] || return 0
    for cell in $(cells); do
        ls -l "/proc/$cell/fd" | grep -q userfaultfd
    done
}

a_guest_is_published_at_a_port_below_1024() {
    operator vmm run -d --name web --restart always -p 80:80 $images/httpd
    page
}

a_restart_brings_guests_back() {
    systemctl restart foraker.service
    page
    operator vmm ps | grep 'web .*running'
}

a_killed_supervisor_comes_back_with_its_guests() {
    killed=$(supervisor)
    kill -9 "$killed"
    page
    [ "$(supervisor)" != "$killed" ]
    operator vmm ps | grep 'web .*running'
}

a_killed_cell_is_not_the_services_end() {
    before=$(supervisor)
    for cell in $(cells); do
        kill -9 "$cell"
    done
    page
    [ "$(supervisor)" = "$before" ]
}

an_upgrade_keeps_guests_and_configuration() {
    dpkg --install --force-confold /run/check/foraker.deb
    page
    [ "$(cells | wc -l)" = 2 ]
}

it_goes_and_leaves_nothing() {
    dpkg --remove foraker
    [ ! -e $socket ] && [ ! -e /usr/bin/vmm ]
    [ -z "$(ps -u foraker -o pid=)" ]
    # What it has to remember stays until it is purged.
    [ -e $state/registry.db ] && [ -e /etc/default/foraker ]
    dpkg --purge foraker
    [ ! -e $state ] && [ ! -e /etc/default/foraker ] && [ ! -e /run/foraker ]
    [ -z "$(find /etc/systemd /var/lib/systemd/deb-systemd-helper-* -name 'foraker*')" ]
}

if [ $# = 1 ]; then
    set -eux
    "$1"
    exit
fi

passed=0 failed=0
for name in $(sed -n 's/^\([a-z0-9_]*_[a-z0-9_]*\)() {$/\1/p' "$0"); do
    if sh "$0" "$name" >/run/check/said 2>&1; then
        echo "test $name ... ok"
        [ "$name" != its_units_are_sound ] || sed -n 's/^→ */     /p' /run/check/said
        passed=$((passed + 1))
    else
        echo "test $name ... FAILED"
        sed 's/^/     /' /run/check/said
        journalctl --unit foraker.service --lines 15 --no-pager --quiet | sed 's/^/     /'
        failed=$((failed + 1))
    fi
done
[ $failed = 0 ] && word=ok || word=FAILED
echo "test result: $word. $passed passed; $failed failed; 0 ignored"
