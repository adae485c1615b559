"""Finds the kind of model in a folder by its authors' files, and whether a scorer can use it.

Libraries silently load many folders into the wrong class: they drop unknown weights and fill in missing ones. So the
kind is decided here, before loading, and unsupported kinds are refused by name.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rerankd.errors import ConfigError, few
from rerankd.recognition.files import (
    number_of,
    read_json,
    read_json_list,
    read_optional_json,
    table_of,
    texts_of,
)

_CLASSIFIER: Final = "ForSequenceClassification"
_LANGUAGE_MODEL: Final = ("ForCausalLM", "LMHeadModel")
_LANGUAGE_MODEL_WAY: Final = (
    'serve it with scorer = "yes-no" and engine = "torch-causal" if it judges one document at a time, or with one of '
    "the listwise scorers, first and generative (docs/models.md)"
)
_ENCODER_DECODER_WAY: Final = 'serve it with scorer = "yes-no" and engine = "torch-seq2seq" (docs/models.md)'
# Classes by the end of their names; the first that fits. A way out, or "" where there is none.
_ARCHITECTURES: Final[Sequence[tuple[str, str, str]]] = (
    (_LANGUAGE_MODEL[0], "a causal language model", _LANGUAGE_MODEL_WAY),
    (_LANGUAGE_MODEL[1], "a causal language model", _LANGUAGE_MODEL_WAY),
    ("T5ForConditionalGeneration", "an encoder-decoder, as monoT5 is", _ENCODER_DECODER_WAY),
    ("ForConditionalGeneration", "an encoder-decoder or a model of several media", ""),
    ("ForMaskedLM", "a masked language model, as SPLADE or a model before its training for ranking is", ""),
    ("ForPreTraining", "a model before its training for ranking", ""),
    ("ForTokenClassification", "a classifier of tokens, not of pairs", ""),
    ("ForQuestionAnswering", "a model that marks answers in a text", ""),
    ("ForMultipleChoice", "a model that chooses among answers", ""),
    ("ForNextSentencePrediction", "a model of which sentence follows", ""),
    ("HF_ColBERT", "a late-interaction model (ColBERT), which gives a vector for each token", ""),
    ("JinaForRanking", "a reranker that compares vectors inside of one prompt (jina-reranker-v3)", ""),
    (
        "Model",
        "a model without a head, as embedding models (bi-encoders) are: it gives vectors, no scores of pairs",
        "",
    ),
)
_SENTENCE_TRANSFORMERS: Final[Mapping[str, str]] = {
    "SentenceTransformer": "an embedding model (bi-encoder): it gives vectors, no scores of pairs",
    "SparseEncoder": "a sparse embedding model (SPLADE): it gives weights of words, no scores of pairs",
    "MultiVectorEncoder": "a late-interaction model: it gives a vector for each token, no scores of pairs",
    "ColBERT": "a late-interaction model (PyLate): it gives a vector for each token, no scores of pairs",
}
_CHOOSE: Final = "serve a cross-encoder or another reranker instead (docs/models.md lists the kinds)"

# Language models with a classifier's head on top: their tokenizers join a pair with nothing between.
_DECODERS: Final = re.compile(
    r"arcee|apertus|bitnet|biogpt|bloom|codegen|cohere\d*|ctrl|dbrx|deepseek.*|diffllama|doge|ernie4.*|exaone.*|falcon.*|gemma.*"
    r"|glm.*|gpt.*|granite.*|helium|hunyuan.*|internlm.*|jamba|jetmoe|llama.*|mamba.*|minicpm.*|minimax.*|ministral.*"
    r"|mistral.*|mixtral.*|modernbert-decoder|mpt|nemotron.*|olmo.*|openai-gpt|opt|persimmon|phi.*|qwen.*|recurrent_gemma"
    r"|seed_oss|smollm.*|stablelm|starcoder.*|zamba.*"
)


_SNAPSHOT: Final = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the small files of a model folder say. `modules` is None where sentence-transformers did not write them.
    `names` are all files there, `repository` is the hub's name of the model, empty where nothing says it.
    """

    folder: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    sentence_transformers: Mapping[str, Any]
    modules: Sequence[Mapping[str, Any]] | None
    transformer: Mapping[str, Any]
    names: frozenset[str] = frozenset()
    repository: str = ""

    @classmethod
    def read(cls, folder: Path, *, names: Collection[str] = (), repository: str = "") -> "ModelFiles":
        """Read them. `names` are the files of the repository that the folder is a part of; by default the folder's own.

        Raises:
            ConfigError: config.json is missing, or one of them is no JSON.
        """
        modules = read_json_list(folder / "modules.json") if (folder / "modules.json").is_file() else None
        there = (path.relative_to(folder).as_posix() for glob in ("*", "*/*") for path in folder.glob(glob))
        return cls(
            folder=folder,
            names=frozenset(names or there),
            repository=repository or repository_of(folder),
            config=_config(folder),
            tokenizer_config=read_optional_json(folder / "tokenizer_config.json"),
            sentence_transformers=read_optional_json(folder / "config_sentence_transformers.json"),
            modules=modules,
            # sentence-transformers reads this file only where modules.json says so.
            transformer={} if modules is None else read_optional_json(folder / "sentence_bert_config.json"),
        )

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type") or "")

    @property
    def architecture(self) -> str:
        return next(iter(texts_of(self.config, "architectures", of=self.folder / "config.json")), "")

    @property
    def is_decoder(self) -> bool:
        return _DECODERS.fullmatch(self.model_type) is not None

    @property
    def chain(self) -> tuple[str, ...]:
        """The classes of modules.json; empty without it."""
        return tuple(_class_of(module) for module in self.modules or ())

    @property
    def is_modular(self) -> bool:
        """Whether it is a cross-encoder whose head lies in modules of its own."""
        kind = self.sentence_transformers.get("model_type")
        return (
            kind == "CrossEncoder"
            and self.chain[:2] == ("Transformer", "Pooling")
            and self.chain[-1] == "Dense"
            and set(self.chain[2:]) <= {"Dense", "LayerNorm"}
        )

    @property
    def graphs(self) -> list[str]:
        """The folder's ONNX graphs."""
        return sorted(name for name in self.names if name.endswith(".onnx"))

    @property
    def has_safetensors(self) -> bool:
        return any("/" not in name and name.endswith(".safetensors") for name in self.names)

    @property
    def chat_template(self) -> str | None:
        """The file with the chat template."""
        if (self.folder / "chat_template.jinja").is_file():
            return "chat_template.jinja"
        if self.tokenizer_config.get("chat_template"):
            return "tokenizer_config.json (chat_template)"
        return None

    @property
    def renders_pairs(self) -> str | None:
        """The file that says that sentence-transformers writes a pair into a chat template; None: it does not."""
        if self.modules is not None:
            message = "message" in table_of(self.transformer, "modality_config", of="sentence_bert_config.json")
            return "sentence_bert_config.json (modality_config)" if message else None
        return self.chat_template


