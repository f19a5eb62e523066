"""Pictures for the published question files: each file name, one tiny JPEG."""

import io

import pytest
from PIL import Image
from question_rows import published


@pytest.fixture(scope="session")
def jpeg():
    """The bytes of a small JPEG."""
    held = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 60, 20)).save(held, "JPEG")
    return held.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, jpeg):
    """A folder with every picture of the published POPE files."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("coco", "aokvqa", "gqa"):
        rows = published(name, "random")
        for image in {row["image"] for row in rows}:
            (folder / image).write_bytes(jpeg)
    return folder
