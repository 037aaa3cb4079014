"""Scores from another program, for packages that cannot live in this environment, such as ImageReward.

    COMMAND PICTURES.npz SCORES.json

The program reads ``arr_0``, uint8 (N, H, W, 3), and ``prompts``, N texts, from the first file, and writes a JSON list of N
numbers to the second. Its exit status is 0. No shell is involved; what it prints is shown only when it fails.
"""

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dither.errors import BadValue
from dither.evaluation.protocol import Float64, Pictures
from dither.extractors.extras import MissingExtra
from dither.extractors.preprocess import as_rgb, check_pictures
from dither.extractors.text import check_prompts

__all__ = ["ExternalScores", "open_image_reward", "scores_from_command"]

IMAGE_REWARD_SCRIPT = Path(__file__).with_name("image_reward.py")


@dataclass(frozen=True)
class ExternalScores:
    """A program that scores pictures against prompts.

    Each call starts it, and it loads its model, anew: give it many pictures at a time.

    Args:
        argv: the program and its first arguments.
        name: printed beside each number.
        timeout: seconds that one call may take; None for ever.
    """

    argv: tuple[str, ...]
    name: str
    timeout: float | None = None

    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> Float64:
        """Uint8 (N, H, W, C) and N prompts to scores (N,).

        Raises:
            BadValue: the program cannot be run, fails, takes too long, or does not answer with N finite numbers.
        """
        check_pictures(pictures, self.name)
        check_prompts(pictures, prompts, self.name)
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder, "pictures.npz"), Path(folder, "scores.json")
            np.savez(asked, arr_0=as_rgb(pictures), prompts=np.asarray(prompts, np.str_))
            self._run([*self.argv, str(asked), str(answered)])
            return self._read(answered, len(pictures))

    def _run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise BadValue(f"'{self.name}' took longer than {self.timeout} seconds.") from None
        except (OSError, ValueError) as error:
            raise BadValue(f"'{self.name}' cannot be run: {error}.") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise BadValue(f"'{self.name}' failed with status {done.returncode}: {said[-1][:300]}")

    def _read(self, file: Path, n: int) -> Float64:
        try:
            scores = json.loads(file.read_bytes())
        except (OSError, ValueError):
            raise BadValue(f"'{self.name}' wrote no JSON to the file named by its last argument.") from None
        numbers = isinstance(scores, list) and all(type(x) in (int, float) and math.isfinite(x) for x in scores)
        if not numbers or len(scores) != n:
            raise BadValue(f"'{self.name}' must answer {n} pictures with a list of {n} finite numbers.")
        return np.asarray(scores, np.float64)


def scores_from_command(command: str, name: str = "", timeout: float | None = None) -> ExternalScores:
    """The scores of a program, given as one line that is split as a shell splits words.

    Raises:
        BadValue: it is empty, or a quote is not closed.
    """
    try:
        argv = tuple(shlex.split(command))
    except ValueError as error:
        raise BadValue(f"The command {command[:200]!r} cannot be read: {error}.") from None
    if not argv:
        raise BadValue("The command of an external scorer is empty.")
    return ExternalScores(argv, name or f"external:{Path(argv[0]).name}", timeout)


def open_image_reward(python: str = "", timeout: float | None = None) -> ExternalScores:
    """ImageReward-v1.0 (arXiv 2304.05977), run by the Python of an environment that has it.

    Its package pins an old timm and needs others that it does not name, so it gets an environment of its own.

    Raises:
        MissingExtra: ``python`` is no such interpreter; the sentence says how to make one.
    """
    path = Path(python).expanduser()
    if not python or not path.is_file():
        wanted = f"there is no {python[:200]!r}" if python else "none was given"
        raise MissingExtra(
            f"ImageReward needs the Python of an environment of its own, and {wanted}: python -m venv ENV && "
            "ENV/bin/pip install image-reward git+https://github.com/openai/CLIP.git, then image-reward:ENV/bin/python."
        )
    # isolated: else Python would look for ImageReward's imports among the files of this folder first
    return ExternalScores((str(path), "-I", str(IMAGE_REWARD_SCRIPT)), "image-reward:v1.0", timeout)
