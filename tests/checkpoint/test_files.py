"""A folder appears whole or not at all."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dither.checkpoint import (
    files,
    header_of,
    save,
)
from dither.errors import DitherError


def left(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir())


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_output_must_be_new_or_empty(model, tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(DitherError, match="out' exists and is not an empty folder"):
        save(model, target, header_of(model))
    assert left(tmp_path) == ["out"]


def test_an_empty_folder_and_missing_parents_are_fine(model, tmp_path):
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty", header_of(model))
    save(model, tmp_path / "a" / "b", header_of(model))
    assert left(tmp_path / "empty") == left(tmp_path / "a" / "b") == ["config.json", "model.safetensors"]


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    for i in range(5):
        save(model, tmp_path / str(i), header_of(model))
    for name in ("config.json", "model.safetensors"):
        assert len({(tmp_path / str(i) / name).read_bytes() for i in range(5)}) == 1


def test_files_have_ordinary_rights(folder):
    rights = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert set(rights.values()) == {folder.stat().st_mode & 0o666}


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), DitherError, "no space is left on the disk"),
    "disk full in safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        DitherError,
        "no space is left on the disk",
    ),
    "other": (PermissionError(errno.EACCES, "Permission denied"), DitherError, "Permission denied"),
    "Ctrl-C": (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
}


@pytest.mark.parametrize(("failure", "raised", "message"), FAILURES.values(), ids=FAILURES)
def test_nothing_half_written(model, tmp_path, monkeypatch, failure, raised, message):
    real, count = files.save_file, []

    def fail_on_the_second(*args, **kwargs):
        count.append(1)
        if len(count) == 2:
            raise failure
        real(*args, **kwargs)

    monkeypatch.setattr(files, "save_file", fail_on_the_second)
    with pytest.raises(raised, match=message):
        save(model, tmp_path / "out", header_of(model), max_shard_size=900)
    assert left(tmp_path) == []


def test_another_folder_that_appears_meanwhile_is_not_replaced(model, tmp_path, monkeypatch):
    real = files.save_file

    def meanwhile(*args, **kwargs):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        real(*args, **kwargs)

    monkeypatch.setattr(files, "save_file", meanwhile)
    with pytest.raises(DitherError, match="out"):
        save(model, tmp_path / "out", header_of(model))
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["mine"]
