"""What torch does too slowly, in C++: see ``build`` for how it comes to a machine, and what happens where it does not."""

from dither.native.build import cache_folder, library

__all__ = ["cache_folder", "library"]
