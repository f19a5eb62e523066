"""The notebook runs from top to bottom, offline, in a kernel of its own."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first_look.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_offline(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    NotebookClient(book, kernel_name="python3", timeout=280, resources={"metadata": {"path": tmp_path}}).execute()
    said = ["".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in book.cells]
    assert any("plain" in text and "guarded" in text for text in said)
    assert any("instead of" in text for text in said)
    assert any("image/png" in out.get("data", {}) for cell in book.cells for out in cell.get("outputs", []))


def test_the_notebook_is_kept_without_outputs_and_names_its_next_steps():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
