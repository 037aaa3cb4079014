"""One unit alone, in one range of the noise level: exact, only there, and gone afterwards."""

from functools import partial

import jobs
import pytest
import studies
import torch

from dither.errors import BadValue
from dither.numerics import decode, dynamic_grid, encode, fake_quantize, rotate
from dither.spec import Act, Int, Nested
from dither.stages import Assign, Rotate, Smooth
from dither.stages.nesting import rounded
from dither.stages.roles import units_of
from dither.stages.sensitivity import Variant, measure, only

W4 = Variant("w4", lambda name: Int(4, False), lambda name: None)
A4 = Variant("a4", lambda name: None, lambda name: Act(Int(4)))
BALANCE = (Smooth(online=True), Rotate())
LAYER = "transformer_blocks.0.ff.net.2"


def prepared(*stages, bits="w4a8"):
    pipe = jobs.pipeline()
    job, found = studies.job(pipe, bits)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return pipe, job, found


def units(job):
    return units_of(x for x in job.layers.values() if not x.keep)


def state(model: torch.nn.Module):
    hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]
    return hooks, "forward" in vars(model), [(n, type(m)) for n, m in model.named_modules()]


@pytest.mark.parametrize("stages", [(), BALANCE], ids=["plain", "balanced"])
def test_a_weight_is_rounded_after_scale_and_rotation(stages):
    _, job, _ = prepared(*stages)
    twin = job.imitation(LAYER, Nested(Int(8), 4), None)
    w = job.dense(LAYER)
    want = rounded(w, Nested(Int(8), 4))
    assert torch.equal(twin.get_buffer("weight_dense"), want)
    assert not torch.equal(job.dense(LAYER), want)


@pytest.mark.parametrize("stages", [(), BALANCE], ids=["plain", "balanced"])
def test_an_input_is_quantized_after_scale_and_rotation(stages):
    pipe, job, _ = prepared(*stages)
    twin = job.imitation(LAYER, None, Act(Int(3)))
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    seen = x
    if stages:
        layer = pipe.transformer.get_submodule(LAYER)
        seen = rotate(x * layer.get_buffer("pre_scale")[0], layer.get_buffer("rotation_signs"), 64)
    want = fake_quantize(seen, Int(3), *dynamic_grid(seen, Int(3))) @ job.dense(LAYER).T + twin.bias
    with torch.no_grad():
        torch.testing.assert_close(twin(x), want)


def test_only_samples_inside_the_range_are_changed_and_nothing_remains():
    pipe, job, _ = prepared()
    model = pipe.transformer
    before, clean = state(model), jobs.calls()[0]
    x, layer = torch.randn(4, 5, 64), model.get_submodule(LAYER)
    twin = job.imitation(LAYER, Int(2), None)
    inside = torch.tensor([True, False])  # each of the call's samples has two rows of x
    with torch.no_grad():
        plain, other = layer(x), twin(x)
        with only(model, {LAYER: twin}, lambda: inside):
            y = layer(x)
        with only(model, {LAYER: twin}, lambda: torch.tensor([True, True])):
            assert torch.equal(layer(x), other)
            torch.testing.assert_close(layer(x[:1]), other[:1])  # one row for all samples
        with only(model, {LAYER: twin}, lambda: torch.tensor([False])):
            assert torch.equal(layer(x), plain)
    assert torch.equal(y, torch.cat([other[:2], plain[2:]]))
    assert state(model) == before
    assert clean is jobs.calls()[0]


