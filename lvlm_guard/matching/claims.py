"""What a half-written answer is about to name: from a tokenizer's pieces to the objects they can still become.

A name is found in the text that pieces decode to, never in their ids, so every segmentation counts: " surf" +
"board", " sur" + "fbo" + "ard", "▁hot" + "▁dog". For the unfinished words before it and a candidate piece, a
finder says which objects the candidate starts or goes on:

    "a c" + "ar"    -> car, carrot         "a car" + "t"  -> nothing: no name starts with "cart"
    "a hot" + " dog" -> hot dog, not dog    "s" + "car"   -> nothing: "scar" is one word

Names follow the longest match, as CHAIR counts them. Words of one name are joined by blanks or hyphens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lvlm_guard.matching.vocabulary import JOIN, WORD, Vocabulary, chains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING: frozenset[str] = frozenset()
HARD = "\n"  # what a special token reads as: no name goes across it
BROKEN = "\ufffd"  # what decoders give for bytes of an unfinished character
ENDS = (".", "!", "\u3002", "\uff01", HARD)  # what a piece begins with that ends a sentence, a line or the answer
FAR = 64  # tokens looked back for the start of a name

_SAMPLE = 512  # pieces looked at to learn whether a tokenizer has any that goes on a word
_REMEMBERED = 1 << 18  # answers kept of "what does this piece name after that text"


class Pieces(dict[int, str]):
    """What each piece of a tokenizer adds to a text, leading blank included.

    Args:
        tokenizer: any; pieces are decoded after an anchor, so the marks of byte-level BPE, SentencePiece and
            WordPiece, and tokenizers whose pieces are whole words, need no rules of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(token for token, how in added if how.special)}
        self._anchor, self._base = self._find_anchor()
        self._words: dict[int, int | None] = {}
        sample = range(0, len(tokenizer), max(1, len(tokenizer) // _SAMPLE))
        goes_on = any(WORD.match(self._decoded([token])) for token in sample if token not in self._special)
        self._after = "" if goes_on else " "  # whole words: each is finished as soon as it is there

    def __missing__(self, token: int) -> str:
        text = HARD if token in self._special else self._decoded([token])
        self[token] = text + self._after if text and token not in self._special else text
        return self[token]

    def words(self, token: int) -> int | None:
        """Return how many words surely begin within a piece, None where it holds a part of a character.

        A special token counts as more words than any name has: nothing before it matters.
        """
        if token not in self._words:
            text = self[token]
            begun = sum(word.start() > 0 and text[word.start() - 1] not in "'\u2019" for word in WORD.finditer(text))
            self._words[token] = None if BROKEN in text else FAR if token in self._special else begun
        return self._words[token]

    def joined(self, tokens: Sequence[int]) -> str:
        """Return the text of several pieces; characters whose bytes lie in several of them are put together."""
        text = "".join(self[token] for token in tokens)
        if BROKEN not in text:
            return text
        text, run = "", list[int]()
        for token in tokens:
            if token in self._special:
                text, run = text + self._decoded(run) + HARD, []
            else:
                run.append(token)
        return text + self._decoded(run)

    def _decoded(self, tokens: list[int]) -> str:
        both = self._decode([*self._anchor, *tokens])
        return both[len(self._base) :] if both.startswith(self._base) else self._decode(tokens)

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    def _find_anchor(self) -> tuple[list[int], str]:
        for word in ("a", "the", "0", "."):
            tokens = [t for t in self._tokenizer.encode(word, add_special_tokens=False) if t not in self._special]
            if tokens and (text := self._decode(tokens)).strip():
                return tokens, text
        return [], ""


@dataclass(frozen=True)
class Choice:
    """What some candidates would do to an answer.

    Args:
        reached: candidate -> the objects that it starts or goes on naming, at least one.
        named: those of them that the answer has named already, by more than the words that it may still be writing.
        ends: the candidates that end a sentence right behind the name of an object.
    """

    reached: Mapping[int, frozenset[str]]
    named: frozenset[str] = NOTHING
    ends: tuple[int, ...] = ()


class ClaimFinder:
    """Finds which objects of a vocabulary a piece starts or goes on. One object serves many threads.

    Args:
        tokenizer: of the model that writes the answer.
        vocabulary: the objects.
        by_word: name the word itself ("pigeon") instead of its object ("bird").
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, by_word: bool = False) -> None:
        self._pieces = pieces_of(tokenizer)
        self._whole = vocabulary.spellings(by_word)
        begun: dict[str, set[str]] = {}
        for spelling, names in self._whole.items():
            for end in range(1, len(spelling) + 1):
                begun.setdefault(spelling[:end], set()).update(names)
        self._begun = {start: frozenset(names) for start, names in begun.items()}
        self._dead = "0" * (1 + max(map(len, self._whole)))  # an unfinished word that no name starts with
        self._memory: dict[tuple[str, int], frozenset[str]] = {}
        self._states: dict[tuple[str, int], str] = {}

    def reachable(self, prefix: Sequence[int], candidates: Iterable[int]) -> dict[int, frozenset[str]]:
        """Return, for each candidate that starts or goes on a name, the objects it can still become.

        Args:
            prefix: tokens of the answer so far; its start counts as the start of a word.
            candidates: tokens that may come next.
        """
        tail = self._tail(prefix)
        state = self._after(tail)
        broken = any(self._pieces.words(token) is None for token in tail[-4:])
        if len(self._memory) > _REMEMBERED:
            self._memory = {}
        memory, found = self._memory, {}
        for token in candidates:
            known = memory.get((state, token)) if not broken else None
            if known is None:
                if broken or BROKEN in self._pieces[token]:
                    known = self._across(tail, token)
                else:
                    known = memory[state, token] = self._named(state, self._pieces[token])
            if known:
                found[token] = known
        return found

    def choice(self, prefix: Sequence[int], candidates: Sequence[int]) -> Choice:
        """Return what candidates would do to an answer; arguments as in `reachable`."""
        reached = self.reachable(prefix, candidates)
        ends = tuple(token for token in candidates if self._pieces[token].lstrip(" \t").startswith(ENDS))
        if not reached and not ends:
            return Choice(reached)
        text = self._pieces.joined(prefix)
        found = list(self._whole.named(text))
        if not found:
            return Choice(reached)
        behind = not text[found[-1].end :].strip(" ")
        closed = len(WORD.findall(text)) - len(self._after(self._tail(prefix)).split())
        said = NOTHING.union(*(self._whole[run.spelling] for run in found if run.behind <= closed))
        return Choice(reached, said & NOTHING.union(*reached.values()), ends if behind else ())

    def _tail(self, prefix: Sequence[int]) -> list[int]:
        """Return the last tokens, as many as can hold the words of a name that is not finished."""
        words, start = 0, len(prefix)
        end = max(0, start - FAR)
        while start > end and words < self._whole.most:
            start -= 1
            words += self._pieces.words(prefix[start]) or 0
        return list(prefix[start:])

    def _after(self, tail: Sequence[int]) -> str:
        """Return `_state` of the text of some tokens, from token to token by what is remembered of each step."""
        if len(self._states) > _REMEMBERED:
            self._states = {}
        states, state = self._states, ""
        for token in tail:
            known = states.get((state, token))
            if known is None:
                if self._pieces.words(token) is None:
                    return self._state(self._pieces.joined(tail))
                known = states[state, token] = self._state(state + self._pieces[token])
            state = known
        return state

    def _state(self, text: str) -> str:
        """Return the longest end of a text that a name can start with; "" for none, `_dead` within another word."""
        spellings, rest, _ = self._last(text.lower().rstrip(BROKEN))
        if rest and not JOIN.fullmatch(rest):
            return ""
        ends = (spelling + (" " if rest else "") for spelling in spellings)
        nothing = self._dead if spellings and not rest else ""
        return next((end for end in ends if end in self._begun), nothing)

    def _named(self, state: str, piece: str) -> frozenset[str]:
        """Return the objects that a piece starts or goes on after a state."""
        spellings, rest, end = self._last(state + piece.lower())
        if end <= len(state):
            return NOTHING  # no letter is new: a blank, punctuation
        for spelling in spellings:
            names = self._whole.get(spelling, NOTHING) if rest else self._begun.get(spelling, NOTHING)
            if rest and JOIN.fullmatch(rest):
                names |= self._begun.get(spelling + " ", NOTHING)
            if names:
                return names
        return NOTHING

    def _last(self, text: str) -> tuple[list[str], str, int]:
        """Return the last words of a text as spellings, the longest first, as far back as blanks join them; what
        stands behind the last word, and where that ends (0 without any)."""
        if not (found := chains(text)):
            return [], "", 0
        end, spelled = found[-1][-1].end(), [word.group() for word in found[-1][-self._whole.most :]]
        return [" ".join(spelled[start:]) for start in range(len(spelled))], text[end:], end

    def _across(self, tail: list[int], token: int) -> frozenset[str]:
        """As `_named`, where a character's bytes lie in several pieces."""
        before = self._pieces.joined(tail).rstrip(BROKEN)
        state = self._state(before)
        return self._named(state, self._pieces.joined([*tail, token]).rstrip(BROKEN)[len(before) :])


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[int]:
    """Return the token that each word begins with behind a blank, of each word once."""
    each = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in dict.fromkeys(words)]
    return [next(piece for piece in pieces if WORD.search(str(tokenizer.decode([piece])))) for pieces in each]


pieces_of = lru_cache(maxsize=8)(Pieces)
"""The pieces of a tokenizer, read once."""

finder_of = lru_cache(maxsize=32)(ClaimFinder)
"""The finder for a tokenizer and a vocabulary, made once."""
