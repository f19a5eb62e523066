"""Several methods at once, by one rule: at most one assembles logits, any number steer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.steering import Pass


def _of_the_assembling(name: str) -> Any:
    """Return what the part has under this name that assembles logits."""

    def found(self: Combined) -> Any:
        return getattr(self.assembling, name)

    return property(found)


@dataclass(frozen=True)
class Combined(Method):
    """Methods that act together: the model is steered by some, and its logits are assembled by one of them.

    Branches are the assembling method's; they read the model unsteered, as they do alone.

    Args:
        parts: the methods, in the order in which they steer. Raises `KnobError` for fewer than two, two of a kind, or
            two that assemble logits.
    """

    parts: tuple[Method, ...]

    assembles, executions = _of_the_assembling("assembles"), _of_the_assembling("executions")
    branches, layers = _of_the_assembling("branches"), _of_the_assembling("layers")
    decided, assemble = _of_the_assembling("decided"), _of_the_assembling("assemble")
    matched_temperature = _of_the_assembling("matched_temperature")

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
    def assembling(self) -> Method:
        """The part that assembles logits; of parts that only steer, the first."""
        return next((part for part in self.parts if part.assembles), self.parts[0])

    def tuned(self, **knobs: Any) -> Combined:
        """Return the combination with other knobs of the part that assembles."""
        chosen = self.assembling
        return Combined(tuple(part.tuned(**knobs) if part is chosen else part for part in self.parts))

    @property
    def asks_about_pictures(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.asks_about_pictures for part in self.parts)

    @property
    def sampled(self) -> bool:  # type: ignore[override]
        """Whether all parts are."""
        return all(part.sampled for part in self.parts)

    @property
    def steers(self) -> bool:
        """Whether a part does."""
        return any(part.steers for part in self.parts)

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

    def uncut(self) -> Combined:
        """Return the combination with its parts uncut."""
        return Combined(tuple(part.uncut() for part in self.parts))

    def knobs(self) -> dict[str, Any]:
        """Return each part's knobs by its name."""
        return {part.name: part.knobs() for part in self.parts}
