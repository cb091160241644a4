#!/bin/bash
# Installs the services of the agent, from a checkout or from an unpacked wheel set (then without any network).
# Run it again to upgrade: settings, profiles and state stay. uninstall.sh is its counterpart.
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
usage: systemd/install.sh            (the same as `make install`; as root, unless DESTDIR is set)

variables, with their defaults:
  DESTDIR=                       write below this folder and change nothing else: no users, no services (packagers)
  PREFIX=/opt/spinextract-agent  the Python environment; must lie below /opt or /usr
  LIBDIR=/usr/local/lib          systemd units, sysusers.d and tmpfiles.d (packagers: /usr/lib)
  PYTHON=python3                 interpreter for the environment: 3.11, 3.12 or 3.13, installed below /usr or /opt
  EXTRAS=cpu,dashboard,dicom-out parts to install; add trt for NVIDIA cards
  PYTHON_ENV=yes                 no: leave PREFIX as it is, install everything else
  ENGINE=yes                     no: do not compile the phantom profile for this machine
TEXT
}

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
refuse() { printf 'error: %s\n' "$*" >&2; exit 2; }

[ $# -eq 0 ] || { usage; [ "$1" = --help ] && exit 0; exit 2; }
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/opt/spinextract-agent}
LIBDIR=${LIBDIR:-/usr/local/lib}
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-cpu,dashboard,dicom-out}
NAME=spinextract-agent
SERVICES=(spinextract-agent spinextract-dashboard spinextract-dicom-out)
SETTINGS=/etc/$NAME
HOME_NOW=$DESTDIR$PREFIX
SHIPPED=$HOME_NOW/share/$NAME
FRESH=$HOME_NOW.new

check_variables() {
  case $PREFIX in
    /opt/?* | /usr/?*) ;;
    *) refuse "PREFIX=$PREFIX: the services see programs below /opt and /usr only" ;;
  esac
  case "$DESTDIR$PREFIX$LIBDIR" in *[[:space:]\&\|]*) refuse "no spaces, & or | in DESTDIR, PREFIX and LIBDIR" ;; esac
  [ -z "$DESTDIR" ] || [ "${DESTDIR#/}" != "$DESTDIR" ] || refuse "DESTDIR=$DESTDIR must be an absolute path"
  [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || fail "run it as root: sudo make install (or set DESTDIR)"
  [ -n "$DESTDIR" ] || check_systemd
}

check_systemd() {
  local version
  command -v systemctl >/dev/null || fail "systemd is needed: there is no systemctl"
  version=$(systemctl --version | awk 'NR == 1 {print int($2)}')
  [ "$version" -ge 250 ] || fail "systemd 250 or newer is needed (credentials from a folder); this is $version"
}

