"""A quantized model of a class that nobody prepared, and its checkpoint."""

from pathlib import Path

import pytest
import tiny

from dither.checkpoint import (
    header_of,
    save,
)


@pytest.fixture
def model() -> tiny.Denoiser:
    made = tiny.dense()
    tiny.quantize(made, tiny.PLAN, tiny.read)
    return made


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save(model, tmp_path / "saved", header_of(model))
    return tmp_path / "saved"
