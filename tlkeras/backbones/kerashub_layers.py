"""A layer of a KerasHub backbone as a layer of ours, which can be saved and loaded alone."""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

import keras

from tlkeras.errors import BackboneError

_HUB = "keras_hub"


def import_keras_hub() -> Any:
    """The package `keras_hub`, or a BackboneError where it is not installed."""
    try:
        return importlib.import_module(_HUB)
    except ImportError as error:
        rule, way_out = "Backbones named hub:PRESET need KerasHub.", 'Install it with: pip install "tlkeras[hub]"'
        raise BackboneError(rule, str(error), way_out) from None


def is_of_hub(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer) and type(operation).__module__.partition(".")[0] == _HUB


@keras.saving.register_keras_serializable("tlkeras")
class HubLayer(keras.layers.Layer):
    """Wraps one layer of a KerasHub backbone, or one block of its encoder; of several outputs it returns the first.

    Many of KerasHub's layers cannot be constructed from their own configuration, but their backbones can: so a layer
    is saved as the backbone's configuration and its place in it.

    Args:
        kind, config: Class of the backbone in `keras_hub.models`, and its configuration.
        place: Number of the layer in the backbone, whose names may come from a counter of the process; of a block also
            its number among the layers of that layer.
        inner: The layer; None takes it from a new backbone.
    """

    def __init__(self, kind: str, config: dict[str, Any], place: list[int], inner: Any = None, **options: Any):
        super().__init__(**options)
        self.kind, self.config, self.place = kind, config, list(place)
        self.inner = _layers.take(kind, config, tuple(place)) if inner is None else inner
        self._takes_training = "training" in inspect.signature(self.inner.call).parameters

    def build(self, input_shape: Any) -> None:
        """Do nothing: the layer has its weights."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = self.inner(inputs, training=training) if self._takes_training else self.inner(inputs)
        return outputs[0] if isinstance(outputs, (tuple, list)) else outputs

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Lengths that the layer leaves open are those of one example."""
        spec = super().compute_output_spec(inputs, training=training)
        if None not in spec.shape[1:]:
            return spec
        zeros = keras.tree.map_structure(lambda tensor: keras.ops.zeros((1, *tensor.shape[1:])), inputs)
        return keras.KerasTensor((None, *self.call(zeros).shape[1:]), spec.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "config": self.config, "place": self.place}


class _LayerPool:
    """Layers of the latest backbone, each taken once: a saved model takes all of them one by one."""

    def __init__(self) -> None:
        self.source = ""
        self.backbone: Any = None
        self.taken: set[tuple[int, ...]] = set()

    def take(self, kind: str, config: dict[str, Any], place: tuple[int, ...]) -> Any:
        source = json.dumps([kind, config], sort_keys=True)
        if source != self.source or place in self.taken:
            self.backbone, self.source, self.taken = _make_backbone(kind, config), source, set()
        self.taken.add(place)
        layer = self.backbone.layers[place[0]]
        return layer if len(place) == 1 else layer._layers[place[1]]


_layers = _LayerPool()


def _make_backbone(kind: str, config: dict[str, Any]) -> Any:
    """A backbone with random weights; of KerasHub only, because its name may come from a file."""
    hub = import_keras_hub()
    found: Any = getattr(hub.models, kind, None)
    known = isinstance(found, type) and issubclass(found, hub.models.Backbone)
    if not known:
        raise BackboneError("KerasHub has no such backbone.", repr(kind), "Load only models that you trust.")
    return found.from_config(config)
