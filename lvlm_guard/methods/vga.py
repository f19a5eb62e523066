"""VGA: add to what the heads read the values of image tokens that say something, or name the object asked about.

Source: Zhao et al., "Tell Model Where to Look: Mitigating Hallucinations in MLLMs by Vision-Guided Attention", CVPR
2026, arXiv:2511.20032; beta-nlp/VGA was not obtained: written from others' readings of it, hence experimental. G is a
distribution over the prompt's image positions i, from the logits that the model gives there:

    about objects  G_i ~ p_i(the object's first token), normalised over i; of several the maximum, normalised again
    about none     G_i ~ - sum of p ln p over p_i's ten most likely tokens, normalised over i

At each position that predicts a token, of each head's output z before the heads are joined, whatever the kernel:

    d = sum G_i v_i,  c = (1 + cos(z, d)) / 2 by its mean over the heads,  z + beta * used * max(0, 2 - c) * d

`used` is the share of image positions with G > 1e-8. Differs from the release, as far as known: the prompt's last one
is steered too, objects are of a list (there noun chunks), and G does not fade after the words of an answer (its PVG).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lvlm_guard.engine import Call, Pass, knob, weight
from lvlm_guard.engine.attention import Attending, Rows, attending
from lvlm_guard.matching.claims import first_tokens
from lvlm_guard.matching.vocabulary import Objects, Vocabulary, check_objects


@dataclass(frozen=True)
class VGA(Attending):
    """Heads' outputs moved towards the values of chosen image tokens; no second branch.

    Args:
        beta: strength, >= 0; .2 for captions and .25 for yes/no questions in the release.
        objects: what a question may name: None for COCO's 80 categories, names, or the path of a list.
        layers_from, layers_to: shares of the depth, 0 to 1; the release has layers 2 to 15 of LLaVA-1.5's 32.
    """

    paper: ClassVar[str] = "arXiv:2511.20032"
    cost: ClassVar[str] = "one more reading of the prompt"
    experimental: ClassVar[bool] = True
    asks_about_pictures: ClassVar[bool] = True
    beta: float = weight(0.2)
    objects: Objects = knob(None, check_objects)
    layers_from: float = 2 / 32
    layers_to: float = 16 / 32

    def check(self, call: Call) -> None:
        """Raise where the picture's tokens are not known, or layers have no attention."""
        _ = call.image_positions, call.pictures
        super().check(call)

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        if self.beta == 0:
            return nullcontext()
        call = passed.call
        if self.name not in call.memory:
            passed.from_the_start()
            call.memory[self.name] = self._maps(call)
        guidance = passed.columns(call.memory[self.name])
        used = (guidance > 1e-8).sum(-1) / passed.columns(call.image_positions).sum(-1).clamp(min=1)

        def moved(rows: Rows) -> Tensor:
            weight = guidance[:, None, None, rows.first :].to(rows.given).masked_fill(rows.closed, 0)
            return guided(rows.given, rows.mixed(weight), self.beta * used)

        return attending(passed, call.decoder, self.span(call), moved)

    def _maps(self, call: Call) -> Tensor:
        """Return G over the prompts, [B, T], 0 outside the pictures."""
        logits, shown = call.run(call.opening)[0], call.image_positions
        there = (call.opening["input_ids"] == call.family.image_token_id(call.model.config)).to(logits.device)
        found, listed = torch.zeros(shown.shape, device=shown.device), Vocabulary.of(self.objects)
        for request, row in enumerate(call.requests()):
            if row:
                tokens = first_tokens(call.tokenizer, [run.spelling for run in listed.spellings().named(row[0].text)])
                seen = logits[request, there[request]]
                made = torch.cat([spoken(some.float(), tokens) for some in seen.split(256)])
                best = (made / made.sum(0)).nan_to_num().amax(-1)
                found[request, shown[request]] = (best / best.sum()).nan_to_num().to(found)
        return found


def spoken(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return how much positions say of each token, or at all where none is given; [m, V] -> [m, tokens or 1]."""
    if tokens:
        return logits.softmax(-1)[:, list(tokens)]
    lp = logits.log_softmax(-1).topk(min(10, logits.shape[-1]), -1).values
    return -(lp.exp() * lp).nan_to_num().sum(-1, keepdim=True)  # what it is divided by cancels


def guided(z: Tensor, d: Tensor, strength: Tensor) -> Tensor:
    """Return heads' outputs z [R, H, n, D] moved along d, the less a head agrees the more; strength [R]."""
    agree = 1 + cosine_similarity(z, d, dim=-1)
    more = (2 - agree / agree.mean(1, keepdim=True).clamp(min=1e-12)).relu()
    return z + strength[:, None, None, None].to(z) * more[..., None] * d
