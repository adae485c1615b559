"""Models of their authors' own code that a class of transformers computes too: what to change for it.

The authors named tensors differently, fused projections or wrote other names into config.json. The arithmetic is that
of a class that transformers has; the tests compare both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from rerankd.errors import ConfigError
from rerankd.recognition.activations import ActivationName
from rerankd.recognition.files import number_of, table_of
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.modules import Pooling

Kind = Literal["sequence classifier", "causal language model", "encoder"]


@dataclass(frozen=True, slots=True)
class Renamed:
    """Tensors whose names match `pattern`, by their names in transformers (as `re.sub` replaces): several are equal
    parts along the first axis, none means that no score depends on them.
    """

    pattern: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeForm:
    """`config` is config.json as the class of transformers reads it; its `model_type` and `kind` name that class.
    `separated_once`: exactly one separator stands between query and document. `activation` is the authors' own. With
    `pooling` the head reads the tokens' vectors pooled so, and its logits are divided by `temperature`.
    With `normalizes_queries` the authors read queries in lower case without punctuation. `prune_threshold` is the
    authors' for a model that prunes documents.
    `problem` says what in config.json the class does not compute, so that only a graph of the authors' does.
    """

    config: Mapping[str, Any]
    kind: Kind = "sequence classifier"
    renamed: Sequence[Renamed] = ()
    separated_once: bool = False
    activation: ActivationName | None = None
    pooling: Pooling | None = None
    temperature: float = 1.0
    problem: str = ""
    normalizes_queries: bool = False
    prune_threshold: float | None = None


def native_form(files: ModelFiles) -> NativeForm | None:
    """How transformers computes a model of its authors' own code; None for every other model."""
    for fits, form, kind in _FORMS:
        if fits(files):
            try:
                return replace(form(files), kind=kind)
            except ConfigError as error:
                return NativeForm(config=files.config, kind=kind, problem=str(error))
    return None


def checked_native_form(files: ModelFiles) -> NativeForm | None:
    """As `native_form`.

    Raises:
        ConfigError: config.json sets something that transformers' class does not compute.
    """
    native = native_form(files)
    if native is not None and native.problem:
        raise ConfigError(native.problem)
    return native


def is_gte(files: ModelFiles) -> bool:
    """gte-multilingual-reranker, and others of Alibaba's own class "New"."""
    return files.model_type == "new" and files.architecture.endswith("ForSequenceClassification")


def is_jina_v2(files: ModelFiles) -> bool:
    """jina-reranker-v2: XLM-RoBERTa in Jina's own implementation, whose config names no type."""
    return not files.model_type and files.architecture == "XLMRobertaForSequenceClassification"


def is_provence(files: ModelFiles) -> bool:
    """Provence: DeBERTa-v3 with a second head that prunes documents."""
    return files.model_type == "Provence" or files.architecture.startswith("Provence")


def is_xprovence(files: ModelFiles) -> bool:
    """XProvence: XLM-RoBERTa with the same two heads."""
    return files.model_type == "XProvence" or files.architecture.startswith("XProvence")


def is_bidirectional_llama(files: ModelFiles) -> bool:
    """NVIDIA's rerankers on Llama, whose tokens see each other in both directions."""
    return files.model_type == "llama_bidirec" and files.architecture.endswith("ForSequenceClassification")


def is_jina_v3(files: ModelFiles) -> bool:
    """jina-reranker-v3 and v3.5: Qwen3 without a head, and a projector."""
    return files.architecture == "JinaForRanking" and files.model_type == "qwen3"


def is_qwen3_vl(files: ModelFiles) -> bool:
    """Qwen3-VL, of which the language model is Qwen3."""
    return files.model_type == "qwen3_vl" and files.architecture == "Qwen3VLForConditionalGeneration"


def is_jina_m0(files: ModelFiles) -> bool:
    """jina-reranker-m0: Qwen2-VL with a head of its own."""
    return files.model_type == "qwen2_vl" and files.architecture == "JinaVLForRanking"


