"""Sections `data`, `augmentation` and `domain_adaptation`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import ConfigSection, Fraction, Names, RegularizationStrength, auto_as_none

NETWORK_METHODS = ("dann", "cdan", "mmd", "deep_coral", "mcc")
"""Methods that train a network in the place of the recipe's head."""

FINE_TUNING_METHODS = ("none", *NETWORK_METHODS)
"""Methods that fine-tuning supports; all others align frozen features."""


def _check_policy(value: Any) -> Any:
    steps = isinstance(value, (list, tuple)) and value and all(isinstance(step, dict) for step in value)
    if not (steps or isinstance(value, str)):
        raise ValueError(f"take the name of a policy or a list of operations. Received: {value!r}.")
    return value if isinstance(value, str) else tuple(value)


Cell = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value))]
"""A label as it stands in a table, also where YAML takes it for a number: {1.0: 1}."""
_Level = Annotated[int, Field(ge=0, le=65_535)]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")]


class TaskConfig(ConfigSection):
    """A task's column, by default that of its name, and kind: `multilabel` has several labels in a cell."""

    column: str | None = None
    kind: Literal["classes", "multilabel", "regression"] = "classes"
    separator: str = Field(default="|", min_length=1)


class DataConfig(ConfigSection):
    """The images, their label columns, and their division into splits.

    `tasks`, by name, replaces `label` where there are several; the first is the main one. With a separator, a cell of
    the label column has any number of labels: "dog|night"; an empty one has none, and "?" is unknown. Alpha is
    composited over the background, or dropped; an image of more pixels in memory than `max_pixels` is left out. Of
    channels of 16 bits the values of `depth_range` are scaled to 8 bits; auto takes the range of the training images.

    Paths of a table stand in its column `path` and start from the folder `root`. `links: refuse` leaves out what lies
    outside the folder; `folders: classes` takes none for splits. `labels` renames classes, to none by "", and those of
    fewer than `min_images_per_class` images are left out.
    """

    source: str = Field(min_length=1)
    root: str | None = None
    path: str | None = None
    links: Literal["follow", "refuse"] = "follow"
    folders: Literal["auto", "classes"] = "auto"
    labels: dict[Cell, Cell] | None = None
    min_images_per_class: int | None = Field(default=None, ge=1)
    label: str | None = None
    separator: str | None = Field(default=None, min_length=1)
    tasks: dict[TaskName, TaskConfig] | None = Field(default=None, min_length=1)
    weight: str | None = None
    group: str | None = None
    domain: str | None = None
    stratify: Names | None = None
    validation: Fraction = 0.0
    test: Fraction = 0.2
    split_tolerance: Fraction = 0.25
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    background: Literal["white", "black", "drop"] = "white"
    max_pixels: int = Field(default=64_000_000, ge=1)
    depth_range: Annotated[tuple[_Level, _Level] | None, BeforeValidator(auto_as_none)] = None
    limit: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check_tasks(self) -> DataConfig:
        if self.tasks and (self.label or self.separator):
            raise ValueError("tasks replaces label and separator: keep one of them.")
        if self.tasks and next(iter(self.tasks.values())).kind == "regression":
            raise ValueError(
                "the first of tasks is the main one and cannot be a regression: put classes or labels first."
            )
        return self

    @model_validator(mode="after")
    def _check_depth_range(self) -> DataConfig:
        if self.depth_range and self.depth_range[0] >= self.depth_range[1]:
            low, high = self.depth_range
            raise ValueError(f"depth_range is auto, or a lower and a higher value. Received: {low} and {high}.")
        return self

    @model_validator(mode="after")
    def _check_splits(self) -> DataConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation:g} + test {self.test:g} leave no training images.")
        if self.test == 0:
            raise ValueError("test 0 leaves no images to evaluate on.")
        return self


class AugmentationConfig(ConfigSection):
    """Augmentation of the images for fine-tuning, and the number of views of each.

    Views that are not cached are made in the pipeline or in the training graph; auto takes the faster. With `test_time`
    the finished network averages over all orientations of the policy.
    """

    policy: Annotated[Any, AfterValidator(_check_policy)] = "none"
    views: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, BeforeValidator(auto_as_none)] = None
    mixup: float = Field(default=0.0, ge=0, le=10)
    cutmix: float = Field(default=0.0, ge=0, le=10)
    test_time: bool = False
    device: Literal["auto", "pipeline", "graph"] = "auto"


class DomainAdaptationConfig(ConfigSection):
    """The values of `data.domain` that are the labelled source and the target, and the method of adaptation.

    Labels of target images are never learned from: those of the test split are evaluated on, all others are ignored.
    """

    source: Names = Field(min_length=1)
    target: Names = Field(min_length=1)
    method: Literal[
        "none", "coral", "transport", "subspace", "joint_pca", "tca", "jda", "dann", "cdan", "mmd", "deep_coral", "mcc"
    ] = "coral"
    components: int = Field(default=30, ge=1, le=4096)
    weight: RegularizationStrength | None = None
    correction: Literal["none", "confusion", "likelihood"] = "none"
