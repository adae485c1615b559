"""Reads GGUF files, llama.cpp's format: what they say of a model, and its weights as numbers.

llama.cpp names layers otherwise than transformers, and stores the queries and keys of Llama models in another order.
Whatever in a file changes a score and is not converted here is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

from rerankd.domain import FloatArray
from rerankd.errors import ConfigError, few
from rerankd.recognition.files import refuse_hollow

# By GGUF's architecture: the class of transformers, and its type in config.json.
ARCHITECTURES: Final[Mapping[str, tuple[str, str]]] = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
# Keys behind the architecture's name that are applied, and what config.json calls them.
_SIZES: Final[Mapping[str, str]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
# Those that may be no whole numbers, and the largest of all: longer texts than any model reads.
_FRACTIONS: Final = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
_LARGEST: Final = 2**31
# Keys with the values that change nothing. Every other key is refused.
_WITHOUT_EFFECT: Final[Mapping[str, object]] = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}
# Keys that say again what others say: the size of the vocabulary, and of a head.
_OF_VOCABULARY: Final = "vocab_size"
_OF_HEAD: Final = ("rope.dimension_count", "attention.value_length")
_LAYER: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_MATRIX: Final = 2
_TENSOR: Final = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A language model in one file. `says` are its metadata, `tensors` its weights by the names of transformers."""

    path: Path
    says: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    @classmethod
    def read(cls, path: Path) -> "GgufFile":
        """Read what the file says. Its weights stay on disk.

        Raises:
            ConfigError: it is no whole GGUF file, or holds a model that is not converted.
        """
        if not path.is_file():
            raise ConfigError(f"no file {path}; name a GGUF file")
        refuse_hollow(path)
        try:
            reader = _Reader(path)
            says = {name: field.contents() for name, field in reader.fields.items()}
        except (
            ValueError,
            IndexError,
            KeyError,
            OverflowError,
            UnicodeDecodeError,
            MemoryError,
            RecursionError,
        ) as error:
            raise ConfigError(f"{path} is not a whole GGUF file ({error!r:.200}); download it again") from None
        if says.get("split.count", 1) not in (0, 1):
            raise ConfigError(
                f"{path} is one of {says['split.count']} parts; merge them with `llama-gguf-split --merge`"
            )
        _check_architecture(path, says)
        return cls(path, says, _named(path, reader.tensors))

    @property
    def architecture(self) -> str:
        return str(self.says["general.architecture"])

    def size(self, key: str) -> Any:  # noqa: ANN401 - a number
        """A number of the model that every file has to say.

        Raises:
            ConfigError: it does not.
        """
        value = self.says.get(f"{self.architecture}.{key}")
        wanted = (int, float) if key in _FRACTIONS else int
        if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value <= _LARGEST:
            raise ConfigError(f"{self.path} says {self.architecture}.{key} = {value!r:.60}; download it again")
        return value

    def config(self) -> dict[str, Any]:
        """config.json as transformers reads it."""
        kind, model_type = ARCHITECTURES[self.architecture]
        given = {name: self.size(key) for key, name in _SIZES.items() if f"{self.architecture}.{key}" in self.says}
        heads = self.size("attention.head_count")
        sizes = {"num_key_value_heads": heads, "head_dim": self.size("embedding_length") // heads, **given}
        for key in _OF_HEAD:
            name = f"{self.architecture}.{key}"
            if self.says.get(name, sizes["head_dim"]) != sizes["head_dim"]:
                raise _not_converted(self.path, name, self.says[name])
        _check_shapes(self.path, sizes, {name: tuple(map(int, one.shape)) for name, one in self.tensors.items()})
        tokens = {
            f"{role}_token_id": self.says[f"tokenizer.ggml.{key}_token_id"]
            for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
            if f"tokenizer.ggml.{key}_token_id" in self.says
        }
        return {
            "architectures": [kind],
            "model_type": model_type,
            "hidden_act": "silu",
            "vocab_size": int(self.tensors["model.embed_tokens.weight"].shape[1]),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            **sizes,
            **tokens,
        }

    def weight(self, name: str) -> FloatArray:
        """The numbers of a tensor, dequantized to float32, shaped and ordered as transformers has them."""
        tensor = self.tensors[name]
        numbers: FloatArray = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if self.architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = "attention.head_count" if "q_proj" in name or not self._groups_heads else "attention.head_count_kv"
            return _in_halves(numbers, self.size(heads))
        return numbers

    @property
    def _groups_heads(self) -> bool:
        return f"{self.architecture}.attention.head_count_kv" in self.says


def _check_shapes(path: Path, sizes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse sizes that contradict the weights. `shapes` are GGUF's: the number of inputs first.

    Raises:
        ConfigError: a weight is missing, there is one too many, or one has another shape than the sizes say.
    """
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    own = sizes["num_attention_heads"] * sizes["head_dim"]
    shared = sizes["num_key_value_heads"] * sizes["head_dim"]
    in_layer: Mapping[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, own),
        "self_attn.k_proj": (hidden, shared),
        "self_attn.v_proj": (hidden, shared),
        "self_attn.o_proj": (own, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    if len(layers) != sizes["num_hidden_layers"] or layers != set(range(len(layers))):
        raise ConfigError(
            f"{path} says that it has {sizes['num_hidden_layers']} layers, and holds weights of {len(layers)}; "
            "download it again"
        )
    words = shapes["model.embed_tokens.weight"][1]
    wanted = {"model.embed_tokens.weight": (hidden, words), "model.norm.weight": (hidden,)}
    wanted |= {f"model.layers.{number}.{name}.weight": one for number in layers for name, one in in_layer.items()}
    if "lm_head.weight" in shapes:
        wanted["lm_head.weight"] = (hidden, words)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            there = "is missing" if name not in shapes else f"has the shape {list(shapes[name])}"
            raise ConfigError(f"{path}: {name} {there}, and by its sizes it has {list(shape)}; download it again")
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise ConfigError(
            f"{path} says that {sizes['num_attention_heads']} heads share {sizes['num_key_value_heads']} keys; "
            "download it again"
        )


class _Reader(GGUFReader):
    """Ends where the file does. The original takes what lies behind for empty, and reads a list that says it has 2**60
    entries for ever.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> NDArray[Any]:  # noqa: ANN401
        found: NDArray[Any] = super()._get(offset, dtype, count, *more, **named)
        if len(found) < count:
            raise ValueError(f"at byte {offset} it has {len(found)} of {count} numbers")
        return found


def _in_halves(rows: FloatArray, heads: int) -> FloatArray:
    """Llama's rows as transformers rotates them: a head's first half against its second. llama.cpp has pairs of
    neighbours.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _check_architecture(path: Path, says: Mapping[str, Any]) -> None:
    """Refuse models that would be computed otherwise than llama.cpp does."""
    architecture = str(says.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{path} holds a model of the architecture {architecture!r}, which is not converted (known: "
            f"{', '.join(ARCHITECTURES)}); serve the repository that it was made from"
        )
    for key, value in says.items():
        name = key.removeprefix(f"{architecture}.")
        known = name == key or name in (*_SIZES, *_OF_HEAD, _OF_VOCABULARY)
        if not known and value != _WITHOUT_EFFECT.get(name, ...):
            raise _not_converted(path, key, value)


def _not_converted(path: Path, key: str, value: object) -> ConfigError:
    return ConfigError(
        f"{path} says {key} = {value!r:.60}, which changes what the model computes and is not converted; serve the "
        "repository that the file was made from"
    )


def _named(path: Path, tensors: Sequence[ReaderTensor]) -> dict[str, ReaderTensor]:
    """The tensors by the names that transformers gives them.

    Raises:
        ConfigError: there are others, such as a classifier's head or the factors of stretched positions.
    """
    names = {tensor.name: _name_of(tensor.name) for tensor in tensors}
    unknown = sorted(name for name, ours in names.items() if ours is None)
    if unknown:
        raise ConfigError(
            f"{path} holds {few(unknown)}, which is not converted, and without which the model would score otherwise; "
            "serve the repository that the file was made from"
        )
    if not any(tensor.name == "token_embd.weight" and len(tensor.shape) == _MATRIX for tensor in tensors):
        raise ConfigError(f"{path} holds no matrix token_embd.weight: it is not a whole model; download it again")
    return {str(names[tensor.name]): tensor for tensor in tensors}


def _name_of(name: str) -> str | None:
    match = _TENSOR.fullmatch(name)
    if match is None:
        return None
    layer, kind, part = match.groups()
    if layer is None:
        return f"{_WHOLE[kind]}.{part}" if kind in _WHOLE else None
    return f"model.layers.{layer}.{_LAYER[kind]}.{part}" if kind in _LAYER else None
