"""Who answers: a guarded model with its processor and matcher, each decoder at its own full cost; and a run made ready
from its settings alone, the same in every process (`prepare_run`).

A yes/no question also gets its score (`decoders.logits`), by the answering call where that tells it. Where a method
cuts or has a second branch, by a call of its own, outside its time: uncut, so that its branches run for every question.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_guard.bench.memory import peak_meter
from lvlm_guard.evals.decoders.decoder import PLAIN, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of, left_out, understood
from lvlm_guard.evals.decoders.logits import DocumentSampler, FirstToken, Scored, Words, odds_of, spellings
from lvlm_guard.evals.decoders.matchers import load_matchers, load_usual
from lvlm_guard.evals.infer.store import Job, Took, Who
from lvlm_guard.evals.spec.answers import LIMITS
from lvlm_guard.evals.spec.items import CAPTIONS, YES_NO, EvalTask, Item, Said
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.world import NOUNS
from lvlm_guard.matching import Matcher

if TYPE_CHECKING:
    from lvlm_guard.evals.infer.server.asker import ServerAsker

_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def adapter_name(decoder: str, seed: int) -> str:
    """Return the name under which a model holds the adapter of a decoder and seed."""
    return "".join(c if c.isalnum() else "_" for c in decoder) + f"_{seed}"


@dataclass(frozen=True)
class Asker:
    """A guarded model with its guarded processor, and the matchers for decoders without a model."""

    model: Any
    processor: Any
    matcher: Matcher | None  # of the model; None where no decoder takes it
    decoders: Mapping[str, Decoder]  # who may be asked, by name
    execution: str = "auto"  # how branches are run
    matchers: Mapping[str, Matcher] = field(default_factory=dict)  # those that decoders name, by name or folder
    _warm: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    _inputs: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)  # of the last answers
    _scored: list[tuple[Any, Any, list[Scored]]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def words(self) -> Words:
        """The tokens that count as yes and as no."""
        return spellings(self.processor.tokenizer)

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        """Ask all of some jobs, and hand on the answers of each decoder and seed as they come."""
        for job in jobs:
            for who in job.todo:
                took(job, who, *self.ask(job.task, job.items, [who]))

    def ask(self, task: EvalTask, items: Sequence[Item], todo: Sequence[Who]) -> list[list[Said]]:
        """Return the answers of each (decoder, seed) to some items of a task, all in one batch. Each starts from the
        pictures and with an empty memory of matches, so that what one decoder has prepared does not make the next one
        look cheap. Raises whatever generate() or the processor does: no answer stands for that."""
        found = []
        if not self._warm and self.decoders[todo[0][0]].runs:
            self._warm.append(todo[0][0])
            self._answers(task, items, self.decoders[todo[0][0]], todo[0][1])  # a first call is slow: not measured
        for name, seed in todo:
            decoder = self.decoders[name]
            for matcher in filter(None, (self.matcher, *self.matchers.values())):
                matcher.forget()
            peak, began = peak_meter(self.model.device), time.perf_counter()
            said = self._answers(task, items, decoder, seed)
            cost: dict[str, Any] = {"seconds": (time.perf_counter() - began) / len(items), "peak_mib": round(peak(), 1)}
            if task.kind in YES_NO and decoder.runs and not _tells_all(decoder.guard(seed)):
                scored = self._scores(items, decoder, seed)
                said = [replace(one, score=s, mass=mass) for one, (s, mass) in zip(said, scored, strict=True)]
            found.append([replace(one, **cost) for one in said])
        return found

    def _answers(self, task: EvalTask, items: Sequence[Item], decoder: Decoder, seed: int) -> list[Said]:
        if not decoder.runs:
            matcher = self.matchers[decoder.matchers[seed]] if decoder.matchers else self.matcher
            assert matcher is not None
            return matcher_answers(matcher, items)
        method, options = decoder.guard(seed), dict(decoder.options)
        inputs = prepare(self.processor, [decoder.worded(item) for item in items])
        self._inputs[:] = [inputs]
        start = inputs["input_ids"].shape[1]
        first = FirstToken(self.words) if task.kind in YES_NO and _tells_all(method) else None
        processors: list[Any] = [first] if first else []
        if options.get("do_sample"):
            warped = {name: options.get(name) for name in ("temperature", "top_k", "top_p")}
            processors.append(DocumentSampler(seed, [item.key for item in items], start, **warped))
        options |= {"logits_processor": processors, "max_new_tokens": task.max_new_tokens}
        out = self._generate(inputs, decoder, seed, guard=method, **options)
        answers = out.sequences[:, start:]
        trace = getattr(out, "guard", None)
        shares: dict[str, Any] = {"forwards": (trace.global_forwards if trace else answers.shape[1]) / len(items)}
        shares |= {name: getattr(trace, name, 0) / len(items) for name in ("local_forwards", "local_tokens", "masks")}
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        eos = self.model.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        cut_at = self._cut_at(answers, texts) if task.kind in CAPTIONS else [None] * len(items)
        scored = (first and first.scored) or [(None, None)] * len(items)
        said = []
        for whole, row, cuts, (score, mass) in zip(texts, answers.tolist(), cut_at, scored, strict=True):
            text, (tokens, ended) = until(whole, task.until), answer_length(row, ends)
            at = cuts and tuple(min(cut, len(text)) for cut in cuts)
            said.append(Said(text, tokens, ended or text != whole, score=score, mass=mass, cut_at=at, **shares))
        return said

    def _generate(self, inputs: Any, decoder: Decoder, seed: int, **options: Any) -> Any:
        with torch.inference_mode(), self._adapted(decoder, seed):
            return self.model.generate(
                **inputs.to(self.model.device, self.model.dtype),
                **(options | _GREEDY),
                guard_execution=self.execution,
                guard_steps=False,
                return_dict_in_generate=True,
            )

    def _scores(self, items: Sequence[Item], decoder: Decoder, seed: int) -> list[Scored]:
        """Return the scores of a method that cuts or has a second branch, with all of it run for every question.
        Decoders of one method share them, greedy, sampled and every cut, as long as they are asked about one block. It
        is the block just answered: its inputs, and what the matcher said of its pictures, are there."""
        asked = (decoder.guard(seed).uncut(), decoder.prompt_suffix)
        known = [one for one in self._scored if len(one[0]) == len(items) and all(map(operator.is_, one[0], items))]
        for _, same, scored in known:
            if same == asked:
                return scored
        first = FirstToken(self.words)
        once = {**PLAIN, "logits_processor": [first], "max_new_tokens": 1}
        self._generate(self._inputs[0], decoder, seed, guard=asked[0], **once)
        scored = first.scored or [(None, None)] * len(items)
        self._scored[:] = [*known, (tuple(items), asked, scored)]
        return scored

    def _cut_at(self, answers: Tensor, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return how many characters of each text its first `LIMITS` tokens say; answers [R, T]."""
        starts = [self.processor.batch_decode(answers[:, :limit], skip_special_tokens=True) for limit in LIMITS]
        # half a character at a cut is none of a text's
        both = [[[start[i], text] for start in starts] for i, text in enumerate(texts)]
        return [tuple(len(commonprefix(pair)) for pair in of) for of in both]  # noqa: RUF071 - of texts, not of paths

    def _adapted(self, decoder: Decoder, seed: int) -> AbstractContextManager[object]:
        if decoder.adapters:
            self.model.set_adapter(adapter_name(decoder.name, seed))
        elif getattr(self.model, "peft_config", None):
            off: AbstractContextManager[object] = self.model.disable_adapter()
            return off
        return nullcontext()


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
    for stop in filter(None, stops):
        text = text.split(stop, 1)[0]
    return text


