"""Why the compiled kernels are missing, and what to install."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rerankd.engines.onnx import kernel_support
from rerankd.engines.onnx.kernel_support import KERNELS, why_not_compiled

_ROOT = Path(__file__).resolve().parents[3]


def test_the_way_out_without_a_compiler_is_to_install_one(tmp_path: Path) -> None:
    assert "no C++ compiler" in str(why_not_compiled(tmp_path, find_program=lambda _name: None))


def test_the_way_out_without_python_headers_is_to_install_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path / "include"))
    reason = str(why_not_compiled(tmp_path, find_program=lambda name: f"/usr/bin/{name}"))
    assert "headers are not installed" in reason
    assert "python3-dev" in reason


def test_kernels_of_another_python_are_named(tmp_path: Path) -> None:
    (tmp_path / "_compiled.cpython-39-s390x-linux-gnu.so").write_bytes(b"")
    reason = str(why_not_compiled(tmp_path))
    assert "another Python or machine (_compiled.cpython-39-s390x-linux-gnu.so)" in reason


@pytest.fixture
def without_kernels(tmp_path: Path) -> Path:
    """A copy of the package without the compiled module, as an installation without a compiler leaves it."""
    copy = tmp_path / "installed"
    shutil.copytree(_ROOT / "app", copy, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "models"))
    return copy


def _run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_fails_where_the_kernels_were_not_compiled(without_kernels: Path) -> None:
    done = _run(without_kernels, "-m", "rerankd.engines.onnx.kernel_support")
    assert done.returncode == 1
    assert "the compiled kernels are missing" in done.stdout
    assert done.stderr == ""


def test_an_unknown_instruction_set_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    if why_not_compiled() is not None:
        pytest.skip("no kernels were compiled here")
    monkeypatch.setenv("RERANKD_INSTRUCTION_SET", "mmx")
    said = _run(_ROOT / "app", "-m", "rerankd.engines.onnx.kernel_support").stdout
    assert "no instruction set mmx); correct or unset the variable" in said
    assert "install" not in said


def test_the_command_succeeds_where_they_were() -> None:
    if why_not_compiled() is not None:
        pytest.skip("no kernels were compiled here")
    assert _run(_ROOT / "app", "-m", "rerankd.engines.onnx.kernel_support").returncode == 0


def test_loading_an_int8_model_without_kernels_warns_once_with_the_reason(without_kernels: Path) -> None:
    code = f"""
import logging
from pathlib import Path
from rerankd.engines.base import EngineSpec
from rerankd.engines.onnx.engine import OnnxEngine
logging.basicConfig(level="WARNING", format="%(message)s")
for _ in range(2):
    print(OnnxEngine.load(EngineSpec(folder=Path({str(_ROOT / "models" / "minilm-qa")!r}), pad_id=0)).name)
"""
    done = _run(without_kernels, "-c", code)
    assert done.stdout.splitlines() == ["onnx/cpu/model.int8.onnx"] * 2
    [warning] = done.stderr.splitlines()
    assert warning.startswith("int8 models run at about half the speed: the compiled kernels are missing: ")
    assert "install" in warning


def test_a_cpu_that_cannot_run_them_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if why_not_compiled() is not None:
        pytest.skip("no kernels were compiled here")
    monkeypatch.setattr("rerankd.engines.onnx.kernels.instruction_sets", list)
    with caplog.at_level(logging.INFO):
        assert kernel_support.why_not_usable() is not None
    assert "the kernels need AVX2" in str(kernel_support.why_not_usable())
    assert not caplog.records
    assert KERNELS.is_dir()
