"""What the guard must know of a model family; the defaults fit most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import ImageError, TextError, UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig, ProcessorMixin

    from lvlm_guard.engine.call import Pictures

OF_THE_TEXT = {"add_special_tokens", "max_length", "padding", "padding_side", "return_tensors", "truncation"}
"""Settings of a processor that do not touch its pictures."""


def flat(images: Any) -> list[Any]:
    """Return pictures in any nesting as one list."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in flat(part)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [] if images is None else [images]


class Family:
    """Base of the families.

    Class attributes:
        name: how messages call it.
        model_types: `config.model_type` of its models.
        processors: class names of its processors.
        image_keys: names of its image tensors among the inputs.
        fixed_size: True where every picture takes the same number of image tokens; else a second view
            must have the picture's own shape.
        turns: marks around a user's turn in its prompt templates, (start, end), as regular expressions.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    processors: ClassVar[tuple[str, ...]]
    image_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    fixed_size: ClassVar[bool] = True
    turns: ClassVar[tuple[tuple[str, str], ...]] = ()
    noise: ClassVar[tuple[str, ...]] = ()  # placeholders and their frames, dropped from a question

    def check(self, model: Any) -> None:
        """Raise `UnsupportedModelError` for a variant of the model type that can't be guarded."""

    def decoding(self, base: type[Any]) -> type[Any]:
        """Return the class that a guarded model decodes by: the model's own, or a subclass.

        A family needs one where the model's generate() does not call the model itself at every step, since
        the branches run inside that call. The subclass's generate() must then give the tokens that the
        model's own gives. `unguard` and `guard=False` go back to the model's own class.
        """
        return base

    def image_token_id(self, config: PretrainedConfig) -> int:
        """Return the id of the picture's placeholder token in the model's vocabulary."""
        for name in ("image_token_id", "image_token_index"):
            if (value := getattr(config, name, None)) is not None:
                return int(value)
        raise UnsupportedModelError(
            f"The model's {type(config).__name__} names no image token (image_token_index), as checkpoints converted "
            "for older releases of transformers do. Fetch the model and its processor again."
        )

    def image_token(self, processor: ProcessorMixin) -> str:
        """Return the picture's placeholder in a prompt."""
        token: str = processor.image_token  # type: ignore[attr-defined]
        return token

    def finished_prompt(self, processor: Any, question: str, pictures: int) -> str:
        """Return the prompt of a question about some pictures, where the processor has no chat template."""
        return self.image_token(processor) * pictures + "\n" + question

    def nest(self, images: list[Image], prompts: list[str], token: str) -> list[list[Image]]:
        """Give each prompt its pictures, in the order of its placeholders.

        Raises:
            TextError: there are more or fewer pictures than placeholders.
        """
        wanted = [prompt.count(token) for prompt in prompts]
        if sum(wanted) != len(images):
            raise TextError(
                f"The prompts hold {sum(wanted)} placeholders {token!r} (per prompt: {wanted}), but {len(images)} "
                f"pictures were given. Write one {token!r} for each picture, in its prompt."
            )
        rest = iter(images)
        return [[next(rest) for _ in range(count)] for count in wanted]

    def process(
        self, processor: Any, rows: list[list[Image]], text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
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
        one_each = len(rows) == 1 or all(len(row) == 1 for row in rows)
        try:
            return plain.__call__(processor, (flat(rows) if one_each else rows) or None, text, *args, **kwargs)
        except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in flat(rows))
            raise ImageError(
                f"{plain.__name__} can't process these inputs (pictures of {sizes} pixels): {error} Check the prompt's "
                "placeholders, truncation, and that no picture is a thin strip of a few pixels."
            ) from error

    def image_tensors(self, processor: Any, pictures: Pictures, rows: list[list[Image]]) -> dict[str, Tensor]:
        """Return the image tensors of other pictures under the same prompts and settings.

        Args:
            processor: guarded or not.
            pictures: what the prompts and settings were.
            rows: the pictures of each prompt, as many as before.
        """
        told = {name for name, value in pictures.kwargs.items() if value is not None}  # a chat's videos are None
        if self.fixed_size and not pictures.args and told <= OF_THE_TEXT:
            made = processor.image_processor(flat(rows), return_tensors="pt")  # the prompt stays as it is
        else:
            settings = pictures.kwargs | {"return_tensors": "pt"}
            made = self.process(processor, rows, pictures.text, pictures.args, settings)
        return {key: made[key] for key in self.image_keys if key in made}

    def count(self, tensors: dict[str, Tensor]) -> int:
        """Return how many pictures the image tensors hold."""
        return len(tensors["pixel_values"])

    def select(self, tensors: dict[str, Tensor], pictures: list[int]) -> dict[str, Tensor]:
        """Return the image tensors of some pictures, by their indices."""
        return {key: tensor[pictures] for key, tensor in tensors.items()}

    def split(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return the pixels of each picture, [n, ...], as views of `pixel_values` without what pads a batch."""
        return list(tensors["pixel_values"].split(1))

    def normal(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise for one picture's pixels, in float32 on the generator's device."""
        return torch.randn(pixels.shape, generator=generator, device=generator.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))
