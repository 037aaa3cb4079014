"""A tiny DiT of diffusers, quantized, stamped and saved."""

from pathlib import Path

import pytest
import tiny
from diffusers import DiTTransformer2DModel

from dither.integrations.diffusers import (
    register,
)


@pytest.fixture(autouse=True)
def _registered():
    register()


@pytest.fixture
def model() -> DiTTransformer2DModel:
    return tiny.stamped_dit(tiny.plan())


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"
