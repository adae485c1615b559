"""Language models that judge documents, one by one or in lists: they need the prompt that they were trained with."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rerankd.errors import ConfigError, few
from rerankd.recognition.activations import described
from rerankd.recognition.chat_template import read_chat_prompt, reads_own_prompt
from rerankd.recognition.heads import named_activation
from rerankd.recognition.kinds import (
    ModelFiles,
    answer_tokens,
    refuse_other_than_language_model,
    refuse_unknown_settings,
)
from rerankd.recognition.lengths import declared_length
from rerankd.recognition.native import is_jina_v3
from rerankd.recognition.recognised import (
    GRAPH_ENGINES,
    TASK_ENGINES,
    TASKS,
    Asked,
    Evidence,
    Family,
    Outcome,
    PromptTemplate,
    Recognised,
    Refused,
    Task,
    architecture,
    modules,
)

_CAUSAL_ENGINES: Final[Mapping[Task, Sequence[str]]] = {
    "read_tokens": (*GRAPH_ENGINES, "torch-causal"),
    "generate": TASK_ENGINES["generate"],
    "reason": TASK_ENGINES["reason"],
    "sample": TASK_ENGINES["sample"],
    "read_images": TASK_ENGINES["read_images"],
}
_HEADS: Final[Mapping[str, str]] = {
    "vision-language": "the logits of the template's answer tokens at the last place",
    "yes-no": "the logits of the template's answer tokens at the last place",
    "first": "the logits of the identifiers at the last place",
    "pairwise": "the logits of the template's answer tokens at the last place",
    "generative": "the order, or the label of the best, that the model writes",
    "reasoning": "the logits of the template's answers behind the thought that the model writes",
    "graded": "the grade that the model writes behind its thought",
    "groupwise": "the grades that the model writes for the documents of a group",
}

_INPUTS: Final[Mapping[str, str]] = {"vision-language": "a prompt with texts and images"}


def _prompted(
    name: str, repositories: Sequence[str], templates: Sequence[str], *, oracle: str, exported: bool = True
) -> Family:
    """Models that one of the shipped templates is for."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        template = _template(files, asked)
        return prompted_model(name, files, asked, template) if template and template.name in templates else None

    return Family(
        name=name,
        repositories=repositories,
        recognise=recognise,
        oracle=oracle,
        exported=exported,
    )


def _template(files: ModelFiles, asked: Asked) -> PromptTemplate | None:
    causal = architecture(files, "*ForCausalLM", "*LMHeadModel") is not None
    template = chosen_template(files, asked) if causal else None
    return None if template is None or template.method == "vision-language" else template


def chosen_template(files: ModelFiles, asked: Asked) -> PromptTemplate | None:
    """The template that the operator names, or else the one that knows the adapter, or the repository."""
    named = asked.options.get("template")
    usable = [one for one in asked.templates if one.method in _HEADS]
    if named:
        return next((one for one in usable if one.name == named), None)
    known = (one for trained in (asked.adapter, files.repository) for one in usable if one.fits(trained))
    return next(known, None)


def prompted_model(name: str, files: ModelFiles, asked: Asked, template: PromptTemplate) -> Outcome:
    """A causal model that reads a template's prompt."""
    trained = asked.adapter if template.fits(asked.adapter) else files.repository
    evidence = [
        Evidence("config.json", f"architectures = {files.architecture!r}"),
        *modules(files),
    ]
    if asked.options.get("template"):
        evidence.append(Evidence("the operator", f"template = {template.name!r}"))
    elif trained:
        evidence.append(Evidence("the hub", f"the name {trained!r}, which is template {template.name!r}'s"))
    try:
        refuse_other_than_language_model(files, scorer=template.method)
    except ConfigError as error:
        return Refused(family=name, reason=str(error), evidence=evidence)
    lengths = [length for length in (declared_length(files), template.max_length) if length is not None]
    options: dict[str, Any] = {**asked.options, "template": template.name}
    told = ", which takes an instruction" if template.instruction else ""
    return Recognised(
        family=name,
        scorer=template.method,
        head=_HEADS[template.method],
        activation=_activation(template, files, options),
        input=f"{_INPUTS.get(template.method, 'a prompt')}{told}",
        max_length=min(lengths, default=None),
        template=template.name,
        engines=_CAUSAL_ENGINES[TASKS[template.method]],
        options=options,
        evidence=evidence,
    )


