"""What is remembered of pictures: their digests, once a picture that is ours, and always of one that is not."""

import pickle

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw

from lvlm_guard import guard
from lvlm_guard.images import Held
from lvlm_guard.matching.memory import Recent, digest


@pytest.fixture
def hashed(monkeypatch):
    seen, whole = [], Image.Image.tobytes
    monkeypatch.setattr(Image.Image, "tobytes", lambda self, *args: seen.append(self.size) or whole(self, *args))
    return seen


def test_the_digest_of_a_view_s_picture_is_computed_once(hashed):
    _, processor = guard(*tiny.make("llava"))
    given = tiny.picture(1)
    made = processor(images=given, text=tiny.prompt(processor, "What?"), return_tensors="pt")
    (view,) = made["guard_views"].views()
    hashed.clear()
    assert digest(view.image) == digest(view.image) == digest(given)
    assert len(hashed) == 2  # the view's once, the caller's own each time


def test_a_picture_that_is_painted_on_later_is_another_one_and_changes_no_inputs():
    image = Image.new("RGB", (20, 10), "red")
    held = Held.of(image)
    before = digest(held), digest(image)
    ImageDraw.Draw(image).point((3, 3), "blue")
    assert digest(held) == before[0] == before[1] != digest(image)
    assert np.asarray(held)[3, 3].tolist() == [255, 0, 0]


def test_what_is_made_of_a_held_picture_has_a_digest_of_its_own():
    held = Held.of(tiny.picture(1, 20, 10))
    first = digest(held)
    assert all(digest(other) != first for other in (held.resize((10, 10)), held.convert("L"), held.rotate(90)))
    assert Held.of(held) is held


def test_a_held_picture_is_sent_to_another_process_as_one(hashed):
    held = pickle.loads(pickle.dumps(Held.of(tiny.picture(2))))
    assert isinstance(held, Held)
    hashed.clear()
    assert digest(held) == digest(held)
    assert len(hashed) == 1


def test_what_is_held_is_not_made_again_and_what_is_made_at_once_is_made_once_each():
    memory, asked = Recent(4), []

    def make(keys):
        asked.append(keys)
        return [key.upper() for key in keys]

    assert memory.filled("aba", make, len) == {"a": "A", "b": "B"}
    assert memory.filled("bc", make, len) == {"b": "B", "c": "C"}
    assert memory.filled("abc", make, len) == {"a": "A", "b": "B", "c": "C"}
    assert asked == [["a", "b"], ["c"]]
