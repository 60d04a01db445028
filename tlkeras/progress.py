"""Progress bars with rate and time left, hidden unless a program makes them visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_visible = False


def set_visible(visible: bool = True) -> None:
    """Draw the bars of `progress_bar` on standard error from now on, as the command line does."""
    global _visible
    _visible = visible


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
    if not _visible or total == 0:
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
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, when="left")
        yield lambda n: bar.advance(task, n)
        bar.update(task, when="")
