"""`rerankd tune`, and a service that takes what it found."""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerankd.cli import cli
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.serving.assembly import running_service
from rerankd.serving.profiles import Profile, profile_path, read_profile
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry

Tune = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "tiny"))


@pytest.fixture
def settings(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    registry = write_registry(tmp_path, [{"name": "tiny", "aliases": ["small"], "path": model}])
    monkeypatch.setenv("RERANKD_REGISTRY", str(registry))
    monkeypatch.setenv("RERANKD_PROFILES", str(tmp_path / "profiles"))
    return Settings()


def tune(*arguments: str) -> str:
    handlers, level = list(logging.root.handlers), logging.root.level
    done = CliRunner().invoke(cli, ["tune", "--budget-s", "1", *arguments])
    # the command sends all logs of its process to its own standard error, which is closed by now
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def profile_of(settings: Settings) -> Profile:
    profile = read_profile(profile_path(settings.profiles, "tiny"))
    assert profile is not None
    return profile


async def _engine(settings: Settings) -> str:
    async with running_service(settings, Silent()) as service:
        return str((await service.model_named("tiny").settled()).details["engine"])


def test_a_cascade_is_not_tuned_in_the_place_of_its_first_member(tmp_path: Path, settings: Settings) -> None:
    models = [
        {"name": name, "path": tmp_path / "tiny", **({"fallback": "tiny"} if name == "other" else {})}
        for name in ("tiny", "other")
    ]
    write_registry(tmp_path, [*models, {"name": "both", "stages": ["tiny:2", "other"]}])
    with pytest.raises(ConfigError, match=r"'both' is a cascade .*tune its members: tiny, other"):
        tune("both")
    assert not settings.profiles.exists() or not any(settings.profiles.iterdir())


def test_what_is_kept_is_among_what_was_measured(settings: Settings) -> None:
    printed = tune("small")
    profile = profile_of(settings)
    assert str(settings.profiles) in printed.replace("\n", "")
    assert f"{profile.choice.batch_tokens} tokens" in printed
    assert profile.pairs_per_s >= profile.default_pairs_per_s > 0


async def test_a_service_takes_what_was_tuned_until_the_model_changes(
    settings: Settings, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(tune)
    with caplog.at_level(logging.INFO, "rerankd.serving.profiles"):
        assert (await _engine(settings)).startswith(profile_of(settings).choice.engine)
        assert [record.message for record in _of_profiles(caplog)] == ["profile is used"]
        caplog.clear()

        with (model / "config.json").open("a") as config:
            config.write("\n")
        assert (await _engine(settings)).startswith("onnx")
        [record] = _of_profiles(caplog)
        assert record.__dict__["reason"] == "the model's files have changed"


def _of_profiles(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The tiny model has a warning of its own: it knows no answers."""
    return [record for record in caplog.records if record.name == "rerankd.serving.profiles"]


def test_an_engine_that_scores_golden_pairs_wrongly_is_left_out(settings: Settings, model: Path) -> None:
    golden = json.loads((model / "golden.json").read_text())
    golden["pairs"][0]["logit"] += 10 * golden["tolerance"]
    (model / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(ConfigError, match="no engine can serve 'tiny' here"):
        tune()
    assert not settings.profiles.exists()


def test_a_model_that_is_not_served_is_named(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="unknown model large; known: tiny"):
        tune("large")
