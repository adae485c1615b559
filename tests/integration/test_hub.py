"""Models from a hub: a real download over HTTP from a small hub, and everything that can go wrong with one."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError, SourceUnreachable
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.sources import Hub, allowed_files, content_hash, find_folder
from rerankd.tasks.encoding import Encoding
from tests.hub import Repository, TinyHub, tiny_hub
from tests.registry_files import write_registry
from tests.servers import free_port, rerankd_server, wait_until_ready

TOKEN = "hf_secret"
WANTED = {"config.json", "tokenizer.json", "tokenizer_config.json", "golden.json", "onnx/model.onnx"}
JUNK_NAMES = (
    ".gitattributes",
    "README.md",
    "pytorch_model.bin",
    "model.pt",
    "training_args.bin",
    "scaler.pkl",
    "modeling_evil.py",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.safetensors",
    "onnx/model_quantized.onnx",
    "onnx/model_O4.onnx",
    "openvino/openvino_model.bin",
)
JUNK = dict.fromkeys(JUNK_NAMES, b"junk")


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[TinyHub]:
    """A hub with the tiny model in the layout that most repositories have."""
    files = {name: (tiny_model / Path(name).name).read_bytes() for name in WANTED} | JUNK
    repositories = {
        "org/model": Repository(files, commits={"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/1": "c" * 40}),
        "org/private": Repository(files, needs_token=TOKEN),
        "org/gated": Repository(files, gated=True),
        "org/gated-too": Repository(files, gated=True, needs_token="another"),
        "org/torch": Repository({**files, "model.safetensors": b"weights"}),
    }
    with tiny_hub(repositories) as running:
        yield running


def download(
    hub: TinyHub | str,
    path: str,
    cache: Path,
    *,
    token: str | None = None,
    offline: bool = False,
    patterns: list[str] | None = None,
) -> Path:
    endpoint = hub if isinstance(hub, str) else hub.url
    return find_folder(
        path,
        beside=cache,
        hub=Hub(token=token, offline=offline, cache=cache, endpoint=endpoint),
        patterns=patterns or allowed_files("onnx", file=None, remote_code=False),
    )


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_that_the_model_needs_are_fetched(hub: TinyHub, tmp_path: Path) -> None:
    folder = download(hub, "hub:org/model", tmp_path)
    assert files_of(folder) == WANTED
    assert hub.fetched() == WANTED


def test_no_pickle_and_no_code_reaches_the_disk(hub: TinyHub, tmp_path: Path) -> None:
    for engine in ("onnx", "torch-encoder", "an-engine-to-come"):
        patterns = allowed_files(engine, file=None, remote_code=False)
        download(hub, "hub:org/model", tmp_path, patterns=patterns)
    names = {path.name for path in tmp_path.rglob("*")}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py", ".h5", ".msgpack"))}


@pytest.mark.parametrize(
    ("engine", "file", "remote_code", "weights"),
    [
        ("onnx", None, False, {"onnx/model.onnx"}),
        ("onnx", "onnx/model_O4.onnx", False, {"onnx/model_O4.onnx"}),
        ("torch-encoder", None, False, {"model.safetensors"}),
        ("torch-encoder", None, True, {"model.safetensors", "modeling_evil.py"}),
    ],
)
def test_each_engine_fetches_its_own_weights(
    hub: TinyHub, tmp_path: Path, engine: str, file: str | None, weights: set[str], *, remote_code: bool
) -> None:
    patterns = allowed_files(engine, file=file, remote_code=remote_code)
    folder = download(hub, "hub:org/torch", tmp_path, patterns=patterns)
    assert files_of(folder) == WANTED - {"onnx/model.onnx"} | weights


def test_weights_beside_a_large_graph_are_fetched_with_it(tmp_path: Path) -> None:
    names = ["onnx/model.onnx", "onnx/model.onnx_data", "model.onnx.data", "onnx/model_fp16.onnx_data"]
    with tiny_hub({"org/large": Repository(dict.fromkeys(names, b"x"))}) as hub:
        assert files_of(download(hub, "hub:org/large", tmp_path)) == set(names[:3])


def test_a_model_of_the_hub_scores_as_the_local_one(hub: TinyHub, tmp_path: Path, tiny_model: Path) -> None:
    folder = download(hub, "hub:org/model", tmp_path)
    encodings: list[Encoding] = list(
        load_scorer("cross-encoder", ScorerSpec(folder=folder))
        .encode("what is the capital of france", ["Paris", "a vaccine"], max_document_tokens=None)
        .encodings
    )
    downloaded, local = (load_engine("onnx", EngineSpec(folder=place, pad_id=0)) for place in (folder, tiny_model))
    np.testing.assert_array_equal(downloaded.run(encodings), local.run(encodings))


@pytest.mark.parametrize(
    ("path", "commit"),
    [
        ("hub:org/model", "a" * 40),
        ("hub:org/model@main", "a" * 40),
        ("hub:org/model@v1.0", "b" * 40),
        ("hub:org/model@refs/pr/1", "c" * 40),
        (f"hub:org/model@{'b' * 40}", "b" * 40),
    ],
)
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: TinyHub, tmp_path: Path, path: str, commit: str) -> None:
    assert download(hub, path, tmp_path).name == commit


def test_the_token_is_sent_with_every_request(hub: TinyHub, tmp_path: Path) -> None:
    download(hub, "hub:org/private", tmp_path, token=TOKEN)
    assert {authorization for _, _, authorization in hub.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("path", "token", "message"),
    [
        ("hub:org/nowhere", None, "no repository org/nowhere on the hub, or it is private: set RERANKD_HUB_TOKEN"),
        ("hub:org/private", None, "no repository org/private on the hub, or it is private: set RERANKD_HUB_TOKEN"),
        ("hub:org/private", "hf_wrong", "no repository org/private on the hub, or it is private"),
        ("hub:org/gated", "hf_any", "org/gated is gated: accept its terms on the hub, then set RERANKD_HUB_TOKEN"),
        ("hub:org/gated-too", None, "org/gated-too is gated: accept its terms"),
        ("hub:org/model@v9", None, "org/model has no revision 'v9'"),
        (f"hub:org/model@{'9' * 40}", None, "org/model has no revision '9999"),
        ("hub:model", None, "hub:model is not the name of a repository; write hub:org/name or hub:org/name@revision"),
        ("hub:org/model@", None, "hub:org/model@ is not the name of a repository"),
        ("hub:org/model@a b", None, "is not the name of a repository"),
        ("hub:../..", None, r"hub:\.\./\.\. is not a repository"),
        ("hub:org/-model-", None, "hub:org/-model- is not a repository"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    hub: TinyHub, tmp_path: Path, path: str, token: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        download(hub, path, tmp_path, token=token)
    assert not isinstance(caught.value, SourceUnreachable)
    assert "hf_" not in str(caught.value)


def test_a_hub_that_is_down_may_be_asked_again(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        SourceUnreachable, match=r"org/model was not downloaded before and the hub cannot be asked \(.+"
    ):
        download(endpoint, "hub:org/model", tmp_path)


def test_what_was_downloaded_serves_while_the_hub_is_down(hub: TinyHub, tmp_path: Path) -> None:
    folder = download(hub, "hub:org/model@v1.0", tmp_path)
    assert download(f"http://127.0.0.1:{free_port()}", "hub:org/model@v1.0", tmp_path) == folder


def test_offline_asks_nobody_and_uses_what_was_downloaded(hub: TinyHub, tmp_path: Path) -> None:
    folder = download(hub, "hub:org/model@v1.0", tmp_path)
    asked = len(hub.requests)
    assert download(hub, "hub:org/model@v1.0", tmp_path, offline=True) == folder
    assert len(hub.requests) == asked


def test_offline_without_a_download_says_so(hub: TinyHub, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable, match=r"not downloaded before; unset RERANKD_HUB_OFFLINE"):
        download(hub, "hub:org/model", tmp_path, offline=True)
    assert not hub.requests


def test_an_incomplete_download_is_not_taken_for_the_model(hub: TinyHub, tmp_path: Path) -> None:
    folder = download(hub, "hub:org/model", tmp_path)
    (folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(SourceUnreachable):
        download(hub, "hub:org/model", tmp_path, offline=True)
    assert files_of(download(hub, "hub:org/model", tmp_path)) == WANTED


def test_a_local_folder_is_relative_to_the_registry(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    found = find_folder("mine", beside=tmp_path / "models", hub=Hub(), patterns=[])
    assert found == tmp_path / "models" / "mine"
    assert find_folder(str(found), beside=Path("/"), hub=Hub(), patterns=[]) == found


def test_a_local_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model folder .*/yours; correct the path, or use hub:org"):
        find_folder("yours", beside=tmp_path, hub=Hub(), patterns=[])


def test_the_content_hash_changes_with_the_files_that_matter_alone(tmp_path: Path) -> None:
    patterns = allowed_files("onnx", file=None, remote_code=False)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(tmp_path, patterns=patterns)
    (tmp_path / "README.md").write_text("new")
    assert content_hash(tmp_path, patterns=patterns) == before
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"weightz")
    changed = content_hash(tmp_path, patterns=patterns)
    (tmp_path / "onnx" / "model.onnx").rename(tmp_path / "model.onnx")
    assert len({before, changed, content_hash(tmp_path, patterns=patterns)}) == 3


def test_a_service_downloads_its_model_and_becomes_ready(hub: TinyHub, tmp_path: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": "hub:org/private@main"}])
    environment = {"HF_ENDPOINT": hub.url, "RERANKD_HUB_TOKEN": TOKEN, "RERANKD_HUB_CACHE": str(tmp_path / "hub")}
    with rerankd_server(tmp_path, registry, **environment) as server:
        wait_until_ready(server)
    assert hub.fetched() == WANTED


_SIGNATURE = "c2lnbmVkIGZvciB5b3Ugb25seQ"


def _signed(files: Mapping[str, bytes], *, status: int = 200) -> AbstractContextManager[TinyHub]:
    return tiny_hub({"org/signed": Repository(files, signature=_SIGNATURE, storage_status=status)})


def test_a_download_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a line whenever something came: a small file may be known, and fetched, before the large one
    monkeypatch.setattr("rerankd.serving.downloads._FIRST_LINE_S", 0.0)
    monkeypatch.setattr("rerankd.serving.downloads._ELSEWHERE_S", 0.0)
    files = {"config.json": b"{}", "model.safetensors": bytes(3_000_000)}
    with _signed(files) as hub, caplog.at_level(logging.INFO):
        download(hub, "hub:org/signed", tmp_path, patterns=["*"])
        download(hub, "hub:org/signed", tmp_path, patterns=["*"])
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rerankd")]
    first, *lines, last, again = ours
    assert first == again == "looking for model org/signed on the hub"
    assert any(re.fullmatch(r"downloading org/signed: \[[#.]{20}\] \d+% of 3\.0 MB, .*/s", line) for line in lines), (
        lines
    )
    assert re.fullmatch(r"downloaded org/signed: 3\.0 MB in \d+\.\d s", last)


def test_no_log_line_shows_a_signed_url(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: (tiny_model / Path(name).name).read_bytes() for name in WANTED}
    registry = write_registry(tmp_path, [{"name": "tiny", "path": "hub:org/signed"}])
    with _signed(files) as hub:
        environment = {"HF_ENDPOINT": hub.url, "RERANKD_HUB_CACHE": str(tmp_path / "hub"), "RERANKD_LOG_LEVEL": "DEBUG"}
        with rerankd_server(tmp_path, registry, **environment) as server:
            wait_until_ready(server)
        assert any("storage" in path for _, path, _ in hub.requests)
    logged = "".join(path.read_text(errors="replace") for path in tmp_path.glob("*.log"))
    assert "downloaded org/signed" in logged
    assert _SIGNATURE not in logged


def test_no_error_shows_a_signed_url(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(1000)}
    with _signed(files, status=403) as hub, pytest.raises(SourceUnreachable) as caught:
        download(hub, "hub:org/signed", tmp_path, patterns=["*"])
    assert "403 Forbidden" in str(caught.value)
    assert _SIGNATURE not in str(caught.value)
