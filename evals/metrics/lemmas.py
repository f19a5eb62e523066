"""Words, tags and dictionary forms by NLTK, for the scorers that were published on it (CHAIR since OPERA, AMBER).

NLTK's models are downloads of their own: `check` says before anything is generated whether they are at hand.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from lvlm_guard.evals.errors import DataError

DATA = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")
"""What `nltk.download` has to bring: sentences, tags, the dictionary."""

_CLASSES = {"J": "a", "V": "v", "R": "r"}  # Penn's tags by first letter -> WordNet's; all others are nouns


def check(what: str) -> None:
    """Raise `DataError` unless NLTK and its data can do all that is needed; `what` needs them, for the message."""
    try:
        tagged("Two dogs run.")
        lemma("dogs", "NNS")
    except ImportError as error:
        raise DataError(
            f"{what} needs NLTK, which is not installed ({error}): pip install 'lvlm-guard[amber]'."
        ) from None
    except (LookupError, OSError):
        raise DataError(
            f"{what} needs data of NLTK that are not on this machine: python -m nltk.downloader {' '.join(DATA)} (with "
            "network), or copy such a folder and name it in NLTK_DATA. Without them no other machine's numbers could "
            "be had."
        ) from None


def tagged(text: str) -> list[tuple[str, str]]:
    """Return the words of a text with their Penn tags; raises ImportError or LookupError, see `check`."""
    import nltk

    return [(word, tag) for word, tag in nltk.pos_tag(nltk.word_tokenize(text))]


def lemma(word: str, tag: str) -> str:
    """Return a word's dictionary form as WordNet has it under a Penn tag; nouns where WordNet knows no such class."""
    return str(_lemmatizer().lemmatize(word, pos=_CLASSES.get(tag[:1], "n")))


def lemmas(caption: str) -> list[str]:
    """Return the lower-cased words of a caption in their dictionary forms, as OPERA's and PAI's CHAIR reads it."""
    return [lemma(word, tag) for word, tag in tagged(caption.lower())]


@cache
def _lemmatizer() -> Any:
    from nltk.stem import WordNetLemmatizer

    return WordNetLemmatizer()
