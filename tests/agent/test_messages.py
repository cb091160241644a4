"""Payloads and topics: what may be said, how it looks on the wire, and that the schemas say the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.commands import BuiltEngine, EngineInService, Reply
from agent.contract.schemas import payload_schemas
from agent.messages import Alert, Counts, Current, EngineRef, Health, Payload, ProfileRef, QueueState, Status
from agent.results import Domain, PatientFinal, PatientPosterior, SlideFinal, SlidePatches, SlidePosterior
from agent.topics import ROUTES, Message, Topics, final_event_id

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
TOPICS = Topics(site="berlin", instrument="srh-1")
COMMON: dict[str, Any] = {"event_id": "e" * 32, "session_id": "s" * 32, "time": NOW}
PROFILE = ProfileRef(name="phantom", version=1, sha256="a" * 64)
ENGINE = EngineRef(name="openvino", precision="bf16")
RESULT: dict[str, Any] = {
    **COMMON,
    "profile": PROFILE,
    "engine": ENGINE,
    "calibration": "one_vs_rest_sigmoid",
    "patient": "p" * 16,
    "classes": ("Ependymoma", "Meningioma", "Metastasis", "Schwannoma"),
    "probabilities": (0.1, 0.7, 0.1, 0.1),
    "interval": ((0.05, 0.15), (0.6, 0.8), (0.05, 0.15), (0.05, 0.15)),
    "interval_mass": 0.95,
    "predicted": "Meningioma",
    "confidence": 0.7,
    "counts": {"seen": 60, "used": 50, "rejected": {"empty": 8, "blood": 2}},
    "low_tissue": False,
    "minimum_patches": 20,
    "decision": "provisional",
    "decision_reason": "below_operating_point",
    "operating_point": 0.77,
    "domain": {"judged": 50, "embedding_far": 3, "intensity_outside": 1, "limit": 0.5},
    "state": "receiving",
    "strips": {"done": 1, "expected": 6},
    "latency": {"last_byte_to_result_ms": 12.5, "inference_ms": 7.25},
}
SLIDE: dict[str, Any] = {**RESULT, "slide": "l" * 16}
EXAMPLES: tuple[Payload, ...] = (
    Status(**COMMON, state="online", boot_seq=3, version="0.1.0", profile=PROFILE, engine=ENGINE, since=NOW,
           passed_over={"tensorrt": "no GPU"}),
    Health(**COMMON, patches=Counts(seen=3, used=2, rejected={"empty": 1}), outbox=0, reconnects=1, scan_only_finds=0,
           handovers={"patches": QueueState(depth=1, high_water=4, capacity=16)}, engine=ENGINE, uptime_s=3.5,
           last_byte_age_s=None, rss_bytes=300_000_000),
    Current(**COMMON, patient="p", slide="s"),
    SlidePosterior(**SLIDE),
    PatientPosterior(**RESULT, slides=2),
    SlidePatches(**COMMON, patient="p", slide="s", classes=RESULT["classes"], size_px=300, stride_px=900,
                 before=40, strip=(0, 0), x=(50, 350), y=(0, 300), reasons=("empty",), predicted=(1, -1),
                 confidence=(255, 0)),
    SlideFinal(**SLIDE, revision=2, supersedes="d" * 32),
    PatientFinal(**RESULT, slides=2, revision=1),
    Alert(**COMMON, severity="warning", reason="malformed", detail="IFD beyond the file", file="f"),
    Reply(**COMMON, verb="engine", request_id="r-1", ok=True, detail="openvino in bf16, 1 patches at once",
          result=EngineInService(engine=ENGINE, batch=1, passed_over={"tensorrt": "no GPU"},
                                 built=(BuiltEngine(name="openvino-bf16", precision="bf16", batch=1),))),
)  # fmt: skip


def kinds(payload: Payload) -> str:
    """The name of a case."""
    return payload.kind


def test_every_kind_has_a_route_a_schema_and_an_example() -> None:
    """No payload type is left out of topics, schemas or this file's cases."""
    assert set(ROUTES) == set(payload_schemas()) == {example.kind for example in EXAMPLES}


@pytest.mark.parametrize("payload", EXAMPLES, ids=kinds)
def test_what_is_written_fits_its_schema_and_reads_back(payload: Payload) -> None:
    """A payload on the wire is valid under its JSON Schema and reads back equal, unknown keys refused."""
    body = json.loads(TOPICS.message(payload).payload)
    schema = payload_schemas()[payload.kind]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(body)
    assert type(payload).model_validate_json(json.dumps(body)) == payload
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**body, "surname": "Doe"})
    with pytest.raises(ValidationError, match="surname"):
        type(payload).model_validate({**body, "surname": "Doe"})


