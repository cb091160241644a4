"""What the gates of a build measured, and whether a figure keeps its limit. Records and comparisons only."""

from __future__ import annotations

from pydantic import Field

from agent.engine_limits import BOUNDS, Bound, PrecisionLimits
from models.profile import Frozen


class GateFigure(Frozen):
    """One figure of one gate, and the limit that it must keep."""

    gate: str
    measure: str
    """What was measured, in words."""
    figure: float | None
    """None: this backend cannot tell."""
    bound: Bound
    limit: float
    setting: str | None = None
    """Name of the limit in `engine.limits.<precision>`; None for one that is nobody's choice."""

    @classmethod
    def limited(
        cls, gate: str, measure: str, figure: float | None, setting: str, limits: PrecisionLimits
    ) -> GateFigure:
        """A figure whose limit is a setting."""
        limit: float = getattr(limits, setting)
        return cls(gate=gate, measure=measure, figure=figure, bound=BOUNDS[setting], limit=limit, setting=setting)

    @property
    def passed(self) -> bool:
        """Whether the figure keeps its limit; what could not be counted does, what is no number does not."""
        if self.figure is None:
            return True
        return self.figure <= self.limit if self.bound == "at most" else self.figure >= self.limit

    def under(self, limits: PrecisionLimits) -> GateFigure:
        """The same figure beside the limit of other settings."""
        if self.setting not in BOUNDS:
            return self
        return self.model_copy(update={"limit": getattr(limits, self.setting), "bound": BOUNDS[self.setting]})

    def words(self) -> str:
        """The figure beside its limit."""
        return f"{self.measure}: {self.shown()}, allowed is {self.bound} {self.limit:.6g}"

    def shown(self) -> str:
        """The figure to three digits; shares that are nearly 1 keep the digits that tell them from 1."""
        if self.figure is None:
            return "not counted"
        return f"{self.figure:.5f}".rstrip("0") if 0.99 <= self.figure < 1 else f"{self.figure:.3g}"


class Figures(Frozen):
    """What the gates measured at build time; differences are of probabilities, against eager fp32."""

    gates: tuple[GateFigure, ...]
    patches: int = Field(ge=1)
    """Inputs of the parity gate; half of them blend two classes."""
    ties: int
    """Inputs whose class differs although both engines hold the two classes within the limit of |Δp|."""
    slides: int = Field(ge=1)
    slide_patches: int = Field(ge=1)
    """Patches of all phantom slides."""
    census: dict[str, int]
    """Arithmetic layers by the precision that they run in; empty where the backend cannot tell."""
    patches_per_s: float
    eager_patches_per_s: float
    threads: int
    """Threads of both rates."""
