"""What the plain model says, greedy, how probable it found each token, and which objects CHAIR reads there."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from lvlm_guard.evals.infer.generate import answer_length, prepare
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.spec.items import EvalTask, Item, Said
from lvlm_guard.pretrained import spoken
from lvlm_guard.verify.ranking import sentences

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}

Piece = tuple[int, int, float]
"""What a token adds to a text: start and end in characters, and the token's log-probability (nats) given all before
it, under the plain model."""


def describe(model: Any, processor: Any, task: EvalTask, items: Sequence[Item]) -> list[Said]:
    """Return the greedy descriptions of some items by a plain model, made in one batch; `proof` holds their pieces.
    Raises `ImageError` where a picture is missing or damaged."""
    began = time.perf_counter()
    inputs = prepare(processor, items).to(model.device, model.dtype)
    options = {**GREEDY, "max_new_tokens": task.max_new_tokens}
    with torch.inference_mode():
        out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        answers = out.sequences[:, inputs["input_ids"].shape[1] :]
        steps = zip(out.logits, answers.T[..., None], strict=True)
        chosen = [step.float().log_softmax(-1).gather(-1, ids.to(step.device))[:, 0].cpu() for step, ids in steps]
    log_probs = torch.stack(chosen, -1).tolist()  # [batch, tokens]
    seconds, eos = (time.perf_counter() - began) / len(items), model.generation_config.eos_token_id
    found = []
    for row, each in zip(answers.tolist(), log_probs, strict=True):
        length, ended = answer_length(row, set(eos if isinstance(eos, list) else [eos]))
        text, pieces = spoken(processor, row[:length]), list[Piece]()
        for place, log_prob in enumerate(each[:length], 1):  # a token writes what the text is longer by
            start, end = pieces[-1][1] if pieces else 0, min(len(spoken(processor, row[:place])), len(text))
            pieces += [(start, end, round(log_prob, 6))] if end > start else []
        found.append(Said(text, length, ended, seconds, forwards=length / len(items), proof=json.dumps(pieces)))
    return found


def mentions_of(task: EvalTask, described: Sequence[tuple[str, Sequence[Piece]]]) -> EvalTask:
    """Return the objects that descriptions name as items, each object of a description once, where it is named first.

    The question is the object (CHAIR's name of it), the prompt the sentence that holds it, the truth whether it is in
    the picture; "word" is how the description has it, "probability" what the model gave to the tokens of that word,
    given all before them. A verdict is of an object and not of a word: repeats would count one verdict several times.
    `described` are a description of each item, in order, and its pieces. Raises `DataError` of an unknown object.
    """
    rows = [{"image_id": place, "caption": text} for place, (text, _) in enumerate(described)]
    truths = {place: [str(name) for name in item.truth] for place, item in enumerate(task.items)}
    read = chair.compare(rows, truths, vocabulary=task.vocabulary)
    found = []
    for item, caption, (text, pieces) in zip(task.items, read, described, strict=True):
        first = {node: (start, end) for node, start, end in reversed(caption.spans)}
        for node in dict.fromkeys(caption.found.nodes):
            start, end = first[node]
            p = math.exp(sum(log_prob for begin, stop, log_prob in pieces if begin < end and stop > start))
            tags = {"word": text[start:end], "probability": p}
            truth, key = "yes" if node in caption.truth else "no", f"{item.key} {node}"
            asked = (item.picture, _sentence(text, start), item.images, node, truth, (task.name,), tags)
            found.append(Item(key, *asked))
    return EvalTask("mentions", "mentions", found, task.max_new_tokens, split=task.split, about=task.about)


def _sentence(text: str, place: int) -> str:
    at, holding = 0, text
    for sentence in sentences(text):
        at = text.find(sentence, at)
        if at > place:
            break
        holding = sentence
        at += len(sentence)
    return holding