def refuse_other_than_cross_encoder(files: ModelFiles) -> None:
    """Refuse a folder whose files say that it is not a classifier of pairs.

    Raises:
        ConfigError: it says what it is, and how to serve it.
    """
    _refuse_other_chains(files)
    kind = str(files.sentence_transformers.get("model_type"))
    if kind in _SENTENCE_TRANSFORMERS:
        raise ConfigError(
            f"{files.folder}: config_sentence_transformers.json says {kind}: this is {_SENTENCE_TRANSFORMERS[kind]}; "
            f"{_CHOOSE}"
        )
    is_classifier = files.architecture.endswith(_CLASSIFIER) or files.is_modular
    for ending, what, way_out in () if is_classifier else _ARCHITECTURES:
        if files.architecture.endswith(ending):
            raise ConfigError(
                f"{files.folder}: config.json says {files.architecture}: this is {what}, and scorer 'cross-encoder' "
                f"needs a sequence classifier; {way_out or _CHOOSE}"
            )


def refuse_other_than_language_model(files: ModelFiles, *, scorer: str) -> None:
    """Refuse a folder whose files say that it is not a causal language model.

    Raises:
        ConfigError: it says what it is.
    """
    name = files.architecture
    if name.endswith((_CLASSIFIER, "ForTokenClassification", "ForMaskedLM", "HF_ColBERT", "JinaForRanking")):
        way_out = 'set scorer = "cross-encoder"' if name.endswith(_CLASSIFIER) else _CHOOSE
        raise ConfigError(
            f"{files.folder}: config.json says {name}, and scorer {scorer!r} needs a causal language model "
            f"(...ForCausalLM); {way_out}"
        )


