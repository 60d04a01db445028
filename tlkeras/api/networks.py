"""The verbs of the catalog of pretrained networks."""

from __future__ import annotations

from typing import Any

from tlkeras.lazy_tensorflow import import_tensorflow_quietly


def backbones(
    pattern: str = "*",
    *,
    weights: str | None = None,
    max_parameters: float | None = None,
    max_multiply_adds: float | None = None,
) -> list[dict[str, Any]]:
    """Return the catalog's rows that match a name pattern; both limits are in millions."""
    from dataclasses import asdict

    from tlkeras.backbones.catalog import list_backbones

    entries = list_backbones(
        pattern,
        weights=weights,
        max_parameters=None if max_parameters is None else int(max_parameters * 1e6),
        max_multiply_adds=None if max_multiply_adds is None else int(max_multiply_adds * 1e6),
    )
    return [asdict(entry) for entry in entries]


def show_backbone(name: str, *, size: int | None = None) -> dict[str, Any]:
    """Return the blocks of a backbone, found in its graph: output shape, bytes, parameters, multiply-adds."""
    import_tensorflow_quietly()
    from tlkeras.backbones.blocks import find_blocks, find_cuts
    from tlkeras.backbones.builder import build_backbone

    model = build_backbone(name, size=size, weights="none")
    blocks = [
        {
            "index": block.index,
            "name": block.name,
            "shape": list(block.cut.shape),
            "bytes": block.cut.bytes,
            "parameters": block.parameters,
            "multiply_adds": block.multiply_adds,
            "layers": len(block.layers),
        }
        for block in find_blocks(model)
    ]
    return {"name": model.name, "size": model.input_shape[1], "cuts": len(find_cuts(model)), "blocks": blocks}
