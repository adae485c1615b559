"""Models are added, replaced, removed, unloaded and loaded again while requests run. No files, engines or HTTP."""

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from rerankd.concurrency.sharing import SharedWorker
from rerankd.config.registry import ModelSpec, Registry
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Scores, Terms
from rerankd.errors import ConfigError, InvalidRequest, ModelNotFound, ModelNotReady
from rerankd.pipeline.stage import Stage
from rerankd.scorers.ranking import identity
from rerankd.serving.hosting import Changes, ModelHost
from rerankd.serving.model import Canary, LoadedModel, Status
from rerankd.serving.service import Limits, RerankService
from rerankd.serving.version import Opening
from tests.fakes import IMAGES, RecordingObserver, RecordingStage


@dataclass
class _Stage:
    """Gives every document the number of its version, once `gate` is open."""

    number: int
    gate: asyncio.Event

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        await self.gate.wait()
        stage = RecordingStage()
        stage.values = {document: float(self.number) for document in documents}
        return await stage.score(query, documents, options)


@dataclass
class _Source:
    """A registry in memory. The files of a model are a number, which is what its version scores."""

    models: list[dict[str, Any]]
    default: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    gone: int = 0
    released: list[str] = field(default_factory=list)
    scoring: asyncio.Event = field(default_factory=asyncio.Event)
    loading: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.scoring.set()
        self.loading.set()

    def registry(self) -> Registry:
        tables = [{**({} if "stages" in model else {"path": model["name"]}), **model} for model in self.models]
        try:
            return Registry.model_validate({"default": self.default, "model": tables})
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def marks(self, spec: ModelSpec) -> Hashable:
        return self.files.get(spec.path)

    def expect(self, specs: Sequence[ModelSpec]) -> None:
        self.expected += [spec.name for spec in specs]

    def release(self) -> None:
        self.gone += 1

    def opening(self, spec: ModelSpec, *, wanted: bool) -> Opening:
        if wanted:
            self.wanted.append(spec.name)

        @asynccontextmanager
        async def open_() -> AsyncIterator[LoadedModel]:
            self.opened.append(spec.name)
            await self.loading.wait()
            if spec.name in self.broken:
                raise self.broken[spec.name]
            number = self.files.get(spec.path, 0)
            stage: Stage = _Stage(number, self.scoring)
            try:
                yield LoadedModel(
                    stage=stage,
                    direct=stage,
                    activation=identity,
                    canary=Canary(pairs=(), tolerance=None),
                    details={"version": number},
                )
            finally:
                self.released.append(f"{spec.name} {number}")

        return open_


@dataclass
class _World:
    source: _Source
    host: ModelHost
    service: RerankService
    observer: RecordingObserver

    async def score(self, model: str | None = None, *, within_s: float = 10.0) -> float:
        return (await self.result(model, within_s=within_s)).results[0].value

    async def result(self, model: str | None = None, *, within_s: float = 10.0) -> RerankResult:
        options = ScoreOptions(terms=Terms(deadline=self.service.clock() + within_s))
        return await self.service.rerank(RerankRequest(query="q", documents=["d"], model=model, options=options))

    async def started(self, model: str | None = None) -> "asyncio.Task[float]":
        """A request that scores and has not ended."""
        usage = self.service.model_named(model).usage
        assert usage is not None
        before, task = usage.requests, asyncio.create_task(self.score(model))
        await _until(lambda: usage.requests > before)
        return task

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.service.models]


async def _until(happened: Any) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.001)


@asynccontextmanager
async def _world(*models: dict[str, Any], settled: bool = True, **source_fields: Any) -> AsyncIterator[_World]:
    source, observer = _Source(list(models), **source_fields), RecordingObserver()
    limits = Limits(max_documents=10, max_query_chars=100, images=IMAGES, request_timeout_s=30, loading_timeout_s=0)
    with SharedWorker.open(name="t", threads=1) as worker:
        host = ModelHost(source, source.registry(), fallback=None, observer=observer, tokenizing=worker, drain_s=30)
        async with host.running():
            service = RerankService(host.catalog, limits=limits, observer=observer, background=worker)
            if settled:
                await asyncio.gather(*(model.settled() for model in service.models), return_exceptions=True)
            yield _World(source, host, service, observer)


async def test_a_registry_that_did_not_change_changes_nothing() -> None:
    async with _world({"name": "a"}, {"name": "b"}) as world:
        assert await world.host.reload() == Changes(default="a")
        assert (world.source.opened, world.source.released, world.source.expected) == (["a", "b"], [], [])


async def test_new_files_serve_new_requests_and_the_old_ones_finish_where_they_began() -> None:
    async with _world({"name": "a"}) as world:
        world.source.scoring.clear()
        old = await world.started()
        world.source.files["a"] = 7
        assert await world.host.reload() == Changes(replaced=("a",), default="a")
        assert world.source.expected == ["a"]
        new = await world.started()
        assert world.source.released == [], "a request still runs on it"
        world.source.scoring.set()
        assert [await old, await new] == [0, 7]
        await _until(lambda: (world.source.released, world.source.gone) == (["a 0"], 1))
        assert await world.score() == 7
        assert world.service.model_named("a").details == {"version": 7}


