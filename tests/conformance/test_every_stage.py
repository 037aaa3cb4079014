"""What every stage must do. A new stage is one row in ``ROWS``; a test fails until it has one."""

import dataclasses
import json

import jobs
import pytest
import torch

import dither
from dither.checkpoint import header_of
from dither.recipes import recipe_from, recipe_to
from dither.spec import Act, Bits, Codebook, Float8, Gaussian, Int, Recipe, Trellis, from_json, to_json
from dither.stages import (
    STAGES,
    AdaRound,
    Assign,
    Attention,
    Clip,
    Codebooks,
    CodeProgram,
    Evolve,
    FisherAttention,
    FisherScales,
    Gptq,
    GroupProgram,
    Groups,
    Halve,
    HessianTrace,
    Log2OrUniform,
    Mixed,
    Phase,
    Precompute,
    Program,
    Ranges,
    Regions,
    Rotate,
    Rtn,
    Share,
    Smooth,
    Split,
    SplitLowRank,
    Stage,
    Teacher,
    TimedSmooth,
    TimeGroups,
    Tune,
    Widen,
    describe,
    stage_from,
)

PLAIN = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(8))
MIXED = Mixed(
    weight=6.0, act=6.0, weight_widths=(4, 8), act_widths=(4, 8), ranges=2, samples=2, steps=2, content="zoo:fashion",
    visual="zoo:fashion",
)  # fmt: skip
BANKS = dataclasses.replace(MIXED, nested=False, act=None)
STORED = dataclasses.replace(MIXED, stored=True)
PROGRAM = Program(weight=6.0, weight_widths=(4, 8), ranges=2, samples=2, steps=2)
GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(8, group=8))
SIZES = {"transformer_blocks.0.attn1.to_q": 4, "transformer_blocks.1.norm1.linear": 16}
BY_PICTURES = GroupProgram(sizes=(4, 8, 16), samples=2, steps=2)
BY_OUTPUTS = GroupProgram(sizes=(4, 8, 16), bits=8.5, pictures=False, rows=64)
EVOLVE = Evolve(population=4, keep=2, rounds=1, sizes=(4, 8, 16), samples=2, steps=2)
BY_DISTANCE = dataclasses.replace(EVOLVE, judge="zoo:fashion")
HALVE = Halve(candidates=4, sizes=(4, 8, 16), samples=2, most=4, steps=2)
STATIC = Assign(weight=Int(8), act=Act(Int(8, False), static=True), adaln=Int(8), time_groups=3, branches=2)
FLOAT8 = Assign(weight=Float8(), act=Act(Float8()), adaln=Float8())
FLOAT8_STATIC = dataclasses.replace(STATIC, weight=Float8(), act=Act(Float8(), static=True))
SEARCHED = Smooth(search=(0.25, 0.75), rows=64, weight=Float8(), act=Act(Float8()))
UNTIMED = dataclasses.replace(STATIC, time_groups=1, branches=1)

ADAROUND = AdaRound(iterations=4, batch=8, again=2)
WORDS = Assign(weight=Codebook(2, 16), act=Act(Int(8)), adaln=Codebook(4, 8, row_scale=True))
CODEBOOKS = Codebooks(trajectories=2, samples=2, steps=2, iterations=3)
TUNE = Tune(trajectories=2, samples=2, steps=2, lr=0.1, refresh=1, own=0.5)
TILES_ALL = Assign(weight=Trellis(2, 6, 4, 4), act=Act(Int(8)), adaln=Int(4))
TILES = Assign(weight=Trellis(2, 6, 4, 4), adaln=Gaussian(4, 256))

