"""API keys in a variable and in a file: what is read, what is refused, and that no message tells a key."""

from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import SecretStr

from rerankd.config.api_keys import ApiKey, read_api_keys
from rerankd.errors import ConfigError


def _key_file(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def test_keys_come_from_the_variable_and_from_the_file(tmp_path: Path) -> None:
    hashed = _digest("third").upper()
    path = _key_file(
        tmp_path,
        f'[[key]]\nname = "a"\nkey = " second "\nrequests_per_s = 5\n[[key]]\nname = "b"\nsha256 = "{hashed}"\n',
    )
    assert read_api_keys([SecretStr("first")], path) == [
        ApiKey(name="key-1", sha256=_digest("first")),
        ApiKey(name="a", sha256=_digest("second"), requests_per_s=5),
        ApiKey(name="b", sha256=_digest("third")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "key is missing: the file must have at least one [[key]] table"),
        ("key = []", "key is missing: the file must have at least one [[key]] table"),
        ("[[keys]]\nname = 'a'", "unknown key 'keys' (did you mean 'key'?)"),
        ("[[key", "keys.toml is not valid TOML, at its end"),
        ("[[key]]\nkey = s3cret", "keys.toml is not valid TOML, line 2, column 7"),
        ('[[key]]\nkey = "s3cret"\n', "[[key]] number 1: name is missing"),
        ('[[key]]\nname = "a"\n', "[[key]] number 1 ('a'): must have either key or sha256"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nsha256 = "s3cret"\n', "sha256 must be 64 hexadecimal digits"),
        (f'[[key]]\nname = "a"\nkey = "s3cret"\nsha256 = "{_digest("x")}"\n', "must have either key or sha256"),
        ('[[key]]\nname = "a"\nkey = " "\n', "[[key]] number 1 ('a'): key is empty"),
        ('[[key]]\nname = "a"\nkey = "s3cret s3cret"\n', "key has a space or a control character inside"),
        ('[[key]]\nname = "a"\nkey = 5\n', "key must be a text in quotes"),
        ('[[key]]\nname = "a"\nsha256 = "s3cret"\n', "sha256 must be 64 hexadecimal digits"),
        (f'[[key]]\nname = "a"\nsha256 = "{_digest("")}"\n', "sha256 is the hash of an empty text"),
        (f'[[key]]\nname = "a"\nsha256 = "{sha256(chr(10).encode()).hexdigest()}"\n', "is the hash of an empty text"),
        ('[[key]]\nname = ""\nkey = "s3cret"\n', "name must not be empty"),
        ('[[key]]\nname = "a\\nb"\nkey = "s3cret"\n', "name must not have control characters"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nrequests_per_s = 0\n', "requests_per_s must be greater than 0"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nrequests_per_s = inf\n', "requests_per_s must be a finite number"),
        ('[[key]]\nname = "a"\nkey = "s3cret"\nrequest_per_s = 5\n', "unknown key 'request_per_s' (did you mean"),
        ('[[key]]\nname = "a"\ns3cret = "key"\n', "unknown key (known keys: name, "),
        (
            '[[key]]\nname = "a"\nkey = "s3cret"\n[[key]]\nname = "b"\nkey = "s3cret"\n',
            "key 2 of .* is the same as key 1",
        ),
        (
            '[[key]]\nname = "a"\nkey = "s3cret"\nrequests_per_s = 1\n[[key]]\nname = "a"\nkey = "other"\n',
            "key 2 of .* and key 1 of .* have the same name, 'a'",
        ),
    ],
)
def test_an_unusable_file_is_refused_without_telling_a_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_api_keys([], _key_file(tmp_path, text))
    told = str(refused.value)
    assert all(part in told for part in message.split(".*"))
    assert "s3cret" not in told
    assert _digest("s3cret") not in told


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a"], "key 3 of RERANKD_API_KEYS is the same as key 1 of RERANKD_API_KEYS"),
        (["s3cret s3cret"], "RERANKD_API_KEYS: key 1 has a space"),
        (["a", "s3cret\ns3cret"], "RERANKD_API_KEYS: key 2 has a space or a control character"),
        (["'s3cret'"], "RERANKD_API_KEYS: key 1 is in quotation marks"),
    ],
)
def test_a_key_of_the_variable_that_cannot_be_meant_is_refused(keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read_api_keys([SecretStr(key) for key in keys], None)
    assert "s3cret" not in str(refused.value)


def test_a_key_in_the_variable_and_in_the_file_is_refused_for_its_limits_would_be_gone(tmp_path: Path) -> None:
    path = _key_file(tmp_path, '[[key]]\nname = "limited"\nkey = "s3cret"\nrequests_per_s = 1\n')
    with pytest.raises(ConfigError, match=r"\('limited'\) is the same as key 1 of RERANKD_API_KEYS; remove one"):
        read_api_keys([SecretStr("s3cret")], path)


def test_a_name_of_the_file_that_the_variable_gives_is_refused(tmp_path: Path) -> None:
    path = _key_file(tmp_path, '[[key]]\nname = "key-1"\nkey = "s3cret"\n')
    with pytest.raises(ConfigError, match="have the same name, 'key-1'"):
        read_api_keys([SecretStr("other")], path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the API keys in .*/none\.toml \(No such file"):
        read_api_keys([], tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("line", "mode", "warned"),
    [
        ('key = "s3cret"', 0o644, True),
        ('key = "s3cret"', 0o640, False),
        (f'sha256 = "{_digest("s3cret")}"', 0o644, False),
    ],
)
def test_plain_keys_that_everybody_may_read_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, mode: int, warned: bool
) -> None:
    path = _key_file(tmp_path, f'[[key]]\nname = "a"\n{line}\n')
    path.chmod(mode)
    read_api_keys([], path)
    assert ("holds API keys in plain text" in caplog.text) == warned
    assert "s3cret" not in caplog.text
