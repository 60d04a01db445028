"""The ImageNet weights that `keras.applications` publishes: the address and digest of each file, and its download."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tlkeras.errors import BackboneError

_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_EFFICIENTNET_STORAGE = "https://storage.googleapis.com/keras-applications/"
_KERNELS = "_weights_tf_dim_ordering_tf_kernels"
_TIMEOUT_SECONDS = 10
_PROBE_SECONDS = 3


class WeightsFile(NamedTuple):
    """One file of weights: its address, its name in the cache, and its MD5 or SHA-256 where Keras knows one."""

    url: str
    name: str
    digest: str | None


# (backbone, path of its file, ending of the file's name without the classifier), {} for the variant -> for each variant
# the digests without and with the classifier. Keras has most of them inside functions, hence this copy, which a test
# compares with the files that Keras fetches.
_FAMILIES: dict[tuple[str, str, str], dict[str, tuple[str | None, str | None]]] = {
    ("convnext_{}", "convnext/convnext_{}", "_notop"): {
        "base": (
            "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
            "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
        ),
        "large": (
            "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
            "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
        ),
        "small": (
            "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
            "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
        ),
        "tiny": (
            "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
            "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
        ),
        "xlarge": (
            "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
            "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
        ),
    },
    ("densenet{}", "densenet/densenet{}" + _KERNELS, "_notop"): {
        "121": ("30ee3e1110167f948a6b9946edeeb738", "9d60b8095a5708f2dcce2bca79d332c7"),
        "169": ("b8c4d4c20dd625c148057b9ff1c1176b", "d699b8f76981ab1b30698df4c175e90b"),
        "201": ("c13680b51ded0fb44dff2d8f86ac8bb1", "1ceb130c1ea1b78c3bf6114dbdfd8807"),
    },
    ("efficientnet_b{}", "efficientnetb{}", "_notop"): {
        "0": ("50bc09e76180e00e4465e1a485ddc09d", "902e53a9f72be733fc0bcb005b3ebbac"),
        "1": ("74c4e6b3e1f6a1eea24c589628592432", "1d254153d4ab51201f1646940f018540"),
        "2": ("111f8e2ac8aa800a7a99e3239f7bfb39", "b15cce36ff4dcbd00b6dd88e7857a6ad"),
        "3": ("af6d107764bb5b1abb91932881670226", "ffd1fdc53d0ce67064dc6a9c7960ede0"),
        "4": ("ebc24e6d6c33eaebbd558eafbeedf1ba", "18c95ad55216b8f92d7e70b3a046e2fc"),
        "5": ("38879255a25d3c92d5e44e04ae6cec6f", "ace28f2a6363774853a83a0b21b9421a"),
        "6": ("9ecce42647a20130c1f39a5d4cb75743", "165f6e37dce68623721b423839de8be5"),
        "7": ("cbcfe4450ddf6f3ad90b1b398090fe4a", "8c03f828fec3ef71311cd463b6759d99"),
    },
    ("efficientnet_v2_{}", "efficientnet_v2/efficientnetv2-{}", "_notop"): {
        "b0": ("893217f2bb855e2983157299931e43ff", "21ecbf6da12460d5c40bb2f29ceb2188"),
        "b1": ("0e80663031ca32d657f9caa404b6ec37", "069f0534ff22adf035c89e2d9547a9dc"),
        "b2": ("1dfe2e7a5d45b6632553a8961ea609eb", "424e49f28180edbde1e94797771950a7"),
        "b3": ("f6abf7b5849ac99a89b50dd3fd532856", "1f1fc43bd98a6e4fd8fdfd551e02c7a0"),
        "l": ("b0b66b5c863aef5b46e8608fe1711615", "27e6d408b53c7ebc868fefa357689935"),
        "m": ("1b8dc055df72dde80d614482840fe342", "a3bf6aa3276309f4fc6a34aa114c95cd"),
        "s": ("af0682fb74e8c54910f2d4393339c070", "e1d88a8495beba45748fedd0cecbe016"),
    },
    ("inception_{}", "inception_{0}/inception_{0}" + _KERNELS, "_notop"): {
        "resnet_v2": ("d19885ff4a710c122648d3b5c3b684e4", "e693bd0210a403b3192acc6073ad2e96"),
        "v3": ("bcbd6486424b2319ff4ef7d526e38f63", "9a0d58056eeedaa3f26cb7ebd46da564"),
    },
    ("mobilenet", "mobilenet/mobilenet_1_0_224_tf", "_no_top"): {"": (None, None)},
    ("mobilenet_v2", "mobilenet_v2/mobilenet_v2" + _KERNELS + "_1.0_224", "_no_top"): {"": (None, None)},
    ("mobilenet_v3_{}", "mobilenet_v3/weights_mobilenet_v3_{}_224_1.0_float", "_no_top_v2"): {
        "large": ("07fb09a5933dd0c8eaafa16978110389", "59e551e166be033d707958cf9e29a6a7"),
        "small": ("d3e8ec802a04aa4fc771ee12a9a9b836", "8768d4c2e7dee89b9d02b2d03d65d862"),
    },
    ("nasnet_{}", "nasnet/NASNet-{}", "-no-top"): {
        "large": ("d81d89dc07e6e56530c4e77faddd61b5", "11577c9a518f0070763c2b964a382f17"),
        "mobile": ("1ed92395b5b598bdda52abe5c0dbfd63", "020fb642bf7360b370c678b08e0adf61"),
    },
    ("resnet{}", "resnet/resnet{}" + _KERNELS, "_notop"): {
        "101": ("88cf7a10940856eca736dc7b7e228a21", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
        "152": ("ee4c566cf9a93f14d82f913c2dc6dd0c", "100835be76be38e30d865e96f2aaae62"),
        "50": ("4d473c1dd8becc155b73f8504c6f6626", "2cb95161c43110f7111970584f804107"),
    },
    ("resnet{}_v2", "resnet/resnet{}v2" + _KERNELS, "_notop"): {
        "101": ("c0ed64b8031c3730f411d2eb4eea35b5", "6343647c601c52e1368623803854d971"),
        "152": ("ed17cf2e0169df9d443503ef94b23b33", "a49b44d1979771252814e80f8ec446f9"),
        "50": ("fac2f116257151a9d068a22e544a4917", "3ef43a0b657b3be2300d5770ece849e0"),
    },
    ("vgg{}", "vgg{0}/vgg{0}" + _KERNELS, "_notop"): {
        "16": ("6d6bbae143d832006294945121d1f1fc", "64373286793e3c8b2b4e3219cbf3544b"),
        "19": ("253f8cb515780f3b799900260a226db6", "cbe5617147190e668d6c5d5026f83318"),
    },
    ("xception", "xception/xception" + _KERNELS, "_notop"): {
        "": ("b0042744bf5b25fce3cb969f33bebb97", "0a58e3b7378bc2990ea3b43d5981f1f6"),
    },
}
_FILES = {
    backbone.format(variant): (path.format(variant), without_top, digests)
    for (backbone, path, without_top), variants in _FAMILIES.items()
    for variant, digests in variants.items()
}


def find_download(backbone: str, top: bool) -> WeightsFile:
    """The file of ImageNet weights of a backbone of `keras.applications`, with or without its classifier."""
    path, without_top, digests = _FILES[backbone]
    file = f"{path}{'' if top else without_top}.h5"
    name = file.rpartition("/")[2]
    if name.startswith("NASNet"):  # Keras stores these under another name
        name = name.lower().replace("-", "_")
    return WeightsFile((_STORAGE if "/" in file else _EFFICIENTNET_STORAGE) + file, name, digests[top])


def cache_folder() -> Path:
    """The folder of Keras' downloaded weights."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def is_available(download: WeightsFile) -> bool:
    """Whether a file is in Keras' cache or its server responds, which is checked once per process."""
    return (cache_folder() / download.name).exists() or _is_reachable()


