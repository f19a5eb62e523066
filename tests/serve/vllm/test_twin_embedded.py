"""The twin engine over the embedded model and its matcher says what the transformers engine says of the same scenes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
import twin_engine
from twin_models import ARCHITECTURE

from lvlm_guard import embedded, guard
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.embedded.text import CAPTION_PROMPT, question
from lvlm_guard.images import load_image
from lvlm_guard.matching import load_matcher
from lvlm_guard.methods import AGLA, APC, VCD
from lvlm_guard.pretrained import ask, load_model
from lvlm_guard.serve.engine.arguments import request_arguments, view_arguments
from lvlm_guard.serve.wire import pack_mask

torch.set_num_threads(1)
METHODS: list[Any] = [AGLA(), VCD(), APC(), None]
LONGEST = 48


def test_the_embedded_model_answers_as_it_does_in_transformers() -> None:
    model, processor = guard(*load_model("embedded"), "apc")
    matcher = load_matcher(None, model=model)
    scenes, asked = pope_set("test", n=12)
    adversarial = [(q.scene, question(CLASSES[q.asked])) for q in asked if q.mode == "adversarial" and not q.present]
    both = adversarial[:24] + [(scene, CAPTION_PROMPT) for scene in sorted({scene for scene, _ in adversarial})]

    requests, expected = [], []
    for index, (scene, prompt) in enumerate(both):
        image, method = load_image(scenes[scene].image), METHODS[index % len(METHODS)]
        inputs = ask(processor, [[image]], [prompt])
        view = inputs["guard_views"].views()[0]
        masks = [pack_mask(match.keep.numpy()) for match in matcher([view.image], [view.text])]
        ids = processor.tokenizer(inputs["guard_views"].text, add_special_tokens=False)["input_ids"][0]
        if inputs["input_ids"][0, 0] != ids[0]:
            ids = [int(inputs["input_ids"][0, 0]), *ids]
        requests.append(
            {
                "prompt": {
                    "prompt_token_ids": ids,
                    "multi_modal_data": {"image": image},
                    "mm_processor_kwargs": {} if method is None else view_arguments(method, masks),
                },
                "extra": None if method is None else request_arguments(method),
                "tokens": LONGEST,
                "sampling": {"temperature": 0, "ignore_eos": False},
                "leaves": 0,
            }
        )
        made = model.generate(
            **inputs, guard=method or False, max_new_tokens=LONGEST, return_dict_in_generate=True, output_scores=True
        )
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = [float(step[0].float().log_softmax(-1)[t]) for step, t in zip(made.scores, tokens, strict=True)]
        expected.append((tokens, scores))

    got = twin_engine.answers(
        embedded.MODEL,
        twin_engine.twin(ARCHITECTURE["llava"]) | {"max_model_len": 256},
        {"together": requests},
    )
    for (tokens, scores), answer in zip(expected, got["answers"]["together"], strict=True):
        assert answer["tokens"] == tokens
        assert answer["logprobs"] == pytest.approx(scores, abs=1e-3)
    assert len({tuple(tokens) for tokens, _ in expected}) > 10
