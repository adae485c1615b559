"""Checks a folder's weights before a runtime loads them: what is there, and whether it is complete.

Only headers are read, so this takes milliseconds for any model.
"""

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from rerankd.errors import ConfigError, few
from rerankd.recognition.files import read_json, read_optional_json, refuse_hollow, table_of

_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
# safetensors itself refuses longer headers.
_LONGEST_HEADER: Final = 100_000_000
_LENGTH: Final = struct.Struct("<Q")
# Unsupported formats by the end of their names, and what to do about them.
_OTHERS: Final[Mapping[str, str]] = {
    ".bin": "pickled weights, which can run code and are never read: convert them with "
    "AutoModel...from_pretrained(folder).save_pretrained(folder), which writes safetensors",
    ".pt": "pickled weights, which can run code and are never read: convert them to safetensors",
    ".pth": "pickled weights, which can run code and are never read: convert them to safetensors",
    ".ckpt": "a checkpoint of a training run, which is never read: convert it to safetensors",
    ".h5": "TensorFlow's weights: convert them with from_pretrained(folder, from_tf=True) in transformers 4",
    ".msgpack": "Flax's weights: convert them with from_pretrained(folder, from_flax=True) in transformers 4",
    ".gguf": "weights for llama.cpp: convert them with `rerankd import`, or use the repository that they were made "
    "from",
    ".onnx": 'an ONNX graph: set engine = "onnx" or engine = "openvino"',
}
# Files beside weights that are not weights.
_NO_WEIGHTS: Final = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def check_safetensors(folder: Path) -> None:
    """Refuse a folder whose safetensors are missing or incomplete.

    Raises:
        ConfigError: the message names the file and the way out.
    """
    if (folder / _WHOLE).is_file():
        check_header(folder / _WHOLE)
    elif (folder / _INDEX).is_file():
        for name in _shards(folder):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder / _INDEX} names {name}, which is not there; download the model again")
            check_header(folder / name)
    else:
        raise ConfigError(absence(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder that `check_safetensors` accepts."""
    return [folder / _WHOLE] if (folder / _WHOLE).is_file() else [folder / name for name in _shards(folder)]


def check_header(path: Path) -> Mapping[str, Any]:
    """Refuse an incomplete safetensors file: its header contains the length. Gives what it says of each tensor.

    Raises:
        ConfigError: it is a Git LFS pointer, empty, cut off, or no safetensors file.
    """
    refuse_hollow(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(_LENGTH.size)
        length = _LENGTH.unpack(beginning)[0] if len(beginning) == _LENGTH.size else _LONGEST_HEADER + 1
        if length > _LONGEST_HEADER:
            raise ConfigError(f"{path} is not a safetensors file; download it again")
        if size < _LENGTH.size + length:
            raise ConfigError(f"{path} is cut off within its header; download it again")
        header = _header(path, file.read(length))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    needed = _LENGTH.size + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size < needed:
        raise ConfigError(f"{path} is cut off: it has {size} of {needed} bytes; download it again")
    return tensors


def check_graph(path: Path) -> None:
    """Refuse an empty ONNX graph, and one whose separate weights are empty.

    Raises:
        ConfigError: one of these files is a Git LFS pointer, or empty.
    """
    for file in (path, path.with_name(f"{path.name}_data"), path.with_name(f"{path.name}.data")):
        if file.is_file():
            refuse_hollow(file)


def check_code(folder: Path, *, trust_remote_code: bool, loader: str) -> None:
    """Refuse a model with a class of its own where transformers would silently use another.

    Raises:
        ConfigError: config.json names a class in code that is not trusted, or that lies in another repository.
    """
    config = read_json(folder / "config.json")
    reference = table_of(config, "auto_map", of=folder / "config.json").get(loader)
    if not isinstance(reference, str):
        return
    repository, _, name = reference.rpartition("--")
    if not trust_remote_code:
        if (config.get("model_type"), name.rpartition(".")[2]) in _SAME_IN_TRANSFORMERS:
            return
        raise ConfigError(
            f"{folder / 'config.json'}: auto_map says that this model is computed by its authors' own class "
            f"{reference}; read that code, then set trust_remote_code = true, or take auto_map out of config.json if "
            f"transformers' own {config.get('model_type')!r} computes the same"
        )
    if repository and not (folder / f"{name.partition('.')[0]}.py").is_file():
        raise ConfigError(
            f"{folder / 'config.json'}: auto_map names code in another repository, {repository}, which is not fetched; "
            f"put its files beside config.json and write {name!r} there"
        )


# Classes that transformers adopted unchanged.
_SAME_IN_TRANSFORMERS: Final = frozenset(
    {
        ("falcon", "FalconForCausalLM"),
        ("falcon", "FalconForSequenceClassification"),
        ("phi", "PhiForCausalLM"),
        ("phi3", "Phi3ForCausalLM"),
    }
)


def _shards(folder: Path) -> list[str]:
    index = folder / _INDEX
    names = table_of(read_json(index), "weight_map", of=index).values()
    shards = sorted({str(name) for name in names})
    if not shards:
        raise ConfigError(f"{index} names no weights; download it again")
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise ConfigError(f"{index} names {outside[0]!r}, which is outside of the folder")
    return shards


def _header(path: Path, content: bytes) -> Mapping[str, Any]:
    try:
        header = json.loads(content)
        if not all(isinstance(tensor["data_offsets"][1], int) for name, tensor in header.items() if name[:2] != "__"):
            raise ValueError("it holds no offsets")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{path} is not a safetensors file: its header cannot be read; download it again") from None
    return dict(header)


def absence(folder: Path, names: Collection[str] = ()) -> str:
    """Why there is nothing to load, by what there is instead: the folder's files, or those of these names."""
    if (folder / _ADAPTER).is_file():
        base = read_optional_json(folder / _ADAPTER).get("base_model_name_or_path")
        return (
            f"{folder} holds an adapter (LoRA) of {base!r} and not the model; set `path` to the model and "
            "`adapter` to this folder, or merge both (peft's merge_and_unload, then save_pretrained)"
        )
    paths = [*folder.glob("*"), *folder.glob("onnx/*.onnx")]
    found = names or [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    there = sorted((name for name in found if name not in _NO_WEIGHTS), key=lambda name: ("/" in name, name))
    tensors = [name for name in there if name.endswith(".safetensors")]
    if tensors:
        return (
            f"{folder} has neither {_WHOLE} nor {_INDEX}, only {few(tensors)}: the index is missing; "
            "download it, or rename a single file"
        )
    for ending, what in _OTHERS.items():
        others = [name for name in there if name.endswith(ending)]
        if others:
            return f"{folder} has no {_WHOLE}; {others[0]} is {what}"
    return f"no weights in {folder}: it has neither {_WHOLE} nor {_INDEX}; download the model again"
