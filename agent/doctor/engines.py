"""Profile and engines: is the profile whole, which engines can run it, how fast is a real prediction?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from agent.doctor.finding import Finding
from agent.engine import Choice, Engine, choose, predict_padded
from agent.errors import AgentError, EngineError
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
    in_service = False
    reasons: list[Finding] = []
    for name in settings.engine.order:
        try:
            wanted = settings.engine
            choice = choose(settings.profile, profile, (name,), wanted.threads, wanted.limits, wanted.public_key)
        except AgentError as error:
            reasons.append(_unusable(settings, name, _reason(error, name)))
            continue
        try:
            if not in_service:
                yield from reasons
            yield from _usable(settings, profile, choice, in_service=not in_service)
        finally:
            choice.engine.close()
        reasons, in_service = [], True
    if in_service:
        yield from reasons
    else:
        yield from (
            Finding(r.check, "fail", r.found, "without any engine the agent does not start", r.mend) for r in reasons
        )


def _reason(error: AgentError, name: str) -> str:
    """Without the head that `choose` gives to the reasons of several engines."""
    return str(error).removeprefix("no engine can be used: ").removeprefix(f"{name}: ")


def _unusable(settings: Settings, name: str, reason: str) -> Finding:
    why = "the next engine of engine.order runs instead, which may be slower; `status` says so"
    return Finding("engine", "warn", f"{name}: {reason}", why, _build(settings, name))


def _build(settings: Settings, name: str) -> str:
    if name == "eager":
        return "pip install 'spinextract-agent[cpu]' again: eager needs torch and nothing else"
    return f"python -m agent.build_trt --profile {settings.profile} --backend {name}"


def _usable(settings: Settings, profile: LoadedProfile, choice: Choice, *, in_service: bool) -> Iterator[Finding]:
    engine = choice.engine
    for label, reason in choice.passed_over.items():
        yield _unusable(settings, engine.name, f"{label} passed over: {reason}")
    role = "in service" if in_service else "could stand in"
    yield Finding("engine", "ok", f"{engine.name} {engine.precision}: {role}, golden pair agrees")
    if in_service:
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
