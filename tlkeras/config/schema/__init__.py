"""The sections of a recipe, frozen pydantic models, and the rules between sections."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tlkeras.config.schema.data import (
    FINE_TUNING_METHODS,
    NETWORK_METHODS,
    AugmentationConfig,
    DataConfig,
    DomainAdaptationConfig,
)
from tlkeras.config.schema.features import NO_BACKBONE, BackboneConfig, FeaturesConfig
from tlkeras.config.schema.fields import ConfigSection
from tlkeras.config.schema.finetuning import FineTuningConfig, Stage
from tlkeras.config.schema.heads import FEATURE_MAP_HEADS, SINGLE_LABEL_HEADS, HeadConfig, LinearConfig, TrainingConfig
from tlkeras.config.schema.tuning import TuningConfig

__all__ = ["ConfigSection", "EvaluationConfig", "FineTuningConfig", "Recipe", "Stage"]


class EvaluationConfig(ConfigSection):
    """The bootstrap of confidence intervals."""

    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**32)


class CacheConfig(ConfigSection):
    """The folder of cached activations, and its maximum size."""

    root: str | None = None
    budget_gb: float = Field(default=50.0, gt=0, le=1e6, allow_inf_nan=False)


class Recipe(ConfigSection):
    """The complete description of one run."""

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
    def _choose_defaults(cls, values: Any) -> Any:
        """The loss is sigmoid with several labels per image; the last epoch is kept across domains.

        There the source's validation set does not show which epoch suits the target.
        """
        options = values.get("finetuning") if isinstance(values, dict) else None
        if not isinstance(options, dict):
            return values
        if values.get("domain_adaptation"):
            options = {"keep": "last", **options}
        data, loss = values.get("data"), options.get("loss", {})
        if isinstance(data, dict) and data.get("separator") and isinstance(loss, dict):
            options = {**options, "loss": {"kind": "sigmoid", **loss}}
        return {**values, "finetuning": options}

    @model_validator(mode="after")
    def _check_domains(self) -> Recipe:
        if self.domain_adaptation is None:
            return self
        conflicts, method = _list_adaptation_conflicts(self, self.domain_adaptation), self.domain_adaptation.method
        kinds = {task.kind for task in (self.data.tasks or {}).values()}
        if self.data.separator or "multilabel" in kinds:
            conflicts.append("images with several labels are not supported")
        if "regression" in kinds:
            conflicts.append("regression is not supported: remove it from data.tasks")
        if self.head.kind in FEATURE_MAP_HEADS:
            conflicts.append(f"vectors are aligned, but head.kind {self.head.kind} takes maps")
        elif method in NETWORK_METHODS:
            ignored = [f"head.kind {self.head.kind}"] if self.head.kind != "linear" else []
            ignored += ["features.selection"] if self.features.selection else []
            conflicts += [f"{method} trains a network of its own: remove {name}" for name in ignored]
        if self.domain_adaptation.correction == "confusion" and self.data.validation == 0:
            conflicts.append("correction confusion needs validation images: set data.validation")
        if conflicts:
            raise ValueError(f"across domains, {'; '.join(conflicts)}.")
        return self

    @model_validator(mode="after")
    def _check_features(self) -> Recipe:
        if self.features.selection and self.head.kind in FEATURE_MAP_HEADS:
            raise ValueError(f"features.selection selects columns, but head.kind {self.head.kind} takes maps.")
        names = ("taps", "backbones", "handcrafted")
        fused = [f"features.{name}" for name in names if getattr(self.features, name)]
        if self.backbone.name == NO_BACKBONE and fused != ["features.handcrafted"]:
            raise ValueError("without a backbone all features are handcrafted: set features.handcrafted, no other.")
        if fused and self.finetuning is not None:
            raise ValueError(f"finetuning needs one backbone at one depth: remove {' and '.join(fused)}.")
        if fused and self.augmentation.test_time:
            raise ValueError(f"augmentation.test_time averages one map: remove {' and '.join(fused)}.")
        if fused and self.head.kind in FEATURE_MAP_HEADS:
            raise ValueError(f"head.kind {self.head.kind} takes one map: remove {' and '.join(fused)}.")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Recipe:
        conflicts = _list_label_conflicts(self)
        if conflicts and self.data.tasks:
            raise ValueError(f"with data.tasks, {'; '.join(conflicts)}.")
        if conflicts:
            labels = "several labels" if self.data.separator else "one class"
            raise ValueError(f"with {labels} per image (data.separator), {'; '.join(conflicts)}.")
        return self


def _list_adaptation_conflicts(recipe: Recipe, adaptation: DomainAdaptationConfig) -> list[str]:
    """Settings that conflict with fine-tuning across domains."""
    options, augmentation = recipe.finetuning, recipe.augmentation
    if options is None:
        return []
    conflicts = []
    if adaptation.method not in FINE_TUNING_METHODS:
        methods = ", ".join(FINE_TUNING_METHODS)
        conflicts.append(f"{adaptation.method} aligns frozen features: for finetuning, take one of {methods}")
    if adaptation.correction != "none":
        conflicts.append("a correction needs frozen features: remove it or finetuning")
    if augmentation.mixup or augmentation.cutmix:
        conflicts.append("images of both domains would be mixed: remove augmentation.mixup and cutmix")
    if options.balanced_sampling:
        conflicts.append("domains are sampled equally often, so finetuning.balanced_sampling cannot balance classes")
    return conflicts


def _list_label_conflicts(recipe: Recipe) -> list[str]:
    """Settings that conflict with the kind of labels."""
    options, head = recipe.finetuning, recipe.head
    if recipe.data.tasks:
        return _list_task_conflicts(recipe)
    if recipe.data.separator is None:
        sigmoid = options is not None and options.loss.kind == "sigmoid"
        conflicts = ["finetuning.loss is softmax or focal, not sigmoid"] if sigmoid else []
        return conflicts + _list_balance_conflicts(options)
    conflicts = []
    if head.kind in SINGLE_LABEL_HEADS:
        conflicts.append(f"head.kind {head.kind} does not support several labels")
    elif head.kind != "linear" and head.class_weight != "none":
        conflicts.append(f"a {head.kind} head has no class_weight")
    if options is not None:
        if options.loss.kind != "sigmoid":
            conflicts.append(f"finetuning.loss is sigmoid, not {options.loss.kind}")
        if options.class_weight != "none":
            conflicts.append("there is no finetuning.class_weight")
        if options.balanced_sampling:
            conflicts.append("finetuning.balanced_sampling cannot balance classes")
    return conflicts


def _list_balance_conflicts(options: FineTuningConfig | None) -> list[str]:
    """Weights and draws that balance the classes twice."""
    if options is None or options.class_weight == "none" or not options.balanced_sampling:
        return []
    return ["finetuning.class_weight and balanced_sampling would balance the classes twice: remove one of them"]


def _list_task_conflicts(recipe: Recipe) -> list[str]:
    """Settings that conflict with several tasks, or with the kinds of these."""
    options, head, tasks = recipe.finetuning, recipe.head, recipe.data.tasks or {}
    kinds, conflicts = {task.kind for task in tasks.values()}, []
    if "regression" in kinds and head.kind in FEATURE_MAP_HEADS:
        conflicts.append(f"head.kind {head.kind} takes maps, and regression takes vectors")
    if "multilabel" in kinds and head.kind in SINGLE_LABEL_HEADS:
        conflicts.append(f"head.kind {head.kind} does not support several labels")
    elif "multilabel" in kinds and head.kind != "linear" and head.class_weight != "none":
        conflicts.append(f"a {head.kind} head for labels has no class_weight")
    if options is not None:
        if options.loss.kind == "sigmoid":
            conflicts.append("finetuning.loss is that of classes, softmax or focal; labels always have sigmoid")
        if len(tasks) > 1 and options.class_weight != "none":
            conflicts.append("there is no finetuning.class_weight: an image has a class in each task")
        if len(tasks) > 1 and options.balanced_sampling:
            conflicts.append("finetuning.balanced_sampling cannot balance the classes of every task")
        if len(tasks) == 1:
            conflicts += _list_balance_conflicts(options)
        unknown = sorted(set(options.task_weights or {}) - set(tasks))
        conflicts += [f"finetuning.task_weights has {name!r}, which is no task" for name in unknown]
    return conflicts
