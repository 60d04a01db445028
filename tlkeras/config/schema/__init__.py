"""The sections of a recipe: frozen objects that refuse unknown keys and values of another type."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tlkeras.config.schema.adaptation import FINE_TUNING_METHODS, DomainAdaptationConfig
from tlkeras.config.schema.data import AugmentationConfig, DataConfig
from tlkeras.config.schema.evaluation import CacheConfig, EvaluationConfig
from tlkeras.config.schema.features import NO_BACKBONE, BackboneConfig, FeaturesConfig
from tlkeras.config.schema.fields import ConfigSection
from tlkeras.config.schema.finetuning import FineTuningConfig, StageConfig
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS, SINGLE_LABEL_HEADS, HeadConfig, LinearConfig, TrainingConfig
from tlkeras.config.schema.tuning import TuningConfig

__all__ = ["ConfigSection", "FineTuningConfig", "Recipe", "StageConfig"]


class Recipe(ConfigSection):
    """One run, completely described."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")
    data: DataConfig
    backbone: BackboneConfig
    features: FeaturesConfig = FeaturesConfig()
    head: HeadConfig = LinearConfig()
    domain_adaptation: DomainAdaptationConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    finetuning: FineTuningConfig | None = None
    tuning: TuningConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="before")
    @classmethod
    def _ask_for_each_label(cls, values: Any) -> Any:
        """Where an image can have several labels, the loss is that of each, unless another is asked for."""
        data, options = (values.get(name) for name in ("data", "finetuning")) if isinstance(values, dict) else (0, 0)
        if not (isinstance(data, dict) and data.get("separator") and isinstance(options, dict)):
            return values
        loss = options.get("loss", {})
        asked = {"kind": "sigmoid", **loss} if isinstance(loss, dict) else loss
        return {**values, "finetuning": {**options, "loss": asked}}

    @model_validator(mode="before")
    @classmethod
    def _keep_what_was_adapted(cls, values: Any) -> Any:
        """Across domains the source's validation set does not say which epoch was best: the last one is kept."""
        if not (isinstance(values, dict) and values.get("domains") and isinstance(values.get("finetuning"), dict)):
            return values
        return {**values, "finetuning": {"keep": "last", **values["finetuning"]}}

    @model_validator(mode="after")
    def _suit_the_domains(self) -> Recipe:
        if self.domain_adaptation is None:
            return self
        conflicts = []
        if self.finetuning is not None:
            conflicts += _list_adaptation_conflicts(self, self.domain_adaptation)
        if self.data.separator or any(task.kind == "multilabel" for task in (self.data.tasks or {}).values()):
            conflicts.append("an image is of one class, not of several labels")
        if any(task.kind == "regression" for task in (self.data.tasks or {}).values()):
            conflicts.append("numbers are not adapted: leave them out of data.tasks")
        if self.head.kind in FEATURE_MAP_HEADS:
            conflicts.append(f"vectors are aligned, and head.kind {self.head.kind} eats maps")
        if self.domain_adaptation.correction == "confusion" and self.data.validation == 0:
            conflicts.append("confusion is measured on a validation set: set data.validation")
        if conflicts:
            raise ValueError(f"across domains, {'; '.join(conflicts)}.")
        return self

    @model_validator(mode="after")
    def _suit_the_features(self) -> Recipe:
        if self.features.selection and self.head.kind in FEATURE_MAP_HEADS:
            raise ValueError(f"head.kind {self.head.kind} eats a map, of which no columns are selected.")
        names = ("taps", "backbones", "handcrafted")
        fused = [f"features.{name}" for name in names if getattr(self.features, name)]
        if self.backbone.name == NO_BACKBONE and fused != ["features.handcrafted"]:
            raise ValueError("without a backbone, features are handcrafted alone: set features.handcrafted, no other.")
        if fused and self.finetuning is not None:
            raise ValueError(f"finetuning changes one backbone, read at one depth: leave {' and '.join(fused)} out.")
        if fused and self.augmentation.test_time:
            raise ValueError(f"augmentation.test_time averages one map: leave {' and '.join(fused)} out.")
        if fused and self.head.kind in FEATURE_MAP_HEADS:
            raise ValueError(f"head.kind {self.head.kind} eats one map: leave {' and '.join(fused)} out.")
        return self

    @model_validator(mode="after")
    def _suit_the_labels(self) -> Recipe:
        conflicts = _list_label_conflicts(self)
        if conflicts and self.data.tasks:
            raise ValueError(f"with data.tasks, {'; '.join(conflicts)}.")
        if conflicts:
            several = "can have several labels" if self.data.separator else "is of one class"
            raise ValueError(f"where an image {several} (data.separator), {'; '.join(conflicts)}.")
        return self


