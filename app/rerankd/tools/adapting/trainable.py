"""Models that `rerankd adapt` trains: the shipped one as a whole, others by a LoRA adapter.

Both read what the served scorer writes of a pair, so that a model is trained on the tokens that it is served with.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import FloatArray
from rerankd.engines.base import pad
from rerankd.engines.torch.encoder import name_padding
from rerankd.engines.torch.weights import read_weights, takes_token_types
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.recognition.files import read_json
from rerankd.recognition.kinds import ModelFiles
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec
from rerankd.serving.model_files import model_folder, template_folders
from rerankd.serving.sources import is_on_hub, repository_name
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens
from rerankd.tools.training.encoding import PairEncoder, length_batches, padded, token_ids
from rerankd.tools.training.model import CrossEncoder
from rerankd.tools.training.precision import in_bfloat16
from rerankd.tools.training.ship import ARCHITECTURE, write_golden
from rerankd.tools.training.shipped import GRAPH, SHIPPED, changed_integers, read_shipped, write_shipped

State = dict[str, torch.Tensor]

# Longest documents of a training pair, in tokens.
DOCUMENT_TOKENS: Final = 192
_VECTOR_TOKENS: Final = 64
_VECTOR_BATCH: Final = 2048
# Those of the shipped model's recipe: with much lower ones a short run ends within the rounding of int8.
_BODY_RATE: Final = 6e-5
_HEAD_RATE: Final = 5e-4
_LORA_RATE: Final = 2e-4
_LORA_RANK: Final = 8
_COPIED: Final = ("config.json", "tokenizer.json", "tokenizer_config.json")


class Trainable(Protocol):
    """A model, the scorer that it is served with, and what of it is trained."""

    @property
    def name(self) -> str:
        """What kind of training it is, for the card."""

    def parameters(self) -> list[dict[str, Any]]:
        """The optimizer's groups; `lr` is each one's peak."""

    def reads(self, query: str) -> bool:
        """Whether a query leaves room for a document."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Scores of (query, document) pairs, shape [pairs], float32, with their gradients."""

    def state(self) -> State:
        """What is trained, by name, as it is now."""

    def restore(self, state: State) -> None: ...

    def settle(self, share: float) -> None:
        """Go back towards the start: `share` 1 keeps what was learnt, 0 is the start."""

    def write(self, folder: Path) -> Mapping[str, object]:
        """Write the folder that is served, and return what the card says of it."""


def open_trainable(spec: ModelSpec, settings: Settings, *, seed: int) -> Trainable:
    """The model of a registry entry, whose scorer is chosen.

    Raises:
        ConfigError: it cannot be trained here.
    """
    folder = model_folder(spec, settings)
    scorer = _scorer(spec, folder, settings)
    if (folder / GRAPH).is_file() and ARCHITECTURE in read_json(folder / "config.json").get("architectures", ()):
        return Shipped(folder, scorer)
    return LoraAdapter(spec, folder, scorer, seed=seed)


def _scorer(spec: ModelSpec, folder: Path, settings: Settings) -> AnyPairScorer:
    templates = template_folders(settings)
    try:
        return load_scorer(
            spec.scorer,
            ScorerSpec(
                folder=folder, max_length=spec.max_length, source=spec.path, templates=templates, options=spec.options
            ),
        )
    except ConfigError as error:
        raise ConfigError(f"{spec.name} cannot be trained here: {error}") from None


class Shipped:
    """The architecture of `models/minilm-qa`, all of it but its word vectors."""

    name = "the whole model"

    def __init__(self, folder: Path, scorer: AnyPairScorer) -> None:
        self._folder = folder
        self._scorer = scorer
        self._device = _device()
        self._model = read_shipped(folder).to(self._device)
        self._start = self.state()
        # A calibration has stretched all scores alike; the losses want them as they were.
        self._scale = 1.0 / max(1e-3, abs(float(self._model.classifier.weight[0, 0].detach())))

    def parameters(self) -> list[dict[str, Any]]:
        body = [parameter for parameter in self._model.bert.parameters() if parameter.requires_grad]
        head = [*self._model.word_weight.parameters(), *self._model.hidden.parameters()]
        return [
            {"params": body, "lr": _BODY_RATE},
            {"params": head, "lr": _HEAD_RATE},
            {"params": list(self._model.classifier.parameters()), "lr": _HEAD_RATE / self._scale},
        ]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        inputs = _padded(_encoded(self._scorer, pairs), self._scorer.pad_id, self._device)
        with in_bfloat16(self._device):
            logits = self._model(**inputs)[:, 0]
        return self._scale * logits.float()

    def reads(self, query: str) -> bool:
        return _has_room(self._scorer, query)

    def state(self) -> State:
        named = self._model.named_parameters()
        return {name: value.detach().cpu().clone() for name, value in named if value.requires_grad}

    def restore(self, state: State) -> None:
        self._model.load_state_dict(state, strict=False)

    def settle(self, share: float) -> None:
        learnt = self.state()
        self.restore({name: torch.lerp(self._start[name], learnt[name], share) for name in learnt})

    def write(self, folder: Path) -> Mapping[str, object]:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _COPIED:
            shutil.copyfile(self._folder / name, folder / name)
        model = self._model.cpu().eval()
        write_shipped(model, self._folder, folder / GRAPH)
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        write_golden(model, tokenizer, folder / GRAPH, folder / "golden.json")
        self._model.to(self._device)
        changed, count = changed_integers(self._folder / GRAPH, folder / GRAPH)
        return {"int8 weights that changed": f"{changed:,} of {count:,}"}


