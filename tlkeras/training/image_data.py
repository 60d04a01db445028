"""Labelled images from wherever they are, before anything is trained on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tlkeras
from tlkeras.config.frames import is_frame, save_frame
from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, InvalidImage, to_printable
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.sources.arrays import is_in_memory, save_images
from tlkeras.data.sources.folders import DEFAULT_RECIPE, list_overrides, load_recipe_or_source
from tlkeras.data.tables import ImageTable
from tlkeras.errors import RecipeError
from tlkeras.plotting.notebook import render_bars, render_card, render_images, render_table
from tlkeras.results import Table
from tlkeras.training import builders

if TYPE_CHECKING:  # for editors
    from tlkeras.diagnostics.data_quality import CheckResult
    from tlkeras.runs.directory import Run

_SHOWN, _SIDE = 12, 96
_MOST_READ = 10_000  # files whose headers are read for the card


class ImageData:
    """Images, their labels, and how a recipe reads them: `train`, `check`, `tune` and `recommend` take it.

    Attributes:
        overrides: Values of a recipe by dotted key, `data.source` among them.
        table: Paths and columns of all images.
    """

    def __init__(self, overrides: Mapping[str, Any]):
        self.overrides = dict(overrides)
        self.table: ImageTable = builders.read_source(self.make_recipe())

    def make_recipe(
        self, recipe: str | Path | Recipe = DEFAULT_RECIPE, overrides: Mapping[str, Any] | None = None
    ) -> Recipe:
        """A recipe for these images; RecipeError if it cannot be."""
        return load_recipe(recipe, {**self.overrides, **(overrides or {})})

    @property
    def source(self) -> str:
        """What the images were read from, as `data.source` has it."""
        return str(self.overrides["data.source"])

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of images of each class, or of each cell of the label column."""
        return builders.count_labels(self.make_recipe(), self.table)

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return list(self.counts)

    @cached_property
    def unusable(self) -> Table[InvalidImage]:
        """Files that cannot be used, with the reason: those that the source leaves out, and damaged ones."""
        limit = builders.max_pixels(self.make_recipe())
        with ThreadPoolExecutor() as pool:
            seen = pool.map(lambda path: read_header_and_digest(path, limit), self.table.paths)
            return Table([*self.table.rejected, *(one for one in seen if isinstance(one, InvalidImage))])

    def check(self, **options: Any) -> CheckResult:
        """What is wrong with files, labels and splits; options as of `tlkeras.check`."""
        return tlkeras.check(self, **options)

    def train(self, recipe: str | Path | Recipe = DEFAULT_RECIPE, **options: Any) -> Run:
        """A run of a recipe on these images; options as of `tlkeras.train`."""
        return tlkeras.train(self, recipe, **options)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"ImageData({self.source!r}, {len(self):,} images, {len(self.counts)} classes)"

    def _repr_html_(self) -> str:
        bad = self.unusable if len(self) <= _MOST_READ else self.table.rejected
        left_out = [(to_printable(one.path), one.reason) for one in bad]
        lost = f", {len(left_out):,} files cannot be used" if left_out else ""
        told = f"{len(self):,} images, {len(self.counts)} classes{lost}"
        parts = [render_bars(self.counts), render_images(self._draw_samples())]
        parts += [render_table(("cannot be used", "reason"), left_out)] if left_out else []
        return render_card(self.source, [f"{told}.", *self.table.notes], *parts)

    def _draw_samples(self) -> list[tuple[np.ndarray, str]]:
        """A few images, one of each class first, with their class."""
        cells = builders.list_cells(self.make_recipe(), self.table)
        seen: Counter[str] = Counter()
        ranks = []
        for row, cell in enumerate(cells):
            seen[cell] += 1
            ranks.append((seen[cell], row))
        shown = []
        for _, row in islice(sorted(ranks), _SHOWN):
            try:
                shown.append((decode_file(self.table.paths[row], _SIDE, "crop"), cells[row]))
            except ImageError:
                continue
        return shown


def load_data(
    source: Any, *, name: str | None = None, class_names: list[str] | None = None, **options: Any
) -> ImageData:
    """Labelled images, read from a folder, a table or memory.

    DataError if there are no images, or something stands where images should; RecipeError if an option is unknown.

    Args:
        source: A folder of class folders; a table (.csv, .parquet, .jsonl) or a frame of pandas or Arrow with paths and
            labels; "tfds:NAME" or a packaged set; a pair of images, uint8 [n, height, width, 3], and labels [n]; a
            finite `tf.data.Dataset` of such pairs; or a mapping from "train", "validation" and "test" to pairs.
        name: What runs are named after; by default the folder or file.
        class_names: Names of integer labels.
        options: Keys of a recipe's section `data`, such as `label="species"`, `group="patient"`, `test=0.3`.
    """
    overrides: dict[str, Any]
    if isinstance(source, ImageData):
        overrides = {**source.overrides}
    elif is_in_memory(source):
        path, several = save_images(source, class_names)
        overrides = {"name": "arrays", "data.source": path, **({"data.separator": "|"} if several else {})}
    elif isinstance(source, str | os.PathLike):
        overrides = {**list_overrides(os.fspath(source))}
    elif is_frame(source):
        overrides = {"name": "frame", "data.source": save_frame(source), "data.root": os.getcwd()}
    else:
        raise _refuse(type(source).__name__)
    named = {"name": name} if name else {}
    return ImageData({**overrides, **named, **{f"data.{key}": value for key, value in options.items()}})


def resolve(data: Any, recipe: str | Path | Recipe | None, overrides: Mapping[str, Any] | None) -> Recipe:
    """The recipe that is meant by images and a recipe for them, by a recipe alone, or by images alone."""
    if isinstance(recipe, Mapping):
        raise RecipeError("The second argument is a recipe.", f"{recipe!r:.60}", "Values by key are named: set={...}.")
    if recipe is not None:
        return load_data(data).make_recipe(recipe, overrides)
    if isinstance(data, str | Path | Recipe):
        return load_recipe_or_source(data, overrides)[0]
    return load_data(data).make_recipe(overrides=overrides)


def _refuse(kind: str) -> RecipeError:
    kinds = "a folder, a table, a frame, a pair (images, labels), a tf.data.Dataset, or what load_data returns"
    return RecipeError(f"Images are {kinds}.", kind)