check_python() {
  local found
  found=$("$PYTHON" -c 'import sys; print(sys.base_prefix, (3, 11) <= sys.version_info < (3, 14))') \
    || fail "PYTHON=$PYTHON does not run"
  case $found in
    *False) fail "PYTHON=$PYTHON: Python 3.11, 3.12 or 3.13 is needed" ;;
    /usr\ * | /usr/* | /opt/*) ;;
    *) fail "PYTHON=$PYTHON belongs to ${found% *}, which the services cannot see: use one below /usr or /opt" ;;
  esac
  if [ -f "$SOURCE/wheels/PYTHON" ]; then
    "$PYTHON" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$(cat "$SOURCE/wheels/PYTHON")" \
      || fail "these wheels are for Python $(cat "$SOURCE/wheels/PYTHON"): set PYTHON, or make a set for $("$PYTHON" --version)"
  fi
  "$PYTHON" -c 'import ensurepip' 2>/dev/null || fail "PYTHON=$PYTHON cannot make environments: apt-get install python3-venv"
}

# The new environment is built aside and takes the old one's place when it is whole: a failed upgrade changes nothing.
build_environment() {
  local pip requirement="$SOURCE[$EXTRAS]"
  if [ -d "$SOURCE/wheels" ]; then
    say "checking the wheels"
    (cd "$SOURCE" && sha256sum --check --quiet SHA256SUMS) || fail "the wheel set is damaged: copy it again"
  fi
  trap 'rm -rf "$FRESH"' EXIT
  rm -rf "$FRESH"
  mkdir -p "$(dirname "$FRESH")"
  "$PYTHON" -m venv "$FRESH"
  pip=("$FRESH/bin/python" -m pip install --quiet --disable-pip-version-check)
  if [ -d "$SOURCE/wheels" ]; then
    pip+=(--no-index --find-links "$SOURCE/wheels")
    requirement="$NAME[$EXTRAS]"
  fi
  say "installing $NAME[$EXTRAS] with $("$PYTHON" --version) into $HOME_NOW"
  "${pip[@]}" --constraint "$SOURCE/constraints.txt" "$requirement" || fail "pip failed, see above; nothing was changed"
}

take_its_place() {
  # Scripts name their interpreter by its full path, which is still the one of the building site.
  grep -rlIF "$FRESH" "$FRESH/bin" "$FRESH/pyvenv.cfg" | xargs -r sed -i "s|$FRESH|$PREFIX|g"
  if [ -d "$SHIPPED" ]; then mkdir -p "$FRESH/share" && cp -a "$SHIPPED" "$FRESH/share/"; fi
  rm -rf "$HOME_NOW.old"
  if [ -e "$HOME_NOW" ]; then mv "$HOME_NOW" "$HOME_NOW.old"; fi
  mv "$FRESH" "$HOME_NOW"
  rm -rf "$HOME_NOW.old"
}

# keep NEW TARGET: a file that the administrator may change. $SHIPPED remembers what came with the last version;
# whatever differs from it is theirs, stays, and the new one is laid beside it.
keep() {
  local new=$1 target=$DESTDIR$2 last=$SHIPPED/last$2
  mkdir -p "$(dirname "$target")" "$(dirname "$last")"
  if [ ! -e "$target" ] || { [ -e "$last" ] && cmp -s "$target" "$last"; }; then
    install -m 644 "$new" "$target"
  elif cmp -s "$new" "$target"; then
    :
  elif [ -e "$last" ] && cmp -s "$new" "$last"; then
    say "kept     $2 (yours)"
  else
    install -m 644 "$new" "$target.new"
    say "kept     $2 (yours); this version's is $2.new: compare them"
  fi
  install -m 644 "$new" "$last"
}

install_settings() {
  local scratch profile=$DESTDIR$SETTINGS/profiles/phantom
  scratch=$(mktemp)
  # In a checkout the paths of the example start beside it; on a machine they have their places.
  sed -e 's|^folder: .*|folder: /srv/imager|' -e "s|^state_dir: .*|state_dir: /var/lib/$NAME|" \
    "$SOURCE/configs/agent.yaml" >"$scratch"
  keep "$scratch" "$SETTINGS/agent.yaml"
  rm -f "$scratch"
  install -m 644 "$SOURCE/configs/agent.schema.json" "$DESTDIR$SETTINGS/agent.schema.json"
  # The phantom belongs to the program; your own profile is a folder beside it.
  install -d "$profile"
  find "$SOURCE/configs/profiles/phantom" -maxdepth 1 -type f -exec install -m 644 -t "$profile" {} +
}

install_units() {
  local unit
  install -d "$DESTDIR$LIBDIR"/{systemd/system,sysusers.d,tmpfiles.d} "$SHIPPED"
  for unit in "${SERVICES[@]}"; do
    sed "s|/opt/$NAME|$PREFIX|g" "$SOURCE/systemd/$unit.service" >"$DESTDIR$LIBDIR/systemd/system/$unit.service"
    chmod 644 "$DESTDIR$LIBDIR/systemd/system/$unit.service"
  done
  install -m 644 "$SOURCE/systemd/sysusers.d/$NAME.conf" "$DESTDIR$LIBDIR/sysusers.d/$NAME.conf"
  install -m 644 "$SOURCE/systemd/tmpfiles.d/$NAME.conf" "$DESTDIR$LIBDIR/tmpfiles.d/$NAME.conf"
  cp -r "$SOURCE"/systemd/*.service.d "$SHIPPED/"
  install -m 644 "$SOURCE/docs/install.md" "$SHIPPED/install.md"
  install -m 755 "$SOURCE/systemd/uninstall.sh" "$SHIPPED/uninstall.sh"
}

# With the new environment, before it takes its place: a service that runs is interrupted by its restart only.
build_engine() {
  local profile=$SETTINGS/profiles/phantom
  if (cd / && "$FRESH/bin/python" -m agent.build_trt check --profile "$profile") >/dev/null 2>&1; then
    say "the phantom profile's engine fits this machine"
  elif (cd / && "$FRESH/bin/python" -m agent.build_trt --profile "$profile"); then
    say "compiled the phantom profile for this machine"
  else
    say "the phantom profile could not be compiled (see above): the agent will run it without, slower"
  fi
}

settle_into_system() {
  systemd-sysusers "$LIBDIR/sysusers.d/$NAME.conf"
  systemd-tmpfiles --create "$LIBDIR/tmpfiles.d/$NAME.conf"
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart "${SERVICES[@]/%/.service}"
  fi
}

check_variables
if [ "${PYTHON_ENV:-yes}" = no ]; then
  install_settings
else
  check_python
  build_environment
  install_settings
  [ -n "$DESTDIR" ] || [ "${ENGINE:-yes}" = no ] || build_engine
  take_its_place
fi
install_units
if [ -n "$DESTDIR" ]; then
  say "installed below $DESTDIR; users, folders and services are made by whoever installs the package:"
  say "  systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload"
  exit 0
fi
settle_into_system
cat <<TEXT

installed: $PREFIX (programs), $SETTINGS (settings, profiles), /var/lib/$NAME (state, kept by upgrades)
next:
  1. editor $SETTINGS/agent.yaml           folder, site, instrument, mqtt
  2. usermod --append --groups IMAGER_GROUP spinextract    the group that may read the imager's folder
  3. systemd-run --quiet --pipe --wait -p User=spinextract -p LoadCredential=mqtt:$SETTINGS/credentials/agent \\
       $PREFIX/bin/python -m agent doctor --config $SETTINGS/agent.yaml
  4. systemctl enable --now spinextract-agent spinextract-dashboard
more: $PREFIX/share/$NAME/install.md
TEXT
