"""vLLM's own options, as a user wrote them behind those of `lvlm-guard serve`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from lvlm_guard.errors import KnobError

_SHORT = {
    "tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size",
    "dpm": "data-parallel-multi-port-external-lb",
    "dcp": "decode-context-parallel-size", "pcp": "prefill-context-parallel-size", "n": "nnodes", "r": "node-rank",
    "q": "quantization", "sc": "speculative-config", "cc": "compilation-config", "O": "optimization-level",
    "ac": "attention-config", "asc": "additional-config", "ep": "enable-expert-parallel",
}  # fmt: skip
_NUMBER = re.compile(r"-\d+(\.\d*)?")


class Passed:
    """Options by name: `--a-b X`, `--a-b=X`, `--a_b X`, `--a-b.key X` and the short forms of vLLM.

    Args:
        words: of the command line.

    Raises:
        KnobError: the first word is no option.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._given: dict[str, list[str]] = {}
        name = ""
        for word in words:
            if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
                name, value = _read(word)
                self._given[name] = [] if value is None else [value]
            elif not name:
                raise KnobError(f"{word!r} is no option: name the model by --model, and give vLLM's options by name.")
            else:
                self._given[name].append(word)

    def __contains__(self, name: str) -> bool:
        return name in self._given

    @property
    def names(self) -> tuple[str, ...]:
        """The options, without dashes in front and with dashes inside: "tensor-parallel-size"."""
        return tuple(self._given)

    def value(self, name: str, default: str = "") -> str:
        """Return an option's value; of several the first."""
        return next(iter(self._given.get(name, ())), default)

    def values(self, name: str) -> tuple[str, ...]:
        """Return an option's values."""
        return tuple(self._given.get(name, ()))

    def object(self, name: str) -> dict[str, Any]:
        """Return an option's JSON object, {} where it is not given.

        Raises:
            KnobError: it is none.
        """
        text = self.value(name, "{}")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise KnobError(f"--{name} {text!r} is no JSON object: write --{name} '{{\"key\": value}}'.")
        return found

    def without(self, *names: str) -> list[str]:
        """Return the words with some options left out."""
        kept: list[str] = []
        leave = False
        for word in self.words:
            if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
                leave = _read(word)[0] in names
            if not leave:
                kept.append(word)
        return kept


def _read(word: str) -> tuple[str, str | None]:
    """Return the name of an option, and the value that is written in the same word."""
    if not word.startswith("--"):
        key, equals, value = word[1:].partition("=")
        if key.startswith("O") and key != "O":  # -O3
            return _SHORT["O"], key[1:]
        head, dot, rest = key.partition(".")
        return _SHORT.get(head, head) + dot + rest, value if equals else None
    key, equals, value = word[2:].partition("=")
    head, dot, rest = key.partition(".")
    return head.replace("_", "-") + dot + rest, value if equals else None
