"""How the guard reads any decoder-only family of transformers: by asking its own processor, template and generate().

The second view's tensors are what the plain processor makes of other pictures. Nothing here names a family, but for
the two in whose publications the masked picture is squashed. A family needs a class of its own only where its
generate() does not call the model itself at every step (`instructblip.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.engine.rows import deltas_kept, grown
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import ImageError, TextError, UnsupportedModelError
from lvlm_guard.families.proof import Proof

if TYPE_CHECKING:
    from typing import Self

    from lvlm_guard.engine.call import Pictures

PUBLISHED = ("llava", "instructblip")
"""Families whose published AGLA squashes the picture to the matcher's square before it is masked."""

OF_THE_TEXT = {"add_special_tokens", "max_length", "padding", "padding_side", "return_tensors", "truncation"}
"""Settings of a processor that do not touch its pictures."""


def flat(images: Any) -> list[Any]:
    """Return pictures in any nesting as one list."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in flat(part)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [] if images is None else [images]


def image_names(processor: Any, made: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of a processor's outputs belong to the pictures.

    What the image processor declares, and all else that is neither the tokenizer's nor laid along the tokens
    [B, T, ...] (token types, labels, mllama's cross_attention_mask): those are the call's own in every branch.
    """
    ids = made["input_ids"].shape
    text = {key for key, value in made.items() if isinstance(value, Tensor) and value.shape[:2] == ids}
    declared = set(processor.image_processor.model_input_names)
    others = set(made) - set(processor.tokenizer.model_input_names) - text
    return tuple(key for key, value in made.items() if isinstance(value, Tensor) and key in declared | others)


