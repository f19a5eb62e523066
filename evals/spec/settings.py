"""What decides what is asked and answered: plain data, which `asked.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lvlm_guard.evals.spec.items import Split

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the answers; how the work is spread over processes does not.

    Args:
        model: "embedded", a folder, or a hub id; with `server` the model's name there.
        tasks: their names, see `lvlm_guard.evals.tasks`.
        methods: registered names of methods, "greedy" and "sample" among them if wished.
        knobs: method -> its knobs.
        sweep: knob -> its values: every method is run with every combination that it knows.
        controls: whether greedy, sampling, APC-only and the methods' own controls are added.
        seeds: runs of whatever is random.
        limit: pictures of each task; None: the task's usual number.
        split: "test", or "val", which a sweep needs.
        batch: items of one generate() call; the unit of resuming.
        device, dtype: of the model.
        execution: how branches are run.
        preset: "" or the name of a published protocol ("paper-agla").
        questions: POPE question files.
        images: folder of the pictures.
        annotations: folder or file of COCO's annotations, or of a CHAIR ground truth.
        include: folders with tasks of lmms-eval.
        captions: pictures to caption; None: the task's usual number.
        max_new_tokens: of an answer; None: the task's own number.
        server: address of an OpenAI-compatible endpoint; "" for a model in this process.
        revision: of a hub id: a branch, a tag or a commit; "" for the newest.
        adapters: PEFT adapters whose plain answers stand beside the methods, each "NAME=FOLDER" or the folder or hub
            id alone; several of one name are its seeds. All other decoders run without them.
        matchers: name -> registered names or folders, one for each training seed: every method that has a matcher is
            run with each of them.
    """

    model: str = EMBEDDED
    tasks: tuple[str, ...] = ("world_pope", "world_chair")
    methods: tuple[str, ...] = ("agla", "vote", "vcd")
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    controls: bool = True
    seeds: int = 3
    limit: int | None = None
    split: Split = "test"
    batch: int = 1
    device: str = "auto"
    dtype: str = "auto"
    execution: str = "auto"
    preset: str = ""
    questions: tuple[str, ...] = ()
    images: str = ""
    annotations: str = ""
    include: tuple[str, ...] = ()
    captions: int | None = None
    max_new_tokens: int | None = None
    server: str = ""
    revision: str = ""
    adapters: tuple[str, ...] = ()
    matchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON data."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Settings:
        """Return the settings of `to_dict`, read from JSON."""
        listed = {"tasks", "methods", "questions", "include", "adapters"}
        known: dict[str, Any] = {name: tuple(value) if name in listed else value for name, value in data.items()}
        for name in ("sweep", "matchers"):
            known[name] = {key: tuple(values) for key, values in (data.get(name) or {}).items()}
        return cls(**known)
