"""GGUF files: every type of tensor against its definition, and what is no such file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tests.complaints import one_line
from tests.models.gguf_files import write_gguf
from textenv.models.gguf import Gguf

RNG = np.random.default_rng(0)


def half(number: float) -> bytes:
    return struct.pack("<e", number)


def test_metadata(tmp_path: Path) -> None:
    metadata = {"name": "a heron ü", "size": 7, "rate": 0.5, "tokens": ["a", "", "Ġb"], "types": [1, 3]}
    write_gguf(tmp_path / "m.gguf", metadata, {})
    found = Gguf(tmp_path / "m.gguf")
    assert found.metadata == metadata
    assert found.tensors == ()


def test_floats_keep_their_rows(tmp_path: Path) -> None:
    array = RNG.normal(size=(3, 64)).astype(np.float32)
    halves = array.astype(np.float16)
    write_gguf(tmp_path / "m.gguf", {}, {"a": ((3, 64), 0, array.tobytes()), "b": ((3, 64), 1, halves.tobytes())})
    np.testing.assert_array_equal(Gguf(tmp_path / "m.gguf").tensor("a"), array)
    np.testing.assert_array_equal(Gguf(tmp_path / "m.gguf").tensor("b"), halves.astype(np.float32))


def test_four_bits_with_a_scale_and_a_least_value(tmp_path: Path) -> None:
    levels = RNG.integers(0, 16, size=(2, 3, 32))  # rows, blocks, weights
    scales, least = RNG.integers(1, 9, size=(2, 3)) / 8, -RNG.integers(0, 9, size=(2, 3)) / 4
    data = b""
    for row in range(2):
        for block in range(3):
            low, high = levels[row, block, :16], levels[row, block, 16:]
            data += half(scales[row, block]) + half(least[row, block])
            data += bytes(int(a) | int(b) << 4 for a, b in zip(low, high, strict=True))
    write_gguf(tmp_path / "m.gguf", {}, {"a": ((2, 96), 3, data)})
    expected = (levels * scales[..., None] + least[..., None]).reshape(2, 96)
    np.testing.assert_array_equal(Gguf(tmp_path / "m.gguf").tensor("a"), expected.astype(np.float32))


def test_eight_bits_with_a_scale(tmp_path: Path) -> None:
    levels = RNG.integers(-128, 128, size=(4, 32)).astype(np.int8)
    scales = RNG.integers(1, 9, size=4) / 8
    data = b"".join(half(scale) + row.tobytes() for scale, row in zip(scales, levels, strict=True))
    write_gguf(tmp_path / "m.gguf", {}, {"a": ((2, 64), 8, data)})
    expected = (levels * scales[:, None]).reshape(2, 64).astype(np.float32)
    np.testing.assert_array_equal(Gguf(tmp_path / "m.gguf").tensor("a"), expected)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"name": "heron"}, {"a": ((2, 32), 0, bytes(256)), "b": ((1, 32), 12, bytes(999))})
    whole = path.read_bytes()
    with one_line("of the type 12"):
        Gguf(path).tensor("b")
    for content, what in (
        (b"ZIP" + whole[3:], "no GGUF file"),
        (whole[:4] + b"\x02" + whole[5:], "GGUF version 2"),
        (whole[:30], "cut short"),
        (whole[:50], "cut short"),
    ):
        path.write_bytes(content)
        with one_line(what):
            Gguf(path)
    path.write_bytes(whole[:-1200])
    with one_line("cut short at a"):
        Gguf(path).tensor("a")
