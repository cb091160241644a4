#!/bin/bash
# Removes what install.sh installed. Settings, profiles and state stay, unless PURGE=1.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: systemd/uninstall.sh          (the same as `make uninstall`; as root, unless DESTDIR is set)

variables, with their defaults; DESTDIR, PREFIX and LIBDIR as they were for install.sh:
  DESTDIR=  PREFIX=/opt/spinextract-agent  LIBDIR=/usr/local/lib
  PURGE=                         1: also remove settings, credentials, profiles, ledger and identity.key, for good
TEXT
}

[ $# -eq 0 ] || { usage; [ "$1" = --help ] && exit 0; exit 2; }
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/opt/spinextract-agent}
LIBDIR=${LIBDIR:-/usr/local/lib}
NAME=spinextract-agent
SERVICES=(spinextract-agent.service spinextract-dashboard.service spinextract-dicom-out.service)
KEPT=(/etc/$NAME /var/lib/$NAME /var/lib/spinextract-dicom-out)

if [ -z "$DESTDIR" ]; then
  [ "$(id -u)" = 0 ] || { echo 'error: run it as root: sudo make uninstall (or set DESTDIR)' >&2; exit 1; }
  # A service that was never installed or is stopped already is no reason to stop here.
  [ ! -d /run/systemd/system ] || systemctl disable --quiet --now "${SERVICES[@]}" 2>/dev/null || true
fi
for unit in "${SERVICES[@]}"; do rm -f "$DESTDIR$LIBDIR/systemd/system/$unit"; done
rm -f "$DESTDIR$LIBDIR/sysusers.d/$NAME.conf" "$DESTDIR$LIBDIR/tmpfiles.d/$NAME.conf"
# Only what install.sh made: a mistyped PREFIX removes nothing.
if [ -d "$DESTDIR$PREFIX/share/$NAME" ]; then rm -rf "$DESTDIR$PREFIX"; fi
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

if [ "${PURGE:-}" = 1 ]; then
  for folder in "${KEPT[@]}"; do rm -rf "$DESTDIR$folder"; done
  echo "removed $NAME with its settings and state; the users spinextract and spinextract-dashboard stay"
else
  echo "removed $NAME; kept: ${KEPT[*]} (PURGE=1 removes them, the key of the pseudonyms included)"
fi
