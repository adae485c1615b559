"""Adapts a model to a corpus: queries, negatives, training, proof, and only then the folder. The stages of
`rerankd adapt`, each of which a repeated command continues.
"""

import asyncio
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import orjson

from rerankd.config.named_models import served_registry
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.serving.choosing import choose
from rerankd.tools.adapting.candidates import FirstStage, Group, TeacherScores, group_of, is_found
from rerankd.tools.adapting.card import write_card
from rerankd.tools.adapting.clicks import click_lessons, measured_propensities, power_propensities, read_clicks
from rerankd.tools.adapting.lessons import (
    Corpus,
    Lesson,
    data_set,
    judged_lessons,
    read_corpus,
    renumbered,
    split,
    without,
)
from rerankd.tools.adapting.proving import Proof, prove
from rerankd.tools.adapting.sampling import choose_documents
from rerankd.tools.adapting.state import State
from rerankd.tools.adapting.templates import template_lessons
from rerankd.tools.adapting.trainable import Trainable, document_vectors, open_trainable
from rerankd.tools.adapting.training import (
    GROUPS_PER_STEP,
    MARGIN_MSE,
    TEXTS_PER_GROUP,
    Schedule,
    Training,
    seconds_per_step,
)
from rerankd.tools.adapting.writing import QueryWriter, read_examples, written_lesson
from rerankd.tools.evaluation.datasets import DataSet, corpus_file, files_of_folder, read_grades
from rerankd.tools.evaluation.evaluation import SetOptions, read_sets
from rerankd.tools.evaluation.in_process import InProcess
from rerankd.tools.evaluation.journal import Journal
from rerankd.tools.evaluation.scoring import plan_scoring
from rerankd.tools.outputs import check_folder
from rerankd.tools.trec import read_run

LearnFrom = Literal["templates", "endpoint", "judgements", "clicks"]
# What a stage has done, of how much.
OnProgress = Callable[[str, int, int], None]

