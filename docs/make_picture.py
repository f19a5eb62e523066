"""Draw docs/picture.png, the README's first picture: what the model says plainly and guarded, and why.

    python docs/make_picture.py [docs/picture.png]

The examples are not picked by hand: the first held-out adversarial question on which plain greedy decoding names an
absent object and AGLA does not, and the first held-out pair of captions that repeat no object, in which `vote` drops
every absent object that plain
decoding names and loses none that is there.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from lvlm_guard import guard, methods
from lvlm_guard.evals.tasks.world import NOUNS, picture, world_chair, world_pope
from lvlm_guard.matching import load_matcher, local_view
from lvlm_guard.pretrained import ask, load_model, spoken
from lvlm_guard.report.pictures import overlay

SIDE, GAP, WIDTH = 264, 20, 1290
INK, GREY, RED, GREEN = "#1d2433", "#667085", "#c02637", "#12734a"
VOTE = methods.Vote(objects=NOUNS)


def font(size: int) -> Any:
    """Pillow's own font, so that the picture is the same on every machine."""
    return ImageFont.load_default(size)


def answer(model: Any, processor: Any, image: Image.Image, question: str, method: Any) -> str:
    """Return what the model says."""
    inputs = ask(processor, [[image]], [question])
    tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False, guard=method)
    return spoken(processor, tokens[0, inputs["input_ids"].shape[1] :]).strip()


def first_question(model: Any, processor: Any) -> tuple[Image.Image, Any, str, str]:
    """Return picture, question, plain and guarded answer of the first example by the rule."""
    pope = world_pope(60)
    for question in pope.questions:
        if question.kind != "adversarial" or question.label != "no":
            continue
        image = picture(pope.scenes, question.picture)
        plain = answer(model, processor, image, question.text, False)
        guarded = answer(model, processor, image, question.text, methods.AGLA())
        if plain.startswith("yes") and guarded.startswith("no"):
            return image, question, plain, guarded
    raise SystemExit("no such question among the first 60 pictures")


def first_caption(model: Any, processor: Any) -> tuple[Image.Image, set[str], str, str]:
    """Return picture, what is in it, plain and guarded caption of the first example by the rule."""
    captions = world_chair(320)
    for index in range(320):
        image, there = picture(captions.scenes, index), set(captions.objects[index])
        plain = answer(model, processor, image, captions.prompt, False)
        guarded = answer(model, processor, image, captions.prompt, VOTE)
        said, kept = named(plain), named(guarded)
        if any(len(re.findall(rf"\b{noun}\b", text)) > 1 for text in (plain, guarded) for noun in NOUNS):
            continue
        if said - there and not kept - there and said & there <= kept:
            return image, there, plain, guarded
    raise SystemExit("no such caption among the first 320 pictures")


def named(text: str) -> set[str]:
    """Return the objects that a text names."""
    return set(re.findall(r"\w+", text)) & set(NOUNS)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: str) -> int:
    """Write a line; returns where the next one starts."""
    draw.text(at, text, fill=ink, font=font(size))
    return at[1] + round(size * 1.45)


def sentence(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, there: set[str], right: int) -> int:
    """Write a caption over several lines, what is not in the picture red and struck out."""
    x, y = at
    face = font(25)
    for word in re.sub(r" ([,.])", r"\1", text).split():
        wide = draw.textlength(word + " ", font=face)
        if x + wide > right:
            x, y = at[0], y + 36
        noun = re.sub(r"\W", "", word)
        absent = noun in NOUNS and noun not in there
        draw.text((x, y), word, fill=RED if absent else INK, font=face)
        if absent:
            draw.line((x, y + 16, x + draw.textlength(noun, font=face), y + 16), fill=RED, width=3)
        x += wide
    return y + 46


def main(path: str = "docs/picture.png") -> None:
    """Draw the picture."""
    torch.manual_seed(0)
    model, processor = guard(*load_model(device="cpu", dtype="float32"))
    sheet = Image.new("RGB", (WIDTH, 2 * SIDE + 5 * GAP + 60), "white")
    draw = ImageDraw.Draw(sheet)
    left = GAP + 3 * (SIDE + GAP) + GAP

    image, question, plain, guarded = first_question(model, processor)
    match = load_matcher(None, model=model)([image], [question.text])[0]
    panels = ("the picture", "what matters to the question", "the local view")
    for column, (label, shown) in enumerate(
        zip(panels, (image, overlay(image, match.relevance), local_view(image, match)), strict=True)
    ):
        x = GAP + column * (SIDE + GAP)
        smooth = Image.Resampling.BICUBIC if column == 1 else Image.Resampling.NEAREST
        sheet.paste(shown.resize((SIDE, SIDE), smooth), (x, GAP))
        write(draw, (x, GAP + SIDE + 6), label, 19, GREY)
    y = write(draw, (left, GAP + 20), f"“{question.text.replace(' ?', '?')}”", 28, INK)
    y = write(draw, (left, y + 6), f"There is no {question.name} in it.", 21, GREY)
    y = write(draw, (left, y + 22), f"plain      {plain}", 30, RED)
    write(draw, (left, y + 4), f"AGLA     {guarded}", 30, GREEN)

    image, there, plain, guarded = first_caption(model, processor)
    top = SIDE + 3 * GAP + 34
    sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (GAP, top))
    write(draw, (GAP, top + SIDE + 6), "the picture", 19, GREY)
    x = GAP + SIDE + 2 * GAP
    y = write(draw, (x, top), "“Please describe this image in detail.”", 28, INK)
    y = write(draw, (x, y + 16), "plain", 21, GREY)
    y = sentence(draw, (x, y), plain, there, WIDTH - GAP)
    y = write(draw, (x, y + 10), "vote", 21, GREY)
    sentence(draw, (x, y), guarded, there, WIDTH - GAP)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