def _list_adaptation_conflicts(recipe: Recipe, adaptation: DomainAdaptationConfig) -> list[str]:
    """Say what makes no sense where a network is fine-tuned across domains."""
    options, augmentation = recipe.finetuning, recipe.augmentation
    conflicts = []
    if adaptation.method not in FINE_TUNING_METHODS:
        conflicts.append(
            f"{adaptation.method} aligns frozen features: for finetuning, take one of {', '.join(FINE_TUNING_METHODS)}"
        )
    if adaptation.correction != "none":
        conflicts.append("a correction is of answers from frozen features: leave it or finetuning out")
    if augmentation.mixup or augmentation.cutmix:
        conflicts.append("images of both domains would be mixed: leave augmentation.mixup and cutmix out")
    if options is not None and options.balanced_sampling:
        conflicts.append("domains are drawn equally often, finetuning.balanced_sampling cannot draw classes so")
    return conflicts


def _list_label_conflicts(recipe: Recipe) -> list[str]:
    """Say what makes no sense for the kind of labels that the recipe has."""
    options, head = recipe.finetuning, recipe.head
    if recipe.data.tasks:
        return _list_task_conflicts(recipe)
    if recipe.data.separator is None:
        sigmoid = options is not None and options.loss.kind == "sigmoid"
        return ["finetuning.loss is softmax or focal, not sigmoid"] if sigmoid else []
    conflicts = []
    if head.kind in SINGLE_LABEL_HEADS:
        conflicts.append(f"head.kind {head.kind} tells classes apart and cannot answer for each label")
    elif head.kind != "linear" and head.class_weight != "none":
        conflicts.append(f"a {head.kind} head has no class_weight")
    if options is not None:
        if options.loss.kind != "sigmoid":
            conflicts.append(f"finetuning.loss is sigmoid, not {options.loss.kind}")
        if options.class_weight != "none":
            conflicts.append("there is no finetuning.class_weight")
        if options.balanced_sampling:
            conflicts.append("finetuning.balanced_sampling cannot draw classes equally often")
    return conflicts


def _list_task_conflicts(recipe: Recipe) -> list[str]:
    """Say what makes no sense, or is not defined, for tasks beside each other."""
    options, conflicts = recipe.finetuning, []
    labels = any(task.kind == "multilabel" for task in (recipe.data.tasks or {}).values())
    numbers = any(task.kind == "regression" for task in (recipe.data.tasks or {}).values())
    if numbers and recipe.head.kind in FEATURE_MAP_HEADS:
        conflicts.append(f"head.kind {recipe.head.kind} eats maps, and numbers are regressed on vectors")
    if labels and recipe.head.kind in SINGLE_LABEL_HEADS:
        conflicts.append(f"head.kind {recipe.head.kind} tells classes apart and cannot answer for each label")
    elif labels and recipe.head.kind != "linear" and recipe.head.class_weight != "none":
        conflicts.append(f"a {recipe.head.kind} head for labels has no class_weight")
    if options is not None:
        if options.loss.kind == "sigmoid":
            conflicts.append("finetuning.loss is that of classes, softmax or focal; labels have sigmoid anyway")
        if len(recipe.data.tasks or {}) > 1 and options.class_weight != "none":
            conflicts.append("there is no finetuning.class_weight: an image has a class in each task")
        if len(recipe.data.tasks or {}) > 1 and options.balanced_sampling:
            conflicts.append("finetuning.balanced_sampling cannot draw the classes of every task equally often")
        unknown = sorted(set(options.task_weights or {}) - set(recipe.data.tasks or {}))
        conflicts += [f"finetuning.task_weights has {name!r}, which is no task" for name in unknown]
    return conflicts