# Documents that are embedded, for each that is wanted.
_EMBEDDED: Final = 5
# How far the weights go from the start to what was learnt: half way keeps most of both (WiSE-FT, Wortsman et al.
# 2022, arXiv 2109.01903).
SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A chat model that writes queries."""

    url: str
    model: str
    api_key_file: Path | None = None
    examples: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `rerankd adapt` was told. `data` is a data folder, or a corpus file; `model` and `teacher` are names of the
    registry, None for its default model and for no teacher. `steps` None: as many as fit `minutes`.
    """

    data: Path
    output: Path
    learn_from: LearnFrom
    model: str | None = None
    endpoint: Endpoint | None = None
    clicks: Path | None = None
    eta: float = 1.0
    teacher: str | None = None
    held_out: Sequence[Path] = ()
    queries: int = 500
    held_out_queries: int = 200
    depth: int = 100
    loss: str = "softmax"
    minutes: float = 20.0
    steps: int | None = None
    seed: int = 13
    keep: bool = False
    fresh: bool = False

    @property
    def corpus(self) -> Path:
        return self.data if self.data.is_file() else corpus_file(self.data)

    def command(self, *, steps: int) -> str:
        """The command line that makes the same model again."""
        endpoint = asdict(self.endpoint) if self.endpoint else {}
        options = {
            "learn-from": self.learn_from,
            "model": self.model,
            "endpoint": endpoint.get("url"),
            "endpoint-model": endpoint.get("model"),
            "endpoint-key-file": endpoint.get("api_key_file"),
            "examples": endpoint.get("examples"),
            "clicks": self.clicks,
            "eta": self.eta if self.clicks else None,
            "teacher": self.teacher,
            "loss": self.loss,
            "queries": self.queries,
            "held-out-queries": self.held_out_queries,
            "depth": self.depth,
            "steps": steps,
            "seed": self.seed,
        }
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        words += [word for folder in self.held_out for word in ("--held-out", str(folder))]
        return shlex.join(["rerankd", "adapt", str(self.data), str(self.output), *words])

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the result, apart from the contents of files."""
        options = asdict(self)
        for name in ("keep", "fresh", "output"):
            del options[name]
        made = orjson.dumps(options, default=str)
        identity: dict[str, Any] = orjson.loads(made)
        return identity


@dataclass(frozen=True, slots=True)
class Outcome:
    """`folder` is what was written, None if the model is not better."""

    proof: Proof
    folder: Path | None


def check(wanted: Wanted) -> None:
    """Raises `ConfigError` for options that contradict one another, before anything is read."""
    if wanted.learn_from == "endpoint" and wanted.endpoint is None:
        raise ConfigError("--learn-from endpoint needs --endpoint URL and --endpoint-model NAME")
    if wanted.learn_from == "clicks" and wanted.clicks is None:
        raise ConfigError("--learn-from clicks needs --clicks FILE")
    if wanted.learn_from == "clicks" and wanted.loss != "softmax":
        raise ConfigError(f"--loss {wanted.loss}: clicks are weighted without bias in the loss `softmax` alone")
    if wanted.loss == MARGIN_MSE and wanted.teacher is None:
        raise ConfigError(f"--loss {MARGIN_MSE} imitates a teacher; name one with --teacher")
    if wanted.learn_from == "judgements" and not wanted.data.is_dir():
        raise ConfigError(f"--learn-from judgements needs a data folder, and {wanted.data} is none")
    if wanted.output.exists() and (not wanted.output.is_dir() or any(wanted.output.iterdir())):
        raise ConfigError(f"{wanted.output} exists already; name a new folder")
    check_folder("OUTPUT", wanted.output)


def adapt(wanted: Wanted, settings: Settings, on_progress: OnProgress) -> Outcome:
    """Run all stages.

    Raises:
        ConfigError: an input or an option cannot be used, or the model cannot be trained.
    """
    check(wanted)
    spec = _chosen(wanted.model, settings)
    if wanted.teacher is not None:
        served_registry(settings).named(wanted.teacher)  # raises for one that is unknown
    corpus = read_corpus(wanted.corpus)
    held_out = _judged_sets(wanted)
    identity = {**wanted.identity, "base": asyncio.run(InProcess(settings, wanted.model).identity())}
    state = State(wanted.output, inputs=_inputs(wanted), options=identity, fresh=wanted.fresh)
    model = open_trainable(spec, settings, seed=wanted.seed)
    lessons, held_out = _lessons(wanted, corpus, held_out, state, on_progress)
    lessons = [lesson for lesson in lessons if model.reads(lesson.query)]
    teacher = _teacher_scores(wanted, settings, lessons, corpus, state, on_progress)
    groups = [group_of(lesson, corpus, teacher, seed=wanted.seed) for lesson in lessons]
    groups = [group for group in groups if group.negatives]
    if not groups:
        raise ConfigError("no query that the model can read has a negative; give more documents, or a milder teacher")
    schedule = _train(model, groups, wanted, state, on_progress)
    folder = state.path("model")
    model.settle(SHARE)
    shutil.rmtree(folder, ignore_errors=True)
    said = model.write(folder)
    facts = {**_facts(wanted, lessons, groups, schedule), **said}
    proof = _prove(wanted, settings, spec, folder, held_out, state, on_progress)
    write_card(
        folder,
        proof,
        base=spec.name,
        kind=model.name,
        output=wanted.output,
        facts=facts,
        command=wanted.command(steps=schedule.steps),
    )
    if not (proof.is_better or wanted.keep):
        return Outcome(proof, None)
    if wanted.output.is_dir():
        wanted.output.rmdir()
    folder.replace(wanted.output)
    state.remove()
    return Outcome(proof, wanted.output)


def _chosen(model: str | None, settings: Settings) -> ModelSpec:
    spec = served_registry(settings).named(model)
    if spec.stages or not spec.path:
        raise ConfigError(f"{spec.name} has no weights of its own; name a model with a path")
    return choose(spec, settings)


def _inputs(wanted: Wanted) -> list[Path]:
    """The files that are read, apart from the model's."""
    files = [wanted.corpus]
    if wanted.learn_from == "judgements":
        of_folder = files_of_folder(wanted.data, run=None, qrels=None)
        files += [of_folder.queries, of_folder.qrels, *([of_folder.run] if of_folder.run else [])]
    for folder in wanted.held_out:
        of_folder = files_of_folder(folder, run=None, qrels=None)
        files += [of_folder.corpus, of_folder.queries, of_folder.qrels, *([of_folder.run] if of_folder.run else [])]
    examples = wanted.endpoint.examples if wanted.endpoint else None
    return files + [path for path in (wanted.clicks, examples) if path is not None]


def _judged_sets(wanted: Wanted) -> list[DataSet]:
    if not wanted.held_out:
        return []
    options = SetOptions(
        folders=wanted.held_out,
        run=None,
        qrels=None,
        corpus=None,
        topics=None,
        queries=wanted.held_out_queries,
        levels=(),
    )
    sets = read_sets(options, depth=wanted.depth)
    without_order = [one.name for one in sets if not one.ranked]
    if without_order:
        raise ConfigError(f"--held-out {', '.join(without_order)}: no candidates with a relevant one to measure")
    return sets