def _gte(files: ModelFiles) -> NativeForm:
    """Zhang et al., "mGTE", 2024. The tensors' names are those that transformers converts itself."""
    source = files.folder / "config.json"
    for key, computed in _GTE_COMPUTED.items():
        if files.config.get(key, computed) != computed:
            raise _other(source, key, files.config[key], computed)
    config = {**_GTE_DEFAULTS, **_plain(files)}
    theta = float(config.pop("rope_theta", 10_000.0))
    scaling = table_of(files.config, "rope_scaling", of=source)
    config.pop("rope_scaling", None)
    head = (number_of(config, "hidden_size", of=source) or 768) // (
        number_of(config, "num_attention_heads", of=source) or 12
    )
    return NativeForm(
        config={**config, "model_type": "gte", "rope_parameters": _ntk(source, scaling, theta=theta, size=head)}
    )


def _ntk(source: Path, scaling: Mapping[str, Any], *, theta: float, size: int) -> Mapping[str, Any]:
    """The authors' NTK frequencies 1 / (f * theta)^(2i/d) / f^(2/d), as transformers' linear scaling."""
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None:
        return {"rope_type": "default", "rope_theta": theta}
    factor = scaling.get("factor")
    if kind != "ntk" or not isinstance(factor, int | float) or factor < 1 or scaling.get("mixed_b") is not None:
        raise _other(source, "rope_scaling", dict(scaling), {"type": "ntk", "factor": 8.0})
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}


def _jina_v2(files: ModelFiles) -> NativeForm:
    """The inverse of the authors' own conversion from XLM-RoBERTa."""
    source = files.folder / "config.json"
    if files.config.get("position_embedding_type") not in (None, "absolute"):
        raise _other(source, "position_embedding_type", files.config["position_embedding_type"], "absolute")
    return NativeForm(config={**_plain(files), "model_type": "xlm-roberta"}, renamed=_FLASH_XLM_ROBERTA)


def _provence(files: ModelFiles) -> NativeForm:
    """Chirkova et al., "Provence", 2025: its ranking head is DeBERTa's usual one. The other one is the engine's."""
    return NativeForm(
        config={**_plain(files), **_ONE_LABEL, "model_type": "deberta-v2"},
        renamed=[_PRUNING],
        separated_once=True,
        activation="identity",
        normalizes_queries=True,
        prune_threshold=0.1,
    )


def _xprovence(files: ModelFiles) -> NativeForm:
    """Its linear head behind BERT's pooler is RoBERTa's head of two layers."""
    return NativeForm(
        config={**_plain(files), **_ONE_LABEL, "model_type": "xlm-roberta"},
        renamed=[
            _PRUNING,
            Renamed(r"roberta\.pooler\.dense\.(.*)", (r"classifier.dense.\1",)),
            Renamed(r"classifier\.(weight|bias)", (r"classifier.out_proj.\1",)),
        ],
        separated_once=True,
        activation="identity",
        normalizes_queries=True,
        prune_threshold=0.3,
    )


def _bidirectional_llama(files: ModelFiles) -> NativeForm:
    """Its class has no causal mask, and pools all tokens where Llama's classifier reads the last one."""
    source = files.folder / "config.json"
    pooling, temperature = files.config.get("pooling", "avg"), files.config.get("temperature", 1.0)
    if pooling not in _LLAMA_POOLINGS:
        raise _other(source, "pooling", pooling, "avg")
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise _other(source, "temperature", temperature, 1.0)
    return NativeForm(
        config={**_plain(files), "model_type": "llama", "is_causal": False},
        pooling=_LLAMA_POOLINGS[pooling],
        temperature=float(temperature),
    )


def _jina_v3(files: ModelFiles) -> NativeForm:
    """The decoder alone; what reads its projector is the engine's."""
    return NativeForm(
        config={**_plain(files), "model_type": files.model_type},
        renamed=[Renamed(r"(projector|lm_head)\..*"), Renamed(r"model\.(.*)", (r"\1",))],
    )


