"""Where each stage starts: at a cut whose activations are cached, or at the images."""

from collections.abc import Sequence
from dataclasses import dataclass

from tlkeras.backbones.blocks import Block
from tlkeras.finetuning.network import IMAGES, POOLED
from tlkeras.finetuning.schedule import Schedule, Stage

_HALF_BYTES = 2
MOST_VIEWS = 8
_ENGINE_GAIN = 2.5  # images per second of the extraction engine over a training framework's forward pass
_PASSES = 3  # a training step does three times the work of a forward pass
_MULTIPLY_ADDS_PER_BYTE = 50  # take as long as reading one byte of a row


@dataclass(frozen=True)
class StagePlan:
    """The inputs of one stage."""

    stage: str
    cut: str  # name of a cut, or POOLED, or IMAGES where nothing is cached
    bytes: int  # cached per image and view
    saved: float  # fraction of the stage's multiply-adds, over all its epochs, that is saved
    reason: str


@dataclass(frozen=True)
class CachingPlan:
    """The inputs of all stages."""

    stages: tuple[StagePlan, ...]  # one plan per stage
    views: int | None  # cached per image; None where every epoch shows a new one

    @property
    def cuts(self) -> tuple[str, ...]:
        return tuple(stage.cut for stage in self.stages)

    @property
    def kept(self) -> tuple[str, ...]:
        """The cuts whose activations are cached, each once, without IMAGES."""
        return tuple(dict.fromkeys(cut for cut in self.cuts if cut != IMAGES))


def plan_stages(
    schedule: Schedule,
    blocks: Sequence[Block],
    width: int,
    *,
    images: int,
    views: int | None,
    most_views: int | None,
    budget_bytes: int | None,
) -> CachingPlan:
    """The cut to train behind, by cost, per stage, and the number of cached views of each image.

    A stage can begin at the output of the last frozen block or of any block before it; the blocks between are then
    computed in every step. Time is counted in multiply-adds: up to the cut once per view by the engine, the rest of the
    frozen part once per epoch, and reading the rows. The least time whose rows fit the budget wins.
    RecipeError if a stage unfreezes more blocks than there are.

    Blocks go from input to output; `width` is numbers per image after pooling. Without `views`, as many are cached as
    there are different ones (`most_views`; None: endlessly many), or epochs to show them, up to 8, and no more than fit
    the budget behind the cuts that would be best without one. The budget is of rows; None: nothing is cached.
    """
    counts = [stage.count_blocks(len(blocks)) for stage in schedule.stages]
    if budget_bytes is None:
        plans = [StagePlan(stage.name, IMAGES, 0, 0.0, "the cache is off") for stage in schedule.stages]
        return CachingPlan(tuple(plans), None)

    def plan_within(budget: int, views: int) -> tuple[StagePlan, ...]:
        plans: list[StagePlan] = []
        for stage, count in zip(schedule.stages, counts, strict=True):
            plan = _plan_stage(stage, len(blocks) - count, blocks, width, images, views, budget)
            if plan.cut not in (IMAGES, *(other.cut for other in plans)):
                budget -= plan.bytes * images * views
            plans.append(plan)
        return tuple(plans)

    if views is None:
        frozen = [stage.length for stage, count in zip(schedule.stages, counts, strict=True) if count < len(blocks)]
        most = min([MOST_VIEWS, max(frozen, default=1), *([most_views] if most_views else [])])
        row_bytes = sum({plan.cut: plan.bytes for plan in plan_within(2**62, most)}.values()) * images
        fitting = most if row_bytes == 0 else min(most, budget_bytes // row_bytes)
        views = fitting or most  # where not even one fits, other cuts are cached
    return CachingPlan(plan_within(budget_bytes, views), views)


def _plan_stage(
    stage: Stage, frozen: int, blocks: Sequence[Block], width: int, images: int, views: int, budget: int
) -> StagePlan:
    if frozen == 0:
        return StagePlan(stage.name, IMAGES, 0, 0.0, "nothing is frozen")
    epochs = stage.length
    trained = sum(block.multiply_adds for block in blocks[frozen:]) * _PASSES
    before = [sum(block.multiply_adds for block in blocks[: end + 1]) for end in range(frozen)]
    whole = epochs * (before[-1] + trained)
    candidates: list[tuple[float, str, int]] = [(whole, IMAGES, 0)]
    for end, block in enumerate(blocks[:frozen]):
        pooled = frozen == len(blocks) and end == frozen - 1
        cut, size = (POOLED, width * _HALF_BYTES) if pooled else (block.cut.name, block.cut.bytes)
        if size * images * views <= budget:
            reading = epochs * size * _MULTIPLY_ADDS_PER_BYTE
            work = views * before[end] / _ENGINE_GAIN + epochs * (before[-1] - before[end] + trained) + reading
            candidates.append((work, cut, size))
    work, cut, size = min(candidates)
    reason = f"{frozen} of {len(blocks)} blocks are frozen: their work is done once per view"
    if cut == IMAGES:
        reason = "no cut before the trained blocks pays, or fits the budget"
    return StagePlan(stage.name, cut, size, 1 - work / whole, reason)
