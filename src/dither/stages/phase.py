"""When a stage runs."""

from enum import IntEnum

__all__ = ["Phase"]


class Phase(IntEnum):
    """What a stage of each may do: see ``base``."""

    TRANSFORM = 0
    ALLOCATE = 1
    WEIGHT = 2
    ACT = 3
