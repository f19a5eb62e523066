"""What `bench` asks: captions and yes/no questions about pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    most = max(blocks * _calls(batch) * batch for batch in batches)
    to_caption = [Image.fromarray(scene.image) for scene in scenes("test_cap", most)]
    captions = [_captions(to_caption, CAPTION_PROMPT, batch, _calls(batch), 40) for batch in batches]
    drawn, asked = pope_set("test", blocks * 18)
    # one question a scene; 7 and 18 have no common divisor, so all kinds take their turn
    each = len(asked) // len({q.scene for q in asked})
    turns = [asked[k * each + (7 * k) % each] for k in range(len(asked) // each)]
    questions = _questions(
        18,
        lambda call: question(CLASSES[turns[call % len(turns)].asked]),
        lambda call: Image.fromarray(drawn.image[turns[call % len(turns)].scene]),
    )
    return [*captions, questions]


def picture_workloads(
    pictures: Sequence[Image.Image], batches: Sequence[int] = (1, 8), new_tokens: int = 64
) -> list[Workload]:
    """Return workloads on given pictures, taken in turn: captions, and questions about common objects.

    Raises:
        ImageError: there is no picture.
    """
    from lvlm_guard.embedded.text import article
    from lvlm_guard.embedded.world import CLASSES

    if not pictures:
        raise ImageError("There is no picture to measure with: give --images a folder with picture files.")

    def asked(call: int) -> str:
        return QUESTION.format(noun=article(CLASSES[(7 * call) % len(CLASSES)]))

    questions = _questions(6, asked, lambda call: pictures[call % len(pictures)])
    return [*(_captions(pictures, CAPTION, batch, 1, new_tokens) for batch in batches), questions]


def _calls(batch: int) -> int:
    return max(1, 4 // batch)


def _captions(pictures: Sequence[Image.Image], prompt: str, batch: int, calls: int, new_tokens: int) -> Workload:
    """Return captions of pictures, taken in turn."""

    def shown(call: int) -> list[Image.Image]:
        return [pictures[(call * batch + i) % len(pictures)] for i in range(batch)]

    return Workload("caption", batch, calls, lambda call: [prompt] * batch, shown, new_tokens)


def _questions(calls: int, asked: Callable[[int], str], shown: Callable[[int], Image.Image]) -> Workload:
    return Workload("question", 1, calls, lambda call: [asked(call)], lambda call: [shown(call)], new_tokens=4)


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
