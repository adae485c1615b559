"""`rerankd keys`: what it prints is what the service reads, and holds no key."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerankd.cli import cli
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.gateway.administration import read_keys
from rerankd.gateway.keys import ApiKeys


def test_the_table_of_a_made_key_is_read_and_the_key_opens_what_its_scopes_say(tmp_path: Path) -> None:
    options = ["--scope", "rerank", "--scope", "admin", "--requests-per-s", "5", "--tokens-per-min", "100"]
    done = CliRunner().invoke(cli, ["keys", 'a "quoted" name', *options])
    assert done.exit_code == 0
    key = done.stderr.split()[-1]
    assert key.startswith("rk_")
    assert len(key) == len("rk_") + 43
    assert key not in done.stdout
    path = tmp_path / "keys.toml"
    path.write_text(done.stdout, encoding="utf-8")
    clients, admins = read_keys(Settings(api_keys_file=path))
    assert (clients[0].name, clients[0].requests_per_s, clients[0].tokens_per_min) == ('a "quoted" name', 5, 100)
    assert ApiKeys(admins).identify([key.encode()], scope="admin").name == 'a "quoted" name'


def test_two_keys_differ() -> None:
    made = {CliRunner().invoke(cli, ["keys", "one"]).stderr for _ in range(2)}
    assert len(made) == 2


def test_a_key_that_exists_is_hashed(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["keys", "old", "--hash"], input="exists already\n".replace(" ", "-"))
    path = tmp_path / "keys.toml"
    path.write_text(done.stdout, encoding="utf-8")
    clients, _ = read_keys(Settings(api_keys_file=path))
    assert ApiKeys(clients).identify([b"exists-already"]).name == "old"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "given", "problem"),
    [
        (["one", "--scope", "write"], "", "must be one of 'rerank', 'metrics' or 'admin'"),
        (["one", "--requests-per-s", "0"], "", "requests_per_s must be greater than 0"),
        (["one", "--hash"], "\n", "key is empty"),
        (["one", "--hash"], "two words\n", "key has a space"),
    ],
)
def test_what_the_service_would_refuse_is_refused(arguments: list[str], given: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CliRunner().invoke(cli, ["keys", *arguments], input=given, catch_exceptions=False)
