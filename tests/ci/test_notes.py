"""Release notes are what CHANGELOG.md says of the version, and a tag is that version."""

import importlib.util
from pathlib import Path

import pytest

import lvlm_guard

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("notes", ROOT / ".ci" / "notes.py")
notes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notes)

CHANGES = """\
# Changes

## Unreleased

## 0.2.0 (2026-12-01)

- Two.

### For operators

- Three.

## 0.1.0

- One.
"""


def test_the_notes_of_a_version_are_its_entries_alone():
    assert notes.notes(CHANGES, "0.2.0") == "- Two.\n\n### For operators\n\n- Three."
    assert notes.notes(CHANGES, "0.1.0") == "- One."


@pytest.mark.parametrize("wanted", ["Unreleased", "0.3.0", "0.2"])
def test_a_version_without_entries_is_refused_and_the_others_are_named(wanted):
    with pytest.raises(SystemExit, match=r"says nothing of .*0\.2\.0"):
        notes.notes(CHANGES, wanted)


def test_the_changelog_of_this_checkout_has_notes_to_release_and_a_foreign_tag_is_refused(capsys):
    notes.main()
    assert capsys.readouterr().out.startswith(("- ", "The", "#"))
    assert notes.version() == lvlm_guard.__version__
    with pytest.raises(SystemExit, match=r"The tag is v9\.9\.9"):
        notes.main("v9.9.9")
