import pytest
from blips import blip_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.errors import TextError
from lvlm_guard.matching.blip_reading import PIECES, WORDS, prepare, tokenise

TABLE = {  # shared specification of AGLA, section 2
    "Is there a snowboard in the image?": "is there a snowboard in the image?",
    "Please describe this image in detail.": "please describe this image in detail",
    "Is there a dog? Please answer yes or no.": "is there a dog? please answer yes or no",
    'Is there a "STOP" sign?  (yes/no)': "is there a stop sign? yes/no",
}


@pytest.mark.parametrize(("raw", "prepared"), TABLE.items())
def test_a_text_is_prepared_as_the_release_prepares_it(raw, prepared):
    assert prepare(raw) == prepared


def test_commas_slashes_apostrophes_and_question_marks_stay():
    assert prepare("A dog's bone, and/or a cat?") == "a dog's bone, and/or a cat?"


def test_trailing_newlines_go_and_single_ones_inside_stay():
    assert prepare("one\ntwo\n\n") == "one\ntwo"


def test_words_beyond_the_fiftieth_are_not_read():
    assert prepare(" ".join(["dog"] * 60)).split(" ") == ["dog"] * WORDS


@pytest.mark.parametrize("raw", ["", "   ", "\n", "...", '"!" (;)'])
def test_a_text_of_which_nothing_is_left_is_an_error_that_says_what_to_do(raw):
    with pytest.raises(TextError, match="guard_text"):
        prepare(raw)


@given(st.text(min_size=1, max_size=80))
def test_preparing_twice_changes_nothing(raw):
    try:
        once = prepare(raw)
    except TextError:
        return
    assert prepare(once) == once


def test_a_short_text_is_tokenised_whole_and_without_a_note():
    text = tokenise("Is there a dog?", blip_tokenizer())
    assert blip_tokenizer().convert_ids_to_tokens(list(text.ids)) == ["[CLS]", "is", "there", "a", "dog", "?", "[SEP]"]
    assert text.note is None


@pytest.mark.parametrize("content", [PIECES - 2, PIECES - 1, 45])
def test_beyond_35_pieces_a_text_is_cut_keeps_its_end_mark_and_says_so(content):
    text = tokenise(" ".join(["dog"] * content), blip_tokenizer())
    tokens = blip_tokenizer().convert_ids_to_tokens(list(text.ids))
    assert tokens == ["[CLS]", *["dog"] * (PIECES - 2), "[SEP]"]
    assert (text.note is None) == (content + 2 <= PIECES)
    if text.note:
        assert str(content + 2) in text.note
        assert str(PIECES) in text.note


def test_the_note_of_a_text_beyond_50_words_counts_the_words():
    note = tokenise(" ".join(["dog"] * 70), blip_tokenizer()).note
    assert note is not None
    assert "70 words" in note
