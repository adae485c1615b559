"""What recognition says of a model folder: what it is and how it is scored, or why it is not served."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from rerankd.recognition.kinds import ModelFiles

Task = Literal[
    "classify",
    "read_tokens",
    "read_images",
    "generate",
    "reason",
    "sample",
    "embed",
    "embed_tokens",
    "weigh_words",
    "read_vectors",
    "prune",
    "attend",
]

# What each scorer asks of an engine, and the engines that do it.
TASKS: Final[Mapping[str, Task]] = {
    "cross-encoder": "classify",
    "prompted-classifier": "classify",
    "pruning": "prune",
    "yes-no": "read_tokens",
    "first": "read_tokens",
    "pairwise": "read_tokens",
    "generative": "generate",
    "attention": "attend",
    "bi-encoder": "embed",
    "listwise-embedding": "embed",
    "late-interaction": "embed_tokens",
    "splade": "weigh_words",
    "last-but-not-late": "read_vectors",
    "reasoning": "reason",
    "graded": "sample",
    "groupwise": "sample",
    "vision-language": "read_images",
}
GRAPH_ENGINES: Final = ("onnx", "openvino")
# The file by which a graph is known as one of `rerankd export`.
PARITY_FILE: Final = "parity.json"
TASK_ENGINES: Final[Mapping[Task, tuple[str, ...]]] = {
    "classify": (*GRAPH_ENGINES, "torch-encoder"),
    "read_tokens": (*GRAPH_ENGINES, "torch-causal", "torch-seq2seq"),
    "generate": ("torch-generate",),
    "embed": ("onnx", "torch-encoder"),
    "embed_tokens": ("torch-vectors",),
    "weigh_words": ("torch-vectors",),
    "read_vectors": ("torch-markers",),
    "reason": ("torch-generate",),
    "sample": ("torch-generate",),
    "prune": ("torch-encoder",),
    "attend": ("torch-attention",),
    "read_images": ("torch-vision",),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read from which file."""

    file: str
    says: str

    def __str__(self) -> str:
        return f"{self.file} says {self.says}"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template that can be served: `recognises` are patterns of repositories that were trained with it."""

    name: str
    method: str
    recognises: Sequence[str] = ()
    max_length: int | None = None
    instruction: bool = False
    activation: str = "sigmoid"

    def fits(self, repository: str) -> bool:
        return any(fnmatchcase(repository, pattern) for pattern in self.recognises)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the operator says beside the folder: the scorer's options, the templates that there are, the name of the
    adapter's repository, and the scorer if it is named.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    templates: Sequence[PromptTemplate] = ()
    adapter: str = ""
    scorer: str = ""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """`options` are the scorer's; `engines` are those that compute the model as its authors do."""

    family: str
    scorer: str
    head: str
    activation: str
    input: str
    max_length: int | None
    template: str | None = None
    engines: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()

    @property
    def task(self) -> Task:
        return TASKS[self.scorer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """`family` is empty where nothing is known of the model."""

    family: str
    reason: str
    way_out: str = ""
    evidence: Sequence[Evidence] = ()

    def __str__(self) -> str:
        return f"{self.reason}; {self.way_out}" if self.way_out else self.reason


Outcome = Recognised | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A row of docs/models-supported.md. `recognise` gives None for a folder of another family. `oracle` says what its
    scores are compared with in the tests, under the family's name; `refused` why it is not served, and what to use
    instead. `exported`: `rerankd export` makes a graph of it.
    """

    name: str
    repositories: Sequence[str]
    recognise: Callable[[ModelFiles, Asked], Outcome | None]
    oracle: str = ""
    exported: bool = False
    refused: tuple[str, str] | None = None


def refused_family(
    name: str,
    repositories: Sequence[str],
    signs: Callable[[ModelFiles], Evidence | None],
    *,
    because: str,
    instead: str,
) -> Family:
    """A family that is known and not served."""

    def recognise(files: ModelFiles, _: Asked) -> Outcome | None:
        sign = signs(files)
        if sign is None:
            return None
        return Refused(family=name, reason=f"{sign} (family: {name}): {because}", way_out=instead, evidence=[sign])

    return Family(name=name, repositories=repositories, recognise=recognise, refused=(because, instead))


def architecture(files: ModelFiles, *patterns: str) -> Evidence | None:
    """What config.json says of the class, if that fits one of the patterns."""
    if any(fnmatchcase(files.architecture, pattern) for pattern in patterns):
        return Evidence("config.json", f"architectures = {files.architecture!r}")
    return None


def model_type(files: ModelFiles, *types: str) -> Evidence | None:
    """What config.json says of the type, if it is one of these."""
    return Evidence("config.json", f"model_type = {files.model_type!r}") if files.model_type in types else None


def repository(files: ModelFiles, *patterns: str) -> Evidence | None:
    """The model's name on the hub, if it fits one of the patterns."""
    if any(fnmatchcase(files.repository, pattern) for pattern in patterns):
        return Evidence("the hub", f"the name {files.repository!r}")
    return None


def modules(files: ModelFiles) -> list[Evidence]:
    """What modules.json says, where it is there."""
    return [Evidence("modules.json", " -> ".join(files.chain))] if files.modules is not None else []