async def test_queries_of_one_call_are_all_scored_by_one_version() -> None:
    async with _world({"name": "a"}, {"name": "b"}) as world:
        world.source.scoring.clear()
        requests = [RerankRequest(query=str(number), documents=["d"], model="a") for number in range(300)]
        call = asyncio.create_task(world.service.rerank_all(requests))
        usage = world.service.model_named("a").usage
        assert usage is not None
        await _until(lambda: usage.requests > 0)
        world.source.models = [{"name": "b"}]
        await world.host.reload()
        world.source.scoring.set()
        assert {result.results[0].value for result in await call} == {0}
        with pytest.raises(ModelNotFound):
            await world.score("a")


async def test_a_reload_names_models_of_which_only_a_fallback_or_an_alias_changed() -> None:
    async with _world({"name": "a"}, {"name": "b"}, {"name": "c", "aliases": ["x"]}) as world:
        world.source.models = [{"name": "a", "fallback": "b"}, {"name": "b"}, {"name": "c", "aliases": ["y"]}]
        assert await world.host.reload() == Changes(changed=("a", "c"), default="a")
        assert await world.host.reload() == Changes(default="a")
        assert world.source.opened == ["a", "b", "c"]


async def test_a_reload_names_a_cascade_that_has_other_stages() -> None:
    async with _world({"name": "a"}, {"name": "b"}, {"name": "both", "stages": ["a:2", "b"]}) as world:
        world.source.models[-1] = {"name": "both", "stages": ["b:2", "a"]}
        assert await world.host.reload() == Changes(replaced=("both",), default="a")
        assert world.source.opened == ["a", "b"]


@pytest.mark.parametrize("change", [{"max_length": 64}, {"batch_pairs": 3}, {"revision": "2"}, {"path": "elsewhere"}])
async def test_an_entry_with_other_options_is_loaded_again(change: dict[str, Any]) -> None:
    async with _world({"name": "a"}) as world:
        world.source.models = [{"name": "a", **change}]
        assert (await world.host.reload()).replaced == ("a",)
        await _until(lambda: world.source.released == ["a 0"])


async def test_models_are_added_and_removed_and_names_and_the_default_follow() -> None:
    async with _world({"name": "a", "aliases": ["x"]}, {"name": "b"}, files={"a": 1, "b": 2, "c": 3}) as world:
        world.source.models = [{"name": "c", "aliases": ["x"]}, {"name": "b", "aliases": ["y"]}]
        world.source.default = "y"
        assert await world.host.reload() == Changes(added=("c",), removed=("a",), changed=("b",), default="y")
        assert [await world.score(name) for name in (None, "b", "c", "x", "y")] == [2, 2, 3, 3, 2]
        assert world.names == ["c", "b"]
        assert world.source.opened == ["a", "b", "c"], "only a name of b changed"
        with pytest.raises(ModelNotFound, match="known: c, b"):
            await world.score("a")
        await _until(lambda: world.source.released == ["a 1"])
        assert world.observer.named("model_removed") == [{"model": "a"}]


async def test_a_registry_with_an_error_changes_nothing() -> None:
    async with _world({"name": "a"}) as world:
        world.source.models = [{"name": "b"}, {"name": "b"}]
        with pytest.raises(ConfigError, match="two models have this name"):
            await world.host.reload()
        assert (world.names, await world.score("a")) == (["a"], 0)


async def test_one_model_that_cannot_be_loaded_keeps_all_as_it_was_and_every_one_is_named() -> None:
    async with _world({"name": "a"}, {"name": "b"}) as world:
        world.source.files = {"a": 5, "b": 5, "c": 5}
        world.source.broken = {"b": ConfigError("no weights"), "c": OSError("a bug")}
        world.source.models += [{"name": "c"}, {"name": "d"}]
        with pytest.raises(ConfigError, match=r"^model b: no weights; model c: OSError") as refused:
            await world.host.reload()
        assert "model a" not in str(refused.value)
        assert (world.names, await world.score("a"), await world.score("b")) == (["a", "b"], 0, 0)
        assert [model.status for model in world.service.models] == [Status.READY] * 2
        await _until(lambda: sorted(world.source.released) == ["a 5", "d 0"])

        world.source.broken = {}
        changes = await world.host.reload()
        assert (changes.added, changes.replaced) == (("c", "d"), ("a", "b"))
        assert [await world.score(name) for name in "abcd"] == [5, 5, 5, 0]


async def test_a_model_that_could_not_be_loaded_is_tried_again_and_holds_up_nothing() -> None:
    async with _world({"name": "a"}, {"name": "b"}, broken={"b": ConfigError("no GPU")}) as world:
        assert world.service.model_named("b").reason == "no GPU"
        world.source.models.append({"name": "c"})
        assert (await world.host.reload()).added == ("c",)
        await _until(lambda: world.source.opened == ["a", "b", "c", "b"])
        assert world.service.model_named("b").status is Status.FAILED
        world.source.broken = {}
        await world.host.reload()
        await _until(lambda: world.service.model_named("b").status is Status.READY)


