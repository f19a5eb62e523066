"""What decides what is asked and answered: plain data, which `asked.json` holds, and the options of `eval ask`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from typer import Option

from lvlm_guard.cli.options import PLACE, Device, Dtype, Execution, Model
from lvlm_guard.cli.settings import COMMAS
from lvlm_guard.cli.settings import EMBEDDED as EMBEDDED
from lvlm_guard.evals.spec.items import Split

QUICK = 24  # pictures of each task
TASKS = """Comma-separated: world_pope, world_chair, pope_coco, pope_aokvqa, pope_gqa, pope (own --questions), chair, \
opope, mme_hallucination, amber, amber_captions, dash_b, mmhal, or one of lmms-eval (mmstar, ...)."""
QUESTIONS = "Questions: POPE's files or folder, DASH-B's, ...; a list to caption. Repeatable."
ADAPTER = """A PEFT adapter of the model: its plain answers stand beside the methods. Several of one NAME are its \
seeds. Repeatable."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the answers; how the work is spread over processes does not.

    Most fields are options, whose help says what they are; None is the task's own number.
    """

    model: Model = EMBEDDED
    tasks: Annotated[tuple[str, ...], COMMAS, Option(help=TASKS)] = ("world_pope", "world_chair")
    methods: Annotated[
        tuple[str, ...], COMMAS, Option(help="Methods, comma-separated; greedy is always there.")
    ] = ("agla", "focus", "vote", "vcd")  # fmt: skip
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> its knobs
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # knob -> values: all combinations are run
    controls: Annotated[
        bool, Option("--controls/--no-controls", help="Sampling, APC-only, and the methods' own controls.")
    ] = True
    seeds: Annotated[int, Option(min=1, help="Runs of whatever is random.")] = 3
    limit: Annotated[int | None, Option(min=1, help="Pictures of each task. [default: the task's]")] = None
    split: Annotated[Split, Option(help="val is for choosing settings.")] = "test"
    batch: int = 1  # items of one generate() call; the unit of resuming
    device: Device = "auto"
    dtype: Dtype = "auto"
    execution: Execution = "auto"
    preset: Annotated[Literal["", "paper-agla"], Option(help="Prompt and sampling of a publication.")] = ""
    questions: Annotated[tuple[str, ...], Option(help=QUESTIONS, **PLACE)] = ()
    images: Annotated[str, Option(help="Folder of the pictures.", **PLACE)] = ""
    annotations: Annotated[str, Option(help="COCO's annotations, a CHAIR ground truth; AMBER's.", **PLACE)] = ""
    include: Annotated[
        tuple[str, ...], Option("--include-path", help="Folder with tasks of lmms-eval. Repeatable.", **PLACE)
    ] = ()
    captions: Annotated[int | None, Option(min=1, help="Pictures to caption, where other than --limit.")] = None
    max_new_tokens: Annotated[int | None, Option(min=1, help="Longest answer. [default: the task's]")] = None
    server: Annotated[str, Option(help="An OpenAI-compatible endpoint that has --model.", metavar="URL")] = ""
    revision: Annotated[str, Option(help="Of --model on the hub.")] = ""
    # the folder or hub id alone does too; all other decoders run without them
    adapters: Annotated[tuple[str, ...], Option("--adapter", help=ADAPTER, metavar="NAME=DIR")] = ()
    # name -> registered names or folders, one a training seed: methods that have a matcher are run with each of them
    matchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def quick(self) -> Settings:
        """Return the settings of a look whether it works: few pictures of each task, one seed."""
        return replace(self, seeds=1, limit=self.limit or QUICK, captions=self.captions or QUICK)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Settings:
        """Return the settings of `to_dict`, read from JSON."""
        known: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in data.items()}
        for name in ("sweep", "matchers"):
            known[name] = {key: tuple(values) for key, values in (data.get(name) or {}).items()}
        return cls(**known)
