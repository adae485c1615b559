"""Profiles: what is written is read, what does not hold is ignored with a reason, the registry's own keys win."""

import logging
from pathlib import Path
from typing import Any

import pytest

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import read_settings
from rerankd.errors import ConfigError
from rerankd.serving.profiles import (
    Choice,
    Machine,
    Profile,
    _cpu,
    _gpus,
    mismatch,
    profile_path,
    read_profile,
    tuned,
    with_profile,
    write_profile,
)

_MACHINE = Machine(cpu="x86_64/Abacus 9", cores=4, libraries={"onnxruntime": "1.2", "rerankd": "0.1.0"})
_CHOICE = Choice(engine="openvino", workers=2, batch_tokens=2048, engine_options={"threads": 2})


def profile(**changes: Any) -> Profile:
    facts: dict[str, Any] = {
        "model": "tiny",
        "content": "c0ffee",
        "written": "2026-11-21T12:00:00+00:00",
        "pairs_per_s": 366.0,
        "default_pairs_per_s": 266.5,
        "choice": _CHOICE,
        "machine": _MACHINE,
    }
    return Profile(**{**facts, **changes})


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec(name="tiny", path="tiny", **keys)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = profile(machine=_MACHINE.model_copy(update={"cpu": 'a "quoted" \\ name', "gpus": ("H200", "H200")}))
    path = profile_path(tmp_path / "new" / "folder", "org/name with: odd*characters")
    write_profile(path, written)
    assert read_profile(path) == written
    assert [file.name for file in path.parent.iterdir()] == ["org%2Fname%20with%3A%20odd%2Acharacters.toml"]


def test_a_profile_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_profile(tmp_path / "none.toml") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [("model = ", "is not valid TOML"), ('model = "x"', "content is missing"), ("\xff", "not a text file in UTF-8")],
)
def test_a_file_that_is_no_profile_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=reason):
        read_profile(path)


def test_a_folder_that_cannot_be_written_says_which_setting_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set RERANKD_PROFILES"):
        write_profile(tmp_path / "file" / "tiny.toml", profile())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"cpu": "x86_64/Abacus 10"}, "cpu 'x86_64/Abacus 9' is 'x86_64/Abacus 10' here"),
        ({"cores": 2}, "cores 4 is 2 here"),
        ({"gpus": ("H200",)}, "gpus"),
        ({"libraries": {"onnxruntime": "1.3", "rerankd": "0.1.0"}}, "onnxruntime 1.2 is 1.3 here"),
        ({"libraries": {"rerankd": "0.1.0"}}, "onnxruntime 1.2 is not installed here"),
        ({"libraries": {**_MACHINE.libraries, "openvino": "2"}}, "openvino not installed is 2 here"),
    ],
)
def test_a_profile_of_another_machine_does_not_hold(changes: dict[str, Any], reason: str) -> None:
    found = mismatch(profile(), content="c0ffee", machine=_MACHINE.model_copy(update=changes))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_profile_of_other_files_does_not_hold() -> None:
    assert "files have changed" in mismatch(profile(), content="decaf", machine=_MACHINE)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ("openvino", 2, 2048, {"threads": 2})),
        ({"engine": "openvino"}, ("openvino", 2, 2048, {"threads": 2})),
        ({"engine": "onnx"}, ("onnx", None, None, {})),
        ({"workers": 3}, ("openvino", 3, 2048, {})),
        ({"batch_tokens": 64}, ("openvino", 2, 64, {"threads": 2})),
        ({"engine_options": {"threads": 4}}, ("openvino", None, 2048, {"threads": 4})),
        ({"engine_options": {"file": "a.onnx"}}, ("openvino", 2, 2048, {"threads": 2, "file": "a.onnx"})),
    ],
)
def test_what_the_registry_says_wins(keys: dict[str, Any], expected: tuple[Any, ...]) -> None:
    chosen = tuned(spec(**keys), _CHOICE)
    assert (chosen.engine, chosen.workers, chosen.batch_tokens, chosen.engine_options) == expected


def test_a_profile_that_holds_is_used_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_profile(profile_path(tmp_path, "tiny"), profile(machine=Machine.this()))
    with caplog.at_level(logging.INFO, "rerankd.serving.profiles"):
        chosen = with_profile(spec(), profiles=tmp_path, content=lambda: "c0ffee")
    assert chosen.engine == "openvino"
    assert caplog.messages == ["profile is used"]


@pytest.mark.parametrize("broken", [True, False])
def test_a_profile_that_does_not_hold_is_ignored_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, broken: bool
) -> None:
    path = profile_path(tmp_path, "tiny")
    write_profile(path, profile())
    if broken:
        path.write_text("no profile")
    assert with_profile(spec(), profiles=tmp_path, content=lambda: "c0ffee") == spec()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("profile is ignored")
    assert ("is not valid TOML" if broken else "cpu") in record.__dict__["reason"]


def test_without_a_profile_the_files_are_not_hashed(tmp_path: Path) -> None:
    def content() -> str:
        raise AssertionError("nobody asked for it")

    assert with_profile(spec(), profiles=tmp_path, content=content) == spec()


def test_profiles_lie_in_the_users_cache_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RERANKD_PROFILES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_settings().profiles == tmp_path / "rerankd" / "profiles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read_settings().profiles == Path("/home/somebody/.cache/rerankd/profiles")


def test_the_machine_is_told_by_its_processor_and_devices(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Abacus 9\n\nprocessor\t: 1\n")
    assert _cpu(cpuinfo).endswith("/Abacus 9/25/17")
    assert _cpu(tmp_path / "nowhere")
    for number in ("0", "1"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 7\n")
    assert _gpus(tmp_path) == ("NVIDIA H200", "NVIDIA H200")
    assert Machine.this().difference(Machine.this()) == ""
