"""Trains a low-rank adapter on windows within a time budget; a stopped run goes on from its last checkpoint."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import PreTrainedModel

from models.recipes.first.objective import first_loss
from models.recipes.first.windows import Encoded, Window, WindowEncoder
from rerankd.tools.training.precision import in_bfloat16

RANK = 8
ALPHA = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WINDOWS_PER_STEP = 4
LEARNING_RATE = 3e-4
WARM_UP_STEPS = 20
CHECKPOINT_EVERY_S = 150.0


@dataclass
class Progress:
    """How far a run is; written with each checkpoint."""

    elapsed_s: float = 0.0
    steps: int = 0
    windows: int = 0
    blocks: int = 0


def with_adapter(model: PreTrainedModel) -> PeftModel:
    """Put a new adapter over a model: one of rank 8 beside each matrix of its layers."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def window_loss(model: PeftModel, window: Encoded) -> torch.Tensor:
    """Return FIRST's loss of one window. Logits are computed where the order is written, nowhere else."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*window.prompt, *window.answer]], device=device)
    with in_bfloat16(device):
        logits = model(input_ids=ids, logits_to_keep=len(window.answer) + 1).logits[0, :-1]
    answer, identifiers = (torch.tensor(tokens, device=device) for tokens in (window.answer, window.identifiers))
    return first_loss(logits, answer, identifiers)


class AdapterTrainer:
    """Holds everything that a checkpoint holds, and takes the steps. `windows` gives those of a block by its number."""

    def __init__(
        self, model: PeftModel, encoder: WindowEncoder, windows: Callable[[int], Sequence[Window]], *, out: Path
    ) -> None:
        self.progress = Progress()
        self.model, self._encoder, self._windows = model, encoder, windows
        self._checkpoint = out / "checkpoint.pt"
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=LEARNING_RATE, weight_decay=0.0)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).train()
        if self._checkpoint.exists():
            kept = torch.load(self._checkpoint)
            set_peft_model_state_dict(model, kept["adapter"])
            self._optimizer.load_state_dict(kept["optimizer"])
            self.progress = Progress(**kept["progress"])

    def run(self, *, minutes: float, steps: int | None = None) -> None:
        """Train until it has taken so long in all, or that number of steps."""
        last_saved = time.monotonic()
        began = last_saved - self.progress.elapsed_s
        with tqdm(total=round(60 * minutes), initial=round(self.progress.elapsed_s), unit="s", mininterval=10) as bar:
            for windows in self._steps():
                if self.progress.elapsed_s >= 60 * minutes or self.progress.steps == steps:
                    break
                loss = self._step(windows)
                self.progress.elapsed_s = time.monotonic() - began
                bar.set_postfix(windows=self.progress.windows, loss=f"{loss:.3f}", refresh=False)
                bar.update(round(self.progress.elapsed_s) - bar.n)
                if time.monotonic() - last_saved > CHECKPOINT_EVERY_S:
                    self._save()
                    last_saved = time.monotonic()
        self._save()

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as peft does, which is how it is served."""
        self.model.save_pretrained(str(folder))

    def _steps(self) -> Iterator[list[Window]]:
        """Yield the windows of a step. A checkpoint counts whole blocks, so that a stopped run skips a few windows."""
        while True:
            windows = list(self._windows(self.progress.blocks))
            self.progress.blocks += 1
            for first in range(0, len(windows), WINDOWS_PER_STEP):
                yield windows[first : first + WINDOWS_PER_STEP]

    def _step(self, windows: Sequence[Window]) -> float:
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = LEARNING_RATE * min(1.0, (self.progress.steps + 1) / WARM_UP_STEPS)
        total = 0.0
        for window in windows:
            loss = window_loss(self.model, self._encoder.encode(window)) / len(windows)
            loss.backward()
            total += float(loss.detach())
        clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.steps += 1
        self.progress.windows += len(windows)
        return total

    def _save(self) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self._checkpoint.with_suffix(".partial")
        kept = {"adapter": get_peft_model_state_dict(self.model), "optimizer": self._optimizer.state_dict()}
        torch.save(kept | {"progress": asdict(self.progress)}, partial)
        partial.replace(self._checkpoint)
