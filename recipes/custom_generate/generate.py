"""Guard one call of `generate()`: a recipe that transformers loads by `custom_generate=`.

The model and the processor that are passed in stay as they are: shallow copies of them, which share the weights, are
guarded for the call. What is guarded, how, and what raises is lvlm-guard's; nothing decodes here.
"""

import copy

import torch

from lvlm_guard import guard
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.methods import DEFAULT


def generate(model, processor=None, images=None, text=None, method=DEFAULT, guard_text=None, **arguments):
    """Answer as `model.generate()` does, guarded.

    Args:
        model: a plain model of a family that lvlm-guard knows or can prove.
        processor: the processor that belongs to it.
        images: the pictures, as the processor takes them; not needed where the inputs come from a guarded processor.
        text: the finished prompt or prompts, with the placeholders of their pictures.
        method: a decoding method's name, or one with its knobs, such as `lvlm_guard.methods.AGLA(alpha=1.0)`.
        guard_text: the question to match with the pictures, where the prompt's own is not meant.
        **arguments: generate()'s own, and a guarded generate()'s: `guard_execution`, `verify`, `guard=False`. Inputs
            that were made already may be among them; they must be those of these pictures and prompts.

    Returns:
        What `generate()` returns; with `return_dict_in_generate=True` its `.guard` tells what the guard did.

    Raises:
        UnsupportedModelError: no processor was passed along, or the pair can't be guarded.
        UnsupportedCallError: the model is guarded already.
        TextError: pictures came without prompts, or with inputs of other prompts.
        GuardError: whatever else keeps a call from being guarded.
    """
    if processor is None:
        raise UnsupportedModelError(
            "The guard reads the picture and the question through the model's processor, and none was passed along: "
            "generate(..., custom_generate=..., processor=processor)."
        )
    if plain_class(model) is not type(model):
        raise UnsupportedCallError(
            "This model is guarded already, so that generate() is guarded without custom_generate: leave it out, or "
            "call lvlm_guard.unguard(model) first."
        )
    mine, read = copy.copy(model), copy.copy(processor)
    vars(mine).pop("generate", None)  # a repository that holds this folder puts the recipe itself there
    mine, read = guard(mine, read, method)
    given = {key: value for key, value in arguments.items() if value is not None}
    if images is not None or text is not None:
        if text is None:
            raise TextError("Pictures came without a prompt: pass text=, with a placeholder for each picture.")
        padding = {} if isinstance(text, str) else {"padding": True, "padding_side": "left"}
        made = read(images=images, text=text, guard_text=guard_text, return_tensors="pt", **padding)
        made = made.to(model.device, model.dtype)
        ids = given.pop("inputs", None)
        ids = given.get("input_ids") if ids is None else ids
        if ids is not None and not torch.equal(ids.to(model.device), made["input_ids"]):
            raise TextError(
                "The inputs are not those of text= and images=. Leave them out, since they are made again here, or "
                "give the pictures and the prompts that they were made of."
            )
        given = {**given, **made}
    return mine.generate(**given)
