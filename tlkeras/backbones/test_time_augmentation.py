"""Test-time augmentation: a network that averages a feature map over several orientations of each image."""

import operator
from typing import Any

import keras
from keras import layers, ops

from tlkeras.backbones.blocks import CutPoint, find_cut, split
from tlkeras.backbones.graph import clone_graph
from tlkeras.errors import BackboneError


class _Orientations(layers.Layer):
    """Holds the number of orientations, 2 to 8, numbered as in `data.augmentation.operations.apply_dihedral`."""

    def __init__(self, count: int, **options: Any):
        super().__init__(**{**options, "trainable": False})
        self.count = count

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (None, *input_shape[1:])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable("tlkeras")
class DihedralViews(_Orientations):
    """From images [n, h, w, c] to their orientations, [count * n, h, w, c], the images themselves first."""

    def call(self, inputs: Any) -> Any:
        turned = [_mirror(_transpose(inputs, number), number) for number in range(self.count)]
        return ops.concatenate(turned, axis=0)

    @property
    def batch_factor(self) -> float:
        return self.count


@keras.saving.register_keras_serializable("tlkeras")
class AverageDihedralViews(_Orientations):
    """From the maps of such images, [count * n, h, w, c], to the mean of each image's, turned back, [n, h, w, c]."""

    def call(self, inputs: Any) -> Any:
        maps = ops.reshape(inputs, (self.count, -1, *inputs.shape[1:]))
        back = [_transpose(_mirror(maps[number], number), number) for number in range(self.count)]
        return ops.mean(ops.stack(back), axis=0)

    @property
    def batch_factor(self) -> float:
        return 1 / self.count


def add_test_time_augmentation(model: keras.Model, cut: str, count: int) -> keras.Model:
    """A model that averages the map at a cut over orientations of each image; a BackboneError if it is none.

    Behind average pooling and a linear head this averages the logits. The variables are shared with `model`.
    """
    check_map(find_cut(model, cut), count)
    prefix, suffix = split(model, cut)
    images = keras.Input(model.input_shape[1:], dtype=model.input.dtype, name=model.input.name)
    shown = DihedralViews(count, name="show_orientations", dtype=model.input.dtype)(images)
    maps = clone_graph(prefix, shown, operator.call)
    averaged = AverageDihedralViews(count, name="average_orientations")(maps)
    return keras.Model(images, clone_graph(suffix, averaged, operator.call), name=model.name)


def check_map(cut: CutPoint, count: int) -> None:
    """Make sure that a cut has a map to average, a square one where some of `count` orientations turn by a quarter."""
    if len(cut.shape) != 3 or (count > 4 and cut.shape[0] != cut.shape[1]):
        received = f"{cut.name} gives {' x '.join(map(str, cut.shape))}"
        way_out = "Leave augmentation.test_time out, or choose a convolutional backbone."
        raise BackboneError("test_time needs a feature map, a square one for quarter turns.", received, way_out)


def _transpose(maps: Any, number: int) -> Any:
    return ops.transpose(maps, (0, 2, 1, 3)) if number & 4 else maps


def _mirror(maps: Any, number: int) -> Any:
    maps = maps[:, ::-1] if number & 2 else maps
    return maps[:, :, ::-1] if number & 1 else maps
