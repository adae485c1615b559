"""Secrets in messages that other libraries write."""

from time import process_time

import pytest

from rerankd.telemetry.redaction import redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open http://user:s3cret@proxy:1/x", "cannot open http://***@proxy:1/x"),
        ("redis://:s3cret@host/0 is away", "redis://***@host/0 is away"),
        ("403 for url: https://cdn/x?X-Amz-Signature=s3cret&y=1 (gated)", "403 for url: https://cdn/x?*** (gated)"),
        ("Illegal header value b'Bearer s3cret'", "Illegal header value b'Bearer ***'"),
        ("{'Authorization': 'Basic s3cret', 'x': 1}", "{'Authorization': '***', 'x': 1}"),
        ("(b'authorization', b's3cret')", "(b'authorization', b'***')"),
        ("api-key: s3cret", "api-key: ***"),
        ("token hf_s3cretS3cretS3cretS3cret is not valid", "token hf_*** is not valid"),
        ("in hf_raise_for_status", "in hf_raise_for_status"),
        ("nothing to hide: https://host/docs, a@b and bearers", "nothing to hide: https://host/docs, a@b and bearers"),
    ],
)
def test_secrets_are_taken_out_and_the_rest_stays(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize("part", ["://", "bearer ", "https://a?", "authorization: ", "hf_", "a:b@"])
def test_a_hostile_text_costs_time_in_proportion_to_its_length(part: str) -> None:
    def seconds(length: int) -> float:
        started = process_time()
        redacted(part * (length // len(part)))
        return process_time() - started

    assert seconds(400_000) < 40 * max(seconds(40_000), 0.001)
