"""`rerankd serve MODEL` and `rerankd inspect MODEL`, as a user meets them: folders, and a hub on a loopback port."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import running
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.hub import Repository, tiny_hub
from tests.integration.test_command_line import rerankd
from tests.servers import free_port, wait_until_ready


def inspected(model: object, *options: str, **environment: str) -> dict[str, Any]:
    done = rerankd("inspect", model, "--json", *options, cwd=None, **environment)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_inspect_says_what_was_read_from_which_file(tiny_model: Path) -> None:
    report = inspected(tiny_model)
    assert report["scorer"] == "cross-encoder"
    assert report["engine"] == "onnx"
    assert report["max_length"] == 128
    assert {"file": "config.json", "says": "max_position_embeddings = 128"} in report["read"]
    shown = rerankd("inspect", tiny_model).stdout
    assert "cross-encoder" in shown
    assert "config.json: max_position_embeddings = 128" in shown


def test_inspect_refuses_with_a_reason_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5ForConditionalGeneration"]}))
    done = rerankd("inspect", tmp_path)
    assert done.returncode == 1
    assert "encoder-decoder" in done.stdout
    done = rerankd("inspect", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "no model folder" in done.stderr


def test_a_folder_that_cannot_be_served_ends_serve_at_once(tmp_path: Path) -> None:
    done = rerankd("serve", tmp_path, "--port", str(free_port()))
    assert done.returncode == 2
    assert "is this a Hugging Face model folder?" in done.stderr
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5ForConditionalGeneration"]}))
    done = rerankd("serve", tmp_path, "--port", str(free_port()))
    assert done.returncode == 2
    assert "encoder-decoder" in done.stderr


def test_a_model_alone_is_served(tiny_model: Path) -> None:
    """For `docker run IMAGE MODEL`; a word that can be no model is an unknown command."""
    options = "--name", "ours", "--check"
    served = rerankd("serve", tiny_model, *options)
    assert served.returncode == 0
    assert "ours" in served.stdout
    assert rerankd(tiny_model, *options).stdout == served.stdout
    assert "No such command 'minilm'" in rerankd("minilm", *options).stderr


def test_a_template_that_the_model_does_not_take_ends_serve_at_once(tiny_model: Path) -> None:
    done = rerankd("serve", tiny_model, "--template", "qwen3-reranker", "--port", str(free_port()))
    assert done.returncode == 2
    assert "unknown key 'template'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options", "engine"),
    [
        ("bert", {}, "torch/cpu/float32"),
        ("xlmr", {}, "torch/cpu/float32"),
        ("modernbert", {"model_dtype": "bfloat16"}, "torch/cpu/bfloat16"),
        ("deberta", {}, "torch/cpu/float32"),
        ("bert-onnx", {}, "onnx/cpu/model.int8.onnx"),
        ("bert-onnx", {"model_dtype": "float32"}, "onnx/cpu/model.onnx"),
        ("qwen3", {"model_template": "qwen3-reranker"}, "torch-causal/cpu/float32"),
        ("gemma2", {"model_template": "bge-reranker-gemma"}, "torch-causal/cpu/float32"),
        ("llama", {"model_template": "first-llama-3"}, "torch-causal/cpu/float32"),
        ("mistral", {"model_template": "first-mistral"}, "torch-causal/cpu/float32"),
    ],
)
async def test_a_folder_is_served_without_a_registry(
    family: str,
    options: dict[str, Any],
    engine: str,
    torch_folder: Callable[[str], Path],
    causal_folder: Callable[[str], Path],
    onnx_folder: Callable[[str], Path],
) -> None:
    encoders = {"bert", "xlmr", "modernbert", "deberta"}
    kind = onnx_folder if "-" in family else torch_folder if family in encoders else causal_folder
    folder = kind(family.removesuffix("-onnx"))
    settings = Settings(model=(str(folder),), cache_url="none://", **options)
    async with running_service(settings, Silent()) as service:
        model = service.model_named(folder.name)
        await model.settled()
        assert str(model.details["engine"]).startswith(engine)
        result = await service.rerank(RerankRequest(query="What is it?", documents=["Paris", "Berlin, and more"]))
    assert len(result.results) == 2


def test_a_repository_is_served_by_its_name_alone(tiny_model: Path, tmp_path: Path) -> None:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "golden.json")
    files = {name: (tiny_model / name).read_bytes() for name in names}
    files |= {"onnx/model.onnx": (tiny_model / "model.onnx").read_bytes(), "README.md": b"", "pytorch_model.bin": b""}
    repositories = {"org/model": Repository(files), "org/vectors": Repository({"config.json": _EMBEDDING})}
    with tiny_hub(repositories) as hub:
        environment = {"HF_ENDPOINT": hub.url, "RERANKD_HUB_CACHE": str(tmp_path / "hub")}
        report = inspected("org/model", **environment)
        assert report["repository"] == "org/model"
        assert report["engine_options"] == {"file": "onnx/model.onnx"}
        assert hub.fetched() == set(names)
        refused = rerankd("serve", "--check", "--load", "org/vectors", cwd=None, **environment)
        assert refused.returncode == 2
        assert "it is not known how a text becomes one vector" in refused.stderr
        command = [sys.executable, "-m", "rerankd", "serve", "org/model", "--port", str(port := free_port())]
        with running(command, port, tmp_path / "rerankd.log", environment) as server:
            wait_until_ready(server)
        assert hub.fetched() == {*names, "onnx/model.onnx"}
    assert "model is recognised" in (tmp_path / "rerankd.log").read_text()
    again = inspected("org/model", **environment, RERANKD_HUB_OFFLINE="true")
    assert again["engine_options"] == {"file": "onnx/model.onnx"}


_EMBEDDING = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()


def test_the_command_line_names_models_over_the_environments_registry(tiny_model: Path, tmp_path: Path) -> None:
    done = rerankd("serve", "--check", "--load", tiny_model, "--name", "ours", RERANKD_REGISTRY="/no/registry.toml")
    assert done.returncode == 0, done.stderr
    assert "ours (default)" in done.stdout
    done = rerankd("serve", tiny_model, "--registry", tmp_path / "registry.toml")
    assert done.returncode == 2
    assert "not both" in done.stderr


def test_inspect_tells_what_the_scorer_would_refuse(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "left", "model_max_length": 128}))
    done = rerankd("inspect", folder, "--json")
    assert done.returncode == 1
    assert "truncation_side" in json.loads(done.stdout)["refused"]
