"""InstructBLIP on Vicuna: a Q-Former reads the picture and the question, and its queries stand before the prompt.

Source: Dai et al., "InstructBLIP: Towards General-purpose Vision-Language Models with Instruction
Tuning", NeurIPS 2023, arXiv:2305.06500; the second model of AGLA's paper (arXiv:2406.12718).

transformers' `generate()` of this model embeds the picture once and then decodes with the language
model alone, out of sight of the guard. Here the same loop runs on the whole model, so that each branch
embeds a picture of its own; every step does with the language model what the stock loop does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationMixin

from lvlm_guard.engine.subclass import once_per_class
from lvlm_guard.errors import TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.families.family import Family

if TYPE_CHECKING:
    from typing import Self

    from PIL.Image import Image

OF_THE_PICTURE = (
    "pixel_values",
    "qformer_input_ids",
    "qformer_attention_mask",
    "interpolate_pos_encoding",
    "mm_encoder_outputs",
)
"""What the model needs to embed its picture; the language model takes the rest."""


@once_per_class
def decoding_class(base: type[Any]) -> type[Any]:
    """Return a subclass of `InstructBlipForConditionalGeneration` whose generate() calls the model itself at each step.

    A call outside generate() is the base's own.
    """

    class Decoding(base):  # type: ignore[misc]  # the base is only known at run time
        main_input_name = "input_ids"

        @property
        def generation_config(self) -> Any:
            """The language model's, which is the one that the stock generate() goes by."""
            return self.language_model.generation_config

        @generation_config.setter
        def generation_config(self, config: Any) -> None:
            self.language_model.generation_config = config

        @functools.wraps(GenerationMixin.generate)  # whose arguments it takes
        def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            ids = inputs if inputs is not None else kwargs["input_ids"]
            _check(ids, self.config.image_token_id, kwargs)
            if hasattr(self, "hf_device_map"):
                self._preprocess_accelerate()
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = torch.ones_like(ids)
            if kwargs.get("position_ids") is None:  # generate() makes them by the signature of the outer forward
                kwargs["position_ids"] = self._prepare_position_ids_for_generation(ids, kwargs)
            return GenerationMixin.generate(self, inputs, *args, **kwargs)

        def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
            prepared = self.language_model.prepare_inputs_for_generation(input_ids, **kwargs)
            # transformers drops the pixels where the cache holds the picture, but not the Q-Former's text
            if prepared.get("pixel_values") is None and not prepared.get("mm_encoder_outputs"):
                prepared = {key: value for key, value in prepared.items() if key not in OF_THE_PICTURE}
            return {**prepared, "decoding": True}

        def __call__(self, *args: Any, decoding: bool = False, **kwargs: Any) -> Any:
            if not decoding:
                return super().__call__(*args, **kwargs)
            picture = {key: kwargs.pop(key) for key in OF_THE_PICTURE if key in kwargs}
            if picture:
                kwargs["inputs_embeds"] = self._embedded(kwargs.pop("input_ids"), **picture)
            return self.language_model(**kwargs)

        def _embedded(self, ids: Tensor, mm_encoder_outputs: Any = None, **picture: Any) -> Tensor:
            """Return the prompt's embeddings [R, T, D] with the picture's in their places."""
            seen = (mm_encoder_outputs or {}).get("image") or self.get_image_features(**picture, return_dict=True)
            embeds: Tensor = self.get_input_embeddings()(ids)
            places = self.get_placeholder_mask(ids, inputs_embeds=embeds)
            return embeds.masked_scatter(places, seen.pooler_output.to(embeds.device, embeds.dtype))

        def _supports_logits_to_keep(self) -> bool:
            return bool(self.language_model._supports_logits_to_keep())

        def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
            self.language_model._validate_model_kwargs(
                {key: value for key, value in model_kwargs.items() if key not in OF_THE_PICTURE}
            )

    return Decoding


def _check(ids: Tensor, image_token: int, kwargs: dict[str, Any]) -> None:
    """Raise `UnsupportedCallError` where a prompt with a picture comes without all that embeds it, or with more."""
    if kwargs.get("interpolate_pos_encoding"):
        raise UnsupportedCallError(
            "interpolate_pos_encoding is for pictures of another size than the model was trained on, and the second "
            "view would be read without it. Leave it out, and let the processor choose the size."
        )
    missing = [key for key in ("pixel_values", "qformer_input_ids") if kwargs.get(key) is None]
    if missing and bool((ids == image_token).any()):
        raise UnsupportedCallError(
            f"The prompt holds a picture's tokens, but {' and '.join(missing)} did not come with it: InstructBLIP's "
            "Q-Former reads the pixels and the question at every call. Pass all that the processor returns: "
            "model.generate(**inputs)."
        )


@dataclass(frozen=True)
class InstructBlip(Family):
    """`InstructBlipForConditionalGeneration` on a decoder (Vicuna); one picture a prompt, written by the processor."""

    model_types: ClassVar[tuple[str, ...]] = ("instructblip",)
    processors: ClassVar[tuple[str, ...]] = ("InstructBlipProcessor",)
    model_type: str = "instructblip"
    image_keys: tuple[str, ...] = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")

    @classmethod
    def of(cls, model: Any, processor: Any) -> Self:
        """Return the family; raises `UnsupportedModelError` as the generic one, and for the Flan-T5 variants."""
        if not model.config.use_decoder_only_language_model:
            raise UnsupportedModelError(
                "This InstructBLIP answers with an encoder-decoder "
                f"({model.config.text_config.model_type}), which can't be guarded: the guard's branches are written "
                "for decoders. Use the same model on Vicuna: Salesforce/instructblip-vicuna-7b or -13b."
            )
        family = super().of(model, processor)
        if family.image_token_id(model.config) is None:
            raise UnsupportedModelError(
                "The model's InstructBlipConfig names no image token (image_token_index), as checkpoints converted for "
                "older releases of transformers do. Fetch the model and its processor again."
            )
        return family

    def decoding(self, base: type[Any]) -> type[Any]:
        """Return the class whose generate() steps through the whole model."""
        return decoding_class(base)

    def nest(self, images: list[Image], prompts: list[str], token: str, templated: bool = False) -> list[list[Image]]:
        """Give each prompt its one picture; raises `TextError` where the counts differ or a prompt has placeholders."""
        if any(token in prompt for prompt in prompts):
            raise TextError(
                f"InstructBLIP's processor writes the placeholders {token!r} itself, before the prompt. Leave them out."
            )
        if len(images) != len(prompts):
            raise TextError(
                f"InstructBLIP reads one picture a prompt, but {len(images)} pictures came with {len(prompts)} prompts."
                " Repeat a picture that several prompts ask about."
            )
        return [[image] for image in images]