def answer_length(tokens: Sequence[int], ends: set[int]) -> tuple[int, bool]:
    """Return how many tokens an answer has, its end-of-text included, and whether it has one."""
    return next(((count, True) for count, token in enumerate(tokens, 1) if token in ends), (len(tokens), False))


def matcher_answers(matcher: Matcher, items: Sequence[Item]) -> list[Said]:
    """Return the matcher's own answers: yes where it gives the question more than one half."""
    pictures = [item.pictures()[0] for item in items]
    support = matcher.support_pairs(pictures, [item.question or item.prompt for item in items])
    return [Said("yes" if p > 0.5 else "no", score=odds_of(p), mass=1.0) for p in support.tolist()]


def _tells_all(method: Any) -> bool:
    """Return whether the logits of an answering call are those before any cut, with all branches run."""
    return method is False or (not method.branches() and method.uncut() == method)


@dataclass(frozen=True)
class Prepared:
    """All that a run asks, and who answers."""

    settings: Settings
    tasks: list[EvalTask]
    decoders: list[Decoder]
    answerer: Asker | ServerAsker
    matcher: str = ""  # its version; "" where there is none
    flags: list[str] = field(default_factory=list)  # what this way of asking leaves out, in sentences
    where: dict[str, str] = field(default_factory=dict)  # device, number format, commit of a hub's weights

    def describe(self) -> dict[str, Any]:
        """Return who answers, and what a reader has to know of it."""
        settings = self.settings
        off = "plain sampling, moved thresholds and the methods' controls were switched off"
        told = {
            f"--no-controls: {off}.": not settings.controls,
            f"--limit {settings.limit}: the first pictures of each task only.": settings.limit is not None,
            f"--preset {settings.preset}: prompt and sampling of that publication.": settings.preset,
        }
        found = {"decoders": [d.describe() for d in self.decoders], "matcher": self.matcher, "where": self.where}
        # ids of the tokens that count as yes and as no in the scores of questions
        found["words"] = dict(self.answerer.words) if isinstance(self.answerer, Asker) else {}
        found["flags"] = [*(sentence for sentence, holds in told.items() if holds), *self.flags]
        return found | {"warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """Return what may be wrong with the answers, in sentences."""
        found = [warning for task in self.tasks for warning in task.about.get("warnings", ())]
        batch, dtype = self.settings.batch, self.where.get("dtype")
        if batch > 1 and dtype in ("bfloat16", "float16"):
            told = f"Answers were made {batch} at a time in {dtype}"
            found.append(f"{told}: in half precision the batch can change one. Published tables use one at a time.")
        return found


def prepare_run(
    settings: Settings, tasks: Sequence[EvalTask] | None = None, device: str = "", concurrency: int = 1
) -> Prepared:
    """Lay out the tasks, then load the model; whatever is amiss with the data is found first. `tasks` are those of the
    run where they are at hand, `device` this process's where it is another than the settings', `concurrency` the
    requests in flight at a server. Raises what tasks, methods, model and matcher raise."""
    laid = list(tasks) if tasks is not None else tasks_of(settings)
    if settings.server:
        from lvlm_guard.evals.infer.server import server_run

        decoders, answerer, flags = server_run(settings, concurrency=concurrency)
        return Prepared(settings, laid, decoders, answerer, flags=flags)
    from lvlm_guard import guard
    from lvlm_guard.pretrained import load_model, with_adapters

    # names and knobs before the model, which may take minutes to load
    objects = NOUNS if any(task.vocabulary == NOUNS for task in laid) or settings.model == EMBEDDED else None
    decoders = decoders_of(settings, None, objects)
    model, processor = load_model(
        settings.model, device=device or settings.device, dtype=settings.dtype, revision=settings.revision or None
    )
    for method in (run for d in decoders for run in d.runs if run):
        method.check_model(model)
    adapters = {adapter_name(d.name, seed): place for d in decoders for seed, place in enumerate(d.adapters)}
    model, processor = guard(with_adapters(model, adapters) if adapters else model, processor)
    matcher = load_usual(decoders, model)
    loaded = load_matchers((place for d in decoders for place in d.matchers), settings.matchers, model)
    if matcher is not None or loaded:
        decoders = decoders_of(settings, matcher, objects, loaded)
    decoders, flags = understood(decoders, processor.tokenizer)
    flags += left_out(settings)
    asker = Asker(model, processor, matcher, {d.name: d for d in decoders}, settings.execution, loaded)
    return Prepared(settings, laid, decoders, asker, matcher.version if matcher else "", flags, where_of(model))


def where_of(model: Any) -> dict[str, str]:
    """Return device, number format and, of a hub's model, the commit of its weights."""
    found = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    if model.device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(model.device)
    commit = getattr(model.config, "_commit_hash", None)
    return found | ({"weights_commit": commit} if commit else {})
