import pytest

from dither.errors import BadValue, DitherError
from dither.evaluation.gate import check, parse_condition

RESULTS = {
    "psnr_db": {"mean": 28.314159, "worst": 12},
    "ssim": {"mean": 0.95},
    "fd": {"to_full_precision": 0.4, "to_real": None, "features": "digits"},
    "size": {"file_bytes": 1000, "bits_per_weight": 4.25},
    "n": 64,
    "flag": True,
}


@pytest.mark.parametrize(
    ("condition", "fails"),
    [
        ("psnr<30", True),
        ("psnr < 28.0", False),
        ("psnr_db.mean<=28.314159", True),
        ("psnr_db.worst >= 12", True),
        ("ssim>.95", False),
        ("fd>1e-1", True),
        ("size>999", True),
        ("bits>4.25", False),
        ("n<-1", False),
    ],
)
def test_conditions(condition, fails):
    assert bool(check(RESULTS, [condition])) is fails


def test_a_failure_is_a_sentence_with_the_value():
    assert check(RESULTS, ["n>1", "psnr<30", "n>100"]) == [
        "n is 64, so 'n>1' holds.",
        "psnr_db.mean is 28.3142, so 'psnr<30' holds.",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "psnr",
        "psnr=30",
        "psnr==30",
        "psnr!30",
        "30>psnr",
        "psnr<30 or 1",
        "psnr<nan",
        "psnr<__import__('os')",
        "psnr<1e999",
    ],
)
def test_malformed_conditions_are_refused(bad):
    with pytest.raises(DitherError):
        parse_condition(bad)


@pytest.mark.parametrize(
    "name", ["nothing", "psnr_db.none", "psnr_db", "fd.to_real", "fd.features", "flag", "n.x", "psnr_db."]
)
def test_names_without_a_number_are_refused(name):
    with pytest.raises(BadValue, match=name.replace(".", r"\.")):
        check(RESULTS, [f"{name}<1"])
