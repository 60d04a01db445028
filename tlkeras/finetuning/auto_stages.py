"""Stages from the size of the data, with the reason for each value.

After BiT's HyperRule (Kolesnikov et al., 2020): no search, the number of images alone decides how long and how deep
to train. The head is fitted before the backbone moves, as in LP-FT (Kumar et al., 2022). Rates are those of AdamW;
they suit Muon, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlkeras.errors import RecipeError
from tlkeras.finetuning.schedule import Keep, Stage

FEW_IMAGES = 500
FEW_PER_CLASS = 10
MANY_IMAGES = 20_000  # where BiT's rule goes from 500 steps to 10,000
BATCH_NORM_IMAGES = 5_000
BATCH_NORM_BATCH = 32

_HEAD_STEPS = 500
_STEPS = 750  # half of EfficientNet-Lite0 settles in so many on 1,600 images
_MANY_STEPS = 5_000  # half of BiT's, whose first stage is not counted
_LEAST_EPOCHS = 3
_MOST_EPOCHS = 50
_MOST_EPOCHS_UNSEEN = 20  # those of LP-FT, which are not watched either


class Decision(NamedTuple):
    """A value and why it was taken; the key is STAGE.FIELD, or a word on the whole schedule."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """Stages and `keep` for a Schedule, and every choice among them with its reason."""

    stages: tuple[Stage, ...]
    keep: Keep
    choices: tuple[Decision, ...]


@dataclass(frozen=True)
class _StageInputs:
    images: int
    classes: int
    blocks: int
    batch_size: int
    validated: bool


def choose_stages(
    *, images: int, classes: int, blocks: int, batch_size: int, validated: bool, probed: bool
) -> Suggestion:
    """Return stages that suit the data, and the reason for each value.

    Args:
        images: Images to train on; those of the validation set not counted.
        classes: Classes among them.
        blocks: Blocks of the backbone.
        batch_size: Images per step.
        validated: Whether a validation set measures each epoch.
        probed: Whether the head starts from the linear probe of the frozen features.

    Raises:
        RecipeError: A count is below 1.
    """
    for key, count in (("images", images), ("classes", classes), ("blocks", blocks), ("batch_size", batch_size)):
        if count < 1:
            raise RecipeError(f"To suggest stages, {key} must be at least 1.", count)
    setting = _StageInputs(images, classes, blocks, batch_size, validated)
    drafts = {} if probed else {"head": _draft_head(setting)}
    drafts |= _draft_backbone(setting)
    stages = tuple(Stage(name, **{choice.key: choice.value for choice in draft}) for name, draft in drafts.items())
    choices = [choice._replace(key=f"{name}.{choice.key}") for name, draft in drafts.items() for choice in draft]
    if probed:
        choices.insert(
            0, Decision("head", "probe", "it starts from the linear probe, so no stage has to fit it (LP-FT)")
        )
    keep = _choose_keep(validated)
    return Suggestion(stages, keep.value, (*choices, keep))


def _draft_head(setting: _StageInputs) -> list[Decision]:
    return [
        Decision("unfreeze", 0, "a random head would spoil the backbone, so it is fitted first (LP-FT)"),
        Decision("learning_rate", 1e-3, "the usual rate: nothing pretrained moves"),
        _choose_epochs(setting, _HEAD_STEPS),
    ]


def _draft_backbone(setting: _StageInputs) -> dict[str, list[Decision]]:
    """Return the stages in which blocks train: the top ones, and for many images then all."""
    images, blocks = f"{setting.images:,} images", setting.blocks
    half = max(1, blocks // 2)
    if setting.images >= MANY_IMAGES:
        top = Decision("unfreeze", half, f"half of {blocks} blocks first, all of them when these have settled")
        last = Decision("unfreeze", "all", f"{images} are enough to move every block")
        rate = Decision("learning_rate", 1e-4, "a third of the stage before: deeper blocks change what all others see")
        first = {"top": _draft_stage(setting, top, half, _choose_epochs(setting, _STEPS))} if half < blocks else {}
        return {**first, "all": _draft_stage(setting, last, blocks, _choose_epochs(setting, _MANY_STEPS), rate)}
    if setting.images < max(FEW_IMAGES, FEW_PER_CLASS * setting.classes):
        count = max(1, blocks // 6)
        top = Decision("unfreeze", count, f"a sixth of {blocks} blocks: {images} in {setting.classes} classes are few")
    else:
        count = half
        top = Decision("unfreeze", count, f"half of {blocks} blocks: {images} do not pay for more")
    return {"top": _draft_stage(setting, top, count, _choose_epochs(setting, _STEPS))}


_RATE = Decision("learning_rate", 3e-4, "a third of the usual rate: pretrained weights are near their goal")


def _draft_stage(
    setting: _StageInputs, unfreeze: Decision, count: int, epochs: Decision, rate: Decision = _RATE
) -> list[Decision]:
    decayed = 2 * count > setting.blocks
    return [
        unfreeze,
        rate,
        epochs,
        Decision("backbone_lr_multiplier", 1.0, "the head is fitted already, so both move alike (LP-FT)"),
        Decision("layer_decay", 0.75, "more than half of the blocks train: general ones move less (ULMFiT)")
        if decayed
        else Decision("layer_decay", 1.0, "only the upper half trains: one rate for it"),
        Decision("warmup", 1.0, "one epoch in which the optimizer learns the size of the gradients"),
        Decision("decay", "cosine", "ends at rate 0, so that the last epochs only settle"),
        _choose_batch_norm(setting),
    ]


def _choose_epochs(setting: _StageInputs, steps: int) -> Decision:
    """Aim at a number of steps; BiT's rule counts steps, not epochs, too."""
    per_epoch = math.ceil(setting.images / setting.batch_size)
    wanted = math.ceil(steps / per_epoch)
    most = _MOST_EPOCHS if setting.validated else _MOST_EPOCHS_UNSEEN
    if wanted < _LEAST_EPOCHS:
        reason = f"the fewest that leave room for warm-up and cosine; {per_epoch:,} steps each"
        return Decision("epochs", _LEAST_EPOCHS, reason)
    if wanted > most:
        unseen = "" if setting.validated else ", and no validation set would show it"
        return Decision("epochs", most, f"{per_epoch:,} steps each; more repeats of so few images memorise{unseen}")
    return Decision("epochs", wanted, f"about {steps:,} steps, {per_epoch:,} an epoch")


def _choose_batch_norm(setting: _StageInputs) -> Decision:
    if setting.images < BATCH_NORM_IMAGES:
        return Decision("batch_norm", "frozen", f"below {BATCH_NORM_IMAGES:,} images the pretrained statistics win")
    if setting.batch_size < BATCH_NORM_BATCH:
        return Decision("batch_norm", "frozen", f"batches below {BATCH_NORM_BATCH} give noisy statistics")
    return Decision("batch_norm", "train", f"{setting.images:,} images in batches of {setting.batch_size} suffice")


def _choose_keep(validated: bool) -> Decision:
    if validated:
        return Decision("keep", "best", "the validation set says which epoch was best, and whether a stage paid")
    return Decision("keep", "last", "no validation set says which epoch was best")