async def test_a_cascade_follows_its_members_whatever_becomes_of_them() -> None:
    both = {"name": "both", "stages": ["first:5", "b"]}
    async with _world({"name": "a", "aliases": ["first"]}, {"name": "b"}, both) as world:
        cascade = world.service.model_named("both")
        assert cascade.status is Status.READY
        world.source.scoring.clear()
        under_way = await world.started("both")
        world.source.models = [{"name": "c", "aliases": ["first"]}, {"name": "b"}, both]
        world.source.files = {"b": 9}
        assert (await world.host.reload()).removed == ("a",)
        world.source.scoring.set()
        assert (await under_way) is not None, "it finishes with the members that it began with"
        await _until(lambda: sorted(world.source.released) == ["a 0", "b 0"])
        assert (await world.result("both")).scores.placed_by is not None
        world.service.model_named("b").fail("out of order")
        assert (cascade.status, cascade.reason) == (
            Status.FAILED,
            "a member of this cascade is not ready: model 'b': out of order",
        )
        world.source.models = [{"name": "c"}, {"name": "b", "stages": ["c"]}]
        await world.host.reload()
        assert world.names == ["c", "b"]
        assert (await world.result("b")).scorer == "cascade", "what was a model is a cascade now"


async def test_an_idle_model_is_unloaded_and_comes_back_once_for_all_that_wait() -> None:
    async with _world({"name": "a", "idle_unload_s": 0.05}, {"name": "both", "stages": ["a"]}) as world:
        model = world.service.model_named("a")
        await _until(lambda: world.source.released == ["a 0"])
        assert (model.status, model.usage, model.details) == (Status.UNLOADED, None, {"version": 0})
        assert all(one.status.answers for one in world.service.models)
        world.source.loading.clear()
        requests = [asyncio.create_task(world.score(name)) for name in ("a", "both", "a")]
        with pytest.raises(ModelNotReady, match="still loading"):
            await world.score(within_s=0.01)
        assert model.status is Status.UNLOADED, "a load balancer need not know"
        world.source.loading.set()
        await asyncio.gather(*requests)
        assert world.source.opened == ["a", "a"]
        assert world.source.wanted == ["a"], "it does not wait behind a reload"
        await _until(lambda: world.source.released == ["a 0", "a 0"])


async def test_a_model_is_not_idle_while_a_request_runs() -> None:
    async with _world({"name": "a", "idle_unload_s": 0.01}) as world:
        world.source.scoring.clear()
        request = asyncio.create_task(world.score())
        await _until(lambda: bool((usage := world.service.model_named("a").usage) and usage.requests))
        await asyncio.sleep(0.1)
        assert world.service.model_named("a").status is Status.READY
        world.source.scoring.set()
        await request
        await _until(lambda: world.service.model_named("a").status is Status.UNLOADED)


async def test_a_model_that_cannot_come_back_says_why_until_it_is_loaded() -> None:
    async with _world({"name": "a"}) as world:
        await world.host.unload("a")
        await _until(lambda: world.source.released == ["a 0"])
        world.source.broken = {"a": ConfigError("no weights")}
        with pytest.raises(ModelNotReady, match="could not be loaded"):
            await world.score()
        assert world.service.model_named("a").reason == "no weights"
        with pytest.raises(ConfigError, match="model a: no weights"):
            await world.host.load("a")
        world.source.broken = {}
        await world.host.load("a")
        assert await world.score() == 0


async def test_a_model_is_loaded_again_on_command() -> None:
    async with _world({"name": "a", "aliases": ["x"]}, {"name": "both", "stages": ["a"]}) as world:
        world.source.files["a"] = 3
        await world.host.load("x")
        assert await world.score() == 3
        await _until(lambda: world.source.released == ["a 0"])
        assert (await world.host.reload()).replaced == (), "its files are those that were loaded"
        for command in (world.host.load, world.host.unload):
            with pytest.raises(InvalidRequest, match="cascade"):
                await command("both")
            with pytest.raises(ModelNotFound):
                await command("nobody")


async def test_what_is_unloaded_is_loaded_when_its_entry_changes() -> None:
    async with _world({"name": "a"}) as world:
        await world.host.unload("a")
        with pytest.raises(InvalidRequest, match="not loaded"):
            await world.host.unload("a")
        assert await world.host.reload() == Changes(default="a")
        assert world.service.model_named("a").status is Status.UNLOADED
        world.source.files["a"] = 2
        assert (await world.host.reload()).replaced == ("a",)
        assert world.service.model_named("a").status is Status.READY


async def test_stopping_during_a_reload_leaves_nothing_running() -> None:
    async with _world({"name": "a"}) as world:
        world.source.loading.clear()
        world.source.models.append({"name": "b"})
        reloading = asyncio.create_task(world.host.reload())
        await _until(lambda: world.source.opened == ["a", "b"])
        reloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reloading
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
