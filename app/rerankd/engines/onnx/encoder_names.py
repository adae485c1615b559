"""Names the tensors of an encoder's embeddings and layers in an int8 graph: what our kernels need to compute them.

`rerankd export` writes these names into the graph's metadata, as JSON (docs/adr/0016). The graph itself stays one of
plain ONNX operators, which every runtime loads.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Final, Self

import onnx
from pydantic import TypeAdapter, ValidationError

from rerankd.errors import ConfigError

# Keys of the graph's metadata: the names, and the SHA-256 of the nodes that they belong to.
NAMES: Final = "rerankd_encoder"
_NODES: Final = "rerankd_encoder_nodes"


@dataclass(frozen=True, slots=True)
class LinearNames:
    """Constants of a matmul: int8 weights of shape [in, out], and a scale and perhaps a bias for each column."""

    weights: str
    scales: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class NormNames:
    """Constants of a layer normalization, perhaps without a bias."""

    weight: str
    bias: str | None
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """An encoder layer: self-attention and a feed-forward network with GELU, each with its residual and then a
    normalization. With `first_row` its output is the first token alone (app/rerankd/tools/narrowing.py).
    """

    source: str
    attention_bias: str
    output: str
    query: LinearNames
    key: LinearNames
    value: LinearNames
    attention_output: LinearNames
    up: LinearNames
    down: LinearNames
    attention_norm: NormNames
    output_norm: NormNames
    head_size: int
    score_scale: float
    first_row: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryLayerNames:
    """An encoder layer as in ModernBERT (rotary_patterns.py). `frequencies` are angles per token. A token sees those
    that are at most `window` tokens away, or all. `attention_norm` is the one before the feed-forward network, and
    `output_norm` the next layer's.
    """

    source: str
    attention_bias: str
    output: str
    query_key_value: LinearNames
    attention_output: LinearNames
    up: LinearNames
    down: LinearNames
    attention_norm: NormNames
    output_norm: NormNames
    head_size: int
    score_scale: float
    frequencies: str
    window: int | None
    first_row: bool

    def with_bias(self, name: str) -> Self:
        """The same layer with another attention bias."""
        return replace(self, attention_bias=name)


AnyLayerNames = LayerNames | RotaryLayerNames


@dataclass(frozen=True, slots=True)
class TableNames:
    """Constants of an embedding table, int8 vectors of shape [rows, width] and a scale for each, and the tensor that
    selects rows.
    """

    indices: str
    vectors: str
    scales: str


@dataclass(frozen=True, slots=True)
class EmbeddingsNames:
    """The normalized sum of one vector from each table."""

    tables: Sequence[TableNames]
    norm: NormNames


@dataclass(frozen=True, slots=True)
class PaddingBias:
    """An attention bias of shape [batch, 1, 1, keys]: 0 where the attention mask is not 0, else `masked`."""

    masked: float


@dataclass(frozen=True, slots=True)
class Positions:
    """The first columns of a constant of shape [1, longest], one for each token of the padded batch."""

    constant: str


@dataclass(frozen=True, slots=True)
class EncoderNames:
    """Consecutive layers with the same attention bias, and the embeddings that the first one starts from, if our
    kernels compute these. `simple` are tensors that NumPy makes from the graph's inputs.
    """

    layers: Sequence[AnyLayerNames]
    embeddings: EmbeddingsNames | None = None
    simple: Mapping[str, PaddingBias | Positions] = field(default_factory=dict)


_ENCODER_NAMES: Final = TypeAdapter(EncoderNames)


def write_names(model: onnx.ModelProto, names: EncoderNames) -> None:
    """Put the names into the graph's metadata."""
    model.metadata_props.add(key=NAMES, value=json.dumps(asdict(names)))
    model.metadata_props.add(key=_NODES, value=_digest(model.graph.node))


def read_names(model: onnx.ModelProto) -> EncoderNames | None:
    """The names that the exporter wrote; None where it wrote none, or where the nodes were changed afterwards.

    Raises:
        ConfigError: this version cannot read them.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if NAMES not in metadata or metadata.get(_NODES) != _digest(model.graph.node):
        return None
    try:
        return _ENCODER_NAMES.validate_python(json.loads(metadata[NAMES]))
    except (ValidationError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read the graph's metadata {NAMES!r}; export the model again") from error


def _digest(nodes: Iterable[onnx.NodeProto]) -> str:
    """Of what the nodes compute; their own names and metadata do not matter."""
    digest = sha256()
    for node in nodes:
        digest.update(repr((node.op_type, list(node.input), list(node.output))).encode())
        for attribute in node.attribute:
            digest.update(attribute.SerializeToString(deterministic=True))
    return digest.hexdigest()