@functools.cache
def _is_reachable() -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(_STORAGE, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it responds; a folder is not a file
    except OSError:
        return False
    return True


def fetch(download: WeightsFile) -> Path:
    """The path of a file in Keras' cache, after downloading it if it is not there yet.

    Raises:
        BackboneError: The download fails, or the file is not the one that Keras published.
    """
    path = cache_folder() / download.name
    if not path.exists():
        return _download(download, path)
    if download.digest is not None and _digest(path, download.digest) != download.digest:
        raise BackboneError(
            "A file in Keras' cache is not the one that Keras published.",
            f"{path}, whose digest is not {download.digest}",
            "Move it away to download it again, or pass its path if these are weights of your own.",
        )
    return path


def _download(download: WeightsFile, path: Path) -> Path:
    import keras

    folder = path.parent
    try:
        with _short_timeout(), contextlib.redirect_stdout(sys.stderr):
            keras.utils.get_file(
                download.name,
                download.url,
                file_hash=download.digest,
                cache_subdir=folder.name,
                cache_dir=str(folder.parent),
            )
    except Exception as error:  # Keras raises bare exceptions
        raise BackboneError(
            "ImageNet weights are not in Keras' cache and could not be downloaded.",
            f"{download.url}: {error}",
            f"Put that file into {folder} as {download.name}, or pass a file of weights instead of 'imagenet'.",
        ) from error
    return path


def _digest(path: Path, like: str) -> str:
    """The SHA-256 of a file if the other digest has 64 digits, else its MD5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256" if len(like) == 64 else "md5").hexdigest()


@contextlib.contextmanager
def _short_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
