"""What people see while an engine is built: one line a step, with a bar where it is known how much there is to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from agent.engine.expected import Announce


class _Bar(ProgressColumn):
    """A bar for steps that say how much there is to do, nothing for the others."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=24)

    def render(self, task: Task) -> RenderableType:
        """See ProgressColumn."""
        return self._bar.render(task) if task.fields["counted"] else Text("")


class _Steps:
    """`Announce` on a rich Progress: a new name ends the step before."""

    def __init__(self, title: str, progress: Progress) -> None:
        self._title, self._progress = title, progress
        self._step: str | None = None
        self._task: TaskID | None = None

    def __call__(self, step: str, done: int = 0, of: int = 0) -> None:
        if step != self._step or self._task is None:
            self.finish()
            self._step = step
            self._task = self._progress.add_task(f"{self._title}: {step}", total=of or 1, counted=bool(of), count="")
        if of:
            self._progress.update(self._task, completed=done, count=f"{done} of {of}")

    def finish(self) -> None:
        """Mark the running step as done."""
        if self._task is not None:
            total = next(task.total for task in self._progress.tasks if task.id == self._task)
            self._progress.update(self._task, completed=total or 1, count="")


@contextmanager
def progress(title: str, *, quiet: bool) -> Iterator[Announce]:
    """Gives a function that names the step now running; each finished step stays on screen with its time.

    A step that fails stays unfinished.
    """
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        _Bar(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as shown:
        steps = _Steps(title, shown)
        yield steps
        steps.finish()