def _lessons(
    wanted: Wanted, corpus: Corpus, held_out: list[DataSet], state: State, on_progress: OnProgress
) -> tuple[list[Lesson], list[DataSet]]:
    """What is learnt from, with candidates, and the sets of the proof."""
    lessons = without(_all_lessons(wanted, corpus, state, on_progress), held_out)
    on_progress("finding candidates", 0, 1)
    lessons = _with_candidates(wanted, lessons, corpus)
    on_progress("finding candidates", 1, 1)
    if wanted.learn_from in ("templates", "endpoint"):
        lessons = [lesson for lesson in lessons if is_found(lesson)]
    if held_out:
        learnt = lessons
    else:
        learnt, kept = split(lessons, seed=wanted.seed, most_held_out=wanted.held_out_queries)
        held_out = [data_set(kept, corpus, name="held-out queries")]
    if not learnt:
        raise ConfigError("no query is left to learn from; docs/adapting.md says what is left out")
    state.path("queries.jsonl").write_bytes(
        b"".join(orjson.dumps({"query": one.query, "gains": one.gains}) + b"\n" for one in learnt)
    )
    return learnt[: wanted.queries], held_out


def _all_lessons(wanted: Wanted, corpus: Corpus, state: State, on_progress: OnProgress) -> list[Lesson]:
    if wanted.learn_from == "judgements":
        files = files_of_folder(wanted.data, run=None, qrels=None)
        return judged_lessons(read_grades(files.qrels), files.queries, corpus)
    if wanted.clicks is not None and wanted.learn_from == "clicks":
        showings = read_clicks(wanted.clicks, corpus)
        ranks = max(len(showing.results) for showing in showings)
        measured = any(showing.shuffled for showing in showings)
        propensities = measured_propensities(showings) if measured else power_propensities(ranks, eta=wanted.eta)
        return click_lessons(showings, propensities)
    chosen = _documents(wanted, corpus, state, on_progress)
    if wanted.endpoint is None:
        return template_lessons(chosen, corpus, seed=wanted.seed)
    return _written(wanted.endpoint, chosen, corpus, state, on_progress)


def _documents(wanted: Wanted, corpus: Corpus, state: State, on_progress: OnProgress) -> list[str]:
    """Ids of the documents to make queries of; about a fifth more where queries are held out from among them."""
    count = wanted.queries if wanted.held_out else wanted.queries + wanted.held_out_queries
    ids = [name for name, document in corpus.items() if document.text.strip()]
    if count >= len(ids):
        return ids
    rng = np.random.default_rng(wanted.seed)
    ids = [ids[place] for place in np.sort(rng.permutation(len(ids))[: _EMBEDDED * count])]
    on_progress("embedding documents", 0, len(ids))
    known = state.path("vectors.npy")
    if not known.exists():
        vectors = document_vectors([corpus[name].full_text for name in ids])
        np.save(state.path("vectors.unfinished.npy"), vectors)
        state.path("vectors.unfinished.npy").replace(known)
    on_progress("embedding documents", len(ids), len(ids))
    return [ids[place] for place in choose_documents(np.load(known), count, seed=wanted.seed)]


def _written(
    endpoint: Endpoint, document_ids: Sequence[str], corpus: Corpus, state: State, on_progress: OnProgress
) -> list[Lesson]:
    """The endpoint's queries; those that an interrupted run has got are kept."""
    path = state.path("written.jsonl")
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    written: dict[str, str] = dict(orjson.loads(line) for line in whole)
    path.write_bytes(b"".join(whole))
    examples = read_examples(endpoint.examples)
    writer = QueryWriter(endpoint.url, endpoint.model, api_key_file=endpoint.api_key_file, examples=examples)

    async def write() -> None:
        try:
            with path.open("ab") as file:
                async for name, query in writer.write([one for one in document_ids if one not in written], corpus):
                    written[name] = query
                    file.write(orjson.dumps([name, query], option=orjson.OPT_APPEND_NEWLINE))
                    file.flush()
                    on_progress("writing queries", len(written), len(document_ids))
        finally:
            await writer.close()

    asyncio.run(write())
    lessons = [written_lesson(name, written[name]) for name in document_ids if written[name]]
    if not lessons:
        raise ConfigError(f"--endpoint wrote no usable query for {len(document_ids)} documents; try another model")
    return renumbered(lessons, prefix="written-")


