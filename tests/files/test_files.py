"""Atomic, durable files."""

import os
import stat
from pathlib import Path

import pytest

from mixerzoo import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old\r\n")

    def fails_half_way() -> None:
        with files.replacing(path) as partial:
            partial.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_half_way()
    assert path.read_bytes() == b"old\r\n"
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o000])
def test_the_umask_holds_whatever_the_writer_does(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with files.replacing(tmp_path / "a") as partial:
            partial.unlink()
            partial.write_text("x")
            partial.chmod(0o600)
        with files.new_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~umask


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "else").write_text("theirs")
    (tmp_path / "a").symlink_to(tmp_path / "else")
    files.write_text(tmp_path / "a", "ours")
    assert (tmp_path / "else").read_text() == "theirs"
    assert not (tmp_path / "a").is_symlink()


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fails_half_way() -> None:
        with files.new_directory(tmp_path / "d") as partial:
            (partial / "x").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_half_way()
    assert os.listdir(tmp_path) == []
    with files.new_directory(tmp_path / "d") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "x").write_text("x")
    assert (tmp_path / "d" / "sub" / "x").read_text() == "x"
    with pytest.raises(OSError, match="not empty"), files.new_directory(tmp_path / "d") as partial:
        (partial / "y").touch()
    assert os.listdir(tmp_path) == ["d"]
    files.remove_directory(tmp_path / "d")
    assert os.listdir(tmp_path) == []


def test_all_is_synced_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what reaches the disk: content, then the name, then the directory that holds the name."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def spied_replace(source: Path, target: Path) -> None:
        events.append(("name", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    with files.new_directory(tmp_path / "d") as partial:
        (partial / "x").write_text("x")
    assert events == [("sync", "x"), ("sync", partial.name), ("name", "d"), ("sync", tmp_path.name)]
    events.clear()
    with files.replacing(tmp_path / "f") as partial:
        partial.write_text("f")
    assert events == [("sync", partial.name), ("name", "f"), ("sync", tmp_path.name)]


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
