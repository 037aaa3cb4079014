"""Arguments of calls as JSON and back; whatever else stands there is refused by name."""

import json
import math
from collections import namedtuple

import pytest
import torch

from dither.errors import BadValue
from dither.models import Call
from dither.recorded import load_calls, save_calls
from dither.recorded.structure import DEEPEST, DTYPES, Pool, calls_from, calls_to, digest_of

Pair = namedtuple("Pair", "a b")


def there_and_back(calls):
    pool = Pool()
    data = json.loads(json.dumps(calls_to(calls, pool)))
    return calls_from(data, pool.tensors.__getitem__)


def same(a, b):
    """Equal in types, nesting, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    return type(a) is type(b) and a == b


NESTED = {
    "flags": (True, False, None, 3, -0.1, 1e-300, "text \u00e9"),
    "deep": [[(), {}, {"tensor": 1, "tuple": [torch.ones(2)]}], {"dict": ({"x": torch.tensor(7)},)}],
    "return_dict": False,
}


def test_any_nest_of_plain_values_comes_back_as_it_was():
    calls = (Call((torch.randn(2, 3), 1, (torch.zeros(0, 4),)), NESTED), Call((), {}))
    back = there_and_back(calls)
    for before, after in zip(calls, back, strict=True):
        assert same(before.args, after.args)
        assert same(dict(before.kwargs), dict(after.kwargs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_to_the_bit(dtype):
    x = torch.randn(2, 5, 3).mul(50).to(dtype)
    ((back,),) = [call.args for call in there_and_back([Call((x,), {})])]
    assert same(x, back)


def test_equal_tensors_are_kept_once_and_unequal_ones_apart():
    pool, x = Pool(), torch.zeros(2, 2)
    calls_to([Call((x, x.clone(), x.T), {"y": x}), Call((x.int(), x[None], torch.zeros(4)), {})], pool)
    assert len(pool.tensors) == 4


def test_the_digest_tells_calls_apart():
    base = Call((torch.zeros(2, 2),), {"t": torch.tensor([1, 2]), "flag": False})
    others = [
        Call((torch.zeros(2, 2),), {"t": torch.tensor([1, 3]), "flag": False}),
        Call((torch.zeros(4),), {"t": torch.tensor([1, 2]), "flag": False}),
        Call((torch.zeros(2, 2).half(),), {"t": torch.tensor([1, 2]), "flag": False}),
        Call((torch.zeros(2, 2),), {"t": torch.tensor([1, 2]), "flag": True}),
        Call((torch.zeros(2, 2),), {"u": torch.tensor([1, 2]), "flag": False}),
    ]
    digests = {digest_of([call]) for call in [base, *others]} | {digest_of([base, base])}
    assert len(digests) == len(others) + 2
    assert digest_of(there_and_back([base])) == digest_of([base])


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([1.0, math.nan]), "holds NaN"),
        (torch.tensor(math.inf).bfloat16(), "holds NaN or infinity"),
        ([math.inf], "holds NaN or infinity"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.eye(2).to_sparse(), "sparse"),
        (object(), "holds a object"),
        (torch.float32, "holds a dtype"),
        (Pair(1, 2), "holds a Pair"),
        ({1: 2}, "holds a dict"),
        (nested(DEEPEST + 1), f"more than {DEEPEST} levels"),
    ],
)
def test_what_cannot_be_stored_is_named(value, words):
    calls = [Call((), {}), Call((1, {"a": value}), {})]
    with pytest.raises(BadValue, match=f"argument 1 of denoiser call 1 .*{words}"):
        calls_to(calls, Pool())
    with pytest.raises(BadValue, match=f"'x' of denoiser call 0 .*{words}"):
        calls_to([Call((), {"x": value})], Pool())


def test_the_deepest_nest_is_stored():
    assert there_and_back([Call((nested(DEEPEST),), {})])[0].args == (nested(DEEPEST),)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "no list"),
        ([3], "must have 'args' and 'kwargs'"),
        ([{"args": []}], "must have 'args' and 'kwargs'"),
        ([{"args": [], "kwargs": {}, "code": ""}], "must have 'args' and 'kwargs'"),
        ([{"args": {}, "kwargs": {}}], "a list 'args'"),
        ([{"args": [], "kwargs": []}], "an object 'kwargs'"),
        ([{"args": [{"tensor": 5}], "kwargs": {}}], "argument 0 of denoiser call 0 is tensor 5, which is not there"),
        ([{"args": [{"tensor": True}], "kwargs": {}}], "means nothing"),
        ([{"args": [{"object": []}], "kwargs": {}}], "means nothing"),
        ([{"args": [{"tuple": {}}], "kwargs": {}}], "means nothing"),
        ([{"args": [{"tuple": [], "dict": {}}], "kwargs": {}}], "means nothing"),
        ([{"args": [{}], "kwargs": {}}], "means nothing"),
        ([{"args": [], "kwargs": {"x": math.inf}}], "'x' of denoiser call 0 holds NaN or infinity"),
        ([{"args": [nested(DEEPEST + 1)], "kwargs": {}}], "levels deep"),
    ],
)
def test_what_no_writer_writes_is_refused(data, words):
    with pytest.raises(BadValue, match=words):
        calls_from(data, [torch.ones(1)].__getitem__)


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    x = torch.arange(8.0)
    calls = (Call((x, x[:2], x.reshape(2, 4)), {}),)
    save_calls(tmp_path / "calls.safetensors", calls)
    (again,) = load_calls(tmp_path / "calls.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.args, calls[0].args, strict=True))
