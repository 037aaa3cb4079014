"""A user's stored samples in an npz."""

import numpy as np
import pytest
import tiny
import torch

import dither
from dither.errors import BadValue
from dither.recorded import open_calls, read_calls

N = 70


def arrays(**changes):
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((N, 1, 8, 8)).astype(np.float32),
        "t": rng.integers(0, 1000, N),
        "y": rng.integers(0, 11, N),
        **changes,
    }
    return {k: v for k, v in given.items() if v is not None}


def written(folder, **changes):
    np.savez(folder / "samples.npz", **arrays(**changes))
    return folder / "samples.npz"


def test_rows_become_calls_in_their_order(tmp_path):
    found = read_calls(written(tmp_path))
    want = arrays()
    assert (found.model, found.family, found.made) == ("DiTTransformer2DModel", "dit", None)
    assert [len(c.kwargs["timestep"]) for c in found.calls] == [32, 32, 6]
    for name, key in {"x": "hidden_states", "t": "timestep", "y": "class_labels"}.items():
        assert np.array_equal(torch.cat([c.kwargs[key] for c in found.calls]).numpy(), want[name])
    assert {c.kwargs["return_dict"] for c in found.calls} == {False}


@pytest.mark.parametrize("changes", [{"batch": np.int64(7)}, {"batch": np.uint8(7)}])
def test_batch_says_how_many_at_a_time(tmp_path, changes):
    assert {len(c.kwargs["timestep"]) for c in dither.load_calls(written(tmp_path, **changes))} == {7}


def test_other_dtypes_that_mean_the_same(tmp_path):
    want, found = (
        arrays(),
        {"x": arrays()["x"].astype(">f8"), "t": arrays()["t"].astype("f4"), "y": arrays()["y"].astype("u1")},
    )
    calls = dither.load_calls(written(tmp_path, **found))
    assert [calls[0].kwargs[k].dtype for k in ("hidden_states", "timestep", "class_labels")] == [
        torch.float32,
        torch.float32,
        torch.int64,
    ]
    assert np.array_equal(calls[0].kwargs["hidden_states"].numpy(), want["x"][:32])


BAD = {
    "no x": ({"x": None}, "holds no x"),
    "no t": ({"t": None}, "holds no t"),
    "no y": ({"y": None}, "holds no y"),
    "flat": ({"x": arrays()["x"][:, 0]}, r"x must be latents \(N, C, H, W\)"),
    "none": ({"x": arrays()["x"][:0], "t": np.zeros(0), "y": np.zeros(0, int)}, "x must be latents"),
    "bytes": ({"x": np.zeros((N, 1, 8, 8), np.uint8)}, "x has dtype uint8"),
    "nan": ({"x": np.full((N, 1, 8, 8), np.nan)}, "x holds NaN"),
    "large": ({"x": np.full((N, 1, 8, 8), 1e300)}, "beyond float32"),
    "short t": ({"t": np.zeros(3)}, "t of shape"),
    "t of columns": ({"t": np.zeros((N, 1))}, "t of shape"),
    "late": ({"t": np.full(N, 1001)}, "t must be timesteps"),
    "early": ({"t": np.full(N, -1)}, "t must be timesteps"),
    "nan t": ({"t": np.full(N, np.nan)}, "t must be timesteps"),
    "y of fractions": ({"y": np.zeros(N)}, "y has dtype"),
    "short y": ({"y": np.zeros(3, int)}, "y of shape"),
    "negative y": ({"y": np.full(N, -1)}, "y must be class numbers"),
    "huge y": ({"y": np.full(N, 2**63, np.uint64)}, "y must be class numbers"),
    "batch 0": ({"batch": np.int64(0)}, "batch must be"),
    "batches": ({"batch": np.ones(2, int)}, "batch must be"),
    "huge batch": ({"batch": np.int64(10**6)}, "batch must be"),
    "objects": ({"y": np.array([object()] * N)}, "pickled objects"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_named(tmp_path, case):
    changes, words = BAD[case]
    path = written(tmp_path, **changes)
    with pytest.raises(BadValue, match=words) as e:
        dither.load_calls(path)
    assert path.name in str(e.value)
    assert "\n" not in str(e.value)


def test_damage_is_named(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadValue, match=r"samples\.npz is not a whole npz file"):
        dither.load_calls(path)
    with pytest.raises(BadValue, match=r"nowhere\.npz"):
        dither.load_calls(tmp_path / "nowhere.npz")


def test_a_model_of_half_precision_gets_latents_of_its_own_and_whole_timesteps(tmp_path):
    model = tiny.dit().bfloat16()
    x = np.zeros((2, 1, 8, 8), np.float32)
    np.savez(tmp_path / "s.npz", x=x, t=np.array([999.0, 1.0]), y=np.array([1, 2]))
    (call,) = open_calls(tmp_path / "s.npz", model).calls
    assert call.kwargs["hidden_states"].dtype == torch.bfloat16
    assert call.kwargs["timestep"].tolist() == [999.0, 1.0]
