"""The benchmark of CPUs, on tiny modules: every way computes what it should, and nothing that does not is timed."""

import gc
import shlex
import sys

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from benchmarks import common, xl_steps
from benchmarks.cpu import __main__ as command
from benchmarks.cpu import attention_sizes, goals, layers, memory, memory_steps, models, process, tables, turns, ways
from benchmarks.cpu.peers import PEERS, Peer
from benchmarks.cpu.run import Run
from benchmarks.cpu.turns import Case
from dither import zoo
from dither.kernels import means
from dither.numerics import decode, encode
from dither.sampling import sampler_for
from dither.spec import Gaussian, Int, Trellis

native = pytest.mark.skipif(means() is None, reason="no native code on this machine")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is Linux's own count")
TINY = {**xl_steps.CONFIG, "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 1, "sample_size": 8}
FORMATS = (Int(8), Int(4), Int(4, group=16), Trellis(3, 8), Trellis(2, 8), Gaussian(4, 256))
EAGER = [name for name, way in ways.WAYS.items() if not way.compiled and not way.attention]


@pytest.fixture(autouse=True)
def small_squares(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(ways, "SQUARE", 32)
    with torch.no_grad():
        yield


def stack(copies=1, group="layers", **options):
    module = layers.Stack(64, 96, copies).eval()
    ways.repeat_a_square(module)
    inputs = [(torch.randn(5, 64),) for _ in range(2)]
    return Case("tiny", group, module, inputs, **{"ways": EAGER, "peers": False, **options})


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_weight_that_repeats_a_square_is_stored_as_the_whole_is(fmt):
    w = torch.randn(32, 32).repeat(3, 2)
    got, want = ways.encoded(w, fmt), encode(w, fmt)
    assert {k: (t.shape, t.dtype) for k, t in got.items()} == {k: (t.shape, t.dtype) for k, t in want.items()}
    errors = [float((decode(parts, fmt, w.shape) - w).norm() / w.norm()) for parts in (got, want)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_any_other_weight_is_encoded_itself(fmt):
    w = torch.randn(96, 64)
    assert all(torch.equal(t, encode(w, fmt)[name]) for name, t in ways.encoded(w, fmt).items())


@native
@pytest.mark.parametrize("copies", [1, 2])
def test_every_way_of_a_layer_is_its_reference_and_as_far_from_float32_as_its_bits(copies):
    made = turns.ready(stack(copies))
    assert list(made.runs) == EAGER
    assert not made.missing
    limits = {"b": 0.01, "W8": 0.03, "W4": 0.2, "W3": 0.3, "W2": 0.5}
    for name, error in made.errors.items():
        assert 0 < error < limits[name[0] if name[0] == "b" else name[:2]], name
    assert max(gap for name, gap in made.gaps.items() if "bfloat16" not in name) < turns.SAME_CODES
    assert {kernel for names in made.kernels.values() for kernel in names} <= {
        "cpu_int8",
        "cpu_decode",
        "dequantize",
        "int8_mm",
    }


@native
def test_attention_by_itself_is_on_integers_and_its_reference():
    size = attention_sizes.Size("tiny", 2, 2, 40, 16)
    (case,) = attention_sizes.attention_cases((size,))
    made = turns.ready(case)
    assert made.kernels == {name: ["cpu_attention"] for name in ("int8", "int8, two regions")}
    assert all(gap < 1e-2 for gap in made.gaps.values())
    assert all(0.001 < made.errors[name] < 0.1 for name in made.kernels)


@native
def test_attention_in_a_block_is_quantized_where_a_way_says_so():
    case = next(models.model_cases(TINY, blocks=1))
    for name, way in ways.WAYS.items():
        if way.weight is not None and way.attention:
            made = ways.in_way(case.module, way, case.inputs[0])
            assert ways.kernels_of(made) == ["cpu_attention", "cpu_decode", "cpu_int8"], name
            got, want = (Run(one, way.dtype)(*case.inputs[0]) for one in (made, ways.on_reference(made)))
            assert turns.distance(got, want) < turns.SAME_MODEL, name


@native
def test_ways_of_a_block_quantize_its_linears_and_not_its_embedders():
    block, model = models.model_cases(TINY, blocks=2)
    for case, count in ((block, 7), (model, 14)):
        made = ways.in_way(case.module, ways.WAYS["W4A8"], case.inputs[0])
        quantized = ways.quantized_layers(made)
        assert len(quantized) == count
        assert sum(layer.spec.act is None for layer in quantized) == count // 7  # modulation
        got, want = made(*case.inputs[0]), case.module(*case.inputs[0])
        assert 0 < turns.distance(got, want) < 0.2


def test_a_kernel_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(turns, "on_reference", lambda module: nn.Sequential(module, nn.LeakyReLU(0.9)))
    with pytest.raises(AssertionError, match=r"tiny, W8A8: .* away from the reference kernel"):
        turns.ready(stack(ways=["float32", "W8A8"]))


def test_what_would_run_simulated_is_not_there_and_says_so(monkeypatch):
    monkeypatch.setattr(ways.QLinear, "simulated", property(lambda layer: True))
    made = turns.ready(stack(ways=["float32", "W2A8, trellis"]))
    assert list(made.runs) == ["float32"]
    assert made.missing["W2A8, trellis"].startswith("simulated here: trellis2")


def raising(module, inputs):
    raise ImportError("No module named 'peer'\nand more")


def test_peers_are_held_against_float32_and_those_that_fail_say_why(monkeypatch):
    found = {
        "exact": lambda module, inputs: Run(module),
        "other": lambda module, inputs: Run(lambda x: -module(x)),
        "absent": raising,
    }
    monkeypatch.setattr(turns, "PEERS", [Peer(name, (), "", build) for name, build in found.items()])
    made = turns.ready(stack(ways=["float32"], peers=True))
    assert list(made.runs) == ["float32", "exact"]
    assert made.errors == {"exact": 0}
    assert made.missing["absent"] == "ImportError: No module named 'peer'"
    assert made.missing["other"].startswith("AssertionError: relative error 2 ")


def test_a_peer_that_would_take_all_the_turns_takes_none(monkeypatch):
    monkeypatch.setattr(turns, "PEERS", [Peer("slow", (), "", lambda module, inputs: Run(module))])
    seconds = iter([1.0, 21.0])
    monkeypatch.setattr(turns, "seconds_of", lambda call: next(seconds))
    assert turns.ready(stack(ways=["float32"], peers=True)).missing == {
        "slow": "AssertionError: 21 times slower than float32"
    }


def test_torchs_own_peer_runs():
    (peer,) = (peer for peer in PEERS if not peer.packages)
    case = stack()
    run = peer.build(case.module, case.inputs[0])
    assert 0 < turns.distance(run(*case.inputs[0]), case.module(*case.inputs[0])) < 0.1
    assert peer.versions() == {}
    assert Peer("", ("torch", "no-such-package"), "", peer.build).versions() == {"torch": torch.__version__}


def test_a_row_has_ratios_to_both_baselines_of_calls_with_inputs_by_turns():
    case, seen = stack(ways=["float32", "bfloat16"]), []
    made = turns.ready(case)
    made.runs["float32"].call.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    row = turns.measure(case, made, rounds=2)
    assert set(row["times_faster_than_float32"]) == {"bfloat16"}
    assert set(row["times_faster_than_bfloat16"]) == {"float32"}
    assert all(a is case.inputs[i % 2][0] for i, a in enumerate(seen))
    assert len(seen) >= 3


def test_rows_that_are_done_are_not_measured_again_and_one_module_is_built_once(monkeypatch):
    built = []
    monkeypatch.setattr(process, "ready", lambda case: built.append(case.name))
    monkeypatch.setattr(process, "measure", lambda case, made, rounds: {"case": case.name})
    one, other = stack(), stack()
    names = {"a": one, "b": other, "c": other, "d": one}
    cases = [Case(name, "layers", of.module, of.inputs, []) for name, of in names.items()]
    assert [row["case"] for row in process.rows(iter(cases), 3, {"a"})] == ["b", "c", "d"]
    assert built == ["b", "d"]


def test_layers_repeat_squares_and_those_of_few_rows_do_not_fit_the_caches():
    for shape in layers.SHAPES:
        assert shape.inputs % 384 == shape.outputs % 384 == 0
    few = layers.case_of(layers.Shape("", "", 3072, 3072, ()), 16)
    assert 4 * sum(p.numel() for p in few.module.parameters()) > layers.COLD
    many = layers.case_of(layers.Shape("", "", 64, 96, ()), 32)
    assert len(many.module.of) == 1
    assert not any("alone" in way for way in many.ways)
    assert "W4, weights alone" in few.ways


def test_a_stack_is_the_sum_of_its_layers():
    module, x = layers.Stack(8, 4, 3), torch.randn(2, 8)
    torch.testing.assert_close(module(x), sum(linear(x) for linear in module.of))


def test_pictures_of_a_stand_in_are_those_of_the_pipeline():
    pipeline = zoo.load("digits")
    want = sampler_for(pipeline, 2, models.GUIDANCE, 3)([0, 1, 2], range(3))
    run = Run(models.Denoiser(pipeline.transformer))
    call = models.sampled(pipeline, 3, 2)(run)
    assert (call() == want).all()
    assert isinstance(pipeline.transformer, models.StandIn)


@pytest.mark.parametrize("words", ["", "--only zoo --threads 1 --rounds 3", "--only memory --blocks 2"])
def test_the_command_of_a_result_repeats_it(words):
    given = command.parsed([*shlex.split(words), "--work", "here", "-o", "there"])
    for part in given.only:
        again = command.provenance(given, part)["command"].split()
        assert again[:5] == ["python", "-m", "benchmarks.cpu", "--only", part]
        options = vars(command.parsed(again[3:]))
        assert all(options[name] == getattr(given, name) for name in ("threads", "rounds", "blocks"))
        assert "here" not in again


@linux
def test_mapped_files_and_own_memory_are_told_apart(tmp_path):
    size = 80_000_000  # more than the C library keeps for the next who asks
    gc.collect()
    (tmp_path / "file").write_bytes(bytes(size))
    before = common.resident()
    mapped = torch.from_file(str(tmp_path / "file"), size=size, dtype=torch.uint8)
    mapped.sum()
    read = common.resident()
    own = torch.ones(size, dtype=torch.uint8)
    after = common.resident()
    assert read.file - before.file > 0.9 * size > read.anonymous - before.anonymous
    assert after.anonymous - read.anonymous > 0.9 * size > after.file - read.file
    assert after.rss == after.anonymous + after.file
    assert after.peak >= size + len(own)


@linux
@pytest.mark.parametrize("what", memory.WIDTHS)
def test_memory_is_read_before_and_after_each_step(tmp_path, what):
    DiTTransformer2DModel(**TINY).save_pretrained(tmp_path / "full")
    made = memory_steps.quantized(tmp_path / "full", tmp_path / "small", what)
    full = memory_steps.loaded(tmp_path / "full", "float32")
    small = memory_steps.loaded(tmp_path / "small", what)
    assert list(made)[:4] == ["before", "float32", "quantized", "called"]
    assert small["finite"]
    assert small["file_bytes"] < full["file_bytes"]
    assert int(what[1:]) < made["model_bits_per_weight"] < 32


def test_a_model_is_what_a_process_holds_more_than_before():
    def row(before, called):
        return {"before": {"rss": before}, "called": {"rss": called}}

    assert memory.times_less(row(100, 1100), row(150, 400)) == {"model": 4.0, "process": 2.75}


def faster(**ways_):
    return {name: {"median": value, "q25": value, "q75": value} for name, value in ways_.items()}


def test_goals_are_met_by_medians_and_the_worst_stands_behind():
    more = goals.Goal("", "", 3.0, 4.0, goals.quotient("b", "a"))
    less = goals.Goal("", "", 1.2, 1.1, goals.slower("a", "b"))
    rows = [{goals.FASTER: faster(a=1.0, b=b)} for b in (2.0, 3.5, 5.0)]
    assert goals.told(more, rows) == "3.50x (floor), worst 2.00x"
    assert goals.told(less, rows[:1]) == "2.00x (missed)"
    assert [more.verdict(value) for value in (2.9, 3.0, 4.0)] == ["missed", "floor", "goal"]
    assert [less.verdict(value) for value in (1.3, 1.2, 1.0)] == ["missed", "floor", "goal"]
    assert goals.told(goals.Goal("", "", 3.0, 4.0, goals.quotient("c", "a")), rows) == "not measured"
    assert goals.quotient("b", "float32")(rows[0]) == 2.0


def test_every_way_that_a_goal_or_a_table_names_is_one():
    every = {name: {"median": 2.0} for name in ways.WAYS}
    row = {goals.FASTER: every, "case": "28 blocks denoiser modulation", "shape": [256], "libraries": ["bfloat16"]}
    assert all(goal.of(row) is not None for goal in goals.GOALS)
    assert set(tables.README) <= set(ways.WAYS)
    assert set(models.WAYS) | set(layers.ACTS) | set(layers.WEIGHTS_ALONE) <= set(ways.WAYS)


def test_the_fastest_library_is_named_and_a_missing_one_has_its_reason_once(monkeypatch):
    row = {"case": "c", "threads": 1, "missing": {"p": "ImportError: none"}}
    rows = [{**row, goals.FASTER: faster(W8A8=3.0, q=2.0)}, {**row, goals.FASTER: faster(W8A8=3.0, r=2.5, q=2.0)}]
    told = {name: {"how": f"how {name}", "versions": {name: "1"}} for name in "pqr"}
    data = {"rows": rows, "peers": told, "method": "m", "cpu": "C", "instructions": "I", "versions": {"torch": "2"}}
    monkeypatch.setattr(tables, "result", lambda name: data)
    lines = tables.speed().splitlines()
    assert lines[2].endswith("| 2.00 [2.00, 2.00]: q |")
    assert lines[3].endswith("| 2.50 [2.50, 2.50]: r |")
    made = tables.peers()
    assert made.splitlines()[2] == "| c | 1 | 3.00 [3.00, 3.00]: W8A8 | n/a | 2.00 [2.00, 2.00] |  |"
    assert made.count("p (ImportError: none)") == 1
    assert "q (q 1): how q" in made


def test_memory_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    asked = []

    def process(name, what, folder, threads, *options):
        asked.append((name, what))
        (tmp_path / "memory-2-blocks" / what).mkdir(exist_ok=True)
        if asked.count(("load", "W8")) == 1 and what == "W8" and name == "load":
            raise KeyboardInterrupt
        return {"before": {"rss": 1}, "called": {"rss": 1001 if what == "float32" else 251}}

    monkeypatch.setattr(memory, "process", process)
    monkeypatch.setattr(memory, "run", lambda words, threads: common.Finished(0, 0, '{"parameters": 7}'))
    with pytest.raises(KeyboardInterrupt):
        memory.measured(tmp_path, 1, 2)
    done = len(asked)
    found = memory.measured(tmp_path, 1, 2)
    assert asked[done:][:2] == [("quantize", "W8"), ("load", "W8")]
    assert ("load", "float32") not in asked[done:]
    assert [row["what"] for row in found["loaded"]] == ["float32", "bfloat16", "W8", "W4", "W2"]
    assert [row["what"] for row in found["quantized_in_process"]] == ["W8", "W4", "W2"]
    assert found["parameters"] == 7
    assert found["loaded"][-1]["times_less_than_float32"]["model"] == 4.0
    assert not list(tmp_path.iterdir())
