"""A model that a service elsewhere runs: texts go out, its scores come back as it gives them.

The service's tokenizer is not known, so tokens are estimated, four bytes of UTF-8 each: what a text costs, where it is
cut, and where the passages of a long one begin. The service may read less than `max_length` and cut again by itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.scorers.base import Edges, EncodedPairs, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.estimated import USUAL_LENGTH, estimated_edges, first_tokens, room_beside, unicode_of
from rerankd.scorers.ranking import Activation, identity, sigmoid
from rerankd.scorers.remote_apis import LIST_APIS, ListApi, ScoreKind, YesNoApi
from rerankd.tasks.rank import Rank, TextPair

Protocol = Literal["cohere", "jina", "voyage", "tei", "vllm", "vllm-score", "nim", "llama.cpp", "rerankd", "openai"]


class RemoteOptions(BaseModel):
    """`[model.options]` of the scorer `remote`."""

    model_config = ConfigDict(extra="forbid")

    protocol: Protocol = Field(description="How the service is asked.")
    scores: ScoreKind | None = Field(
        default=None,
        description='What its scores are: "relevance", taken as it is, or "logit", of which the sigmoid is the '
        "relevance. Default: what such services usually give.",
    )
    system: str = Field(
        default='Decide whether the document answers the query as the instruction says. Answer only "yes" or "no".',
        description="Of `openai`: the system message; empty: none.",
    )
    user: str = Field(
        default="Instruction: {instruction}\nQuery: {query}\nDocument: {document}",
        description="Of `openai`: the user's message, with {query}, {document} and, where it is read, {instruction}.",
    )
    instruction: str = Field(
        default="Given a web search query, find passages that answer the query.",
        description="Of `openai`: the instruction of requests that have none.",
    )
    yes: str = Field(default="yes", min_length=1, description="Of `openai`: the answer for a relevant document.")
    no: str = Field(default="no", min_length=1, description="Of `openai`: the answer for another document.")


class Remote:
    pad_id = 0

    def __init__(self, api: ListApi | YesNoApi, *, max_length: int) -> None:
        self._api = api
        self.task = Rank(api)
        self.scores: ScoreKind = api.scores
        self.activation: Activation = sigmoid if api.scores == "logit" else identity
        self.max_length = max_length
        prompt = repr(api) if isinstance(api, YesNoApi) else ""
        self.fingerprint = f"remote {api.name} {api.scores} {max_length} {prompt}"

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Remote":
        """Read the options.

        Raises:
            ConfigError: the protocol does not give such scores, or a message lacks its texts.
        """
        options = read_options(spec.options, RemoteOptions, of="scorer 'remote'")
        api = _yes_no(options) if options.protocol == "openai" else LIST_APIS[options.protocol]
        return cls(_giving(options.scores, api), max_length=spec.max_length or USUAL_LENGTH)

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[TextPair]:
        """Cut documents to what is read beside the query. Only documents of one caller and query share a call."""
        room = min(self.room(query, instruction), max_document_tokens or self.max_length)
        query, instruction = unicode_of(query), None if instruction is None else unicode_of(instruction)
        parts = [first_tokens(unicode_of(document), room) for document in documents]
        pairs = [TextPair(query, text, instruction) for text, _ in parts]
        return EncodedPairs(
            pairs, np.array([dropped for _, dropped in parts], dtype=np.int64), group=(owner, query, instruction)
        )

    def room(self, query: str, instruction: str | None = None) -> int:
        refuse_instruction(instruction, takes=self._api.reads_instructions)
        return room_beside([query, instruction or ""], max_length=self.max_length)

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        return [estimated_edges(text) for text in texts]

    def drops(self, text: str) -> bool:  # noqa: ARG002 - the service's tokenizer is not known
        return False

    def interpret(self, results: Iterable[float], /) -> FloatArray:
        return np.fromiter(results, dtype=np.float32)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)


def _yes_no(options: RemoteOptions) -> YesNoApi:
    for name, text in (("system", options.system), ("user", options.user)):
        try:
            text.format(query="", document="", instruction="")
        except (KeyError, IndexError, ValueError):
            raise ConfigError(
                f"options of scorer 'remote': {name} may have {{query}}, {{document}} and {{instruction}} in it; write "
                "{{ and }} for other braces"
            ) from None
    missing = [name for name in ("{query}", "{document}") if name not in options.system + options.user]
    if missing:
        raise ConfigError(f"options of scorer 'remote': user has no {' and no '.join(missing)} in it; add it")
    texts = options.model_dump(include={"system", "user", "instruction", "yes", "no"})
    return YesNoApi(**texts)


def _giving(scores: ScoreKind | None, api: ListApi | YesNoApi) -> ListApi | YesNoApi:
    """The same service, with the kind of scores that is wanted; None: its usual one."""
    kinds = tuple(api.answered) if isinstance(api, ListApi) else (api.scores,)
    if scores is not None and scores not in kinds:
        raise ConfigError(
            f"options of scorer 'remote': protocol {api.name!r} gives scores = {kinds[0]!r}, not {scores!r}; leave "
            "scores out"
        )
    return replace(api, scores=scores or kinds[0])
