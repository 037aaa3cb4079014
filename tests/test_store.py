"""Finished layers on disk. What the command line makes of them is tested in ``tests/cli/test_interrupted.py``."""

from pathlib import Path

import pytest
import torch

from dither.errors import BadCheckpoint, DitherError
from dither.store import check_output, open_store

JOB = {"model": "tiny", "seed": 0}


def test_layers_come_back_as_they_were(tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    assert store.get("a.b") is None
    tensors = {"codes": torch.arange(6, dtype=torch.uint8), "scale": torch.rand(3, 2).T}
    store.put("a.b", tensors)
    again = open_store(tmp_path / "out", JOB, resume=True)
    assert again.kept() == 1
    kept = again.get("a.b")
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[k], tensors[k]) and kept[k].dtype == tensors[k].dtype for k in kept)
    assert again.reused == 1
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_layer_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    store = open_store(tmp_path / "out", JOB, resume=False)
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DitherError, match=r"a\.safetensors': No space left"):
        store.put("a", {"codes": torch.zeros(4)})
    assert store.kept() == 0
    assert [p.name for p in store.folder.iterdir()] == ["job.json"]


def test_damaged_layer_is_named(tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    store.put("a", {"codes": torch.zeros(4)})
    (store.folder / "a.safetensors").write_bytes(b"short")
    with pytest.raises(BadCheckpoint, match=r"a\.safetensors' is damaged"):
        store.get("a")


def test_only_the_same_job_goes_on(tmp_path):
    open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(DitherError, match="--resume"):
        open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(DitherError, match="another"):
        open_store(tmp_path / "out", {**JOB, "seed": 1}, resume=True)
    open_store(tmp_path / "out", JOB, resume=True)


def test_output_in_use(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "new", resume=False)
    check_output(tmp_path / "empty", resume=False)
    with pytest.raises(DitherError, match="is a file"):
        check_output(tmp_path / "file", resume=False)
    with pytest.raises(DitherError, match="not empty"):
        check_output(tmp_path, resume=True)


def test_here_is_a_folder_with_a_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert open_store(Path("."), JOB, resume=False).folder == tmp_path / "here.partial"


def test_measurements_are_kept_and_are_no_layers(tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    assert store.told() == ""
    store.put("sensitivity.blocks.0.ffn.1.w4", {"mse": torch.tensor([0.5], dtype=torch.float64)})
    assert (store.kept(), store.measured(), store.told()) == (0, 1, "1 measurement")
    for name in ("blocks.0", "blocks.1"):
        store.put(name, {"x": torch.ones(1)})
    again = open_store(tmp_path / "out", JOB, resume=True)
    assert (again.kept(), again.measured(), again.told()) == (2, 1, "1 measurement and 2 finished layers")
    assert float(again.get("sensitivity.blocks.0.ffn.1.w4")["mse"]) == 0.5
    assert again.reused == 0
    again.get("blocks.1")
    assert again.reused == 1
