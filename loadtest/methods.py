"""What every method costs and is worth on one small data set: `python -m loadtest.methods DATA --model FOLDER`.

The shipped cross-encoder, and all methods that one chat model with ChatML's markup can serve without training, such as
SmolLM2-135M-Instruct: so they differ in the method alone. Nothing is cached. Calls are the prompts or pairs that reach
an engine, rounds the trips to it that wait for one another.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import WorkItem
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import FusionMode, FusionWishes, RerankRequest, ScoreOptions
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from rerankd.tools.evaluation.datasets import DataSet, Question, files_of_folder, read_data_set
from rerankd.tools.evaluation.measures import measure_main

_CHAT: Final = "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_JUDGE: Final = "Query: {query}\nPassage: {document}\n"
_PASSAGES: Final = "Passages:\n{passages}\nQuery: {query}\n"
# Templates of our own, where none is shipped for a chat model without training.
_TEMPLATES: Final[Mapping[str, str]] = {
    "judge": f"""method = "yes-no"
prompt = ['''{_CHAT.format(user=_JUDGE + "Does the passage answer the query? Answer Yes or No.")}''']
positive = "Yes"
negative = "No"
""",
    "grades": f"""method = "yes-no"
prompt = ['''{_CHAT.format(user=_JUDGE + "How relevant is the passage, from 0 (not at all) to 3 (perfectly)?")}''']
ratings = {{ "0" = 0, "1" = 1, "2" = 2, "3" = 3 }}
""",
    "grade": f"""method = "graded"
prompt = ['''{_CHAT.format(user=_JUDGE + "Grade its relevance from 0 to 10, as <score>7</score>.")}''']
opening = "<score>"
closing = "</score>"
highest = 10
answer_tokens = 16
""",
    "group": f"""method = "groupwise"
chat = '''{_CHAT}'''
user = '''{_PASSAGES}Grade each passage's relevance from 0 to 10, as JSON: {{"[1]": 7, "[2]": 0}}'''
identifiers = "numeric"
highest = 10
answer_tokens = 96
window_words = 800
""",
    "order": f"""method = "generative"
chat = '''{_CHAT}'''
user = '''{_PASSAGES}Write the numbers of all passages, the most relevant first, as [2] > [1].'''
identifiers = "numeric"
answer_tokens = 64
window_words = 800
""",
    "letter": f"""method = "first"
chat = '''{_CHAT}'''
user = '''{_PASSAGES}Write the letter of the most relevant passage, in square brackets, e.g. [B].'''
identifiers = "alphabetical"
window_words = 800
""",
}
_METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "yes-no": {"scorer": "yes-no", "options": {"template": "judge"}},
    "yes-no, expected grade": {"scorer": "yes-no", "options": {"template": "grades"}},
    "first, sliding": {"scorer": "first", "options": {"template": "letter", "window": 10, "stride": 5}},
    "first, tournament": {
        "scorer": "first",
        "options": {"template": "letter", "window": 10, "stride": 5, "schedule": "tournament"},
    },
    "attention": {"scorer": "attention", "options": {"template": "icr-chatml"}},
    "single-elimination": {
        "scorer": "first",
        "options": {"template": "setwise-chatml", "schedule": "single-elimination"},
    },
    "setwise": {"scorer": "first", "options": {"template": "setwise-chatml", "schedule": "setwise", "settle": 5}},
    "generative": {"scorer": "generative", "options": {"template": "order", "window": 10, "stride": 5}},
    "groupwise": {"scorer": "groupwise", "options": {"template": "group"}},
    "graded": {"scorer": "graded", "options": {"template": "grade"}},
    "swiss": {"scorer": "first", "options": {"template": "setwise-chatml", "schedule": "swiss"}},
    "prp-sorting": {
        "scorer": "first",
        "options": {"template": "setwise-chatml", "schedule": "prp-sorting", "settle": 5},
    },
}
_ENGINES: Final[Mapping[str, str]] = {
    "attention": "torch-attention",
    "generative": "torch-generate",
    "groupwise": "torch-generate",
    "graded": "torch-generate",
}
_FIRST: Final = "first stage"
_CROSS_ENCODER: Final = "cross-encoder (shipped)"
_FUSED: Final = "cross-encoder, fused (z-score)"


@dataclass(frozen=True, slots=True)
class Row:
    """A method's quality, and what a query costs on average."""

    method: str
    ndcg: float
    calls: float
    tokens: float
    rounds: float
    seconds: float


class Trips:
    """Counts what goes to engines for the task that asks, and those that it begins: not what a canary asks."""

    def __init__(self) -> None:
        self.calls = self.rounds = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        original = Ticket.run
        counting = ContextVar("counting", default=False)
        counting.set(True)

        async def run(ticket: Ticket[Any, Any], items: list[WorkItem[Any]]) -> Outcome[Any]:
            if counting.get():
                self.calls += len(items)
                self.rounds += 1
            return await original(ticket, items)

        Ticket.run = run  # type: ignore[method-assign, assignment] # an engine does not tell which trip a pass belongs to
        try:
            yield
        finally:
            Ticket.run = original  # type: ignore[method-assign]