def _qwen3_vl(files: ModelFiles) -> NativeForm:
    """Its language model alone. A text's place is the same in all three dimensions, which is Qwen3's own rotation."""
    text = dict(table_of(files.config, "text_config", of=files.folder / "config.json"))
    rotation = {**(text.pop("rope_scaling", None) or {}), **(text.pop("rope_parameters", None) or {})}
    theta = text.pop("rope_theta", rotation.get("rope_theta", 500_000.0))
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise _other(files.folder / "config.json", "text_config.rope_type", kind, "default")
    config = {
        **{key: value for key, value in text.items() if key != "model_type"},
        "tie_word_embeddings": files.config.get("tie_word_embeddings", False),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "model_type": "qwen3",
    }
    return NativeForm(
        config=config,
        renamed=[Renamed(r"model\.visual\..*"), Renamed(r"model\.language_model\.(.*)", (r"model.\1",))],
    )


def _jina_m0(files: ModelFiles) -> NativeForm:
    """Qwen2-VL without its head; what reads the head of its own is the engine's."""
    return NativeForm(config={**_plain(files), "model_type": files.model_type})


def _plain(files: ModelFiles) -> dict[str, Any]:
    """config.json without what belongs to the authors' code."""
    return {key: value for key, value in files.config.items() if key not in ("auto_map", "architectures", "model_type")}


def _other(source: Path, key: str, said: object, computed: object) -> ConfigError:
    return ConfigError(
        f"{source}: {key} is {said!r:.120}, and only {computed!r} is computed here; serve the authors' ONNX graph if "
        "there is one, or another model"
    )


# What Alibaba's code takes where config.json says nothing, as far as transformers takes something else.
_GTE_DEFAULTS: Final[Mapping[str, Any]] = {"vocab_size": 30_528, "max_position_embeddings": 2048, "pad_token_id": 0}
_GTE_COMPUTED: Final[Mapping[str, Any]] = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
}
# Its score is the first output, whatever else is said.
_ONE_LABEL: Final[Mapping[str, Any]] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
_PRUNING: Final = Renamed(r"token_classifier\..*")
_LLAMA_POOLINGS: Final[Mapping[str, Pooling]] = {"avg": "mean", "cls": "cls", "last": "lasttoken"}
_LAYER: Final = r"roberta\.encoder\.layers\.(\d+)\."
_NATIVE_LAYER: Final = r"roberta.encoder.layer.\1."
_FLASH_XLM_ROBERTA: Final = (
    Renamed(r"roberta\.emb_ln\.(.*)", (r"roberta.embeddings.LayerNorm.\1",)),
    Renamed(
        _LAYER + r"mixer\.Wqkv\.(.*)",
        tuple(rf"{_NATIVE_LAYER}attention.self.{part}.\2" for part in ("query", "key", "value")),
    ),
    Renamed(_LAYER + r"mixer\.out_proj\.(.*)", (_NATIVE_LAYER + r"attention.output.dense.\2",)),
    Renamed(_LAYER + r"norm1\.(.*)", (_NATIVE_LAYER + r"attention.output.LayerNorm.\2",)),
    Renamed(_LAYER + r"mlp\.fc1\.(.*)", (_NATIVE_LAYER + r"intermediate.dense.\2",)),
    Renamed(_LAYER + r"mlp\.fc2\.(.*)", (_NATIVE_LAYER + r"output.dense.\2",)),
    Renamed(_LAYER + r"norm2\.(.*)", (_NATIVE_LAYER + r"output.LayerNorm.\2",)),
)
_FORMS: Final[Sequence[tuple[Callable[[ModelFiles], bool], Callable[[ModelFiles], NativeForm], Kind]]] = (
    (is_gte, _gte, "sequence classifier"),
    (is_jina_v2, _jina_v2, "sequence classifier"),
    (is_provence, _provence, "sequence classifier"),
    (is_xprovence, _xprovence, "sequence classifier"),
    (is_bidirectional_llama, _bidirectional_llama, "sequence classifier"),
    (is_jina_v3, _jina_v3, "encoder"),
    (is_qwen3_vl, _qwen3_vl, "causal language model"),
    (is_jina_m0, _jina_m0, "encoder"),
)
