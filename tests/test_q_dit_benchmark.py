"""The tables of Q-DiT's and DiTAS's components and searches: which rows are asked for, and what the cells say."""

import jobs
import pytest

import dither
from benchmarks import component_tables, q_dit, q_dit_tables
from benchmarks.quality.row import LONG, Pictures, digest, searched
from dither.checkpoint import header_of
from dither.quantization import plan_ahead, resolve_recipe
from dither.sources import open_source
from dither.stages import SEARCHES, stages_of

MODEL = "zoo:fashion"


def asked(models=(MODEL,), widths=q_dit.WIDTHS):
    return list(q_dit.STUDY.asked(models, widths))


def stages(line):
    """By tag."""
    return {stage.tag: stage for stage in stages_of(resolve_recipe(line.recipe, "w4a8", line.settings))}


def test_every_line_is_a_recipe_that_exists_and_lines_differ():
    plan = asked()
    assert len({digest(row, Pictures()) for _, row in plan}) == len(plan)
    assert len({(line.name, row.bits) for line, row in plan}) == len(plan)
    assert {bits for line in q_dit.LINES for bits in line.widths} == set(q_dit.WIDTHS)
    assert len({line.name for line in q_dit.LINES}) == len(q_dit.LINES)


@pytest.mark.parametrize("model", q_dit.MODELS)
def test_every_line_fits_its_models(model):
    pipeline = open_source(model).pipeline
    for _, row in asked([model]):
        specs = plan_ahead(pipeline, resolve_recipe(row.recipe, row.bits, row.settings)).specs
        assert specs, row.switch


def test_lines_are_what_their_names_say():
    for line in q_dit.LINES:
        made = stages(line)
        assign = made["assign"]
        assert ("searched" in line.name or line.name.startswith("evolution")) == bool(SEARCHES & set(made)), line
        assert ("gptq" in made) == ("GPTQ" in line.name or "searched" in line.name), line
        assert assign.act.static == (line.name in ("RTN per channel, static", "+ groups of 128")), line
        assert made["ranges"].momentum == (0.9 if assign.act.static else 0), line
        per_channel = "per channel" in line.name
        assert (assign.weight.group == 0) == per_channel, line
        assert not per_channel or assign.act.grid.group == 0
        if line.name.startswith("DiTAS"):
            assert ("low-rank" in made) == ("without branch" not in line.name), line
            assert ("smooth" in made) == ("without smoothing" not in line.name), line


def test_every_difference_is_between_lines_that_are_there_and_share_a_width():
    widths = {line.name: set(line.widths) for line in q_dit.LINES}
    assert len(set(q_dit.PAIRS)) == len(q_dit.PAIRS)
    for first, second in q_dit.PAIRS:
        assert widths[first] & widths[second]
        assert first != second


def test_each_searched_line_is_told_against_the_uniform_size():
    searched = {line.name for line in q_dit.LINES if line.name.startswith("+ searched")}
    assert {of for of, minus in q_dit.PAIRS if minus == q_dit_tables.UNIFORM} >= searched
    assert q_dit_tables.UNIFORM in {line.name for line in q_dit.LINES}


def test_models_take_turns_so_that_two_parts_are_two_models():
    for bits in q_dit.WIDTHS:
        plan = [row.model for _, row in asked(q_dit.MODELS, [bits])]
        assert set(plan[::2]) == {q_dit.MODELS[0]}
        assert set(plan[1::2]) == {q_dit.MODELS[1]}


@pytest.mark.parametrize("words", [[], ["-n", "64", "--bits", "w3a8"], ["--models", "zoo:digits", "--steps", "5"]])
def test_the_command_repeats_the_result(words):
    given = q_dit.STUDY.parsed(words)
    again = q_dit.STUDY.command(given).split()
    assert again[:3] == ["python", "-m", "benchmarks.q_dit"]
    for name in ("models", "bits", "n", "steps"):
        assert getattr(q_dit.STUDY.parsed(again[3:]), name) == getattr(given, name)


