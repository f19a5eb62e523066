"""Several methods at once, by one rule: at most one assembles logits, any number steer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_guard.engine.method import Branch, Method, Step
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.steering import Pass


@dataclass(frozen=True)
class Combined(Method):
    """Methods that act together: the model is steered by some, and its logits are assembled by one of them.

    Branches are the assembling method's; they read the model unsteered, as they do alone.

    Args:
        parts: the methods, in the order in which they steer.

    Raises:
        KnobError: fewer than two, two of a kind, or two that assemble logits.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        both = [part.name for part in self.parts if part.assembles]
        if len(both) > 1:
            raise KnobError(
                f"{' and '.join(both)} both assemble logits; of a combination one may. Give one of them, with methods "
                "that steer, such as 'rudder' or 'iat'."
            )
        if len(set(names)) < len(names) or len(names) < 2:
            raise KnobError(f"A combination of {', '.join(names) or 'nothing'}: give two or more different methods.")

    @property
    def name(self) -> str:  # type: ignore[override]  # the others' is their class's
        """The parts' names, joined."""
        return "+".join(part.name for part in self.parts)

    @property
    def asks_about_pictures(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.asks_about_pictures for part in self.parts)

    @property
    def sampled(self) -> bool:  # type: ignore[override]
        """Whether all parts are."""
        return all(part.sampled for part in self.parts)

    @property
    def assembles(self) -> bool:
        """Whether a part does."""
        return self._assembling.assembles

    @property
    def _assembling(self) -> Method:
        return next((part for part in self.parts if part.assembles), self.parts[0])

    @property
    def executions(self) -> tuple[str, ...]:
        """Those of the part that assembles."""
        return self._assembling.executions

    @property
    def steers(self) -> bool:
        """Whether a part does."""
        return any(part.steers for part in self.parts)

    def branches(self) -> tuple[Branch, ...]:
        """Return the branches of the part that assembles."""
        return self._assembling.branches()

    def check_model(self, model: Any) -> None:
        """Raise where a part can't guard this model."""
        for part in self.parts:
            part.check_model(model)

    def check(self, call: Call) -> None:
        """Raise where a part can't guard this call."""
        for part in self.parts:
            part.check(call)

    @contextmanager
    def around(self, passed: Pass) -> Iterator[None]:
        """Steer by each part that does."""
        with ExitStack() as stack:
            for part in self.parts:
                if part.steers:
                    stack.enter_context(part.around(passed))
            yield

    def layers(self, call: Call) -> Sequence[int]:
        """Return the layers that the part which assembles reads."""
        return self._assembling.layers(call)

    def decided(self, step: Step) -> Tensor:
        """Where the part that assembles has decided."""
        return self._assembling.decided(step)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return what the part that assembles makes of the steered logits."""
        return self._assembling.assemble(step, branches)

    def matched_temperature(self) -> float | None:
        """Return that of the part that assembles."""
        return self._assembling.matched_temperature()

    def uncut(self) -> Combined:
        """Return the combination with its parts uncut."""
        return dataclasses.replace(self, parts=tuple(part.uncut() for part in self.parts))

    def knobs(self) -> dict[str, Any]:
        """Return each part's knobs by its name."""
        return {part.name: part.knobs() for part in self.parts}