def _activation(template: PromptTemplate, files: ModelFiles, options: dict[str, Any]) -> str:
    """A list's scores say the order, a grade is relevance. A judge's scores are made probabilities, unless its files
    say that they stay logits.
    """
    if template.method in ("graded", "groupwise"):
        return "identity"
    if template.method not in ("yes-no", "reasoning", "vision-language"):
        return "rank"
    if "activation" not in options and (named_activation(files) or "").rsplit(".", 1)[-1] == "Identity":
        options["activation"] = "identity"
    return described(options.get("activation", template.activation))


def _own_template(files: ModelFiles, asked: Asked) -> Outcome | None:
    template = _template(files, asked)
    return None if template is None else prompted_model(_OWN, files, asked, template)


def _unknown_prompt(files: ModelFiles, asked: Asked) -> Outcome | None:
    sign = architecture(files, "*ForCausalLM", "*LMHeadModel")
    if sign is None:
        return None
    names = [one.name for one in asked.templates]
    return Refused(
        family=_UNKNOWN,
        reason=f"{sign}: this is a language model, and no file says what prompt it was trained with as a reranker",
        way_out="if it is a copy of a known one, name its template (options = { template = ... }, "
        f"`--template`): {few(sorted(names))}; or serve it by its name on the hub",
        evidence=[sign, *modules(files)],
    )


def _own_prompt(files: ModelFiles, asked: Asked) -> Outcome | None:
    """A judge whose prompt is the folder's chat template, and whose answer tokens a module names."""
    sign = architecture(files, "*ForCausalLM", "*LMHeadModel")
    if sign is None or not reads_own_prompt(files):
        return None
    evidence = [sign, *modules(files)]
    options: dict[str, Any] = dict(asked.options)
    try:
        refuse_unknown_settings(files, task="text-generation", prompted=True)
        prompt = read_chat_prompt(files)
        answers = answer_tokens(files)
    except ConfigError as error:
        return Refused(family=_JUDGE, reason=str(error), evidence=evidence)
    evidence.append(Evidence(str(files.chat_template), f"{prompt.text[:100]!r}..."))
    own = PromptTemplate("", "yes-no", instruction="{instruction}" in prompt.text)
    return Recognised(
        family=_JUDGE,
        scorer="yes-no",
        head=f"the logits of the tokens {answers or ['yes', 'no']} at the last place",
        activation=_activation(own, files, options),
        input=f"the folder's chat template{', which takes an instruction' if own.instruction else ''}",
        max_length=declared_length(files),
        engines=_CAUSAL_ENGINES["read_tokens"],
        options=options,
        evidence=evidence,
    )


def _last_but_not_late(files: ModelFiles, asked: Asked) -> Outcome | None:
    """All documents in one prompt, compared by vectors at markers."""
    sign = architecture(files, "JinaForRanking")
    if sign is None:
        return None
    if not is_jina_v3(files):
        return Refused(
            family=_JINA_V3,
            reason=f"{sign} with model_type = {files.model_type!r}, and only 'qwen3' is computed here",
            way_out="use jinaai/jina-reranker-v3",
            evidence=[sign],
        )
    return Recognised(
        family=_JINA_V3,
        scorer="last-but-not-late",
        head="the vectors at a marker behind each document and behind the query",
        activation="identity",
        input="a prompt with all documents, which takes an instruction",
        max_length=declared_length(files),
        engines=TASK_ENGINES["read_vectors"],
        options=dict(asked.options),
        evidence=[sign],
    )


_JINA_V3: Final = "jina-reranker-v3"
_JUDGE: Final = "judges with a chat template of their own"
_OWN: Final = "language models with a template of your own"
_UNKNOWN: Final = "other language models"
_TRANSCRIPTION: Final = "transformers: the card's procedure, whole logits at the last place"
_WRITTEN: Final = "transformers: greedy generation, the order that it writes"
_CHOSEN: Final = "transformers: greedy generation, the label that it writes; the authors' sort by such labels"
_GRADED: Final = "transformers: greedy generation, the grade that it writes and its whole logits"
_DRAWN: Final = "transformers: whole logits, one draw after another from the same random numbers"

