"""Classifiers of pairs: encoders with a head of their own (cross-encoders), and language models with one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from rerankd.errors import ConfigError
from rerankd.recognition.activations import described
from rerankd.recognition.chat_template import read_chat_prompt, reads_own_prompt
from rerankd.recognition.heads import Head, activation_source, read_activation, read_head
from rerankd.recognition.kinds import (
    ModelFiles,
    refuse_other_than_cross_encoder,
    refuse_unknown_settings,
    refuse_unsaid_pairs,
)
from rerankd.recognition.lengths import declared_length
from rerankd.recognition.native import checked_native_form, is_gte, is_jina_v2, is_provence, is_xprovence
from rerankd.recognition.recognised import (
    GRAPH_ENGINES,
    PARITY_FILE,
    TASK_ENGINES,
    Asked,
    Evidence,
    Family,
    Outcome,
    PromptTemplate,
    Recognised,
    Refused,
    architecture,
    modules,
    refused_family,
    repository,
)
from rerankd.recognition.weights import check_code

# The methods of templates that such models are prompted with.
_TEMPLATES: Final = ("prompted-classifier", "reward-model", "yes-no")
_CLASSIFIER: Final = "*ForSequenceClassification"
_ORACLE: Final = "sentence-transformers: `CrossEncoder.predict`"


def _cross_encoder(name: str, repositories: Sequence[str], signs: Callable[[ModelFiles], Evidence | None]) -> Family:
    """Encoders that read a plain pair."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        sign = None if files.is_decoder else signs(files)
        return None if sign is None else classifier(name, files, asked, sign)

    return Family(name=name, repositories=repositories, recognise=recognise, oracle=_ORACLE, exported=True)


def classifier(name: str, files: ModelFiles, asked: Asked, sign: Evidence) -> Outcome:
    """A folder whose head scores a pair that its tokenizer joins."""
    evidence = [sign, *modules(files)]
    try:
        refuse_other_than_cross_encoder(files)
        refuse_unknown_settings(files)
        if asked.options.get("pairs") is None:
            # Whether an encoder's tokenizer separates the two is found by trying it, which the scorer does.
            refuse_unsaid_pairs(files, separated=True)
        head = read_head(files, label=asked.options.get("label"))
        activation = described(asked.options.get("activation") or read_activation(files, head) or "sigmoid")
        engines = _engines(files, asked)
    except ConfigError as error:
        return Refused(family=name, reason=str(error), evidence=evidence)
    evidence += _evidence_of(files, head)
    return Recognised(
        family=name,
        scorer="cross-encoder",
        head=_head(head),
        activation=activation,
        input="query and document, joined by the tokenizer",
        max_length=declared_length(files),
        engines=engines,
        options=dict(asked.options),
        evidence=evidence,
    )


def _evidence_of(files: ModelFiles, head: Head) -> list[Evidence]:
    """What says the number of outputs, the activation and the length."""
    sources = (
        ("config.json", "labels in id2label", len(files.config.get("id2label") or ()) or None),
        ("config.json", "problem_type", files.config.get("problem_type")),
        ("config.json", "max_position_embeddings", files.config.get("max_position_embeddings")),
        ("tokenizer_config.json", "model_max_length", files.tokenizer_config.get("model_max_length")),
        ("sentence_bert_config.json", "max_seq_length", files.transformer.get("max_seq_length")),
    )
    said = [Evidence(file, f"{key} = {value}") for file, key, value in sources if value is not None]
    named = activation_source(files) if head.label is None else None
    return said if named is None else [*said, Evidence(*named)]


def _engines(files: ModelFiles, asked: Asked) -> Sequence[str]:
    """A graph holds its authors' own code; torch would compute another class."""
    engines = TASK_ENGINES["classify"]
    try:
        if checked_native_form(files) is not None:
            return engines
        check_code(
            files.folder,
            trust_remote_code=asked.trust_remote_code,
            loader="AutoModelForSequenceClassification",
        )
    except ConfigError:
        if not files.graphs:
            raise
        return GRAPH_ENGINES
    return GRAPH_ENGINES if files.config.get("position_embedding_type") == "alibi" else engines


