"""Descriptions of every family of models: text, tokens' places and probabilities."""

import json

import pytest
import tiny
import torch

from lvlm_guard.evals.infer.generate import prepare
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.studies.verify.mentions import GREEDY, describe


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_pieces_of_a_description_are_its_text_and_carry_generates_own_log_probabilities(family: str) -> None:
    model, processor = tiny.make(family)
    items = [Item(str(k), str(k), "What is this?", (tiny.picture(k),), truth=[]) for k in range(2)]
    task = EvalTask("chair", "chair", items, 12)
    together = describe(model, processor, task, items)
    for item, batched in zip(items, together, strict=True):
        (alone,) = describe(model, processor, task, [item])
        assert alone.text == batched.text
        pieces, beside = (json.loads(one.proof) for one in (alone, batched))
        assert [p for _, _, p in pieces] == pytest.approx([p for _, _, p in beside], abs=1e-4)
        assert "".join(alone.text[start:end] for start, end, _ in pieces) == alone.text
        inputs = prepare(processor, [item]).to(model.device, model.dtype)
        out = model.generate(
            **inputs, **GREEDY, max_new_tokens=12, output_scores=True, output_logits=True, return_dict_in_generate=True
        )
        language = getattr(model, "language_model", model) if family == "instructblip" else model
        scores = language.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)[0]
        assert {round(p, 4) for _, _, p in pieces} <= {round(float(x), 4) for x in scores}


def test_a_description_that_is_cut_at_the_limit_says_so() -> None:
    model, processor = tiny.make("llava", dtype=torch.float32)
    item = Item("0", "0", "What is this?", (tiny.picture(0),), truth=[])
    (cut,) = describe(model, processor, EvalTask("chair", "chair", [item], 1), [item])
    assert not cut.ended
