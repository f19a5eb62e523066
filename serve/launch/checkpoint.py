"""What a model's files say before any of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lvlm_guard import embedded
from lvlm_guard.families.question import FRAMES
from lvlm_guard.pretrained import EMBEDDED
from lvlm_guard.serve.engine.plugin import FAMILIES, twin_of
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.weights import how_to_fetch, read


@dataclass(frozen=True)
class Checkpoint:
    """A model to serve.

    Args:
        name: as the user gave it.
        place: folder or hub id.
        config: its config.json.
        passed: vLLM's options, which can name another revision or tokenizer.
    """

    name: str
    place: str
    config: dict[str, Any]
    passed: Passed

    @classmethod
    def of(cls, name: str, passed: Passed) -> Checkpoint:
        """Read a checkpoint's configuration.

        Raises:
            WeightsError: it can't be had; the message says how to fetch it.
        """
        from transformers import PretrainedConfig

        place = str(embedded.MODEL) if name == EMBEDDED else name
        at = {"revision": passed.value("revision")} if "revision" in passed else {}
        where = passed.value("hf-config-path", place)

        def load() -> dict[str, Any]:
            config: dict[str, Any] = PretrainedConfig.get_config_dict(where, **at)[0]
            if not config and "config-format" not in passed:
                raise FileNotFoundError("config.json")
            return config

        return cls(name, place, _read(name, where, load), passed)

    @property
    def embedded(self) -> bool:
        """Whether it is the model in this package."""
        return self.name == EMBEDDED

    @property
    def architecture(self) -> str:
        """Its class, "" where its configuration names none."""
        return str(next(iter(self.config.get("architectures") or ()), ""))

    @property
    def twin(self) -> str | None:
        """The class with two branches; None where there is none for it."""
        pixtral = (self.config.get("vision_config") or {}).get("model_type") == "pixtral"
        return twin_of(self.architecture) if self.architecture in FAMILIES and not pixtral else None

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            WeightsError: it can't be had.
        """
        from transformers import AutoTokenizer

        place = self.passed.value("tokenizer", self.place)
        revision = self.passed.value("tokenizer-revision") or self.passed.value("revision")
        at: dict[str, Any] = {"revision": revision} if revision else {}
        if "trust-remote-code" in self.passed:
            at["trust_remote_code"] = True
        return _read(self.name, place, lambda: AutoTokenizer.from_pretrained(place, **at))

    def no_question(self) -> tuple[str, ...]:
        """Return the pieces of a message that are no part of its question: the image token and its frame.

        Raises:
            WeightsError: the tokenizer can't be had.
        """
        ids = [self.config[key] for key in ("image_token_id", "image_token_index") if key in self.config]
        own = [str(self.tokenizer.convert_ids_to_tokens(int(one))) for one in ids[:1] if one is not None]
        return tuple(dict.fromkeys([*own, *FRAMES, "<image>"]))


def _read(name: str, place: str, load: Any) -> Any:
    return read(
        f"The model {name!r}",
        place,
        load,
        damaged="Check that its folder is complete: config.json, the tokenizer, the weights.",
        absent=how_to_fetch(name, "--model DIR"),
    )
