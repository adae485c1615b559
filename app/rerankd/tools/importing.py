"""Converts a GGUF file to a folder that is served: safetensors, configuration, tokenizer and chat template."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from safetensors.numpy import save_file

from rerankd.tools.gguf_files import GgufFile
from rerankd.tools.gguf_tokenizer import read_tokenizer, tokenizer_config

Precision = Literal["float32", "float16"]
# What one file of weights holds at most, and so what is in memory at a time.
LARGEST_SHARD: Final = 4_000_000_000
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"


def import_gguf(
    source: Path,
    target: Path,
    *,
    precision: Precision = "float32",
    largest_shard: int = LARGEST_SHARD,
    on_step: Callable[[str], None] = lambda _step: None,
) -> GgufFile:
    """Write a folder of a language model in the layout of transformers.

    Weights are dequantized to the numbers that the file means; `float16` rounds them again, in half the space.

    Raises:
        ConfigError: the file is not whole, or something in it is not converted.
    """
    on_step("reading the file")
    file = GgufFile.read(source)
    config = {**file.config(), "dtype": precision}
    tokenizer, names = read_tokenizer(file), tokenizer_config(file)
    target.mkdir(parents=True, exist_ok=True)
    _delete_weights(target)
    _write_json(target / "config.json", config)
    _write_json(target / "tokenizer_config.json", names)
    tokenizer.save(str(target / "tokenizer.json"))
    if file.says.get("tokenizer.chat_template"):
        (target / "chat_template.jinja").write_text(str(file.says["tokenizer.chat_template"]), encoding="utf-8")
    _write_weights(file, target, precision=precision, largest_shard=largest_shard, on_step=on_step)
    return file


def _write_weights(
    file: GgufFile, target: Path, *, precision: Precision, largest_shard: int, on_step: Callable[[str], None]
) -> None:
    shards = list(_shards(file, precision=precision, largest_shard=largest_shard))
    shard_of: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        on_step(f"converting weights, file {number} of {len(shards)}")
        shard = _WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: file.weight(name).astype(precision) for name in names}, target / shard, {"format": "pt"})
        # safetensors writes files that nobody else may read; a service often runs as another user
        (target / shard).chmod((target / "config.json").stat().st_mode)
        shard_of |= dict.fromkeys(names, shard)
    if len(shards) > 1:
        _write_json(target / _INDEX, {"metadata": {}, "weight_map": shard_of})


def _shards(file: GgufFile, *, precision: Precision, largest_shard: int) -> Iterator[Sequence[str]]:
    """The names of the tensors of each file, in the order of the GGUF file."""
    names: list[str] = []
    size = 0
    for name, tensor in file.tensors.items():
        needed = int(tensor.n_elements) * np.dtype(precision).itemsize
        if names and size + needed > largest_shard:
            yield names
            names, size = [], 0
        names.append(name)
        size += needed
    yield names


def _delete_weights(target: Path) -> None:
    """Delete the weights of an earlier conversion, which had another number of files."""
    for path in (target / _INDEX, *target.glob("model*.safetensors")):
        path.unlink(missing_ok=True)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
