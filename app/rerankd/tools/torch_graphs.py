"""Exports torch models as float32 ONNX graphs whose dynamic shapes hold for every batch and length."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from transformers import PreTrainedModel, masking_utils

from rerankd.engines.onnx.engine import OUTPUT_TOKENS
from rerankd.engines.torch.head_rows import HeadRows
from rerankd.engines.torch.weights import takes_token_types


def classifier_graph(model: PreTrainedModel) -> onnx.ModelProto:
    """A sequence classifier's graph, as torch's exporter makes it."""
    return _export(_LogitsOnly(model), takes_segments=takes_token_types(model))


def language_model_graph(model: PreTrainedModel, output_tokens: Sequence[int]) -> onnx.ModelProto:
    """A causal language model's graph with the logits of these tokens at the last position."""
    graph = _export(_RowsOnly(model, output_tokens), takes_segments=False)
    onnx.helper.set_model_props(graph, {OUTPUT_TOKENS: json.dumps(list(output_tokens))})
    return graph


class _LogitsOnly(torch.nn.Module):
    """The model with positional inputs and one output, like a graph."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits


class _RowsOnly(torch.nn.Module):
    """A causal language model that returns the logits of a few tokens after the last token that is not padding."""

    def __init__(self, model: PreTrainedModel, output_tokens: Sequence[int]) -> None:
        super().__init__()
        self.decoder = model.base_model
        self.head = HeadRows(model, output_tokens)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = (attention_mask.sum(dim=1) - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.head.logits(hidden.gather(1, last).squeeze(1))


def _export(module: torch.nn.Module, *, takes_segments: bool) -> onnx.ModelProto:
    shape = (2, 16)
    # A separate tensor for each input: the same tensor twice would become one input of the graph.
    samples = {"input_ids": torch.full(shape, 7), "attention_mask": torch.ones(shape, dtype=torch.int64)}
    if takes_segments:
        samples["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    with _quiet(), _small_masks():
        program = torch.onnx.export(
            module.eval(),
            tuple(samples.values()),
            input_names=list(samples),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=tuple({0: "batch", 1: "sequence"} for _ in samples),
            verbose=False,
        )
    assert program is not None  # noqa: S101 - it is None only for the exporter that dynamo=False chooses
    exported: onnx.ModelProto = program.model_proto
    return exported


@contextmanager
def _small_masks() -> Iterator[None]:
    """Make models use an attention mask of shape [batch, 1, 1, keys] where it masks only padding, instead of repeating
    it for every query. Where it also masks all that is beyond a window, do that with a few plain operators.
    """
    usual: Callable[..., torch.Tensor] = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    usual_window: Callable[[int], object] = masking_utils.sliding_window_bidirectional_mask_function
    # How far tokens see, of the masks that say only that.
    window_of: dict[object, int | None] = {masking_utils.bidirectional_mask_function: None}

    def within(window: int) -> object:
        made = usual_window(window)
        window_of[made] = window
        return made

    def mask(
        *, mask_function: object, attention_mask: torch.Tensor | None = None, dtype: torch.dtype, **rest: object
    ) -> torch.Tensor:
        if mask_function not in window_of or attention_mask is None:
            return usual(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **rest)
        seen, window = attention_mask[:, None, None, :], window_of[mask_function]
        if window is not None:
            places = torch.arange(attention_mask.shape[1])
            seen = seen & ((places[:, None] - places[None, :]).abs() <= window)
        return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)

    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    masking_utils.sliding_window_bidirectional_mask_function = within
    try:
        yield
    finally:
        masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"] = usual
        masking_utils.sliding_window_bidirectional_mask_function = usual_window


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence messages of torch's exporter that are not about the model."""
    loggers = [
        logging.getLogger("torch.onnx._internal.exporter._registration"),  # "torchvision is not installed. Skipping"
        logging.getLogger("onnxscript.optimizer._constant_folding"),  # "Skipping constant folding for op"
    ]
    levels = [noisy.level for noisy in loggers]
    for noisy in loggers:
        noisy.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used", category=UserWarning)
        try:
            yield
        finally:
            for noisy, level in zip(loggers, levels, strict=True):
                noisy.setLevel(level)
