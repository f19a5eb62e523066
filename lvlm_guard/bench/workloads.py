"""What `bench` asks: captions and yes/no questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lvlm_guard.bench.measure import Workload
from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image

CAPTION = "Describe this image in detail."
QUESTION = "Is there {noun} in the image? Please answer this question with one word."
SIDE = 336  # pixels to which scenes are enlarged for other models: LLaVA-1.5's tower


def world_workloads(blocks: int, batches: Sequence[int] = (1, 8)) -> list[Workload]:
    """Return the embedded model's workloads: captions at each batch size, POPE questions one by one.

    The questions are POPE's three sets in equal parts, each of another scene, half of them about objects
    in view. None of the pictures was trained on.

    Args:
        blocks: repetitions that will be run.
        batches: captions in one call.
    """
    from lvlm_guard.embedded.questions import pope_set
    from lvlm_guard.embedded.world import CAPTION_PROMPT, CLASSES, question, scenes

    def at(drawn: Sequence[Image.Image], batch: int, call: int) -> list[Image.Image]:
        return [drawn[(call * batch + i) % len(drawn)] for i in range(batch)]

    calls = {batch: max(1, 4 // batch) for batch in batches}
    most = max(blocks * calls[batch] * batch for batch in batches)
    to_caption = [Image.fromarray(scene.image) for scene in scenes("test_cap", most)]
    captions = [
        Workload(
            task="caption",
            batch=batch,
            calls=calls[batch],
            prompts=lambda call, batch=batch: [CAPTION_PROMPT] * batch,  # type: ignore[misc]
            pictures=lambda call, batch=batch: at(to_caption, batch, call),  # type: ignore[misc]
            new_tokens=40,
        )
        for batch in batches
    ]
    drawn, asked = pope_set("test", blocks * 18)
    # one question a scene; 7 and 18 have no common divisor, so all kinds take their turn
    each = len(asked) // len({q.scene for q in asked})
    turns = [asked[k * each + (7 * k) % each] for k in range(len(asked) // each)]
    questions = Workload(
        task="question",
        batch=1,
        calls=18,
        prompts=lambda call: [question(CLASSES[turns[call % len(turns)].asked])],
        pictures=lambda call: [Image.fromarray(drawn.image[turns[call % len(turns)].scene])],
        new_tokens=4,
    )
    return [*captions, questions]


def picture_workloads(
    pictures: Sequence[Image.Image], batches: Sequence[int] = (1, 8), new_tokens: int = 64
) -> list[Workload]:
    """Return workloads on given pictures, taken in turn: captions, and questions about common objects.

    Raises:
        ImageError: there is no picture.
    """
    from lvlm_guard.embedded.world import CLASSES

    if not pictures:
        raise ImageError("There is no picture to measure with: give --images a folder with picture files.")

    def at(batch: int, call: int) -> list[Image.Image]:
        return [pictures[(call * batch + i) % len(pictures)] for i in range(batch)]

    captions = [
        Workload(
            task="caption",
            batch=batch,
            calls=1,
            prompts=lambda call, batch=batch: [CAPTION] * batch,  # type: ignore[misc]
            pictures=lambda call, batch=batch: at(batch, call),  # type: ignore[misc]
            new_tokens=new_tokens,
        )
        for batch in batches
    ]
    questions = Workload(
        task="question",
        batch=1,
        calls=6,
        prompts=lambda call: [QUESTION.format(noun=_article(CLASSES[(7 * call) % len(CLASSES)]))],
        pictures=lambda call: at(1, call),
        new_tokens=4,
    )
    return [*captions, questions]


def folder_pictures(folder: Path) -> list[Image.Image]:
    """Return the pictures of a folder by name; other files are passed over.

    Raises:
        ImageError: there is no such folder, or a picture in it can't be used.
    """
    if not folder.is_dir():
        raise ImageError(f"There is no folder {str(folder)!r} with pictures. Check the path.")
    Image.init()
    kinds = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    return [load_image(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds - {".pdf", ".eps"}]


def made_pictures(count: int = 32) -> list[Image.Image]:
    """Return scenes of the embedded world, enlarged: pictures to measure with where a user gives none."""
    from lvlm_guard.embedded.world import scenes

    drawn = scenes("test", count).image
    return [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in drawn]


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
