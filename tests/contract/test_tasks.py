"""What scorers and engines agree on: every task is run by some engine, and every other engine is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines import ENGINES, load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.recognition.recognised import TASK_ENGINES
from rerankd.scorers.remote_apis import LIST_APIS
from rerankd.tasks.attend import Attend, AttendedPrompt
from rerankd.tasks.base import Task
from rerankd.tasks.classify import Classify
from rerankd.tasks.embed import Embed, EncodedText
from rerankd.tasks.embed_tokens import EmbedTokens, ExpandedText
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.generate import Chat, Conversation, Generate, Message, Prompt
from rerankd.tasks.prune import PrunablePair, Prune
from rerankd.tasks.rank import Rank, TextPair
from rerankd.tasks.read_images import IllustratedEncoding, ReadImages, SeenImage
from rerankd.tasks.read_tokens import ReadTokens
from rerankd.tasks.read_vectors import MarkedPrompt, ReadVectors
from rerankd.tasks.reason import Reason
from rerankd.tasks.sample import Sample, SampleChat, Sampling
from rerankd.tasks.weigh_words import WeighWords

_IDS = np.array([5, 6, 7], dtype=np.int64)
_OTHER_IDS = np.array([5, 6], dtype=np.int64)
_SPANS = np.array([[0, 2]], dtype=np.int64)


def _no_patches(_image: bytes, _digest: bytes, _owner: str) -> FloatArray:
    return np.zeros((4, 2), dtype=np.float32)


_CONVERSATIONS = [
    Conversation((Message("user", "eight by"),)),
    Conversation((Message("system", "eight by"),)),
    Conversation((Message("user", "eight "), Message("user", "by"))),
]


# Each task with payloads that differ in one thing only, and what each costs.
TASKS: dict[str, tuple[Task[Any], list[Any], list[int]]] = {
    "classify": (Classify(outputs=1), [Encoding(_IDS, 1), Encoding(_IDS, 2), Encoding(_OTHER_IDS, 1)], [3, 3, 2]),
    "read_tokens": (ReadTokens((1, 2)), [Encoding(_IDS, 1), Encoding(_IDS, 2), Encoding(_OTHER_IDS, 1)], [3, 3, 2]),
    "read_images": (
        ReadImages((1, 2)),
        [
            Encoding(_IDS, 1),
            *(IllustratedEncoding(_IDS, 1, (SeenImage(name, 2, 2, b"", "", _no_patches),)) for name in (b"a", b"b")),
        ],
        [3, 3, 3],
    ),
    "prune": (Prune(), [PrunablePair(_IDS, 1), PrunablePair(_IDS, 2), PrunablePair(_OTHER_IDS, 1)], [3, 3, 2]),
    "attend": (
        Attend(),
        [
            AttendedPrompt(_IDS, _OTHER_IDS, _IDS, _SPANS),
            AttendedPrompt(_IDS, _IDS, _OTHER_IDS, _SPANS),
            AttendedPrompt(_IDS, _OTHER_IDS, _IDS, _SPANS[:0]),
        ],
        [8, 8, 8],
    ),
    "embed": (Embed(outputs=1), [EncodedText(_IDS, 3), EncodedText(_IDS, 3, 1), EncodedText(_OTHER_IDS, 2)], [3, 3, 2]),
    "embed_tokens": (
        EmbedTokens(),
        [ExpandedText(_IDS, 3), ExpandedText(_IDS, 3, 1), ExpandedText(_OTHER_IDS, 2)],
        [3, 3, 2],
    ),
    "weigh_words": (WeighWords(), [Encoding(_IDS, 3), Encoding(_OTHER_IDS, 2)], [3, 2]),
    "generate": (Generate(decode=str), [Prompt(_IDS, 9), Prompt(_IDS, 8), Prompt(_OTHER_IDS, 9)], [3, 3, 2]),
    "reason": (
        Reason((1, 2), endings=("yes",), decode=str, close=lambda ids, _: ids),
        [Prompt(_IDS, 9), Prompt(_IDS, 8), Prompt(_OTHER_IDS, 9)],
        [3, 3, 2],
    ),
    "read_vectors": (
        ReadVectors(),
        [MarkedPrompt(_IDS, _OTHER_IDS), MarkedPrompt(_IDS, _IDS), MarkedPrompt(_OTHER_IDS, _OTHER_IDS)],
        [3, 3, 2],
    ),
    "sample": (
        Sample(decode=str, sampling=Sampling()),
        [Prompt(_IDS, 9), Prompt(_IDS, 8), Prompt(_OTHER_IDS, 9)],
        [3, 3, 2],
    ),
    "chat": (Chat(), _CONVERSATIONS, [2, 2, 2]),
    "sample_chat": (SampleChat(Sampling(), logprobs=False), _CONVERSATIONS, [2, 2, 2]),
    "rank": (
        Rank(LIST_APIS["cohere"]),
        [TextPair("ab", "c"), TextPair("a", "bc"), TextPair("a", "b", "c"), TextPair("a", "four and seven")],
        [2, 2, 3, 5],
    ),
}


def test_engines_run_tasks_that_are_known_and_each_task_is_run() -> None:
    assert {task for kind in ENGINES.values() for task in kind.tasks} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_tells_its_payloads_apart_and_counts_them(name: str) -> None:
    task, payloads, costs = TASKS[name]
    assert task.name == name
    identities = task.identities(payloads)
    assert len(set(identities)) == len(payloads)
    assert task.identities(payloads) == identities
    assert task.costs(payloads) == costs


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_does_not_run_a_task_is_refused_with_those_that_do(engine: str, task: str) -> None:
    if task in ENGINES[engine].tasks:
        return
    able = ", ".join(name for name, kind in ENGINES.items() if task in kind.tasks)
    with pytest.raises(ConfigError, match=f"the task '{task}', and '{engine}' runs .*; set engine to one of: {able}$"):
        load_engine(engine, EngineSpec(folder=Path(), pad_id=0, task=TASKS[task][0]))


@pytest.mark.parametrize("task", TASK_ENGINES)
def test_recognition_proposes_engines_that_run_the_task(task: Any) -> None:
    assert set(TASK_ENGINES[task]) == {name for name, kind in ENGINES.items() if task in kind.tasks}