@pytest.mark.parametrize(
    ("kind", "topic", "qos", "retain", "coalesce", "durable"),
    [
        ("status", "status", 1, True, False, False),
        ("health", "health", 0, True, False, False),
        ("current", "current", 1, True, True, True),
        ("slide.posterior", f"slide/{'l' * 16}/posterior", 1, True, True, True),
        ("patient.posterior", f"patient/{'p' * 16}/posterior", 1, True, True, True),
        ("slide.patches", "slide/s/patches", 0, False, False, False),
        ("slide.final", f"slide/{'l' * 16}/final", 1, True, False, True),
        ("patient.final", f"patient/{'p' * 16}/final", 1, True, False, True),
        ("alert", "alert", 1, False, False, True),
        ("reply", "reply/engine", 1, False, False, False),
    ],
)
def test_the_wire_contract(kind: str, topic: str, qos: int, retain: bool, coalesce: bool, durable: bool) -> None:
    """Other people's programs rely on these topics and on how each kind travels."""
    (payload,) = (example for example in EXAMPLES if example.kind == kind)
    message = TOPICS.message(payload)
    assert message.topic == f"srh/v1/berlin/srh-1/{topic}"
    assert (message.qos, message.retain, message.coalesce, message.durable) == (qos, retain, coalesce, durable)
    assert (message.event_id, message.kind, message.schema) == (payload.event_id, kind, f"{kind}.v1")
    expires = {"health", "current", "slide.posterior", "patient.posterior", "slide.final", "patient.final"}
    assert (message.expiry_s is not None) == (kind in expires)


@pytest.mark.parametrize(
    ("boot_seq", "minutes", "older"),
    [
        (2, -5, True),  # the late will of the session before
        (1, 5, False),  # the ledger is new: boot_seq began anew
        (4, -5, False),  # a later start after the clock was set back
        (3, 0, False),  # the same session
    ],
)
def test_a_late_will_is_older_than_a_birth(boot_seq: int, minutes: int, older: bool) -> None:
    """A status is older than another only when both boot_seq and start say so."""
    (birth,) = (example for example in EXAMPLES if isinstance(example, Status))
    other = birth.model_copy(update={"boot_seq": boot_seq, "since": NOW + timedelta(minutes=minutes)})
    assert other.is_older_than(birth) is older


def test_replies_go_below_reply_only() -> None:
    """A Response Topic is honoured below reply/, and nowhere else: not beside it, not with wildcards, and not where
    a broker would take our answer for an error and disconnect us."""
    base = "srh/v1/berlin/srh-1"
    assert TOPICS.may_reply_at(f"{base}/reply/engine") and TOPICS.may_reply_at(f"{base}/reply/me/1")
    for topic in (
        "", "$SYS/x", "other/reply/x", f"{base}/reply", f"{base}/reply/", f"{base}/status", f"{base}/replyx/y",
        f"{base}/reply/+", f"{base}/reply/a/#", f"{base}/reply/x\x00", f"{base}/reply/" + "x" * 2000,
        f"{base}/reply/" + "/" * 200, f"{base}/reply/x\x01", f"{base}/reply/x\x85", f"{base}/reply/x\uffff",
    ):  # fmt: skip
        assert not TOPICS.may_reply_at(topic), topic


def test_a_posterior_is_small() -> None:
    """A posterior with long names, every rejection reason and full floats stays below 4 kB."""
    third = 1 / 3
    worst = SlidePosterior(
        **{
            **SLIDE,
            "classes": tuple(f"{number:02}" + "c" * 38 for number in range(12)),
            "probabilities": (third,) * 12,
            "interval": ((third, third),) * 12,
            "predicted": "00" + "c" * 38,
            "counts": {"seen": 10**6, "used": 10**6 - 10, "rejected": {f"reason_number_{n}": 1 for n in range(10)}},
        }
    )
    assert len(TOPICS.message(worst).payload) < 4096


@given(st.integers(0, 9), st.integers(0, 9), st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=3))
def test_counts_balance(seen: int, used: int, rejected: dict[str, int]) -> None:
    """Counts exist exactly when seen = used + rejected."""
    if seen == used + sum(rejected.values()):
        assert Counts(seen=seen, used=used, rejected=rejected).seen == seen
    else:
        with pytest.raises(ValidationError, match="is not used"):
            Counts(seen=seen, used=used, rejected=rejected)


NOTHING_USED: dict[str, Any] = {
    **SLIDE,
    "counts": {"seen": 2, "used": 0, "rejected": {"empty": 2}},
    **dict.fromkeys(("probabilities", "interval", "predicted", "confidence")),
}


