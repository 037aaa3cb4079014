"""Errors that a user can cause, each with one sentence that names the thing at fault.

The command line prints the sentence and exits with code 2; the Python API raises.
"""

__all__ = ["BadCheckpoint", "BadFormat", "BadModel", "BadRecipe", "BadValue", "DitherError", "Refused"]


class DitherError(Exception):
    """Bad input: the message is one sentence that names the file, layer, field or value."""


class BadModel(DitherError):
    """The thing given as MODEL cannot be found, read or understood."""


class BadCheckpoint(DitherError):
    """A saved checkpoint is truncated, tampered with, or does not fit its plan."""


class BadFormat(DitherError):
    """A format cannot hold a tensor of this shape, such as a group size that does not divide."""


class BadRecipe(DitherError):
    """Unknown recipe, stage, field or bit width."""


class BadValue(DitherError):
    """A number is NaN, infinite or out of range, in weights, calibration or options."""


class Refused(DitherError):
    """An operation that cannot be right on quantized weights, such as fusing a LoRA into packed codes."""