def refuse_unsaid_pairs(files: ModelFiles, *, separated: bool) -> None:
    """Refuse a classifier of which nobody says how a pair becomes its text. `separated`: the tokenizer puts something
    between the two.

    Raises:
        ConfigError: the pair belongs into a prompt, or would be joined with nothing between.
    """
    source = files.renders_pairs
    way_out = (
        'if it was trained on plain pairs, as sentence-transformers before 5.4 did, set options = { pairs = "plain" } '
        "(`rerankd export --pairs plain`); "
        'if it reads a pair inside of a prompt, set scorer = "prompted-classifier" and options = { template = ... } '
        "(`--template`; docs/models.md lists them)"
    )
    if source is not None:
        raise ConfigError(
            f"{files.folder}: by {source} this model reads a query and a document inside of a prompt, which scorer "
            f"'cross-encoder' does not write; {way_out}"
        )
    if not files.is_decoder and not separated:
        raise ConfigError(
            f"{files.folder}: tokenizer.json puts nothing between a query and a document, so that the model would read "
            "one text; save the tokenizer again (AutoTokenizer.from_pretrained(folder).save_pretrained(folder)) if its "
            'post_processor was lost, or say that the model was trained so: options = { pairs = "plain" }'
        )
    if files.is_decoder:
        raise ConfigError(
            f"{files.folder}: this is a language model with a classifier's head (model_type {files.model_type!r}), and "
            "no file says with what prompt it was trained; its tokenizer joins query and document with nothing "
            f"between; {way_out}"
        )


def refuse_unknown_settings(
    files: ModelFiles,
    *,
    task: str = "sequence-classification",
    prompted: bool = False,
    applied: Collection[str] = (),
) -> None:
    """Refuse what sentence-transformers' files say about the input, beyond what is applied here. `prompted`: a chat
    template's options and a default prompt are applied, `applied`: so are these keys.

    Raises:
        ConfigError: the message names file and key.
    """
    for key, value in files.transformer.items():
        if value in _HARMLESS.get(key, (None, {}, [])):
            continue
        if key in ("transformer_task", "modality_config", "max_seq_length", "do_lower_case", *applied):
            continue
        if prompted and key == "processing_kwargs" and isinstance(value, dict) and set(value) == {"chat_template"}:
            continue
        raise ConfigError(
            f"{files.folder}: sentence_bert_config.json sets {key} = {value!r:.80}, which changes what the model reads "
            "and is not applied here; remove it if the model scores the same without"
        )
    said = files.transformer.get("transformer_task", "feature-extraction")
    if files.modules is not None and said != ("feature-extraction" if files.is_modular else task):
        raise ConfigError(f"{files.folder}: sentence_bert_config.json says transformer_task {said!r}; {_CHOOSE}")
    if prompted:
        return
    name = files.sentence_transformers.get("default_prompt_name")
    prompts = table_of(files.sentence_transformers, "prompts", of="config_sentence_transformers.json")
    # sentence-transformers puts a default prompt before the texts; scores without it would be other scores.
    if name is not None and prompts.get(str(name)):
        raise ConfigError(
            f"config_sentence_transformers.json names the default prompt {name!r}, which this scorer does not apply; "
            "remove default_prompt_name if the model works without"
        )