def test_losses_are_those_of_a_model_changed_by_hand():
    pipe, job, _ = prepared()
    study = job.study(studies.StudySettings(judges={"visual": ""}))
    chosen = [u for u in units(job) if u.name == "transformer_blocks.0.ffn"]
    before = state(pipe.transformer)
    with torch.no_grad():
        losses = measure(job, study, [(chosen[0], [W4])], (0.5,))
    assert set(losses) == {("transformer_blocks.0.ffn", i, "w4") for i in (0, 1)}
    assert state(pipe.transformer) == before
    clean = jobs.sample(pipe, (0, 3))
    other = jobs.pipeline()
    rounded = {
        n: decode(encode(job.dense(n), Int(4, False)), Int(4, False), tuple(job.dense(n).shape))
        for n in chosen[0].layers
    }
    full = {n: job.dense(n).clone() for n in chosen[0].layers}

    def swap(module, args, kwargs, late):
        inside = bool(kwargs["timestep"][0] / 1000 >= 0.5) is late
        for name, weight in (rounded if inside else full).items():
            module.get_submodule(name).weight.data = weight

    for i in (0, 1):
        handle = other.transformer.register_forward_pre_hook(partial(swap, late=bool(i)), with_kwargs=True)
        off = jobs.sample(other, (0, 3)) - clean
        handle.remove()
        assert losses["transformer_blocks.0.ffn", i, "w4"]["mse"] == pytest.approx(float(off.square().mean()), rel=1e-4)
        assert losses["transformer_blocks.0.ffn", i, "w4"]["visual"] == pytest.approx(float(off.abs().max()), rel=1e-4)


def test_full_precision_is_drawn_once_and_calls_before_the_range_are_not_made_again():
    pipe, job, found = prepared()
    study = job.study(studies.StudySettings())
    made = []
    block = pipe.transformer.transformer_blocks[0]
    handle = block.register_forward_pre_hook(lambda m, a: made.append(1))
    with torch.no_grad():
        measure(job, study, [(u, [W4, A4]) for u in units(job)[:1]], (0.25, 0.5, 0.75))
    handle.remove()
    assert found[0].begun == 1
    assert found[0].drawn == 8
    # 4 steps, one in each quarter: from noise on, a quarter's drawing makes the calls from its own on
    assert len(made) == 4 + 2 * (4 + 3 + 2 + 1)


@pytest.mark.parametrize("most", [0, 3, 7])
def test_an_interrupted_measurement_goes_on_and_gives_the_same(most):
    def losses(store):
        _, job, found = prepared()
        job.store = store
        study = job.study(studies.StudySettings(judges={"visual": ""}))
        with torch.no_grad():
            return measure(job, study, [(u, [W4, A4]) for u in units(job)[:2]], (0.5,)), found[0]

    want, study = losses(studies.Kept())
    assert study.drawn == 8
    store = studies.Kept(most)
    with pytest.raises(KeyboardInterrupt):
        losses(store)
    assert len(store) == most
    assert all(name.startswith("sensitivity.transformer_blocks.0.") for name in store)
    store.most = 10**9
    got, study = losses(store)
    assert got == want
    assert study.drawn == 8 - most
    got, study = losses(store)
    assert got == want
    assert (study.drawn, study.begun) == (0, 0)


def test_an_interruption_leaves_the_model_as_it_was():
    pipe, job, _ = prepared()
    before, tensors = state(pipe.transformer), {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    job.store = studies.Kept(1)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        measure(job, job.study(studies.StudySettings()), [(u, [W4]) for u in units(job)], ())
    assert state(pipe.transformer) == before
    assert all(torch.equal(v, tensors[k]) for k, v in pipe.transformer.state_dict().items())


def test_somebody_elses_forward_is_put_back():
    pipe, job, _ = prepared()
    theirs = partial(pipe.transformer.forward)
    pipe.transformer.forward = theirs
    with torch.no_grad():
        measure(job, job.study(studies.StudySettings()), [(units(job)[0], [W4])], ())
    assert vars(pipe.transformer)["forward"] is theirs


def test_pictures_that_are_not_numbers_name_the_unit():
    _, job, _ = prepared()
    study = job.study(studies.StudySettings())
    study.losses = lambda: {"mse": float("nan")}
    with torch.no_grad(), pytest.raises(BadValue, match=r"mse is nan when only 'transformer_blocks.0.\w+' is w4"):
        measure(job, study, [(units(job)[0], [W4])], ())


def test_progress_is_told():
    _, job, _ = prepared(Assign())
    told = []
    job.progress = lambda *args: told.append(args)
    with torch.no_grad():
        measure(job, job.study(studies.StudySettings()), [(units(job)[0], [W4])], (0.5,))
    assert told == [("measuring sensitivity", i, 2) for i in range(3)]
