"""What a demo compares: each way of answering, by name, as arguments of `generate()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard import methods
from lvlm_guard.evals.controls import RandomMap
from lvlm_guard.matching import Matcher

PLAIN: dict[str, Any] = {"do_sample": False, "num_beams": 1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@dataclass(frozen=True)
class Decoder:
    """One way of answering.

    Args:
        name: as in result rows.
        about: what it is, in a few words, for tables.
        guard: seed -> the `guard=` of a call: False, or a method. None: the matcher answers without the
            model (yes/no questions only).
        options: further arguments of `generate()`.
        seeds: how many runs; their counts are averaged. 1 for what is not random.
    """

    name: str
    about: str
    guard: Callable[[int], Any] | None
    options: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))
    seeds: int = 1

    @property
    def sampled(self) -> bool:
        """Whether its answers depend on torch's random state."""
        return bool(self.options.get("do_sample"))


REFERENCE = "greedy"  # what every row is compared with

COMPARED: dict[tuple[str, str], str] = {
    ("agla", "agla-random"): "what the map adds to any second view blacked as much",
    ("agla-sample", "apc"): "what AGLA adds where both are sampled, as in the paper",
    ("agla-sample", "sample-matched"): "what it adds to being as sharp as a lower temperature",
    ("agla", "vcd"): "both greedy, neither tuned here",
    ("vote", "agla"): "both greedy, neither tuned on these scenes",
    ("vote", "matcher"): "what the language model adds to the matcher's own answer",
}
"""Pairs that are compared beside the reference, a method with its control or with another method, and what
the difference tells."""


def demo_decoders(matcher: Matcher, objects: Sequence[str], seeds: int = 3) -> list[Decoder]:
    """Return the demo's decoders, plain ones first, each method beside its controls.

    Args:
        matcher: the matcher of the model.
        objects: what `vote` votes on.
        seeds: runs of the sampled decoders, and random maps.
    """
    agla = methods.AGLA()
    matched = 1 / (1 + agla.alpha)
    return [
        Decoder("greedy", "plain, greedy", lambda _: False),
        Decoder("sample", "plain, sampled", lambda _: False, SAMPLED, seeds),
        Decoder(
            "sample-matched",
            f"plain, sampled at temperature {matched:.2g}: as sharp as AGLA",
            lambda _: False,
            SAMPLED | {"temperature": matched},
            seeds,
        ),
        Decoder("apc", "plausible tokens alone (beta .5), sampled", lambda _: methods.APC(beta=0.5), SAMPLED, seeds),
        Decoder("vcd", "contrast with a noised picture", lambda _: methods.VCD(alpha=1.0, beta=0.1)),
        Decoder("agla", "AGLA, the paper's settings, greedy", lambda _: agla),
        Decoder("agla-sample", "AGLA, sampled as in the paper", lambda _: agla, SAMPLED, seeds),
        Decoder(
            "agla-random",
            "AGLA with a random map that keeps as much",
            lambda seed: methods.AGLA(matcher=RandomMap(matcher, seed)),
            seeds=seeds,
        ),
        Decoder("vote", "the matcher votes where the model is undecided", lambda _: methods.Vote(objects=objects)),
        Decoder("matcher", "the matcher's own answer, no language model", None),
    ]
