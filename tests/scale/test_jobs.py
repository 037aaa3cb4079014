"""Keys, one attempt, and the book of attempts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue, DitherError
from dither.scale.jobs import Abort, Done, Failed, Failure, Ledger, attempt, build, canonical, key_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)


def test_keys_never_change():
    """They name the files of stores that exist."""
    job = {"seeds": [0, 1], "model": "zoo:digits", "steps": 25, "guidance": 1.5, "label": None}
    assert canonical(job) == '{"guidance":1.5,"label":null,"model":"zoo:digits","seeds":[0,1],"steps":25}'
    assert key_of(job) == "8007ba1ed4c775500a4a0e33638b7e10"


@given(OBJECTS)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_order_of_fields_is_no_matter(job):
    assert key_of(dict(reversed(job.items()))) == key_of(job)


@given(OBJECTS, OBJECTS)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_other_jobs_have_other_keys(a, b):
    assert (key_of(a) == key_of(b)) == (canonical(a) == canonical(b))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value):
    with pytest.raises(BadValue, match="plain JSON with finite numbers"):
        key_of({"guidance": value})


def raising(error):
    def work(job):
        raise error

    return work


def test_bad_input_is_told_from_bad_luck():
    bad = BadValue("steps is 0")
    assert attempt(raising(bad), {}) == Abort(bad)
    assert attempt(raising(OSError("no such device")), {}) == Failed("OSError: no such device")
    assert attempt(raising(ZeroDivisionError()), {}) == Failed("ZeroDivisionError")
    assert build(lambda: raising(bad)({})) == Abort(bad)
    other = build(lambda: 1 / 0)
    assert isinstance(other, Abort)
    assert type(other.error) is DitherError


def test_arrays_are_copied_only_when_their_layout_asks_for_it():
    plain = np.arange(6.0).reshape(2, 3)
    done = attempt(lambda job: {"plain": plain, "turned": plain.T, "one": np.array(1)}, {})
    assert isinstance(done, Done)
    assert np.shares_memory(done.arrays["plain"], plain)
    assert done.arrays["turned"].flags.c_contiguous
    assert done.arrays["one"].shape == ()


@pytest.mark.parametrize("value", [1.5, [1, 2], np.array(["a"]), np.array([None]), np.zeros(2, np.complex128)])
def test_what_cannot_be_stored_is_named(value):
    failed = attempt(lambda job: {"psnr": value}, {})
    assert isinstance(failed, Failed)
    assert failed.error.startswith("TypeError: the worker's 'psnr' is no array of numbers")


def test_a_job_that_failed_waits_behind_the_others_until_its_attempts_are_spent():
    ledger = Ledger([{"i": 0}, {"i": 1}], attempts=2)
    assert (ledger.take(), ledger.take(), ledger.take()) == (0, 1, None)
    assert ledger.settle(0, Failed("e")) is None
    ledger.give_back(1)
    assert (ledger.take(), ledger.take()) == (1, 0)
    assert ledger.open == 2
    assert ledger.settle(0, Failed("f")) == ({"i": 0}, Failure("f", 2))
    assert ledger.settle(1, Done({})) == ({"i": 1}, {})
    assert ledger.open == 0
    with pytest.raises(BadValue, match="steps"):
        ledger.settle(1, Abort(BadValue("steps is 0")))
