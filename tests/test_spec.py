"""The spec is plain data: exact JSON, closed tags, values checked where they are made, and no torch."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadCheckpoint, BadFormat, BadRecipe, DitherError
from dither.spec import (
    PER_ROW,
    PER_TENSOR,
    Act,
    AttentionSpec,
    Bits,
    Codebook,
    Float8,
    Gaussian,
    Int,
    LinearSpec,
    Log2,
    LowRank,
    Nested,
    Plan,
    Recipe,
    Rotation,
    TableSpec,
    Timed,
    Trellis,
    TwoRegion,
    View,
    Views,
    from_json,
    to_json,
)

EVERY = [
    Int(4),
    Int(1, symmetric=False, group=PER_TENSOR),
    Int(8, group=128),
    Float8(),
    Float8(group=PER_TENSOR),
    Nested(Int(8, False, 64), 3),
    Codebook(4, 256),
    Gaussian(4, 256),
    Codebook(1, 3, row_scale=True),
    Trellis(2),
    Trellis(3, 16, 8, 4),
    Act(Int(8)),
    Act(Int(6, False, 64), static=True, rows=20),
    Rotation(36),
    Rotation(1152, seed=7),
    LowRank(16),
    LowRank(8, weight=Int(8)),
    LinearSpec(),
    LinearSpec(Codebook(2, 16), Act(Int(8)), 5, Rotation(64), LowRank(4, Int(4))),
    TwoRegion(8, signed=True),
    TwoRegion(6, shift=True, group=-1),
    Log2(4),
    Act(TwoRegion(6, signed=True, group=32)),
    Act(Log2(4), static=True, rows=4),
    Act(Float8(), static=True, rows=4),
    AttentionSpec(),
    AttentionSpec(Act(Int(8, group=72)), probs=Act(TwoRegion(8), static=True, rows=10)),
    Timed((LinearSpec(Int(4)), LinearSpec()), (0, 0, 1)),
    View(4),
    View(8, Act(Int(6, False))),
    Views(LinearSpec(Int(8), Act(Int(8)), 1), (View(8, Act(Int(8))), View(4)), (0, 1, 0)),
    Plan(),
    Plan({"a.b": LinearSpec(Int(4)), "c": Timed((LinearSpec(),), (0,))}, (0.25, 0.5), 2),
    Plan({}, (), 1, {"a.attn": AttentionSpec(v=Act(Int(8)))}),
    TableSpec(1000),
    TableSpec(4, "a.emb"),
    Plan(timesteps={"a.emb": TableSpec(4), "b.emb": TableSpec(4, "a.emb")}),
    Plan(shared={"b.emb": "a.emb"}),
]

ints = st.builds(Int, st.integers(1, 8), st.booleans(), st.integers(-1, 256))
nested = st.builds(Nested, st.builds(Int, st.integers(5, 8), st.booleans(), st.integers(-1, 256)), st.integers(1, 4))
floats = st.builds(Float8, st.integers(-1, 256))
formats = st.one_of(
    ints,
    floats,
    nested,
    st.builds(Codebook, st.integers(1, 8), st.integers(2, 65536), st.booleans(), st.booleans()),
    st.builds(Trellis, st.integers(1, 4), st.integers(5, 16)),
)
signs = st.builds(TwoRegion, st.integers(2, 8), st.just(True), st.just(False), st.integers(-1, 256))
acts = st.builds(
    Act,
    ints | floats | signs | st.builds(Log2, st.integers(1, 8), st.integers(-1, 256)),
    st.booleans(),
    st.integers(1, 9),
)
linears = st.builds(
    LinearSpec,
    st.none() | formats,
    st.none() | acts,
    st.integers(0, 9),
    st.none() | st.builds(Rotation, st.integers(1, 99), st.integers(0, 9)),
    st.none() | st.builds(LowRank, st.integers(1, 9), st.none() | formats),
)
attentions = st.builds(
    AttentionSpec,
    *3 * [st.none() | acts],
    st.none() | st.builds(Act, st.builds(Log2, st.integers(1, 8)), st.booleans()),
)
timed = linears.flatmap(lambda s: st.builds(Timed, st.just((s, LinearSpec())), st.lists(st.integers(0, 1)).map(tuple)))
views = st.builds(
    Views,
    st.builds(LinearSpec, st.builds(Int, st.integers(5, 8), st.booleans()), st.none() | st.builds(Act, ints)),
    st.lists(st.builds(View, st.integers(1, 5), st.none() | st.builds(Act, ints)), min_size=3).map(tuple),
    st.lists(st.integers(0, 2)).map(tuple),
)
edges = st.lists(st.floats(0.001, 0.999), unique=True).map(sorted).map(tuple)
plans = st.builds(
    Plan,
    st.dictionaries(st.from_regex(r"[a-z.0-9]{1,8}"), linears | timed | views),
    edges,
    st.integers(1, 2),
    st.dictionaries(st.from_regex(r"[a-z.0-9]{1,8}"), attentions),
    st.dictionaries(st.from_regex(r"[a-z.0-9]{1,8}"), st.builds(TableSpec, st.integers(1, 100_000))),
)


@pytest.mark.parametrize("value", EVERY, ids=lambda v: v.kind)
def test_json_round_trip(value: Any) -> None:
    text = json.dumps(to_json(value))
    back = from_json(json.loads(text))
    assert back == value
    assert type(back) is type(value)
    assert json.dumps(to_json(back)) == text


def test_every_kind_is_in_the_table_above() -> None:
    kinds = {v.kind for v in EVERY}
    with pytest.raises(BadCheckpoint) as raised:
        from_json({"kind": "?"})
    assert {k.strip() for k in str(raised.value).partition("known are ")[2].split(",")} == kinds


@given(plan=plans)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_plan_round_trips(plan: Plan) -> None:
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


def test_json_is_short_and_tagged() -> None:
    assert to_json(Int(4)) == {"kind": "int", "bits": 4}
    assert to_json(LinearSpec(Int(4, group=64), Act(Int(8)))) == {
        "kind": "linear",
        "weight": {"kind": "int", "bits": 4, "group": 64},
        "act": {"kind": "act", "grid": {"kind": "int", "bits": 8}},
    }


def test_a_recipe_becomes_json() -> None:
    recipe = Recipe("rtn", "", Bits(4, 8), (("rtn", {"group": 64}),))
    assert json.loads(json.dumps(to_json(recipe))) == {
        "name": "rtn",
        "paper": "",
        "bits": {"weight": 4, "act": 8},
        "stages": [["rtn", {"group": 64}]],
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "lattice", "bits": 2}, "unknown kind 'lattice'"),
        ({"kind": ["int"], "bits": 2}, "unknown kind"),
        ({"kind": "int", "bits": 4, "groups": 8}, "int an unknown field 'groups'"),
        ({"kind": "int", "bits": "4"}, "int.bits the value '4' of the wrong type"),
        ({"kind": "int", "bits": 4.0}, "int.bits"),
        ({"kind": "int", "bits": True}, "int.bits"),
        ({"kind": "int", "bits": 4, "symmetric": 1}, "int.symmetric"),
        ({"kind": "int"}, "incomplete int"),
        ({"kind": "act", "grid": {"kind": "codebook", "dim": 2, "size": 4}}, "act.grid"),
        ({"kind": "linear", "weight": {"kind": "rotation", "block": 4}}, "linear.weight"),
        ({"kind": "linear", "weight": {"bits": 4}}, "linear.weight"),
        ({"kind": "float8", "bits": 8}, "float8 an unknown field 'bits'"),
        ({"kind": "float8", "group": 1.5}, "float8.group"),
        ({"kind": "nested", "whole": {"kind": "float8"}, "bits": 4}, "nested.whole"),
        ({"kind": "two-region", "bits": 8, "signed": 1}, "two-region.signed"),
        ({"kind": "attention", "q": {"kind": "int", "bits": 4}}, "attention.q"),
        ({"kind": "plan", "attention": {"a": {"kind": "linear"}}}, "plan.attention"),
        ({"kind": "plan", "timesteps": {"a": {"kind": "attention"}}}, "plan.timesteps"),
        ({"kind": "table", "rows": 2.0}, "table.rows"),
        ({"kind": "table", "rows": 2, "same_as": None}, "table.same_as"),
        ({"kind": "plan", "layers": {"a": {"kind": "int", "bits": 4}}}, "plan.layers"),
        ({"kind": "plan", "layers": []}, "plan.layers"),
        ({"kind": "plan", "time_edges": ["0.5"]}, "plan.time_edges"),
        ({"kind": "plan", "time_edges": 0.5}, "plan.time_edges"),
        ({"kind": "nested", "whole": {"kind": "codebook", "dim": 2, "size": 4}, "bits": 1}, "nested.whole"),
        ({"kind": "nested", "whole": {"kind": "int", "bits": 8}, "bits": "4"}, "nested.bits"),
        ({"kind": "nested", "bits": 4}, "incomplete nested"),
        ({"kind": "act", "grid": {"kind": "nested", "whole": {"kind": "int", "bits": 8}, "bits": 4}}, "act.grid"),
        ({"kind": "view", "bits": 4, "act": {"kind": "int", "bits": 8}}, "view.act"),
        ({"kind": "views", "base": {"kind": "int", "bits": 8}, "views": [], "select": []}, "views.base"),
        ({"kind": "views", "base": {"kind": "linear"}, "views": [{"kind": "linear"}], "select": []}, "views.views"),
        ({"kind": "views", "base": {"kind": "linear"}, "views": [], "select": [0.0]}, "views.select"),
        ({"kind": "views", "base": {"kind": "linear"}, "views": []}, "incomplete views"),
        ({"kind": "timed", "variants": [{"kind": "linear"}], "select": [False]}, "timed.select"),
    ],
)
def test_foreign_json_is_refused(data: Any, message: str) -> None:
    with pytest.raises(BadCheckpoint) as raised:
        from_json(data)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Int(0),
        lambda: Int(9),
        lambda: Int(4, group=-2),
        lambda: Float8(group=-2),
        lambda: Views(LinearSpec(Float8()), (View(4),), ()),
        lambda: Trellis(0),
        lambda: Trellis(5),
        lambda: Trellis(4, 4),
        lambda: Trellis(2, 17),
        lambda: Trellis(2, 12, 0, 16),
        lambda: Trellis(2, 12, 5, 1),
        lambda: Codebook(0, 4),
        lambda: Codebook(2, 1),
        lambda: Codebook(2, 65537),
        lambda: AttentionSpec(probs=Act(Int(8, group=4))),
        lambda: AttentionSpec(probs=Act(TwoRegion(8))),
        lambda: TableSpec(0),
        lambda: TableSpec(10**6),
        lambda: Plan(timesteps={"a": TableSpec(4, "b")}),
        lambda: Plan(shared={"a": "a"}),
        lambda: Plan(shared={"a": "b", "b": "c"}),
        lambda: Plan({"b": LinearSpec()}, shared={"a": "b"}),
        lambda: Plan({"a": LinearSpec()}, shared={"a": "b"}),
        lambda: Plan(timesteps={"a": TableSpec(4, "a")}),
        lambda: Plan(timesteps={"a": TableSpec(4, "b"), "b": TableSpec(5)}),
        lambda: Plan(timesteps={"a": TableSpec(4, "b"), "b": TableSpec(4, "c"), "c": TableSpec(4)}),
        lambda: Timed((), ()),
        lambda: Timed((LinearSpec(),), (1,)),
        lambda: Timed((LinearSpec(),), (-1,)),
        lambda: Nested(Int(8), 8),
        lambda: Nested(Int(8), 0),
        lambda: Nested(Int(1, False), 1),
        lambda: Views(LinearSpec(), (View(4),), ()),
        lambda: Views(LinearSpec(Codebook(2, 4)), (View(1),), ()),
        lambda: Views(LinearSpec(Nested(Int(8), 4)), (View(4),), ()),
        lambda: Views(LinearSpec(Int(8)), (), ()),
        lambda: Views(LinearSpec(Int(8)), (View(8),), (1,)),
        lambda: Views(LinearSpec(Int(8)), (View(8),), (-1,)),
        lambda: Views(LinearSpec(Int(6)), (View(8),), (0,)),
        lambda: Views(LinearSpec(Int(6)), (View(0),), (0,)),
        lambda: Views(LinearSpec(Int(6)), (View(6, Act(Int(8), static=True)),), (0,)),
        lambda: Views(LinearSpec(Int(6), Act(Int(8), static=True)), (View(6),), (0,)),
        lambda: Plan(time_edges=(0.5, 0.5)),
        lambda: Plan(time_edges=(0.6, 0.5)),
        lambda: Plan(time_edges=(0.0,)),
        lambda: Plan(time_edges=(1.0,)),
        lambda: Plan(time_edges=(float("nan"),)),
        lambda: Plan(branches=0),
        lambda: Plan(branches=3),
    ],
)
def test_values_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(BadFormat) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_out_of_range_json_is_a_user_error_too() -> None:
    with pytest.raises(DitherError, match="9 bits"):
        from_json({"kind": "int", "bits": 9})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("w4a8", Bits(4, 8)),
        ("W8A8", Bits(8, 8)),
        ("w2", Bits(2)),
        ("w4a16", Bits(4)),
        ("w1a1", Bits(1, 1)),
        ("fp8", Bits(8, 8, floating=True)),
        ("FP8", Bits(8, 8, floating=True)),
    ],
)
def test_bits(text: str, want: Bits) -> None:
    assert Bits.parse(text) == want
    assert Bits.parse(str(want)) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w",
        "4",
        "a8",
        "4a8",
        "w4a",
        "wa8",
        "w0",
        "w9",
        "w16",
        "w4a0",
        "w4a9",
        "w4a32",
        "w4a8b",
        "w-4",
        "w4 a8",
        "w²",
        "fp4",
        "fp8a16",
        "wfp8",
    ],
)
def test_bits_that_are_not_understood(text: str) -> None:
    with pytest.raises(BadRecipe) as raised:
        Bits.parse(text)
    assert f"'{text}'" in str(raised.value)


@pytest.mark.parametrize(("size", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (65536, 16)])
def test_codebook_bits(size: int, bits: int) -> None:
    assert Codebook(1, size).bits == bits


def test_views_compute_what_their_base_stores() -> None:
    base = LinearSpec(Int(8, False), Act(Int(8)), 1, Rotation(64), LowRank(4))
    first, second = Views(base, (View(8, Act(Int(8))), View(3)), (1, 0)).specs
    assert first == base
    assert second == LinearSpec(Nested(Int(8, False), 3), None, 1, Rotation(64), LowRank(4))


def test_plan_rows() -> None:
    assert Plan().rows == 1
    assert Plan(time_edges=(0.1, 0.2), branches=2).rows == 6


def test_words_for_people() -> None:
    assert str(Int(4, False, 128)) == "int4 asym group 128"
    assert str(Nested(Int(8, False), 4)) == "4 of int8 asym per row"
    assert str(View(4, Act(Int(8)))) == "4 bits, int8 sym per token dynamic"
    assert str(View(4)) == "4 bits, full precision"
    assert str(Int(8, group=PER_TENSOR)) == "int8 sym per tensor"
    assert str(Trellis(2)) == "trellis2 L12 16x16"
    assert str(Codebook(4, 256, True)) == "codebook 256x4 row-scaled"
    assert str(Act(Int(8))) == "int8 sym per token dynamic"
    assert str(Act(Int(8, group=PER_ROW), static=True, rows=10)) == "int8 sym per tensor static x10"
    assert str(Bits(4, 8)) == "w4a8"
    assert str(Float8()) == "float8 per row"
    assert str(Act(Float8(128))) == "float8 per token, group 128 dynamic"
    assert str(Act(Float8(), static=True, rows=10)) == "float8 per tensor static x10"
    assert str(Bits(8, 8, floating=True)) == "fp8"


@pytest.mark.parametrize(("weight", "act"), [(4, 8), (8, None), (8, 4)])
def test_floating_bits_are_eight(weight: int, act: int | None) -> None:
    with pytest.raises(BadRecipe, match=f"floating-point numbers of w{weight}a{act or 16}"):
        Bits(weight, act, floating=True)


def test_frozen() -> None:
    for value in EVERY:
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.kind = "other"


def test_no_torch_in_the_spec() -> None:
    """Loaded on its own, by path: importing the package may load torch, the spec itself must not."""
    code = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('dither'); package.__path__ = [sys.argv[1]]; sys.modules['dither'] = package\n"
        "import dither.spec\n"
        "print(sorted(m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules))"
    )
    folder = sys.modules["dither"].__file__
    assert folder is not None
    run = subprocess.run(
        [sys.executable, "-c", code, folder.rpartition("/")[0]], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "[]", run.stderr
