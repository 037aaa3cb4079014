"""Which of Triton's two ways a process may go: its interpreter and its compiler cannot be mixed in one."""

import importlib.util
import os

import pytest

TRITON = importlib.util.find_spec("triton") is not None
_ASKED = os.environ.get("TRITON_INTERPRET") == "1"
_WHERE = "make test-gpu-kernels runs it"

interpreted = pytest.mark.skipif(
    not (TRITON and _ASKED), reason=f"needs Triton, and TRITON_INTERPRET=1 in a process of its own: {_WHERE}"
)
silent = [
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),
]
"""What a GPU does silently, and the interpreter's NumPy says: x / (1 + inf) is 0 in GELU, and inf / inf no number."""
compiled = pytest.mark.skipif(
    not TRITON or _ASKED, reason=f"needs Triton, and a process without TRITON_INTERPRET: {_WHERE}"
)
