#!/usr/bin/env bash
# install.sh [--prefix /usr] [--destdir DIR] [--binary FILE] [--uninstall|--check-unit|--tarball FILE]
#
# Puts the binary, the units (a daemon's, its helper's, and that of a daemon that only relays), example configurations, and the
# snippets for sysusers, tmpfiles, NetworkManager, networkd and polkit where they belong, below DIR. Starts nothing. --tarball packs
# the same tree; --check-unit only checks the units. --uninstall stops and disables them (without DIR), takes all of it
# away, and says what it leaves: a configuration that was changed, the state directories, the user, the groups. Where a unit cannot be
# stopped it removes nothing and exits with 1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=/usr destdir=${DESTDIR:-} binary=${CARGO_TARGET_DIR:-$here/target}/release/byway mode=install tarball=''
# Highest exposure `systemd-analyze security` may report, in tenths.
threshold=25

while [[ $# -gt 0 ]]; do
  case $1 in
    --prefix) prefix=${2:?--prefix needs a directory}; shift 2 ;;
    --destdir) destdir=${2:?--destdir needs a directory}; shift 2 ;;
    --binary) binary=${2:?--binary needs a file}; shift 2 ;;
    --uninstall) mode=uninstall; shift ;;
    --check-unit) mode=check; shift ;;
    --tarball) mode=tarball tarball=${2:?--tarball needs a file}; shift 2 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

# In the order in which they are stopped: the cleanup after the daemon still asks the helper.
units=(byway-docker.socket byway.service byway-helper.socket byway-helper.service byway-relay.service)
# Units of the managers of users.
user_units=(byway-user.socket byway-user.service)
# Examples of a configuration: what comes with the program, and where it is read.
examples=("$here/config/byway.toml /etc/byway/byway.toml" "$here/config/relay.toml /etc/byway-relay/byway.toml")

# mode, source, place
files() {
  cat <<LIST
0755 $binary $prefix/bin/byway
0644 $here/systemd/byway.service $prefix/lib/systemd/system/byway.service
0644 $here/systemd/byway-docker.socket $prefix/lib/systemd/system/byway-docker.socket
0644 $here/systemd/byway-helper.service $prefix/lib/systemd/system/byway-helper.service
0644 $here/systemd/byway-helper.socket $prefix/lib/systemd/system/byway-helper.socket
0644 $here/systemd/byway-relay.service $prefix/lib/systemd/system/byway-relay.service
0644 $here/systemd/byway-user.service $prefix/lib/systemd/user/byway-user.service
0644 $here/systemd/byway-user.socket $prefix/lib/systemd/user/byway-user.socket
0644 $here/packaging/sysusers.conf $prefix/lib/sysusers.d/byway.conf
0644 $here/packaging/tmpfiles.conf $prefix/lib/tmpfiles.d/byway.conf
0644 $here/packaging/networkmanager.conf $prefix/lib/NetworkManager/conf.d/90-byway.conf
0644 $here/packaging/byway.rules $prefix/share/polkit-1/rules.d/byway.rules
0644 $here/packaging/byway.network $prefix/lib/systemd/network/10-byway.network
0644 $here/LICENSE $prefix/share/doc/byway/LICENSE
0644 $here/README.md $prefix/share/doc/byway/README.md
LIST
}

install_tree() { # ROOT
  local root=$1 bits from to example unit
  if [[ ! -x $binary ]]; then
    echo "install.sh: no binary at $binary; build it first: cargo build --release --locked" >&2
    exit 1
  fi
  while read -r bits from to; do
    install -D -m "$bits" "$from" "$root$to"
  done < <(files)
  if [[ $prefix != /usr ]]; then
    for unit in "${units[@]}"; do
      sed -i "s|/usr/bin/byway|$prefix/bin/byway|; s|/usr/share/doc|$prefix/share/doc|" "$root$prefix/lib/systemd/system/$unit"
    done
    for unit in "${user_units[@]}"; do
      sed -i "s|/usr/bin/byway|$prefix/bin/byway|; s|/usr/share/doc|$prefix/share/doc|" "$root$prefix/lib/systemd/user/$unit"
    done
  fi
  # A configuration that is there is never overwritten.
  for example in "${examples[@]}"; do
    read -r from to <<<"$example"
    if [[ ! -e $root$to ]]; then install -D -m 0644 "$from" "$root$to"; fi
  done
  install -d -m 0755 "$root/etc/byway/conf.d"
}

