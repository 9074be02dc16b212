"""Reading the files of llama.cpp (GGUF, version 3): metadata and tensors, as far as the models fetched here need it.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights are stored in blocks of 32
with a scale each; they are read as float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.types import FloatArray, TextEnvError

__all__ = ["Gguf"]

_BLOCK = 32  # weights of a block


class _Stored(NamedTuple):
    """Where a tensor is: its shape with the rows first, its type, and the offset of its data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class Gguf:
    """A file of llama.cpp.

    Attributes:
        metadata: Its key-value pairs: numbers, texts, and lists of these.
        tensors: Names of its tensors.
    """

    def __init__(self, path: Path) -> None:
        """Read the metadata; tensors are read when they are asked for.

        Raises:
            TextEnvError: It is no such file, or it is cut short.
        """
        self._path = path
        self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        self._at = 0
        try:
            if bytes(self._data[:4]) != b"GGUF":
                raise TextEnvError(f"{path} is no GGUF file; expected one of llama.cpp's.")
            self._at = 4
            version, tensors, pairs = self._number("I"), self._number("Q"), self._number("Q")
            if version != _VERSION:
                raise TextEnvError(f"{path} is of GGUF version {version}; expected {_VERSION}.")
            self.metadata: dict[str, Any] = {self._text(): self._value(self._number("I")) for _ in range(pairs)}
            self._stored = {self._text(): self._tensor_info() for _ in range(tensors)}
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise TextEnvError(f"{path} is cut short or damaged: fetch it again.") from error
        alignment = self.metadata.get("general.alignment", 32)
        self._begin = -(-self._at // alignment) * alignment

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(self._stored)

    def tensor(self, name: str) -> FloatArray:
        """Return a tensor as float32, in its shape.

        Raises:
            TextEnvError: It is stored in a way that is not read here, or its data are cut short.
        """
        shape, kind, offset = self._stored[name]
        if kind not in _KINDS:
            raise TextEnvError(f"{self._path}: {name} is of the type {kind}; expected one of {sorted(_KINDS)}.")
        size, read = _KINDS[kind]
        begin, length = self._begin + offset, math.prod(shape) * size // _BLOCK
        data = self._data[begin : begin + length]
        if len(data) < length:
            raise TextEnvError(f"{self._path} is cut short at {name}: fetch it again.")
        return read(np.ascontiguousarray(data)).reshape(shape)

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0]

    def _text(self) -> str:
        size = self._number("Q")
        data = self._bytes(size)
        if len(data) < size:
            raise struct.error
        return data.decode()

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            inner, size = self._number("I"), self._number("Q")
            return [self._value(inner) for _ in range(size)]
        return self._number(_NUMBERS[kind])

    def _tensor_info(self) -> _Stored:
        sizes = [self._number("Q") for _ in range(self._number("I"))]
        return _Stored(tuple(reversed(sizes)), self._number("I"), self._number("Q"))


_VERSION = 3
_TEXT, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def _float32(data: NDArray[np.uint8]) -> FloatArray:
    return data.view("<f4").astype(np.float32)


def _float16(data: NDArray[np.uint8]) -> FloatArray:
    return data.view("<f2").astype(np.float32)


def _q4_1(data: NDArray[np.uint8]) -> FloatArray:
    """Blocks of a scale, a least value and 4 bits a weight: those of the first half are the low bits of the bytes."""
    blocks = data.reshape(-1, 20)
    scale, least = _float16(blocks[:, :2].copy()), _float16(blocks[:, 2:4].copy())
    levels = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (levels * scale + least).astype(np.float32)


def _q8_0(data: NDArray[np.uint8]) -> FloatArray:
    """Blocks of a scale and 8 bits a weight."""
    blocks = data.reshape(-1, 34)
    return (blocks[:, 2:].view(np.int8) * _float16(blocks[:, :2].copy())).astype(np.float32)


_KINDS: dict[int, tuple[int, Callable[[NDArray[np.uint8]], FloatArray]]] = {
    0: (4 * _BLOCK, _float32),
    1: (2 * _BLOCK, _float16),
    3: (20, _q4_1),
    8: (34, _q8_0),
}
"""Types of tensors by their number: bytes of 32 weights, and what reads them."""
