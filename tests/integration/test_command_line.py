"""The command `rerankd` as a user meets it: in a process of its own, with its exit status and what it prints."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import copytree
from threading import Event
from typing import Any

import pytest

from rerankd.config.registry import read_registry
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.serving.assembly import load_parts
from rerankd.tools.checking import check_settings
from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

_COMMANDS = ("serve", "rank", "eval", "bench", "tune", "models", "inspect", "export")
_ROOT = Path(__file__).resolve().parents[2]
_PATH = os.pathsep.join([str(_ROOT / "app"), str(_ROOT)])


def _environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": _PATH, "COLUMNS": "200", **more}


def rerankd(*words: object, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rerankd", *map(str, words)],
        env=_environment(**environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def _registry(folder: Path, *models: Mapping[str, Any]) -> Path:
    return write_registry(folder, list(models))


@pytest.fixture
def registry(tmp_path: Path, tiny_model: Path) -> Path:
    return _registry(tmp_path, {"name": "tiny", "path": tiny_model})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["serve", "--name", "ours", "--dtype", "int8"], "--name, --dtype"),
        (["serve", "--check", "--certify", "strict"], "--certify"),
        (["rank", "requests.jsonl", "answers.jsonl", "--depth", "10"], "--depth"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    tmp_path: Path, registry: Path, words: Sequence[str], named: str
) -> None:
    _requests(tmp_path)
    done = rerankd(*words, cwd=tmp_path, RERANKD_REGISTRY=str(registry))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"rerankd: {named} ")


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_each_command_has_an_example(command: str) -> None:
    done = rerankd(command, "--help")
    assert done.returncode == 0
    assert f" rerankd {command}" in done.stdout.split("Examples:")[1]


def test_the_version_is_told() -> None:
    assert rerankd("--version").stdout.startswith("rerankd 0.")


def test_completion_can_be_installed() -> None:
    done = rerankd("--show-completion", "bash", SHELL="/bin/bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete" in done.stdout


def test_a_misspelled_command_names_the_nearest() -> None:
    done = rerankd("serv")
    assert done.returncode == 2
    assert "Did you mean 'serve'?" in done.stderr


def test_the_format_of_rank_is_in_its_help() -> None:
    text = rerankd("rank", "--help").stdout
    for line in ('{"id": 7, "query": "...", "documents": ["...", {"text": "..."}], "top_n": 10}', '"error_type"'):
        assert line in text


def test_a_configuration_without_faults_is_summed_up(registry: Path) -> None:
    done = rerankd("serve", "--check", "--load", "--registry", registry)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert "model is uncertified" in warning, "its weights are random"
    assert "The configuration is usable. Models: 1, loaded." in done.stdout


def test_all_faults_are_told_at_once(tmp_path: Path, tiny_model: Path) -> None:
    registry = _registry(
        tmp_path,
        {"name": "typo", "path": tiny_model, "engine": "onxx"},
        {"name": "moved", "path": "nowhere"},
        {"name": "options", "path": tiny_model, "options": {"lable": 1}, "engine_options": {"threads": 0}},
        {"name": "devices", "path": tiny_model, "engine": "endpoint", "devices": ["cuda:0"]},
        {"name": "hub", "path": "hub:nothing"},
        {"name": "fine", "path": tiny_model},
    )
    done = rerankd(
        "serve",
        "--check",
        "--registry",
        registry,
        RERANKD_CACHE_URL="memory://?max_entrys=3",
        RERANKD_API_KEYS_FILE=str(tmp_path / "no-keys.toml"),
    )
    assert done.returncode == 2
    expected = [
        ("no-keys.toml",),
        ("RERANKD_CACHE_URL", "did you mean max_entries?"),
        ("model typo: ", "onxx"),
        ("model moved: ", "nowhere"),
        ("model options: ", "lable"),
        ("model options: ", "threads"),
        ("model devices: ", "devices"),
        ("model hub: ", "hub:nothing"),
    ]
    lines = done.stderr.splitlines()
    for parts in expected:
        assert any(all(part in line for part in parts) for line in lines), (parts, done.stderr)
    assert "model fine" not in done.stderr


def test_faults_of_settings_do_not_hide_those_of_the_registry(tmp_path: Path, tiny_model: Path) -> None:
    registry = _registry(tmp_path, {"name": "typo", "path": tiny_model, "engine": "onxx"})
    done = rerankd("serve", "--check", RERANKD_REGISTRY=str(registry), RERANKD_PORT="many", RERANKD_LOG_LEVEL="loud")
    assert done.returncode == 2
    for part in ("RERANKD_PORT", "RERANKD_LOG_LEVEL", "unknown engine 'onxx'"):
        assert part in done.stderr


def test_a_runtime_that_is_not_installed_is_a_fault(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ModuleNotFoundError('no', name='openvino')")
    registry = _registry(tmp_path, {"name": "tiny", "path": tiny_model, "engine": "openvino"})
    done = rerankd("serve", "--check", "--registry", registry, PYTHONPATH=f"{tmp_path}{os.pathsep}{_PATH}")
    assert done.returncode == 2
    assert "run: pip install 'rerankd[openvino]' (in a checkout: make install EXTRAS=openvino)" in done.stderr


def test_only_loading_finds_what_is_wrong_in_a_file(tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.onnx").write_bytes(b"this is not a graph")
    registry = _registry(tmp_path, {"name": "broken", "path": broken})
    assert rerankd("serve", "--check", "--registry", registry).returncode == 0
    done = rerankd("serve", "--check", "--load", "--registry", registry)
    assert done.returncode == 2
    assert "model broken: " in done.stderr


def test_models_lists_faults_and_as_json(tmp_path: Path, tiny_model: Path) -> None:
    registry = _registry(
        tmp_path,
        {"name": "tiny", "aliases": ["small"], "path": tiny_model},
        {"name": "typo", "path": tiny_model, "engine": "onxx"},
    )
    done = rerankd("models", "--registry", registry)
    assert done.returncode == 0
    assert "model typo: unknown engine 'onxx'" in done.stderr
    assert "aliases" in done.stdout
    assert "revision" not in done.stdout, "no model has one"
    listed = json.loads(rerankd("models", "--json", "--registry", registry).stdout)
    assert [(model["name"], model["default"], bool(model["problems"])) for model in listed] == [
        ("tiny", True, False),
        ("typo", False, True),
    ]
    assert listed[0]["aliases"] == ["small"]


def test_a_port_in_use_is_said_before_anything_is_loaded(registry: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rerankd("serve", "--port", port, "--registry", registry)
    assert done.returncode == 2
    assert done.stderr == (
        f"rerankd: port {port} is in use; choose another: --port {port + 1} (make serve PORT={port + 1})\n"
    )


@pytest.mark.parametrize(
    ("host", "message"),
    [("203.0.113.7", "is not an address of this machine"), ("no.such.invalid", "cannot be resolved")],
)
def test_a_host_that_is_not_here_is_named(registry: Path, host: str, message: str) -> None:
    done = rerankd("serve", "--host", host, "--port", 0, "--registry", registry)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _requests(folder: Path, count: int = 1) -> Path:
    path = folder / "requests.jsonl"
    request = {"query": "what is the capital of france", "documents": ["Paris is the capital.", "a vaccine"] * 20}
    path.write_text("".join(json.dumps({"id": number, **request}) + "\n" for number in range(count)))
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["rank", "requests.jsonl", "nowhere/answers.jsonl"],
        ["rank", "requests.jsonl", "."],
        ["rank", "requests.jsonl", "requests.jsonl"],
        ["tune"],
        ["eval", "data", "--output", "nowhere/report.json"],
        ["bench", "http://127.0.0.1:9", "--markdown", "nowhere/report.md"],
        ["bench", "http://127.0.0.1:9", "--output", "same", "--markdown", "same"],
        ["export", "nowhere", "requests.jsonl/model"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, registry: Path, words: Sequence[str]
) -> None:
    _requests(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = rerankd(
        *words,
        cwd=tmp_path,
        RERANKD_REGISTRY=str(registry),
        RERANKD_PROFILES=str(tmp_path / "requests.jsonl" / "profiles"),
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("rerankd: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_second_rank_does_not_hide_the_failures_of_the_first(tmp_path: Path, registry: Path) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    good = {"query": "q", "documents": ["a", "b"]}
    source.write_text("".join(json.dumps(one) + "\n" for one in (good, {**good, "model": "nobody"})))
    first, second = (rerankd("rank", source, output, "--registry", registry) for _ in range(2))
    assert (first.returncode, second.returncode) == (1, 1)
    assert "failed in an earlier run: 1;" in " ".join(second.stderr.split())
    assert [("results" in json.loads(line)) for line in output.read_text().splitlines()] == [True, False]


def test_an_interrupted_rank_says_how_to_go_on_and_does(tmp_path: Path, registry: Path) -> None:
    source, output = _requests(tmp_path, 20_000), tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "rerankd", "rank", str(source), str(output), "--registry", str(registry)]
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while not (output.exists() and output.stat().st_size):
            assert running.poll() is None
            Event().wait(0.02)
        running.send_signal(signal.SIGINT)
        told = running.communicate(timeout=60)[1]
    done = len(output.read_text().splitlines())
    assert running.returncode == 130
    assert "the same command continues from there" in told
    assert "Traceback" not in told
    assert 0 < done < 20_000
    source.write_text("".join(source.read_text().splitlines(keepends=True)[: done + 1]))
    assert rerankd("rank", source, output, "--registry", registry).returncode == 0
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(done + 1))


def test_a_reader_that_goes_away_ends_the_command_quietly(registry: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["models"], ["models", "--json"], ["rank", "--help"]):
        command = [sys.executable, "-m", "rerankd", *words]
        environment = _environment(RERANKD_REGISTRY=str(registry))
        done = subprocess.run(
            command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
        assert done.stderr == "", words
    os.close(writing)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
def test_a_full_disk_is_one_line(tmp_path: Path, registry: Path) -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'ulimit -f 1; trap "" XFSZ; exec {sys.executable} -m rerankd rank requests.jsonl answers.jsonl',
        ],
        cwd=_requests(tmp_path, 200).parent,
        env=_environment(RERANKD_REGISTRY=str(registry), PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert "cannot write to answers.jsonl (File too large)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"options": {"activation": "sig"}}, "activation must be one of 'sigmoid' or 'identity', not 'sig'"),
        ({"options": {"label": 4}}, "label = 4"),
        ({"max_length": 5000}, "max_length = 5000"),
        ({"trust_remote_code": True}, "leave `trust_remote_code` out"),
        ({"scorer": "yes-no", "options": {"template": "nope"}}, "needs a causal language model"),
        ({"scorer": "first", "truncation": "chunk"}, "truncation and passages are for scorers of pairs"),
        ({"engine_options": {"file": "../x.onnx"}}, "is not inside of the model's folder"),
        ({"engine_options": {"provider_options": {"a": 1}}}, "provider_options (a) are for the devices"),
        ({"engine_options": {"device": "cuda"}}, "which this onnxruntime does not have"),
        ({"path": "empty"}, "config.json"),
        ({"path": "pointer"}, "is a Git LFS pointer"),
        ({"path": "bi-encoder"}, "embedding models (bi-encoders)"),
    ],
    ids=str,
)
def test_a_model_that_could_not_be_served_is_found_without_loading_it(
    tmp_path: Path, tiny_model: Path, entry: Mapping[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("pointer", "bi-encoder"):
        copytree(tiny_model, tmp_path / name)
    (tmp_path / "pointer" / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    config = json.loads((tmp_path / "bi-encoder" / "config.json").read_text())
    (tmp_path / "bi-encoder" / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    registry = _registry(tmp_path, {"name": "wrong", "path": tiny_model, **entry})
    settings = Settings(registry=registry)
    [problem] = check_settings(settings).all_problems
    assert message in problem
    with pytest.raises(ConfigError) as refusal:  # as serving says it
        load_parts(read_registry(registry).model[0], settings)
    assert problem == f"model wrong: {refusal.value}"


@pytest.mark.slow
def test_a_scorer_and_an_engine_that_do_not_fit_are_found_without_loading_them(
    tmp_path: Path, causal_folder: Callable[[str], Path]
) -> None:
    entry = {
        "name": "wrong",
        "path": causal_folder("qwen3"),
        "scorer": "yes-no",
        "options": {"template": "qwen3-reranker"},
    }
    settings = Settings(registry=_registry(tmp_path, entry | {"engine": "torch-encoder"}))
    [problem] = check_settings(settings).all_problems
    assert "set engine to one of: onnx, openvino, torch-causal" in problem


def test_no_model_is_called_usable_that_was_not_loaded(tmp_path: Path, tiny_model: Path) -> None:
    registry = _registry(
        tmp_path,
        {"name": "tiny", "path": tiny_model},
        {"name": "far", "path": "hub:org/name"},
        {"name": "lost", "path": "nowhere"},
        {"name": "good", "stages": ["tiny"]},
        {"name": "both", "stages": ["tiny", "lost"]},
    )
    checked = check_settings(Settings(registry=registry))
    assert [(model.spec.name, bool(model.problems), model.extent.value) for model in checked.models] == [
        ("tiny", False, "not loaded"),
        ("far", False, "not fetched"),
        ("lost", True, "not fetched"),
        ("good", False, "not loaded"),
        ("both", True, "not fetched"),
    ]


def test_what_serving_refuses_of_the_settings_is_told_with_all_else(registry: Path, tmp_path: Path) -> None:
    done = rerankd(
        "serve",
        "--check",
        "--registry",
        registry,
        RERANKD_MAX_DOCUMENTS="0",
        RERANKD_MAX_DOCUMENT="1",
        RERANKD_MODEL_FALLBACK="tinny",
        RERANKD_CACHE_URL="memory://?max_entrys=3",
        RERANKD_API_KEYS_FILE=str(tmp_path / "no-keys.toml"),
    )
    assert done.returncode == 2
    parts = (
        "RERANKD_MAX_DOCUMENTS must be at least 1",
        "RERANKD_MAX_DOCUMENT is not a setting",
        "RERANKD_MODEL_FALLBACK = 'tinny': no model has the name or alias 'tinny'; did you mean 'tiny'?",
        "did you mean max_entries?",
        "no-keys.toml",
    )
    for part in parts:
        assert part in done.stderr, part


def test_an_unknown_method_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    done = rerankd("export", tmp_path / "nowhere", tmp_path / "out", "--method", "foo")
    assert (done.returncode, done.stderr) == (
        2,
        "rerankd: unknown method 'foo'; known: cross-encoder, prompted-classifier, yes-no, first\n",
    )


def test_a_folder_to_export_that_is_not_there_is_no_fault_of_the_registry(tmp_path: Path) -> None:
    done = rerankd("export", tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2
    assert "no model folder" in done.stderr
    assert "registry" not in done.stderr


def test_a_registry_that_is_not_there_may_come_from_the_option(tmp_path: Path) -> None:
    done = rerankd("models", "--registry", tmp_path / "nowhere.toml")
    assert done.returncode == 2
    assert "name another with --registry or RERANKD_REGISTRY" in done.stderr


def test_a_benchmark_shows_the_message_of_the_server_alone(tmp_path: Path, tiny_model: Path) -> None:
    registry = _registry(tmp_path, {"name": "tiny", "path": tiny_model})
    with rerankd_server(tmp_path, registry) as server:
        wait_until_ready(server)
        done = rerankd("bench", server.url, "--model", "nope", "--seconds", 1)
    assert done.returncode == 2
    assert "documents: unknown model 'nope'; known: tiny." in done.stderr
    assert "{" not in done.stderr
