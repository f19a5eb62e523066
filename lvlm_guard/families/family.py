"""How the guard reads any decoder-only family of transformers: by asking its own processor, template and generate().

The second view's tensors are what the plain processor makes of other pictures. Nothing here names a family, but for
the two in whose publications the masked picture is squashed. A model decodes by a class of the guard's own
only where its generate() does not call the model itself at every step (`blip.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

from PIL import Image
from torch import Tensor
from transformers import GenerationMixin

from lvlm_guard.engine.rows import deltas_kept, grown
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import ImageError, TextError, UnsupportedModelError
from lvlm_guard.families import REGISTRY
from lvlm_guard.families.question import said
from lvlm_guard.proving.proof import Proof

if TYPE_CHECKING:
    from lvlm_guard.engine.pictures import Pictures

PUBLISHED = ("llava", "instructblip")
"""Families whose published AGLA squashes the picture to the matcher's square before it is masked."""


def flat(images: Any) -> list[Any]:
    """Return pictures in any nesting as one list."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        return [image for part in images for image in flat(part)]
    return [] if images is None else [images]


def pair_name(model: Any, processor: Any) -> str:
    """Return what messages call a model and its processor."""
    return f"{plain_class(model).__name__} with {plain_class(processor).__name__}"


def image_names(processor: Any, made: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of a processor's outputs belong to the pictures: tensors, or lists as Unlimited-OCR's tile counts.

    What the image processor declares, and all else that is neither the tokenizer's nor laid along the tokens
    [B, T, ...] (token types, labels, mllama's cross_attention_mask): those are the call's own in every branch.
    """
    ids, told = made["input_ids"].shape, set(processor.image_processor.model_input_names)
    text = {key for key, value in made.items() if not isinstance(value, Tensor) or value.shape[:2] == ids}
    others = set(made) - set(processor.tokenizer.model_input_names) - text
    return tuple(key for key in made if key in others | told)


def _writes_pictures(processor: Any) -> bool:
    """Tell whether a processor adds a picture's placeholder to a prompt, as BLIP's does, and Fuyu's to any prompt."""
    token = getattr(processor, "image_token", "")
    if not token or not isinstance(token, str):  # BLIP's is an AddedToken; None is no word to be written
        return not isinstance(token, str)
    written = processor.prepare_inputs_layout(images=[Image.new("RGB", (32, 32))], text=[token])[1][0]
    return str(written).count(token) > 1


