"""Pickles of lists, dicts, numbers, texts and NumPy arrays, read without running anything that they name."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np


def read_plain_pickle(path: str) -> Any:
    """The content of a pickle, of Python 2 too (texts as latin-1); arrays of numbers come as NumPy arrays.

    What a pickle can call are the few classes of this file, which hold what they are given and no more, and `set`.
    NumPy's own constructors are not among them: an array's parts are kept, and the array is made of them afterwards.

    Raises:
        ValueError: it holds anything else, or is no pickle.
    """
    with open(path, "rb") as f:
        data = f.read()
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load())
    except _WRONG as error:
        raise ValueError(f"no pickle of plain data: {error}") from error


_WRONG = (
    pickle.UnpicklingError, EOFError, TypeError, AttributeError, LookupError, MemoryError, RecursionError,
    OverflowError,
)  # fmt: skip


class _Array:
    """Stands for numpy.core.multiarray._reconstruct(...) until the state comes."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def value(self) -> Any:
        _, shape, kind, by_columns, data = self.state
        if isinstance(data, list):  # of objects
            return _plain(data)
        flat = np.frombuffer(_raw(data), kind.value())
        if flat.size != math.prod(shape):
            raise ValueError(f"an array of {flat.size} numbers has the shape {shape}")
        return flat.reshape(shape, order="F" if by_columns else "C").copy()


class _Kind:
    """Stands for numpy.dtype(name, ...)."""

    order = "="

    def __init__(self, name: str, *_: Any) -> None:
        self.name = str(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def value(self) -> np.dtype[Any]:
        if self.name[:1] not in "biuf" or not self.name[1:].isdigit():
            raise ValueError(f"an array of {self.name!r}, which are no numbers")
        return np.dtype(self.name).newbyteorder(self.order if self.order in "<>" else "=")  # type: ignore[arg-type]


class _Scalar:
    """Stands for numpy.core.multiarray.scalar(kind, bytes)."""

    def __init__(self, kind: _Kind, data: Any) -> None:
        self.kind, self.data = kind, data

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a number with a state")

    def value(self) -> Any:
        return np.frombuffer(_raw(self.data), self.kind.value())[0].item()


class _Bytes:
    """Stands for _codecs.encode(text, 'latin1') and for bytes(), which is how protocol 2 writes bytes."""

    def __init__(self, text: str = "", _: str = "") -> None:
        self.data = text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise ValueError("bytes with a state")


def _raw(data: Any) -> bytes:
    """The bytes of an array, which Python 2 wrote as a text."""
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, _Bytes):
        return data.data
    if isinstance(data, bytes):
        return data
    raise ValueError(f"an array out of a {type(data).__name__}")


class _Name:
    """Stands for the class numpy.ndarray, which _reconstruct is given."""

    def __init__(self, *_: Any) -> None:
        raise ValueError("numpy.ndarray is called")

    def __setstate__(self, state: Any) -> None:
        raise ValueError("numpy.ndarray has a state")


_CLASSES: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Bytes,
    ("builtins", "bytes"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _CLASSES[_module, "_reconstruct"] = _Array
    _CLASSES[_module, "scalar"] = _Scalar


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _CLASSES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data") from None


def _plain(value: Any) -> Any:
    """The value with every stand-in replaced by what it stands for."""
    if isinstance(value, (_Array, _Scalar, _Kind)):
        return value.value()
    if isinstance(value, _Bytes):
        return value.data
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, (bool, int, float, str, bytes)) or value is None:
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
