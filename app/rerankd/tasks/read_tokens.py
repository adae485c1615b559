"""Read tokens: token ids of a prompt go in, the logits of a few tokens at its end come out. Nothing is written."""

from dataclasses import dataclass
from typing import ClassVar

from rerankd.tasks.encoding import identities_of, lengths_of


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """Payloads are `Encoding`s, results rows with the logit of each of `tokens`, in that order."""

    tokens: tuple[int, ...]

    name: ClassVar[str] = "read_tokens"
    identities = staticmethod(identities_of)
    costs = staticmethod(lengths_of)

    @property
    def outputs(self) -> int:
        return len(self.tokens)
