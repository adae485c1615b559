"""One evaluation, as the command line describes it: sets, targets, the questions to ask, and the report's files."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

from rerankd import __version__
from rerankd.concurrency.worker import available_cores
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.biencoder import BiEncoder
from rerankd.tools.evaluation.datasets import DataSet, Files, files_of_folder, read_data_set
from rerankd.tools.evaluation.fusing import Choice, with_fusion
from rerankd.tools.evaluation.in_process import InProcess
from rerankd.tools.evaluation.journal import Journal
from rerankd.tools.evaluation.report import Depths, Report, build_report, check_baseline
from rerankd.tools.evaluation.scoring import Scoring, plan_scoring
from rerankd.tools.evaluation.served import Served
from rerankd.tools.evaluation.tables import markdown
from rerankd.tools.evaluation.targets import FIRST_STAGE, Target
from rerankd.tools.outputs import check_files

_PICTURES = "rerankd.tools.evaluation.pictures"  # needs matplotlib, which is only needed for a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    """The sets: data folders, with `run` and `qrels` as names of their files; or the four files of one set."""

    folders: Sequence[Path]
    run: str | None
    qrels: str | None
    corpus: Path | None
    topics: Path | None
    queries: int | None
    levels: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """The targets; by default the registry's default model. `deadlines` are milliseconds, as `50,100`."""

    models: Sequence[str]
    urls: Sequence[str]
    biencoders: Sequence[Path]
    api_key: str | None
    deadlines: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How targets are compared; `depths` are those of the depth curve, as `10,50,100`. With `fuse` each
    is compared fused with the first stage, too.
    """

    baseline: str
    depth: int
    depths: str
    max_tokens_per_doc: int | None
    fuse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files to write. The journal, with which an evaluation can be resumed, is beside `json`."""

    json: Path | None
    markdown: Path | None
    plot: Path | None

    def journal(self, *, fresh: bool) -> Journal:
        return Journal(self.json.with_suffix(".state.jsonl") if self.json else None, fresh=fresh)

    def prepare(self) -> None:
        """Check the files now rather than after hours of scoring.

        Raises:
            ConfigError: one of the files cannot be written.
            ModuleNotFoundError: a picture is wanted, and matplotlib is not installed.
        """
        if self.plot is not None:
            import_module(_PICTURES)
        check_files({"--output": self.json, "--markdown": self.markdown, "--plot": self.plot})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    data_sets: Sequence[DataSet]
    targets: Sequence[Target]
    baseline: str
    depths: Depths
    max_tokens_per_doc: int | None
    fuse: bool = False

    async def scoring(self, journal: Journal) -> Scoring:
        """The questions to ask.

        Raises:
            ConfigError: the baseline is not among the targets, or a target is not there.
        """
        check_baseline(self.baseline, [FIRST_STAGE, *(target.name for target in self.targets)])
        return await plan_scoring(self.targets, self.data_sets, journal, max_tokens_per_doc=self.max_tokens_per_doc)

    def report(self, scoring: Scoring) -> Report:
        rankings, fusions = scoring.rankings(), list[Choice]()
        if self.fuse:
            rankings, fusions = with_fusion(rankings, self.data_sets, depth=self.depths.main)
        return build_report(
            self.data_sets,
            rankings,
            baseline=self.baseline,
            depths=self.depths,
            details=self._details(),
            fusions=fusions,
        )

    def _details(self) -> dict[str, Any]:
        return {
            "rerankd": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {available_cores()} cores, {platform.system()}",
            "max_tokens_per_doc": self.max_tokens_per_doc or "what the model reads",
        }


def prepare(sets: SetOptions, targets: TargetOptions, comparison: Comparison, settings: Settings) -> Evaluation:
    """Read the sets and find the targets.

    Raises:
        ConfigError: an option or a file is unusable; the message says which.
    """
    if comparison.fuse and targets.urls:
        raise ConfigError("--fuse needs raw scores, which a server does not tell; name the model with --model")
    depths = read_depths(comparison.depth, comparison.depths)
    return Evaluation(
        data_sets=read_sets(sets, depth=depths.deepest),
        targets=choose_targets(targets, settings),
        baseline=comparison.baseline,
        depths=depths,
        max_tokens_per_doc=comparison.max_tokens_per_doc,
        fuse=comparison.fuse,
    )


