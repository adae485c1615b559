"""Outputs are checked before work begins, and nothing is left behind by that."""

import errno
import os
from pathlib import Path

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.outputs import check_files, check_folder, explain_os_error


def test_a_file_that_can_be_written_is_not_made_yet(tmp_path: Path) -> None:
    check_files({"--output": tmp_path / "new.json", "--plot": None})
    assert not list(tmp_path.iterdir())


def test_what_a_file_holds_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text("kept")
    check_files({"--output": path})
    assert path.read_text() == "kept"


def test_standard_output_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--output -: standard output .* name a file"):
        check_files({"--output": Path("-")})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "--output .*folder is a folder; name a file in it"),
        ("nowhere/out.json", "there is no folder .*nowhere; make it first: mkdir -p"),
        ("file/out.json", r"cannot write .*file/out.json \(Not a directory\)"),
        ("pipe", "is not a regular file"),
        ("dangling", r"cannot write .*dangling \(No such file or directory\)"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(ConfigError, match=message):
        check_files({"--output": tmp_path / name})


def test_two_outputs_and_an_input_are_different_files(tmp_path: Path) -> None:
    same, linked = tmp_path / "a", tmp_path / "b"
    same.write_text("input")
    linked.symlink_to(same)
    with pytest.raises(ConfigError, match=r"--plot .* is also --output"):
        check_files({"--output": same, "--plot": tmp_path / "." / "a"})
    with pytest.raises(ConfigError, match=r"OUTPUT .* is also the input"):
        check_files({"OUTPUT": linked}, inputs=[same, None])
    assert same.read_text() == "input"


def test_a_folder_may_be_new_and_is_not_made_yet(tmp_path: Path) -> None:
    check_folder("TARGET", tmp_path / "new" / "deeper")
    check_folder("TARGET", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match=r"TARGET .*: .*/file is not a folder"):
            check_folder("TARGET", folder)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system in which nobody can make a file")
def test_a_folder_that_takes_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RERANKD_PROFILES .*: cannot write in /proc"):
        check_folder("RERANKD_PROFILES", Path("/proc/rerankd/profiles"))


def test_a_full_disk_is_said_in_one_line() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.jsonl")
    assert explain_os_error(error) == "out.jsonl: No space left on device; free some space"
