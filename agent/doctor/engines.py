"""Profile and engines: is the profile whole, which engines can run it, how fast is a real prediction?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from agent.doctor.finding import Finding
from agent.engine import BACKENDS, Choice, Engine, predict_padded, usable
from agent.engine.order import parse_entry
from agent.errors import AgentError, EngineError, SettingsError
from agent.profile_folder import load_profile_folder
from agent.settings import Settings
from models.profile import LoadedProfile

RUNS = 5


def look_at_profile(settings: Settings) -> Iterator[Finding]:
    """Every sha256, what it is for, and each engine of engine.order."""
    try:
        profile = load_profile_folder(settings.profile)
    except AgentError as error:
        why = "only weights that are whole, to the last bit, may answer"
        mend = "copy the profile again, whole (cp -r), or correct `profile` in the settings"
        yield Finding("profile", "fail", str(error), why, mend)
        return
    spec = profile.spec
    yield Finding("profile", "ok", f"{spec.name} v{spec.version}, sha256 {profile.sha256[:12]}…, every file verified")
    yield judge_use(spec.intended_use)
    yield from _engines(settings, profile)


def judge_use(intended_use: str) -> Finding:
    """What the profile says it is for; one of the synthetic phantom must not meet a patient unnoticed."""
    if "synthetic" not in intended_use:
        return Finding("intended_use", "ok", intended_use)
    why = "it was trained on computer-made pictures: on tissue its answers mean nothing"
    mend = "for a demonstration nothing; for real slides set `profile` to one that was made for them"
    return Finding("intended_use", "warn", intended_use, why, mend)


def _engines(settings: Settings, profile: LoadedProfile) -> Iterator[Finding]:
    """Each engine of the order, as the agent would try them: the first usable one, and what stands in for it."""
    want = settings.engine
    passed_over: dict[str, str] = {}
    told: set[str] = set()
    in_service = ""

    def unusable() -> Iterator[Finding]:
        for label in [label for label in passed_over if label not in told]:
            told.add(label)
            yield _unusable(settings, label, passed_over[label])

    try:
        for choice in usable(
            settings.profile, profile, want.order, want.threads, passed_over, want.limits, want.public_key
        ):
            try:
                yield from unusable()
                yield from _usable(profile, choice, in_service)
            finally:
                choice.engine.close()
            in_service = in_service or choice.label
    except SettingsError as error:
        yield _none(str(error), "correct `engine.order` in the settings")
        return
    if in_service:
        yield from unusable()
    else:
        yield from (_none(f"{label}: {reason}", _build(settings, label)) for label, reason in passed_over.items())


def _none(found: str, mend: str) -> Finding:
    return Finding("engine", "fail", found, "without any engine the agent does not start", mend)


def _unusable(settings: Settings, label: str, reason: str) -> Finding:
    why = "the next engine of engine.order runs instead, which may be slower; `status` says so"
    return Finding("engine", "warn", f"{label}: {reason}", why, _build(settings, label))


def _build(settings: Settings, label: str) -> str:
    if label == "eager":
        return "pip install 'spinextract-agent[cpu]' again: eager needs torch and nothing else"
    name = "-".join(label.split("-")[:3])
    try:
        return parse_entry(name, BACKENDS).mend(settings.profile)
    except SettingsError:  # a folder that somebody has renamed
        return parse_entry(label.partition("-")[0], BACKENDS).mend(settings.profile)


def _usable(profile: LoadedProfile, choice: Choice, in_service: str) -> Iterator[Finding]:
    engine = choice.engine
    role = f"stands in for {in_service}" if in_service else "in service"
    batches = f", batches of {engine.batch_size}" if engine.batch_size > 1 else ""
    which = f"{engine.name} {engine.precision}{batches}"
    yield Finding("engine", "ok", f"{which}: {role}, golden pair agrees")
    if not in_service:
        yield _prediction(engine, profile)


def _prediction(engine: Engine, profile: LoadedProfile) -> Finding:
    """The golden inputs once more, with the engine warm: what a patch takes on this machine."""
    patches = profile.golden_inputs
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        try:
            predict_padded(engine, patches)
        except EngineError as error:
            return Finding("prediction", "fail", str(error), "no patch would get an answer", "build the engine again")
        times.append(time.perf_counter() - begun)
    each_s = sorted(times)[RUNS // 2] / len(patches)
    return Finding("prediction", "ok", f"{1e3 * each_s:.1f} ms a patch, {1 / each_s:.0f} patches/s ({engine.name})")
