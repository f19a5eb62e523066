"""Which decoders of a run are compared with each other, beside each with the reference."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_guard.evals.decoders.decoder import APC, MATCHED, MATCHER, SAMPLE, Decoder
from lvlm_guard.evals.decoders.variants import usual
from lvlm_guard.evals.report.figures import named


def compared(decoders: Sequence[Decoder]) -> list[tuple[str, str, str]]:
    """Return pairs to compare beside the reference, and what each difference tells."""
    names = {decoder.name for decoder in decoders}
    matched = {d.control_of: d.name for d in decoders if d.name.startswith(MATCHED)}
    own = [d for d in decoders if d.method and d.name == named(d.method, d.matcher) and d.method != APC]
    pairs = []
    for d in own:
        first = usual([other for other in own if other.method == d.method])
        sample = named(f"{d.method}-sample", d.matcher)
        pairs += [
            (d.name, first.name if first is not d else "", f"what the matcher adds to {first.matcher}"),
            (d.name, named(f"{d.method}-random", d.matcher), "what the map adds to any second view blacked as much"),
            (sample, SAMPLE, "both sampled at temperature 1, as in the papers"),
            (sample, APC, f"what {d.method} adds to its plausibility cut, both sampled"),
            (sample, matched.get(d.method, ""), "what it adds to being as sharp as a lower temperature"),
        ]
    pairs += [
        (d.control_of, d.name, "what the language model adds to the matcher's own answer")
        for d in decoders
        if d.name == named(MATCHER, d.matcher) and d.control_of
    ]
    pairs += [
        (d.name, other.name, "what the adapter, asked plainly, lacks of the guard")
        for d in decoders
        if d.adapters
        for other in own
    ]
    pairs += [
        (b.name, a.name, "both greedy")
        for i, a in enumerate(own)
        for b in own[i + 1 :]
        if a.method != b.method and (a.matcher == b.matcher or not (a.matcher and b.matcher))
    ]
    return [(ours, theirs, tells) for ours, theirs, tells in pairs if ours in names and theirs in names]
