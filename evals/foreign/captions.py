"""Captions of several decoders, whole and cut to equal lengths.

A decoder that says less names fewer objects that are not there. So each is also held against the baseline with both
captions of a picture cut after as many words as the shorter one has: what is gained there is gained by what is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given, read
from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.tasks.coco import truth_of

CUT = "cut as short as"


def captions_of(files: Mapping[str, Path]) -> dict[str, list[Given]]:
    """Return each file's captions, told apart by their pictures' ids; raises `DataError` at one of no picture."""
    found: dict[str, list[Given]] = {name: [] for name in files}
    for name, path in files.items():
        for answer in read(path):
            if not answer.picture:
                raise DataError(f"Line {answer.line} of {name} names no picture: captions need 'image_id' or 'image'.")
            key = str(image_id(answer.picture))
            found[name].append(answer._replace(item=key, picture=key, decoder=answer.decoder or name))
    return found


def with_objects(captions: Mapping[str, Iterable[Given]], annotations: Path | None) -> dict[str, list[Given]]:
    """Return captions with the objects of their pictures, by annotations or as lmms-eval's log has them, as truths."""
    logged = {caption.item: caption.objects for those in captions.values() for caption in those}
    known = truth_of(annotations).of if annotations else logged.get
    truths: dict[str, str] = {}
    for item in logged:
        if (objects := known(item)) is None:
            raise DataError("Nothing says what is in the pictures: give --annotations, COCO's or CHAIR's ground truth.")
        truths[item] = json.dumps(sorted(objects))
    return {
        name: [caption._replace(truth=truths[caption.item]) for caption in those] for name, those in captions.items()
    }


def shortened(caption: Given, words: int) -> Given:
    """Return a caption's first words between blanks, or a shorter one as it is."""
    found = caption.text.split()
    return caption._replace(text=caption.text if len(found) <= words else " ".join(found[:words]), cut_at=None)


def cut_as_short(captions: Sequence[Given], baseline: str) -> tuple[list[Given], dict[str, str]]:
    """Return each decoder's captions and the baseline's, picture by picture cut to the shorter of the two.

    Also returns, of these decoders, the baseline's -> the other's whose control it is.
    """
    plain = {(caption.item, caption.seed): caption for caption in captions if caption.decoder == baseline}
    made: list[Given] = []
    controls: dict[str, str] = {}
    for theirs in captions:
        ours = plain.get((theirs.item, theirs.seed)) or plain.get((theirs.item, 0))
        if theirs.decoder != baseline and ours is not None:
            words = min(len(ours.text.split()), len(theirs.text.split()))
            control, own = f"{baseline} {CUT} {theirs.decoder}", f"{theirs.decoder} {CUT} {baseline}"
            controls[control] = own
            made.append(shortened(theirs._replace(decoder=control, text=ours.text), words))
            made.append(shortened(theirs._replace(decoder=own), words))
    return made, controls