class LoraAdapter:
    """Low-rank changes to the linear layers of a cross-encoder or a yes/no language model (peft's layout)."""

    name = f"a LoRA adapter of rank {_LORA_RANK}"

    def __init__(self, spec: ModelSpec, folder: Path, scorer: AnyPairScorer, *, seed: int) -> None:
        """Raises `ConfigError` if the model takes no adapter that is served."""
        self._scorer = scorer
        self._device = _device()
        task = scorer.task
        if isinstance(task, Classify) and task.outputs == 1:
            self._tokens: Sequence[int] = ()
        elif isinstance(task, ReadTokens) and len(task.tokens) <= 2:
            self._tokens = task.tokens
        else:
            raise ConfigError(
                f"{spec.name} (scorer {spec.scorer!r}, task {task.name!r}) cannot be trained here; adapters are made "
                "for cross-encoders of one output and for yes/no language models"
            )
        if ModelFiles.read(folder).modules is not None or spec.adapter:
            raise ConfigError(f"{spec.name} has modules of its own or an adapter already; name its plain base model")
        kind: Any = "causal language model" if self._tokens else "sequence classifier"
        model = read_weights(kind, folder, trust_remote_code=False)
        name_padding(model, scorer.pad_id)
        model.name_or_path = repository_name(spec.path) if is_on_hub(spec.path) else str(folder)
        self._takes_token_types = takes_token_types(model)
        torch.manual_seed(seed)
        config = LoraConfig(r=_LORA_RANK, lora_alpha=2 * _LORA_RANK, lora_dropout=0.0, target_modules=_linear(model))
        config.base_model_name_or_path = model.name_or_path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that it deprecates
            self._model = get_peft_model(model, config).to(self._device).eval()

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [one for one in self._model.parameters() if one.requires_grad], "lr": _LORA_RATE}]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        encodings = _encoded(self._scorer, pairs)
        inputs = _padded(encodings, self._scorer.pad_id, self._device)
        if not self._takes_token_types:
            del inputs["token_type_ids"]
        with in_bfloat16(self._device):
            logits = self._model(**inputs).logits
        if not self._tokens:
            return logits[:, 0].float()
        last = torch.tensor([len(one.ids) - 1 for one in encodings], device=self._device)
        read = logits[torch.arange(len(encodings), device=self._device), last][:, list(self._tokens)].float()
        return read[:, 0] - read[:, 1] if len(self._tokens) > 1 else read[:, 0]

    def reads(self, query: str) -> bool:
        return _has_room(self._scorer, query)

    def state(self) -> State:
        named = self._model.named_parameters()
        return {name: value.detach().cpu().clone() for name, value in named if value.requires_grad}

    def restore(self, state: State) -> None:
        self._model.load_state_dict(state, strict=False)

    def settle(self, share: float) -> None:
        """B begins at zero, so that a share of it is a share of the change."""
        self.restore({name: share * value for name, value in self.state().items() if ".lora_B." in name})

    def write(self, folder: Path) -> Mapping[str, object]:
        self._model.save_pretrained(folder, save_embedding_layers=False)
        path = folder / "adapter_config.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        said["target_modules"] = sorted(said["target_modules"])
        path.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return {}


def _linear(model: nn.Module) -> list[str]:
    """The last names of the linear layers in the model's stack of layers."""
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
    if not names:
        raise ConfigError(f"{type(model).__name__} has no linear layers that an adapter could change")
    return sorted(names)


def _has_room(scorer: AnyPairScorer, query: str) -> bool:
    try:
        return scorer.room(query) > 0
    except InvalidRequest:
        return False


def _encoded(scorer: AnyPairScorer, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
    """What the scorer writes of each pair; the documents of neighbouring pairs with one query together."""
    encodings: list[Encoding] = []
    start = 0
    while start < len(pairs):
        query = pairs[start][0]
        end = next((place for place in range(start, len(pairs)) if pairs[place][0] != query), len(pairs))
        texts = [text for _, text in pairs[start:end]]
        encodings += scorer.encode(query, texts, max_document_tokens=DOCUMENT_TOKENS).encodings
        start = end
    return encodings


def _padded(encodings: Sequence[Encoding], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    batch = pad(encodings, pad_id=pad_id)
    arrays = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def document_vectors(texts: Sequence[str], *, folder: Path = SHIPPED) -> FloatArray:
    """A unit vector for the beginning of each text, [texts, size]: the mean of what the shipped model, read as the
    bi-encoder that it comes from, makes of its tokens.
    """
    model: CrossEncoder = read_shipped(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder, device = PairEncoder(tokenizer), torch.device("cpu")
    rows = [encoder.single(ids) for ids in token_ids(tokenizer, texts, max_tokens=_VECTOR_TOKENS)]
    vectors = torch.zeros(len(rows), model.config.hidden_size)
    for batch in length_batches([len(row) for row, _ in rows], tokens_per_batch=_VECTOR_BATCH):
        inputs = padded([rows[place] for place in batch], device)
        with in_bfloat16(device) if len(rows) > len(batch) else nullcontext():
            states = model.bert(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None]
        vectors[batch] = normalize((states * mask).sum(dim=1) / mask.sum(dim=1))
    found: FloatArray = vectors.numpy().astype(np.float32)
    return found
