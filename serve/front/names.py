"""Which guard a model's name asks for: `NAME` is the plain model, `NAME-agla` the one guarded by AGLA."""

from __future__ import annotations

from dataclasses import dataclass, field

from lvlm_guard.errors import did_you_mean
from lvlm_guard.serve.errors import Refused, ServeError


@dataclass(frozen=True)
class Names:
    """The names of one server.

    Args:
        plain: names that vLLM serves; the first is answered where a request names none, as vLLM does.
        guards: methods that each of them can be guarded by.

    Raises:
        ServeError: there is no name, or a name could mean two things.
    """

    plain: tuple[str, ...]
    guards: tuple[str, ...]
    _meant: dict[str, tuple[str, str | None]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.plain:
            raise ServeError("The server has no model name: give one, --served-model-name NAME.")
        meant: dict[str, tuple[str, str | None]] = {}
        for name in self.plain:
            for guard in (None, *self.guards):
                full = name if guard is None else f"{name}-{guard}"
                if full in meant:
                    raise ServeError(
                        f"{full!r} would be two models, plain and guarded: give names of which none is another one "
                        f"with {', '.join('-' + guard for guard in self.guards)} behind it (--served-model-name)."
                    )
                meant[full] = name, guard
        object.__setattr__(self, "_meant", meant)

    @property
    def all(self) -> tuple[str, ...]:
        """Return every name, guarded ones behind their plain one."""
        return tuple(self._meant)

    def guarded(self, plain: str) -> dict[str, str | None]:
        """Return the names over one plain one, itself first, each with its guard (None: the plain model)."""
        return {full: guard for full, (name, guard) in self._meant.items() if name == plain}

    def meant(self, name: object) -> tuple[str, str | None]:
        """Return the plain name and the guard (None: none) that a request's `model` asks for.

        Raises:
            Refused: 404, there is no such model.
        """
        if name is None:
            return self.plain[0], None
        if not isinstance(name, str) or name not in self._meant:
            near = did_you_mean(name, self._meant) if isinstance(name, str) and len(name) < 200 else ""
            raise Refused(404, f"There is no model {name!r:.200}. {near}Models here: {', '.join(self._meant)}.")
        return self._meant[name]
