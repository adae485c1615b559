"""Images end to end: tiny models behind a real server score them as their authors do, and bad ones are refused."""

import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loadtest.servers import Server
from rerankd.domain import FloatArray
from tests.image_transcriptions import (
    Pair,
    Side,
    jina_m0_relevance,
    monoqwen_logits,
    picture,
    qwen3_vl_image_logits,
)
from tests.oracles import hold
from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready
from tests.tiny_causal import MAX_LENGTH, build_jina_m0, build_qwen2_vl, build_qwen3_vl
from tests.tiny_models import TINY_BERT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_torch_on_one_thread"),
    # peft asks transformers what it no longer likes to be asked
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

INSTRUCTION: Final = "Given a search query, retrieve relevant candidates that answer the query."
QUERY: Final = Side("What is the capital of France?")
SKETCH: Final = Side("which page shows this", picture(70, 70, seed=9))
DOCUMENTS: Final = [
    Side("Paris is the capital of France."),
    Side("", picture(64, 96, seed=1)),
    Side("a river and the sea", picture(200, 50, seed=2, kind="JPEG")),
    Side("The Moon pulls at the sea; the Sun, further away, pulls less, and so tides come and go."),
    Side("", picture(90, 91, seed=3, kind="WEBP")),
    Side("", picture(31, 44, seed=4, kind="GIF")),
]
IMAGES: Final = [side for side in DOCUMENTS if side.image and not side.text]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    build_qwen3_vl(root / "qwen3-vl")
    build_jina_m0(root / "m0")
    build_qwen2_vl(root / "qwen2-vl")
    _build_adapter(root / "adapter", base=root / "qwen2-vl")
    _as_saved_before(root / "adapter", root / "older")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def server(folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    mono = {"options": {"template": "monoqwen2-vl"}, "adapter_of": str(folders["qwen2-vl"])}
    models = [
        {"name": "qwen3-vl", "path": folders["qwen3-vl"], "options": {"template": "qwen3-vl-reranker"}},
        {"name": "m0", "path": folders["m0"]},
        {"name": "mono", "path": folders["qwen2-vl"], "adapter": folders["older"], **mono},
    ]
    auto = [{"scorer": "auto", "engine": "auto", **model} for model in models]
    texts = {"name": "texts", "path": TINY_BERT}
    registry = write_registry(folder, [*auto, texts], default="qwen3-vl")
    bounds = {"RERANKD_MAX_IMAGES": "8", "RERANKD_MAX_IMAGE_BYTES": "50000", "RERANKD_MAX_IMAGE_PIXELS": "250000"}
    with rerankd_server(folder, registry, **bounds) as running:
        wait_until_ready(running, timeout_s=180)
        yield running


def _build_adapter(folder: Path, *, base: Path) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - as above
    from transformers import Qwen2VLForConditionalGeneration  # noqa: PLC0415 - as above

    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(Qwen2VLForConditionalGeneration.from_pretrained(base), config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))


def _as_saved_before(new: Path, old: Path) -> None:
    """As transformers 4.51 and older called the layers, and so the adapters on the hub do."""
    old.mkdir()
    (old / "adapter_config.json").write_text((new / "adapter_config.json").read_text())
    weights = load_file(new / "adapter_model.safetensors")
    renamed = {name.replace("model.language_model.layers", "model.layers"): one for name, one in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, old / "adapter_model.safetensors")


def data_url(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(image).decode()}"


def as_object(side: Side) -> str | dict[str, str]:
    """As Jina's clients send it."""
    if side.image is None:
        return side.text
    return {"image": b64encode(side.image).decode(), **({"text": side.text} if side.text else {})}


def as_parts(side: Side) -> str | dict[str, Any]:
    """As vLLM's clients send it."""
    if side.image is None:
        return side.text
    image = {"type": "image_url", "image_url": {"url": data_url(side.image)}}
    return {"content": [image, *([{"type": "text", "text": side.text}] if side.text else [])]}


def post(server: Server, path: str, body: Mapping[str, Any], *, status: int = 200) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def relevance(server: Server, path: str, **body: Any) -> FloatArray:
    results = post(server, path, body)["results"]
    return np.array([one["relevance_score"] for one in sorted(results, key=lambda one: one["index"])])


def logits(server: Server, **body: Any) -> FloatArray:
    return np.array([one["score"] for one in post(server, "/score", {"use_activation": False, **body})["data"]])


def sigmoid(values: FloatArray) -> FloatArray:
    return (1 / (1 + np.exp(-values))).astype(np.float32)


