"""Files of denoiser calls: exact, whole or not at all, and every damage named."""

import json
import os
import struct

import jobs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dither
from dither.errors import BadValue
from dither.models import Call
from dither.recorded import digest_of, read_calls

MADE = {"samples": 4, "prompts": [], "seed": 3}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "calls.safetensors"
    dither.save_calls(path, jobs.calls(), jobs.pipeline().transformer, MADE)
    return path


def head_of(path):
    with safe_open(path, framework="pt") as handle:
        return json.loads(handle.metadata()["dither"])


def change(path, edit_head=lambda head: None, edit_tensors=lambda tensors: None):
    """Write the file again, its metadata and tensors edited in place."""
    head, tensors = head_of(path), load_file(path)
    edit_head(head)
    edit_tensors(tensors)
    save_file(tensors, path, metadata={"dither": json.dumps(head)})


def test_a_round_trip_is_exact(file):
    found = read_calls(file)
    assert (found.model, found.family, found.made) == ("DiTTransformer2DModel", "dit", MADE)
    assert digest_of(found.calls) == digest_of(jobs.calls())
    for before, after in zip(jobs.calls(), dither.load_calls(str(file)), strict=True):
        assert torch.equal(before.args[0], after.args[0])
        assert list(before.kwargs) == list(after.kwargs) == ["timestep", "class_labels", "return_dict"]
        assert torch.equal(before.kwargs["timestep"], after.kwargs["timestep"])
        assert before.kwargs["return_dict"] is after.kwargs["return_dict"] is False


def test_the_same_calls_give_the_same_bytes_with_ordinary_rights(file, tmp_path):
    again = tmp_path / "again.safetensors"
    dither.save_calls(again, read_calls(file).calls, jobs.pipeline().transformer, MADE)
    assert again.read_bytes() == file.read_bytes()
    (tmp_path / "plain").touch()
    assert again.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_any_call_of_any_model_can_be_stored(tmp_path):
    call = Call((torch.ones(2, 3), 0.5), {"extra": {"size": (64, 64)}, "y": None})
    dither.save_calls(tmp_path / "c.safetensors", [call])
    (back,) = dither.load_calls(tmp_path / "c.safetensors")
    assert back.args[1] == 0.5
    assert back.kwargs == call.kwargs
    assert read_calls(tmp_path / "c.safetensors").model == ""


def test_what_cannot_be_written_leaves_an_older_file_as_it_was(file, monkeypatch):
    before = file.read_bytes()
    for calls, words in [([], "no denoiser call"), ([Call((torch.tensor([torch.nan]),), {})], "NaN")]:
        with pytest.raises(BadValue, match=words):
            dither.save_calls(file, calls)
    for made in ({"samples": 0}, {"prompts": "one"}, {"x": object()}, {"x": float("nan")}):
        with pytest.raises(BadValue, match="made"):
            dither.save_calls(file, jobs.calls(), made=made)
    with pytest.raises(BadValue, match="no folder"):
        dither.save_calls(file.parent / "nowhere" / "c.safetensors", jobs.calls())
    monkeypatch.setattr("dither.recorded.file.HEAD_BYTES", 10)
    with pytest.raises(BadValue, match="more than 10 bytes"):
        dither.save_calls(file, jobs.calls())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def refused(path, words):
    with pytest.raises(BadValue, match=words) as e:
        dither.load_calls(path)
    assert path.name in str(e.value)
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    refused(tmp_path / "nowhere.safetensors", "is missing")
    refused(tmp_path, "cannot be read|is damaged")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no safetensors file"),
        (b"hello, hello, hello", "no safetensors file"),
        (struct.pack("<Q", 1 << 40) + b"{}", "no safetensors file"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "safetensors|damaged"),
        (struct.pack("<Q", 2) + b"{}", "no file of denoiser calls"),
    ],
)
def test_bytes_that_are_no_file_of_calls(data, words, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(data)
    refused(tmp_path / "c.safetensors", words)


def test_a_truncated_file(file):
    file.write_bytes(file.read_bytes()[:-1])
    refused(file, "truncated")


def test_weights_are_no_calls(tmp_path):
    save_file({"0": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "w.safetensors", "no file of denoiser calls")


HEADS = {
    "kind": (lambda h: h.update(kind="weights"), "another kind"),
    "version": (lambda h: h.update(version=2), "version 2 of its format is unknown"),
    "version of text": (lambda h: h.update(version="1"), "version '1'"),
    "more": (lambda h: h.update(code="import os"), "fields"),
    "less": (lambda h: h.pop("made"), "fields"),
    "model": (lambda h: h.update(model=3), "'model'"),
    "made": (lambda h: h.update(made=[]), "'made'"),
    "samples": (lambda h: h.update(made={"samples": 10**9}), r"made\.samples"),
    "prompts": (lambda h: h.update(made={"prompts": [3]}), r"made\.prompts"),
    "no calls": (lambda h: h.update(calls=[]), "belongs to no call|no denoiser call"),
    "fewer calls": (lambda h: h["calls"].pop(), "belongs to no call"),
    "no such tensor": (lambda h: h["calls"][1]["kwargs"].update(x={"tensor": 999}), "'x' of denoiser call 1 is tensor 999"),
    "negative": (lambda h: h["calls"][1]["kwargs"].update(x={"tensor": -1}), "tensor -1"),
    "nan": (lambda h: h["calls"][0]["kwargs"].update(x=float("nan")), "'x' of denoiser call 0 holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_metadata_that_is_not_sound(file, case):
    edit, words = HEADS[case]
    change(file, edit)
    refused(file, words)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"kind": ' + "9" * 5000 + "}"])
def test_metadata_that_is_no_object(file, text):
    save_file(load_file(file), file, metadata={"dither": text})
    refused(file, "calls.safetensors")


TENSORS = {
    "nan": (lambda t: t["0"].view(-1)[3:4].fill_(float("nan")), "tensor 0 holds NaN"),
    "names": (lambda t: t.update(more=torch.ones(1)), "not numbered"),
    "left over": (lambda t: t.update({str(len(t)): torch.ones(1)}), "belongs to no call"),
    "dtype": (lambda t: t.update({"0": t["0"].to(torch.float8_e4m3fn)}), "float8"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_sound(file, case):
    edit, words = TENSORS[case]
    change(file, edit_tensors=edit)
    refused(file, words)


def test_sizes_beyond_reason(file, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("dither.recorded.file.HEAD_BYTES", 100)
        refused(file, "metadata takes more than 100 bytes")
    monkeypatch.setattr("dither.recorded.file.FILE_BYTES", 100)
    refused(file, "more than 100 bytes")
