"""BLIP-2 and InstructBLIP on a decoder: a Q-Former's queries of the picture stand before the prompt.

Sources: Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models", ICML 2023, arXiv:2301.12597; Dai et al., "InstructBLIP: Towards General-purpose Vision-Language Models with
Instruction Tuning", NeurIPS 2023, arXiv:2305.06500, whose Q-Former reads the question too; the second model of AGLA's
paper (arXiv:2406.12718).

transformers' `generate()` of these models embeds the picture once and then decodes with the language
model alone, out of sight of the guard. Here the same loop runs on the whole model, so that each branch
embeds a picture of its own; every step does with the language model what the stock loop does.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from lvlm_guard.engine.subclass import once_per_class, signed_as
from lvlm_guard.errors import UnsupportedCallError

NEEDED = ("pixel_values", "qformer_input_ids")
OF_THE_PICTURE = {*NEEDED, "qformer_attention_mask", "interpolate_pos_encoding", "mm_encoder_outputs"}
"""What the model needs to embed its picture; the language model takes the rest."""


def of_the_text(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the language model takes."""
    return {key: value for key, value in arguments.items() if key not in OF_THE_PICTURE}


@once_per_class
def decoding_class(base: type[Any]) -> type[Any]:
    """Return a subclass of a BLIP model whose generate() calls the model itself at each step.

    A call outside generate() is the base's own.
    """
    needed = [key for key in NEEDED if key in signature(base.generate).parameters]

    class Decoding(base):  # type: ignore[misc]  # the base is only known at run time
        main_input_name = "input_ids"
        makes_positions = True  # its generate() does, of which the outer forward's signature tells nothing

        generation_config = property(
            lambda self: self.language_model.generation_config,
            lambda self, config: setattr(self.language_model, "generation_config", config),
        )
        """The language model's, which is the one that the stock generate() goes by."""

        @signed_as(GenerationMixin.generate)  # whose arguments it takes
        def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            ids = inputs if inputs is not None else kwargs["input_ids"]
            missing = [key for key in needed if kwargs.get(key) is None]
            if missing and bool((ids == self.config.image_token_id).any()):
                raise UnsupportedCallError(
                    f"The prompt holds a picture's tokens, but {' and '.join(missing)} did not come with it, which the "
                    "model reads at every call. Pass all that the processor returns: model.generate(**inputs)."
                )
            if kwargs.get("interpolate_pos_encoding"):
                raise UnsupportedCallError(
                    "interpolate_pos_encoding is for pictures of another size than the model was trained on, and the "
                    "second view would be read without it. Leave it out, and let the processor choose the size."
                )
            if hasattr(self, "hf_device_map"):
                self._preprocess_accelerate()
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = torch.ones_like(ids)
            if kwargs.get("position_ids") is None:
                kwargs["position_ids"] = self._prepare_position_ids_for_generation(ids, kwargs)
            return GenerationMixin.generate(self, inputs, *args, **kwargs)

        def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
            return {**self.language_model.prepare_inputs_for_generation(input_ids, **kwargs), "decoding": True}

        def __call__(self, *args: Any, decoding: bool = False, **kwargs: Any) -> Any:
            if not decoding:
                return super().__call__(*args, **kwargs)
            if kwargs.get("pixel_values") is not None or kwargs.get("mm_encoder_outputs"):
                return super().__call__(**{**dict.fromkeys(needed), **kwargs}).language_model_outputs
            # transformers drops the pixels where the cache holds the picture, but not the Q-Former's text
            return self.language_model(**of_the_text(kwargs))

        def _supports_logits_to_keep(self) -> bool:
            return bool(self.language_model._supports_logits_to_keep())

        def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
            self.language_model._validate_model_kwargs(of_the_text(model_kwargs))

    return Decoding
