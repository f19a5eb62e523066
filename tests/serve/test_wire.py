"""Masks and scores on the wire: what goes in comes out, and nothing else comes in."""

import base64
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.errors import GuardError
from lvlm_guard.serve.errors import MaskdError, Refused, ServeError, WireError
from lvlm_guard.serve.wire import MOST_SCORES, MOST_SIDE, SIDE, pack_mask, pack_scores, unpack_mask, unpack_scores


def packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side)) < 0.5


@given(side=st.integers(1, 40).map(lambda n: 4 * n), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_every_mask_comes_back_as_it_was(side: int, seed: int, share: float) -> None:
    keep = np.random.default_rng(seed).random((side, side)) < share
    back = unpack_mask(pack_mask(keep))
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, keep)


def test_the_text_is_zlib_of_the_bits_row_by_row_in_base64() -> None:
    keep = noise(SIDE)
    bits = "".join("1" if pixel else "0" for pixel in keep.ravel())
    assert zlib.decompress(base64.b64decode(pack_mask(keep))) == int(bits, 2).to_bytes(SIDE * SIDE // 8, "big")


def test_a_mask_of_noise_is_no_longer_than_the_specification_says() -> None:
    assert len(pack_mask(noise(SIDE))) <= 24_640
    np.testing.assert_array_equal(unpack_mask(pack_mask(noise(MOST_SIDE))), noise(MOST_SIDE))


@pytest.mark.parametrize("shape", [(384, 383), (384,), (1, 384, 384), (0, 0), (2, 2), (6, 6), (772, 772)])
def test_a_mask_of_another_shape_is_not_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError, match="can't be sent"):
        pack_mask(np.ones(shape, bool))


def test_a_mask_of_numbers_is_not_packed() -> None:
    with pytest.raises(WireError, match="float64"):
        pack_mask(np.ones((8, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 4, 100, 20_000])
def test_a_mask_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        unpack_mask(pack_mask(noise(SIDE))[:-cut])


def test_a_stream_cut_short_inside_sound_base64_is_refused() -> None:
    raw = base64.b64decode(pack_mask(noise(SIDE)))
    for end in (2, 10, len(raw) - 5, len(raw) - 1):
        with pytest.raises(WireError):
            unpack_mask(base64.b64encode(raw[:end]).decode())


@pytest.mark.parametrize("more", [b"x", b"\0" * 100, zlib.compress(b"")])
def test_anything_behind_the_end_is_refused(more: bytes) -> None:
    raw = base64.b64decode(pack_mask(noise(96)))
    with pytest.raises(WireError, match="behind its end"):
        unpack_mask(base64.b64encode(raw + more).decode())


@pytest.mark.parametrize("size", [0, 1, 1151, 1153, 18_431, 18_433, MOST_SIDE * MOST_SIDE // 8 + 1])
def test_a_mask_of_the_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        unpack_mask(packed(b"\xff" * size))


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = packed(b"\0" * 80_000_000)
    assert len(bomb) < 200_000
    for unpack in (unpack_mask, unpack_scores):
        with pytest.raises(WireError, match=r"more than|longer than"):
            unpack(bomb)
    small = packed(b"\0" * 20_000_000)  # short enough as a text
    with pytest.raises(WireError, match="more than"):
        unpack_mask(small)


@pytest.mark.parametrize(
    "text", ["", "=", "????", "a", "eJw=", " eJw", "eJwDAAAAAAE=\n", "ÿÿÿÿ", "\ud800", None, 7, b"x", []]
)
def test_what_is_no_packed_text_is_refused(text: object) -> None:
    for unpack in (unpack_mask, unpack_scores):
        with pytest.raises(WireError):
            unpack(text)  # type: ignore[arg-type]


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: base64.b64encode(raw).decode()))
def test_hostile_text_gives_a_wire_error_or_a_value_that_packs_again(text: str) -> None:
    try:
        keep = unpack_mask(text)
    except WireError:
        return
    np.testing.assert_array_equal(unpack_mask(pack_mask(keep)), keep)


@given(st.binary(max_size=300))
def test_hostile_scores_give_a_wire_error_or_scores(raw: bytes) -> None:
    try:
        scores = unpack_scores(packed(raw))
    except WireError:
        return
    assert all(0 <= value <= 1 for value in scores.values())


@given(st.dictionaries(st.text(min_size=1).filter(lambda s: s.strip()), st.floats(0, 1, width=32)))
def test_scores_come_back_exactly_and_in_order(scores: dict[str, float]) -> None:
    back = unpack_scores(pack_scores(list(scores), list(scores.values())))
    assert list(back.items()) == list(scores.items())


@pytest.mark.parametrize(
    ("names", "p", "said"),
    [
        (["a"], [], "one for each"),
        (["a", "a"], [0.1, 0.2], "twice"),
        (["a"], [1.5], "0 to 1"),
        (["a"], [-0.1], "0 to 1"),
        (["a"], [float("nan")], "0 to 1"),
        ([" "], [0.5], "no claim"),
        ([str(i) for i in range(MOST_SCORES + 1)], [0.5] * (MOST_SCORES + 1), "too many"),
        (["x" * 2_000_000], [0.5], "bytes"),
    ],
)
def test_scores_that_mean_nothing_are_not_packed(names: list[str], p: list[float], said: str) -> None:
    with pytest.raises(WireError, match=said):
        pack_scores(names, p)


@pytest.mark.parametrize(
    "text",
    [
        "[]", "1", '"a"', "{", "", '{"a": 2}', '{"a": -1}', '{"a": NaN}', '{"a": true}', '{"a": "0.5"}', '{"a": null}',
        '{"a": 0.1, "a": 0.9}', '{"a": {}}', '{"": 0.5}', "[" * 100_000, '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_scores_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(WireError):
        unpack_scores(packed(text.encode()))


def test_bytes_that_are_no_text_are_refused_as_scores() -> None:
    with pytest.raises(WireError):
        unpack_scores(packed(json.dumps({"ä": 0.5}, ensure_ascii=False).encode("latin-1")))


def test_errors_of_the_server_are_guard_errors_and_say_when_to_ask_again() -> None:
    assert issubclass(ServeError, GuardError)
    assert MaskdError("down", retry_after=2).retry_after == 2
    assert MaskdError("down").retry_after is None
    refused = Refused(503, "the matcher is down", retry_after=1)
    assert (refused.status, refused.message, str(refused)) == (503, "the matcher is down", "the matcher is down")