def _with_candidates(wanted: Wanted, lessons: Sequence[Lesson], corpus: Corpus) -> list[Lesson]:
    """Those of the folder's run for judged queries that it has; BM25's for all others."""
    runs: dict[str, Sequence[str]] = {}
    if wanted.learn_from == "judgements" and (run := files_of_folder(wanted.data, run=None, qrels=None).run):
        runs = {found.query_id: found.document_ids for found in read_run(run, depth=wanted.depth)}
    first_stage = FirstStage(corpus)
    return [
        first_stage.with_candidates(lesson, depth=wanted.depth)
        if lesson.query_id not in runs
        else lesson.with_candidates([name for name in runs[lesson.query_id] if name in corpus])
        for lesson in lessons
    ]


def _teacher_scores(
    wanted: Wanted, settings: Settings, lessons: Sequence[Lesson], corpus: Corpus, state: State, on_progress: OnProgress
) -> TeacherScores | None:
    if wanted.teacher is None:
        return None
    return asyncio.run(_taught(InProcess(settings, wanted.teacher), lessons, corpus, state, on_progress))


async def _taught(
    teacher: InProcess, lessons: Sequence[Lesson], corpus: Corpus, state: State, on_progress: OnProgress
) -> TeacherScores:
    """The teacher's raw scores of all candidates and relevant documents, by the documents' own ids."""
    asked = [
        lesson.with_candidates([*lesson.gains, *(c for c in lesson.candidates if c not in lesson.gains)])
        for lesson in lessons
    ]
    questions = data_set(asked, corpus, name="queries to learn from")
    with Journal(state.path("teacher.jsonl"), fresh=False) as journal:
        scoring = await plan_scoring([teacher], [questions], journal, max_tokens_per_doc=None)
        done = scoring.done
        async for _work in scoring.run():
            done += 1
            on_progress("asking the teacher", done, scoring.total)
        answers = scoring.rankings()[teacher.name][questions.name]
    return {
        lesson.query_id: {
            lesson.candidates[place]: value
            for place, value in zip(answers[lesson.query_id].order, answers[lesson.query_id].values, strict=True)
        }
        for lesson in asked
    }


def _train(
    model: Trainable, groups: Sequence[Group], wanted: Wanted, state: State, on_progress: OnProgress
) -> Schedule:
    schedule = Schedule(steps=1, seed=wanted.seed, loss=wanted.loss)
    steps = wanted.steps or state.steps
    if steps is None:
        on_progress("measuring a step", 0, 1)
        steps = max(1, int(60 * wanted.minutes / seconds_per_step(model, groups, schedule)))
        on_progress("measuring a step", 1, 1)
        state.plan(steps)
    schedule = Schedule(steps=steps, seed=wanted.seed, loss=wanted.loss)
    training = Training(model, groups, schedule, state.path("checkpoint.pt"))
    training.run(lambda step, _loss: on_progress("training", step, steps))
    return schedule


def _prove(
    wanted: Wanted,
    settings: Settings,
    spec: ModelSpec,
    folder: Path,
    held_out: Sequence[DataSet],
    state: State,
    on_progress: OnProgress,
) -> Proof:
    name = f"{spec.name}-adapted"
    adapted = settings.model_copy(update={"model": (str(folder),), "model_name": (name,)})
    with Journal(state.path("held-out.jsonl"), fresh=False) as journal:
        return asyncio.run(
            prove(
                InProcess(settings, wanted.model),
                InProcess(adapted, name),
                held_out,
                journal,
                depth=wanted.depth,
                details={"seed": wanted.seed},
                on_answer=partial(on_progress, "proving"),
            )
        )


def _facts(wanted: Wanted, lessons: Sequence[Lesson], groups: Sequence[Group], schedule: Schedule) -> dict[str, object]:
    relevant, negatives = (sum(len(getattr(group, name)) for group in groups) for name in ("relevant", "negatives"))
    source: dict[LearnFrom, str] = {
        "templates": "made of the documents by templates",
        "endpoint": f"written by {wanted.endpoint.model if wanted.endpoint else ''}",
        "judgements": "with the user's judgements",
        "clicks": "with clicks, weighted by inverse propensity",
    }
    mined = f"those that {wanted.teacher} scores lower" if wanted.teacher else "from the tail of the candidates"
    return {
        "corpus": wanted.corpus.name,
        "queries": f"{len(lessons):,}, {source[wanted.learn_from]}",
        "relevant documents": f"{relevant:,}",
        "negatives": f"{negatives:,}, {mined}",
        "loss": schedule.loss,
        "steps": f"{schedule.steps:,} of {GROUPS_PER_STEP} queries with {TEXTS_PER_GROUP} documents each",
        "share of the change that is kept": SHARE,
        "seed": schedule.seed,
    }
