"""Steps, checkpoints and adapters, on a tiny random cross-encoder."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError
from rerankd.serving.assembly import running_service
from rerankd.serving.choosing import choose
from rerankd.telemetry.observer import Silent
from rerankd.tools.adapting.candidates import Group
from rerankd.tools.adapting.trainable import Trainable, open_trainable
from rerankd.tools.adapting.training import (
    LOSS_NAMES,
    TEXTS_PER_GROUP,
    Schedule,
    Training,
    draw,
    seconds_per_step,
    step_loss,
)
from tests.tiny_causal import build_qwen3
from tests.tiny_models import CORPUS, build_bert

pytestmark = pytest.mark.slow

_GROUPS = [
    Group(
        query=CORPUS[place].split()[0],
        relevant=[(CORPUS[place], 1.0)],
        negatives=[text for text in CORPUS if text != CORPUS[place]],
        easiness=1 / (place + 1),
        teacher={text: float(-number) for number, text in enumerate(CORPUS)},
    )
    for place in range(len(CORPUS))
]
_SCHEDULE = Schedule(steps=6, seed=3, loss="softmax")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bert(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _open(folder: Path) -> Trainable:
    settings = Settings(model=(str(folder),))
    spec = choose(ModelSpec(name="base", path=str(folder), scorer="auto", engine="auto"), settings)
    return open_trainable(spec, settings, seed=3)


def _trained(folder: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    model = _open(folder)
    Training(model, _GROUPS, _SCHEDULE, checkpoint, checkpoint_every_s=0).run(lambda _step, _loss: None)
    return model.state()


class _Killed(BaseException):
    """As a process that is killed, it leaves what is on the disk and nothing else."""


def test_a_killed_run_that_continues_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    whole = _trained(folder, tmp_path / "whole.pt")

    def kill(step: int, _loss: float) -> None:
        if step == 4:
            raise _Killed

    with pytest.raises(_Killed):
        Training(_open(folder), _GROUPS, _SCHEDULE, tmp_path / "killed.pt", checkpoint_every_s=0).run(kill)
    (tmp_path / "killed.unfinished").write_bytes(b"half of the next checkpoint")
    continued = _trained(folder, tmp_path / "killed.pt")
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_training_lowers_the_loss_and_its_measurement_changes_nothing(folder: Path, tmp_path: Path) -> None:
    model = _open(folder)
    before = model.state()
    assert seconds_per_step(model, _GROUPS, _SCHEDULE) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state().items())
    # Behind the curriculum, where every query counts in full.
    same = [group for step in range(20, 23) for group in draw(_GROUPS, step, _SCHEDULE)]
    first = float(step_loss(model, same, loss="softmax").detach())
    schedule = Schedule(steps=25, seed=3, loss="softmax")
    Training(model, _GROUPS, schedule, tmp_path / "checkpoint.pt").run(lambda _step, _loss: None)
    assert float(step_loss(model, same, loss="softmax").detach()) < first


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_has_gradients(folder: Path, loss: str) -> None:
    model = _open(folder)
    step_loss(model, draw(_GROUPS, 0, _SCHEDULE), loss=loss).backward()
    [parameters] = model.parameters()
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in parameters["params"])


def test_a_step_is_drawn_from_its_number_and_the_seed_alone() -> None:
    assert draw(_GROUPS, 5, _SCHEDULE) == draw(_GROUPS, 5, _SCHEDULE)
    asked = [group.query for step in range(5) for group in draw(_GROUPS, step, _SCHEDULE)]
    assert len(asked) == 20
    assert sorted(asked) == sorted(2 * [group.query for group in _GROUPS]), "two passes over ten queries"
    assert {len(group.texts) for group in draw(_GROUPS, 0, _SCHEDULE)} == {TEXTS_PER_GROUP}


def test_a_query_that_leaves_no_room_for_a_document_is_told(folder: Path) -> None:
    model = _open(folder)
    assert model.reads("capital of France")
    assert not model.reads("capital " * 200)


async def test_a_settled_adapter_is_served_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    model = _open(folder)
    Training(model, _GROUPS, _SCHEDULE, tmp_path / "checkpoint.pt").run(lambda _step, _loss: None)
    model.settle(0.5)
    model.write(tmp_path / "adapter")
    texts = list(CORPUS[:5])
    with torch.no_grad():
        expected = model.scores([("capital of France", text) for text in texts]).tolist()
    settings = Settings(model=(str(tmp_path / "adapter"),), request_timeout_s=600)
    async with running_service(settings, Silent()) as service:
        result = await service.rerank(RerankRequest(query="capital of France", documents=texts))
    served = {ranked.index: ranked.value for ranked in result.results}
    # Training computes in bfloat16 where the CPU does.
    assert [served[place] for place in range(5)] == pytest.approx(expected, abs=0.05)


def test_a_model_of_several_outputs_is_refused(tmp_path: Path) -> None:
    folder = build_bert(tmp_path / "three", num_labels=3)
    spec = ModelSpec(
        name="three", path=str(folder), scorer="cross-encoder", engine="torch-encoder", options={"label": 1}
    )
    with pytest.raises(ConfigError, match="adapters are made for cross-encoders of one output"):
        open_trainable(spec, Settings(), seed=1)


async def test_an_adapter_of_a_yes_no_model_is_served_as_it_was_trained(tmp_path: Path) -> None:
    template = {"template": "qwen3-reranker"}
    base = str(build_qwen3(tmp_path / "qwen3"))
    spec = ModelSpec(name="qwen3", path=base, scorer="yes-no", engine="torch-causal", options=template)
    model = open_trainable(spec, Settings(), seed=3)
    schedule = Schedule(steps=2, seed=3, loss="softmax")
    Training(model, _GROUPS, schedule, tmp_path / "checkpoint.pt").run(lambda _step, _loss: None)
    model.write(tmp_path / "adapter")
    with torch.no_grad():
        expected = model.scores([("capital of France", text) for text in CORPUS[:3]]).tolist()
    settings = Settings(model=(str(tmp_path / "adapter"),), model_template=template["template"], request_timeout_s=600)
    async with running_service(settings, Silent()) as service:
        result = await service.rerank(RerankRequest(query="capital of France", documents=CORPUS[:3]))
    served = {ranked.index: ranked.value for ranked in result.results}
    assert [served[place] for place in range(3)] == pytest.approx(expected, abs=0.05)
