"""What tests of faults share: what is made once, a running mosquitto, and agents that end with the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ground import Ground, prepare
from tests.faults.shim import build
from tests.system.conftest import agents, broker

__all__ = ["agents", "broker", "ground", "library"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that causes faults, compiled."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Ground:
    """Profile, engine, library and pixels, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    return prepare((base if worker_id == "master" else base.parent) / "faults-ground")