def _graph_only(name: str, repositories: Sequence[str], signs: Callable[[ModelFiles], Evidence | None]) -> Family:
    """Encoders of their authors' own code, which their ONNX graph holds."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        sign = signs(files)
        if sign is None:
            return None
        if not files.graphs:
            return Refused(
                family=name,
                reason=f"{sign} (family: {name}): transformers computes it otherwise than its authors' code does",
                way_out="serve a repository or folder that holds the authors' ONNX graph",
                evidence=[sign],
            )
        found = classifier(name, files, asked, sign)
        return replace(found, engines=GRAPH_ENGINES) if isinstance(found, Recognised) else found

    return Family(name=name, repositories=repositories, recognise=recognise, oracle="the ONNX graph itself")


def _native(name: str, fits: Callable[[ModelFiles], bool], says: str) -> Callable[[ModelFiles, Asked], Outcome | None]:
    """Encoders of their authors' own code that a class of transformers computes too."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        return classifier(name, files, asked, Evidence("config.json", says)) if fits(files) else None

    return recognise


def _pruning(name: str, fits: Callable[[ModelFiles], bool], says: str) -> Callable[[ModelFiles, Asked], Outcome | None]:
    """Encoders with a second head that prunes; a graph has the first head alone."""
    native = _native(name, fits, says)

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        plain = {key: value for key, value in asked.options.items() if key != "threshold"}
        found = native(files, replace(asked, options=plain))
        if not isinstance(found, Recognised) or files.graphs:
            return found
        return replace(
            found,
            scorer="pruning",
            head="one logit, and two for each token: dropped and kept",
            engines=TASK_ENGINES["prune"],
            options=dict(asked.options),
        )

    return recognise


def _several_labels(files: ModelFiles, asked: Asked) -> Outcome | None:
    """For monoBERT and classifiers like it: which of their labels means "relevant" is known by name only."""
    sign = repository(files, "castorini/monobert-*")
    if sign is None or "label" in asked.options:
        return None
    return classifier(_MONOBERT, files, replace(asked, options={"label": 1, **asked.options}), sign)


def _modular(files: ModelFiles, asked: Asked) -> Outcome | None:
    """A head in modules of its own."""
    if "Pooling" not in files.chain or files.sentence_transformers.get("model_type") != "CrossEncoder":
        return None
    sign = Evidence("config_sentence_transformers.json", "model_type = 'CrossEncoder'")
    found = classifier(_MODULAR, files, asked, sign)
    return replace(found, engines=_torch_or_our_graph(files)) if isinstance(found, Recognised) else found


def _torch_or_our_graph(files: ModelFiles) -> Sequence[str]:
    """The engines of a model whose graph by others may lack its head, or find the end of a padded text elsewhere."""
    return TASK_ENGINES["classify"] if PARITY_FILE in files.names else ["torch-encoder"]


