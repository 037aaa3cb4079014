import json

import pytest

from dither.errors import BadCheckpoint, DitherError
from dither.report.load import bounds, gaps, items, load, lookup, matrix, number, numbers, records, text, texts


def test_loads_what_was_saved(tmp_path, result):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(result))
    assert load(path) == result


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"kind": "bench", "schema": 1}',
        '{"kind": "eval"}',
        '{"kind": "eval", "schema": 99}',
        '{"kind": "compare", "schema": 2}',
        '{"kind": "compare", "schema": 2, "results": []}',
        '{"kind": "compare", "schema": 2, "results": [3]}',
        '{"kind": "compare", "schema": 2, "results": [{"kind": "compare", "schema": 2}]}',
        '{"kind": "compare", "schema": 2, "results": [{"kind": "eval", "schema": 99}]}',
        "[" * 100_000,
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(BadCheckpoint, match=r"other\.json"):
        load(path)


def test_unreadable_files_are_refused_by_name(tmp_path):
    with pytest.raises(DitherError, match=r"missing\.json.*No such file"):
        load(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DitherError, match=r"binary\.json"):
        load(tmp_path / "binary.json")


def test_lists_may_have_gaps_but_no_other_shape():
    results = {
        "a": [1, None, "x", 2.5],
        "m": [[1, 2], [3, None]],
        "r": [{"k": 1}, 3, None],
        "i": [2.0, 1.0],
        "t": ["a", 1],
    }
    assert gaps(results, "a") == [1.0, None, None, 2.5]
    assert gaps(results, "none") == gaps(results, "r.k") == []
    assert matrix(results, "m", 2, 2) == [[1.0, 2.0], [3.0, None]]
    assert matrix(results, "m", 2, 3) == matrix(results, "m", 1, 2) == matrix(results, "a", 4, 1) == []
    assert records(results, "r") == [{"k": 1}]
    assert bounds(results, "i") == (1.0, 2.0)
    assert bounds(results, "a") is None
    assert texts(results, "t") == ["a", "1"]


def test_accessors_give_none_for_what_is_missing_or_of_another_type():
    results = {
        "a": {"n": 3, "s": "x", "nan": float("nan"), "big": 10**400, "yes": True, "list": [1, 2.5], "bad": [1, "2"]}
    }
    assert lookup(results, "a.n") == 3
    assert lookup(results, "a.n.deeper") is None
    assert number(results, "a.n") == 3.0
    assert [number(results, f"a.{key}") for key in ("s", "nan", "big", "yes", "list", "none")] == [None] * 6
    assert numbers(results, "a.list") == [1.0, 2.5]
    assert numbers(results, "a.bad") == numbers(results, "a.s") == []
    assert [text(results, f"a.{key}") for key in ("s", "n", "list", "none")] == ["x", "3", None, None]
    assert items(results, "a")[0] == ("n", 3)
    assert items(results, "a.n") == []