# --- the tables


def row(line, low, high, bits="w4a8", minutes=1.0, search=None, model=MODEL):
    return {
        "model": model,
        "recipe": "q-dit",
        "bits": bits,
        "switch": line,
        "settings": [],
        "psnr_db": {"mean": (low + high) / 2, "ci95": [low, high]},
        "fd": {"to_full_precision": 0.25, "to_full_precision_se": 0.01},
        "size": {"bits_per_weight": 4.39584},
        "quantize": {"cpu_minutes": minutes},
        "search": search,
    }


def search(samples=12_960, bitops=38.256):
    costs = {"bits": 4.3, "bitops": bitops}
    return {
        "stage": "evolve",
        "costs": costs,
        "limits": {"bits": 4.31, "bitops": 38.5},
        "model_samples": samples,
        "loss": 0.3,
        "uniform_loss": 0.4,
    }


def gain(line, low, high, bits="w4a8", minus=q_dit_tables.UNIFORM, model=MODEL):
    return {"model": model, "bits": bits, "of": line, "minus": minus, "mean": (low + high) / 2, "ci95": [low, high]}


FULL = {
    "model": MODEL,
    "bits": "",
    "switch": "",
    "psnr_db": {"other_batch_size": 60.0, "other_seeds": 10.4},
    "fd": {"noise_floor": 3.7},
}
UNIFORM = row(q_dit_tables.UNIFORM, 30, 32, minutes=2.0)
FOUND = row("+ searched: evolution", 31, 33, minutes=6.25, search=search())


@pytest.fixture
def told(monkeypatch):
    """Lines of the table of searches below its header, of these rows and differences."""

    def made(rows, differences=()):
        data = {"rows": [FULL, *rows], "differences_db": list(differences)}
        monkeypatch.setattr(q_dit_tables, "result", lambda name: data if name == "q_dit" else pytest.fail(name))
        return [line for line in q_dit_tables.searches().splitlines()[2:] if line.startswith("|")]

    return made


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_search_stands_beside_the_uniform_size_with_its_cost_and_gain(told):
    lines = told([UNIFORM, FOUND], [gain(FOUND["switch"], 0.6, 1.4)])
    head = [f"`{MODEL}`", "W4A8"]
    assert cells(lines[0]) == [*head, "uniform", "", "", "4.396", "", "", "31.0 [30.0, 32.0]", ""]
    assert cells(lines[1]) == [
        *head, "evolution", "12,960", "4.2", "4.396", "38.26 of 38.50", "0.75", "32.0 [31.0, 33.0]",
        "**+1.00 [+0.60, +1.40]**",
    ]  # fmt: skip
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("recipe", "few"),
    [
        ("q-dit", ["evolve.population=4", "evolve.keep=2", "evolve.rounds=1", "evolve.samples=2", "evolve.steps=2"]),
        ("q-dit-ilp", ["group-program.samples=2", "group-program.steps=2"]),
        ("q-dit-trace", ["hessian-trace.calls=2"]),
        ("q-dit-halving", ["halve.candidates=4", "halve.samples=2", "halve.most=4", "halve.steps=2"]),
    ],
)
def test_every_search_notes_what_its_line_needs(told, recipe, few):
    """Groups of 64 in layers of 64 and 256 channels leave a choice."""
    groups = [f"assign.{what}.group=64" for what in ("weight", "act.grid", "adaln")]
    pipe, how = jobs.pipeline(num_attention_heads=8, num_layers=1), dither.Calibration(4, 2, calls=2)
    dither.quantize(pipe, recipe, "w4a8", settings=[*few, *groups, "gptq=off"], calibration=how)
    found = searched({"notes": header_of(pipe.transformer).recipe["notes"]})
    assert found["stage"] == next(iter(SEARCHES & {stage.tag for stage in stages_of(dither.recipes.get(recipe))}))
    assert not set(LONG) & set(found)
    line = cells(told([UNIFORM, row("+ searched: any", 31, 33, minutes=3.0, search=found)])[1])
    assert int(line[3].replace(",", "")) == found["model_samples"] > 0
    assert line[4] == "1.0"
    spent, most = map(float, line[6].split(" of "))
    assert 0 < spent <= most