@dataclass(frozen=True)
class Family:
    """A model's family, as its processor and its configuration tell it.

    Args:
        model_type: of the model's configuration.
        image_keys: names of the image tensors among its inputs.
        proof: what it may do.

    Class attributes:
        model_types: `config.model_type` of the models that need this class; none for the generic one.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    model_type: str = ""
    image_keys: tuple[str, ...] = ("pixel_values", "image_sizes", "image_grid_thw")
    proof: Proof = field(default=Proof(), compare=False)

    @classmethod
    def of(cls, model: Any, processor: Any) -> Self:
        """Return the family of a model and its processor.

        Raises:
            UnsupportedModelError: they are none that can be guarded, or don't belong together.
        """
        name = f"{plain_class(model).__name__} with {plain_class(processor).__name__}"
        towers = getattr(model.config, "vision_config", None)  # older releases forget to say "image" of some
        if "image" not in getattr(model, "input_modalities", ("image",)) and towers is None:
            raise UnsupportedModelError(
                f"{name}: the model is without an image tower, so there is no picture to guard it with."
            )
        if model.config.is_encoder_decoder or getattr(processor, "image_processor", None) is None:
            why = "this is an encoder-decoder" if model.config.is_encoder_decoder else "this one has none"
            raise UnsupportedModelError(
                f"{name}: only decoder-only models with an image processor can be guarded; {why}."
            )
        family = cls(model.config.model_type)
        picture = Image.linear_gradient("L").convert("RGB").resize((224, 160))
        try:
            made = family.made(processor, [[picture]], [family.asked(processor, "Is there a dog?", 1)])
        except Exception as error:  # whatever a processor that does not belong to the model may raise
            raise UnsupportedModelError(f"{name}: the processor can't process a picture: {error}") from error
        token = family.image_token_id(model.config)
        if token is not None and token not in made["input_ids"]:
            raise UnsupportedModelError(
                f"{name}: the model expects its picture at token {token}, which the processor does not write: they "
                "belong to different checkpoints. Load both from one place: "
                f"AutoProcessor.from_pretrained({model.name_or_path or 'ID'!r})."
            )
        return cls(model.config.model_type, image_names(processor, made))

    @property
    def fixed_size(self) -> bool:
        """Whether a second view may be of another shape than the picture, as published; else it must have its own."""
        return self.model_type in PUBLISHED

    def decoding(self, base: type[Any]) -> type[Any]:
        """Return the class that a guarded model decodes by: the model's own, or a subclass.

        A family needs one where the model's generate() does not call the model itself at every step, since
        the branches run inside that call. The subclass's generate() must then give the tokens that the
        model's own gives. `unguard` and `guard=False` go back to the model's own class.
        """
        return base

    def image_token_id(self, config: Any) -> int | None:
        """Return the id of a picture's tokens in the model's vocabulary; None where the configuration names none."""
        found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
        return next((int(token) for token in found if token is not None), None)

    def image_marks(self, config: Any) -> set[int]:
        """Return the ids of the tokens that open or close a picture in a prompt, as the configuration names them."""
        named = ("vision_start", "vision_end", "boi", "eoi", "image_start", "image_end", "image_newline")
        found = (getattr(config, f"{name}_token_{kind}", None) for name in named for kind in ("id", "index"))
        return {int(token) for token in found if isinstance(token, int)}

    def has_picture(self, pictures: Pictures | None, ids: Tensor, config: Any) -> list[bool]:
        """Return which prompts [B, T] hold a picture: those that came with one, else those with its tokens.

        Raises:
            UnsupportedModelError: neither tells.
        """
        if pictures is not None:
            return [bool(row) for row in pictures.rows]
        token = self.image_token_id(config)
        if token is None:
            raise UnsupportedModelError(
                f"The model's {type(config).__name__} names no image token, so that a prompt can't be told from one "
                "without a picture. Make the inputs with the guarded processor, and pass all that it returns."
            )
        found: list[bool] = (ids == token).any(-1).tolist()
        return found

    def image_token(self, processor: Any) -> str:
        """Return what a prompt writes for a picture: the processor's image token, or the one that its template has."""
        own = [str(getattr(processor, name, "")) for name in ("image_token", "boi_token")]
        template = str(getattr(processor, "chat_template", None) or "")
        return next((token for token in own if token and token in template), own[0] or "<image>")

    def asked(self, processor: Any, question: str, pictures: int) -> str:
        """Return the finished prompt of a question about some pictures."""
        if not getattr(processor, "chat_template", None):
            return self.finished_prompt(processor, question, pictures)
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
        talk = [{"role": "user", "content": content}]
        plain: Any = plain_class(processor)
        prompt: str = plain.apply_chat_template(processor, talk, tokenize=False, add_generation_prompt=True)
        return prompt

    def finished_prompt(self, processor: Any, question: str, pictures: int) -> str:
        """Return the prompt of a question about some pictures, where the processor has no chat template."""
        written = not isinstance(getattr(processor, "image_token", ""), str)  # BLIP's hold an AddedToken
        return question if written else self.image_token(processor) * pictures + "\n" + question

    def nest(
        self, images: list[Image.Image], prompts: list[str], token: str, templated: bool = True
    ) -> list[list[Image.Image]]:
        """Give each prompt its pictures, in the order of its placeholders.

        A processor without a template may write them itself, for one picture a prompt.

        Raises:
            TextError: there are more or fewer pictures than placeholders.
        """
        wanted = [prompt.count(token) for prompt in prompts]
        if not templated and not any(wanted) and len(images) == len(prompts):
            return [[image] for image in images]
        if sum(wanted) != len(images):
            raise TextError(
                f"The prompts hold {sum(wanted)} placeholders {token!r} (per prompt: {wanted}), but {len(images)} "
                f"pictures were given. Write one {token!r} for each picture, in its prompt."
            )
        rest = iter(images)
        return [[next(rest) for _ in range(count)] for count in wanted]

    def process(
        self, processor: Any, rows: list[list[Image.Image]], text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the plain processor.

        Args:
            processor: guarded or not.
            rows: the pictures of each prompt.
            text: the prompts, as the caller gave them.
            args: the caller's further arguments by position.
            kwargs: the caller's further arguments by name.

        Raises:
            ImageError: it can't process them; names the pictures' sizes and what it said.
        """
        plain = plain_class(processor)
        images = (rows if len(rows) > 1 else flat(rows)) if flat(rows) else None
        try:
            if args:
                return plain.__call__(processor, images, text, *args, **kwargs)
            return plain.__call__(processor, images=images, text=text, **kwargs)  # Janus's takes the text first
        except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in flat(rows))
            raise ImageError(
                f"{plain.__name__} can't process these inputs (pictures of {sizes} pixels): {error} Check the prompt's "
                "placeholders, truncation, and that no picture is a thin strip of a few pixels."
            ) from error

    def made(self, processor: Any, rows: list[list[Image.Image]], text: list[str]) -> dict[str, Any]:
        """Return what the processor makes of prompts and their pictures."""
        return dict(self.process(processor, rows, text, (), {"padding": True, "return_tensors": "pt"}))

    def redrawn(self, processor: Any, pictures: Pictures, rows: list[list[Image.Image]]) -> dict[str, Any]:
        """Return what the processor makes of other pictures; where their sizes can't matter, without the prompts."""
        told = {name for name, value in pictures.kwargs.items() if value is not None}  # a chat's videos are None
        if self.fixed_size and len(self.image_keys) == 1 and not pictures.args and told <= OF_THE_TEXT:
            return dict(processor.image_processor(flat(rows), return_tensors="pt"))
        return self.processed(processor, pictures, rows)

    def processed(self, processor: Any, pictures: Pictures, rows: list[list[Image.Image]]) -> dict[str, Any]:
        """Return all that the processor makes of other pictures under the same prompts and settings."""
        settings = pictures.kwargs | {"return_tensors": "pt"}
        return dict(self.process(processor, rows, pictures.text, pictures.args, settings))

    def replayed(self, model: Any, opening: Mapping[str, Any], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return positions and token types of whole rows [B, T] as if generate() had read them from the first token.

        A call on a filled cache does not know them: M-RoPE models count on from `rope_deltas`, which is wrong for the
        picture's own tokens; and token types, by which a picture attends to itself both ways, may be missing.

        Args:
            model: whose `rope_deltas` stay what they are, for the global branch goes on from them.
            opening: the processor's output of the first turn.
            ids: the whole rows now.
            mask: of the whole rows.
        """
        known = {
            key: value.to(ids.device)
            for key, value in opening.items()
            if isinstance(value, Tensor) and key not in ("input_ids", "attention_mask")
        }
        along = [key for key in known if key not in self.image_keys]
        known |= grown({key: known[key] for key in along}, ids.shape[1]) | {"attention_mask": mask}
        if "position_ids" in signature(model.forward).parameters:
            with deltas_kept(model):
                positions = model._prepare_position_ids_for_generation(ids, known)
            along.append("position_ids")  # one row may have stood for all
            known["position_ids"] = positions.expand(*positions.shape[:-2], *ids.shape)
        return {key: known[key] for key in along}

    def split(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return the pixels as views of their tensors that depend on no neighbour in the batch.

        A unit is a picture where patches come with a grid [pictures, 3], and else what stands under one index of the
        first axis, without the zeros that pad it to its neighbours' tiles and sizes.
        """
        found = []
        for key, pixels in tensors.items():
            if not pixels.is_floating_point() or "mask" in key:
                continue
            grids = [grid.prod(-1) for name, grid in tensors.items() if name.endswith("grid_thw")]
            if grids and int(grids[0].sum()) == len(pixels):
                found += list(pixels.split(grids[0].tolist()))
                continue
            padded = pixels.ndim > 4 or len(tensors) > 1
            for unit in pixels.split(1):
                for axis in range(1, unit.ndim) if padded else ():
                    used = unit.transpose(0, axis).flatten(1).abs().amax(-1).nonzero()
                    unit = unit.narrow(axis, 0, int(used.max()) + 1 if len(used) else 1)
                found.append(unit)
        return found

    def normal(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise for one unit, in float32 on the generator's device.

        A still picture stands in two time slices of its patches [patches, 3 * 2 * side * side]; both get the same.
        """
        side = (pixels.shape[-1] / 6) ** 0.5
        if pixels.ndim == 2 and side == int(side):
            one = torch.randn(len(pixels), 3, 1, int(side) ** 2, generator=generator, device=generator.device)
            return one.expand(-1, -1, 2, -1).reshape(pixels.shape)
        return torch.randn(pixels.shape, generator=generator, device=generator.device)
