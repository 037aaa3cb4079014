"""An interrupted run goes on where it stopped, and gives what it would have given."""

import errno

import jobs
import pytest
import torch
from safetensors import SafetensorError

import dither
from dither import store as store_module
from dither.errors import BadCheckpoint, DitherError
from dither.store import FolderStore, open_store

JOB = {"model": "zoo:x", "seed": 0}
HOW = dither.Calibration(samples=4, steps=2)


def run(store: FolderStore | None, progress=None) -> torch.nn.Module:
    pipe = jobs.pipeline()
    return dither.quantize(pipe, "smoothquant", "w4a8", calibration=HOW, store=store, progress=progress).transformer


def interrupt_at(what: str, done: int):
    def progress(now: str, i: int, n: int) -> None:
        if (now, i) == (what, done):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("recipe", ["smoothquant", "rtn-clip"])
@pytest.mark.parametrize("after", [1, 5])
def test_a_resumed_run_reuses_layers_and_gives_the_same_tensors(recipe, after, tmp_path):
    def quantized(store, progress=None):
        pipe = jobs.pipeline()
        return dither.quantize(pipe, recipe, "w4a8", calibration=HOW, store=store, progress=progress).transformer

    whole = quantized(None)
    first = open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(KeyboardInterrupt):
        quantized(first, interrupt_at("rounding weights", after))
    assert first.reused == 0
    assert first.kept() == after
    again = open_store(tmp_path / "out", JOB, resume=True)
    model = quantized(again)
    assert again.reused == after
    assert jobs.same_tensors(model, whole)
    again.remove()
    assert not any(tmp_path.iterdir())


def test_a_store_that_nothing_interrupted_changes_nothing(tmp_path):
    assert jobs.same_tensors(run(open_store(tmp_path / "out", JOB, resume=True)), run(None))


def test_an_interrupted_run_is_not_taken_up_unasked(tmp_path):
    open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(DitherError, match=r"out\.partial' holds an interrupted run: give --resume"):
        open_store(tmp_path / "out", JOB, resume=False)


@pytest.mark.parametrize("other", [{**JOB, "seed": 1}, {**JOB, "model": "zoo:y"}, {}])
def test_another_job_is_refused(other, tmp_path):
    open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(DitherError, match=r"out\.partial' belongs to a run with another model, recipe or seed"):
        open_store(tmp_path / "out", other, resume=True)
    (tmp_path / "out.partial" / "job.json").unlink()
    with pytest.raises(DitherError, match="belongs to a run with another"):
        open_store(tmp_path / "out", JOB, resume=True)


def test_an_output_in_use_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    open_store(tmp_path / "out", JOB, resume=False).remove()  # an empty folder is fine
    (tmp_path / "out" / "a").touch()
    with pytest.raises(DitherError, match="not empty"):
        open_store(tmp_path / "out", JOB, resume=False)
    with pytest.raises(DitherError, match="is a file"):
        open_store(tmp_path / "out" / "a", JOB, resume=False)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(damage, tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    store.put("blocks.0", {"codes": torch.zeros(64, dtype=torch.uint8)})
    (path,) = store.folder.glob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-8], "noise": b"\xff" * len(data), "empty": b""}[damage])
    with pytest.raises(BadCheckpoint, match=r"blocks\.0\.safetensors' is damaged"):
        store.get("blocks.0")
    assert store.reused == 0


def test_a_kept_layer_of_another_shape_is_refused(tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    store.put(
        "transformer_blocks.0.attn1.to_q", {"codes": torch.zeros(2, 2, dtype=torch.uint8), "scale": torch.ones(2, 1)}
    )
    with pytest.raises(BadCheckpoint, match="does not fit"):
        run(store)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")], ids=["os", "file"]
)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(error, tmp_path, monkeypatch):
    store = open_store(tmp_path / "out", JOB, resume=False)
    store.put("a", {"x": torch.ones(2)})

    def refuse(tensors, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(store_module, "save_file", refuse)
    with pytest.raises(DitherError, match=r"cannot write '.*b\.safetensors': .*No space left on device"):
        store.put("b", {"x": torch.ones(2)})
    monkeypatch.undo()
    assert sorted(p.name for p in store.folder.iterdir()) == ["a.safetensors", "job.json"]
    assert store.get("b") is None
    assert torch.equal(store.get("a")["x"], torch.ones(2))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DitherError, match=r"cannot write '.*out\.partial'"):
        open_store(tmp_path / "file" / "out", JOB, resume=False)


def test_names_with_dots_keep_apart(tmp_path):
    store = open_store(tmp_path / "out", JOB, resume=False)
    for i, name in enumerate(("net.2", "net", "net.2.codes")):
        store.put(name, {"x": torch.full((1,), float(i))})
    assert [float(store.get(n)["x"]) for n in ("net.2", "net", "net.2.codes")] == [0, 1, 2]
