"""Progress bars with rate and time left, where somebody watches: in a terminal, a shell of Python or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_visible: bool | None = None


def set_visible(visible: bool | None = True) -> None:
    """Draw the bars of `progress_bar` on standard error from now on, or do not; None: where somebody watches."""
    global _visible
    _visible = visible


def is_visible() -> bool:
    """Whether bars are drawn."""
    return _is_watched() if _visible is None else _visible


def _is_watched() -> bool:
    return _is_notebook() or hasattr(sys, "ps1") or sys.stderr.isatty()


def _is_notebook() -> bool:
    return "ipykernel" in sys.modules


@contextmanager
def hide() -> Iterator[None]:
    """Draw no bars within the context: for the parts of work that has a bar of its own."""
    before = _visible
    set_visible(False)
    try:
        yield
    finally:
        set_visible(before)


@contextmanager
def progress_bar(description: str, total: int, unit: str = "steps") -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`, which moves a bar of `total` units by `n`."""
    if total == 0 or not is_visible():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", no_wrap=True)

    done = (BarColumn(bar_width=16), MofNCompleteColumn(), Rate(), TimeRemainingColumn(elapsed_when_finished=True))
    columns = (TextColumn("{task.description:<20}"), *done, TextColumn("{task.fields[when]}"))
    # In a notebook as text: rich's own way needs ipywidgets.
    console = Console(stderr=True, force_jupyter=False, force_terminal=_is_notebook() or None)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, when="left")
        yield lambda n: bar.advance(task, n)
        bar.update(task, when="")
