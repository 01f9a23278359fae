"""Read YOLOv5 checkpoints without running any code from them.

A `.pt` file is a zip: `*/data.pkl` is a pickle of a whole module tree, `*/data/KEY` are the raw
numbers of its tensors. A pickle can call any function it names. So this reader allows a few names
only, and gives each of them a harmless meaning: classes become stand-ins that only hold their
state, and tensors become descriptions, which are checked and filled in after the pickle was read.
The classes of PyTorch and YOLOv5 are not used.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deployments.errors import ModelUnavailable

MAX_PICKLE_BYTES = 16 * 2**20  # the pickle of the largest YOLOv5 has 0.4 MB
MAX_MODULES = 100_000
MAX_DEPTH = 32

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Genuine checkpoints name classes of these packages, and these names. All become stand-ins.
INERT_PACKAGES = ("models", "utils", "torch.nn.modules")
INERT_NAMES = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "device"),
}


class CheckpointRefused(ModelUnavailable):
    """The file is not a YOLOv5 checkpoint, or it names something that no checkpoint needs."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parts of a YOLOv5 checkpoint from which its network is built.

    Attributes:
        architecture: the model's yaml: `backbone`, `head`, `depth_multiple`, ...
        state: parameters and buffers by name (`model.0.conv.weight`); float32, counters int64.
        names: the class names, by class index.
        stride: for each head, the side of a cell of its grid in input pixels.
        anchors: float32 `[heads, anchors of a head, 2]`, width and height in input pixels.
    """

    architecture: dict[str, Any]
    state: dict[str, torch.Tensor]
    names: list[str]
    stride: list[int]
    anchors: torch.Tensor


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a YOLOv5 v6 or v7 checkpoint: its averaged model (`ema`), or else its `model`.

    Raises:
        CheckpointRefused: the file is not such a checkpoint, damaged, or not safe to read.
    """
    with open_archive(path) as archive:
        try:
            reader = _Reader(archive, path)
            return _checkpoint(reader.load(), reader, path)
        except CheckpointRefused:
            raise
        except Exception as error:  # hostile bytes can make any step raise anything
            raise CheckpointRefused(
                f"The checkpoint {path} can't be read: {error or type(error).__name__}."
            ) from error


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a file written by `torch.save` or `torch.jit.save`.

    Raises:
        CheckpointRefused: the file is not in PyTorch's zip format.
    """
    if zipfile.is_zipfile(path):
        return zipfile.ZipFile(path)
    with open(path, "rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        raise CheckpointRefused(
            f"{path} is in PyTorch's old format (before 1.6), which can't be opened safely. If you "
            "trust the file, load it with YOLOv5's own code and save it again with torch.save."
        )
    raise CheckpointRefused(f"{path} is not a PyTorch file: check that its download is complete.")


class _Inert:
    """A stand-in for a class or function: it ignores its arguments and only keeps its state."""

    __slots__ = ("state",)

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        instance = object.__new__(cls)
        instance.state = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: torch.dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage type has no state")


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype
    key: str
    length: int

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage has no state")


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    """Where a tensor lies in its storage; `_Reader.tensor` reads its numbers."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor has no state beyond its numbers")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _StoredTensor:
    """Check and keep the arguments of `torch._utils._rebuild_tensor_v2`."""
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise pickle.UnpicklingError("a tensor is not described by a storage, a size and a stride")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor's size is invalid")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A tensor with more elements than its storage repeats some (stride 0). No parameter does, and
    # a few bytes could fill the memory in this way.
    if math.prod(size) > storage.length or (math.prod(size) and last >= storage.length):
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return _StoredTensor(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Function:
    """A function that the pickle may call. Its attributes can't be set, unlike a function's."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _Reader(pickle.Unpickler):
    """Reads the pickle of one archive, then its tensors."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._stand_ins: dict[tuple[str, str], type[_Inert]] = {}
        self._entries = self._check_entries()
        pickles = [name for name in self._entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise CheckpointRefused(f"{path} is a zip file, but not one written by torch.save.")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._check_byte_order()
        data = self._read_pickle(pickles[0])
        self._elements_left = path.stat().st_size  # an element takes at least one byte
        super().__init__(io.BytesIO(data), encoding="utf-8")

    def _check_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = {entry.filename: entry for entry in self._archive.infolist()}
        # torch.save never compresses, and entries without compression can't exceed the file.
        uncompressed = all(
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            for entry in entries.values()
        )
        total = sum(entry.file_size for entry in entries.values())
        if not uncompressed or total > self._path.stat().st_size:
            raise CheckpointRefused(
                f"The checkpoint {self._path} is refused: its entries are compressed or overlap, "
                "which torch.save never does."
            )
        return entries

    def _check_byte_order(self) -> None:
        name = f"{self._prefix}byteorder"
        if name in self._entries and self._archive.read(name) != b"little":
            raise CheckpointRefused(
                f"{self._path} was written on a big-endian machine: save it again on another one."
            )

    def _read_pickle(self, name: str) -> bytes:
        if self._entries[name].file_size > MAX_PICKLE_BYTES:
            raise CheckpointRefused(
                f"The checkpoint {self._path} is refused: its pickle has "
                f"{self._entries[name].file_size:,} bytes, more than {MAX_PICKLE_BYTES:,}."
            )
        data = self._archive.read(name)
        # The unpickler's memo is an array: one large index would fill the memory.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise CheckpointRefused(
                    f"The checkpoint {self._path} is refused: its pickle has an invalid memo index."
                )
        return data

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global name: an exact name, never an attribute of one."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Function(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Function(_rebuild_parameter)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("__builtin__", "builtins") and name in ("set", "frozenset"):
            return set
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        package = module.startswith(tuple(f"{inert}." for inert in INERT_PACKAGES))
        if "." not in name and (package or (module, name) in INERT_NAMES):
            return self._stand_ins.setdefault((module, name), type(name, (_Inert,), {}))
        raise CheckpointRefused(
            f"The checkpoint {self._path} is refused: it names {module}.{name}, which no YOLOv5 "
            "v6 or v7 checkpoint needs. Nothing in it was run."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage, whose size must be that of its zip entry."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(length)):
                entry = self._entries.get(f"{self._prefix}data/{key}")
            case _:
                raise pickle.UnpicklingError("a storage is not described as torch.save does it")
        if entry is None or entry.file_size != length * dtype.itemsize:
            raise CheckpointRefused(
                f"The checkpoint {self._path} is refused: storage {key!r} does not have the "
                f"{length:,} elements it claims."
            )
        return _Storage(dtype, key, length)

    def tensor(self, stored: _StoredTensor) -> torch.Tensor:
        """Read the numbers of a tensor; those of any floating-point type become float32."""
        elements = math.prod(stored.size)
        self._elements_left -= elements
        if self._elements_left < 0:
            raise pickle.UnpicklingError("its tensors have more elements than the file has bytes")
        storage = stored.storage
        dtype = torch.float32 if storage.dtype.is_floating_point else storage.dtype
        if elements == 0:
            return torch.empty(stored.size, dtype=dtype)
        data = bytearray(self._archive.read(f"{self._prefix}data/{storage.key}"))
        numbers = torch.frombuffer(data, dtype=storage.dtype)
        return torch.as_strided(numbers, stored.size, stored.stride, stored.offset).to(
            dtype, copy=True, memory_format=torch.contiguous_format
        )


def _checkpoint(content: Any, reader: _Reader, path: Path) -> Checkpoint:
    model = content
    if isinstance(content, dict):
        model = content.get("ema") or content.get("model")
    if not isinstance(model, _Inert) or not isinstance(_field(model, "yaml"), dict):
        raise CheckpointRefused(f"{path} is a PyTorch file, but holds no YOLOv5 model.")
    state: dict[str, torch.Tensor] = {}
    _collect(model, "", state, reader, visited=[], depth=0)
    stride = [int(value) for value in _floats(_field(model, "stride"), reader)]
    anchors = next((value for name, value in state.items() if name.endswith(".anchors")), None)
    if anchors is None or anchors.ndim != 3 or len(anchors) != len(stride) or min(stride) < 1:
        raise CheckpointRefused(f"{path} holds a model without YOLOv5's detection head.")
    # The buffer holds the anchors in cells of the head's grid.
    pixels = anchors * torch.tensor(stride).view(-1, 1, 1)
    architecture = _copy_yaml(_field(model, "yaml"))
    return Checkpoint(architecture, state, _names(model), stride, pixels)


def _field(module: _Inert, name: str) -> Any:
    return module.state.get(name) if isinstance(module.state, dict) else None


def _collect(
    module: _Inert,
    prefix: str,
    state: dict[str, torch.Tensor],
    reader: _Reader,
    visited: list[str],
    depth: int,
) -> None:
    """Add the parameters and persistent buffers of a module and its submodules to `state`."""
    visited.append(prefix)
    if depth > MAX_DEPTH or len(visited) > MAX_MODULES:
        raise pickle.UnpicklingError("it has too many modules, or they are nested too deeply")
    # 6.0 also stores the anchors in pixels; later versions and our network compute them.
    dropped = {"anchor_grid"} | set(_field(module, "_non_persistent_buffers_set") or ())
    for kind in ("_parameters", "_buffers"):
        for name, value in (_field(module, kind) or {}).items():
            if isinstance(value, _StoredTensor) and name not in dropped:
                state[f"{prefix}{name}"] = reader.tensor(value)
    for name, child in (_field(module, "_modules") or {}).items():
        if isinstance(child, _Inert):
            _collect(child, f"{prefix}{name}.", state, reader, visited, depth + 1)


def _floats(value: Any, reader: _Reader) -> list[float]:
    if isinstance(value, _StoredTensor):
        return reader.tensor(value).flatten().tolist()
    return [float(number) for number in value]


def _copy_yaml(value: Any, depth: int = 0) -> Any:
    """Return a copy made of dicts, lists, strings and numbers; anything else is an error."""
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError("its yaml is nested too deeply")
    if isinstance(value, dict):
        return {str(key): _copy_yaml(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy_yaml(item, depth + 1) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise pickle.UnpicklingError(f"its yaml holds a {type(value).__name__}")


def _names(model: _Inert) -> list[str]:
    names = _field(model, "names")
    if isinstance(names, dict):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        classes = _field(model, "yaml").get("nc", 0)
        names = [str(index) for index in range(classes)]
    return [str(name) for name in names]
