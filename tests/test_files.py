"""A file is the old one or the new one, whatever happens while it is written."""

import pytest

from lvlm_guard.files import caches, whole


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_changes_when_all_is_written_and_not_before(tmp_path, shared):
    path = tmp_path / "made" / "note.txt"
    with whole(path, shared) as part:
        part.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        stopped(path, shared)
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def stopped(path, shared):
    """Write half a file, and be stopped."""
    with whole(path, shared) as part:
        part.write_text("sec")
        raise KeyboardInterrupt


def test_caches_are_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches() == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/there")
    assert str(caches()) == "/there/.cache"
