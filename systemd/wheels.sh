#!/bin/bash
# Packs the services with every wheel that they need into one file, for machines without a network:
#   tar -xf spinextract-agent-VERSION-pythonX.Y-PLATFORM.tar && sudo spinextract-agent-VERSION-*/systemd/install.sh
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
usage: systemd/wheels.sh             (the same as `make wheels`)

variables, with their defaults:
  OUT=dist                       folder that takes the tar file
  PYTHON=python3                 the same version as on the machine that will run the services (3.11, 3.12 or 3.13)
  EXTRAS=cpu,dashboard,dicom-out parts to pack; add trt for NVIDIA cards
  TOOLS=                         Python of that version that has cyclonedx-bom; without it, one is made for the moment

The set lists what it is made of in sbom.cdx.json: CycloneDX 1.6, each wheel with version, licence and sha256.

Wheels come from where pip is told to find them (pip config list). torch for processors alone is 200 MB; if several GB
of nvidia wheels arrive, point pip to torch's index for CPU builds (PIP_INDEX_URL or PIP_EXTRA_INDEX_URL).
TEXT
}

[ $# -eq 0 ] || { usage; [ "$1" = --help ] && exit 0; exit 2; }
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
OUT=${OUT:-$SOURCE/dist}
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-cpu,dashboard,dicom-out}
NAME=spinextract-agent

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$PYTHON" -m venv "$scratch/env"
"$scratch/env/bin/python" -m pip wheel --quiet --disable-pip-version-check --constraint "$SOURCE/constraints.txt" \
  --wheel-dir "$scratch/wheels" "$SOURCE[$EXTRAS]"

version=$(basename "$scratch"/wheels/spinextract_agent-*.whl | cut -d- -f2)
target=$("$PYTHON" -c 'import sys, sysconfig; print("python%d.%d-%s" % (*sys.version_info[:2], sysconfig.get_platform()))')
set_name=$NAME-$version-$target
mkdir -p "$scratch/$set_name/docs" "$scratch/$set_name/configs/profiles" "$OUT"
cd "$SOURCE"
cp -r systemd constraints.txt LICENSE "$scratch/$set_name/"
cp docs/install.md "$scratch/$set_name/docs/"
cp configs/agent.yaml configs/agent.schema.json "$scratch/$set_name/configs/"
cp -r configs/profiles/phantom "$scratch/$set_name/configs/profiles/"
rm -rf "$scratch/$set_name/configs/profiles/phantom/engines"
if [ -z "${TOOLS:-}" ]; then
  TOOLS=$scratch/env/bin/python
  "$TOOLS" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cyclonedx-bom packaging
fi
"$TOOLS" -m tests.supply sbom --wheels "$scratch/wheels" --extras "$EXTRAS" --out "$scratch/$set_name/sbom.cdx.json"
mv "$scratch/wheels" "$scratch/$set_name/wheels"
"$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$scratch/$set_name/wheels/PYTHON"
(cd "$scratch/$set_name" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS)
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner -cf "$OUT/$set_name.tar" "$set_name"
cd "$OUT"
sha256sum "$set_name.tar" | tee "$set_name.tar.sha256"
du -h "$set_name.tar"
