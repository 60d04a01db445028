"""Sections `evaluation` and `cache`."""

from __future__ import annotations

from pydantic import Field

from tlkeras.config.schema.fields import ConfigSection


class EvaluationConfig(ConfigSection):
    """The bootstrap of confidence intervals."""

    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**32)


class CacheConfig(ConfigSection):
    """The folder of cached activations, and its maximum size."""

    root: str | None = None
    budget_gb: float = Field(default=50.0, gt=0, le=1e6, allow_inf_nan=False)