def registry(folder: Path, model: Path | None) -> Path:
    """A registry of all methods, with their templates beside it."""
    (folder / "templates").mkdir()
    for name, text in _TEMPLATES.items():
        (folder / "templates" / f"{name}.toml").write_text(text)
    shipped = SHIPPED_REGISTRY.parent.resolve() / "minilm-qa"
    entries: list[Mapping[str, Any]] = [{"name": "shipped", "path": str(shipped)}]
    for name, method in _METHODS.items() if model else ():
        engine = _ENGINES.get(method["scorer"], "torch-causal")
        entries.append(
            {
                "name": name.replace(", ", "-").replace(" ", "-"),
                "path": str(model),
                "engine": engine,
                "engine_options": {"device": "cpu"},
                "max_length": 2048,
                **method,
            }
        )
    path = folder / "registry.toml"
    path.write_text("\n".join(_table(entry) for entry in entries))
    return path


def _table(entry: Mapping[str, Any]) -> str:
    def value(one: object) -> str:
        if isinstance(one, Mapping):
            return "{ " + ", ".join(f"{key} = {value(part)}" for key, part in one.items()) + " }"
        return json.dumps(one)

    return "[[model]]\n" + "".join(f"{key} = {value(one)}\n" for key, one in entry.items())


async def measured(service: RerankService, data: DataSet, name: str, label: str) -> Row:
    """All queries, one after another."""
    orders, trips, tokens = dict[str, list[str]](), Trips(), 0
    started = perf_counter()
    with trips.counted():
        for question in data.ranked:
            result = await service.rerank(_request(data, question, name, fused=label == _FUSED))
            tokens += result.tokens
            orders[question.query_id] = [question.document_ids[one.index] for one in result.results]
    seconds, queries = perf_counter() - started, len(data.ranked)
    ndcg = float(np.mean(measure_main(data.ranked, orders)))
    return Row(label, ndcg, trips.calls / queries, tokens / queries, trips.rounds / queries, seconds / queries)


def _request(data: DataSet, question: Question, model: str, *, fused: bool) -> RerankRequest:
    wishes = FusionWishes(mode=FusionMode.Z_SCORE, scores=list(question.first_scores)) if fused else None
    texts = [data.texts[document] for document in question.document_ids]
    return RerankRequest(query=question.text, documents=texts, model=model, options=ScoreOptions(fusion=wishes))


async def rows(data: DataSet, settings: Settings, methods: Sequence[str]) -> list[Row]:
    """A row for each method, printed as it is measured."""
    found: list[Row] = []

    def tell(row: Row) -> None:
        found.append(row)
        print(line(row), flush=True)

    ranked = {question.query_id: list(question.document_ids) for question in data.ranked}
    tell(Row(_FIRST, float(np.mean(measure_main(data.ranked, ranked))), 0, 0, 0, 0))
    for label in (_CROSS_ENCODER, _FUSED, *methods):
        shipped = label in (_CROSS_ENCODER, _FUSED)
        name = "shipped" if shipped else label.replace(", ", "-").replace(" ", "-")
        # One at a time, so that no two share the cores.
        async with running_service(settings, Silent(), only=[name]) as service:
            await service.model_named(name).settled()
            tell(await measured(service, data, name, label))
    return found


HEADER: Final = "| method | nDCG@10 | calls | tokens | rounds | s |\n|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """A line of the table."""
    costs = f"{row.calls:.0f} | {row.tokens:,.0f} | {row.rounds:.1f} | {row.seconds:.2g}"
    return f"| {row.method} | {row.ndcg:.3f} | {costs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data folder, as of `rerankd eval`")
    parser.add_argument("--model", type=Path, help="a folder of a chat model with ChatML's markup")
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--relevance-level", type=int, default=1)
    parser.add_argument("--methods", nargs="*", choices=_METHODS, metavar="METHOD", help=f"of: {', '.join(_METHODS)}")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    asked = parser.parse_args()
    files = files_of_folder(asked.data, run=None, qrels=None)
    data = read_data_set(files, depth=asked.depth).first(asked.queries).with_level(asked.relevance_level)
    chosen = [] if asked.model is None else asked.methods or list(_METHODS)
    print(f"{data.name}, {len(data.ranked)} queries, the first {asked.depth} candidates of each\n\n{HEADER}")
    with tempfile.TemporaryDirectory() as folder:
        path = registry(Path(folder), asked.model and asked.model.resolve())
        settings = Settings(registry=path, cache_url="none://", request_timeout_s=3600, stuck_after_s=3600)
        found = asyncio.run(rows(data, settings, chosen))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
