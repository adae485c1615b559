"""A chat model behind an OpenAI-compatible endpoint that the operator names; a caller never does.

It is an engine like all others, so that its work waits, is cancelled and is counted as theirs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from rerankd.config.options import read_options
from rerankd.engines.base import BatchLimits, EngineSpec
from rerankd.engines.remote.client import ClientOptions, RemoteClient, headers_of
from rerankd.tasks.generate import Conversation, Generated
from rerankd.tasks.sample import Answer, SampleChat, Sampled, chat_seed
from rerankd.tasks.text_tokens import tokens_of

_USUAL_CALLS: Final = 8


class EndpointOptions(ClientOptions):
    """`[model.engine_options]` of the engine `endpoint`."""

    max_tokens: int = Field(default=200, ge=1, description="Longest answer.")


class EndpointEngine:
    """`workers` requests at a time."""

    preferred_batch = BatchLimits(tokens=1, pairs=1)
    # Where it is, and what else it is told, is nobody's business but the operator's.
    name = "endpoint"

    def __init__(self, client: RemoteClient, options: EndpointOptions, *, workers: int) -> None:
        self.client = client
        self._options = options
        self.workers = workers

    @classmethod
    def load(cls, spec: EngineSpec) -> "EndpointEngine | SamplingEndpointEngine":
        """Read the options; nothing is asked yet. The engine is that of the spec's task.

        Raises:
            ConfigError: an option is missing, or the key's file is.
        """
        options = read_options(spec.options, EndpointOptions, of="engine 'endpoint'")
        workers = spec.workers or _USUAL_CALLS
        client = RemoteClient.open(options, name="endpoint", calls=workers)
        if isinstance(spec.task, SampleChat):
            return SamplingEndpointEngine(client, options, spec.task, workers=workers)
        return cls(client, options, workers=workers)

    async def ask(self, conversations: Sequence[Conversation], deadline: float) -> list[Generated]:
        """Answer conversations, one request each.

        Raises:
            RemoteUnavailable, RemoteFailed: see `RemoteClient.ask`.
        """
        return [await self._answer(conversation, deadline) for conversation in conversations]

    async def _answer(self, conversation: Conversation, deadline: float) -> Generated:
        body = {
            "model": self._options.model,
            "messages": conversation.as_json,
            "max_tokens": self._options.max_tokens,
            "temperature": 0,
        }
        return await self.client.ask(
            "/chat/completions", body, read=_generated, what="a chat completion", deadline=deadline
        )


class SamplingEndpointEngine:
    """As `EndpointEngine`, with several answers to each conversation."""

    preferred_batch = EndpointEngine.preferred_batch
    name = EndpointEngine.name

    def __init__(self, client: RemoteClient, options: EndpointOptions, task: SampleChat, *, workers: int) -> None:
        self.client = client
        self._options = options
        self._task = task
        self.workers = workers

    async def ask(self, conversations: Sequence[Conversation], deadline: float) -> list[Sampled]:
        """Answer conversations, one request each where the server gives several answers at a time (`n`).

        Raises:
            RemoteUnavailable, RemoteFailed: see `RemoteClient.ask`.
        """
        return [await self._sampled(conversation, deadline) for conversation in conversations]

    async def _sampled(self, conversation: Conversation, deadline: float) -> Sampled:
        """A server that gives fewer answers than it is asked for, as many give one, is asked again."""
        answers: list[Answer] = []
        written = 0
        while len(answers) < self._task.sampling.answers:
            part = await self.client.ask(
                "/chat/completions",
                self._body(conversation, after=len(answers)),
                read=self._read,
                what="a chat completion",
                deadline=deadline,
            )
            answers += part.answers
            written += part.written
        return Sampled(answers[: self._task.sampling.answers], written)

    def _body(self, conversation: Conversation, *, after: int) -> dict[str, Any]:
        """The request for the answers behind the first ones; they must not be those again."""
        sampling = self._task.sampling
        left = sampling.answers - after
        return {
            "model": self._options.model,
            "messages": conversation.as_json,
            "max_tokens": self._options.max_tokens,
            "temperature": sampling.temperature,
            **({"seed": chat_seed(conversation) + after} if sampling.temperature else {}),
            **({"top_k": sampling.top_k} if sampling.top_k is not None else {}),
            **({"n": left} if left > 1 else {}),
            **({"logprobs": True} if self._task.logprobs else {}),
        }

    def _read(self, answer: Any) -> Sampled:  # noqa: ANN401 - whatever came
        answers = [_answer_of(choice) for choice in answer["choices"]]
        if not answers:
            raise ValueError("it has no choices")
        if self._task.logprobs and any(one.logprobs is None for one in answers):
            raise ValueError("it has no logprobs, which the template needs")
        counted = (answer.get("usage") or {}).get("completion_tokens")
        written = counted if isinstance(counted, int) else sum(map(_tokens_in, answers))
        return Sampled(answers, max(0, written))


def _answer_of(choice: Mapping[str, Any]) -> Answer:
    logprobs = _logprobs(choice)
    if logprobs is None:
        return Answer((str(choice["message"]["content"] or ""),))
    return Answer([str(token["token"]) for token in choice["logprobs"]["content"]], logprobs)


def _tokens_in(answer: Answer) -> int:
    return tokens_of(answer.text) if answer.logprobs is None else len(answer.tokens)


def _generated(answer: Any) -> Generated:  # noqa: ANN401 - whatever came
    choice = answer["choices"][0]
    # A model may give no content at all: an answer that names no document.
    return Generated(str(choice["message"]["content"] or ""), _logprobs(choice))


def _logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Of each token that was written; None: the endpoint was not asked for them (`parameters`), or does not say."""
    tokens = (choice.get("logprobs") or {}).get("content")
    return None if tokens is None else [float(token["logprob"]) for token in tokens]


def check(spec: EngineSpec) -> None:
    """Read the options and the key's file; nothing is asked.

    Raises:
        ConfigError: an option is missing, or the key's file or a proxy cannot be used.
    """
    headers_of(read_options(spec.options, EndpointOptions, of="engine 'endpoint'"))