def default_prompt(files: ModelFiles) -> str | None:
    """The instruction that sentence-transformers would give to a model where a caller gives none."""
    name = str(files.sentence_transformers.get("default_prompt_name"))
    prompt = table_of(files.sentence_transformers, "prompts", of="config_sentence_transformers.json").get(name)
    return prompt if isinstance(prompt, str) and prompt else None


def answer_tokens(files: ModelFiles) -> list[int] | None:
    """The ids of the tokens that sentence-transformers' LogitScore reads, best first; None: no file says.

    Raises:
        ConfigError: its file is not there.
    """
    for module in files.modules or ():
        if _class_of(module) == "LogitScore":
            path = files.folder / str(module.get("path", "")) / "config.json"
            said = read_json(path)
            ids = [number_of(said, key, of=path) for key in ("true_token_id", "false_token_id")]
            return [number for number in ids if number is not None]
    return None


# Of sentence_bert_config.json: what a key may say without changing a score. Others may be null, {} or [].
_HARMLESS: Final[Mapping[str, Sequence[object]]] = {
    "module_output_name": ("scores", "causal_logits", "token_embeddings", None),
    "unpad_inputs": (True, False, None),
    "backend": ("torch", None),
    "query_expansion": (False, None),
}


def _config(folder: Path) -> dict[str, Any]:
    """config.json, or why there is none."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = read_optional_json(folder / "adapter_config.json").get("base_model_name_or_path")
            raise ConfigError(
                f"{folder} holds an adapter (LoRA) of {base!r} and not the model; set `path` to the model and "
                "`adapter` to this folder, or merge both (peft's merge_and_unload, then save_pretrained)"
            )
        gguf = sorted(folder.glob("*.gguf"))
        if gguf:
            raise ConfigError(
                f"{folder} holds {gguf[0].name}, weights for llama.cpp: convert them with `rerankd import {gguf[0]} "
                "FOLDER`, then serve that folder"
            )
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        there = f"; the folders {few(inside)} in it have one" if inside else ""
        raise ConfigError(
            f"cannot read {folder / 'config.json'}: No such file; is this a Hugging Face model folder?{there}"
        )
    return read_json(folder / "config.json")


def _refuse_other_chains(files: ModelFiles) -> None:
    """modules.json is the chain that a pair goes through; only a transformer alone is served here."""
    if files.modules is None:
        return
    names = [_class_of(module) for module in files.modules]
    chain = " -> ".join(names)
    kind = str(files.sentence_transformers.get("model_type", "SentenceTransformer"))
    if names != ["Transformer"] and not files.is_modular:
        if "LogitScore" in names:
            what, way_out = "a reranker that reads the logits of answer tokens", _LANGUAGE_MODEL_WAY
        elif kind == "CrossEncoder":
            what, way_out = "a modular cross-encoder with modules that are not computed here", _CHOOSE
        else:
            what, way_out = _SENTENCE_TRANSFORMERS.get(kind, "a chain of modules"), _CHOOSE
        raise ConfigError(f"{files.folder}: modules.json says {chain}: this is {what}; {way_out}")
    refuse_other_root(files)


def refuse_other_root(files: ModelFiles) -> None:
    """Refuse a chain of modules whose transformer lies in a folder of its own.

    Raises:
        ConfigError: it does.
    """
    path = files.modules[0].get("path", "") if files.modules else ""
    if path not in ("", "."):
        raise ConfigError(f"{files.folder}: modules.json says that the model lies in {path!r}; make that folder `path`")


def repository_of(folder: Path) -> str:
    """The repository of a folder in the hub client's cache: `models--org--name/snapshots/<commit>`."""
    match = _SNAPSHOT.search(folder.as_posix())
    return f"{match[1]}/{match[2]}" if match else ""


def _class_of(module: Mapping[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]
