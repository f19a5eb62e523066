"""Captions of several decoders, whole and cut to equal lengths.

A decoder that says less names fewer objects that are not there. So each is also held against the baseline with both
captions of a picture cut after as many words as the shorter one has: what is gained there is gained by what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given
from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.coco.chair import truth_of

CUT = "cut as short as"


def prefix(text: str, words: int) -> str:
    """Return the first words between blanks of a text; a shorter one as it is."""
    found = text.split()
    return text if len(found) <= words else " ".join(found[:words])


def by_picture(name: str, given: Iterator[Given]) -> list[Given]:
    """Return a file's captions, the picture's id as what tells them apart.

    Raises:
        DataError: a caption is of no picture.
    """
    found = []
    for answer in given:
        if not answer.picture:
            raise DataError(
                f"Line {answer.line} of {name} names no picture: captions need 'image_id', or 'image' (a file name)."
            )
        key = str(image_id(answer.picture))
        found.append(answer._replace(item=key, picture=key, decoder=answer.decoder or name))
    return found


def objects_of(annotations: Path | None, captions: Sequence[Given]) -> dict[str, list[str]]:
    """Return the objects of each picture, by the annotations, or as lmms-eval's log has them.

    Raises:
        DataError: nothing says what is in a picture.
    """
    of: Callable[[str], list[str] | None]
    if annotations is not None:
        of = truth_of(Settings(annotations=str(annotations))).of
    else:
        logged = {caption.item: caption.objects for caption in captions}
        of = logged.get
    found: dict[str, list[str]] = {}
    for caption in captions:
        objects = found[caption.item] if caption.item in found else of(caption.item)
        if objects is None:
            raise DataError(
                "Nothing says what is in the pictures: give COCO's annotations (their folder), or a ground truth of "
                "CHAIR, with --annotations."
            )
        found[caption.item] = sorted(objects)
    return found


def cut_as_short(captions: Mapping[str, Sequence[Given]], baseline: str) -> tuple[list[Given], dict[str, str]]:
    """Return each decoder's captions and the baseline's, picture by picture cut to the shorter of the two.

    Also returns, of these decoders, the baseline's -> the other's whose control it is.
    """
    every = [caption for those in captions.values() for caption in those]
    plain = {(caption.item, caption.seed): caption for caption in every if caption.decoder == baseline}
    made: list[Given] = []
    controls: dict[str, str] = {}
    for theirs in every:
        ours = plain.get((theirs.item, theirs.seed)) or plain.get((theirs.item, 0))
        if theirs.decoder != baseline and ours is not None:
            words = min(len(ours.text.split()), len(theirs.text.split()))
            pair = f"{baseline} {CUT} {theirs.decoder}", f"{theirs.decoder} {CUT} {baseline}"
            controls[pair[0]] = pair[1]
            for name, text in zip(pair, (ours.text, theirs.text), strict=True):
                made.append(theirs._replace(text=prefix(text, words), decoder=name, cut_at=None))
    return made, controls
