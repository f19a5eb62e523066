"""`world_pope` and `world_chair`: the embedded world, whose right answers are known by drawing."""

from __future__ import annotations

from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.world_scenes import LIMITS, NOUNS, picture, world_chair, world_pope

PICTURES, CAPTIONS = 240, 320
ANSWER_TOKENS = CAPTION_TOKENS = 64  # sampled, an answer may turn into a caption; all end by themselves


def world_pope_task(settings: Settings) -> list[EvalTask]:
    """Return the yes/no questions, 18 a picture; a question that several kinds share is asked once."""
    drawn = world_pope(settings.limit or PICTURES, settings.split)
    rows: dict[tuple[int, str], dict[str, None]] = {}
    for q in drawn.questions:
        rows.setdefault((q.picture, q.text), {})[f"pope_{q.kind}"] = None
    items = []
    for number, q in enumerate(drawn.questions):
        kinds = rows.pop((q.picture, q.text), None)
        if kinds is not None:
            items.append(
                Item(
                    key=str(number),
                    picture=str(q.picture),
                    prompt=q.text,
                    images=(picture(drawn.scenes, q.picture),),
                    truth=q.label,
                    rows=tuple(kinds),
                    tags={"object": q.name, "assumed": q.assumed},
                )
            )
    about = {
        "source": f"embedded world, split {settings.split}, its first {len({i.picture for i in items})} scenes with "
        "three objects in view",
        "protocol": "three objects in view and three absent ones a kind and picture (arXiv:2305.10355)",
        "prompt": "is there a ... in the image ?",
        "limits": LIMITS,
    }
    tokens = settings.max_new_tokens or ANSWER_TOKENS
    return [EvalTask("world_pope", "pope", items, tokens, split=settings.split, about=about)]


def world_chair_task(settings: Settings) -> list[EvalTask]:
    """Return the scenes to caption, with the names of what is in view."""
    drawn = world_chair(settings.captions or settings.limit or CAPTIONS, settings.split)
    items = [
        Item(
            key=str(index),
            picture=str(index),
            prompt=drawn.prompt,
            images=(picture(drawn.scenes, index),),
            truth=sorted(objects),
            rows=("chair",),
            tags={"prop": drawn.props[index]},
        )
        for index, objects in drawn.objects.items()
    ]
    about = {
        "source": f"embedded world, caption split {settings.split}, its first {len(items)} scenes",
        "protocol": "CHAIR (arXiv:1809.02156) over the world's nouns; the truth is what is in view",
        "prompt": drawn.prompt,
        "limits": LIMITS,
    }
    return [
        EvalTask(
            "world_chair",
            "chair",
            items,
            settings.max_new_tokens or CAPTION_TOKENS,
            split=settings.split,
            vocabulary=NOUNS,
            about=about,
        )
    ]
