"""Documents ranked by comparisons behind the same API, cache and deadlines as everything else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest

from rerankd.api.dialects.superset import meta_of
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Terms, WindowWishes
from rerankd.errors import DeadlineExceeded
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from rerankd.tools.checking import check_settings
from tests.endpoint_server import Script, serving_endpoint
from tests.fakes import RecordingObserver
from tests.hub import Repository, tiny_hub
from tests.integration.test_adapters import build_adapter
from tests.integration.test_command_line import rerankd
from tests.integration.test_named_models import inspected
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS
from tests.tokenizer_folders import SHIPPED_TEMPLATES
from tests.transcriptions import setwise_labels, setwise_sort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]
Reply = Callable[[list[dict[str, str]]], str]

QUERY = "which number is the largest?"
NUMBERS = [int(one) for one in np.random.default_rng(5).permutation(40)]
DOCUMENTS = [f"number {number}" for number in NUMBERS]


def shown(messages: list[dict[str, str]]) -> dict[str, int]:
    """The numbers that a prompt shows, by label."""
    user = messages[-1]["content"]
    found = re.findall(r"\[(\d+)\]:? \"?number (\d+)", user) or re.findall(
        r"Chatbot ([AB])'s Response\]\nnumber (\d+)", user
    )
    return {label: int(number) for label, number in found}


def largest(messages: list[dict[str, str]]) -> str:
    """As a model that thinks and is always right."""
    numbers = shown(messages)
    best = max(numbers, key=numbers.__getitem__)
    return f"<think> The documents are {numbers}: not [1]. </think>\n<answer>[{best}]</answer>"


@asynccontextmanager
async def chatting(
    folder: Path, reply: Reply = largest, *, template: str = "setwise-chat", **options: Any
) -> AsyncIterator[tuple[RerankService, Script, RecordingObserver]]:
    script, observer = Script([], reply=reply), RecordingObserver()
    with serving_endpoint(script) as url:
        model = {
            "name": "m",
            "path": ".",
            "scorer": "generative",
            "engine": "endpoint",
            "options": {"template": template, **options},
            "engine_options": {"url": url, "model": "chat"},
        }
        settings = Settings(registry=write_registry(folder, [model]))
        async with running_service(settings, observer) as service:
            await service.model_named("m").settled()
            yield service, script, observer


def request(top_n: int | None = None, *, documents: list[str] = DOCUMENTS, **options: Any) -> RerankRequest:
    return RerankRequest(query=QUERY, documents=documents, top_n=top_n, options=ScoreOptions(**options))


def found(result: RerankResult) -> list[int]:
    return [NUMBERS[document.index] for document in result.results]


def in_messages(template: Path) -> None:
    """A template for an endpoint of one for weights, to see what a real model is asked."""
    text = re.sub(r'^chat = """.*?"""\n', "", template.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^recognises.*\n", "messages = true\n", text, flags=re.MULTILINE)
    template.write_text(text)


async def test_setwise_is_the_sort_of_its_authors(tmp_path: Path) -> None:
    async with chatting(tmp_path, window=4) as (service, script, observer):
        for top_n in (10, 3):
            script.asked.clear()
            result = await service.rerank(request(top_n))
            asked: list[tuple[int, ...]] = []

            def best(numbers: Any, asked: list[tuple[int, ...]] = asked) -> int:
                asked.append(tuple(numbers))
                return int(np.argmax(numbers))

            assert (
                found(result)[:top_n]
                == setwise_sort(NUMBERS, best, children=3, k=top_n)
                == [*range(39, 39 - top_n, -1)]
            )
            prompts = [tuple(shown(body["messages"]).values()) for _, body, _ in script.asked]
            if top_n == 10:
                assert sorted(prompts) == sorted(asked)
                assert result.scores.comparisons == len(asked)
            assert not result.scores.unordered
        assert not prompts, "the first three are found on the way to the first ten: all is known"
        assert observer.total("request_scored", "comparisons") > len(asked)


async def test_rank_r1_chooses_among_twenty_by_its_shipped_defaults(tmp_path: Path) -> None:
    shipped = SHIPPED_TEMPLATES / "rank-r1.toml"
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "ours.toml").write_text(shipped.read_text())
    in_messages(tmp_path / "templates" / "ours.toml")
    async with chatting(tmp_path, template="ours") as (service, script, _):
        result = await service.rerank(request())
        assert found(result)[:10] == [*range(39, 29, -1)]
        assert max(len(shown(body["messages"])) for _, body, _ in script.asked) == 20
        assert len(script.asked) == result.scores.comparisons <= 22


async def test_rm_r1_chooses_the_best_of_several_answers(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "ours.toml").write_text((SHIPPED_TEMPLATES / "rm-r1-instruct.toml").read_text())
    in_messages(tmp_path / "templates" / "ours.toml")

    def judged(messages: list[dict[str, str]]) -> str:
        numbers = shown(messages)
        best = max(numbers, key=numbers.__getitem__)
        return f"<type>Chat</type><eval><quote_A>[[A]]</quote_A></eval>\n\n<answer>[[{best}]]</answer>"

    answers = [f"number {number}\n\n- a list\n- of points" for number in NUMBERS[:9]]
    async with chatting(tmp_path, judged, template="ours") as (service, script, _):
        result = await service.rerank(request(1, documents=answers))
        assert found(result) == [max(NUMBERS[:9])]
        assert len(script.asked) == 2 * 8, "n - 1 comparisons, each in both orders"
        assert "\n\n- a list\n- of points\n[The End" in script.asked[0][1]["messages"][-1]["content"]


async def test_a_repeated_request_is_answered_without_the_model(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (service, script, _):
        first = await service.rerank(request())
        asked = len(script.asked)
        again = await service.rerank(request())
        assert len(script.asked) == asked
        assert (first.cached, again.cached) == (0, len(DOCUMENTS))
        assert again.results == first.results
        other = await service.rerank(request(documents=[*DOCUMENTS[:-1], "number 77"]))
        assert other.results[0].index == len(DOCUMENTS) - 1
        assert len(script.asked) - asked < asked, "what it does not change is known"


@pytest.mark.parametrize(
    "answer",
    ["I cannot say.", "<answer>[3] or [1]</answer>", "<think> [2] is the best", "[77]", "", "<answer></answer>"],
)
async def test_of_an_answer_that_names_no_document_nothing_follows(answer: str, tmp_path: Path) -> None:
    async with chatting(tmp_path, lambda _: answer, window=4) as (service, script, _):
        result = await service.rerank(request(5))
        assert [document.index for document in result.results] == [0, 1, 2, 3, 4]
        assert result.scores.unordered == result.scores.comparisons == len(script.asked) > 10
        warnings = meta_of(result, ScoreOptions(), version="2")["warnings"]
        count = len(script.asked)
        assert warnings == [
            f"the model named no document of {count} comparisons, which kept the order it was given; ask again"
        ]
        await service.rerank(request(5))
        assert len(script.asked) == 2 * count, "no such answer is kept"


async def test_a_deadline_in_mid_schedule(tmp_path: Path) -> None:
    def slowly(messages: list[dict[str, str]]) -> str:
        sleep(0.05)
        return largest(messages)

    async with chatting(tmp_path, slowly, schedule="prp-sorting") as (service, _, observer):
        with pytest.raises(DeadlineExceeded, match="deadline"):
            await service.rerank(request(terms=Terms(deadline=perf_counter() + 0.5)))
        assert observer.named("deadline_missed")
        terms = Terms(deadline=perf_counter() + 0.6, partial=True)
        result = await service.rerank(request(documents=[f"{one}." for one in DOCUMENTS], terms=terms))
        settled = result.scores.settled
        assert settled is not None
        assert settled < 10
        (warning,) = meta_of(result, ScoreOptions(), version="2")["warnings"]
        assert warning.startswith(
            f"the deadline came before the order was settled: the first {settled} places are final"
        )
        numbers = found(result)
        assert sorted(numbers) == list(range(40))
        assert np.mean(numbers[:10]) > np.mean(NUMBERS[:10]), "what was known by then counts"


async def test_a_request_that_is_given_up_asks_no_more(tmp_path: Path) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(messages: list[dict[str, str]]) -> str:
        loop.call_soon_threadsafe(begun.set)
        return largest(messages)

    async with chatting(tmp_path, told, schedule="prp-sliding") as (service, script, _):
        running = asyncio.create_task(service.rerank(request()))
        await asyncio.wait_for(begun.wait(), timeout=60)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        asked = len(script.asked)
        assert asked < 30
        await service.rerank(request(documents=["number 1", "number 2"]))
        assert len(script.asked) <= asked + 2 + 8, "eight calls may be under way"


@pytest.mark.parametrize("schedule", ["setwise", "prp", "prp-sorting", "single-elimination", "swiss", "tsp"])
async def test_every_schedule_is_one_word_of_the_registry_and_of_a_request(schedule: str, tmp_path: Path) -> None:
    documents = DOCUMENTS[:9]
    async with chatting(tmp_path, schedule="all-pairs") as (service, script, _):
        windows = WindowWishes(schedule=schedule, window=4)
        result = await service.rerank(request(documents=documents, windows=windows))
        assert found(result)[0] == max(NUMBERS[:9])
        assert len(script.asked) == result.scores.comparisons


async def test_labels_are_read_in_one_pass(tmp_path: Path, causal_folder: Folder) -> None:
    folder = causal_folder("qwen3")
    documents = [f"{CORPUS[number % len(CORPUS)].split()[0]} {number}" for number in range(9)]
    model = {
        "name": "m",
        "path": folder,
        "scorer": "first",
        "engine": "torch-causal",
        "engine_options": {"device": "cpu"},
        "options": {"template": "setwise-chatml", "settle": 3},
    }

    def best(texts: Any) -> int:
        return int(setwise_labels(folder, QUERY, texts).argmax())

    async with running_service(Settings(registry=write_registry(tmp_path, [model])), Silent()) as service:
        await service.model_named("m").settled()
        many = [request(3, documents=documents[start:]) for start in (0, 4)]
        for result, start in zip(await asyncio.gather(*map(service.rerank, many)), (0, 4), strict=True):
            ours = [documents[start + document.index] for document in result.results]
            assert ours == setwise_sort(documents[start:], best, children=3, k=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sliding"}, "this model names only the best of one; set schedule to one of: setwise, all-pairs"),
        ({"schedule": "heap"}, "unknown schedule 'heap'; known: sliding, full, top-down, tournament, setwise"),
        ({"window": 2}, "schedule 'setwise' needs a window of at least 3 documents, and this one has 2"),
        ({"settle": 0}, "settle must be at least 1"),
    ],
)
def test_a_schedule_that_does_not_suit_is_refused_with_the_registry(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    model = {"name": "m", "path": ".", "scorer": "generative", "engine": "endpoint", "engine_options": endpoint}
    registry = write_registry(tmp_path, [{**model, "options": {"template": "setwise-chat", **options}}])
    (problem,) = check_settings(Settings(registry=registry)).all_problems
    assert message in problem


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_served_by_its_name_on_the_hub(causal_folder: Folder, tmp_path: Path) -> None:
    base = causal_folder("qwen3")
    build_adapter(tmp_path / "adapter", base=base, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir() if path.is_file()}
    # The prompt and a thought are longer than the tiny model reads.
    longer = {"config.json": {"max_position_embeddings": 8192}, "tokenizer_config.json": {"model_max_length": 8192}}
    model = {path.name: path.read_bytes() for path in base.iterdir()}
    model |= {name: json.dumps(json.loads(model[name]) | said).encode() for name, said in longer.items()}

    def adapter_of(base: str) -> Repository:
        named = json.dumps({**config, "base_model_name_or_path": base}).encode()
        return Repository({**files, "adapter_config.json": named})

    repositories = {
        "Qwen/Qwen2.5-7B-Instruct": Repository(model),
        "ielabgroup/Rank-R1-7B-v0.1": adapter_of("Qwen/Qwen2.5-7B-Instruct"),
        "org/lost": adapter_of("/home/somebody/model"),
    }
    with tiny_hub(repositories) as hub:
        environment = {"HF_ENDPOINT": hub.url, "RERANKD_HUB_CACHE": str(tmp_path / "hub")}
        report = inspected("ielabgroup/Rank-R1-7B-v0.1", **environment)
        assert (report["family"], report["template"], report["engine"]) == ("Rank-R1", "rank-r1", "torch-generate")
        assert report["adapter"] == "hub:ielabgroup/Rank-R1-7B-v0.1"
        both = ("ielabgroup/Rank-R1-7B-v0.1", "org/lost")
        checked = rerankd("serve", "--check", "--load", *both, cwd=None, **environment)
        assert "hub:org/lost is an adapter of '/home/somebody/model', which is not a name on the hub" in checked.stderr
        assert checked.stderr.count("problem") <= 1, "the other one is loaded"
        assert "adapter_model.safetensors" in hub.fetched()
