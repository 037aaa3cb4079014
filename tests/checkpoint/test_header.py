"""The header: exact through JSON, and nothing else gets in."""

import dataclasses
import json

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.checkpoint import (
    Header,
    config_of,
    header_from,
    header_of,
)
from dither.checkpoint.contents import expected_tensors
from dither.errors import BadCheckpoint, DitherError
from dither.spec import Act, Codebook, Int, LinearSpec, LowRank, Nested, Plan, Rotation, TableSpec, to_json


def test_header_round_trips_through_json():
    plan = Plan(
        {
            "a": tiny.RICH,
            "b": tiny.TIMED,
            "c": LinearSpec(
                Codebook(4, 256, True), Act(Int(4, False, 32), True, 6), 6, Rotation(36, 7), LowRank(3, Int(8))
            ),
            "d": tiny.RICH,
            "e": tiny.VIEWS,
            "f": LinearSpec(Nested(Int(6, False), 2)),
        },
        (0.1, 1 / 3),
        2,
        {"a.attn": tiny.ATTENTION},
        {"a.emb": TableSpec(100), "b.emb": TableSpec(100, "a.emb"), "c.emb": TableSpec(100, "a.emb")},
    )
    header = Header(plan, {"name": "rtn", "stages": [["rtn", {"x": 1}]]}, "1.2.3")
    config = json.loads(json.dumps(config_of(header)))
    assert header_from(config) == header
    assert len(config["plan"]["specs"]) == 5 + 1 + 2  # a and d share one, b.emb and c.emb another


def test_fields_that_name_nothing_are_left_out():
    config = config_of(Header(tiny.PLAN))["plan"]
    assert set(config) == {"specs", "layers", "time_edges", "branches"}
    assert header_from(config_of(Header(Plan()))).plan == Plan()


def test_header_of_a_plain_model():
    with pytest.raises(DitherError, match="Denoiser carries no dither header"):
        header_of(tiny.dense())


GOOD = config_of(Header(tiny.PLAN, None, "0.1.0"))


def changed(**at: object) -> dict:
    """GOOD with plan fields replaced."""
    return {**GOOD, "plan": {**GOOD["plan"], **at}}


def nested(depth: int) -> object:
    out: object = 1
    for _ in range(depth):
        out = [out]
    return out


VIEWS = to_json(tiny.VIEWS)

BAD_HEADERS = {
    "not an object": ([], "must be a JSON object"),
    "no plan": ({k: v for k, v in GOOD.items() if k != "plan"}, "lacks the field 'plan'"),
    "unknown field": ({**GOOD, "extra": 1}, "unknown field 'extra'"),
    "method": ({**GOOD, "quant_method": "other"}, "other"),
    "future": ({**GOOD, "version": 2}, "version 2"),
    "version type": ({**GOOD, "version": True}, "version True"),
    "recipe type": ({**GOOD, "recipe": 3}, "recipe"),
    "writer type": ({**GOOD, "dither": 3}, "'dither'"),
    "layers type": (changed(layers=[]), "'layers'"),
    "spec index": (changed(layers={"first": 99}), "'first' the spec 99"),
    "negative index": (changed(layers={"first": -1}), "'first' the spec -1"),
    "boolean index": (changed(layers={"first": True}), "'first' the spec True"),
    "unknown kind": (changed(specs=[{"kind": "pickle"}], layers={}), "'pickle'"),
    "kind of no layer": (changed(specs=[{"kind": "int", "bits": 8}], layers={}), "spec 0"),
    "unknown spec field": (changed(specs=[{"kind": "linear", "run": "x"}], layers={}), "'run'"),
    "wrong type": (changed(specs=[{"kind": "linear", "pre_scale": "1"}], layers={}), "pre_scale"),
    "too many bits": (changed(specs=[{"kind": "linear", "weight": {"kind": "int", "bits": 9}}], layers={}), "9 bits"),
    "nothing to nest": (changed(specs=[{**VIEWS, "base": {"kind": "linear"}}], layers={}), "only integers nest"),
    "views of more bits": (
        changed(specs=[{**VIEWS, "views": [{"kind": "view", "bits": 9}] * 3}], layers={}),
        "view of 9 bits",
    ),
    "no such view": (changed(specs=[{**VIEWS, "select": [0, 3]}], layers={}), "selects"),
    "view of a wrong kind": (changed(specs=[{**VIEWS, "views": [{"kind": "linear"}]}], layers={}), "views.views"),
    "a bare view": (changed(specs=[{"kind": "view", "bits": 4}], layers={}), "spec 0"),
    "attention type": (changed(attention=[]), "'attention'"),
    "timesteps type": (changed(timesteps=[]), "'timesteps'"),
    "shared type": (changed(shared=[]), "'shared'"),
    "shared name": (changed(shared={"emb": 3}), "shared"),
    "shared with itself": (changed(shared={"emb": "emb"}), "'emb' shares the parameters of 'emb'"),
    "shared with a packed layer": (changed(shared={"emb": "first"}), "'emb' shares the parameters of 'first'"),
    "a linear as an attention": (changed(attention={"first": 0}), "'first' spec 0, which is not of kind 'attention'"),
    "a linear as a table": (changed(timesteps={"first": 0}), "'first' spec 0, which is not of kind 'table'"),
    "a table as a linear": (
        changed(specs=[{"kind": "table", "rows": 9}], layers={"first": 0}),
        "'first' spec 0, which is not of kind 'linear' or 'timed' or 'views'",
    ),
    "spec index of a table": (changed(timesteps={"emb": 99}), "'emb' the spec 99"),
    "a table of nobody": (
        changed(specs=[{"kind": "table", "rows": 9, "same_as": "x"}], layers={}, timesteps={"emb": 0}),
        "'emb' reads the timestep table of 'x'",
    ),
    "endless table": (changed(specs=[{"kind": "table", "rows": 10**30}], layers={}), "timesteps"),
    "edges": (changed(time_edges=[0.5, 0.5]), "time edges"),
    "edge type": (changed(time_edges=["a"]), "time_edges"),
    "branches": (changed(branches=3), "3 branches"),
    "deep": (changed(specs=[{"kind": "linear", "weight": nested(5000)}], layers={}), "deep"),
}


@pytest.mark.parametrize(("config", "names"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers_are_refused(config, names):
    with pytest.raises(BadCheckpoint, match=names):
        header_from(config)


JUNK = st.sampled_from([None, True, -1, 0, 10**30, 0.5, float("nan"), "", "int", [], [[]], {}, {"kind": "int"}])


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inside for p in places(item, (*path, key)))]


def put(value: object, path: tuple, item: object) -> object:
    """A copy with this in the place of what is there."""
    if not path:
        return item
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], item)
    return copy


EVERY_KIND = json.loads(
    json.dumps(config_of(Header(dataclasses.replace(tiny.PLAN, layers={**tiny.PLAN.layers, "last": tiny.VIEWS}))))
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_change_of_a_header_is_harmless_or_refused(data):
    """Read, and held against a model; nothing but BadCheckpoint, and never a size that the model does not have."""
    path = data.draw(st.sampled_from(places(EVERY_KIND)))
    config = put(EVERY_KIND, path, data.draw(JUNK))
    try:
        expected = expected_tensors(tiny.dense(), header_from(config).plan)
    except BadCheckpoint:
        return
    assert sum(torch.Size(shape).numel() for shape, _ in expected.values()) < 10_000
