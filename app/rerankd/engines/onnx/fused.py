"""Runs an int8 graph whose embeddings and encoder layers our own kernels compute, and the rest ONNX Runtime
(docs/adr/0012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import pad
from rerankd.engines.onnx.encoder_layers import (
    EmbeddingsPart,
    FirstPlaces,
    LayerPart,
    LinearPart,
    NormalisationPart,
    PaddingBias,
    find_embeddings,
    find_layers,
    find_simple,
)
from rerankd.engines.onnx.kernels import UNSEEN, Embeddings, Layer, Layers, Linear, Normalisation
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

Inputs = Mapping[str, IntArray]


class FusedSession:
    """Stands in for the session of the whole graph: what its layers need of the inputs, these, and what comes after.

    The states that the layers start from are those of `embeddings`, rows whose names come with them, or what `before`
    makes; that is None where everything is `simple`. Unless it is `padded`, padding takes no time in the layers.
    """

    def __init__(
        self,
        simple: Mapping[str, Callable[[Inputs], NDArray[Any]]],
        before: ort.InferenceSession | None,
        embeddings: tuple[Embeddings, Sequence[str]] | None,
        layers: Layers,
        after: ort.InferenceSession,
        *,
        states: tuple[str, str],
        bias: str,
    ) -> None:
        self._simple = simple
        self._before = before
        self._embeddings = embeddings
        self._layers = layers
        self._after = after
        self._first, self._last = states
        self._bias = bias
        self._made = [node.name for node in before.get_outputs()] if before else []
        self._taken = {node.name for node in after.get_inputs()}
        self.padded = not self._leaves_padding_out()

    def get_inputs(self) -> Sequence[ort.NodeArg]:
        return [node for node in self._after.get_inputs() if node.name not in (self._last, self._bias)]

    def get_outputs(self) -> Sequence[ort.NodeArg]:
        outputs: Sequence[ort.NodeArg] = self._after.get_outputs()
        return outputs

    def get_modelmeta(self) -> ort.ModelMetadata:
        return self._after.get_modelmeta()

    def _leaves_padding_out(self) -> bool:
        """Whether the graph hides padding from every query, so that the layers do not compute it. This is tried."""
        short, long = Encoding(np.ones(4, dtype=np.int64), 2), Encoding(np.ones(9, dtype=np.int64), 3)
        alone, both = (self._given(self._inputs_of(batch))[self._bias] for batch in ([short], [short, long]))
        padding = both[0, ..., alone.shape[-1] :]
        return len(both) == 2 and bool((padding <= UNSEEN).all())

    def _inputs_of(self, batch: Sequence[Encoding]) -> Inputs:
        padded = asdict(pad(batch, pad_id=0))
        types = {"tensor(int32)": np.int32}
        return {node.name: padded[node.name].astype(types.get(node.type, np.int64)) for node in self.get_inputs()}

    def _given(self, inputs: Inputs) -> dict[str, Any]:
        """The inputs, and what the layers need of them."""
        given: dict[str, Any] = {**inputs, **{name: make(inputs) for name, make in self._simple.items()}}
        if self._before is not None:
            given.update(zip(self._made, self._before.run(self._made, inputs), strict=True))
        return given

    def run(self, outputs: Sequence[str], inputs: Inputs) -> Sequence[FloatArray]:
        """Compute outputs from inputs, as a session does."""
        given = self._given(inputs)
        if self._embeddings is not None:
            embeddings, rows = self._embeddings
            given[self._first] = embeddings.forward([given[name] for name in rows])
        given[self._last] = self._layers.forward(given[self._first], given[self._bias])
        scores: Sequence[FloatArray] = self._after.run(
            outputs, {name: array for name, array in given.items() if name in self._taken}
        )
        return scores


def open_fused(graph: Path, open_session: Callable[[bytes], ort.InferenceSession]) -> FusedSession:
    """Open a graph in parts.

    Raises:
        ConfigError: the graph has no layers that the kernels can compute.
    """
    model = onnx.load(graph)
    layers = find_layers(model.graph)
    if not layers:
        raise ConfigError("no layer of the graph is an int8 one of BERT's kind, as `rerankd export` writes them")
    first, last, bias = layers[0].source, layers[-1].output, layers[0].bias
    embeddings = find_embeddings(model.graph, first)
    rows = [table.indices for table in embeddings.tables] if embeddings else []
    inputs = {tensor.name for tensor in model.graph.input}
    wanted = [name for name in [*(rows or [first]), bias] if name not in inputs]
    simple = {name: make for name in wanted if (make := _simple(find_simple(model.graph, name)))}
    others = [name for name in wanted if name not in simple]
    after = _part(model, given={last: 3, bias: 4}, wanted=[])
    inside = {layer.up.output for layer in layers}
    if any(output in inside for node in after.graph.node for output in node.output):
        raise ConfigError(
            "the graph reads values from inside its encoder layers; export the model with `rerankd export`"
        )
    return FusedSession(
        simple,
        open_session(_part(model, given={}, wanted=others).SerializeToString()) if others else None,
        (_embeddings(embeddings), rows) if embeddings else None,
        Layers([_layer(layer) for layer in layers]),
        open_session(after.SerializeToString()),
        states=(first, last),
        bias=bias,
    )


def _part(model: onnx.ModelProto, *, given: Mapping[str, int], wanted: Sequence[str]) -> onnx.ModelProto:
    """What of a graph leads from its inputs, and from tensors of numbers that are `given` with their ranks, to those
    that are `wanted`, or else to its outputs.
    """
    graph = model.graph
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted] or graph.output
    needed = {output.name for output in outputs}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output) - given.keys():
            nodes.append(node)
            needed.update(node.input)
    part = helper.make_graph(
        list(reversed(nodes)),
        graph.name,
        [
            *graph.input,
            *(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                for name, rank in given.items()
                if name in needed
            ),
        ],
        outputs,
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    made = helper.make_model(
        part, ir_version=model.ir_version, opset_imports=model.opset_import, functions=model.functions
    )
    made.metadata_props.extend(model.metadata_props)
    return made


def _simple(found: PaddingBias | FirstPlaces | None) -> Callable[[Inputs], NDArray[Any]] | None:
    if isinstance(found, PaddingBias):
        seen, hidden = np.float32(0), np.float32(found.hidden)
        return lambda inputs: np.where(inputs["attention_mask"][:, None, None, :], seen, hidden)
    if isinstance(found, FirstPlaces):
        places = found.places
        return lambda inputs: places[:, : inputs["input_ids"].shape[1]]
    return None


def _embeddings(found: EmbeddingsPart) -> Embeddings:
    tables = [(table.vectors, table.scales) for table in found.tables]
    return Embeddings(tables, normalisation=_normalisation(found.normalisation))


def _layer(found: LayerPart) -> Layer:
    return Layer(
        query_key_value=_side_by_side(found.query, found.key, found.value),
        output=_linear(found.attention_output),
        up=_linear(found.up),
        down=_linear(found.down),
        after_attention=_normalisation(found.after_attention),
        after_feed_forward=_normalisation(found.after_feed_forward),
        heads=found.heads,
        score_scale=found.score_scale,
        first_row=found.first_row,
    )


def _linear(part: LinearPart) -> Linear:
    return Linear(part.weights, scales=part.scales, bias=part.bias)


def _side_by_side(*parts: LinearPart) -> Linear:
    return Linear(
        np.concatenate([part.weights for part in parts], axis=1),
        scales=np.concatenate([part.scales for part in parts]),
        bias=np.concatenate([part.bias for part in parts]),
    )


def _normalisation(part: NormalisationPart) -> Normalisation:
    return Normalisation(weight=part.weight, bias=part.bias, epsilon=part.epsilon)
