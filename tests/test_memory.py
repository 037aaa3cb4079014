"""Hints about memory change no value."""

import platform
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import resident_memory
from dither import memory


@pytest.mark.parametrize("shape", [(), (3,), (1000, 1001)])
def test_a_tensor_in_memory_keeps_its_values(shape):
    x = torch.randn(shape)
    before = x.clone()
    memory.set_aside(x)
    memory.trim()
    assert torch.equal(x, before)
    memory.set_aside(x.expand(2, *shape))
    memory.set_aside(torch.empty(4, device="meta"))


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux and glibc")
def test_a_mapped_tensor_leaves_memory_and_comes_back(tmp_path):
    want = torch.randn(8_000_000)
    save_file({"x": want, "y": torch.randn(10)}, tmp_path / "f.safetensors")
    x = load_file(tmp_path / "f.safetensors")["x"]
    x[:10] = 7.0  # a page of our own, which no file could bring back
    before = x.clone()
    full = resident_memory()
    memory.set_aside(x)
    assert resident_memory() < full - 16_000_000
    assert torch.equal(x, before)
