"""An agent, its imager and its broker, for one fault after the other: each slide has the same pixels, so that each
final must say the same, whatever went wrong on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from agent.imager import plan
from tests.brokers import Mosquitto, wait_until
from tests.faults.ground import Ground
from tests.faults.judge import Heard, Standing, standing
from tests.faults.witness import Witness
from tests.system.processes import AgentProcess

ROWS = 600
"""Rows of a slide in the OpenSRH layout: two rows of three patches."""
PATCHES = 6
RESULT = ("probabilities", "interval", "counts", "predicted", "confidence", "decision", "decision_reason", "domain")
FINAL_S = 60.0


class Station:
    """See the module's docstring."""

    def __init__(
        self,
        folder: Path,
        ground: Ground,
        broker: Mosquitto,
        port: int | None = None,
        patient_quiet_s: float = 1.0,
        **mqtt: Any,
    ) -> None:
        """`port` is where the agent finds the broker, when not at its own."""
        self.broker = broker
        self.agent = AgentProcess(
            folder / "agent",
            port or broker.port,
            profile=str(ground.profile),
            engine=ground.engine,
            watch={"scan_interval_s": 0.5, "settle_s": 0.2, "slide_quiet_s": 0.6, "stall_after_s": 30.0},
            patient={"quiet_s": patient_quiet_s, "on_next": False},
            dicom_out={"folder": str(folder / "objects")},
            mqtt={"health_interval_s": 1.0, **mqtt},
        )
        self.witness = Witness(broker.port)
        self._strips = ground.strips()
        self._scratch = folder / "look"
        self._slides: list[str] = []
        self._first: dict[str, Any] = {}

    def files(self) -> list[tuple[PurePosixPath, bytes]]:
        """The files of another slide, of a patient of its own."""
        patient = f"PHANTOM_{len(self._slides)}"
        self._slides.append(patient)
        return [(file.relative, file.content) for file in plan([self._strips[0][:, :ROWS]], "opensrh", patient, "1")]

    def write(self, files: list[tuple[PurePosixPath, bytes]]) -> None:
        """Put files into the watched folder."""
        for relative, content in files:
            path = self.agent.folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def slide(self) -> str:
        """Write another slide; returns its pseudonym."""
        self.write(self.files())
        return self.pseudonym()

    def pseudonym(self) -> str:
        """How the agent calls the last slide."""
        return self.agent.pseudonym(self._slides[-1], "1").slide

    def has_counted(self, slides: int) -> bool:
        """Whether the agent has ended so many slides, over all its lives."""
        return len({event["slide"] for event in self.agent.events("slide")}) >= slides

    def has_told(self, slide: str) -> bool:
        """Whether a running answer has been heard that rests on every patch of this slide."""
        said = self.heard().of_kind("slide.posterior")
        return any(body["slide"] == slide and body["counts"]["seen"] == PATCHES for body in said)

    def heard(self) -> Heard:
        """Everything that the broker has passed on."""
        return self.witness.heard()

    def alerts(self) -> set[str]:
        """The reasons of all alerts."""
        return {body["reason"] for body in self.heard().of_kind("alert")}

    def health(self) -> Mapping[str, Any]:
        """The latest health message."""
        said = self.heard().of_kind("health")
        return said[-1] if said else {}

    def expect_final(self, slide: str, limit_s: float = FINAL_S) -> dict[str, Any]:
        """Wait for a slide's final; it must say what the first one said, and every repetition must be the same."""
        wait_until(lambda: slide in self.heard().finals("slide"), "the slide's final", limit_s)
        finals = [body for body in self.heard().bodies if body["kind"] == "slide.final" and body["slide"] == slide]
        final = finals[0]
        assert {body["bytes"] for body in finals} == {final["bytes"]}
        self._first = self._first or final
        assert {name: final[name] for name in RESULT} == {name: self._first[name] for name in RESULT}
        assert final["counts"]["seen"] == PATCHES and final["state"] == "complete" and final["revision"] == 1
        return final

    def expect_nothing_owed(self, limit_s: float = FINAL_S) -> None:
        """Wait until the broker has acknowledged everything."""
        count = len(self.heard().of_kind("health"))
        wait_until(
            lambda: len(self.heard().of_kind("health")) > count and self.health()["outbox"] == 0,
            "the outbox is empty",
            limit_s,
        )

    def look(self) -> Standing:
        """What the ledger holds; the agent must have ended."""
        return standing(self.agent.state, self._scratch)

    def expect_everything_once(self) -> None:
        """After an end: each patch of each slide is in the ledger once, nothing is owed, every final was heard."""
        last = self.look()
        assert last.rows == len(last.patches) == PATCHES * len(self._slides)
        assert last.owed == frozenset()
        assert len(self.heard().finals("slide")) == len(self._slides)
        assert set(last.finals.values()) == {1}

    def close(self) -> None:
        """End everything."""
        if not self.agent.ended:
            self.agent.kill()
        self.witness.close()
