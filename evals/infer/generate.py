"""Who answers: a guarded model with its processor and matcher, each decoder at its own full cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from lvlm_guard.bench.memory import peak_meter
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.sampling import DocumentSampler
from lvlm_guard.evals.infer.store import Who
from lvlm_guard.evals.spec.items import EvalTask, Item, Said
from lvlm_guard.matching import Matcher

_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def adapter_name(decoder: str, seed: int) -> str:
    """Return the name under which a model holds the adapter of a decoder and seed."""
    return "".join(c if c.isalnum() else "_" for c in decoder) + f"_{seed}"


class Answerer(Protocol):
    """Anything that answers blocks: a model in this process, or a server."""

    def ask(self, task: EvalTask, items: Sequence[Item], todo: Sequence[Who]) -> list[list[Said]]:
        """Return the answers of each (decoder, seed) of `todo` to some items of a task."""
        ...


@dataclass(frozen=True)
class Asker:
    """A guarded model with its guarded processor, and the matcher for decoders without a model.

    Args:
        model, processor: guarded.
        matcher: of the model; None where it can't be had (then decoders that need it raise).
        decoders: who may be asked, by name.
        execution: how branches are run.
        matchers: those that decoders name, by registered name or folder.
    """

    model: Any
    processor: Any
    matcher: Matcher | None
    decoders: Mapping[str, Decoder]
    execution: str = "auto"
    matchers: Mapping[str, Matcher] = field(default_factory=dict)
    _warm: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def ask(self, task: EvalTask, items: Sequence[Item], todo: Sequence[Who]) -> list[list[Said]]:
        """Return the answers of each (decoder, seed) to some items of a task, all in one batch.

        Each starts from the pictures and with an empty memory of matches, so that what one decoder has
        prepared does not make the next one look cheap.

        Raises:
            GuardError: whatever generate() or the processor raises; no answer stands for an error.
        """
        found = []
        if not self._warm and self.decoders[todo[0][0]].guard is not None:
            self._warm.append(todo[0][0])
            self._generate(task, items, self.decoders[todo[0][0]], todo[0][1])  # a first call is slow: not measured
        for name, seed in todo:
            decoder = self.decoders[name]
            for matcher in filter(None, (self.matcher, *self.matchers.values())):
                matcher.forget()
            peak = peak_meter(self.model.device)
            began = time.perf_counter()
            said = (
                self._matcher(items, decoder, seed)
                if decoder.guard is None
                else self._generate(task, items, decoder, seed)
            )
            share = (time.perf_counter() - began) / len(items)
            reached = peak()
            found.append([replace(one, seconds=share, peak_mib=round(reached, 1)) for one in said])
        return found

    def _generate(self, task: EvalTask, items: Sequence[Item], decoder: Decoder, seed: int) -> list[Said]:
        assert decoder.guard is not None
        inputs = prepare(self.processor, items).to(self.model.device, self.model.dtype)
        start = inputs["input_ids"].shape[1]
        options = dict(decoder.options)
        if options.get("do_sample"):
            sampler = DocumentSampler(
                seed,
                [item.key for item in items],
                start,
                temperature=options.pop("temperature", 1.0),
                top_k=options.pop("top_k", None),
                top_p=options.pop("top_p", None),
            )
            options |= {"logits_processor": [sampler]}
        with torch.inference_mode(), self._adapted(decoder, seed):
            out = self.model.generate(
                **inputs,
                **(options | _GREEDY),
                guard=decoder.guard(seed),
                guard_execution=self.execution,
                guard_steps=False,
                max_new_tokens=task.max_new_tokens,
                return_dict_in_generate=True,
            )
        trace = getattr(out, "guard", None)
        answers = out.sequences[:, start:]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        lengths = [answer_length(row, self._ends()) for row in answers.tolist()]
        return [
            Said(
                text=until(text, task.until),
                tokens=length,
                ended=ended or until(text, task.until) != text,
                forwards=(trace.global_forwards if trace else float(answers.shape[1])) / len(items),
                local_forwards=(trace.local_forwards if trace else 0) / len(items),
                local_tokens=(trace.local_tokens if trace else 0) / len(items),
                masks=(trace.masks if trace else 0) / len(items),
            )
            for text, (length, ended) in zip(texts, lengths, strict=True)
        ]

    def _adapted(self, decoder: Decoder, seed: int) -> AbstractContextManager[object]:
        """Let the decoder's adapter of this seed act, or none."""
        if decoder.adapters:
            self.model.set_adapter(adapter_name(decoder.name, seed))
            return nullcontext()
        wrapped = getattr(self.model, "peft_config", None)
        return self.model.disable_adapter() if wrapped else nullcontext()

    def _ends(self) -> set[int]:
        eos = self.model.generation_config.eos_token_id
        return set(eos) if isinstance(eos, list) else {eos} if eos is not None else set()

    def _matcher(self, items: Sequence[Item], decoder: Decoder, seed: int) -> list[Said]:
        matcher = self.matchers[decoder.matchers[seed]] if decoder.matchers else self.matcher
        assert matcher is not None
        return [Said(text) for text in matcher_answers(matcher, items)]


def prepare(processor: Any, items: Sequence[Item]) -> Any:
    """Return the inputs of a block, by the processor's chat template, or by its plain prompt where it has none."""
    if not getattr(processor, "chat_template", None):
        from lvlm_guard.pretrained import ask

        return ask(processor, [item.pictures() for item in items], [item.prompt for item in items])
    return processor.apply_chat_template(
        [item.conversation() for item in items],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )


def until(text: str, stops: Sequence[str]) -> str:
    """Return an answer up to the first of some texts."""
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def answer_length(tokens: Sequence[int], ends: set[int]) -> tuple[int, bool]:
    """Return how many tokens an answer has, its end-of-text included, and whether it has one."""
    for index, token in enumerate(tokens):
        if token in ends:
            return index + 1, True
    return len(tokens), False


def matcher_answers(matcher: Matcher, items: Sequence[Item]) -> list[str]:
    """Return the matcher's own answers: yes where it gives the question more than one half."""
    pictures = [item.pictures()[0] for item in items]
    support = matcher.support_pairs(pictures, [item.question or item.prompt for item in items])
    return ["yes" if p > 0.5 else "no" for p in support.tolist()]
