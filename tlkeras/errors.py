"""Errors in the user's words: what happened, what was received, the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

LISTED = 12
MOST_PROBLEMS = 20
MOST_ALIKE = 3


class TlkerasError(Exception):
    """An error that the user can act on; the command line prints it without a traceback.

    Args:
        rule: What happened, as a sentence.
        received: The value or file concerned.
        way_out: The remedy, as a sentence.
    """

    exit_code = 1

    def __init__(self, rule: str, received: object = None, way_out: str | None = None):
        self.rule, self.received, self.way_out = rule, received, way_out
        parts = [rule]
        if received is not None:
            parts.append(f"Received: {received}.")
        if way_out:
            parts.append(way_out)
        super().__init__(" ".join(parts))

    @classmethod
    def from_problems(cls, headline: str, problems: Sequence[str]) -> TlkerasError:
        """One error of several problems, each on a line below the headline."""
        return cls("\n".join([headline, *(f"  {problem}" for problem in problems)]))


class RecipeError(TlkerasError):
    """The recipe or an override cannot be used."""

    exit_code = 2


class DataError(TlkerasError, ValueError):
    """The images or their labels cannot be used; estimators raise it as scikit-learn's do a ValueError."""

    exit_code = 3


class BackboneError(TlkerasError):
    """A backbone or its weights are not available."""

    exit_code = 4


class RunError(TlkerasError):
    """A run directory is missing, locked, unfinished or in the way."""

    exit_code = 5


class ResourceError(TlkerasError):
    """The machine does not suffice: no disk space, no permission, damaged cache."""

    exit_code = 6


class ExportError(TlkerasError):
    """A model cannot be exported, or its export disagrees with the run."""

    exit_code = 7


class ServingError(TlkerasError):
    """A model server cannot be reached, or refuses a request.

    Args:
        status: The code of a server that answered: a number of HTTP, or a name of gRPC. None if none did.
    """

    exit_code = 9

    def __init__(
        self, rule: str, received: object = None, way_out: str | None = None, *, status: int | str | None = None
    ):
        self.status = status
        super().__init__(rule, received, way_out)


class MissingExtraError(TlkerasError):
    """An optional dependency is not installed."""

    exit_code = 8

    def __init__(self, what: str, extra: str):
        super().__init__(
            f"{what} needs an optional dependency that is not installed.",
            way_out=f'Install it with: pip install "tlkeras[{extra}]"',
        )


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence with the nearest valid name, or with some of them when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    if near:
        return f"Did you mean {near[0]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"Valid: {', '.join(names[:LISTED])}{more}."


def list_some(problems: Sequence[str]) -> list[str]:
    """The first problems, and the number of further ones."""
    shown = list(problems[:MOST_PROBLEMS])
    rest = len(problems) - MOST_PROBLEMS
    return [*shown, f"... and {rest:,} more"] if rest > 0 else shown


def fold_alike(problems: Sequence[str]) -> list[str]:
    """The problems; many that differ only in numbers and quoted names are one line with the first of them."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+([.,]\d+)*", "#", problem), []).append(problem)
    lines: list[str] = []
    for group in groups.values():
        examples = "; ".join(problem.rstrip(".") for problem in group[:MOST_ALIKE])
        lines += group if len(group) <= MOST_ALIKE else [f"{len(group):,} times, such as: {examples}."]
    return list_some(lines)
