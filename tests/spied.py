"""Sees what a device runs in one call."""

from contextlib import contextmanager
from dataclasses import replace

from dither.kernels.fusion import FUSIONS


@contextmanager
def spied():
    """Names and arguments of calls, as they come."""
    calls, true = [], FUSIONS[:]

    def seen(name, run):
        def instead(*args):
            calls.append((name, args))
            return run(*args)

        return instead

    watched = ("linears", "feed_forward", "modulate", "gated")
    FUSIONS[:] = [replace(f, **{name: seen(name, getattr(f, name)) for name in watched}) for f in true]
    try:
        yield calls
    finally:
        FUSIONS[:] = true


def together(calls):
    """Names of those that run linears."""
    return [name for name, _ in calls if name in ("linears", "feed_forward")]
