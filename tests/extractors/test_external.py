import json
import shlex
import sys

import numpy as np
import pytest

from dither.errors import BadValue, DitherError
from dither.extractors import MissingExtra, open_image_reward, open_scorer, scores_from_command

PROMPTS = ["a cat", "un chat noir", "", "猫", "x" * 500]

GOOD = """
import json, sys
import numpy as np
with np.load(sys.argv[-2]) as data:
    pictures, prompts = data["arr_0"], data["prompts"]
print("noise that a library prints")
assert pictures.dtype == np.uint8 and pictures.shape[-1] == 3
scores = [float(p.mean()) + len(str(t)) for p, t in zip(pictures, prompts)]
json.dump(scores, open(sys.argv[-1], "w"))
"""


@pytest.fixture
def program(tmp_path):
    """Writes a program and gives the command that runs it."""

    def write(text, *arguments):
        file = tmp_path / "a program.py"
        file.write_text(text)
        return shlex.join([sys.executable, str(file), *arguments])

    return write


def answering(text):
    return f"import sys\nopen(sys.argv[-1], 'w').write({text!r})"


def test_scores_come_back_in_order(program, pictures):
    scores = scores_from_command(program(GOOD))(pictures, PROMPTS)
    assert scores.dtype == np.float64
    wanted = pictures.mean((1, 2, 3)) + [len(prompt) for prompt in PROMPTS]
    np.testing.assert_allclose(scores, wanted)


def test_grey_pictures_reach_the_program_in_colour(program, pictures):
    scores = scores_from_command(program(GOOD))(pictures[..., :1], PROMPTS)
    np.testing.assert_allclose(scores, pictures[..., 0].mean((1, 2)) + [len(prompt) for prompt in PROMPTS])


def test_no_shell_is_involved(program, pictures, tmp_path):
    seen = tmp_path / "seen.json"
    text = f"import json, sys\njson.dump(sys.argv[1:-2], open({str(seen)!r}, 'w'))\n" + GOOD
    scores_from_command(program(text, "$HOME", "; touch owned", "`id`", "*"))(pictures, PROMPTS)
    assert json.loads(seen.read_text()) == ["$HOME", "; touch owned", "`id`", "*"]


@pytest.mark.parametrize(
    "answer",
    ["", "{}", "[1, 2, 3, 4]", "[1, 2, 3, 4, 5, 6]", "[1, 2, 3, 4, NaN]", "[1, 2, 3, 4, Infinity]", "7",
     '[1, 2, 3, 4, "5"]', "[1, 2, 3, 4, null]", "[1, 2, 3, 4, true]", "[[1], 2, 3, 4, 5]", "[1e999, 1, 1, 1, 1]"],
)  # fmt: skip
def test_an_answer_that_is_no_list_of_finite_numbers_is_refused(program, pictures, answer):
    with pytest.raises(BadValue, match=r"JSON|list of 5 finite numbers"):
        scores_from_command(program(answering(answer)), "judge")(pictures, PROMPTS)


def test_no_answer_is_refused(program, pictures):
    with pytest.raises(BadValue, match="'judge' wrote no JSON"):
        scores_from_command(program("pass"), "judge")(pictures, PROMPTS)


def test_a_failure_repeats_the_last_line_that_was_said(program, pictures):
    with pytest.raises(BadValue, match="'judge' failed with status 1: ValueError: no weights"):
        scores_from_command(program("raise ValueError('no weights')"), "judge")(pictures, PROMPTS)
    with pytest.raises(BadValue, match="status 3: it said nothing"):
        scores_from_command(program("raise SystemExit(3)"), "judge")(pictures, PROMPTS)


def test_too_slow_is_stopped(program, pictures):
    with pytest.raises(BadValue, match=r"longer than 0\.2 seconds"):
        scores_from_command(program("import time; time.sleep(60)"), timeout=0.2)(pictures, PROMPTS)


def test_a_program_that_is_not_there_is_named(pictures):
    with pytest.raises(BadValue, match="/no/such/program"):
        scores_from_command("/no/such/program --x", "judge")(pictures, PROMPTS)


@pytest.mark.parametrize("command", ["", "   ", "'unclosed"])
def test_a_command_that_is_none(command):
    with pytest.raises(BadValue, match="command"):
        scores_from_command(command)


def test_prompts_and_pictures_are_checked_before_the_program_runs(pictures):
    score = scores_from_command("/no/such/program")
    with pytest.raises(BadValue, match="one prompt for each picture"):
        score(pictures, PROMPTS[:4])
    with pytest.raises(BadValue, match="uint8"):
        score(pictures / 255, PROMPTS)


def test_name_and_opening_by_text(program, pictures):
    assert scores_from_command("/opt/bin/judge --fast").name == "external:judge"
    np.testing.assert_array_equal(
        open_scorer(f"external:{program(GOOD)}")(pictures, PROMPTS),
        scores_from_command(program(GOOD))(pictures, PROMPTS),
    )


@pytest.mark.parametrize(
    "opening", [open_image_reward, lambda: open_scorer("image-reward"), lambda: open_image_reward("/no/python")]
)
def test_image_reward_without_an_environment_says_how_to_make_one(opening):
    with pytest.raises(MissingExtra, match="ENV/bin/pip install image-reward") as caught:
        opening()
    assert isinstance(caught.value, DitherError)


def test_image_reward_runs_in_the_environment_that_has_it(tmp_path, pictures, monkeypatch):
    """A stand-in for its package in the path of the Python that is named."""
    (tmp_path / "ImageReward.py").write_text(
        "class Model:\n"
        "    def score(self, prompt, image):\n"
        "        assert isinstance(prompt, str) and image.mode == 'RGB'\n"
        "        return len(prompt) + image.getpixel((0, 0))[0]\n"
        "def load(name):\n"
        "    assert name == 'ImageReward-v1.0'\n"
        "    return Model()\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "assert sys.argv[1] == '-I'\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    python.chmod(0o755)
    score = open_image_reward(str(python))
    assert score.name == "image-reward:v1.0"
    np.testing.assert_array_equal(score(pictures, PROMPTS), pictures[:, 0, 0, 0] + [len(p) for p in PROMPTS])
    assert open_scorer(f"image-reward:{python}") == score


def test_image_reward_absent_from_its_environment_is_said(pictures):
    with pytest.raises(BadValue, match="No module named 'ImageReward'"):
        open_image_reward(sys.executable)(pictures, PROMPTS)
