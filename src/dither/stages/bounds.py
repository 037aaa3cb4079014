"""Fields of a stage that must lie between two numbers."""

from collections.abc import Mapping

from dither.errors import BadRecipe

__all__ = ["check_bounds"]


def check_bounds(stage: str, of: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """BadRecipe names the first field that lies outside of its bounds, both of which it may reach.

    Args:
        stage: its tag, for the message.
        of: what has the fields.
        bounds: by field, low and high.
    """
    for field, (low, high) in bounds.items():
        value = getattr(of, field)
        if not low <= value <= high:
            raise BadRecipe(f"{stage}.{field} {value:g}: must lie in [{low:g}, {high:g}]")
