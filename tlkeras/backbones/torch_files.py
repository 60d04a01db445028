"""PyTorch state dicts without PyTorch, by an unpickler that admits tensors and nothing else."""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tlkeras.backbones.keras_files import widen_bfloat16
from tlkeras.errors import BackboneError

_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = "Float <f4, Double <f8, Half <f2, BFloat16 <u2, Long <i8, Int <i4, Short <i2, Char i1, Byte u1, Bool ?"
_DTYPES = {f"{kind}Storage": dtype for kind, dtype in map(str.split, _KINDS.split(", "))}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by name, in the format of PyTorch before 1.6 or in the zip format since.

    A checkpoint with its tensors under "state_dict" is unwrapped, and "module." before names is removed. A
    BackboneError says that the file is damaged, or that its pickle names anything but tensors.
    """
    data = path.read_bytes()
    try:
        state = _read_zip(data) if data.startswith(b"PK") else _read_sequence(data)
        state = state.get("state_dict", state)
        tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, _Tensor)}
        return {name.removeprefix("module."): tensor.read() for name, tensor in tensors.items()}
    except BackboneError as error:
        raise BackboneError(error.rule, f"{path}: {error.received}", error.way_out) from error
    except Exception as error:  # a hostile pickle can make any of its operations fail in any way
        rule, received = "The state dict is damaged or incomplete.", f"{path}: {type(error).__name__}: {error}"
        raise BackboneError(rule, received, "Download or save it again.") from error


class _Mapping(dict):
    """In place of OrderedDict, to which PyTorch adds attributes that are not needed."""

    def __setstate__(self, state: object) -> None:
        pass


class _Storage:
    """One run of numbers; in the old format it follows the tensors that view it."""

    def __init__(self, dtype: str, count: int):
        self.dtype, self.count, self.size = dtype, count, count * np.dtype(_DTYPES[dtype]).itemsize
        self.numbers: np.ndarray | None = None

    def fill(self, data: bytes | memoryview) -> None:
        if len(data) != self.size:
            raise _damaged(f"{len(data):,} bytes for {self.count:,} numbers of {self.dtype}")
        numbers = np.frombuffer(data, _DTYPES[self.dtype])
        self.numbers = widen_bfloat16(numbers) if self.dtype == "BFloat16Storage" else numbers


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        count = math.prod(shape)
        reach = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        fits = all(number >= 0 for number in (offset, *shape, *strides)) and count <= storage.count
        if not fits or (count and reach >= storage.count):
            raise _damaged(f"a tensor of shape {shape} in a storage of {storage.count:,} numbers")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def read(self) -> np.ndarray:
        numbers = self.storage.numbers
        if numbers is None:
            raise _damaged("a tensor without data")
        steps = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False).copy()


class _Unpickler(pickle.Unpickler):
    """Admits dictionaries, storages and tensors; refuses every other global by name."""

    def __init__(self, data: bytes, load_storage: Callable[[str, str, int], _Storage]):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return name
        way_out = "Such a file can run code: do not open it elsewhere either. Save `model.state_dict()` alone."
        raise BackboneError("The state dict holds more than tensors.", f"a pickle that names {module}.{name}", way_out)

    def persistent_load(self, key: Any) -> _Storage:
        kind, dtype, name, _location, count, *_view = key
        if kind != "storage" or dtype not in _DTYPES or not isinstance(count, int) or count < 0:
            raise _damaged(f"a reference to {key!r}")
        return self._load_storage(dtype, str(name), count)


def _read_sequence(data: bytes) -> Mapping[str, Any]:
    """The state dict in the format before PyTorch 1.6: five pickles in a row, then each storage behind its length."""
    stream = io.BytesIO(data)
    storages: dict[str, _Storage] = {}

    def load_storage(dtype: str, name: str, count: int) -> _Storage:
        return storages.setdefault(name, _Storage(dtype, count))

    if _unpickle(stream) != _MAGIC:
        raise _damaged("a pickle that is not a PyTorch file")
    _unpickle(stream)  # version of the protocol
    _unpickle(stream)  # word sizes of the machine that wrote it
    state = _unpickle(stream, load_storage)
    for name in _unpickle(stream):
        storage = storages[name]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.count:
            raise _damaged(f"a storage of {count:,} numbers where {storage.count:,} were announced")
        storage.fill(stream.read(storage.size))
    return state


def _read_zip(data: bytes) -> Mapping[str, Any]:
    """The state dict in the format since PyTorch 1.6: a zip of `data.pkl` and one member per storage, uncompressed."""
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
        if root is None:
            raise _damaged("a zip archive without data.pkl")
        packed = next((info for info in members.values() if info.compress_type != zipfile.ZIP_STORED), None)
        if packed:
            raise _damaged(f"a compressed member {packed.filename}")
        if members.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
            raise _damaged("numbers in big-endian order")

        def load_storage(dtype: str, name: str, count: int) -> _Storage:
            if name not in storages:
                storages[name] = _Storage(dtype, count)
                storages[name].fill(archive.read(f"{root}data/{name}"))
            return storages[name]

        return _unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), load_storage)


def _no_storage(dtype: str, name: str, count: int) -> NoReturn:
    raise _damaged("a storage out of place")


def _unpickle(stream: io.BytesIO, load_storage: Callable[[str, str, int], _Storage] = _no_storage) -> Any:
    """The next pickle of a stream, which is left behind it."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        # the unpickler allocates up to the highest number: a few bytes could take all memory
        if "PUT" in opcode.name and int(argument or 0) > len(stream.getbuffer()):
            raise _damaged(f"a memo number of {argument}")
    pickled = stream.getvalue()[start : stream.tell()]
    return _Unpickler(pickled, load_storage).load()


def _damaged(received: str) -> BackboneError:
    rule = "The state dict does not hold the numbers that it announces."
    return BackboneError(rule, received, "Download or save it again.")
