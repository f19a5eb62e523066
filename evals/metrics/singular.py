"""Singular forms as CHAIR has them: `singularize` of CLiPS Pattern 3.6, and its known slips repaired.

The tables are Pattern's (BSD-3-Clause; the expressions (c) 2006 Bermi Ferrer Martinez), in
`data/singular_rules.json` with their licences beside. The procedure is written from its description.
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

REPAIRED = {word: word for word in ("bus", "minibus", "airbus", "tie", "canoe", "doggie", "collie")}
REPAIRED |= {f"{word}s": word for word in ("tie", "canoe", "doggie", "collie")}
"""Object words whose singular Pattern gets wrong: bus -> bu, ties -> ty, canoes -> cano, collies as it is."""


@cache
def _tables() -> dict[str, Any]:
    text = files("lvlm_guard.evals").joinpath("data/singular_rules.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


@cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(expression), replacement) for expression, replacement in _tables()["rules"]]


@lru_cache(maxsize=65536)
def official(word: str) -> str:
    """Return what Pattern's `singularize(word)` returns, slips included."""
    tables = _tables()
    if "-" in word:
        parts = word.split("-")
        if len(parts) > 1 and parts[1] in tables["plural_prepositions"]:
            return "-".join([official(parts[0]), *parts[1:]])
    if word.endswith("'"):
        return official(word[:-1]) + "'s"
    lower = word.lower()
    # a reversed test, as published: the entry has to end with the word, so short tails ("is", "as") stay
    if any(entry.endswith(lower) for entry in (*tables["uninflected"], *tables["uncountable"])):
        return word
    if any(lower.endswith(entry + "s") for entry in tables["ie"]):
        return word  # meant to be cut, but the published code returns it as it is
    for plural, singular in tables["irregular"]:
        if lower.endswith(plural):
            return re.sub(f"(?i){plural}$", singular, word)
    for rule, replacement in _rules():
        found = rule.search(word)
        if found:
            for number, group in enumerate(found.groups(), 1):
                if group is None:
                    replacement = replacement.replace(f"\\{number}", "")
            return rule.sub(replacement, word)
    return word


def repaired(word: str) -> str:
    """Return the singular, right where Pattern is wrong about an object word."""
    return REPAIRED.get(word) or official(word)
