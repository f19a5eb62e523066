"""What a decoding method is: the branches it needs, when they matter, how their logits are assembled.

A method is a frozen dataclass of its knobs that derives from `Method`, in a file of its own, with one
line in `lvlm_guard/methods/__init__.py` (or an entry point `lvlm_guard.methods` of another package). It
has no loop, no cache and no state: the engine asks it these questions at every step.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from lvlm_guard.engine import knobs
from lvlm_guard.engine.assembly import complement, contrast, cut, plausible
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.steering import Pass


@dataclass(frozen=True)
class Branch:
    """A second reading of the same request: a change of the model call.

    It has a KV cache of its own, or, where it `hides`, shares what is equal by construction. The first three functions
    are called once a `generate()` call, at the first step that needs the branch, and must not draw from the global
    random state (lazy and batched execution would then sample different tokens).

    Args:
        name: how traces call it ("local", "noised").
        pixels: makes the image tensors of this branch from the call: keyword arguments of the model such as
            `pixel_values`, for all B requests.
        hides: marks the prompt's positions that this branch can't see, [B, T] bool. It reads the model's own cache
            without them, and the text after the last picture again.
        prompt: makes another prompt, as a processor gives it: `input_ids` and `attention_mask` [B, T'], padded on the
            left, and the image tensors that belong to it, or none (`Call.without_pictures`, `Call.rewritten`).
        around: a context in which each model call of this branch runs, given its `Pass`.

    Raises:
        KnobError: it changes nothing, or hides beside another change.
    """

    name: str
    pixels: Callable[[Call], dict[str, Tensor]] | None = None
    hides: Callable[[Call], Tensor] | None = None
    prompt: Callable[[Call], dict[str, Any]] | None = None
    around: Callable[[Pass], AbstractContextManager[None]] | None = None

    def __post_init__(self) -> None:
        changes = [self.pixels, self.hides, self.prompt, self.around]
        if all(change is None for change in changes) or (self.hides and changes.count(None) < 3):
            raise KnobError(
                f"The branch {self.name!r} changes the model call: give pixels=, prompt= or around=, or hides= alone."
            )

    @property
    def stacks(self) -> bool:
        """Whether its rows may stand beside the global ones in one model call: they are as long, and nothing steers."""
        return self.prompt is None and self.around is None


def _no_layers(layer: int) -> Tensor:
    raise KnobError(f"Layer {layer} can't be read here: no method that serves one reads the model's layers.")


@dataclass
class Step:
    """One decoding step, seen by a method. R rows: requests, beams, and draft tokens alike.

    Args:
        logits: global logits, [R, V], float32 or wider.
        raw: the same in the model's own dtype.
        t: index of the token being predicted, [R], 1 for the first token of the answer.
        request: which request of the call a row belongs to, [R].
        prefix: the tokens of the answer so far, one list a row.
        call: pictures, questions and tokenizer of the call.
        hidden: gives the output of a decoder layer that `Method.layers` names at these positions, [R, D], before the
            final norm.
        extra: what a method leaves of a row beside the engine's own record, row -> name -> plain data; the trace of the
            token that is chosen after the row tells it.
    """

    logits: Tensor
    raw: Tensor
    t: Tensor
    request: list[int]
    prefix: Callable[[int], list[int]]
    call: Call
    hidden: Callable[[int], Tensor] = field(default=_no_layers)
    extra: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    _kept: dict[float, Tensor] = field(default_factory=dict)

    def plausible(self, beta: float) -> Tensor:
        """Return the tokens that APC keeps, [R, V] bool: `assembly.plausible`, computed once a step."""
        if beta not in self._kept:
            self._kept[beta] = plausible(self.logits, beta)
        return self._kept[beta]


class Method(ABC):
    """Base of every decoding method. Subclasses are frozen dataclasses of their knobs.

    Making one raises `KnobError` where a knob is out of range (`engine/knobs.py`).

    Class attributes:
        name: the registered name; the class's in lower case where it names none.
        paper: where it is published, "ours" where nowhere else.
        cost: what it costs beside the plain answer, in a few words.
        experimental: True where evaluations of "all" methods leave it out.
        parity: True of a release with its defects, there for its published numbers alone: it is asked for by name, and
            no list to choose from has it.
        needs_statistics: True where they must be gathered first, on pictures of the user's: `lvlm_guard/measured.py`.
        asks_about_pictures: True where the method must know the pictures and the question themselves
            (a matcher reads them), so that inputs must come from a guarded processor.
        sampled: whether evaluations draw its answers too, beside greedy ones; False where nobody publishes it so.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    experimental: ClassVar[bool] = False
    parity: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False
    asks_about_pictures: ClassVar[bool] = False
    sampled: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__dict__.get("name", cls.__name__.lower())

    def __post_init__(self) -> None:
        knobs.check(self)

    @property
    def executions(self) -> tuple[str, ...]:
        """How its branches may be run; a method whose branches are idle by design leaves "batched" out."""
        return ("lazy", "batched")

    @property
    def assembles(self) -> bool:
        """Whether it changes the logits that the global branch gives; of a combination one may."""
        return True

    @property
    def assembling(self) -> Method:
        """The method that assembles: itself; of a combination the part that does, the first where all only steer."""
        return self

    def tuned(self, **knobs: Any) -> Self:
        """Return it with other knobs; of a combination they are those of `assembling`."""
        return dataclasses.replace(self, **knobs)  # type: ignore[type-var]  # every method is a dataclass

    @property
    def steers(self) -> bool:
        """Whether it changes what the global branch computes, see `around`."""
        return type(self).around is not Method.around

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        """Return the context in which a model call of the global branch runs: one that steers it, or none.

        It must depend on the tokens of the rows alone, not on how many of them a call reads at once.
        """
        return nullcontext()

    def layers(self, call: Call) -> Sequence[int]:
        """Return the decoder layers whose outputs `Step.hidden` is to give, 0 for the first."""
        return ()

    def branches(self) -> tuple[Branch, ...]:
        """Return the branches beside the global one; none for a method that only reweighs logits."""
        return ()

    def ready(self) -> None:  # noqa: B027 - optional hook
        """Raise a `GuardError` where it can guard no model as it is: it lacks its statistics."""

    def check_model(self, model: Any) -> None:  # noqa: B027 - optional hook
        """Raise a `GuardError` where this model can't be guarded, whatever the call: `guard()` asks."""

    def check(self, call: Call) -> None:  # noqa: B027 - optional hook
        """Raise a `GuardError`, before the first token, where this call can't be guarded: no question, no matcher."""

    @classmethod
    def changes(cls) -> str:
        """Return what it changes: "pictures", "prompt" or "cache" of a branch, "states" in the model, "logits"."""
        method = cls()
        names = {"pixels": "pictures", "prompt": "prompt", "hides": "cache", "around": "states"}
        changed = [names[kind] for branch in method.branches() for kind in names if getattr(branch, kind) is not None]
        return ", ".join(dict.fromkeys(["states"] * method.steers + changed)) or "logits"

    def decided(self, step: Step) -> Tensor:
        """Mark the rows whose assembled distribution does not depend on the other branches, [R] bool."""
        return torch.zeros(len(step.logits), dtype=torch.bool, device=step.logits.device)

    @abstractmethod
    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the assembled logits, [R, V].

        Args:
            step: the global branch's step.
            branches: logits of `branches()` in their order, each [R, V] in the model's own dtype; None
                where every row was decided and the branches did not run.
        """

    def matched_temperature(self) -> float | None:
        """Return the temperature at which plain sampling is as sharp as this method over equal branches, if any.

        An evaluation samples at it beside the method, so that sharpening alone is not taken for its merit.
        """
        return None

    def uncut(self) -> Method:
        """Return the method without its plausibility cut, every token kept, so that its branches always matter.

        An evaluation takes a question's score from its logits: after a cut they say nothing of what was cut off.
        """
        return self

    def knobs(self) -> dict[str, Any]:
        """Return the knobs as plain data, for traces and reports; a matcher is named by its version."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every method is a dataclass
        return {field.name: _plain(getattr(self, field.name)) for field in fields}


class Plausible(Method):
    """A method within the plausibility constraint; subclasses have a field `beta`, the cut."""

    beta: float

    def uncut(self) -> Self:
        """Return the method with beta 0."""
        return self.tuned(beta=0.0)

    def decided(self, step: Step) -> Tensor:
        """Where one token is plausible, nothing can change it."""
        return self.kept(step).sum(-1) == 1

    def kept(self, step: Step) -> Tensor:
        """Return the tokens that the constraint keeps, [R, V] bool."""
        return step.plausible(self.beta)


class Constrained(Plausible):
    """A method whose one branch only matters among the tokens that the plausibility constraint keeps.

    Subclasses are dataclasses with the fields `alpha` (the branch's weight) and `beta`; `rule` joins the two.
    """

    alpha: float

    @staticmethod
    def rule(logits: Tensor, other: Tensor, alpha: float) -> Tensor:
        """Return both branches' logits as one."""
        return contrast(logits, other, alpha)

    def decided(self, step: Step) -> Tensor:
        """Where one token is plausible, or the branch weighs nothing, its logits can't matter."""
        if self.alpha == 0:
            return torch.ones(len(step.logits), dtype=torch.bool, device=step.logits.device)
        return super().decided(step)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the two by the rule, within the constraint; where the branch did not run, l stands in for it."""
        other = step.logits if branches is None else branches[0].to(step.logits.dtype)
        return cut(self.rule(step.logits, other, self.alpha), step.logits, self.kept(step))


class Contrast(Constrained):
    """(1 + alpha) * l - alpha * l_other, then the plausibility cut on l; equal branches change nothing."""


class Complement(Constrained):
    """l + alpha * l_other, then the plausibility cut on l; equal branches sharpen."""

    @staticmethod
    def rule(logits: Tensor, other: Tensor, alpha: float) -> Tensor:
        """Return their weighted sum."""
        return complement(logits, other, alpha)

    def matched_temperature(self) -> float | None:
        """Return 1 / (1 + alpha)."""
        return 1 / (1 + self.alpha)


class Single(Method):
    """A method without another branch."""

    def decided(self, step: Step) -> Tensor:
        """Every row: there is no other branch to wait for."""
        return torch.ones(len(step.logits), dtype=torch.bool, device=step.logits.device)


class Steering(Single):
    """A method that acts inside the global branch alone, its logits as they are."""

    @property
    def assembles(self) -> bool:
        """False: the steered logits are the answer's."""
        return False

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the steered logits as they are."""
        return step.logits


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return getattr(value, "version", None) or getattr(value, "__qualname__", None) or repr(value)
