"""dither: quantize diffusion transformers after training, and prove that their pictures stayed the same.

    import dither
    pipe = dither.quantize(pipe, recipe="smoothquant", bits="w8a8")
    dither.save(pipe, "small")
    pipe = dither.load("small")                  # or DiffusionPipeline.from_pretrained("small")
    results = dither.evaluate("small", "big")

Importing this package lets diffusers load dither's checkpoints.
"""

from dither import recipes
from dither._version import __version__
from dither.api import load, save
from dither.errors import DitherError
from dither.integrations.diffusers import register as _register_quantizer
from dither.measure import compare, evaluate
from dither.quantization import Calibration, quantize
from dither.quantization import record_calls as record
from dither.recorded import load_calls, save_calls
from dither.zoo import register as _register_pipeline

__all__ = [
    "Calibration",
    "DitherError",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "load_calls",
    "quantize",
    "recipes",
    "record",
    "save",
    "save_calls",
]

_register_quantizer()
_register_pipeline()
