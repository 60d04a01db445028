"""Stages from the size of the data, with the reason for each value.

After BiT's HyperRule (Kolesnikov et al., 2020): no search, the number of images alone decides how long and how deep
to train. The head is fitted before the backbone moves, as in LP-FT (Kumar et al., 2022). Rates are those of AdamW;
they suit Muon, too.
"""

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
_MOST_EPOCHS_UNSEEN = 20  # those of LP-FT, which has no validation set either


class Decision(NamedTuple):
    """A value and why it was chosen; the key is STAGE.FIELD, or a word on the whole schedule."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """Stages and `keep` for a Schedule, and every decision among them with its reason."""

    stages: tuple[Stage, ...]
    keep: Keep
    decisions: tuple[Decision, ...]


class _Setting(NamedTuple):
    images: int
    classes: int
    blocks: int
    batch_size: int
    validated: bool


def choose_stages(
    *, images: int, classes: int, blocks: int, batch_size: int, validated: bool, probed: bool
) -> Suggestion:
    """Stages that suit the data, and the reason for each value; RecipeError if a count is below 1.

    Images are those to train on. `validated`: a validation set measures each epoch; `probed`: the head starts from the
    linear probe of the frozen features.
    """
    setting = _Setting(images, classes, blocks, batch_size, validated)
    for key, count in setting._asdict().items():
        if key != "validated" and count < 1:
            raise RecipeError(f"Cannot choose stages: {key} is below 1.", count)
    head = [
        Decision("unfreeze", 0, "a random head would spoil the backbone, so it is fitted first (LP-FT)"),
        Decision("learning_rate", 1e-3, "the usual rate: nothing pretrained moves"),
        _choose_epochs(setting, _HEAD_STEPS),
    ]
    drafts = {**({} if probed else {"head": head}), **_draft_backbone(setting)}
    stages = tuple(Stage(name, **{one.key: one.value for one in draft}) for name, draft in drafts.items())
    decisions = [one._replace(key=f"{name}.{one.key}") for name, draft in drafts.items() for one in draft]
    if probed:
        reason = "it starts from the linear probe, so no stage has to fit it (LP-FT)"
        decisions.insert(0, Decision("head", "probe", reason))
    keep = Decision("keep", "last", "no validation set says which epoch was best")
    if validated:
        keep = Decision("keep", "best", "the validation set says which epoch was best, and whether a stage paid")
    return Suggestion(stages, keep.value, (*decisions, keep))


def _draft_backbone(setting: _Setting) -> dict[str, list[Decision]]:
    """The stages in which blocks train: the top ones, and for many images then all."""
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
    setting: _Setting, unfreeze: Decision, count: int, epochs: Decision, rate: Decision = _RATE
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


def _choose_epochs(setting: _Setting, steps: int) -> Decision:
    """Epochs for about a number of steps; BiT's rule counts steps, not epochs, too."""
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


def _choose_batch_norm(setting: _Setting) -> Decision:
    if setting.images < BATCH_NORM_IMAGES:
        return Decision("batch_norm", "frozen", f"below {BATCH_NORM_IMAGES:,} images the pretrained statistics win")
    if setting.batch_size < BATCH_NORM_BATCH:
        return Decision("batch_norm", "frozen", f"batches below {BATCH_NORM_BATCH} give noisy statistics")
    return Decision("batch_norm", "train", f"{setting.images:,} images in batches of {setting.batch_size} suffice")
