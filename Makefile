# Everything runs in .venv, which each target makes for itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# More than cores: many tests wait for brokers, signals and other processes.
WORKERS ?= $(shell expr $$(nproc) + 1)
SYSTEM_PACKAGES := mosquitto mosquitto-clients libtiff-tools dcmtk dicom3tools openssl systemd chromium fonts-dejavu-core bubblewrap python3-venv gcc g++ libc6-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint sbom audit format bench faults fuzz full-size-profile phantom-profile evaluate-phantom system-packages install uninstall wheels clean

help:  ## what there is to make
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo 'Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11 ...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.dev  ## make .venv with everything that tests and training need

demo: $(VENV)/.run  ## broker, synthetic imager, agent and live view on this machine
	$(BIN)/python -m agent demo $(ARGS)

test: $(VENV)/.dev  ## every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev  ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sbom: $(VENV)/.dev  ## what a release is made of: dist/sbom.cdx.json (CycloneDX 1.6)
	@mkdir -p dist
	$(BIN)/python -m tests.supply sbom --out dist/sbom.cdx.json $(ARGS)

audit: $(VENV)/.dev  ## pins, sources, licences, known vulnerabilities; says «not audited» where no service answers
	$(BIN)/python -m tests.supply audit $(ARGS)

format: $(VENV)/.dev  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## latencies and rates of this machine; the full-size network: make bench ARGS=--full-size
	$(BIN)/python -m tests.bench $(ARGS)

faults: $(VENV)/.dev  ## kill, starve and cut off a real agent; long: make faults ARGS="kills --count 1000 --seed 7"
	$(BIN)/python -m tests.faults $(ARGS)

fuzz: $(VENV)/.dev  ## hostile input, one minute; long: make fuzz ARGS="--seconds 3600 --target dicom --seed 7"
	$(BIN)/python -m tests.fuzz $(ARGS)

full-size-profile: $(VENV)/.dev  ## train the network for speed work in build/full-size (some 20 minutes, reproducible)
	$(BIN)/python -m train phantom-profile --recipe configs/train/full-size.yaml --out build/full-size $(ARGS)

phantom-profile: $(VENV)/.dev  ## train the phantom network again (some CPU minutes, reproducible)
	$(BIN)/python -m train phantom-profile --out configs/profiles/phantom $(ARGS)

evaluate-phantom: $(VENV)/.dev  ## 40 unseen phantom slides and foreign pictures; fails below 38 right
	$(BIN)/python -m train evaluate-phantom --profile configs/profiles/phantom --slides 40 --foreign 4 --at-least 38 $(ARGS)

install:  ## the services, on this machine (root) or below DESTDIR; see docs/install.md
	systemd/install.sh

uninstall:  ## remove the services; settings and state stay, unless PURGE=1
	systemd/uninstall.sh

wheels:  ## everything in one tar file, for machines without a network
	systemd/wheels.sh

system-packages:  ## Debian packages that the tests use as real counterparts (needs root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .demo
	rm -rf configs/profiles/*/engines
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
