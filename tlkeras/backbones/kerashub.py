"""KerasHub's presets for images as flat graphs from uint8 images; the extra is imported for the first `hub:PRESET`."""

import contextlib
import functools
import importlib
import inspect
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tlkeras.backbones.graph import clone_graph, count_multiply_adds, is_named_by_keras, to_snake_case
from tlkeras.config.image_size import ImageSize, height_and_width
from tlkeras.config.schema.features import KERAS_HUB_PREFIX
from tlkeras.errors import BackboneError, suggest

_HUB = "keras_hub"
_USUAL_SIZE = 224  # pixels, of presets that take any
_TOLERANCE = 1e-3  # of a rebuilt graph's outputs, relative to the largest


@functools.lru_cache(maxsize=64)
def read_facts(name: str) -> Mapping[str, Any]:
    """The fields of `BackboneInfo` for `hub:PRESET` or `hub:FOLDER`; a BackboneError says why there are none."""
    backbone = _load(name, None, pretrained=False)
    fixed = _read_shape(name, backbone)
    suggested = getattr(_load_converter(name), "image_size", None) or (None,)
    size = fixed or suggested[0] or _USUAL_SIZE
    if fixed is None:
        backbone = _load(name, size, pretrained=False)
    model = _connect(name, backbone, size, None)
    return {
        "family": "hub",
        "constructor": type(backbone).__name__,
        "parameters": int(model.count_params()),
        "multiply_adds": count_multiply_adds(model),
        "default_size": size,
        "minimum_size": size if fixed else 32,
        "feature_width": model.output_shape[-1],
        "pixels": "of the preset",
        "licence": "of the preset",
        "weights": ("preset", "none"),
    }


def build_preset(name: str, size: ImageSize, pretrained: bool) -> keras.Model:
    """A preset as one flat functional graph, as in `builder.build_backbone`.

    The map of a transformer holds the positions of its patches, without class and register tokens. A BackboneError is
    raised if the weights cannot be fetched, do not fit images of this size, or come without the scaling of pixels.
    """
    backbone = _load(name, size, pretrained)
    return _connect(name, backbone, size, _read_scaling(_load_converter(name)) if pretrained else None)


