"""What the authors of models that read images compute, transcribed with plain transformers."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from rerankd.domain import FloatArray

IMAGE: Final = "<|vision_start|><|image_pad|><|vision_end|>"


class Side(NamedTuple):
    """A query or a document: a text, an image, or both."""

    text: str = ""
    image: bytes | None = None


Pair = tuple[Side, Side]


def picture(width: int, height: int, *, seed: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A file with random blocks of colour, which survive it when a model sees the image larger or smaller."""
    from PIL import Image  # noqa: PLC0415 - the tests without images need no Pillow

    blocks = np.random.default_rng(seed).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).convert(mode).save(file, kind)
    return file.getvalue()


def qwen3_vl_image_logits(folder: Path, pairs: Sequence[Pair], *, instruction: str) -> FloatArray:
    """Qwen3-VL-Reranker's own script: images of 4 to 1280 tokens before the text, the last state times the difference
    of the head's rows yes and no; shape [pairs].
    """
    from transformers import Qwen3VLForConditionalGeneration  # noqa: PLC0415 - only slow tests have torch

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()

    def prompt(query: Side, document: Side) -> str:
        asked, shown = ((IMAGE if side.image else "") + side.text for side in (query, document))
        return (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: {instruction}<Query>:{asked}\n<Document>:{shown}<|im_end|>\n<|im_start|>assistant\n"
        )

    states = _states(folder, model.model, pairs, prompt, sees=_resized_before(factor=32, least=4096, most=1_310_720))
    yes, no = _ids(folder, ["yes", "no"])
    return _numbers(states @ (model.lm_head.weight[yes] - model.lm_head.weight[no]))


def jina_m0_relevance(folder: Path, pairs: Sequence[Pair]) -> FloatArray:
    """jina-reranker-m0's own `compute_score`: the document first, an image in the place of a text, and its head behind
    the token 100; shape [pairs].
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from transformers import Qwen2VLForConditionalGeneration  # noqa: PLC0415 - as above

    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")

    def prompt(query: Side, document: Side) -> str:
        asked, shown = (IMAGE if side.image else side.text for side in (query, document))
        return f"**Document**:\n{shown}\n**Query**:\n{asked}"

    sees = _resized_by_processor(min_pixels=3136, max_pixels=602_112)
    states = _states(folder, model.model, pairs, prompt, sees=sees, ending=[100], document_first=True)
    inner = torch.relu(states @ weights["score.0.weight"].T + weights["score.0.bias"])
    scores = inner @ weights["score.2.weight"].T + weights["score.2.bias"]
    return _numbers(torch.sigmoid(scores[:, 0] - 2.65))


def monoqwen_logits(folder: Path, adapter: Path, pairs: Sequence[Pair]) -> FloatArray:
    """The card of MonoQwen2-VL: the logit of True less that of False; shape [pairs]."""
    from peft import PeftModel  # noqa: PLC0415 - as above
    from transformers import Qwen2VLForConditionalGeneration  # noqa: PLC0415 - as above

    base = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, adapter).eval().base_model.model

    def prompt(query: Side, _: Side) -> str:
        return (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{IMAGE}Assert the relevance of the previous image document to the following query, answer True or False. "
            f"The query is: {query.text}<|im_end|>\n<|im_start|>assistant\n"
        )

    states = _states(folder, model.model, pairs, prompt, sees=_resized_by_processor())
    true, false = _ids(folder, ["True", "False"])
    return _numbers(states @ (model.lm_head.weight[true] - model.lm_head.weight[false]))


# From a model's folder and an image to its patches and how many there are in each direction.
_Sees = Callable[[Path, Any], tuple[Any, Any]]


def _resized_before(*, factor: int, least: int, most: int) -> _Sees:
    """As Qwen's own package does: Pillow resizes, and transformers does not."""

    def sees(folder: Path, image: Any) -> tuple[Any, Any]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # noqa: PLC0415 - as above

        height, width = smart_resize(image.height, image.width, factor=factor, min_pixels=least, max_pixels=most)
        read = _processor(folder)(images=[image.resize((width, height))], do_resize=False, return_tensors="pt")
        return read["pixel_values"], read["image_grid_thw"]

    return sees


def _resized_by_processor(**bounds: int) -> _Sees:
    def sees(folder: Path, image: Any) -> tuple[Any, Any]:
        read = _processor(folder, **bounds)(images=[image], return_tensors="pt")
        return read["pixel_values"], read["image_grid_thw"]

    return sees


def _processor(folder: Path, **bounds: int) -> Any:
    from transformers import AutoImageProcessor  # noqa: PLC0415 - as above

    return AutoImageProcessor.from_pretrained(folder, backend="pil", **bounds)


def _states(
    folder: Path,
    model: Any,
    pairs: Sequence[Pair],
    prompt: Callable[[Side, Side], str],
    *,
    sees: _Sees,
    ending: Sequence[int] = (),
    document_first: bool = False,
) -> Any:
    """The last states of prompts, one after another, shape [pairs, hidden size]. Each image token is written as often
    as the image has tokens, as transformers does for such models.
    """
    import torch  # noqa: PLC0415 - as above
    from PIL import Image  # noqa: PLC0415 - as above
    from transformers import AutoTokenizer  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = []
    for query, document in pairs:
        sides = (document, query) if document_first else (query, document)
        images = [Image.open(BytesIO(side.image)).convert("RGB") for side in sides if side.image]
        seen = [sees(folder, image) for image in images]
        text = prompt(query, document)
        for _, grid in seen:
            text = text.replace("<|image_pad|>", "<|kept|>" * (int(grid.prod()) // 4), 1)
        ids = tokenizer(text.replace("<|kept|>", "<|image_pad|>"))["input_ids"] + list(ending)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if seen:
            inputs["pixel_values"] = torch.cat([patches for patches, _ in seen])
            inputs["image_grid_thw"] = torch.cat([grid for _, grid in seen])
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
        with torch.inference_mode():
            states.append(model(**inputs).last_hidden_state[0, -1])
    return torch.stack(states)


def _ids(folder: Path, tokens: list[str]) -> list[int]:
    from transformers import AutoTokenizer  # noqa: PLC0415 - as above

    ids: list[int] = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(tokens)
    return ids


def _numbers(tensor: Any) -> FloatArray:
    return np.asarray(tensor.detach().numpy(), dtype=np.float32)
