"""The inputs on which a new engine is compared with eager fp32, and eager's answers to them, computed once.

Inputs: whole phantom slides; phantom patches, mirrored and dimmed golden inputs, and blends of two inputs of
different classes, where answers are least sure. Must not know any backend but the reference, nor any modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine import find_backend, predict_padded
from agent.engine.backend import Engine
from agent.errors import EngineError
from models.contract import Prediction
from models.profile import LoadedProfile
from models.registry import MODALITIES

Raw = NDArray[np.uint16]
CALIBRATION_PATCHES = 300
_CALIBRATION_SLIDE = 1000
"""Number of the first phantom slide for calibration: none of those that gates look at."""
_CHUNK = 16
"""Patches between two words of progress."""


class Announce(Protocol):
    """Takes the name of the step that runs, and how much of it is done when that can be told."""

    def __call__(self, step: str, done: int = 0, of: int = 0) -> None:
        """The same name again tells of the same step."""
        ...


@dataclass(frozen=True)
class Answered:
    """Raw inputs and what eager fp32 gives for them."""

    inputs: Raw
    prediction: Prediction


class Expected:
    """Eager's answers for one profile, in the order in which they are asked for."""

    def __init__(self, profile: LoadedProfile, patches: int, slides: int, threads: int, device: str = "cpu") -> None:
        """`patches`: inputs of the parity gate; `slides`: whole phantom slides."""
        self.profile = profile
        self._patches, self._slides, self._threads, self._device = patches, slides, threads, device
        self._eager: Engine | None = None
        self._phantom: list[Answered] = []
        self._parity: Answered | None = None

    @property
    def eager(self) -> Engine:
        """The reference, loaded at its first use."""
        if self._eager is None:
            self._eager = find_backend("eager").load(self.profile, None, self._threads, self._device)
        return self._eager

    def slides(self, announce: Announce) -> list[Answered]:
        """Whole phantom slides, one after another of the phantom's classes."""
        if not self._phantom:
            painted = phantom_slides(self.profile, range(self._slides), announce)
            answers = predict_all(self.eager, np.concatenate(painted), announce, "phantom slides: eager fp32")
            ends = np.cumsum([len(inputs) for inputs in painted])
            for inputs, end in zip(painted, ends, strict=True):
                rows = slice(int(end) - len(inputs), int(end))
                self._phantom.append(Answered(inputs, {name: v[rows] for name, v in answers.items()}))
        return self._phantom

    def parity(self, announce: Announce) -> Answered:
        """The inputs of the parity gate."""
        if self._parity is None:
            slides = self.slides(announce)
            phantoms = Answered(
                np.concatenate([slide.inputs for slide in slides]),
                {name: np.concatenate([s.prediction[name] for s in slides]) for name in slides[0].prediction},
            )
            some = spread(len(phantoms.inputs), self._patches // 4)
            known = {name: values[some] for name, values in phantoms.prediction.items()}
            inputs = made_inputs(self.profile, phantoms.inputs[some], classes_of(known), self._patches - len(some))
            answers = predict_all(self.eager, inputs, announce, "parity: eager fp32")
            self._parity = Answered(
                np.concatenate([phantoms.inputs[some], inputs]),
                {name: np.concatenate([known[name], answers[name]]) for name in answers},
            )
        return self._parity


def classes_of(prediction: Prediction) -> NDArray[np.int64]:
    """Index of the most probable class of each row."""
    emitted_NK = prediction["logits"] if "logits" in prediction else prediction["probabilities"]
    labels_N: NDArray[np.int64] = emitted_NK.argmax(axis=1)
    return labels_N


def spread(available: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` indices, evenly over all that are available."""
    count = min(available, wanted)
    return np.arange(count, dtype=np.int64) * available // max(1, count)


def made_inputs(profile: LoadedProfile, phantoms: Raw, labels_N: NDArray[np.int64], count: int) -> Raw:
    """`count` inputs beside the phantom patches, the same each time: golden inputs, mirrored and dimmed, then blends.

    Blends are half of all inputs, phantoms included: two golden or phantom inputs of different predicted classes,
    where there are any.
    """
    rng = np.random.default_rng(2845)
    golden = profile.golden_inputs
    pool = np.concatenate([golden, phantoms])
    pool_labels = np.concatenate([profile.golden_outputs.argmax(axis=1), labels_N])
    blends = (count + len(phantoms) + 1) // 2
    inputs = np.empty((count, *golden.shape[1:]), np.uint16)
    for i in range(count - blends):
        axis, gain = -1 if rng.random() < 0.5 else -2, rng.uniform(0.7, 1.0)
        inputs[i] = np.rint(gain * np.flip(golden[i % len(golden)].astype(np.float64), axis=axis))
    for i in range(count - blends, count):
        first = int(rng.integers(len(pool)))
        others = np.flatnonzero(pool_labels != pool_labels[first])
        second = int(rng.choice(others)) if len(others) else int(rng.integers(len(pool)))
        weight = rng.uniform(0.3, 0.7)
        inputs[i] = np.rint(weight * pool[first].astype(np.float64) + (1 - weight) * pool[second])
    return inputs


def phantom_slides(profile: LoadedProfile, numbers: range, announce: Announce) -> list[Raw]:
    """Inputs of these phantom slides; raises EngineError where the profile's geometry has none."""
    paint = MODALITIES[profile.spec.modality].phantom_slide
    slides = []
    for done, number in enumerate(numbers):
        announce("phantom slides: paint", done, len(numbers))
        try:
            slides.append(paint(profile.spec, number))
        except ValueError as error:
            raise EngineError(f"no phantom slide for this profile: {error}") from error
    return slides


def calibration_inputs(profile: LoadedProfile, announce: Announce) -> Raw:
    """Raw inputs of the profile's domain, as far as it brings them itself: to measure ranges on, never to judge with.

    Phantom patches (of slides that no gate looks at) where the profile says that it is for the synthetic phantom,
    else its golden inputs.
    """
    if "synthetic phantom" not in profile.spec.intended_use.lower():
        return profile.golden_inputs
    slides = phantom_slides(profile, range(_CALIBRATION_SLIDE, _CALIBRATION_SLIDE + 8), announce)
    inputs = np.concatenate(slides)
    return inputs[spread(len(inputs), CALIBRATION_PATCHES)]


def predict_all(engine: Engine, inputs: Raw, announce: Announce, step: str) -> Prediction:
    """`predict_padded`, telling how far it is."""
    rows = -(-_CHUNK // engine.batch_size) * engine.batch_size
    parts = []
    for start in range(0, len(inputs), rows):
        announce(step, start, len(inputs))
        parts.append(predict_padded(engine, inputs[start : start + rows]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