def _load(name: str, size: ImageSize | None, pretrained: bool) -> Any:
    hub = import_keras_hub()
    preset = _find_preset(name)
    shape = {} if size is None else {"image_shape": (*height_and_width(size), 3)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return hub.models.Backbone.from_preset(preset, load_weights=pretrained, **shape)
    except Exception as error:  # KerasHub, Kaggle and their transports raise of all kinds
        raise _explain_failure(preset, error) from None


def _find_preset(name: str) -> str:
    preset = name.removeprefix(KERAS_HUB_PREFIX)
    return str(Path(preset).expanduser()) if Path(preset).expanduser().is_dir() else preset


def _explain_failure(preset: str, error: Exception) -> BackboneError:
    models = import_keras_hub().models
    kinds: list[Any] = [kind for kind in vars(models).values() if isinstance(kind, type)]
    backbones = [kind.backbone_cls for kind in kinds if issubclass(kind, models.ImageClassifier)]
    known = {name for kind in backbones if kind for name in kind.presets}
    if not Path(preset).is_dir() and preset not in known and "preset" in str(error):
        way_out = f"{suggest(preset, known)} Or give a folder that save_to_preset wrote."
        return BackboneError(f"KerasHub has no preset {preset!r}.", way_out=way_out)
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
    way_out = "Fetch it where there is a connection, save it with save_to_preset, and give hub:FOLDER."
    if Path(preset).is_dir():
        way_out = "Give the size that the preset was made for, or a folder that save_to_preset wrote."
    return BackboneError(f"KerasHub cannot load {preset}.", reason, way_out)


def _read_shape(name: str, backbone: Any) -> int | None:
    """The size of images that a backbone is bound to, None if it takes any."""
    inputs = backbone.inputs
    shape: tuple = inputs[0].shape if len(inputs) == 1 else ()
    if len(shape) != 4 or shape[-1] != 3 or len(backbone.outputs) != 1 or shape[1] != shape[2]:
        rule = "The preset does not take square RGB images to one feature map."
        received = f"{name}, a {type(backbone).__name__} with inputs {[tuple(tensor.shape) for tensor in inputs]}"
        raise BackboneError(rule, received, "Choose a preset of an image classifier.")
    return shape[1]


def _load_converter(name: str) -> Any | None:
    with contextlib.suppress(ValueError, FileNotFoundError), contextlib.redirect_stdout(io.StringIO()):
        return import_keras_hub().layers.ImageConverter.from_preset(_find_preset(name))
    return None


def _read_scaling(converter: Any | None) -> tuple[Any, Any]:
    if converter is None:
        rule = "The pretrained preset does not hold the scaling of its pixels."
        source = "save_to_preset of the ImageClassifier or its preprocessor"
        way_out = f"Save it with {source}, or use its weights as 'none'."
        raise BackboneError(rule, "a preset without image converter", way_out)
    scale, offset = converter.scale, converter.offset
    return 1.0 if scale is None else scale, 0.0 if offset is None else offset


def _connect(name: str, backbone: Any, size: ImageSize, scaling: tuple[Any, Any] | None) -> keras.Model:
    """A backbone's graph, layer by layer, on images, normalised to -1 .. 1 where no scaling is given."""
    scale, offset = scaling or (1 / 127.5, -1.0)
    images = keras.Input((*height_and_width(size), 3), dtype="uint8", name="images")
    pixels = layers.Rescaling(scale, offset, name="normalization")(images)
    original = backbone.input
    inputs = dict.fromkeys(original, pixels) if isinstance(original, dict) else pixels
    try:
        outputs = _repeat(backbone, inputs, opened=True)
        agreed = _agree(keras.Model(pixels, outputs), backbone, size)
    except (TypeError, ValueError):  # blocks of more than one input
        agreed = False
    if not agreed:
        outputs = _repeat(backbone, inputs, opened=False)
    title = re.sub(r"\W+", "_", name)
    return keras.Model(images, _drop_tokens(outputs, backbone, size), name=title)


def _repeat(backbone: Any, inputs: Any, opened: bool) -> Any:
    outputs = clone_graph(backbone, inputs, _Repeater(backbone, opened))
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


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

    Many of KerasHub's layers cannot be constructed from their own configuration, but their backbones can: so a layer is
    saved as the backbone's class (kind) in `keras_hub.models`, its configuration, and the layer's number in it, and of
    a block its number in that layer (place). Without `inner`, the layer is taken from a new backbone.
    """

    is_encoder_block = True

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
            hub = import_keras_hub()
            found: Any = getattr(hub.models, kind, None)
            known = isinstance(found, type) and issubclass(found, hub.models.Backbone)
            if not known:  # a file may name any class
                raise BackboneError("KerasHub has no such backbone.", repr(kind), "Load only models that you trust.")
            self.backbone, self.source, self.taken = found.from_config(config), source, set()
        self.taken.add(place)
        layer = self.backbone.layers[place[0]]
        return layer if len(place) == 1 else layer._layers[place[1]]


_layers = _LayerPool()


class _Repeater:
    """Applies a copy of each operation of a backbone, and the blocks of a stack one by one."""

    def __init__(self, backbone: Any, opened: bool):
        self.kind, self.opened = type(backbone).__name__, opened
        self.config = json.loads(json.dumps(backbone.get_config()))
        self.numbers = {id(layer): number for number, layer in enumerate(backbone.layers)}
        self.uses: Counter[str] = Counter()

    def __call__(self, operation: Any, *arguments: Any, **options: Any) -> Any:
        name = _name(operation)
        if not is_of_hub(operation):
            return self._copy(operation, name)(*arguments, **options)
        position = self.numbers[id(operation)]
        parts = _list_blocks(operation) if self.opened else []
        if not parts:
            return self._wrap(operation, name, [position])(*arguments)
        (tensor,) = arguments
        for number, part in parts:
            inner = f"{name}_{_name(part)}"
            copied = self._wrap(part, inner, [position, number]) if is_of_hub(part) else self._copy(part, inner)
            tensor = copied(tensor)
        return tensor

    def _wrap(self, layer: Any, name: str, place: list[int]) -> HubLayer:
        return HubLayer(self.kind, self.config, place, layer, name=self._number(name))

    def _copy(self, operation: Any, name: str) -> Any:
        copied = type(operation).from_config({**operation.get_config(), "name": self._number(name)})
        if getattr(operation, "weights", None):
            copied.build_from_config(operation.get_build_config())
            copied.set_weights(operation.get_weights())
        return copied

    def _number(self, name: str) -> str:
        self.uses[name] += 1
        return name if self.uses[name] == 1 else f"{name}_{self.uses[name]:03d}"


def _name(operation: Any) -> str:
    """An operation's name, without the number that Keras gives by a counter of the process."""
    return to_snake_case(type(operation).__name__) if is_named_by_keras(operation) else operation.name


def _list_blocks(operation: Any) -> list[tuple[int, Any]]:
    """The layers, with their numbers, of an encoder or stage that applies blocks of one kind in turn."""
    own = operation._trainable_variables + operation._non_trainable_variables
    parts = list(enumerate(operation._layers))
    kinds = Counter(type(part) for _, part in parts if is_of_hub(part))
    if own or not kinds or max(kinds.values()) < 2:
        return []
    return sorted(parts, key=lambda part: not isinstance(part[1], layers.Dropout))  # dropout comes before all blocks


def _agree(flat: keras.Model, backbone: Any, size: ImageSize) -> bool:
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, *height_and_width(size), 3)).astype(np.float32)
    inputs = dict.fromkeys(backbone.input, pixels) if isinstance(backbone.input, dict) else pixels
    wanted, predicted = np.asarray(backbone(inputs, training=False)), np.asarray(flat(pixels, training=False))
    allowed = _TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    return wanted.shape == predicted.shape and bool(np.abs(wanted - predicted).max() <= allowed)


def _drop_tokens(outputs: Any, backbone: Any, size: ImageSize) -> Any:
    if len(outputs.shape) == 4:
        return outputs
    _, tokens, width = outputs.shape
    patch = getattr(backbone, "patch_size", None)
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    rows, columns = (side // patch for side in height_and_width(size)) if patch else (tokens + 1, 1)
    if rows * columns > tokens:
        rows = columns = math.isqrt(tokens)
    patches = layers.Cropping1D((tokens - rows * columns, 0), name="patches")(outputs)
    return layers.Reshape((rows, columns, width), name="map_of_patches")(patches)
