"""The command line of `rerankd bench`: lists, headers, and what a report may repeat of them."""

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.benchmark.arguments import read_headers, read_list, shown_command


def test_lists_are_numbers_above_zero() -> None:
    assert read_list("--clients", "1, 8,32", int) == [1, 8, 32]
    assert read_list("--rate", "0.5", float) == [0.5]
    assert read_list("--rate", "", float) == []


@pytest.mark.parametrize("text", ["0", "-1", "x", "1;2", "1,0"])
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--clients"):
        read_list("--clients", text, int)


def test_headers_and_the_key_are_sent() -> None:
    headers = read_headers(["X-Request-Deadline-Ms: 200", "X-Url:http://a:1"], "k")
    assert headers == {"X-Request-Deadline-Ms": "200", "X-Url": "http://a:1", "Authorization": "Bearer k"}


def test_a_report_repeats_the_command_without_its_secrets() -> None:
    words = ["bench", "http://a:1", "--api-key", "s3cret", "--header", "X-Token: t0ken", "--documents", "10,30"]
    assert shown_command([*words, "--api-key=s3cret", "--header=X-Token:t0ken", "--seconds=3"]) == (
        "rerankd bench http://a:1 --api-key '***' --header 'X-Token:***' --documents 10,30 "
        "'--api-key=***' '--header=X-Token:***' --seconds=3"
    )
