"""A recipe that fine-tunes in two stages."""

import pytest

RECIPE = """
name: staged
data: {source: sklearn-digits, validation: 0.2, limit: 120}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 0.01}
augmentation: {policy: flip}
finetuning:
  ema: 0.9
  stages:
    - {name: head, unfreeze: 0, epochs: 1}
    - {name: top, unfreeze: 1 block, epochs: 2, backbone_lr_multiplier: 1.0}
evaluation: {bootstrap_samples: 100}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def staged(tmp_path, cache, monkeypatch):
    """Path of the recipe; a module's tests share a cache of activations."""
    monkeypatch.setenv("TLKERAS_CACHE", str(cache))
    (tmp_path / "staged.yaml").write_text(RECIPE)
    return str(tmp_path / "staged.yaml")
