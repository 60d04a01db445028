"""Which images, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tlkeras.config.schema.fields import ConfigSection, Fraction, Names, auto_as_none


def _check_policy(value: Any) -> Any:
    steps = isinstance(value, (list, tuple)) and value and all(isinstance(step, dict) for step in value)
    if not (steps or isinstance(value, str)):
        raise ValueError(f"it must be the name of a policy or a list of operations. Received: {value!r}.")
    return value if isinstance(value, str) else tuple(value)


TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")]


class TaskConfig(ConfigSection):
    """Which column a task is learned from, its own name if not given; `multilabel` has several in a cell, `regression` a number."""

    column: str | None = None
    kind: Literal["classes", "multilabel", "regression"] = "classes"
    separator: str = Field(default="|", min_length=1)


class DataConfig(ConfigSection):
    """Which images, which column is the label, and who is held out.

    `tasks`, by name, takes the place of `label` where several things are learned; the first is the main one.

    With a separator, a cell of the label column holds any number of labels: "dog|night"; an empty one says that there
    is none of them, and "?" that nobody has looked.
    """

    source: str = Field(min_length=1)
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
    limit: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _name_labels_once(self) -> DataConfig:
        if self.tasks and (self.label or self.separator):
            raise ValueError("tasks takes the place of label and separator: give one or the other.")
        if self.tasks and next(iter(self.tasks.values())).kind == "regression":
            raise ValueError("the first of tasks is the main one and of classes or labels; numbers stand beside it.")
        return self

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> DataConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test must be below 1. Received: {self.validation:g} + {self.test:g}.")
        if self.test == 0:
            raise ValueError("test must be above 0, or there is nothing to measure on. Received: 0.")
        return self


class AugmentationConfig(ConfigSection):
    """What is done to the images that the backbone is fine-tuned on, and in how many views of each.

    Where nothing is kept of them, views are made in the pipeline or in the training graph; auto takes what is faster.
    With `test_time` the finished network itself looks at each image in all orientations of the policy.
    """

    policy: Annotated[Any, AfterValidator(_check_policy)] = "none"
    views: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, BeforeValidator(auto_as_none)] = None
    mixup: float = Field(default=0.0, ge=0, le=10)
    cutmix: float = Field(default=0.0, ge=0, le=10)
    test_time: bool = False
    device: Literal["auto", "pipeline", "graph"] = "auto"
