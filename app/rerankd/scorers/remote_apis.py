"""Rerank services by name: what they are asked, and what their answers say. Pure.

An answer is refused if it lacks a document, names one twice or one that was not sent, or gives no finite number: each
would become a wrong score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from typing import Any, Final, Literal

import numpy as np

from rerankd.tasks.rank import Answer, TextPair

ScoreKind = Literal["logit", "relevance"]
Body = Mapping[str, Any]

_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Answered:
    """Where an answer has its entries (empty: it is the list itself), and where each of them has its score. `fields`
    are added to the request to get this.
    """

    entries: str
    score: tuple[str, ...]
    fields: Body = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListApi:
    """A service that scores the documents of a list. `make` gives a request; `answered` is what comes back for each
    kind of score that can be had, the usual one first.
    """

    name: str
    path: str
    make: Callable[[str, Sequence[TextPair]], Body]
    answered: Mapping[ScoreKind, Answered]
    max_documents: int = 1000
    reads_instructions: bool = False
    scores: ScoreKind = "relevance"

    def body(self, model: str, pairs: Sequence[TextPair], /) -> Body:
        return {**self.make(model, pairs), **self.answered[self.scores].fields}

    def read(self, answer: Answer, /, *, documents: int) -> list[float]:
        answered = self.answered[self.scores]
        entries = answer[answered.entries] if answered.entries else answer
        if not isinstance(entries, list):
            raise TypeError("its results are not a list")
        score_of: dict[int, float] = {}
        for entry in entries:
            index = entry["index"]
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < documents:
                raise ValueError(f"it has a result for document {index!r:.20} of {documents}")
            if index in score_of:
                raise ValueError(f"it has two results for document {index}")
            score_of[index] = _score_at(entry, answered.score)
        if len(score_of) < documents:
            missing = next(index for index in range(documents) if index not in score_of)
            raise ValueError(
                f"it has {len(score_of)} results for {documents} documents, and none for document {missing}"
            )
        return [score_of[index] for index in range(documents)]


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNoApi:
    """A chat model behind an OpenAI-compatible endpoint, read at the first token that it would write. The score is log
    P(yes) - log P(no); each is the sum over the spellings of a word among the most probable tokens.
    """

    system: str
    user: str
    instruction: str
    yes: str
    no: str

    name: str = "openai"
    path: str = "/chat/completions"
    max_documents: int = 1
    reads_instructions: bool = True
    scores: ScoreKind = "logit"

    def body(self, model: str, pairs: Sequence[TextPair], /) -> Body:
        (pair,) = pairs
        instruction = self.instruction if pair.instruction is None else pair.instruction
        texts = {"query": pair.query, "document": pair.document, "instruction": instruction}
        system = [{"role": "system", "content": self.system.format(**texts)}] if self.system else []
        return {
            "model": model,
            "messages": [*system, {"role": "user", "content": self.user.format(**texts)}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }

    def read(self, answer: Answer, /, *, documents: int) -> list[float]:  # noqa: ARG002 - it is one
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = [(str(token["token"]), _number(token["logprob"])) for token in tokens]
        yes, no = (_logprob_of(word, logprobs) for word in (self.yes, self.no))
        if yes == no == -inf:
            raise ValueError(f"neither {self.yes!r} nor {self.no!r} is among its {len(logprobs)} most probable tokens")
        # A word that is not listed is at most as probable as the last one that is.
        least = min(logprob for _, logprob in logprobs)
        return [max(yes, least) - max(no, least)]


def _score_at(entry: Answer, place: Sequence[str]) -> float:
    for name in place:
        entry = entry[name]
    return _number(entry)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
        raise ValueError(f"it has {value!r:.20} where a finite number should be")
    return float(value)


def _logprob_of(word: str, logprobs: Sequence[tuple[str, float]]) -> float:
    """The logarithm of the summed probability of a word's spellings; -inf: none is listed."""
    found = [logprob for token, logprob in logprobs if token.strip().casefold() == word.casefold()]
    if not found:
        return -inf
    most = max(found)
    return most + log(sum(exp(logprob - most) for logprob in found))


def _texts(
    *, query: str = "query", documents: str = "documents", **more: object
) -> Callable[[str, Sequence[TextPair]], Body]:
    """Makes a request with these names of its fields."""

    def make(model: str, pairs: Sequence[TextPair]) -> Body:
        return {"model": model, query: pairs[0].query, documents: [pair.document for pair in pairs], **more}

    return make


def _nim(model: str, pairs: Sequence[TextPair]) -> Body:
    passages = [{"text": pair.document} for pair in pairs]
    return {"model": model, "query": {"text": pairs[0].query}, "passages": passages, "truncate": "END"}


def _rerankd(model: str, pairs: Sequence[TextPair]) -> Body:
    instruction = pairs[0].instruction
    return {**_texts()(model, pairs), **({} if instruction is None else {"instruction": instruction})}


def _either(entries: str, score: str) -> Mapping[ScoreKind, Answered]:
    """The operator knows which kind of score it is, and the request has no say in it."""
    answered = Answered(entries, (score,))
    return {"relevance": answered, "logit": answered}


_RESULTS: Final = _either("results", "relevance_score")
# -1: as long as the model reads; without it vLLM refuses longer texts.
_AS_THE_MODEL_READS: Final[Mapping[str, Any]] = {"truncate_prompt_tokens": -1}
_RAW: Final = {"use_activation": False}

LIST_APIS: Final[Mapping[str, ListApi]] = {
    api.name: api
    for api in (
        ListApi(name="cohere", path="/v2/rerank", make=_texts(), answered=_RESULTS),
        ListApi(name="jina", path="/v1/rerank", make=_texts(return_documents=False), answered=_RESULTS),
        ListApi(
            name="voyage", path="/v1/rerank", make=_texts(truncation=True), answered=_either("data", "relevance_score")
        ),
        ListApi(
            name="tei",
            path="/rerank",
            make=_texts(documents="texts", truncate=True),
            answered={
                "logit": Answered("", ("score",), {"raw_scores": True}),
                "relevance": Answered("", ("score",), {"raw_scores": False}),
            },
            # Its --max-client-batch-size.
            max_documents=32,
        ),
        ListApi(
            name="vllm",
            path="/rerank",
            make=_texts(**_AS_THE_MODEL_READS),
            answered={
                "relevance": Answered("results", ("relevance_score",)),
                "logit": Answered("results", ("relevance_score",), _RAW),
            },
        ),
        ListApi(
            name="vllm-score",
            path="/score",
            make=_texts(query="queries", **_AS_THE_MODEL_READS),
            answered={"relevance": Answered("data", ("score",)), "logit": Answered("data", ("score",), _RAW)},
        ),
        ListApi(
            name="nim",
            path="/v1/ranking",
            make=_nim,
            answered={"logit": Answered("rankings", ("logit",))},
            max_documents=512,
        ),
        ListApi(name="llama.cpp", path="/v1/rerank", make=_texts(), answered=_RESULTS),
        ListApi(
            name="rerankd",
            path="/v2/rerank",
            make=_rerankd,
            answered={
                "relevance": Answered("results", ("relevance_score",)),
                "logit": Answered("results", ("explain", "score"), {"explain": True}),
            },
            reads_instructions=True,
        ),
    )
}
