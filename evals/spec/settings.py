"""What decides what is asked and answered: plain data, which `asked.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lvlm_guard.evals.spec.items import Split

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the answers; how the work is spread over processes does not."""

    model: str = EMBEDDED  # "embedded", a folder, or a hub id; with `server` the model's name there
    tasks: tuple[str, ...] = ("world_pope", "world_chair")  # see `lvlm_guard.evals.tasks`
    # registered names, "greedy" and "sample" among them if wished
    methods: tuple[str, ...] = ("agla", "focus", "vote", "vcd")
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> its knobs
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # knob -> values: all combinations are run
    controls: bool = True  # whether greedy, sampling, APC-only and the methods' own controls are added
    seeds: int = 3  # runs of whatever is random
    limit: int | None = None  # pictures of each task; None: the task's usual number
    split: Split = "test"  # "val" is to choose settings on: a sweep needs it
    batch: int = 1  # items of one generate() call; the unit of resuming
    device: str = "auto"  # of the model, as the next one
    dtype: str = "auto"
    execution: str = "auto"  # how branches are run
    preset: str = ""  # name of a published protocol ("paper-agla")
    questions: tuple[str, ...] = ()  # files of questions, or folders of them
    images: str = ""  # folder of the pictures
    annotations: str = ""  # folder or file of COCO's annotations, or of a CHAIR ground truth; AMBER's data
    include: tuple[str, ...] = ()  # folders with tasks of lmms-eval
    captions: int | None = None  # pictures to caption; None: the task's usual number
    max_new_tokens: int | None = None  # of an answer; None: the task's own number
    server: str = ""  # address of an OpenAI-compatible endpoint; "" for a model in this process
    revision: str = ""  # of a hub id: a branch, a tag or a commit; "" for the newest
    # PEFT adapters whose plain answers stand beside the methods, each "NAME=FOLDER" or the folder or hub id alone;
    # several of one name are its seeds. All other decoders run without them.
    adapters: tuple[str, ...] = ()
    # name -> registered names or folders, one a training seed: methods that have a matcher are run with each of them
    matchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Settings:
        """Return the settings of `to_dict`, read from JSON."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        for name in ("sweep", "matchers"):
            known[name] = {key: tuple(values) for key, values in (data.get(name) or {}).items()}
        return cls(**known)
