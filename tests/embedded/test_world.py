"""The scenes: the same everywhere, and labelled as what can be seen of them."""

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedded_training.labels import partly, patch_labels, random_keep
from embedded_training.stored import cooccurrence
from lvlm_guard.embedded import photographs, sprites, world
from lvlm_guard.embedded.catalog import CLASSES, N_OBJECTS, PROP_LIST, TOPIC_NAMES, TOPICS
from lvlm_guard.embedded.sprites import SHEET
from lvlm_guard.errors import GuardError, UnknownNameError

# SHA-256 of images, owners, items and topics of the first 40 scenes, as the shipped models saw them in training.
HASHES = {
    "train": "1c6b1378b4c35953a0fe49dd656e0ea7c76b97914b63b3ac0a3c698e72f58724",
    "val": "5fd312a9920b9a1171ea0e11bd9b0285165a9955a36a9c3f0fd08e85b64f995f",
    "test": "376bf37f205b75e77c7a09299bd6df2160e53d12efa0e80e51ea35605f446bbb",
    "val_cap": "5ba9499f3bf446dad29ef9e0e0326f13e7b07f551373a6d9a4c90e551472bc52",
    "test_cap": "d913477036b012d7e275041c760e810040a89319e294ea4b253e04c39566349d",
}


def fingerprint(drawn: world.Scenes) -> str:
    digest = hashlib.sha256()
    for part in (drawn.image, drawn.owner, drawn.items, drawn.topic):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def drawn() -> world.Scenes:
    return world.scenes("val_cap", 60)


@pytest.mark.parametrize("split", HASHES)
def test_every_split_is_drawn_as_the_shipped_models_saw_it(split: str) -> None:
    assert fingerprint(world.scenes(split, 40)) == HASHES[split]


def test_the_first_scenes_of_a_split_do_not_depend_on_how_many_are_drawn(drawn: world.Scenes) -> None:
    assert fingerprint(world.scenes("val_cap", 7)) == fingerprint(
        world.Scenes(drawn.image[:7], drawn.owner[:7], drawn.items[:7], drawn.topic[:7])
    )


def test_splits_with_drawn_grounds_share_no_scene() -> None:
    seeds = [plan.seed for plan in world.SPLITS.values() if not plan.photographs]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("real", "drawn"), [("val_real", "val"), ("test_real_cap", "test_cap")])
def test_scenes_on_photographs_are_the_drawn_ones_but_for_their_grounds(real: str, drawn: str) -> None:
    on_photographs, plain = world.scenes(real, 12), world.scenes(drawn, 12)
    assert np.array_equal(on_photographs.owner, plain.owner)
    assert np.array_equal(on_photographs.items, plain.items)
    for i in range(12):
        ground = plain.owner[i] < 0
        # half-transparent edges belong to the ground, so whole objects alone are the same
        assert (on_photographs.image[i][ground] != plain.image[i][ground]).mean() > 0.9
        opaque = np.zeros((96, 96), bool)
        for kind, index, y, x, size in plain[i].items:
            opaque[y : y + size, x : x + size] |= sprites.glyph(kind, index, size)[..., 3] == 1
        assert np.array_equal(on_photographs.image[i][opaque], plain.image[i][opaque])


def test_validation_and_test_share_no_photograph() -> None:
    assert not set(photographs.FILES["val"]) & set(photographs.FILES["test"])


def test_without_the_photographs_package_the_split_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda _: None)
    photographs.photographs.cache_clear()
    with pytest.raises(GuardError, match=r"lvlm-guard\[photographs\]"):
        world.scenes("val_real", 1)
    photographs.photographs.cache_clear()


@cache
def alpha_of(kind: int, index: int, size: int) -> np.ndarray:
    """Read a drawing's mask straight from the file: cells of 112 x 40, nine in a row, four sizes side by side."""
    k = index + 54 * kind
    x = k % 9 * 112 + {16: 0, 24: 16, 32: 40, 40: 72}[size]
    y = k // 9 * 40
    with Image.open(SHEET) as sheet:
        return np.asarray(sheet.crop((x, y, x + size, y + size)))[..., 3] > 127


def test_owners_are_what_painting_the_items_in_order_leaves_on_top(drawn: world.Scenes) -> None:
    for scene in list(drawn)[:25]:
        top = np.full((96, 96), -1)
        for number, (kind, index, y, x, size) in enumerate(scene.items):
            top[y : y + size, x : x + size][alpha_of(kind, index, size)] = number
        assert np.array_equal(top, scene.owner)


