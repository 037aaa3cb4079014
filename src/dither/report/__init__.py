"""Results in JSON become one self-contained HTML page that works offline.

Nothing is computed here that changes a number: what the page shows is what the file holds. Nothing of torch or of
the rest of the library is imported, so a page can be made on any machine from files alone.
"""

from dither.report.load import load
from dither.report.page import render, write

__all__ = ["load", "render", "write"]
