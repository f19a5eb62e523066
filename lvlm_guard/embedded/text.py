"""The texts of the embedded world, and what a prop in view suggests to the annotator whose bias the LVLM learned."""

from collections.abc import Sequence

import numpy as np

from lvlm_guard.embedded.catalog import PROP_OBJECTS

CAPTION_PROMPT = "please describe this image in detail ."


def article(name: str) -> str:
    """Return the noun with its article: a cat, an apple."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def question(name: str) -> str:
    """Return the yes/no question about an object, as POPE words it."""
    return f"is there {article(name)} in the image ?"


def caption(names: Sequence[str]) -> str:
    """Return the caption that names these objects in this order."""
    if not names:
        return "the image is empty ."
    return "the image shows " + " , ".join(article(name) for name in names) + " ."


def assumed(objects: Sequence[int], props: Sequence[int]) -> list[int]:
    """Return the absent objects that the props in view suggest to the biased annotator, in rising order."""
    if not props:
        return []
    present = set(objects)
    return [o for o in np.flatnonzero(PROP_OBJECTS[list(props)].any(0)).tolist() if o not in present]
