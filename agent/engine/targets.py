"""For which device, backend and precision an engine is built: what was asked for, judged against this machine."""

from __future__ import annotations

from agent.engine import BACKENDS, find_backend
from agent.engine.backend import Backend
from agent.engine.device import select
from agent.errors import EngineError, SettingsError

AUTO = {"cpu": ("openvino",), "cuda": ("tensorrt", "inductor")}
"""What `auto` tries for each kind of device, best first."""


def device_kind(backend: str, asked: str | None) -> str:
    """The kind of device to build for; of several cards the one that was asked for is then the only one seen."""
    if asked is None:
        devices = BACKENDS[backend].devices if backend != "auto" else ("cpu",)
        return "cpu" if "cpu" in devices else devices[0]
    try:
        return select(asked.lower())
    except ValueError as error:
        raise SettingsError(str(error)) from error


def usable_backend(name: str, device: str) -> Backend:
    """The backend of this name for a kind of device; of `auto`, the best that can be used.

    Raises SettingsError for one that never builds for it, EngineError with the reason for one that cannot here.
    """
    reasons = []
    for candidate in AUTO[device] if name == "auto" else (name,):
        backend = find_backend(candidate)
        if not backend.needs_build:
            raise SettingsError(f"{candidate} runs straight from the profile and needs no build")
        if device not in backend.devices:
            raise SettingsError(
                f"{candidate} does not build for {device}; it builds for {', '.join(backend.devices)}"
            )
        reason = backend.unavailable(device)
        if reason is None:
            return backend
        reasons.append(f"{candidate}: {reason}")
    raise EngineError("; ".join(reasons))


def usable_precisions(backend: Backend, asked: str | None, device: str) -> tuple[str, ...]:
    """The precisions to try, best first; raises SettingsError for one that the device does not have."""
    available = backend.precisions(device)
    if asked is None:
        return available
    if asked not in available:
        found = ", ".join(available)
        raise SettingsError(f"{backend.name} has no {asked} on this machine in this version; available: {found}")
    return (asked,)


def not_usable() -> dict[str, str]:
    """Backends that need a build and can be used for no device of this machine, with the reason."""
    reasons: dict[str, str] = {}
    for backend in BACKENDS.values():
        found: list[str] = []
        for device in backend.devices if backend.needs_build else ():
            reason = backend.unavailable(device)
            if reason is None:
                break
            found.append(reason)
        else:
            reasons.update({backend.name: found[0]} if found else {})
    return reasons