FAMILIES: Final[Sequence[Family]] = (
    Family(
        name=_JINA_V3,
        repositories=["jinaai/jina-reranker-v3", "jinaai/jina-reranker-v3.5"],
        recognise=_last_but_not_late,
        oracle="transformers: the authors' `rerank`, one block after another",
    ),
    _prompted("Qwen3-Reranker", ["Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-8B"],
              ["qwen3-reranker"], oracle=_TRANSCRIPTION),
    _prompted("mxbai-rerank-v2", ["mixedbread-ai/mxbai-rerank-base-v2", "mixedbread-ai/mxbai-rerank-large-v2"],
              ["mxbai-rerank-v2"], oracle=_TRANSCRIPTION),
    _prompted("bge-reranker-v2-gemma", ["BAAI/bge-reranker-v2-gemma"], ["bge-reranker-gemma"], oracle=_TRANSCRIPTION),
    _prompted("zerank", ["zeroentropy/zerank-1-small", "zeroentropy/zerank-1", "zeroentropy/zerank-2"], ["zerank"],
              oracle=_TRANSCRIPTION),
    _prompted("ctxl-rerank-v2", ["ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b"], ["ctxl-rerank-v2"],
              oracle=_TRANSCRIPTION),
    _prompted("FIRST", ["rryisthebest/First_Model", "castorini/first_mistral"],
              ["first-zephyr", "first-mistral", "first-llama-3", "first-qwen", "first-qwen3", "minilm-first"],
              oracle="transformers: rank_llm's prompt, whole logits at the identifier's place"),
    _prompted("RankZephyr", ["castorini/rank_zephyr_7b_v1_full"], ["rank-zephyr", "rankgpt"],
              oracle=_WRITTEN, exported=False),
    _prompted("RankVicuna", ["castorini/rank_vicuna_7b_v1"], ["rank-vicuna"], oracle=_WRITTEN, exported=False),
    _prompted("ReasonRank", ["liuwenhan/reasonrank-7B", "liuwenhan/reasonrank-32B"], ["reasonrank"],
              oracle=_WRITTEN, exported=False),
    _prompted("Rank-K, greedily", ["hltcoe/Rank-K-32B"], ["rank-k"], oracle=_WRITTEN, exported=False),
    _prompted("Rank-R1", ["ielabgroup/Rank-R1-3B-v0.1", "ielabgroup/Rank-R1-7B-v0.1", "ielabgroup/Rank-R1-14B-v0.1"],
              ["rank-r1"], oracle=_CHOSEN, exported=False),
    _prompted("RM-R1, which chooses the best of several answers",
              ["gaotang/RM-R1-Qwen2.5-Instruct-7B", "gaotang/RM-R1-DeepSeek-Distilled-Qwen-7B"],
              ["rm-r1-instruct", "rm-r1-distilled"], oracle=_CHOSEN, exported=False),
    _prompted("Rank1", ["jhu-clsp/rank1-0.5b", "jhu-clsp/rank1-7b", "jhu-clsp/rank1-32b"], ["rank1"],
              oracle="transformers: greedy generation, whole logits where the answer is written", exported=False),
    _prompted("ERank", ["Alibaba-NLP/ERank-4B", "Alibaba-NLP/ERank-14B", "Alibaba-NLP/ERank-32B"],
              ["erank", "erank-chat"], oracle=_GRADED, exported=False),
    _prompted("Retro*", ["ljw13/retro-star-qwen3-8b-0928", "ljw13/retro-star-qwen3-14b-0928",
                         "ljw13/retro-star-qwen3-32b-0928"],
              ["retro-star", "retro-star-chat"], oracle=_DRAWN, exported=False),
    _prompted("GroupRank", ["AQ-MedAI/Diver-GroupRank-7B", "AQ-MedAI/Diver-GroupRank-32B"],
              ["group-rank", "group-rank-chat"], oracle=_DRAWN, exported=False),
    Family(
        name=_JUDGE,
        repositories=["what sentence-transformers 5.4 and later save as Transformer -> LogitScore"],
        recognise=_own_prompt,
        oracle="sentence-transformers: `CrossEncoder.predict`",
        exported=True,
    ),
    Family(name=_OWN, repositories=["any causal language model"], recognise=_own_template, oracle="none: yours",
           exported=True),
    Family(
        name=_UNKNOWN,
        repositories=["chat models and base models"],
        recognise=_unknown_prompt,
        refused=(
            "no file says what prompt it was trained with as a reranker",
            "name its template, or serve it by its name on the hub",
        ),
    ),
)  # fmt: skip
