"""What `rerankd inspect` says of adapters: what they change, and why they are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from rerankd.cli import cli
from rerankd.errors import ConfigError
from rerankd.tools.inspecting import describe_adapter

SAID: dict[str, Any] = {
    "base_model_name_or_path": "org/tiny-bert",
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 8,
    "rank_pattern": {"layer.1.attention.self.query": 1},
    "use_rslora": True,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}


def adapter(folder: Path, **said: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SAID, **said}))
    layers = [f"bert.encoder.layer.{number}.attention.self.query" for number in (0, 1)] + ["bert.pooler.value"]
    matrices = [f"base_model.model.{layer}.lora_{side}.weight" for layer in layers for side in "AB"]
    tensors = {name: np.zeros((2, 2), np.float32) for name in (*matrices, "base_model.model.classifier.weight")}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapters_changes_are_listed(tmp_path: Path) -> None:
    described = describe_adapter(adapter(tmp_path))
    assert described == {
        "adapter": str(tmp_path),
        "base": "org/tiny-bert",
        "kind": "LORA",
        "rank": 2,
        "rank_pattern": SAID["rank_pattern"],
        "alpha": 8,
        "alpha_pattern": {},
        "rslora": True,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        "changes": {"query": 2, "value": 1},
        "replaces": ["classifier.weight"],
        "refused": None,
    }


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"use_dora": True}, "use_dora = True, which is not applied"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "IA3"}, "only LORA"),
    ],
)
def test_what_is_not_applied_is_said_beside_what_the_adapter_says(
    tmp_path: Path, said: dict[str, Any], reason: str
) -> None:
    described = describe_adapter(adapter(tmp_path, **said))
    assert reason in described["refused"]
    assert described["base"] == "org/tiny-bert"
    assert "changes" not in described


def test_what_is_no_adapter_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        describe_adapter(tmp_path)


def test_the_command_shows_an_adapter_alone_or_with_its_model(tmp_path: Path, tiny_model: Path) -> None:
    folder = adapter(tmp_path / "law")
    alone = CliRunner().invoke(cli, ["inspect", "--adapter", str(folder)])
    assert alone.exit_code == 0, alone.output
    for words in ("org/tiny-bert", "rslora", "query = 2, value = 1", "classifier.weight"):
        assert words in alone.output
    # the tiny model has a graph alone, which takes no adapter
    refused = CliRunner().invoke(cli, ["inspect", str(tiny_model), "--adapter", str(folder), "--json"])
    assert refused.exit_code == 1, refused.output
    report = json.loads(refused.output)
    assert report["adapter_says"]["changes"] == {"query": 2, "value": 1}
    assert report["refused"]


def test_another_models_adapter_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = adapter(tmp_path / "law", base_model_name_or_path="org/other")
    copied = tmp_path / "tiny-bert"
    copied.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (copied / name).write_bytes((tiny_model / name).read_bytes())
    save_file({"classifier.weight": np.zeros((1, 2), np.float32)}, copied / "model.safetensors")
    done = CliRunner().invoke(cli, ["inspect", str(copied), "--adapter", str(folder), "--json"])
    assert done.exit_code == 1, done.output
    assert "'org/other' as the model that it changes" in json.loads(done.output)["refused"]
    named = ["--adapter", str(folder), "--adapter-of", "org/other", "--json"]
    refusal = json.loads(CliRunner().invoke(cli, ["inspect", str(copied), *named]).output)["refused"]
    assert "org/other" not in (refusal or "")
    alone = CliRunner().invoke(cli, ["inspect", *named])
    assert isinstance(alone.exception, ConfigError)
    assert "MODEL --adapter FOLDER" in str(alone.exception)
