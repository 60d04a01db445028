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
        """The loss is sigmoid with several labels per image; the last epoch is kept across domains. There the source's
        validation set does not show which epoch suits the target.
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
        if self.domain_adaptation and (conflicts := _list_domain_conflicts(self, self.domain_adaptation)):
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


def _list_domain_conflicts(recipe: Recipe, adaptation: DomainAdaptationConfig) -> list[str]:
    """Settings that conflict with adaptation across domains."""
    options, head, method = recipe.finetuning, recipe.head.kind, adaptation.method
    tuned, balanced = options is not None, options is not None and options.balanced_sampling
    frozen, methods = tuned and method not in FINE_TUNING_METHODS, ", ".join(FINE_TUNING_METHODS)
    mixed = recipe.augmentation.mixup or recipe.augmentation.cutmix
    kinds, maps = {task.kind for task in (recipe.data.tasks or {}).values()}, head in FEATURE_MAP_HEADS
    network, own = method in NETWORK_METHODS and not maps, f"{method} trains a network of its own: remove"
    unvalidated = adaptation.correction == "confusion" and recipe.data.validation == 0
    rules: list[tuple[object, str]] = [
        (frozen, f"{method} aligns frozen features: for finetuning, take one of {methods}"),
        (tuned and adaptation.correction != "none", "a correction needs frozen features: remove it or finetuning"),
        (tuned and mixed, "images of both domains would be mixed: remove augmentation.mixup and cutmix"),
        (balanced, "domains are sampled equally often, so finetuning.balanced_sampling cannot balance classes"),
        (recipe.data.separator or "multilabel" in kinds, "images with several labels are not supported"),
        ("regression" in kinds, "regression is not supported: remove it from data.tasks"),
        (maps, f"vectors are aligned, but head.kind {head} takes maps"),
        (network and head != "linear", f"{own} head.kind {head}"),
        (network and getattr(recipe.head, "C", "auto") != "auto", f"{own} head.C"),
        (network and recipe.features.selection, f"{own} features.selection"),
        (unvalidated, "correction confusion needs validation images: set data.validation"),
    ]
    return [sentence for holds, sentence in rules if holds]


def _list_label_conflicts(recipe: Recipe) -> list[str]:
    options, head, tasks, separator = recipe.finetuning, recipe.head, recipe.data.tasks or {}, recipe.data.separator
    kinds = {task.kind for task in tasks.values()} or {"multilabel" if separator else "classes"}
    labels, single = "multilabel" in kinds, head.kind in SINGLE_LABEL_HEADS
    unweighted = labels and not single and head.kind != "linear" and head.class_weight != "none"
    maps = "regression" in kinds and head.kind in FEATURE_MAP_HEADS
    rules: list[tuple[object, str]] = [
        (maps, f"head.kind {head.kind} takes maps, and regression takes vectors"),
        (labels and single, f"head.kind {head.kind} does not support several labels"),
        (unweighted, f"a {head.kind} head {'for labels ' if tasks else ''}has no class_weight"),
    ]
    if options is not None:
        loss, weighted, drawn = options.loss.kind, options.class_weight != "none", options.balanced_sampling
        several, one_class = len(tasks) > 1, not tasks and not separator
        both = (one_class or len(tasks) == 1) and weighted and drawn
        sigmoid = "finetuning.loss is that of classes, softmax or focal; labels always have sigmoid"
        rules += [
            (one_class and loss == "sigmoid", "finetuning.loss is softmax or focal, not sigmoid"),
            (separator and loss != "sigmoid", f"finetuning.loss is sigmoid, not {loss}"),
            (separator and weighted, "there is no finetuning.class_weight"),
            (separator and drawn, "finetuning.balanced_sampling cannot balance classes"),
            (tasks and loss == "sigmoid", sigmoid),
            (several and weighted, "there is no finetuning.class_weight: an image has a class in each task"),
            (several and drawn, "finetuning.balanced_sampling cannot balance the classes of every task"),
            (both, "finetuning.class_weight and balanced_sampling would balance the classes twice: remove one of them"),
        ]
        unknown = sorted(set(options.task_weights or {}) - set(tasks)) if tasks else []
        rules += [(True, f"finetuning.task_weights has {name!r}, which is no task") for name in unknown]
    return [sentence for holds, sentence in rules if holds]
