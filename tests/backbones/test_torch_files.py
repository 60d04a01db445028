"""Reading `.pth` files without PyTorch: both formats, and files that mean harm."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from tlkeras.backbones.torch_files import read_state_dict
from tlkeras.errors import BackboneError

NUMBERS = np.arange(6, dtype="<f4")


class Storage:
    def __init__(self, name, numbers, kind="FloatStorage"):
        self.name, self.numbers, self.kind = name, numbers, kind


class Tensor:
    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    """Writes storages by reference, as PyTorch does."""

    def persistent_id(self, item):
        if isinstance(item, Storage):
            return "storage", getattr(sys.modules["torch"], item.kind), item.name, "cpu", len(item.numbers)
        return None


@pytest.fixture(autouse=True)
def torch_names(monkeypatch):
    """Names that pickles of PyTorch refer to, so that they can be written here."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "BFloat16Storage", "LongStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("the reader must not call what a file names")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def dump(item):
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(item)
    return stream.getvalue()


def write_zip(path, state, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", dump(state))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.name}", storage.numbers.tobytes())
    return path


def write_sequence(path, state, storages):
    parts = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump({"little_endian": True}), dump(state)]
    parts.append(dump([storage.name for storage in storages]))
    parts += [struct.pack("<q", len(storage.numbers)) + storage.numbers.tobytes() for storage in storages]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("write", [write_zip, write_sequence])
def test_both_formats(tmp_path, write):
    storage, counter = Storage("0", NUMBERS), Storage("1", np.array([7], "<i8"), "LongStorage")
    state = collections.OrderedDict(
        whole=Tensor(storage, (2, 3), (3, 1)),
        transposed=Tensor(storage, (3, 2), (1, 3)),
        tail=Tensor(storage, (2,), (1,), offset=4),
        count=Tensor(counter, (), ()),
    )
    state._metadata = {"": {"version": 1}}  # PyTorch adds this attribute
    tensors = read_state_dict(write(tmp_path / "state.pth", state, [storage, counter]))
    assert tensors["whole"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["tail"].tolist() == [4, 5]
    assert tensors["count"] == 7


def test_bfloat16_becomes_float32(tmp_path):
    storage = Storage("0", np.array([0x3FC0, 0xC000], "<u2"), "BFloat16Storage")
    tensors = read_state_dict(write_zip(tmp_path / "a.pth", {"x": Tensor(storage, (2,), (1,))}, [storage]))
    assert tensors["x"].dtype == np.float32
    assert tensors["x"].tolist() == [1.5, -2.0]


def test_wrapped_checkpoint_is_unwrapped(tmp_path):
    storage = Storage("0", NUMBERS)
    state = {"epoch": 3, "state_dict": {"module.x": Tensor(storage, (6,), (1,)), "note": "text"}}
    assert list(read_state_dict(write_zip(tmp_path / "a.pth", state, [storage]))) == ["x"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("write", [write_zip, write_sequence])
@pytest.mark.parametrize("harm", [Evil(), eval, {"inner": [Evil()]}])
def test_code_is_refused_by_name(tmp_path, monkeypatch, write, harm):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=r"holds more than tensors. .*names (posix|nt|__builtin__)\.(system|eval)"):
        read_state_dict(write(tmp_path / "evil.pth", {"x": harm}, []))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("harm", [Evil(), eval])
def test_plain_pickle_is_refused(tmp_path, harm):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(harm))
    with pytest.raises(BackboneError):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((10**12,), (0,), 0),  # a view that repeats one number
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((2, 3), (4, 1), 0),
        ((6,), (-1,), 5),
        ((-1,), (1,), 0),
    ],
)
def test_views_beyond_the_storage_are_refused(tmp_path, shape, strides, offset):
    storage = Storage("0", NUMBERS)
    path = write_zip(tmp_path / "a.pth", {"x": Tensor(storage, shape, strides, offset)}, [storage])
    with pytest.raises(BackboneError, match=r"does not hold the numbers that it announces.*a tensor of shape"):
        read_state_dict(path)


def test_storage_that_announces_too_much_is_refused(tmp_path):
    short = Storage("0", NUMBERS)
    path = write_zip(tmp_path / "a.pth", {"x": Tensor(Storage("0", range(10**12)), (1,), (1,))}, [short])
    with pytest.raises(BackboneError, match="24 bytes for 1,000,000,000,000 numbers"):
        read_state_dict(path)


def test_compressed_members_are_refused(tmp_path):
    storage = Storage("0", np.zeros(10**6, "<f4"))
    state = {"x": Tensor(storage, (10**6,), (1,))}
    path = write_zip(tmp_path / "a.pth", state, [storage], zipfile.ZIP_DEFLATED)
    with pytest.raises(BackboneError, match=r"a compressed member archive/data.pkl"):
        read_state_dict(path)


def test_huge_memo_number_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(BackboneError, match="a memo number of 2147483647"):
        read_state_dict(path)


@pytest.mark.parametrize("write", [write_zip, write_sequence])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, write, keep):
    storage = Storage("0", np.arange(100, dtype="<f4"))
    path = write(tmp_path / "a.pth", {"x": Tensor(storage, (100,), (1,))}, [storage])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BackboneError, match="Download or save it again"):
        read_state_dict(path)