def test_qwen3_vl_scores_texts_and_images_in_one_batch_and_alone(server: Server, folders: Mapping[str, Path]) -> None:
    pairs: list[Pair] = [(query, document) for query in (QUERY, SKETCH) for document in DOCUMENTS]
    expected = qwen3_vl_image_logits(folders["qwen3-vl"], pairs, instruction=INSTRUCTION)
    documents = [as_object(side) for side in DOCUMENTS]
    together = [
        relevance(server, path, query=write(query), documents=list(map(write, DOCUMENTS)), model="qwen3-vl")
        for query, path, write in ((QUERY, "/v1/rerank", as_parts), (SKETCH, "/v2/rerank", as_object))
    ]
    alone = [logits(server, queries=QUERY.text, documents=[one], model="qwen3-vl") for one in reversed(documents)]
    hold("Qwen3-VL-Reranker", np.concatenate(together), sigmoid(expected), first=False)
    hold("Qwen3-VL-Reranker", np.concatenate(alone)[::-1], expected[: len(DOCUMENTS)], first=False)


def test_m0_scores_each_of_query_and_document_as_text_or_image(server: Server, folders: Mapping[str, Path]) -> None:
    sides = [side for side in DOCUMENTS if not (side.text and side.image)]
    for query in (QUERY, Side("", SKETCH.image)):
        expected = jina_m0_relevance(folders["m0"], [(query, document) for document in sides])
        body = {"query": as_object(query), "model": "m0"}
        together = relevance(server, "/v1/rerank", documents=list(map(as_object, sides)), **body)
        alone = [relevance(server, "/v1/rerank", documents=[as_parts(side)], **body)[0] for side in sides]
        hold("jina-reranker-m0", together, expected, first=query is QUERY)
        hold("jina-reranker-m0", np.array(alone), expected, first=False)


def test_monoqwen_scores_images_of_pages(server: Server, folders: Mapping[str, Path]) -> None:
    expected = monoqwen_logits(folders["qwen2-vl"], folders["adapter"], [(QUERY, side) for side in IMAGES])
    parts = [{"type": "image_url", "image_url": {"url": data_url(side.image or b"", "jpeg")}} for side in IMAGES]
    # As vLLM's example has it: one list of parts is as many documents.
    together = logits(server, text_1=QUERY.text, text_2={"content": parts}, model="mono")
    alone = [logits(server, text_1=QUERY.text, text_2=[as_object(side)], model="mono")[0] for side in IMAGES]
    hold("MonoQwen2-VL", together, expected, first=True)
    hold("MonoQwen2-VL", np.array(alone), expected, first=False)


def test_a_url_is_refused_and_never_fetched(server: Server) -> None:
    url = "http://127.0.0.1:1/page.png"
    for document in ({"image": url}, {"content": [{"type": "image_url", "image_url": {"url": url}}]}):
        answer = post(server, "/v1/rerank", {"query": "q", "documents": ["a", document]}, status=400)
        assert url in answer["message"]
        assert "documents[1]" in answer["message"]
        assert "nothing is fetched" in answer["message"]


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes whose header promises that many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    chunks = [header, b"IDAT" + body, b"IEND"]
    written = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


