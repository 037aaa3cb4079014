"""A tiny model, two quantized checkpoints of it, and what they are when opened."""

import jobs
import pytest

import dither
from dither.measure.subjects import open_subject


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """(full, w8a8, w4a8), as folders."""
    folder = tmp_path_factory.mktemp("models")
    jobs.pipeline().save_pretrained(folder / "full")
    for bits in ("w8a8", "w4a8"):
        dither.save(dither.quantize(jobs.pipeline(), "rtn", bits), folder / bits)
    return folder / "full", folder / "w8a8", folder / "w4a8"


@pytest.fixture(scope="session")
def subjects(folders):
    """The same, opened."""
    return tuple(map(open_subject, folders))
