"""A run made ready from its settings alone, the same in every process: tasks, decoders, and who answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of, left_out, understood
from lvlm_guard.evals.decoders.matchers import load_matchers, load_usual
from lvlm_guard.evals.infer.generate import Asker, adapter_name
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.world import NOUNS

if TYPE_CHECKING:
    from lvlm_guard.evals.infer.server.asker import ServerAsker


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
        return {
            "decoders": [d.describe() for d in self.decoders],
            "matcher": self.matcher,
            "where": self.where,
            # ids of the tokens that count as yes and as no in the scores of questions
            "words": dict(self.answerer.words) if isinstance(self.answerer, Asker) else {},
            "flags": [*(sentence for sentence, holds in told.items() if holds), *self.flags],
            "warnings": self.warnings(),
        }

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
    """Lay out the tasks, then load the model; whatever is amiss with the data is found first.

    `tasks` are those of the run where they are at hand, `device` this process's where it is another than the settings',
    `concurrency` the requests in flight at a server. Raises what tasks, methods, model and matcher raise.
    """
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
        import torch

        found["device_name"] = torch.cuda.get_device_name(model.device)
    commit = getattr(model.config, "_commit_hash", None)
    return found | ({"weights_commit": commit} if commit else {})
