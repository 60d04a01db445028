"""Progress bars: drawn where a program shows them, hidden where the whole has a bar of its own."""

import contextlib

from tlkeras import progress


def test_bars_of_parts_are_hidden_and_come_back(capsys):
    progress.set_visible()
    try:
        with progress.progress_bar("Whole", 1) as advance, contextlib.suppress(ValueError), progress.hide():
            with progress.progress_bar("Part", 1) as inner:
                inner(1)
            advance(1)
            raise ValueError
        with progress.progress_bar("Next", 1) as advance:
            advance(1)
    finally:
        progress.set_visible(False)
    drawn = capsys.readouterr().err
    assert "Whole" in drawn and "Next" in drawn and "Part" not in drawn
