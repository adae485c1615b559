"""The C++ kernels and WordPiece under AddressSanitizer and UndefinedBehaviorSanitizer, on any CPU."""

import subprocess
from pathlib import Path

import pytest

from tests.requirements import require_program
from tests.sanitizers import runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.uncovered,
]
_PLANTED = Path(runner.__file__).with_name("planted.cpp")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_program(runner.COMPILER)
    program = tmp_path_factory.mktemp("planted") / "planted"
    runner.build([_PLANTED], program, shared=False)
    return program


@pytest.mark.parametrize(
    ("mistake", "report"),
    [
        (1, "ERROR: AddressSanitizer"),
        (2, "ERROR: AddressSanitizer"),
        (3, "misaligned address"),
        (4, "signed integer overflow"),
        (5, "heap-buffer-overflow"),
    ],
)
def test_each_kind_of_mistake_is_reported(planted: Path, mistake: int, report: str) -> None:
    ran = subprocess.run([planted, str(mistake)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert report in ran.stderr


def test_lanes_that_a_mask_leaves_out_are_not_read(planted: Path) -> None:
    subprocess.run([planted, "6"], timeout=60, check=True)


@pytest.mark.timeout(900)
def test_the_kernels_make_no_mistake_of_memory_or_arithmetic(tmp_path: Path) -> None:
    require_program(runner.COMPILER)
    kernels = tmp_path / "_compiled.so"
    runner.build_kernels(kernels)
    # wide layers take minutes, and go the same ways; there is one instruction set; another process measures memory
    others = "not 1088 and not 384 and not of_this_cpu and not different and not 8192 and not 2000"
    check_that_tests_pass(runner.run_tests(runner.KERNELS_MODULE, kernels, "-k", others))


@pytest.mark.timeout(900)
def test_wordpiece_makes_no_mistake_of_memory_or_arithmetic(tmp_path: Path) -> None:
    require_program(runner.COMPILER)
    wordpiece = tmp_path / "_compiled.so"
    runner.build_wordpiece(wordpiece)
    # "tiny": random texts, by hypothesis; the other vocabularies go the same ways and take longer
    check_that_tests_pass(runner.run_tests(runner.WORDPIECE_MODULE, wordpiece, "-k", "adversarial or tiny"))


def check_that_tests_pass(ran: "subprocess.CompletedProcess[str]") -> None:
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