def _prompted(name: str, repositories: Sequence[str], template: str | None = None, *, oracle: str) -> Family:
    """Language models with a classifier's head whose prompt is this template; None: any, or the folder's own."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        sign = architecture(files, _CLASSIFIER) if files.is_decoder else None
        if sign is None or "pairs" in asked.options:
            return None
        found = _template(files, asked)
        if template is None and (found or (reads_own_prompt(files) and not asked.options.get("template"))):
            return _in_a_prompt(name, files, asked, found, sign)
        return _in_a_prompt(name, files, asked, found, sign) if found and found.name == template else None

    return Family(name=name, repositories=repositories, recognise=recognise, oracle=oracle, exported=True)


def _template(files: ModelFiles, asked: Asked) -> PromptTemplate | None:
    """The template that the operator names, or else the one that knows the repository."""
    named = asked.options.get("template")
    usable = (one for one in asked.templates if one.method in _TEMPLATES)
    return next((one for one in usable if (one.name == named if named else one.fits(files.repository))), None)


def _in_a_prompt(
    name: str, files: ModelFiles, asked: Asked, template: PromptTemplate | None, sign: Evidence
) -> Outcome:
    """A classifier that reads a pair inside of a template's prompt, or of its folder's."""
    evidence = [sign, *modules(files)]
    try:
        refuse_other_than_cross_encoder(files)
        refuse_unknown_settings(files, prompted=True)
        checked_native_form(files)
        if template is None or template.method == "reward-model":
            prompt = read_chat_prompt(files, **({"roles": ("user", "assistant")} if template else {}))
            evidence.append(Evidence(str(files.chat_template), f"{prompt.text[:100]!r}..."))
        head = read_head(files, label=asked.options.get("label"))
        otherwise = template.activation if template else "sigmoid"
        activation = described(asked.options.get("activation") or read_activation(files, head) or otherwise)
    except ConfigError as error:
        return Refused(family=name, reason=str(error), evidence=evidence)
    evidence += _evidence_of(files, head)
    usual = template.max_length if template else None
    lengths = [length for length in (declared_length(files), usual) if length is not None]
    return Recognised(
        family=name,
        scorer="prompted-classifier",
        head=_head(head),
        activation=activation,
        input="a prompt" if template else "the folder's chat template",
        max_length=min(lengths, default=None),
        template=template.name if template else None,
        engines=_torch_or_our_graph(files),
        options={**asked.options, "template": template.name} if template else dict(asked.options),
        evidence=evidence,
    )


def _head(head: Head) -> str:
    return "one logit" if head.label is None else f"output {head.label} of {head.outputs} ({head.problem})"


def _decoder(files: ModelFiles, asked: Asked) -> Outcome | None:
    sign = architecture(files, _CLASSIFIER) if files.is_decoder else None
    return None if sign is None else classifier(_PLAIN_DECODER, files, asked, sign)


def _with_golden_pairs(files: ModelFiles, asked: Asked) -> Outcome | None:
    """A graph of any class, whose scores its makers wrote down."""
    if "golden.json" not in files.names or not files.graphs or files.architecture.endswith(_LANGUAGE_MODELS):
        return None
    found = classifier(_GOLDEN, files, asked, Evidence("golden.json", "what the graph must score"))
    return replace(found, engines=GRAPH_ENGINES) if isinstance(found, Recognised) else found


_JINA_V2: Final = "jina-reranker-v2"
_GTE: Final = "gte-multilingual-reranker"
_PROVENCE: Final = "Provence"
_XPROVENCE: Final = "XProvence"
_PRUNING_ORACLE: Final = "the authors' procedure, transcribed: scores, and which sentences are kept"
# Their graphs have golden pairs, too, and a prompt.
_LANGUAGE_MODELS: Final = ("ForCausalLM", "VLForConditionalGeneration")
_GOLDEN: Final = "graphs with golden pairs, as `rerankd export` writes them"
_MONOBERT: Final = "monoBERT"
_MODULAR: Final = "modular cross-encoders (ettin)"
_PLAIN_DECODER: Final = "language models with a classifier's head, trained on plain pairs"

FAMILIES: Final[Sequence[Family]] = (
    _graph_only(
        "jina-reranker-v1",
        ["jinaai/jina-reranker-v1-turbo-en", "jinaai/jina-reranker-v1-tiny-en"],
        lambda files: (
            Evidence("config.json", 'position_embedding_type = "alibi"')
            if files.config.get("position_embedding_type") == "alibi" and architecture(files, _CLASSIFIER)
            else None
        ),
    ),
    Family(
        name=_JINA_V2,
        repositories=["jinaai/jina-reranker-v2-base-multilingual"],
        recognise=_native(_JINA_V2, is_jina_v2, "XLMRobertaForSequenceClassification and no model_type"),
        oracle="transformers: the XLM-RoBERTa that its authors' conversion makes the weights of",
        exported=True,
    ),
    Family(
        name=_GTE,
        repositories=["Alibaba-NLP/gte-multilingual-reranker-base"],
        recognise=_native(_GTE, is_gte, 'model_type = "new"'),
        oracle="the authors' formulas, transcribed",
        exported=True,
    ),
    Family(
        name=_PROVENCE,
        repositories=["naver/provence-reranker-debertav3-v1"],
        recognise=_pruning(_PROVENCE, is_provence, "Provence's own class"),
        oracle=_PRUNING_ORACLE,
    ),
    Family(
        name=_XPROVENCE,
        repositories=["naver/xprovence-reranker-bgem3-v1", "naver/xprovence-reranker-bgem3-v2"],
        recognise=_pruning(_XPROVENCE, is_xprovence, "XProvence's own class"),
        oracle=_PRUNING_ORACLE,
    ),
    _prompted(
        "nemotron rerankers",
        ["nvidia/llama-nemotron-rerank-1b-v2", "nvidia/llama-3.2-nv-rerankqa-1b-v2"],
        "nemotron-rerank",
        oracle="transformers: Llama without a causal mask, the mean of its states, `score` over the temperature",
    ),
    refused_family(
        "other rerankers of NVIDIA",
        ["nvidia/nv-rerankqa-mistral-4b-v3"],
        lambda files: (
            architecture(files, "*BidirectionalForSequenceClassification")
            if files.model_type != "llama_bidirec"
            else repository(files, "nvidia/*rerank*")
        ),
        because="its prompt and its pooling are its authors' own code; nv-rerankqa-mistral-4b-v3 is offered as an "
        "endpoint and a NIM, and no public file says how it reads a pair",
        instead="use nvidia/llama-nemotron-rerank-1b-v2, or run the model's NIM and call that",
    ),
    _prompted(
        "reward models, which judge how helpful an answer is and not whether a document is relevant",
        ["Skywork/Skywork-Reward-V2-*"],
        "reward-model",
        oracle="transformers: the card's procedure, `logits[0][0]`",
    ),
    Family(
        name=_MODULAR,
        repositories=["cross-encoder/ettin-reranker-*-v1"],
        recognise=_modular,
        oracle=_ORACLE,
        exported=True,
    ),
    Family(
        name=_MONOBERT,
        repositories=["castorini/monobert-large-msmarco"],
        recognise=_several_labels,
        oracle="transformers: log-odds of the label",
        exported=True,
    ),
    _cross_encoder(
        "BERT and ELECTRA cross-encoders",
        ["cross-encoder/ms-marco-MiniLM-*-v2", "cross-encoder/ms-marco-electra-base"],
        lambda files: architecture(files, f"Bert{_CLASSIFIER[1:]}", f"Electra{_CLASSIFIER[1:]}"),
    ),
    _cross_encoder(
        "RoBERTa and XLM-RoBERTa cross-encoders",
        ["BAAI/bge-reranker-base", "BAAI/bge-reranker-large", "BAAI/bge-reranker-v2-m3"],
        lambda files: architecture(files, f"Roberta{_CLASSIFIER[1:]}", f"XLMRoberta{_CLASSIFIER[1:]}"),
    ),
    _cross_encoder(
        "DeBERTa cross-encoders",
        ["mixedbread-ai/mxbai-rerank-xsmall-v1", "mixedbread-ai/mxbai-rerank-large-v1"],
        lambda files: architecture(files, f"Deberta*{_CLASSIFIER[1:]}"),
    ),
    _cross_encoder(
        "ModernBERT cross-encoders",
        ["Alibaba-NLP/gte-reranker-modernbert-base", "ibm-granite/granite-embedding-reranker-english-r2"],
        lambda files: architecture(files, f"ModernBert{_CLASSIFIER[1:]}"),
    ),
    _cross_encoder(
        "other encoders of transformers with a classifier's head",
        ["CamemBERT, ALBERT, MPNet, DistilBERT and others"],
        lambda files: architecture(files, _CLASSIFIER),
    ),
    _prompted(
        "language models with a classifier's head and a prompt",
        ["tomaarsen/Qwen3-Reranker-*-seq-cls", "sigridjineth/ctxl-rerank-v2-1b-seq-cls"],
        oracle=_ORACLE,
    ),
    # Exported models with a prompt have golden pairs, too.
    Family(
        name=_GOLDEN,
        repositories=["minilm-qa, which is shipped"],
        recognise=_with_golden_pairs,
        oracle="the golden pairs beside the graph",
    ),
    Family(
        name=_PLAIN_DECODER,
        repositories=["cross-encoders of sentence-transformers before 5.4"],
        recognise=_decoder,
        oracle=_ORACLE,
        exported=True,
    ),
)
