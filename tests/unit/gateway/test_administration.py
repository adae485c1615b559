"""What a signal makes the service read again."""

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from rerankd.config.api_keys import read_api_keys
from rerankd.config.settings import Settings
from rerankd.gateway.administration import Administration
from rerankd.gateway.keys import ApiKeys
from rerankd.serving.hosting import Changes, ModelHost


class _Host:
    """Models that never change."""

    async def reload(self) -> Changes:
        return Changes(default="a")

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


@pytest.mark.parametrize("in_a_file", [False, True])
async def test_a_hangup_reads_keys_again_where_a_file_has_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, in_a_file: bool
) -> None:
    (tmp_path / "keys.toml").write_text('[[key]]\nname = "a"\nkey = "first-long-enough"\n')
    given: dict[str, Any] = {"api_keys_file": tmp_path / "keys.toml"} if in_a_file else {}
    settings = Settings(**given)
    keys = ApiKeys(read_api_keys(settings.api_keys, settings.api_keys_file))
    host = cast("ModelHost", _Host())
    with caplog.at_level(logging.INFO, logger="rerankd.audit"):
        await Administration(settings, keys=keys, admin_keys=None, host=host).hang_up()
    said = [record.message for record in caplog.records if record.name == "rerankd.audit"]
    assert said == (["reload of keys", "reload"] if in_a_file else ["reload"])