def read_depths(depth: int, curve: str) -> Depths:
    """Read the depths of a curve, as `10,50,100`.

    Raises:
        ConfigError: one of them is no number from 1 on.
    """
    depths = [part.strip() for part in curve.split(",") if part.strip()]
    wrong = [part for part in depths if not part.isdigit() or int(part) < 1]
    if wrong:
        raise ConfigError(f"--depths {curve!r}: {wrong[0]!r} is not a number of candidates; write 10,50,100")
    return Depths(main=depth, curve=sorted({int(part) for part in depths}))


def read_deadlines(deadlines: str) -> list[float]:
    """Read milliseconds, as `50,100`, as seconds.

    Raises:
        ConfigError: one of them is not a number above 0.
    """
    parts = [part.strip() for part in deadlines.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdigit() or int(part) < 1]
    if wrong:
        raise ConfigError(f"--deadline {deadlines!r}: {wrong[0]!r} is not a number of milliseconds; write 50,100")
    return [int(part) / 1000 for part in parts]


def read_sets(options: SetOptions, *, depth: int) -> list[DataSet]:
    """Read every set that the options name.

    Raises:
        ConfigError: the options contradict one another, or a file is missing or malformed.
    """
    default, by_set = _levels(options.levels)
    files = _distinct(_files(options))
    unknown = set(by_set) - {of_set.name for of_set in files}
    if unknown:
        raise ConfigError(
            f"--relevance-level names {', '.join(sorted(unknown))}, which is not a set of this evaluation"
        )
    return [
        read_data_set(of_set, depth=depth).first(options.queries).with_level(by_set.get(of_set.name, default))
        for of_set in files
    ]


def choose_targets(options: TargetOptions, settings: Settings) -> list[Target]:
    """The targets, without duplicates.

    Raises:
        ConfigError: an unknown model, no URL, or no bi-encoder's folder.
    """
    named_elsewhere = options.urls or options.biencoders
    models: Sequence[str | None] = options.models or ([] if named_elsewhere else [None])
    deadlines = read_deadlines(options.deadlines)
    targets: list[Target] = [
        *(InProcess(settings, model) for model in models),
        *(InProcess(settings, model, deadline_s=deadline_s) for model in models for deadline_s in deadlines),
        *(Served(url, api_key=options.api_key) for url in options.urls),
        *(BiEncoder(folder) for folder in options.biencoders),
    ]
    return list({target.name: target for target in targets}.values())


def save_report(report: Report, outputs: Outputs) -> None:
    if outputs.json is not None:
        outputs.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if outputs.markdown is not None:
        outputs.markdown.write_text(markdown(report), encoding="utf-8")
    if outputs.plot is not None:
        import_module(_PICTURES).draw(report, outputs.plot)


def _files(options: SetOptions) -> list[Files]:
    loose = options.corpus is not None or options.topics is not None
    if options.folders and loose:
        raise ConfigError("give data folders, or --corpus and --topics with a --run and --qrels of files; not both")
    if options.folders:
        return [files_of_folder(folder, run=options.run, qrels=options.qrels) for folder in options.folders]
    if options.corpus is None or options.topics is None or options.qrels is None:
        raise ConfigError("give a data folder, or all of --run, --qrels, --corpus and --topics as files")
    run = Path(options.run) if options.run else None
    name = (run or Path(options.qrels)).name.split(".")[0]
    return [Files(name=name, corpus=options.corpus, queries=options.topics, qrels=Path(options.qrels), run=run)]


def _distinct(files: Sequence[Files]) -> Sequence[Files]:
    names = [of_set.name for of_set in files]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(
            f"two data folders are called {', '.join(sorted(twice))}; a report cannot tell them apart: rename one"
        )
    return files


def _levels(levels: Sequence[str]) -> tuple[int, dict[str, int]]:
    """`2` for all sets, `dl19=2` for one of them."""
    default, by_set = 1, {}
    for level in levels:
        name, _, grade = level.rpartition("=")
        if not grade.isdigit() or int(grade) < 1:
            raise ConfigError(f"--relevance-level {level!r}: write a grade from 1 on, or set=grade")
        if name:
            by_set[name] = int(grade)
        else:
            default = int(grade)
    return default, by_set