ROWS: dict[str, tuple[Stage, tuple[Stage, ...]]] = {
    "precompute": (Precompute(), (Precompute(), PLAIN, Rtn())),
    "precompute before all": (
        Precompute(steps=1001),
        (Precompute(steps=1001), Smooth(data_free=True, calibrate=False), STATIC, Attention(), Gptq(), Ranges()),
    ),
    "tune by time": (
        dataclasses.replace(TUNE, time_bias="net"),
        (Teacher(), STATIC, Rtn(), dataclasses.replace(TUNE, time_bias="net"), Ranges()),
    ),
    "gptq by outputs": (Gptq(outputs=4, tokens=64), (Rotate(), PLAIN, Gptq(outputs=4, tokens=64))),
    "gptq by outputs of tiles": (Gptq(outputs=1, tokens=64), (TILES, Gptq(outputs=1, tokens=64))),
    "share": (Share(), (Precompute(), STATIC, Rtn(), Ranges(), Share())),
    "share nothing": (Share(), (PLAIN, Rtn(), Share())),
    "smooth": (Smooth(), (Smooth(), PLAIN, Rtn())),
    "smooth alpha 0": (Smooth(alpha=0.0), (Smooth(alpha=0.0), PLAIN, Rtn())),
    "smooth alpha 1": (Smooth(alpha=1.0), (Smooth(alpha=1.0), PLAIN, Rtn())),
    "smooth searched": (Smooth(search=(0.25, 0.75), rows=64), (Smooth(search=(0.25, 0.75), rows=64), PLAIN, Rtn())),
    "smooth online": (Smooth(online=True), (Smooth(online=True), PLAIN, Rtn())),
    "smooth searched for float8": (SEARCHED, (SEARCHED, FLOAT8, Rtn())),
    "rotate": (Rotate(), (Rotate(), PLAIN, Rtn())),
    "rotate blocks": (Rotate(block=8), (Smooth(online=True), Rotate(block=8), PLAIN, Rtn())),
    "rotate by incoherence": (Rotate(threshold=2.5), (Rotate(threshold=2.5), PLAIN, Rtn())),
    "rotate some, static": (Rotate(layers="ff|to_v"), (Rotate(layers="ff|to_v"), STATIC, Rtn(), Ranges())),
    "smooth by ViDiT-Q's alpha": (Smooth(vidit_alpha=0.99), (Smooth(vidit_alpha=0.99), PLAIN, Rtn())),
    "smooth data-free": (Smooth(data_free=True), (Smooth(data_free=True), PLAIN, Rtn())),
    "smooth without data": (
        Smooth(data_free=True, calibrate=False),
        (Smooth(data_free=True, calibrate=False), PLAIN, Rtn()),
    ),
    "smooth by Spearman": (
        Smooth(aggregate="spearman"),
        (Smooth(aggregate="spearman"), STATIC, Rtn(), Ranges()),
    ),
    "smooth, self-weighted": (
        Smooth(alpha=1.0, aggregate="self-weighted", ranges=2, online=True),
        (Smooth(alpha=1.0, aggregate="self-weighted", ranges=2, online=True), PLAIN, Rtn()),
    ),
    "smooth, mean of ranges": (
        Smooth(search=(0.25, 0.75), rows=64, data_free=True, aggregate="mean", ranges=3),
        (Smooth(search=(0.25, 0.75), rows=64, data_free=True, aggregate="mean", ranges=3), PLAIN, Rtn()),
    ),
    "timed smooth": (TimedSmooth(), (PLAIN, TimedSmooth(), Rtn())),
    "timed smooth searched": (
        TimedSmooth(search=(0.25, 0.75), rows=64),
        (PLAIN, TimedSmooth(search=(0.25, 0.75), rows=64), Rtn()),
    ),
    "timed smooth data-free": (TimedSmooth(data_free=True), (PLAIN, TimedSmooth(data_free=True), Rtn())),
    "assign": (PLAIN, (PLAIN, Rtn())),
    "assign weight only": (Assign(weight=Int(3, False, 8)), (Assign(weight=Int(3, False, 8)), Rtn())),
    "assign codebook": (Assign(weight=Codebook(2, 16)), (Assign(weight=Codebook(2, 16)), Rtn())),
    "assign float8": (FLOAT8, (Rotate(), FLOAT8, Rtn())),
    "assign act only": (Assign(act=Act(Int(8))), (Assign(act=Act(Int(8))), Rtn())),
    "attention": (Attention(), (PLAIN, Attention(), Rtn(), Ranges())),
    "attention and probabilities, static": (
        Attention(4, True, probs=8, static=True, layers="attn1"),
        (STATIC, Attention(4, True, probs=8, static=True, layers="attn1"), Rtn(), Ranges()),
    ),
    "regions": (Regions(), (STATIC, Attention(static=True, probs=8), Regions(), Rtn(), Ranges())),
    "regions, shift, chosen": (
        Regions(shift=True, choose=True, dynamic=True, rows=16),
        (
            STATIC,
            Attention(None, probs=6, static=True),
            Regions(shift=True, choose=True, dynamic=True, rows=16),
            Rtn(),
            Ranges(top=1.0),
        ),
    ),
    "log2": (Log2OrUniform(), (STATIC, Attention(static=True, probs=4), Log2OrUniform(), Rtn(), Ranges())),
    "widen always": (Widen(blocks=(-1,), weight=6, act=6), (PLAIN, Widen(blocks=(-1,), weight=6, act=6), Rtn())),
    "widen at times": (
        Widen(layers="ff|to_q", ranges=4, at=(0, 3), weight=8),
        (PLAIN, Widen(layers="ff|to_q", ranges=4, at=(0, 3), weight=8), Rtn()),
    ),
    "mixed": (MIXED, (Smooth(online=True), PLAIN, MIXED, Rtn())),
    "mixed, banks": (BANKS, (PLAIN, BANKS, Rtn())),
    "mixed, stored": (STORED, (Rotate(), PLAIN, STORED, Clip(outputs=False), Rtn())),
    "integer program": (PROGRAM, (PLAIN, PROGRAM, Rtn())),
    "groups": (Groups(SIZES), (GROUPED, Groups(SIZES), Rtn())),
    "group program": (BY_PICTURES, (GROUPED, BY_PICTURES, Rtn())),
    "group program, outputs": (BY_OUTPUTS, (Smooth(online=True), GROUPED, BY_OUTPUTS, Clip(outputs=False), Rtn())),
    "hessian trace": (
        HessianTrace(sizes=(4, 8, 16), calls=2),
        (Rotate(), GROUPED, HessianTrace(sizes=(4, 8, 16), calls=2), Rtn()),
    ),
    "evolve": (EVOLVE, (Smooth(online=True), GROUPED, EVOLVE, Rtn())),
    "evolve by distance": (BY_DISTANCE, (GROUPED, Attention(), BY_DISTANCE, Clip(outputs=False), Rtn(), Ranges())),
    "halve": (HALVE, (Rotate(), GROUPED, HALVE, Rtn())),
    "split": (
        Split(layers="ff.net.2", parts=(16, 48)),
        (Rotate(layers="to_q"), STATIC, Split(layers="ff.net.2", parts=(16, 48)), Rtn(), Ranges()),
    ),
    "split what is known": (Split(), (GROUPED, Split(), Rtn())),
    "time groups": (TimeGroups(3, 2), (UNTIMED, TimeGroups(3, 2), Rtn(), Ranges())),
    "time groups learned": (
        TimeGroups(3, learned=True, budget=0.01),
        (Smooth(online=True), UNTIMED, TimeGroups(3, learned=True, budget=0.01), Rtn(), Ranges()),
    ),
    "clip by outputs": (Clip(steps=5, rows=64), (PLAIN, Clip(steps=5, rows=64), Rtn())),
    "clip by weights": (Clip(outputs=False, power=2.0), (PLAIN, Clip(outputs=False, power=2.0), Rtn())),
    "fisher scales": (
        FisherScales(steps=10, rows=60, calls=2),
        (STATIC, FisherScales(steps=10, rows=60, calls=2), Rtn(), Ranges()),
    ),
    "fisher scales at the quantized point": (
        FisherScales(steps=10, rows=60, calls=2, quantized=True),
        (Smooth(online=True), PLAIN, FisherScales(steps=10, rows=60, calls=2, quantized=True), Rtn()),
    ),
    "fisher scales of attention": (
        FisherAttention(steps=10, calls=2, samples=2),
        (
            STATIC,
            Attention(4, True, probs=6, static=True, channels=True),
            Regions(),
            FisherAttention(steps=10, calls=2, samples=2),
            Rtn(),
            Ranges(),
        ),
    ),
    "adaround": (ADAROUND, (Smooth(online=True), PLAIN, ADAROUND, Rtn())),
    "adaround by linears": (
        dataclasses.replace(ADAROUND, blocks=False),
        (GROUPED, Clip(outputs=False), dataclasses.replace(ADAROUND, blocks=False)),
    ),
    "adaround, static, in two passes and rounds": (
        dataclasses.replace(ADAROUND, act_after=2, rounds=2),
        (Rotate(), STATIC, dataclasses.replace(ADAROUND, act_after=2, rounds=2), Ranges()),
    ),
    "code program": (CodeProgram(rows=64), (Rotate(), TILES_ALL, CodeProgram(rows=64), Gptq())),
    "codebooks": (CODEBOOKS, (WORDS, CODEBOOKS)),
    "codebooks, all at once": (
        dataclasses.replace(CODEBOOKS, progressive=False, threshold=1.0, candidates=3, inverse=False, absolute=True),
        (
            Rotate(),
            Assign(weight=Codebook(2, 16), act=Act(Int(8), static=True)),
            dataclasses.replace(
                CODEBOOKS, progressive=False, threshold=1.0, candidates=3, inverse=False, absolute=True
            ),
            Ranges(),
        ),
    ),
    "codebooks, words alone": (
        dataclasses.replace(CODEBOOKS, candidates=1),
        (WORDS, dataclasses.replace(CODEBOOKS, candidates=1), Rtn()),
    ),
    "teacher": (Teacher(), (Teacher(), PLAIN, Rtn(), TUNE)),
    "tune words": (TUNE, (Teacher(), WORDS, Rtn(), TUNE)),
    "tune float8": (TUNE, (Teacher(), FLOAT8, Rtn(), TUNE)),
    "tune tiles": (TUNE, (Teacher(), Rotate(), TILES, Gptq(), TUNE)),
    "tune scales alone, static": (
        dataclasses.replace(TUNE, lr=0.0),
        (Teacher(), Smooth(online=True), STATIC, Gptq(), dataclasses.replace(TUNE, lr=0.0), Ranges()),
    ),
    "gptq": (Gptq(), (Smooth(online=True), PLAIN, Gptq())),
    "gptq in groups, by activation": (Gptq(act_order=True), (Rotate(), GROUPED, Gptq(act_order=True))),
    "gptq in one pass": (Gptq(walk=False, levels=0, bias=False), (PLAIN, Gptq(walk=False, levels=0, bias=False))),
    "gptq by site, clipped": (
        Gptq(by_site=True, clip=4, time_weights=(1.0, 2.0)),
        (STATIC, Gptq(by_site=True, clip=4, time_weights=(1.0, 2.0)), Ranges()),
    ),
    "low rank": (SplitLowRank(rank=2), (Smooth(online=True), GROUPED, SplitLowRank(rank=2), Rtn())),
    "low rank beside tiles": (
        SplitLowRank(rank=2, rounds=1),
        (Teacher(), Rotate(), TILES, SplitLowRank(rank=2, rounds=1), Gptq(), dataclasses.replace(TUNE, lr=0.0)),
    ),
    "low rank in full precision": (
        SplitLowRank(rank=2, rounds=2, bits=None),
        (Rotate(), PLAIN, SplitLowRank(rank=2, rounds=2, bits=None), Rtn()),
    ),
    "low rank for the output": (
        SplitLowRank(rank=2, rounds=2, weighted=True),
        (PLAIN, SplitLowRank(rank=2, rounds=2, weighted=True), Gptq()),
    ),
    "rtn": (Rtn(), (PLAIN, Rtn())),
    "ranges": (Ranges(), (STATIC, Rtn(), Ranges())),
    "ranges of float8": (Ranges(), (FLOAT8_STATIC, Rtn(), Ranges())),
    "ranges shrunk": (Ranges(keep=0.9), (STATIC, Rtn(), Ranges(keep=0.9))),
    "ranges moving": (Ranges(momentum=0.9), (STATIC, Rtn(), Ranges(momentum=0.9))),
}
"""What it shows -> the stage with these switches, and a whole recipe with it."""
TRANSFORMS = [name for name, (stage, _) in ROWS.items() if stage.phase == Phase.TRANSFORM and stage != Teacher()]


