"""Calls that a model cannot make are refused before anything is changed, and the reason is told."""

import jobs
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from dither.errors import BadValue
from dither.models import Call
from dither.recorded import check_fit, open_calls, save_calls


def changed(**values):
    """The recorded calls, the last one with other arguments; None takes one away."""
    *rest, last = jobs.calls()
    kwargs = {"hidden_states": last.args[0], **last.kwargs, **values}
    return (*rest, Call((), {k: v for k, v in kwargs.items() if v is not None}))


def model():
    return jobs.pipeline().transformer


def test_its_own_calls_fit_and_change_nothing():
    mine = model()
    check_fit(jobs.calls(), mine, "here")
    assert jobs.same_tensors(mine, model())
    assert not any(m._forward_pre_hooks for m in mine.modules())


def test_alike_calls_are_made_once():
    mine, made = model(), []
    mine.register_forward_pre_hook(lambda m, args: made.append(1))
    check_fit(jobs.calls() * 3, mine, "here")
    assert len(made) == 1


LATENTS = torch.zeros(20, 1, 8, 8)
MISFITS = {
    "name": (changed(noise=LATENTS), "denoiser call 3: .*unexpected keyword argument 'noise'"),
    "channels": (changed(hidden_states=LATENTS.expand(20, 4, 8, 8)), r"latents are \(4, 8, 8\), .* draws \(1, 8, 8\)"),
    "size": (changed(hidden_states=torch.zeros(20, 1, 16, 16)), r"latents are \(1, 16, 16\)"),
    "no latents": (changed(hidden_states=None), "without hidden_states"),
    "no time": (changed(timestep=None), "without a timestep"),
    "batch": (changed(timestep=torch.zeros(7)), "batch of 20, but a timestep or label of shape"),
    "label": (changed(class_labels=torch.full((20,), 11)), "labels 11 to 11, and the model has classes 0 to 9"),
    "dtype": (changed(hidden_states=LATENTS.double()), "denoiser call 3: .+"),
    "none": ((), "holds no denoiser call"),
    "no tensor": ((Call((), {"return_dict": False}),), "without any batched tensor"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_told(case):
    calls, words = MISFITS[case]
    with pytest.raises(BadValue, match=words) as e:
        check_fit(calls, model(), "'calls.safetensors'")
    assert str(e.value).startswith("'calls.safetensors' ")
    assert "\n" not in str(e.value)


def test_a_model_without_a_family_is_asked_by_making_the_call():
    x, t = torch.zeros(2, 4, 16), torch.zeros(2)
    check_fit([Call((x, t), {"cond": t})], tiny.dense(), "here")
    with pytest.raises(BadValue, match="here does not fit Denoiser: denoiser call 1: mat1 and mat2"):
        check_fit([Call((x, t), {"cond": t}), Call((x[..., :8], t), {"cond": t})], tiny.dense(), "here")


def test_a_file_of_another_class_or_family_is_refused_by_name(tmp_path):
    class Other(nn.Linear):
        pass

    path = tmp_path / "c.safetensors"
    save_calls(path, jobs.calls(), Other(2, 2))
    with pytest.raises(BadValue, match="holds calls of Other, and this model is DiTTransformer2DModel"):
        open_calls(path, model())
    save_calls(path, jobs.calls())  # of nobody knows whom
    assert len(open_calls(path, model()).calls) == 4


def test_samples_are_for_a_dit_alone(tmp_path):
    given = {"x": np.zeros((3, 1, 8, 8)), "t": np.arange(3), "y": np.array([0, 9, 10])}
    np.savez(tmp_path / "s.npz", **given)
    (call,) = open_calls(tmp_path / "s.npz", model()).calls
    assert call.kwargs["class_labels"].tolist() == [0, 9, 10]
    with pytest.raises(BadValue, match=r"s\.npz' holds calls of DiT.*this model is Denoiser: 'dither record'"):
        open_calls(tmp_path / "s.npz", tiny.dense())
    np.savez(tmp_path / "s.npz", **{**given, "y": np.array([0, 9, 11])})
    with pytest.raises(BadValue, match=r"s\.npz' does not fit .* labels 0 to 11"):
        open_calls(tmp_path / "s.npz", model())
