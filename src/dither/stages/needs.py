"""What a job needs from outside: a store for what is finished, a study that says how good pictures are, and their sampler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from dither.errors import BadRecipe, BadValue, DitherError

__all__ = [
    "DISTANCE",
    "MEASURED",
    "Sampling",
    "Store",
    "Study",
    "StudySettings",
    "Trajectory",
    "kept_or_made",
    "no_drawing",
    "no_sampling",
    "no_study",
    "silent",
]

MEASURED = "sensitivity."
"""How the names of measurements begin that a job keeps in its store; all other names are layers."""
DISTANCE = "distance"
"""The judged role that is no layer's (those are ``roles.ROLES``): the Frechet distance of all pictures together."""


class Store(Protocol):
    """Where finished layers and measurements are kept while a job runs, so that an interrupted one can go on."""

    def __contains__(self, name: object) -> bool:
        """Whether ``get`` gives something."""

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """The stored tensors of a layer committed earlier (or of a measurement, see ``MEASURED``), or None."""

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a layer or a measurement; atomic."""


@dataclass(frozen=True)
class StudySettings:
    """Which pictures a study draws, and what judges them.

    Args:
        samples: pictures a drawing.
        steps: of the sampler.
        guidance: of the sampler.
        judges: role to the name of what judges it, "" for the usual one. Roles that are not here are not judged.
    """

    samples: int = 16
    steps: int = 10
    guidance: float = 1.5
    judges: Mapping[str, str] = field(default_factory=dict)


class Study(Protocol):
    """Draws pictures with the model as it now is, and holds them against those of full precision."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Role -> what judges it, in words."""
        ...

    def begin(self) -> None:
        """Draw what all losses are held against, with the model as it now is, unless that is done; it must still
        compute what it did in full precision."""

    def losses(self) -> Mapping[str, float]:
        """``mse`` and a loss for each judged role, larger is worse and 0 is none, of the same labels and noise each time."""


def no_study(settings: StudySettings) -> Study:
    """A study where nothing can be drawn: BadValue."""
    raise BadValue("this recipe draws pictures to measure what quantization does to them: give it a pipeline")


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        scheduler: of diffusers; its state is the pipeline's, so whoever steps it steps a copy.
        steps: that it takes.
        guidance: scale of classifier-free guidance; 1 or less is none.
    """

    scheduler: Any
    steps: int
    guidance: float


def no_sampling() -> Sampling:
    """Where no pipeline is known that draws pictures: BadRecipe."""
    raise BadRecipe(
        "this recipe weighs errors by what the sampler makes of them, and a network alone has none: quantize a pipeline"
    )


@dataclass(frozen=True)
class Trajectory:
    """Some pictures on their way from noise, drawn together.

    Args:
        number: from 0; each has noise and labels of its own.
        samples: pictures.
        steps: of the sampler.
        guidance: of the sampler.
    """

    number: int
    samples: int
    steps: int
    guidance: float


def no_drawing(what: Trajectory) -> None:
    """Where nothing can be drawn: BadValue."""
    raise BadValue("this recipe follows a sampler from noise to pictures: give it a pipeline, or run=")


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def kept_or_made(store: Store | None, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Tensors under a name from the store, or made now and stored. Errors in making a layer's name the layer."""
    kept = None if store is None else store.get(name)
    if kept is not None:
        return kept
    try:
        made = make()
    except DitherError as e:
        raise type(e)(f"{'' if name.startswith(MEASURED) else 'layer '}'{name.removeprefix(MEASURED)}': {e}") from e
    if store is not None:
        store.put(name, made)
    return made