@dataclass(frozen=True)
class Family:
    """A model's family, as its processor and its configuration tell it.

    Args:
        model_type: of the model's configuration.
        image_keys: names of the image tensors among its inputs.
        proof: what it may do.
    """

    model_type: str = ""
    image_keys: tuple[str, ...] = ("pixel_values", "image_sizes", "image_grid_thw")
    proof: Proof = field(default=Proof(), compare=False)

    @classmethod
    def of(cls, model: Any, processor: Any) -> Self:
        """Return the family of a model and its processor.

        Raises:
            UnsupportedModelError: they are none that can be guarded, or don't belong together.
        """
        name, family, config = pair_name(model, processor), cls(model.config.model_type), model.config
        # older releases forget to say "image" of some that have a tower
        sees = "image" in getattr(model, "input_modalities", ("image",)) or getattr(config, "vision_config", None)
        crosses = any(part.is_encoder_decoder for part in (config, config.get_text_config()))
        unnamed = hasattr(config, "image_token_index") and family.image_token_id(config) is None
        lacks = (
            (not sees, "the model has no image tower"),
            (crosses, "the model is an encoder-decoder"),
            (not isinstance(model, GenerationMixin), "the model does not answer token by token, by generate()"),
            (getattr(processor, "image_processor", None) is None, "the processor reads no pictures"),
            (unnamed, "its configuration names no image token, as of old checkpoints: fetch it again"),
        )
        if why := next((told for found, told in lacks if found), None):
            raise UnsupportedModelError(
                f"{name}: only decoder-only models that see, with an image processor, can be guarded; {why}."
            )
        picture = Image.linear_gradient("L").convert("RGB").resize((224, 160))
        prompt = [family.asked(processor, "Is there a dog?", 1)]
        try:
            made = family.process(processor, [[picture]], prompt, (), {"return_tensors": "pt"})
        except Exception as error:  # whatever a processor that does not belong to the model may raise
            raise UnsupportedModelError(f"{name}: the processor can't process a picture: {error}") from error
        if len(made["input_ids"]) != 1:
            raise UnsupportedModelError(
                f"{name}: the processor makes {len(made['input_ids'])} prompts of its own out of one, so that a "
                "question and its picture can't be told."
            )
        token = family.image_token_id(config)
        if token is not None and token not in made["input_ids"]:
            raise UnsupportedModelError(
                f"{name}: the model expects its picture at token {token}, which the processor does not write: they "
                "belong to different checkpoints. Load both from one place: "
                f"AutoProcessor.from_pretrained({model.name_or_path or 'ID'!r})."
            )
        return cls(config.model_type, image_names(processor, made))

    @property
    def fixed_size(self) -> bool:
        """Whether a second view may be of another shape than the picture, as published; else it must have its own."""
        return self.model_type in PUBLISHED

    def decoding(self, base: type[Any]) -> Any:
        """Return the class that a guarded model decodes by: the model's own, or what is registered for its type."""
        return REGISTRY.get(self.model_type)(base) if self.model_type in REGISTRY.names() else base

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
        return [bool(held) for held in (ids == token).any(-1)]

    def image_token(self, processor: Any) -> str:
        """Return what a prompt writes for a picture: the processor's image token, or the one that its template has."""
        own = [str(getattr(processor, name, "")) for name in ("image_token", "boi_token", "image_placeholder_token")]
        template = str(getattr(processor, "chat_template", None) or "")
        return next((token for token in own if token and token in template), own[0] or "<image>")

    def asked(self, processor: Any, question: str, pictures: int) -> str:
        """Return the finished prompt of a question about some pictures."""
        if getattr(processor, "chat_template", None):
            talk = [said("user", question, pictures)]
            prompt: str = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            return prompt
        return question if _writes_pictures(processor) else self.image_token(processor) * pictures + "\n" + question

    def nest(self, images: list[Image.Image], prompts: list[str], processor: Any) -> list[list[Image.Image]]:
        """Give each prompt its pictures, in the order of its placeholders.

        A processor without a template, or without a token for them, may write them itself, for one picture a prompt.

        Raises:
            TextError: there are more or fewer pictures than placeholders.
        """
        token = self.image_token(processor)
        wanted = [prompt.count(token) for prompt in prompts]
        unnamed = not getattr(processor, "chat_template", None) or not getattr(processor, "image_token", "")
        if unnamed and not any(wanted):
            wanted = [1] * len(prompts)
        if sum(wanted) != len(images):
            raise TextError(
                f"The prompts hold placeholders for {sum(wanted)} pictures (each: {wanted}), but {len(images)} were "
                f"given. Write one {token!r} for each picture, in its prompt; where the processor writes it "
                "itself, as BLIP's does, give one picture a prompt."
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
        given = {key: value.to(ids.device) for key, value in opening.items() if isinstance(value, Tensor)}
        del given["input_ids"]
        given["attention_mask"] = mask
        others = {"attention_mask", *self.image_keys}
        along = grown({key: value for key, value in given.items() if key not in others}, ids.shape[1])
        if "position_ids" in signature(model.forward).parameters or getattr(model, "makes_positions", False):
            with deltas_kept(model):
                positions = model._prepare_position_ids_for_generation(ids, given | along)
            along["position_ids"] = positions.expand(*positions.shape[:-2], *ids.shape)  # one row may stand for all
        return along
