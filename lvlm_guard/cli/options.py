"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lvlm_guard.cli.console import usage

if TYPE_CHECKING:
    from PIL.Image import Image

Model = Annotated[str, typer.Option(help="'embedded' (no download), a folder, or a hub id.", metavar="ID")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Way = Literal["auto", "lazy", "batched"]
Execution = Annotated[Way, typer.Option(help="How the branches are run: the same tokens, another cost.")]
PLACE: dict[str, Any] = {"parser": lambda text: str(Path(text)) if text else "", "metavar": "PATH"}
"""Of an option that is a path and decides a run, however it is written: "photos/" is "photos"."""

Adapter = Annotated[
    str | None, typer.Option(help="A PEFT adapter to put over the model: a folder or a hub id.", metavar="DIR")
]
Method = Annotated[str, typer.Option(help="A decoding method; `lvlm-guard methods` lists them.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
StartOver = Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Knobs = Annotated[
    list[str] | None,
    typer.Option("--knob", help="A knob of the method, e.g. alpha=1.5. Repeatable.", metavar="NAME=VALUE"),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        help="A picture file; 'world:7' is scene 7 of the embedded world. Repeatable.",
        metavar="PATH",
    ),
]
Matchers = Annotated[
    list[str] | None,
    typer.Option(
        "--matcher",
        help="A matcher by its registered name, several with '+' between them, or a folder under a name of your own. "
        "Several of one NAME are its training seeds. Repeatable.",
        metavar="NAME[=FOLDER]",
    ),
]
Matcher = Annotated[
    str | None, typer.Option(help="A registered matcher, a BLIP folder or hub id; default: the model's.")
]
Objects = Annotated[str | None, typer.Option(help="List of what captions may name. [default: COCO]", metavar="FILE")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")]
MaxPixels = Annotated[
    int | None, typer.Option(help="Most pixels of a picture to accept; 0 for no limit. [default: 128 million]", min=0)
]

WORLD_ONLY = (
    "The embedded model knows only its own world: 96 x 96 scenes of 54 drawn objects. On any other picture its answer "
    "shows that the parts work together, and says nothing about the picture. Give --model a real model for that."
)


def knobs_of(name: str, pairs: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Return the knobs of a method's NAME=VALUE texts; of a combination ("agla+rudder") METHOD.NAME=VALUE, by method.

    Raises:
        UnknownNameError: no method has this name.
        KnobError: a value that a knob can't take.
    """
    from lvlm_guard.api import parts_of
    from lvlm_guard.knobs import defaults_of, read_knob

    parts = parts_of(name)
    defaults, given = {part: defaults_of(part) for part in parts}, {part: dict[str, Any]() for part in parts}
    for pair in pairs or ():
        left, equals, value = pair.partition("=")
        if not equals:
            raise usage(f"--knob {pair!r} has no value: write NAME=VALUE, such as alpha=1.5.")
        part, dot, knob = left.strip().rpartition(".")
        if not dot and len(parts) > 1:
            raise usage(f"--knob {pair!r}: whose of {name}? Write METHOD.NAME=VALUE, such as {parts[0]}.{pair}.")
        if dot and part not in parts:
            raise usage(f"--knob {pair!r}: {part!r} is none of {', '.join(parts)}.")
        given[part or name][knob] = read_knob(knob, value.strip(), defaults[part or name].get(knob))
    return given


def method_of(name: str, knobs: Sequence[str] | None) -> Any:
    """Return a method from its name and `knobs_of` it; raises `KnobError` where it has no such knob too."""
    from lvlm_guard.api import combined, resolve

    given = knobs_of(name, knobs)
    return combined(name, lambda part: resolve(part, given[part]))


def checked_knobs(name: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Return a method's knobs; raises as `method_of` does, and `KnobError` for those of a combination."""
    method_of(name, pairs)
    given = knobs_of(name, pairs)
    if name not in given and any(given.values()):
        raise usage(f"--knob is of one method here, and {name} is a combination.")
    return given.get(name, {})


def knob_value(method: str, knob: str, text: str) -> Any:
    """Return a knob's text as a value of the type that the method takes.

    Raises:
        UnknownNameError: no method has this name.
        KnobError: it has no such knob.
    """
    from lvlm_guard.knobs import defaults_of, no_knob, read_knob

    defaults = defaults_of(method)
    if knob not in defaults:
        raise no_knob(method, knob, text, defaults)
    return read_knob(knob, text, defaults[knob])


def matchers_of(texts: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Return what --matcher names: name -> names, folders or hub ids for `load_matcher`, one for each training seed.

    A folder without a name is called as its last part.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts or ():
        left, equals, right = text.partition("=")
        name, place = (left.strip(), right.strip()) if equals else (PurePath(text).name, text.strip())
        if not place or not re.fullmatch(r"[\w.+-]+", name):
            raise usage(
                f"--matcher {text!r}: write NAME or NAME=FOLDER, the name of letters, digits, '-', '+' and '.'."
            )
        if place in found.get(name, ()):
            raise usage(f"--matcher {text!r} is given twice: several of one name are different trainings.")
        found[name] = (*found.get(name, ()), place)
    return found


def objects_of(source: str | None, model: str) -> Any:
    """Return a list of objects for `Vocabulary.of`: the embedded world's own where the embedded model is given none."""
    from lvlm_guard.embedded.catalog import CLASSES

    return CLASSES if source is None and model == "embedded" else source


def pictures_of(sources: Sequence[str] | None, model: str, max_pixels: int | None) -> tuple[list[Image], list[str]]:
    """Return the pictures of --image and what is to be said about them.

    Without any, the embedded model looks at scene 0 of its own world.

    Raises:
        ImageError: a file can't be used.
    """
    from lvlm_guard.images import MAX_PIXELS, load_image, notes

    limit = MAX_PIXELS if max_pixels is None else max_pixels or None
    if not sources and model != "embedded":
        raise usage("Give a picture: --image PATH.")
    pictures, remarks = [], []
    for source in sources or ["world:0"]:
        number = re.fullmatch(r"world:(\d+)", source)
        if number:
            pictures.append(scene(int(number[1])))
            continue
        picture = load_image(source, max_pixels=limit)
        pictures.append(picture)
        remarks += [f"{source}: {note}." for note in notes(picture)]
        if model == "embedded" and WORLD_ONLY not in remarks:
            remarks.append(WORLD_ONLY)
    return pictures, remarks


def scene(number: int) -> Image:
    """Return one of the embedded world's held-out scenes."""
    from PIL import Image as pillow

    from lvlm_guard.embedded.world import SPLITS, scenes

    size = SPLITS["test"].size
    if number >= size:
        raise usage(f"world:{number} is no scene: there are world:0 to world:{size - 1}.")
    return pillow.fromarray(scenes("test", number + 1).image[number])