def test_a_slide_without_a_usable_patch_has_no_answer() -> None:
    """With nothing used the answer's fields are null: no distribution is invented."""
    body = json.loads(TOPICS.message(SlidePosterior(**NOTHING_USED)).payload)
    assert [body[name] for name in ("probabilities", "interval", "predicted", "confidence")] == [None] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probabilities": (0.5, 0.5)}, "one entry for each"),
        ({"interval": ((0.1, 0.2),)}, "one entry for each"),
        ({"predicted": "Glioma"}, "not one of the classes"),
        ({"probabilities": None}, "null exactly when used is 0"),
        ({"probabilities": (0.1, 1.2, 0.1, 0.1)}, "less than or equal to 1"),
        ({"confidence": float("nan")}, "confidence"),
        ({"time": datetime(2026, 1, 2)}, "timezone"),
        ({"intended_use": "diagnosis"}, "research use only"),
        ({"counts": {"seen": 2, "used": 0, "rejected": {"empty": 2}}}, "null exactly when used is 0"),
    ],
)
def test_results_that_contradict_themselves_are_refused(changes: dict[str, Any], words: str) -> None:
    """A wrong result is an error here, not on somebody's screen."""
    with pytest.raises(ValidationError, match=words):
        SlidePosterior(**{**SLIDE, **changes})


@pytest.mark.parametrize(("revision", "supersedes"), [(1, "d" * 32), (2, None), (0, None)])
def test_a_revision_names_what_it_supersedes(revision: int, supersedes: str | None) -> None:
    """Revision 1 supersedes nothing, and every later one names its predecessor."""
    with pytest.raises(ValidationError):
        SlideFinal(**SLIDE, revision=revision, supersedes=supersedes)


def test_more_marked_patches_than_judged_ones_are_refused() -> None:
    """Marks are a part of the patches that were compared with the reference."""
    with pytest.raises(ValidationError, match="marked than the 5"):
        Domain(judged=5, embedding_far=6, intensity_outside=0, limit=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": (1,)}, "one length"),
        ({"predicted": (4, 0)}, "-1..3"),
        ({"predicted": (-2, 0)}, "-1..3"),
        ({"confidence": (256, 0)}, "255"),
    ],
)
def test_patch_arrays_are_parallel(changes: dict[str, Any], words: str) -> None:
    """Arrays of unequal length and indices beyond the classes are refused."""
    (patches,) = (example for example in EXAMPLES if isinstance(example, SlidePatches))
    with pytest.raises(ValidationError, match=words):
        SlidePatches(**{**patches.model_dump(), **changes})


def test_times_are_written_as_utc() -> None:
    """A time of any zone goes out as the same instant in UTC, with its microseconds."""
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    body = json.loads(TOPICS.message(Current(**{**COMMON, "time": east})).payload)
    assert body["time"] == "2026-01-02T03:04:05.678900Z"


@given(probability=st.floats(0, 1))
def test_probabilities_keep_every_bit(probability: float) -> None:
    """What the posterior computed is what a reader of the JSON gets, to the last bit."""
    changed = {**SLIDE, "confidence": probability}
    body = json.loads(TOPICS.message(SlidePosterior(**changed)).payload)
    assert body["confidence"] == probability


@pytest.mark.parametrize("bad", ["", "a/b", "a+b", "#", "$SYS", "a\x00"])
def test_ids_cannot_change_the_topic_tree(bad: str) -> None:
    """Site, instrument, verb and ids must be one level each."""
    for call in (
        lambda: Topics(site=bad),
        lambda: Topics(instrument=bad),
        lambda: TOPICS.command(bad),
        lambda: TOPICS.message(SlidePosterior(**{**SLIDE, "slide": bad})),
    ):
        with pytest.raises(ValueError, match="one level of an MQTT topic"):
            call()


def test_a_finals_id_is_stable_and_its_own() -> None:
    """The same final has the same id in every process, and another final another one."""
    assert final_event_id("a" * 64, "slide", "p", "s", 1) == "3b6c3dbf358816606a7027b400640d65"
    different = {
        final_event_id(*parts)
        for parts in (
            ("a", "slide", "p", "s", 1),
            ("b", "slide", "p", "s", 1),
            ("a", "patient", "p", "", 1),
            ("a", "slide", "ps", "", 1),
            ("a", "slide", "p", "s", 2),
        )
    }
    assert len(different) == 5


def test_the_root_may_have_levels() -> None:
    """The configured root is used as it is, and a command's topic lies under it."""
    assert Topics("lab/raman/v9", "s", "i").command("close-patient") == "lab/raman/v9/s/i/cmd/close-patient"


def test_messages_are_values() -> None:
    """Two messages that say the same are equal: the ledger gives back what it took."""
    first, second = (TOPICS.message(Current(**COMMON)) for _ in range(2))
    assert first == second and isinstance(first, Message)