uninstall_tree() { # ROOT
  local root=$1 from to dir unit example engine
  for unit in "${units[@]}"; do
    # The unit's own cleanup after the stop needs the binary.
    if [[ -n $root || ! -d /run/systemd/system || ! -e $prefix/lib/systemd/system/$unit ]]; then continue; fi
    # It fails for a unit that systemd never knew as well: what counts is that the daemon does not run.
    systemctl disable --now "$unit" || true
    case $(systemctl is-active "$unit" || true) in
      inactive | failed | unknown) ;;
      *)
        echo "install.sh: $unit could not be stopped, and nothing was removed; stop it, then uninstall again" >&2
        exit 1
        ;;
    esac
  done
  # What the unit kept for virtual machines.
  if [[ -z $root && -d /run/systemd/system && -d /var/lib/byway && -x $prefix/bin/byway ]]; then
    "$prefix/bin/byway" cleanup || echo "left: what byway made in the kernel" >&2
  fi
  # The plugins that engines were given are links to the binary.
  if [[ -z $root && -x $prefix/bin/byway ]]; then
    for engine in cni podman; do
      "$prefix/bin/byway" integration remove "$engine" || echo "left: the plugin of $engine" >&2
    done
  fi
  while read -r _ _ to; do rm -f -- "$root$to"; done < <(files)
  # An example as it came is nobody's work.
  for example in "${examples[@]}"; do
    read -r from to <<<"$example"
    if cmp -s "$from" "$root$to"; then rm -f -- "$root$to"; fi
  done
  for dir in "$prefix"/{share/doc/byway,share/polkit-1/{rules.d,},lib/systemd/{system,user,network},lib/{systemd,sysusers.d,tmpfiles.d,NetworkManager/conf.d,NetworkManager}} \
    /etc/byway/{conf.d,} /etc/byway-relay; do
    rmdir -- "$root$dir" 2>/dev/null || true
  done
  if [[ -z $root && -d /run/systemd/system ]]; then
    systemctl daemon-reload
    # The directory of a socket stays when its unit goes.
    rmdir -- /run/byway-helper 2>/dev/null || true
  fi
}

# What an uninstall leaves, with the command that takes it away.
left() { # ROOT
  local root=$1 place group
  # The relay's unit has DynamicUser: systemd keeps its state below private, and /var/lib/byway-relay is only a link to it.
  for place in /etc/byway /var/lib/byway /etc/byway-relay /var/lib/byway-relay /var/lib/private/byway-relay; do
    if [[ -e $root$place ]]; then echo "left: $root$place      (rm -r $root$place; the state directory holds this machine's key and memberships)"; fi
  done
  # Docker keeps its networks, and runtimes the link to the plugin, though nothing is behind them any more.
  if [[ -e $root/var/lib/byway/docker.json ]]; then
    { grep -o '"[0-9a-f]\{64\}"' "$root/var/lib/byway/docker.json" || true; } | cut -c 2-13 | while read -r network; do
      echo "left: Docker's network $network      (docker network rm $network)"
    done
  fi
  for place in /opt/cni/bin/byway-cni /usr/lib/cni/byway-cni; do
    if [[ -L $root$place ]]; then echo "left: $root$place      (rm $root$place)"; fi
  done
  if [[ -n $root ]]; then return; fi
  if getent passwd byway >/dev/null; then echo "left: user byway      (userdel byway)"; fi
  for group in byway byway-admin; do
    if getent group "$group" >/dev/null; then echo "left: group $group      (groupdel $group)"; fi
  done
}

check_unit() {
  local dir status=0 out unit
  dir=$(mktemp -d)
  for unit in "${units[@]}"; do
    # The units are verified with a program in the place of the binary: it need not be installed here.
    # A systemd before 253 says of the second type that it goes on with the first, as it is meant to.
    sed "s|/usr/bin/byway|/bin/true|; /^Documentation=/d" "$here/systemd/$unit" >"$dir/$unit"
    if [[ $(systemd-analyze --version | awk 'NR == 1 { print $2 }') -lt 253 ]]; then
      sed -i '/^Type=notify-reload$/d' "$dir/$unit"
    fi
  done
  for unit in "${units[@]}"; do
    if [[ $unit == *.service ]]; then
      systemd-analyze security --offline=true --threshold="$threshold" "$here/systemd/$unit" >"$dir/security" 2>&1 || status=$?
      tail -n 1 "$dir/security"
    fi
    # One names another, so all of them are there.
    if ! out=$(SYSTEMD_UNIT_PATH="$dir:" systemd-analyze verify "$dir/$unit" 2>&1) || [[ $out == *"$unit"* ]]; then
      echo "$out" >&2
      status=1
    fi
  done
  for unit in "${user_units[@]}"; do
    sed "s|/usr/bin/byway|/bin/true|; /^Documentation=/d" "$here/systemd/$unit" >"$dir/$unit"
  done
  for unit in "${user_units[@]}"; do
    if ! out=$(SYSTEMD_UNIT_PATH="$dir:" XDG_RUNTIME_DIR="$dir" systemd-analyze --user verify "$dir/$unit" 2>&1) || [[ $out == *"$unit"* ]]; then
      echo "$out" >&2
      status=1
    fi
  done
  rm -rf -- "$dir"
  return "$status"
}

case $mode in
  install)
    install_tree "$destdir"
    echo "installed below ${destdir:-/}"
    if [[ -z $destdir ]]; then
      echo "next: systemd-sysusers byway.conf && systemd-tmpfiles --create byway.conf && systemctl daemon-reload && systemctl enable --now byway"
      if systemctl --quiet is-active NetworkManager 2>/dev/null; then
        echo "next: systemctl reload NetworkManager      (it leaves the links of byway alone then)"
      fi
    fi
    ;;
  uninstall)
    uninstall_tree "$destdir"
    echo "removed"
    left "$destdir"
    ;;
  tarball)
    root=$(mktemp -d)
    trap 'rm -rf -- "$root"' EXIT
    install_tree "$root"
    # The same input gives the same archive.
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -C "$root" -czf "$tarball" .
    echo "packed $tarball"
    ;;
  check) check_unit ;;
esac
