"""Generate and chat: a prompt goes in, the text that the model writes comes out.

Both give `Generated`. They differ in the prompt: an engine that has the weights generates from token ids; one that asks
a server chats with messages, and the server puts them into its model's own chat template.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import IntArray
from rerankd.tasks.text_tokens import BYTES_PER_TOKEN, size_of

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of shape [length]. At most `max_tokens` are to be written, and no more than the engine's own limit."""

    ids: IntArray
    max_tokens: int


def identities_of(prompts: Sequence[Prompt]) -> list[bytes]:
    """What tells each prompt from every other of the same model."""
    return [prompt.max_tokens.to_bytes(8) + prompt.ids.tobytes() for prompt in prompts]


def lengths_of(prompts: Sequence[Prompt]) -> list[int]:
    """How many tokens each prompt has."""
    return [len(prompt.ids) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class Message:
    """What a `role`, such as "system" or "user", says in a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model to answer."""

    messages: tuple[Message, ...]

    @property
    def as_json(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote, special tokens left out, and the log-probabilities of its tokens; None: unknown."""

    text: str
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Payloads are `Prompt`s. `decode` makes text of the token ids that are written."""

    decode: Decode

    name: ClassVar[str] = "generate"
    outputs: ClassVar[None] = None

    identities = staticmethod(identities_of)
    costs = staticmethod(lengths_of)


@dataclass(frozen=True, slots=True)
class Chat:
    """Payloads are `Conversation`s, whose tokens only the server can count: their costs are estimates."""

    name: ClassVar[str] = "chat"
    outputs: ClassVar[None] = None

    def identities(self, conversations: Sequence[Conversation]) -> list[bytes]:
        return [json.dumps(one.as_json).encode() for one in conversations]

    def costs(self, conversations: Sequence[Conversation]) -> list[int]:
        return [max(1, _size(one) // BYTES_PER_TOKEN) for one in conversations]


def _size(conversation: Conversation) -> int:
    """In bytes of UTF-8."""
    return sum(size_of(message.content) for message in conversation.messages)
