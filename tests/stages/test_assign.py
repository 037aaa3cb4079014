"""Uniform allocation."""

import jobs
import pytest
import torch

from dither.errors import BadFormat, BadRecipe
from dither.models import adapter_for
from dither.numerics import fitting
from dither.spec import Act, Codebook, Int, LinearSpec
from dither.stages import Assign, Smooth

W8A8 = Assign(weight=Int(8), act=Act(Int(8)), adaln=Int(4))


def specs(*stages) -> dict[str, LinearSpec]:
    return jobs.run(stages, jobs.pipeline().transformer).specs


def layers() -> dict:
    model = jobs.pipeline().transformer
    return {layer.name: layer for layer in adapter_for(model).layers(model)}


def test_every_layer_gets_its_format_and_kept_layers_none():
    found = specs(W8A8)
    for name, layer in layers().items():
        if layer.keep:
            assert name not in found
        elif layer.kind == "adaln":
            assert found[name] == LinearSpec(Int(4))  # weight-only
        else:
            assert found[name] == LinearSpec(Int(8), Act(Int(8)))
    assert any(layer.keep for layer in layers().values())


def test_adaln_may_be_left_alone():
    found = specs(Assign(weight=Int(8)))
    assert found
    assert not any(layers()[name].kind == "adaln" for name in found)


def test_exclude_is_searched_in_names():
    found = specs(Assign(weight=Int(8), adaln=Int(8), exclude=r"ff\.net|to_out"))
    assert found
    assert not any("ff.net" in name or "to_out" in name for name in found)
    assert any("to_q" in name for name in found)


def test_a_bad_expression_is_shown():
    with pytest.raises(BadRecipe, match=r"assign\.exclude '\(ff' is not a regular expression"):
        specs(Assign(weight=Int(8), exclude="(ff"))


def test_an_expression_that_finds_nothing_is_most_likely_misspelt():
    with pytest.raises(BadRecipe, match=r"assign\.exclude 'to_x' is found in no layer's name"):
        specs(Assign(weight=Int(8), exclude="to_x"))


def test_time_groups_are_equal_parts_of_the_noise_level():
    job = jobs.run((Assign(act=Act(Int(8), True), time_groups=4, branches=2),), jobs.pipeline().transformer)
    assert job.time_edges == (0.25, 0.5, 0.75)
    assert job.branches == 2
    assert {s.act.rows for s in job.specs.values()} == {8}


def test_dynamic_activations_have_no_table_whatever_their_rows_say():
    found = specs(Assign(act=Act(Int(8), rows=5), time_groups=3))
    assert {s.act.rows for s in found.values()} == {1}


def test_online_transforms_are_kept():
    found = specs(Smooth(online=True), W8A8)
    assert found["transformer_blocks.0.ff.net.2"] == LinearSpec(Int(8), Act(Int(8)), pre_scale=1)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Assign(time_groups=0), "time_groups 0"), (Assign(time_groups=10**12), "time_groups"),
        (Assign(branches=3), "branches 3"), (Assign(branches=0), "branches 0"),
    ],
)  # fmt: skip
def test_impossible_clocks_are_named(stage, name):
    with pytest.raises(BadRecipe, match=rf"assign\.{name}"):
        specs(stage)


@pytest.mark.parametrize(
    "stage",
    [Assign(weight=Int(4, group=5)), Assign(act=Act(Int(8, group=5))), Assign(weight=Codebook(5, 16))],
    ids=["weight", "act", "codebook"],
)
def test_a_width_that_does_not_divide_names_layer_and_sizes_before_data_is_made(stage):
    job = jobs.job(jobs.pipeline().transformer)
    job.record = None
    with pytest.raises(BadFormat, match=r"layer 'transformer_blocks\.0\.attn1\.to_q'.* 5 does not divide the 16"):
        stage.run(job)


def test_two_stages_that_disagree_on_time_are_an_error():
    with pytest.raises(BadRecipe, match="different time groups"):
        specs(Assign(act=Act(Int(8), True), time_groups=2), Assign(act=Act(Int(8), True), time_groups=3))


def test_nothing_but_the_plan_changes():
    model = jobs.pipeline().transformer
    before = {k: v.clone() for k, v in model.state_dict().items()}
    jobs.run((W8A8,), model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("width", "asked", "gets"), [(16, 128, 16), (16, 5, 4), (24, 16, 12), (24, 24, 24), (24, 0, 0), (24, -1, -1)]
)
def test_the_widest_group_that_divides(width, asked, gets):
    assert fitting(Int(4, False, asked), width) == Int(4, False, gets)


def test_fit_takes_it_and_refuses_groups_that_are_all_overhead():
    found = specs(Assign(weight=Int(4, group=100), act=Act(Int(8, group=100)), fit=True))
    assert {(s.weight.group, s.act.grid.group) for s in found.values() if s.act is not None} == {(16, 16), (64, 64)}
    model = jobs.pipeline(num_attention_heads=1, attention_head_dim=44).transformer
    job = jobs.job(model)
    job.record = None
    with pytest.raises(
        BadRecipe, match=r"assign\.fit: of the 44 .* layer 'transformer_blocks\.0\.\S+' no group of at least 16"
    ):
        Assign(weight=Int(4, group=16), fit=True).run(job)
