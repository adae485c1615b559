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
    def load(cls, spec: EngineSpec) -> "EndpointEngine":
        """Read the options; nothing is asked yet.

        Raises:
            ConfigError: an option is missing, or the key's file is.
        """
        options = read_options(spec.options, EndpointOptions, of="engine 'endpoint'")
        workers = spec.workers or _USUAL_CALLS
        return cls(RemoteClient.open(options, name="endpoint", calls=workers), options, workers=workers)

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