def recipe(row: str) -> Recipe:
    return Recipe("test", "", Bits(4, 8), describe(ROWS[row][1]))


def quantized(row: str, seed: int = 0):
    pipe = jobs.pipeline()
    return dither.quantize(
        pipe, recipe(row), seed=seed, calibration=dither.Calibration(samples=10, steps=3, calls=3)
    ).transformer


def test_every_stage_has_a_row():
    assert {stage.tag for stage, _ in ROWS.values()} == set(STAGES)
    assert all(stage in stages for stage, stages in ROWS.values())


@pytest.mark.parametrize("tag", STAGES)
def test_a_stage_is_a_frozen_dataclass_under_its_tag(tag):
    cls = STAGES[tag]
    assert cls.tag == tag
    assert isinstance(cls.phase, Phase)
    assert isinstance(cls.paper, str)
    assert cls.__dataclass_params__.frozen
    assert cls() == stage_from(tag, {})  # every switch has a default


@pytest.mark.parametrize("row", TRANSFORMS)
def test_a_transform_keeps_the_function(row):
    pipe = jobs.pipeline()
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    want = jobs.outputs(pipe.transformer)
    jobs.run((ROWS[row][0],), pipe.transformer)
    assert jobs.relative_error(jobs.outputs(pipe.transformer), want) < 1e-5
    after = pipe.transformer.state_dict()
    assert any(k not in after or not torch.equal(v, after[k]) for k, v in before.items())  # and it did something


@pytest.mark.parametrize("row", ROWS)
def test_json_round_trip_is_exact(row):
    stage = ROWS[row][0]
    ((tag, fields),) = describe((stage,))
    assert set(fields) == {f.name for f in dataclasses.fields(stage)}
    assert stage_from(tag, json.loads(json.dumps(fields))) == stage
    whole = recipe(row)
    assert recipe_from(json.loads(json.dumps(recipe_to(whole)))) == whole


@pytest.mark.parametrize("row", ROWS)
def test_a_job_finishes_and_its_checkpoint_reloads_to_the_same_bits(row, tmp_path):
    model = quantized(row)
    plan = header_of(model).plan
    assert plan.layers
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    want = jobs.outputs(model)
    assert torch.isfinite(want).all()
    dither.save(model, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    assert header_of(again).plan == plan
    assert jobs.same_tensors(again, model)
    assert torch.equal(jobs.outputs(again), want)


@pytest.mark.parametrize("row", ROWS)
def test_one_seed_gives_one_model(row):
    assert jobs.same_tensors(quantized(row, seed=3), quantized(row, seed=3))
