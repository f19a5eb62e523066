"""Draw the data of the embedded world's lmms-eval tasks again: `python -m tests.support.world_files`.

The questions and captions are the first ones of `world_pope` and `world_chair` in our own runs, under the same keys
(document 7 is item "7"), in the columns of lmms-eval's `pope` and `coco_cap_chair`: stock scoring reads them too.
"""

from __future__ import annotations

import io
from typing import Any

from lvlm_guard.embedded import world
from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.embedded.world import Scenes
from lvlm_guard.evals.lmms import TASKS
from lvlm_guard.evals.lmms.localize import write_rows
from lvlm_guard.evals.tasks.world import LABELS, NOUNS, picture

PICTURES, CAPTIONS = 8, 12
POPE, CHAIR = "world_pope.parquet", "world_chair.parquet"


def pope_rows() -> list[dict[str, Any]]:
    """Return the questions about the first scenes, 18 a scene; one that two kinds share stands there for each."""
    drawn, asked = pope_set("test", PICTURES)
    return [
        {"id": str(number), "question_id": str(number + 1), "question": world.question(NOUNS[q.asked])}
        | {"answer": LABELS[q.present], "image_source": str(q.scene), "category": q.mode, "image": _png(drawn, q.scene)}
        for number, q in enumerate(asked)
    ]


def chair_rows() -> list[dict[str, Any]]:
    """Return the first scenes to caption, with what is in view."""
    drawn = world.scenes("test_cap", CAPTIONS)
    return [
        {"question_id": index, "question": world.CAPTION_PROMPT, "image_source": str(index)}
        | {"gt_object": sorted(NOUNS[o] for o in drawn.visible(index)[0]), "image": _png(drawn, index)}
        for index in range(CAPTIONS)
    ]


def _png(scenes: Scenes, index: int) -> dict[str, Any]:
    file = io.BytesIO()
    picture(scenes, index).save(file, "PNG", optimize=True)
    return {"bytes": file.getvalue(), "path": None}


if __name__ == "__main__":
    for name, rows in ((POPE, pope_rows()), (CHAIR, chair_rows())):
        write_rows(rows, TASKS / name)
