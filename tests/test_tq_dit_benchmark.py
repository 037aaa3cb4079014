"""The tables of TQ-DiT and of learned rounding: which rows are asked for at which steps, and what the cells say."""

import pytest
import torch

from benchmarks import regions, tq_dit, tq_dit_tables
from benchmarks.quality.row import Pictures, digest
from dither.quantization import plan_ahead, resolve_recipe
from dither.sources import open_source
from dither.stages import stages_of

MODEL = "zoo:fashion"


def asked(steps: int = 10):
    study = tq_dit.STUDIES[steps]
    return list(study.asked([MODEL], study.widths))


def stages(line, bits: str = "w6a6"):
    """By tag."""
    return {stage.tag: stage for stage in stages_of(resolve_recipe(line.recipe, bits, line.settings))}


def test_every_line_is_a_recipe_that_exists_and_lines_differ():
    plan = asked()
    assert len({digest(row, Pictures()) for _, row in plan}) == len(plan)
    assert len({(line.name, row.bits) for line, row in plan}) == len(plan)


@pytest.mark.parametrize("model", tq_dit.MODELS)
def test_every_line_fits_its_models(model):
    pipeline = open_source(model).pipeline
    for line in tq_dit.LINES:
        job = plan_ahead(pipeline, resolve_recipe(line.recipe, "w6a6", line.settings))
        assert job.specs, line.name
        assert job.attention, line.name


def test_lines_are_what_their_names_say():
    for line in tq_dit.LINES:
        made = stages(line)
        assert made["assign"].act.static, line
        if line.recipe == "tq-dit":
            assert ("regions" in made) == (not line.name.startswith("static RTN")), line
            searched = "Fisher" in line.name or line.name == tq_dit.TQ_DIT
            assert ("fisher-scales" in made) == searched, line
            timed = "without" not in line.name and ("time groups" in line.name or searched)
            assert ("time-groups" in made) == timed, line
            assert made["attention"].channels == (line.name == tq_dit.TQ_DIT), line
            if "+ time groups" in line.name:
                assert made["time-groups"].groups == int(line.name.rpartition(" ")[2])
        if line.recipe == "ptq4dit":
            assert ("smooth" in made) == ("zero points" not in line.name and "alone" not in line.name), line
            assert ("adaround" in made) == ("reconstruction" in line.name), line
            spearman = "Spearman" in line.name or "PTQ4DiT" in line.name
            assert "smooth" not in made or (made["smooth"].aggregate == "spearman") == spearman, line


def test_more_steps_are_for_components_and_whole_methods():
    names = [line.name for line in tq_dit.LINES]
    assert set(names) > tq_dit.AT_10_ALONE
    for steps in (25, 50):
        assert [line.name for line in tq_dit.STUDIES[steps].lines] == [n for n in names if n not in tq_dit.AT_10_ALONE]
        assert tq_dit.STUDIES[steps].steps == steps
        assert tq_dit.STUDIES[steps].result == f"tq_dit_{steps}"
        given = tq_dit.STUDIES[steps].parsed(["--measured"])
        assert tq_dit.STUDIES[steps].command(given) == f"python -m benchmarks.tq_dit --steps {steps} --measured"


def test_every_difference_is_between_lines_that_are_there():
    names = {line.name for line in tq_dit.LINES}
    assert {name for pair in tq_dit.PAIRS for name in pair} <= names
    assert len(set(tq_dit.PAIRS)) == len(tq_dit.PAIRS)


# --- regions alone


def test_released_regions_gain_the_split():
    """What lies above the split is off by it, so that a small one must do; disjoint regions choose freely."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    ways = regions.softmax_ways(8)
    assert regions.share(ways["overlapping"](x), x) > 5 * regions.share(ways["disjoint"](x), x)
    high = torch.tensor([0.5, 0.25])
    assert bool((regions.overlapping(high, 8) >= high).all())


def test_the_table_of_regions_has_a_line_a_way(monkeypatch):
    rows = [
        regions.row(model, of, way, bits, [0.001, 0.003])
        for model in ("fashion", "fashion-hard")
        for of, ways in (("softmax", regions.softmax_ways(8)), ("GELU", regions.gelu_ways(8)))
        for way in ways
        for bits in (8, 6)
    ]
    found = {
        "rows": rows, "device": "CPU", "versions": {"torch": "2"}, "command": "python -m benchmarks.regions",
        "calibration": {"samples": 8, "calls": 8, "steps": 25, "seed": 0},
    }  # fmt: skip
    monkeypatch.setattr(tq_dit_tables, "result", lambda name: found)
    lines = tq_dit_tables.regions().splitlines()
    assert lines[0].split(" | ")[2:] == ["`zoo:fashion`, 8 bits", "`zoo:fashion`, 6 bits", "`zoo:fashion-hard`, 8 bits",
                                         "`zoo:fashion-hard`, 6 bits |"]  # fmt: skip
    assert sum(line.startswith(("| softmax", "| GELU")) for line in lines) == 7 + 4
    assert all("2.0e-03" in line for line in lines[2:13])


def test_every_way_keeps_the_shape_and_is_near():
    x = torch.rand(2, 3, 8, 16).softmax(-1)
    for way in regions.softmax_ways(8).values():
        assert way(x).shape == x.shape
    z = torch.nn.functional.gelu(torch.randn(2, 8, 16))
    for word, way in regions.gelu_ways(8).items():
        assert regions.share(way(z), z) < 1e-3, word
