#!/usr/bin/env bash
# install.sh [--prefix /usr] [--destdir DIR] [--binary FILE] [--uninstall|--check-unit|--tarball FILE]
#
# Puts the binary, the unit, an example configuration, and the snippets for sysusers, tmpfiles, NetworkManager and
# networkd where they belong, below DIR. Starts nothing. --tarball packs the same tree; --check-unit only checks the unit.
# --uninstall stops and disables the unit (without DIR), takes all of it away, and says what it leaves: a configuration that
# was changed, the state directory, the groups. Where the unit cannot be stopped it removes nothing and exits with 1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=/usr destdir=${DESTDIR:-} binary=${CARGO_TARGET_DIR:-$here/target}/release/byway mode=install tarball=''
# Highest exposure `systemd-analyze security` may report, in tenths.
threshold=30

while [[ $# -gt 0 ]]; do
  case $1 in
    --prefix) prefix=${2:?--prefix needs a directory}; shift 2 ;;
    --destdir) destdir=${2:?--destdir needs a directory}; shift 2 ;;
    --binary) binary=${2:?--binary needs a file}; shift 2 ;;
    --uninstall) mode=uninstall; shift ;;
    --check-unit) mode=check; shift ;;
    --tarball) mode=tarball tarball=${2:?--tarball needs a file}; shift 2 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

# mode, source, place
files() {
  cat <<LIST
0755 $binary $prefix/bin/byway
0644 $here/systemd/byway.service $prefix/lib/systemd/system/byway.service
0644 $here/packaging/sysusers.conf $prefix/lib/sysusers.d/byway.conf
0644 $here/packaging/tmpfiles.conf $prefix/lib/tmpfiles.d/byway.conf
0644 $here/packaging/networkmanager.conf $prefix/lib/NetworkManager/conf.d/90-byway.conf
0644 $here/packaging/byway.network $prefix/lib/systemd/network/10-byway.network
0644 $here/LICENSE $prefix/share/doc/byway/LICENSE
0644 $here/README.md $prefix/share/doc/byway/README.md
LIST
}

install_tree() { # ROOT
  local root=$1 bits from to
  if [[ ! -x $binary ]]; then
    echo "install.sh: no binary at $binary; build it first: cargo build --release --locked" >&2
    exit 1
  fi
  while read -r bits from to; do
    install -D -m "$bits" "$from" "$root$to"
  done < <(files)
  if [[ $prefix != /usr ]]; then
    sed -i "s|/usr/bin/byway|$prefix/bin/byway|; s|/usr/share/doc|$prefix/share/doc|" "$root$prefix/lib/systemd/system/byway.service"
  fi
  # A configuration that is there is never overwritten.
  if [[ ! -e $root/etc/byway/byway.toml ]]; then
    install -D -m 0644 "$here/config/byway.toml" "$root/etc/byway/byway.toml"
  fi
  install -d -m 0755 "$root/etc/byway/conf.d"
}

uninstall_tree() { # ROOT
  local root=$1 to dir
  # The unit's own cleanup after the stop needs the binary.
  if [[ -z $root && -d /run/systemd/system && -e $prefix/lib/systemd/system/byway.service ]]; then
    # It fails for a unit that systemd never knew as well: what counts is that the daemon does not run.
    systemctl disable --now byway.service || true
    case $(systemctl is-active byway.service || true) in
      inactive | failed | unknown) ;;
      *)
        echo "install.sh: the unit could not be stopped, and nothing was removed; stop the unit, then uninstall again" >&2
        exit 1
        ;;
    esac
  fi
  while read -r _ _ to; do rm -f -- "$root$to"; done < <(files)
  # The example as it came is nobody's work.
  if cmp -s "$here/config/byway.toml" "$root/etc/byway/byway.toml"; then
    rm -f -- "$root/etc/byway/byway.toml"
  fi
  for dir in "$prefix"/{share/doc/byway,lib/systemd/{system,network},lib/{systemd,sysusers.d,tmpfiles.d,NetworkManager/conf.d,NetworkManager}} \
    /etc/byway/{conf.d,}; do
    rmdir -- "$root$dir" 2>/dev/null || true
  done
  if [[ -z $root && -d /run/systemd/system ]]; then systemctl daemon-reload; fi
}

# What an uninstall leaves, with the command that takes it away.
left() { # ROOT
  local root=$1 place group
  for place in /etc/byway /var/lib/byway; do
    if [[ -e $root$place ]]; then echo "left: $root$place      (rm -r $root$place; the state directory holds this machine's key and memberships)"; fi
  done
  if [[ -n $root ]]; then return; fi
  for group in byway byway-admin; do
    if getent group "$group" >/dev/null; then echo "left: group $group      (groupdel $group)"; fi
  done
}

check_unit() {
  local dir status=0 out
  dir=$(mktemp -d)
  systemd-analyze security --offline=true --threshold="$threshold" "$here/systemd/byway.service" >"$dir/security" 2>&1 || status=$?
  tail -n 1 "$dir/security"
  # The unit is verified with a program in the place of the binary: it need not be installed here.
  # A systemd before 253 says of the second type that it goes on with the first, as it is meant to.
  sed "s|/usr/bin/byway|/bin/true|; /^Documentation=/d" "$here/systemd/byway.service" >"$dir/byway.service"
  if [[ $(systemd-analyze --version | awk 'NR == 1 { print $2 }') -lt 253 ]]; then
    sed -i '/^Type=notify-reload$/d' "$dir/byway.service"
  fi
  if ! out=$(systemd-analyze verify "$dir/byway.service" 2>&1) || [[ $out == *byway.service* ]]; then
    echo "$out" >&2
    status=1
  fi
  rm -rf -- "$dir"
  return "$status"
}

case $mode in
  install)
    install_tree "$destdir"
    echo "installed below ${destdir:-/}"
    if [[ -z $destdir ]]; then
      echo "next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload && systemctl enable --now byway"
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