@pytest.mark.parametrize(
    ("low", "high", "cell"),
    [
        (0.1, 0.3, "**+0.20 [+0.10, +0.30]**"),
        (-0.1, 0.3, "+0.10 [-0.10, +0.30]"),
        (-0.3, -0.1, "**-0.20 [-0.30, -0.10]**"),
        (0.0, 0.2, "+0.10 [+0.00, +0.20]"),
    ],
)
def test_a_gain_is_bold_where_its_interval_excludes_zero(told, low, high, cell):
    assert cells(told([UNIFORM, FOUND], [gain(FOUND["switch"], low, high)])[1])[-1] == cell


def test_only_differences_to_the_uniform_size_count_and_where_there_is_none_the_cell_is_empty(told):
    others = [
        gain(FOUND["switch"], 0.1, 0.3, minus="+ groups, dynamic"),
        gain(FOUND["switch"], 0.1, 0.3, bits="w3a8"),
        gain(FOUND["switch"], 0.1, 0.3, model="zoo:digits"),
    ]
    assert cells(told([UNIFORM, FOUND], others)[1])[-1] == ""


def test_a_search_of_less_time_than_the_uniform_size_took_none(told):
    faster = {**FOUND, "quantize": {"cpu_minutes": 1.9}}
    assert cells(told([UNIFORM, faster])[1])[4] == "0.0"


def test_other_lines_and_failures_are_not_in_the_table_of_searches(told):
    failed = {**{key: FOUND[key] for key in ("model", "bits")}, "switch": "+ searched: halving", "failed": "why"}
    others = [row("DiTAS", 30, 31), row("evolution, RTN", 20, 21, search=search())]
    assert [cells(line)[2] for line in told([UNIFORM, failed, *others, FOUND])] == ["uniform", "evolution"]


def test_a_search_whose_uniform_size_failed_or_is_of_other_widths_is_left_out(told):
    failed = {"model": MODEL, "bits": "w4a8", "switch": q_dit_tables.UNIFORM, "failed": "BadValue: why"}
    assert told([failed, FOUND]) == []
    assert told([row(q_dit_tables.UNIFORM, 30, 31, bits="w3a8"), FOUND]) == []
    assert told([row(q_dit_tables.UNIFORM, 30, 31, model="zoo:digits"), FOUND]) == []


def test_a_table_of_searches_says_what_its_columns_are(monkeypatch):
    monkeypatch.setattr(q_dit_tables, "result", lambda name: {"rows": [FULL, UNIFORM, FOUND], "differences_db": []})
    header = cells(q_dit_tables.searches().splitlines()[0])
    assert len(header) == 10
    assert header[2:5] == ["search", "denoiser evaluations", "CPU minutes"]


def test_components_and_differences_are_those_of_this_result(monkeypatch):
    data = {
        "n": 4, "steps": 6, "guidance": 1.5, "device": "CPU", "versions": {"torch": "2"}, "command": "python",
        "rows": [FULL, UNIFORM, row("DiTAS", 34, 36)],
        "differences_db": [gain("DiTAS", 0.5, 1.5)],
    }  # fmt: skip
    monkeypatch.setattr(component_tables, "result", lambda name: data if name == "q_dit" else pytest.fail(name))
    text = q_dit_tables.TABLES["q-dit"]()
    assert "| DiTAS | **35.0 [34.0, 36.0]**; 0.25 ± 0.01; 4.40 |" in text
    assert f"| {q_dit_tables.UNIFORM} | 31.0 [30.0, 32.0]; 0.25 ± 0.01; 4.40 |" in text
    text = q_dit_tables.TABLES["q-dit-differences"]()
    assert f"| DiTAS − {q_dit_tables.UNIFORM} | **+1.00 [+0.50, +1.50]** |" in text
