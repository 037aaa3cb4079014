"""Files of results: the same bytes for the same arrays, and none believed that was changed."""

import json
import os
import shutil
import struct
import time

import numpy as np
import pytest
from chores import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dither.errors import DitherError
from dither.scale import ShardStore, key_of
from dither.scale.shards import STALE_S

JOB = {"seed": 3}
KINDS = ["bool", "u1", "i2", "i8", "f2", "f4", "f8", "c8"]


def test_results_come_back_as_they_were(tmp_path):
    store = ShardStore(tmp_path / "a" / "store")
    assert store.get(JOB) is None
    arrays = drawn(0)  # some of them turned, or big-endian
    store.put(JOB, arrays)
    again = ShardStore(store.folder)
    kept = again.get(JOB)
    assert kept.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(kept[name], array)
        assert kept[name].shape == array.shape
        assert kept[name].dtype == array.dtype.newbyteorder("=")
    assert again.get({"seed": 4}) is None
    assert again.damaged == []


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.sampled_from(KINDS).flatmap(
            lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        ),
        max_size=3,
    )
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_arrays_come_back_and_equal_arrays_give_equal_files(tmp_path_factory, arrays):
    stores = [ShardStore(tmp_path_factory.mktemp("store")) for _ in range(2)]
    stores[0].put(JOB, arrays)
    stores[1].put(JOB, dict(reversed(arrays.items())))
    assert stores[0].path(JOB).read_bytes() == stores[1].path(JOB).read_bytes()
    kept = stores[0].get(JOB)
    assert kept.keys() == arrays.keys()
    for name, array in arrays.items():
        assert kept[name].shape == array.shape
        assert kept[name].tobytes() == array.tobytes()


def test_bytes_never_change(tmp_path):
    """Stores that exist must stay readable; and safetensors' own reader reads them."""
    store = ShardStore(tmp_path)
    store.put(JOB, {"x": np.array([1, 2], np.uint8)})
    path = store.path(JOB)
    assert path == tmp_path / key_of(JOB)[:2] / f"{key_of(JOB)}.safetensors"
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    assert json.loads(header["__metadata__"]["shard"]) == {
        "digest": "8a33ca1f15dedb1f42a1f6bc691f66dd",
        "job": '{"seed":3}',
    }
    assert raw[8 + size :] == b"\x01\x02"
    assert load_file(path)["x"].tolist() == [1, 2]
    assert path.stat().st_mode == _plain_mode(tmp_path)


def _plain_mode(folder):
    (folder / "plain").touch()
    return (folder / "plain").stat().st_mode


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_changed_file_is_never_believed(tmp_path_factory, data):
    store = ShardStore(tmp_path_factory.getbasetemp() / "tampered")
    store.put(JOB, {"x": np.arange(5.0), "y": np.array([True])})
    path = store.path(JOB)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[place:]
    path.write_bytes(raw)
    assert store.get(JOB) is None
    assert store.damaged[-1].startswith(f"{path}: ")
    store.put(JOB, {"x": np.zeros(1)})
    assert store.get(JOB)["x"].tolist() == [0]


def other_job(store, path):
    store.put({"seed": 4}, {"x": np.zeros(2)})
    shutil.copy(store.path({"seed": 4}), path)


def other_numbers(store, path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (other_job, "it belongs to another job"),
        (other_numbers, "its contents were changed"),
        (lambda store, path: save_file({"x": np.zeros(2)}, path), "it does not say whose result it is"),
        (lambda store, path: save_file({"x": np.zeros(2)}, path, {"shard": "[" * 9999}), "does not say whose"),
        (lambda store, path: path.write_bytes(b""), "header"),
    ],
)
def test_damage_is_named(tmp_path, damage, reason):
    store = ShardStore(tmp_path)
    store.put(JOB, {"x": np.zeros(2)})
    damage(store, store.path(JOB))
    assert store.get(JOB) is None
    assert len(store.damaged) == 1
    assert reason in store.damaged[0]


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3"])
def test_kinds_that_numpy_lacks_are_damage(tmp_path, kind):
    store = ShardStore(tmp_path)
    store.put(JOB, {"x": np.zeros(4, np.float16)})
    path = store.path(JOB)
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["x"] |= {"dtype": kind, "shape": [4 if kind == "BF16" else 8]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    assert store.get(JOB) is None
    assert len(store.damaged) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, error):
    store = ShardStore(tmp_path)

    def full(*args):
        raise error

    monkeypatch.setattr("dither.scale.shards.save_file", full)
    with pytest.raises(DitherError, match=rf"cannot write '.*{key_of(JOB)}\.safetensors': No space left on device"):
        store.put(JOB, {"x": np.zeros(2)})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = ShardStore(tmp_path)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(JOB, {"x": np.zeros(2)})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_dead_runs_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    ShardStore(tmp_path)
    old, new = tmp_path / ".half" / "old", tmp_path / ".half" / "new"
    for half in (old, new):
        half.write_bytes(b"half")
    long_ago = time.time() - STALE_S - 60
    os.utime(old, (long_ago, long_ago))
    ShardStore(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DitherError, match=r"cannot make the folder '.*file'"):
        ShardStore(tmp_path / "file")
