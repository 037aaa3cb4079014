"""Makes this folder importable, so that test files can share ``tiny``; and what several of them use."""

import pytest
from called import forget


@pytest.fixture
def afresh():
    """Native code is looked for anew, now and once the test is over."""
    forget()
    yield
    forget()
