"""The object finder over real tokenizers, trained here, against brute force over the decoded text."""

import functools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lvlm_guard.matching import ClaimFinder, Vocabulary
from lvlm_guard.matching.claims import finder_of

TEXT = """The image shows a car, a motor cycle, a motorcycle and a surfboard near the beach. A man rides a motor boat.
A cart stands on the carpet; two cars, a cartoon, a carrot and a scar. Traffic lights hang over the traffic.
A hot dog lies on a hot plate; the dog sleeps. There is a teddy bear, a brown bear, and a hot-dog stand.
People sit in the dining room at a dining table. No, yes: yesterday a surfer surfed. wine glasses are on the table."""
NAMES = (
    "car", "carrot", "motorcycle, motor cycle", "surfboard", "traffic light", "hot dog", "dog", "teddy bear", "bear",
    "dining table, table", "wine glass", "stove, stove top oven", "person",
)  # fmt: skip
SPECIALS = ["<unk>", "<s>", "</s>"]


def wrapped(raw):
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    return wrapped(raw)


def unigram():
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator([TEXT], trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>"))
    return wrapped(raw)


def llama_like():
    """BPE over "▁" with bytes to fall back on, as the tokenizers of Llama and LLaVA are."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=[*SPECIALS, *bytes_], max_token_length=8)
    raw.train_from_iterator(TEXT.split(" "), trainer)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocab = raw.get_vocab()
    plain = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(raw), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    plain.normalizer, plain.decoder = raw.normalizer, raw.decoder
    plain.add_special_tokens(SPECIALS)
    return wrapped(plain)


def _merges(raw):
    import json

    return [tuple(merge) for merge in json.loads(raw.to_str())["model"]["merges"]]


def word_piece():
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=False)
    raw.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIALS))
    return wrapped(raw)


def word_level():
    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    raw.train_from_iterator([TEXT], trainers.WordLevelTrainer(vocab_size=300, special_tokens=SPECIALS))
    return wrapped(raw)


SUBWORD = {"byte-level BPE": byte_level, "Unigram": unigram, "Llama-like BPE": llama_like, "WordPiece": word_piece}
make = functools.cache(lambda kind: {**SUBWORD, "word level": word_level}[kind]())
vocabulary = Vocabulary.of(NAMES)


def finder(kind):
    return finder_of(make(kind), vocabulary)


def votes(kind, text):
    """What each piece of a text names, as (piece, names)."""
    tokenizer = make(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [
        (tokenizer.convert_ids_to_tokens(token), finder(kind).reachable(ids[:i], [token]).get(token, frozenset()))
        for i, token in enumerate(ids)
    ]


def spelled_by(kind, text, word):
    """The names that the pieces of one word of a text stand for, piece by piece."""
    before = len(votes(kind, text[: text.index(word)].rstrip())) if text.index(word) else 0
    inside = len(votes(kind, text[: text.index(word) + len(word)]))
    return [names for _, names in votes(kind, text)[before:inside]]


@pytest.mark.parametrize("kind", [*SUBWORD, "word level"])
@pytest.mark.parametrize(
    ("text", "word", "name"),
    [
        ("the image shows a surfboard", "surfboard", "surfboard"),
        ("a motor cycle on the beach", "motor cycle", "motorcycle"),
        ("the image shows a motorcycle", "motorcycle", "motorcycle"),
        ("people and a teddy bear", "teddy bear", "teddy bear"),
        ("wine glasses are on it", "wine glasses", "wine glass"),
        ("a hot-dog stand", "hot-dog", "hot dog"),
        ("two cars", "cars", "car"),
        ("people sit", "people", "person"),
    ],
)
def test_every_piece_of_a_name_that_holds_letters_reaches_it(kind, text, word, name):
    inside = spelled_by(kind, text, word)
    assert inside
    lettered = [names for names in inside if names]
    assert lettered
    assert all(name in names for names in lettered)
    assert inside[-1] == {name}


@pytest.mark.parametrize("kind", SUBWORD)
@pytest.mark.parametrize("text", ["a cart", "the carpet", "a cartoon", "a scar", "yesterday"])
def test_a_word_that_only_begins_or_ends_like_a_name_has_no_vote_once_that_is_clear(kind, text):
    assert votes(kind, text)[-1][1] == frozenset()


def test_a_whole_word_tokenizer_votes_for_whole_words_alone():
    assert dict(votes("word level", "a car , a carrot , a cart"))["car"] == {"car"}
    assert dict(votes("word level", "a car , a carrot , a cart"))["carrot"] == {"carrot"}
    assert dict(votes("word level", "a car , a carrot , a cart"))["cart"] == frozenset()


@pytest.mark.parametrize("kind", [*SUBWORD, "word level"])
def test_the_second_word_goes_on_the_first_and_starts_nothing_of_its_own(kind):
    assert votes(kind, "a hot dog")[-1][1] == {"hot dog"}
    assert votes(kind, "the dog")[-1][1] == {"dog"}
    assert votes(kind, "a brown bear")[-1][1] == {"bear"}
    assert votes(kind, "hot. dog")[-1][1] == {"dog"}
    assert "hot dog" not in votes(kind, "hot, dog")[-1][1]


@pytest.mark.parametrize("kind", [*SUBWORD, "word level"])
def test_punctuation_blanks_and_special_tokens_name_nothing(kind):
    tokenizer = make(kind)
    ids = [i for i in range(len(tokenizer)) if not re.search(r"[^\W_]", tokenizer.decode([i]))]
    assert not finder(kind).reachable(tokenizer.encode("a hot", add_special_tokens=False), [*ids, 0, 1, 2])


def test_no_name_goes_across_a_special_token():
    tokenizer = make("byte-level BPE")
    hot, dog = (tokenizer.encode(text, add_special_tokens=False) for text in ("a hot", " dog"))
    assert finder("byte-level BPE").reachable([*hot, 2], dog[-1:])[dog[-1]] == {"dog"}


def test_the_answers_first_piece_starts_a_word_with_or_without_a_blank():
    tokenizer = make("byte-level BPE")
    for text in ("dog", " dog", "Dog"):
        first = tokenizer.encode(text, add_special_tokens=False)
        assert "dog" in finder("byte-level BPE").reachable([], first[:1])[first[0]]


def test_characters_whose_bytes_lie_in_several_pieces_are_put_together():
    tokenizer = make("byte-level BPE")
    german = ClaimFinder(tokenizer, Vocabulary.of(("Tür", "Fußball")))
    for word in ("tür", "Fußball"):
        ids = tokenizer.encode(f"eine {word}", add_special_tokens=False)
        assert german.reachable(ids[:-1], ids[-1:])[ids[-1]] == {word.lower()}
    ids = tokenizer.encode("eine türe", add_special_tokens=False)
    assert not german.reachable(ids[:-1], ids[-1:])


# --- against brute force

WORDS = [
    "a", "the", "cart", "carpet", "car", "cars", "carrot", "hot", "dog", "dogs", "motor", "cycle", "boat", "stove",
    "top", "oven", "bear", "teddy", "wine", "glass", "table", "s",
]  # fmt: skip
JOINS = [" ", " ", " ", "-", ", ", ". ", "'s ", "\n", "  "]
texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(JOINS)), min_size=1, max_size=6).map(
    lambda parts: "".join(word + join for word, join in parts)
)


def by_brute_force(before, after):
    """Names that the letters added by `after` start or go on, from the definition: try every start, longest first."""
    spellings = vocabulary.spellings()
    added = after[len(before) :]
    if not re.search(r"\w", added):
        return frozenset()
    text = after.lower()
    ends_open = text[-1].isalnum()
    body = re.sub(r"[\W_]+$", "", text)
    trailing = text[len(body) :]
    for start in range(len(body)):
        if (start and (text[start - 1].isalnum() or text[start - 1] in "'’")) or not text[start].isalnum():
            continue
        part = body[start:]
        if re.search(r"[^\w\s-]|\n", part):
            continue
        spelling = " ".join(re.split(r"[ -]+", part))
        hit = set()
        for name, objects in spellings.items():
            if ends_open:
                names_it = name.startswith(spelling)
            else:
                names_it = name == spelling or (re.fullmatch(r"[ -]+", trailing) and name.startswith(spelling + " "))
            if names_it:
                hit |= objects
        if hit:
            return frozenset(hit)
    return frozenset()


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(0, 2**31))
def test_any_segmentation_of_any_text_gives_what_brute_force_over_the_text_gives(text, seed):
    tokenizer = make("byte-level BPE")
    pieces = sorted(tokenizer.get_vocab().items())
    table = {tokenizer.convert_tokens_to_string([piece]): token for piece, token in pieces if token > 2}
    draw, ids, at = random.Random(seed), [], 0
    while at < len(text):  # cut at random, not as the tokenizer would
        at_most = max(size for size in range(1, 12) if text[at : at + size] in table)
        sizes = [size for size in range(1, at_most + 1) if text[at : at + size] in table]
        size = draw.choice(sizes)
        ids.append(table[text[at : at + size]])
        at += size
    position = 0
    for index, token in enumerate(ids):
        size = len(tokenizer.decode([token]))
        expected = by_brute_force(text[:position], text[: position + size])
        found = finder("byte-level BPE").reachable(ids[:index], [token]).get(token, frozenset())
        assert found == expected, (text[:position], text[position : position + size])
        position += size


def test_a_name_is_found_in_a_long_answer_as_in_a_short_one():
    tokenizer = make("Unigram")
    long = "the dog sleeps on the carpet near the beach. " * 40 + "a motor cycle"
    ids = tokenizer.encode(long, add_special_tokens=False)
    assert finder("Unigram").reachable(ids[:-1], ids[-1:])[ids[-1]] == {"motorcycle"}


@pytest.mark.parametrize("kind", SUBWORD)
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a car and a dog", {"car"}),  # "dog" may go on: "dogs", "dogged"
        ("a car and a dog.", {"car", "dog"}),
        ("two cars, a hot-dog and", {"car", "hot dog"}),
        ("a hot dog", set()),
        ("a motor cycle, a table,", {"motorcycle", "dining table"}),
        ("a cart, a scar and", set()),
        ("", set()),
    ],
)
def test_what_an_answer_has_named_leaves_out_the_words_that_it_may_still_be_writing(kind, text, named):
    tokenizer = make(kind)
    written = tokenizer.encode(text, add_special_tokens=False)
    assert finder(kind).choice(written, range(len(tokenizer))).named == named


@pytest.mark.parametrize("kind", [*SUBWORD, "word level"])
def test_what_ends_a_sentence_is_known_right_behind_a_name(kind):
    tokenizer = make(kind)
    dot, comma = (tokenizer.encode(f"a dog{mark}", add_special_tokens=False)[-1] for mark in ".,")
    candidates, end = [dot, comma, tokenizer.eos_token_id], tokenizer.eos_token_id
    for text, ends in (("the image shows a car, a dog", {dot, end}), ("the dog sleeps", set()), ("a dog.", set())):
        written = tokenizer.encode(text, add_special_tokens=False)
        assert set(finder(kind).choice(written, candidates).ends) == ends
