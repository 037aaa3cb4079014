import json

import pytest

from dither.errors import BadCheckpoint, DitherError
from dither.report.load import items, load, lookup, number, numbers, text


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
