"""Denoiser calls in files: recorded ones with any arguments, or a user's stored samples, and whether they fit a model."""

from dither.recorded.file import CallFile, load_calls, read_calls, save_calls
from dither.recorded.fit import check_fit, open_calls
from dither.recorded.structure import digest_of

__all__ = ["CallFile", "check_fit", "digest_of", "load_calls", "open_calls", "read_calls", "save_calls"]
