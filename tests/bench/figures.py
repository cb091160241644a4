"""What a benchmark has to say: spreads of measured values, promises kept or not, tables for people, JSON for scripts.

Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one figure."""

    median: float
    low: float
    high: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; p99 is the smallest value that 99 % do not exceed."""
        return cls(
            median=float(np.median(values)),
            low=min(values),
            high=max(values),
            p99=float(np.percentile(values, 99, method="inverted_cdf")),
            count=len(values),
        )

    def text(self, digits: int = 2) -> str:
        """Median and range, e.g. `3.10 (2.95-3.40)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


@dataclass(frozen=True)
class Promise:
    """Something that the project owes its users, and what this run found."""

    text: str
    measured: str
    kept: bool


@dataclass
class Outcome:
    """What one benchmark found."""

    name: str
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Ready for JSON."""
    promises: list[Promise] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The part of the JSON file that this benchmark fills."""
        return {**self.figures, "promises": [asdict(promise) for promise in self.promises]}

    def show(self, console: Console) -> None:
        """Print the tables, then a line per promise."""
        for table in self.tables:
            console.print(table)
        for promise in self.promises:
            verdict = "[bold green]PASS[/]" if promise.kept else "[bold red]FAIL[/]"
            console.print(f"{verdict}  {promise.text}: {promise.measured}", highlight=False)
        console.print()


def figure_table(title: str, rows: Sequence[tuple[str, str]], caption: str = "") -> Table:
    """A table of named figures."""
    table = Table("", "measured", title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
