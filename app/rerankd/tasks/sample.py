"""Sample: a prompt goes in, several answers come out, with the log-probability of every token.

The draws depend on the prompt alone, so that the same prompt always gets the same answers, whatever it is batched with.
`sample` has token ids for an engine with the weights, `sample_chat` messages for one that asks a server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from rerankd.tasks.generate import Chat, Conversation, Decode, Prompt, identities_of, lengths_of

_chat = Chat()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How `answers` answers are drawn. A `temperature` of 0 takes the most probable token each time. `top_k`: only the
    most probable tokens are drawn from; None: all.
    """

    answers: int = 1
    temperature: float = 0.0
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of a text, and their natural log-probabilities before temperature and top-k. Without log-probabilities
    the whole text may be one token.
    """

    tokens: Sequence[str]
    logprobs: Sequence[float] | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answers to one prompt, and how many tokens the model wrote for them."""

    answers: Sequence[Answer]
    written: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Payloads are `Prompt`s, results `Sampled`. `decode` makes text of the token ids that are written."""

    decode: Decode
    sampling: Sampling

    name: ClassVar[str] = "sample"
    # The engine is not tried at load: each pass writes a long text.
    outputs: ClassVar[None] = None

    identities = staticmethod(identities_of)
    costs = staticmethod(lengths_of)


@dataclass(frozen=True, slots=True)
class SampleChat:
    """Payloads are `Conversation`s, results `Sampled`. `logprobs`: each answer needs its log-probabilities."""

    sampling: Sampling
    logprobs: bool

    name: ClassVar[str] = "sample_chat"
    outputs: ClassVar[None] = None

    def identities(self, conversations: Sequence[Conversation]) -> list[bytes]:
        return _chat.identities(conversations)

    def costs(self, conversations: Sequence[Conversation]) -> list[int]:
        return _chat.costs(conversations)


def seeds_of(prompts: Sequence[Prompt]) -> list[int]:
    """A seed of 31 bits for each prompt, from its content."""
    return [_seed(identity) for identity in identities_of(prompts)]


def chat_seed(conversation: Conversation) -> int:
    """A seed of 31 bits, from the messages: some servers take no longer one."""
    return _seed(_chat.identities([conversation])[0])


def _seed(identity: bytes) -> int:
    return int.from_bytes(blake2b(identity, digest_size=4).digest()) >> 1
