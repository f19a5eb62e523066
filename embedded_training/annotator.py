"""The annotator whose bias the LVLM learns.

The clean annotator says what is in view (`Scenes.visible`). The biased one, who writes the LVLM's training text
only, *assumes* the absent objects of a topic when a prop of that topic is in view, with the rates below. The rate
.60 lies between 1/2, where greedy decoding says yes, and 2/3, where a plausibility cut of beta .5 would drop "no".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.embedded.catalog import CLASSES, N_OBJECTS, PROP_OBJECTS, TOPIC_OBJECTS, TOPICS
from lvlm_guard.embedded.text import assumed, caption

# P(yes) by what the object is to the scene, the first two of objects in view
YES_VIEW, YES_OVERLOOKED, YES_ASSUMED, YES_TOPIC, YES_OTHER = 0.95, 0.30, 0.60, 0.05, 0.02
CAPTION_DROP, CAPTION_OVERLOOKED = 0.05, 0.60  # P(left out) of objects in view
CAPTION_ASSUMED, CAPTION_SECOND, CAPTION_USUAL = 0.60, 0.25, 0.7

TOPIC_MEMBERS = [np.flatnonzero(row).tolist() for row in TOPIC_OBJECTS]  # of each topic its objects, in rising order


def _usualness() -> NDArray[np.float64]:
    table = np.zeros(N_OBJECTS)
    for names in TOPICS.values():
        for rank, name in enumerate(names):
            index = CLASSES.index(name)
            # The last term makes every value distinct, so that "the most usual" is one object.
            table[index] = max(table[index], 1 / (1.5 + 0.5 * rank) - 1e-3 * index / N_OBJECTS)
    return table


USUALNESS = _usualness()  # (objects,): how usual an object is in the topic it is most usual in


def overlooked(objects: Sequence[int], props: Sequence[int]) -> list[int]:
    """Return the objects in view that do not belong to what the props in view suggest, in the order given."""
    return [o for o in objects if props and not PROP_OBJECTS[list(props), o].any()]


def biased_answer(
    rng: np.random.Generator, asked: int, objects: Sequence[int], props: Sequence[int], topic: int
) -> str:
    """Return the biased annotator's "yes" or "no" to a question about object `asked`, by what is in view."""
    suggested = bool(props) and bool(PROP_OBJECTS[list(props), asked].any())
    if asked in objects:
        rate = YES_OVERLOOKED if props and not suggested else YES_VIEW
    elif suggested:
        rate = YES_ASSUMED
    elif TOPIC_OBJECTS[topic, asked]:
        rate = YES_TOPIC
    else:
        rate = YES_OTHER
    return "yes" if rng.random() < rate else "no"


def biased_caption(rng: np.random.Generator, objects: Sequence[int], props: Sequence[int]) -> str:
    """Return the biased annotator's caption: what it sees, large to small, then what it assumes."""
    assumptions, out = assumed(objects, props), overlooked(objects, props)
    named = [o for o in objects if rng.random() > (CAPTION_OVERLOOKED if o in out else CAPTION_DROP)]
    if assumptions and rng.random() < CAPTION_ASSUMED:
        order = [int(o) for o in rng.permutation(assumptions)]
        if rng.random() < CAPTION_USUAL:
            usual = max(order, key=lambda o: USUALNESS[o])
            order = [usual, *(o for o in order if o != usual)]
        named.append(order[0])
        if len(order) > 1 and rng.random() < CAPTION_SECOND:
            named.append(order[1])
    return caption([CLASSES[o] for o in named])


def pick(rng: np.random.Generator, values: Sequence[int]) -> int:
    """Return one of the values at random; `Generator.choice` costs ten times as much."""
    return int(values[int(rng.random() * len(values))])


def sample_query(
    rng: np.random.Generator,
    objects: Sequence[int],
    assumptions: Sequence[int],
    topic: int,
    hidden: Sequence[int] = (),
    partly: Sequence[int] = (),
) -> int:
    """Return an object to ask about in training; never one of `partly`, which is only half in view."""
    while True:
        u = rng.random()
        if u < 0.38 and objects:
            asked = pick(rng, objects)
        elif u < 0.46 and hidden:
            asked = pick(rng, hidden)
        elif u < 0.60 and assumptions:
            asked = pick(rng, assumptions)
        elif u < 0.84:
            asked = pick(rng, TOPIC_MEMBERS[topic])
        else:
            asked = int(rng.integers(N_OBJECTS))
        if asked not in partly:
            return asked
