"""The recipe of a FIRST adapter: its objective, its windows, and that what it writes is served as it was trained."""

import math
import random
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("peft", reason="needs the extra `dev`")

import torch
from transformers import AutoModelForCausalLM

from models.recipes.first.objective import first_loss, order_loss
from models.recipes.first.serve import NAME, load_scorer, write_served
from models.recipes.first.train import AdapterTrainer, with_adapter
from models.recipes.first.windows import Window, WindowEncoder, windows_of
from models.recipes.minilm_qa.blocks import Block
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.conftest import Folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_torch_on_one_thread"),
    # peft asks transformers what it no longer likes to be asked
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

PASSAGES = ("Stocks rose on Monday.", "The moon pulls the sea.", "Bees live six weeks.", "Tides rise with the moon.")
WINDOW = Window("why do tides rise", PASSAGES, (3, 1, 0, 2))


def test_the_order_loss_is_firsts_sum_over_pairs() -> None:
    scores = [2.0, -1.0, 0.5]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(math.log1p(math.exp(scores[j] - scores[i])) / (i + j + 2) for i, j in pairs) / len(pairs)
    assert float(order_loss(torch.tensor(scores))) == pytest.approx(expected, rel=1e-6)
    logits = torch.zeros(2, 5)
    logits[0, [4, 1, 2]] = torch.tensor(scores)
    answer = -float(torch.log_softmax(logits, dim=1)[[0, 1], [4, 3]].mean())
    loss = first_loss(logits, torch.tensor([4, 3]), torch.tensor([4, 1, 2]))
    assert float(loss) == pytest.approx(answer + 10 * expected, rel=1e-6)


def test_a_window_shows_the_relevant_document_and_others_in_the_teachers_order() -> None:
    block = Block("squad", ("q", "r"), tuple("abcdefgh"), (2, 5), (frozenset(), frozenset()))
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 20.0, 6.0, 7.0, 7.5], [8.0, 7.0, 6.0, 5.0, 4.0, 30.0, 2.0, 1.0]])
    seen = set()
    for seed in range(20):
        first, second = windows_of(block, logits, size=4, rng=random.Random(seed))
        for window, row, relevant in ((first, logits[0], "c"), (second, logits[1], "f")):
            assert len(set(window.passages)) == 4
            assert relevant in window.passages
            ranked = [window.passages[place] for place in window.order]
            value = {text: float(row["abcdefgh".index(text)]) + 5.0 * (text == relevant) for text in ranked}
            assert [value[text] for text in ranked] == sorted(value.values(), reverse=True)
        seen.add(first.passages.index("c"))
    assert seen == {0, 1, 2, 3}, "the relevant passage is shown at every place"


async def test_what_was_trained_is_served_and_a_stopped_run_goes_on(causal_folder: Folder, tmp_path: Path) -> None:
    base = causal_folder("qwen3")
    write_served(tmp_path, base=base, window=4)
    scorer = load_scorer(tmp_path, base=base)
    encoder = WindowEncoder(scorer, TokenizerFolder.read(base))

    def trainer() -> AdapterTrainer:
        torch.manual_seed(1)
        model = with_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
        return AdapterTrainer(model, encoder, lambda _: [WINDOW, WINDOW], out=tmp_path)

    begun = trainer()
    untrained = _logits(begun, encoder)
    begun.run(minutes=5, steps=4)
    going_on = trainer()
    assert torch.equal(_logits(going_on, encoder), _logits(begun, encoder))
    going_on.run(minutes=5, steps=8)
    trained = _logits(going_on, encoder)
    assert going_on.progress.windows == 16
    assert order_loss(trained[list(WINDOW.order)]) < order_loss(untrained[list(WINDOW.order)])

    going_on.save_adapter(tmp_path / NAME)
    async with running_service(Settings(registry=tmp_path / "registry.toml"), Silent()) as service:
        [model] = service.models
        await model.settled()
        result = await service.rerank(RerankRequest(query=WINDOW.query, documents=PASSAGES, model=NAME))
    assert [one.index for one in result.results] == trained.argsort(descending=True).tolist()


@torch.inference_mode()
def _logits(trainer: AdapterTrainer, encoder: WindowEncoder) -> torch.Tensor:
    """The identifiers' logits in the order of the passages, by peft."""
    encoded = encoder.encode(WINDOW)
    token_of = dict(zip(WINDOW.order, encoded.identifiers, strict=True))
    logits = trainer.model(input_ids=torch.tensor([encoded.prompt])).logits[0, -1]
    return logits[[token_of[place] for place in range(len(PASSAGES))]]