@pytest.mark.parametrize("cut", [False, True])
def test_visible_lists_the_items_of_which_two_fifths_are_seen_large_to_small(drawn: world.Scenes, cut: bool) -> None:
    rng = np.random.default_rng(0)
    for i, scene in enumerate(drawn):
        keep = random_keep(rng) if cut else np.ones((96, 96), bool)
        seen = []
        for number, (kind, index, _, _, size) in enumerate(scene.items):
            if ((scene.owner == number) & keep).sum() >= 0.4 * alpha_of(kind, index, size).sum():
                seen.append((kind, index, size))
        objects, props = drawn.visible(i, keep if cut else None)
        sizes = {index: size for kind, index, size in seen if kind == 0}
        assert sorted(objects) == sorted(sizes)
        assert [sizes[o] for o in objects] == sorted(sizes.values(), reverse=True)
        assert props == [index for kind, index, _ in seen if kind == 1]


def test_partly_tells_hidden_objects_from_halved_ones(drawn: world.Scenes) -> None:
    rng = np.random.default_rng(1)
    for i, scene in enumerate(drawn):
        keep = random_keep(rng)
        hidden, halved = partly(drawn, i, keep)
        for number, (kind, index, *_) in enumerate(scene.items):
            whole = (scene.owner == number).sum()
            share = (keep & (scene.owner == number)).sum() / max(1, whole)
            assert (index in hidden) == (kind == 0 and share < 0.1) or kind == 1
            assert (index in halved) == (kind == 0 and 0.1 <= share < 0.65) or kind == 1
    assert partly(drawn, 0, None) == ([], [])


def test_patch_labels_name_what_covers_a_patch_most(drawn: world.Scenes) -> None:
    labels = patch_labels(drawn, range(20), 16)
    for i in range(20):
        for patch in range(36):
            y, x = patch // 6 * 16, patch % 6 * 16
            owner = drawn.owner[i, y : y + 16, x : x + 16]
            counts = {k: int((owner == k).sum()) for k in range(8)}
            most = max(counts, key=lambda k: counts[k])  # the first of equals
            expected = 0
            if counts[most] >= 0.12 * 256:
                kind, index = drawn.items[i, most, :2]
                expected = 1 + int(index) + 54 * int(kind)
            assert labels[i, patch] == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_cutout_keeps_between_45_and_100_percent(seed: int) -> None:
    assert 0.449 <= random_keep(np.random.default_rng(seed)).mean() <= 1


def test_cooccurrence_counts_pairs_once_a_scene() -> None:
    pairs, single = cooccurrence([[0, 1, 2], [0, 1], [5]])
    assert pairs[0, 1] == pairs[1, 0] == 2
    assert pairs[0, 2] == 1
    assert pairs.trace() == 0
    assert single.tolist()[:6] == [2, 2, 1, 0, 0, 1]


def test_the_stored_counts_are_those_of_the_first_training_scenes() -> None:
    drawn = world.scenes("train", 300)
    pairs, single = cooccurrence(drawn.visible(i)[0] for i in range(300))
    stored_pairs, stored = world.training_cooccurrence()
    assert np.array_equal(stored_pairs, stored_pairs.T)
    assert (pairs <= stored_pairs).all()
    assert np.corrcoef(single, stored)[0, 1] > 0.8


@pytest.mark.slow
def test_the_stored_counts_are_the_recounted_ones() -> None:
    drawn = world.scenes("train", world.COUNTED)
    pairs, single = cooccurrence(drawn.visible(i)[0] for i in range(world.COUNTED))
    assert np.array_equal(pairs, world.training_cooccurrence()[0])
    assert np.array_equal(single, world.training_cooccurrence()[1])


def test_objects_of_a_topic_appear_together() -> None:
    drawn = world.scenes("train", 300)
    own = [CLASSES[o] in TOPICS[TOPIC_NAMES[scene.topic]] for i, scene in enumerate(drawn) for o in drawn.visible(i)[0]]
    assert 0.68 < np.mean(own) < 0.80  # .7 are drawn from the topic, and some of the others belong to it too


def test_the_catalogue_holds_what_the_sheet_has_room_for() -> None:
    assert (N_OBJECTS, len(PROP_LIST), len(TOPICS)) == (54, 36, 9)
    assert sprites.sheet().shape == (400, 1008, 4)
    assert all(sprites.area(0, o, 16) > 20 for o in range(54))
    assert SHEET.stat().st_size < 700_000
    assert "SIL OPEN FONT LICENSE" in SHEET.with_name("sprites.LICENSE").read_text()


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="val_cap"):
        world.scenes("validation")


def test_the_world_needs_neither_torch_nor_a_font() -> None:
    code = (
        "import sys\n"
        "from PIL import ImageFont\n"
        "ImageFont.truetype = None\n"
        "from lvlm_guard.embedded import world\n"
        "world.scenes('test', 2)\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
