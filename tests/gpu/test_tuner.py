"""Measured tile sizes: kept, found again, never trusted blindly; and defaults. No Triton is needed."""

import json
import logging

import pytest

from dither.gpu.tiles import DEFAULTS, Tile, block, default_tile, rows_at_once
from dither.gpu.tuner import Key, cache_file, forget, measured, tune

KEY = Key("multiply", "A GPU", "3.7.1", 512, 1152, 4608, "gelu")
SMALL, LARGE = Tile(64, 64, 128, 4, 4), Tile(128, 128, 128, 8, 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITHER_CACHE", str(tmp_path))
    forget()
    yield
    forget()


def test_nothing_is_measured_unless_asked():
    assert measured(KEY) is None
    assert not cache_file().exists()


def test_the_fastest_is_kept_and_found_again():
    times = {LARGE: 2.0, SMALL: 1.0}
    assert tune(KEY, [LARGE, SMALL], times.__getitem__) == SMALL
    assert tune(Key("multiply", "A GPU", "3.7.1", 512, 8, 8, "plain"), [LARGE, SMALL], lambda t: 1.0) == LARGE
    forget()
    assert measured(KEY) == SMALL
    assert measured(Key("multiply", "Another GPU", "3.7.1", 512, 1152, 4608, "gelu")) is None
    assert len(json.loads(cache_file().read_text())) == 2
    assert [p.name for p in cache_file().parent.iterdir()] == ["tiles.json"]


def test_what_others_wrote_meanwhile_stays():
    other = Key("multiply", "A GPU", "3.7.1", 1, 8, 8, "plain")
    assert measured(other) is None
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(json.dumps({str(other): {"m": 64, "n": 64, "k": 128, "warps": 4, "stages": 4}}))
    tune(KEY, [LARGE], lambda t: 1.0)
    assert measured(other) == SMALL


GOOD = {"m": 64, "n": 64, "k": 128, "warps": 4, "stages": 4}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"a": 3}', '{"a": {"m": 64}}', "\x00", json.dumps({"a": {**GOOD, "m": 60}}),
        json.dumps({"a": {**GOOD, "m": 4096}}), json.dumps({"a": {**GOOD, "stages": 0}}),
        json.dumps({"a": {**GOOD, "m": 64.0}}), json.dumps({"a": {**GOOD, "k": 8}}), json.dumps({"a": {**GOOD, "more": 1}}),
    ],
)  # fmt: skip
def test_a_broken_file_is_said_in_one_line_and_not_used(text, caplog):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    with caplog.at_level(logging.WARNING, logger="dither"):
        assert measured(KEY) is None
        assert measured(KEY) is None
    (line,) = [r.getMessage() for r in caplog.records]
    assert "tiles.json' cannot be read, defaults are used" in line
    tune(KEY, [SMALL], lambda t: 1.0)
    assert measured(KEY) == SMALL


def test_a_write_that_fails_leaves_the_old_file(monkeypatch):
    tune(KEY, [LARGE], lambda t: 1.0)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        tune(KEY, [SMALL], lambda t: 1.0)
    assert measured(KEY) == LARGE
    assert [p.name for p in cache_file().parent.iterdir()] == ["tiles.json"]


def test_defaults_keep_processors_busy():
    assert default_tile(DEFAULTS, 16384, 4608, 132) == DEFAULTS[0]
    assert default_tile(DEFAULTS, 512, 1152, 132) == DEFAULTS[-1]
    assert default_tile(DEFAULTS, 1, 1, 132) == DEFAULTS[-1]
    assert default_tile(DEFAULTS, 1, 1, 1) == DEFAULTS[0]


def test_blocks_hold_rows():
    assert [block(size) for size in (1, 16, 17, 1152)] == [16, 16, 32, 2048]
    assert [rows_at_once(size) for size in (1, 64, 1152, 4608)] == [128, 32, 1, 1]
