"""The command line: ``dither quantize | record | sample | eval | inspect | report | recipes | demo``.

Thin: each command reads its options, calls the Python API, and prints. Exit codes: 0 done, 1 a ``--fail-if`` failed,
2 bad input, with one sentence that names it.
"""

import logging
import warnings

from dither.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", module="diffusers|transformers|torch")  # theirs; ours are errors or nothing
    for library in ("diffusers", "transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    app()
