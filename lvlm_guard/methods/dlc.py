"""DLC: multiply the top tokens' logits by how well the picture supports the text that they make.

Source: Chen et al., "Dynamic Logits Calibration", arXiv:2506.21509; JiaheChen2002/DLC at ee51afd (no licence file;
written from the formulas). From the ninth token on, b is how similar the last eight tokens' text is to the picture, the
mean over the last eight steps (while there are three or fewer, this step's). Then, of each of the top 50 tokens,

    v = (sim(text + token) + sim(token)) / 2,   l <- l * exp(scale * (1 - b)^2 * sigmoid((v - b) / (1 - b)))

Of a yes/no question, the text is the question, from the first token on. In the release's product better evidence makes
a negative logit less, and equal evidence is temperature exp(-scale * (1 - b)^2 / 2). `mode="shifted"` (ours) multiplies
what a logit is above the last of the top. Differs from the release: text and token join as they are written.

Reconstructed: the release's similarity is SigLIP's cosine. Here it is the cosine of a matcher that has `similarity`, of
any other the probability that `support` gives of texts with a word in them. Where the matcher abstains, of other texts
and of special tokens, v takes b instead; where it knows nothing of the running text, the step is plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from torch import Tensor

from lvlm_guard.engine import Call, Single, Step, choice, limited, weight
from lvlm_guard.matching.asking import wanted
from lvlm_guard.matching.claims import pieces_of
from lvlm_guard.matching.views import matcher_of
from lvlm_guard.matching.voting import Poll

WINDOW = 8  # tokens of the running text, and steps of its mean


@dataclass(frozen=True)
class DLC(Single):
    """Each of the top logits by its evidence; no constraint and no second branch.

    Args:
        scale: strength, >= 0; 1 in the release.
        top: how many tokens are looked at, 50 in the release; each costs two texts of the matcher.
        mode: "official" for the product on raw logits, "shifted" for that on what they are above the last one's.
        matcher: a registered name, a hub id or folder, a matcher, or None for the model's default; SigLIP in the paper.
    """

    paper: ClassVar[str] = "arXiv:2506.21509"
    cost: ClassVar[str] = "a matcher's passes over 101 texts a token"
    asks_about_pictures: ClassVar[bool] = True
    scale: float = weight(1.0)
    top: int = limited(50, "1 or more", lambda n: n >= 1)
    mode: Literal["official", "shifted"] = choice("official", "shifted")
    matcher: Any = None

    def check(self, call: Call) -> None:
        """Raise where the matcher can't be loaded, or gives neither similarities nor probabilities."""
        matcher = matcher_of(call, self.matcher)
        if not matcher.compares:
            matcher.require_support()

    def matched_temperature(self) -> float | None:
        """Return exp(-scale * (1 - b)^2 / 2) at a b of .1, about what SigLIP's cosines are."""
        return math.exp(-self.scale * 0.9**2 / 2)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        if self.scale == 0:
            return step.logits
        memory, top = step.call.memory, step.logits.topk(min(self.top, step.logits.shape[-1]), -1)
        poll = memory[self.name] = memory.get(self.name) or Poll(step.call, self.matcher, by_similarity=True)
        said = [_said(step, row, tokens) for row, tokens in enumerate(top.indices.tolist())]
        poll.ask(sorted({(r, text) for r, texts, made in said for text in chain(texts, *made.values())}))
        assembled = step.logits.clone()
        for row, (request, texts, made) in enumerate(said):
            known = [s for s in (poll(request, text) for text in texts) if s is not None]
            if known:
                b = known[-1] if len(known) <= 3 else sum(known) / len(known)
                told = [[poll(request, text) for text in pair] for pair in made.values()]
                v = step.logits.new_tensor([sum(b if s is None else s for s in pair) / 2 for pair in told])
                logits, places = top.values[row, list(made)], top.indices[row, list(made)]
                assembled[row, places] = self.calibrated(logits, v, b, top.values[row, -1])
        return assembled

    def calibrated(self, logits: Tensor, v: Tensor, b: float, least: Tensor) -> Tensor:
        """Return the logits of tokens [n] by their evidence v [n] against b; `least` is the last of the top."""
        shift, r = least if self.mode == "shifted" else 0.0, (v - b) / (1 - b + 1e-6)
        return shift + (logits - shift) * (self.scale * (1 - b) ** 2 * r.sigmoid()).exp()


def _said(step: Step, row: int, tokens: list[int]) -> tuple[int, list[str], dict[int, tuple[str, str]]]:
    """Return the request, its running text at the last steps, and place -> what a token makes of it, and is alone."""
    call, request, prefix = step.call, step.request[row], step.prefix(row)
    pieces, views = pieces_of(call.tokenizer), call.requests()[request]
    asked = wanted(views[0].text if views else "")
    question = None if asked.objects else asked.yes
    if not views or not call.ends.isdisjoint(prefix) or (question is None and len(prefix) < WINDOW):
        return request, [], {}
    steps = range(max(WINDOW, len(prefix) - WINDOW + 1), len(prefix) + 1)
    texts = [question] if question else [pieces.joined(prefix[end - WINDOW : end]).strip() for end in steps]
    made = {}
    for place, token in enumerate(tokens):
        special, alone = token in call.tokenizer.all_special_ids, pieces[token].strip()
        whole = f"{question} {alone}" if question else pieces.joined([*prefix[-WINDOW:], token]).strip()
        if special or alone:
            made[place] = ("", "") if special else (whole, alone)
    return request, texts, made
