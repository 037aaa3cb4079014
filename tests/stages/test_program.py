"""The integer program as a stage: layers alone, one proxy, optimal and noted."""

from itertools import product

import jobs
import pytest
import studies
import torch

from dither.spec import Act, Int
from dither.stages import Assign, Program
from dither.stages.budget import expected

ATTENTION = Assign(weight=Int(4, False), act=Act(Int(8)), exclude=r"norm1|ff|blocks\.1|to_[qk]")


def ran(*stages):
    pipe = jobs.pipeline()
    job, found = studies.job(pipe)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job, found


def test_every_layer_is_drawn_alone_and_judged_by_nothing_but_squared_error():
    job, (study,) = ran(Assign(weight=Int(4), adaln=Int(4)), Program(weight=5.0, ranges=2, weight_widths=(4, 8)))
    assert study.drawn == len(job.specs | job.varied) * 2
    assert study.roles == ()


def test_units_share_their_widths_where_layers_are_not_alone():
    job, (study,) = ran(Assign(weight=Int(4), adaln=Int(4)), Program(weight=5.0, ranges=1, by_layer=False))
    assert study.drawn == 6 * 2
    block = "transformer_blocks.0.attn1.to_"
    assert len({job.specs[f"{block}{x}"].weight for x in ("q", "k", "v", "out.0")}) == 1


@pytest.mark.parametrize("average", [4.0, 5.0, 6.7, 8.0])
def test_no_allocation_of_the_same_budget_is_expected_to_be_better(average):
    job, _ = ran(ATTENTION, Program(weight=average, ranges=2, weight_widths=(4, 6, 8)))
    said = job.notes["integer-program"]["weight"]
    names = list(job.specs)
    assert len(names) == 2
    assert said["gap"] == 0
    assert said["average"] <= average
    curves = []  # errors of each layer and range at 4, 6 and 8 bits, as noted
    for name in names:
        found = job.notes[name]["sensitivity"]
        for r in range(2):
            four, six = found["w4"]["mse"][r], found["w6"]["mse"][r]
            curves.append((four, min(four, six), 0.0))
    best = min(
        sum(curve[i] for curve, i in zip(curves, chosen, strict=True))
        for chosen in product(range(3), repeat=4)
        if sum(4 + 2 * i for i in chosen) / 4 <= average
    )
    assert said["expected"]["mse"] == pytest.approx(best, rel=0.02)  # notes are rounded


def test_expected_errors_add_up():
    assert expected([], []) == {"mse": 0.0}
