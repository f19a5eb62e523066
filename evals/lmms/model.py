"""`--model lvlm_guard`: a guarded model as lmms-eval wants one.

The answers are those of `lvlm-guard eval ask`: the same `Asker` makes the inputs, calls generate() and draws. Nothing
is caught: an error of generate() ends the run, where lmms-eval's own models answer "" and score it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.infer.generate import Asker, prepare_run
from lvlm_guard.evals.infer.record import environment, weights_of
from lvlm_guard.evals.lmms.arguments import code_name, parse, read
from lvlm_guard.evals.lmms.requests import Request, read_requests
from lvlm_guard.evals.spec.items import EvalTask, Said
from lvlm_guard.files import plain
from lvlm_guard.progress import progress
from lvlm_guard.weights import weights_digest

COSTS = ("seconds", "forwards", "local_forwards", "masks", "ended", "peak_mib")


@dataclass
class Cost(TokenCounts):  # type: ignore[misc]  # lmms-eval has no types
    """What the answer `said` cost; lmms-eval writes `to_dict()` beside each logged sample."""

    said: Said | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return token counts, seconds, model calls, and whether the answer ended by itself."""
        return {**super().to_dict(), **({name: getattr(self.said, name) for name in COSTS} if self.said else {})}


class Store:
    """Finished answers of one setting (all that decides them, as JSON data), found again after any end.

    They are `held` by the digest of what their document says and shows; unlike lmms-eval's response cache, this keeps
    sampled ones too, and what each cost. Each process, by its rank, writes a file of its own, and all are read.
    Raises `RunError` where the disk is full or can't be written to.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], rank: int = 0) -> None:
        told = json.dumps(setting, sort_keys=True, indent=1)
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.folder, self._path, self.held = folder, folder / f"{name}.{rank}.jsonl", dict[str, Said]()
        with disk_trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(told + "\n", encoding="utf-8")
            for line in (line for path in sorted(folder.glob(f"{name}.*.jsonl")) for line in path.open("rb")):
                with suppress(ValueError, KeyError, TypeError):  # cut off in the middle of a line
                    row = json.loads(line)
                    self.held[row["document"]] = Said(**{f.name: row[f.name] for f in fields(Said)})
            if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
                with self._path.open("ab") as file:  # so that the next line is not lost with the cut one
                    file.write(b"\n")

    def add(self, answers: Iterable[tuple[str, Mapping[str, Any], Said]]) -> None:
        """Write answers: digest, where they belong, what was said; on `RunError` what was written before is kept."""
        kept = list(answers)
        self.held |= {key: said for key, _, said in kept}
        lines = [json.dumps({"document": key, **place, **asdict(said)}) + "\n" for key, place, said in kept]
        with disk_trouble(self.folder), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


class LvlmGuard(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A chat model of lmms-eval around a guarded model; see `arguments` for `--model_args`."""

    is_simple = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        if given.pop("max_batch_size", None) is not None:
            raise KnobError("max_batch_size is for models that search for a batch: give lvlm_guard a --batch_size.")
        self.arguments = read(given)
        self._prepared = prepare_run(self.arguments.settings, tasks=[])
        assert isinstance(self._prepared.answerer, Asker)
        self._chosen = self._prepared.answerer.decoders[self.arguments.method]
        self._decoders: dict[str, Decoder] = {}  # one for each way of generating
        self._asker = replace(self._prepared.answerer, decoders=self._decoders)
        for warning in self._prepared.warnings():
            _tell(f"lvlm_guard: {warning}")

    @classmethod
    def create_from_arg_string(cls, arg_string: Any, additional_config: dict[str, Any] | None = None) -> LvlmGuard:
        """Return the model of a `--model_args` text (or mapping) and of `--device` and `--batch_size`."""
        given: dict[str, Any] = dict(arg_string) if isinstance(arg_string, Mapping) else dict(parse(arg_string))
        for name, value in (additional_config or {}).items():
            if value is None or (name == "batch_size" and value == 1 and name in given):
                continue  # 1 is what lmms-eval passes unasked
            if name in given and str(given[name]) != str(value):
                raise KnobError(f"{name} is {given[name]} in --model_args, but {value} beside them: give it once.")
            given[name] = value
        return cls(**given)

    @property
    def device(self) -> Any:
        """The model's device, on which lmms-eval counts over processes."""
        return self._asker.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return an answer for each request, in their order; raises what generate() or a document does."""
        asked = read_requests(requests, self.task_dict)
        said: dict[int, Said] = {}
        first = self.rank == 0  # one process of several tells how far they are
        with progress("answers", len(asked), _tell if first else str, None if first else False, 15.0) as advance:
            for batch in _batches(asked, self.arguments.settings.batch):
                try:
                    answers = self._answers([request for _, request in batch])
                except Exception as error:
                    documents = ", ".join(str(request.doc_id) for _, request in batch)
                    error.add_note(f"While answering document {documents} of the task {batch[0][1].task}.")
                    raise
                said |= {place: answer for (place, _), answer in zip(batch, answers, strict=True)}
                advance(len(batch), batch[0][1].task)
        seconds, tokens = sum(s.seconds for s in said.values()), sum(s.tokens for s in said.values())
        speed, more = tokens / seconds if seconds else 0.0, {"requests": len(said), "rank": self.rank}
        log_metrics(total_elapsed_time=seconds, total_gen_tokens=tokens, avg_speed=speed, additional_metrics=more)
        found = [GenerationResult("", None)] * len(asked)  # lmms-eval drops what fills up a process's share
        for place, one in said.items():
            found[place] = GenerationResult(one.text, Cost(output_tokens=one.tokens, said=one))
        return found

    def _answers(self, batch: Sequence[Request]) -> list[Said]:
        """Answer a batch, or find it answered; a batch that was answered in part is asked again as a whole."""
        first, store = batch[0], self._store
        seed, items = self.arguments.seed + first.repeat, [request.item() for request in batch]
        keys = [r.digest(i, seed) for r, i in zip(batch, items, strict=True)] if store else []
        if store and all(key in store.held for key in keys):
            return [store.held[key] for key in keys]
        task = EvalTask(first.task, "stock", items, first.generation.max_new_tokens, first.generation.until)
        options = first.generation.options()
        name = f"{self._chosen.name} {options}"
        self._decoders.setdefault(name, replace(self._chosen, name=name, options=options))
        (said,) = self._asker.ask(task, items, [(name, seed)])
        if store:
            places = [{"task": r.task, "split": r.split, "doc_id": r.doc_id, "seed": seed} for r in batch]
            store.add(zip(keys, places, said, strict=True))
        return said

    @cached_property  # opened when it is first needed: only then has lmms-eval told this process its rank
    def _store(self) -> Store | None:
        if not self.arguments.store:
            return None
        settings, model = self.arguments.settings, self._asker.model
        decides: dict[str, Any] = {"dtype": str(model.dtype), "knobs": dict(self._chosen.knobs), "code": code_name()}
        decides |= {"settings": settings.to_dict() | {"device": self.device.type}, "matcher": self._prepared.matcher}
        decides |= {"weights": weights_digest(weights_of(settings)), "environment": environment() | {"commit": None}}
        decides |= {"loaded": getattr(model.config, "_commit_hash", None)}
        return Store(Path(self.arguments.store), plain(decides), self.rank)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: a guard changes how answers are generated, not how given ones are weighed."""
        told = "lvlm_guard only generates answers: tasks of loglikelihood or multiple choice are not supported."
        raise NotImplementedError(f"{told} Choose a task whose output_type is generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise NotImplementedError: an answer is made in one turn."""
        told = "tasks of several rounds (generate_until_multi_round) are not supported"
        raise NotImplementedError(f"lvlm_guard answers in one turn: {told}.")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # lmms-eval's table has the other stream


def _batches(asked: Sequence[Request | None], size: int) -> Iterator[list[tuple[int, Request]]]:
    numbered = [(place, request) for place, request in enumerate(asked) if request is not None]
    order = sorted(numbered, key=lambda pair: pair[1].repeat)  # stable: the repeats of a document stand together
    for _, group in groupby(order, key=lambda p: (p[1].task, p[1].split, p[1].generation, p[1].repeat)):
        same = iter(group)
        while batch := list(islice(same, size)):
            yield batch