BROKEN: Final[Mapping[str, tuple[bytes, str]]] = {
    "cut off": (picture(60, 60, seed=1)[:-40], "broken"),
    "cut off JPEG": (picture(60, 60, seed=1, kind="JPEG")[:-300], "broken"),
    "a bomb": (png_of_size(30_000, 30_000), "250000 pixels"),
    "too many pixels": (png_of_size(600, 600), "600 x 600 pixels"),
    "no pixels": (png_of_size(0, 5), "cannot be read"),
    "a strip": (picture(450, 2, seed=1), "too narrow"),
    "noise": (bytes(range(256)), "no image that is known"),
    "empty": (b"", "empty"),
    "BMP": (picture(20, 20, seed=1, kind="BMP"), "BMP"),
    "TIFF": (picture(20, 20, seed=1, kind="TIFF"), "TIFF"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "PDF": (b"%PDF-1.7", "PDF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_read_is_named(server: Server, name: str) -> None:
    image, problem = BROKEN[name]
    good = picture(30, 30, seed=8)
    documents = ["a text", {"image": data_url(good)}, {"image": data_url(image), "text": "b"}]
    answer = post(server, "/v2/rerank", {"query": "q", "documents": documents}, status=400)
    assert answer["message"].startswith("the image of documents[2] cannot be read: "), answer
    assert problem in answer["message"]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("logo.png", "not base64"),
        ("data:image/png;base64,####", "not base64"),
        ("data:image/png,abc", "without base64"),
        ("data:text/html;base64,PGI+", "'text/html'"),
        ("ftp://host/page.png", "nothing is fetched"),
        (5, "no image"),
        ({"url": None}, "no image"),
    ],
)
def test_a_value_that_is_no_image_is_named(server: Server, image: object, problem: str) -> None:
    answer = post(server, "/v1/rerank", {"query": "q", "documents": [{"image": image}]}, status=400)
    assert "documents[0].image" in answer["message"]
    assert problem in answer["message"]


def test_images_are_counted_before_they_are_decoded(server: Server) -> None:
    small = {"image": data_url(picture(20, 20, seed=1))}
    many = post(server, "/v1/rerank", {"query": "q", "documents": [small] * 9}, status=413)
    assert "at most 8 images" in many["message"]
    large = post(server, "/v1/rerank", {"query": "q", "documents": [{"image": "A" * 80_000}]}, status=413)
    assert "at most 50000 bytes in an image" in large["message"]


def test_a_model_of_texts_refuses_images_by_name(server: Server) -> None:
    image = data_url(picture(20, 20, seed=1))
    for query, documents in (("q", ["a", {"text": "b", "image": image}]), ({"text": "q", "image": image}, ["a"])):
        body = {"query": query, "documents": documents, "model": "texts"}
        message = post(server, "/v1/rerank", body, status=400)["message"]
        assert "'texts' reads text only" in message


def test_models_refuse_what_they_were_not_trained_on(server: Server) -> None:
    both = {"text": "b", "image": data_url(picture(20, 20, seed=1))}
    either = post(server, "/v1/rerank", {"query": "q", "documents": [both], "model": "m0"}, status=400)
    assert "not both" in either["message"]
    text = post(server, "/v1/rerank", {"query": "q", "documents": ["a"], "model": "mono"}, status=400)
    assert "documents that are images" in text["message"]
    no_text = post(server, "/v2/rerank", {"query": "q", "documents": ["a", {**both, "text": 5}]}, status=400)
    assert no_text["message"].startswith("documents[1].text is 5; send a string beside the image")
    several = {"content": [{"type": "image", "image": both["image"]}] * 2}
    assert "several images" in post(server, "/v1/rerank", {"query": "q", "documents": [several]}, status=400)["message"]


def test_the_same_picture_scores_the_same_in_every_mode(server: Server) -> None:
    """Grey, palette, transparent, CMYK and turned; animations by their first frame. A cache knows equal ones."""
    grey = [picture(40, 60, seed=5, mode=mode) for mode in ("L", "LA")]
    colours = [picture(40, 60, seed=5, mode=mode) for mode in ("RGB", "RGBA", "P")]
    files = [*grey, *colours, turned(picture(40, 60, seed=5)), animated(picture(40, 60, seed=5))]
    values = relevance(server, "/v2/rerank", query="q", documents=[{"image": data_url(file)} for file in files])
    assert np.allclose(values[0], values[1], atol=1e-5)
    assert np.allclose(values[2], values[[3, 5, 6]], atol=1e-5)
    cmyk = [
        {"image": data_url(picture(40, 60, seed=5, kind="JPEG", mode="CMYK"))},
        {"image": data_url(files[2])},
    ]
    explained = post(server, "/v2/rerank", {"query": "q", "documents": cmyk, "explain": True})["results"]
    assert {one["index"]: one["explain"]["cached"] for one in explained} == {0: False, 1: True}


def turned(image: bytes) -> bytes:
    """The same picture, lying on its side, with a note that says so."""
    from PIL import Image  # noqa: PLC0415 - only slow tests have Pillow

    notes, file = Image.Exif(), BytesIO()
    notes[0x0112] = 6
    Image.open(BytesIO(image)).rotate(90, expand=True).save(file, "PNG", exif=notes)
    return file.getvalue()


def animated(image: bytes) -> bytes:
    from PIL import Image  # noqa: PLC0415 - as above

    file = BytesIO()
    frame = Image.open(BytesIO(image))
    frame.save(file, "PNG", save_all=True, append_images=[frame.rotate(180)], duration=10)
    return file.getvalue()


def test_text_beside_an_image_is_cut_and_an_image_never(server: Server) -> None:
    long = {"text": "the sea " * 3000, "image": data_url(picture(64, 96, seed=1))}
    answer = post(server, "/v2/rerank", {"query": "q", "documents": [long], "explain": True})
    (result,) = answer["results"]
    assert result["explain"]["tokens"] == MAX_LENGTH
    assert result["explain"]["dropped_tokens"] > 1000
    few = post(server, "/v2/rerank", {"query": "q", "documents": [long], "max_tokens_per_doc": 4, "explain": True})
    image = post(server, "/v2/rerank", {"query": "q", "documents": [{"image": long["image"]}], "explain": True})
    tokens = [one["results"][0]["explain"]["tokens"] for one in (few, image)]
    assert tokens[0] == tokens[1] + 4
    passages = post(server, "/v2/rerank", {"query": "q", "documents": [long], "truncation": "chunk"})["results"][0]
    assert passages["passage"]["count"] > 1


def test_a_client_that_goes_away_leaves_the_server_ready(server: Server) -> None:
    documents = [{"image": data_url(picture(400, 500, seed=seed))} for seed in range(8)]
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/v2/rerank", json={"query": "q", "documents": documents}, timeout=0.05)
    assert relevance(server, "/v2/rerank", query="q", documents=documents[:1]).shape == (1,)
    assert "ERROR" not in server.log.read_text()
