"""Load a model and its processor by name, and ask them something in their own prompt template."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvlm_guard import embedded
from lvlm_guard.embedded import EMBEDDED as EMBEDDED
from lvlm_guard.errors import KnobError, MissingExtraError, TextError, UnsupportedModelError, WeightsError
from lvlm_guard.families.family import Family
from lvlm_guard.weights import how_to_fetch, read

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str = EMBEDDED,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    adapter: str | None = None,
) -> tuple[Any, Any]:
    """Return a model in evaluation mode and its processor, neither guarded.

    Args:
        name: "embedded", a folder, or a hub id.
        device: "auto" (a CUDA GPU, else Apple's, else the CPU) or a torch device.
        dtype: "float32", "bfloat16", "float16", or "auto": float32 for the embedded model, else the
            checkpoint's, except that the CPU takes bfloat16 for float16.
        revision: of a hub id: a branch, a tag or a commit; None for the newest.
        adapter: folder or hub id of a PEFT adapter that is put over the model, see `with_adapters`.

    Raises:
        WeightsError: it can't be had; the message says how to fetch it.
        MissingExtraError: an adapter is given, but peft is not installed.
        UnsupportedModelError: it is no model that takes pictures and gives text.
        KnobError: no such device or dtype, or a revision of what has none.
    """
    where = usable_device(device)
    wanted = dtype_of(name, dtype)
    place = str(embedded.MODEL) if name == EMBEDDED else name
    if name == EMBEDDED and not (embedded.MODEL / "config.json").is_file():
        raise WeightsError(
            f"The embedded model is not in this copy: {embedded.MODEL.name}/config.json is missing beside "
            "lvlm_guard/embedded. Install the package again, or train it: make train-embedded."
        )
    if revision is not None and (name == EMBEDDED or Path(name).is_dir()):
        raise KnobError(f"revision={revision!r} is of a hub id, but {name!r} is on this machine: leave it out.")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    def had(kind: Any, **how: Any) -> Any:
        damaged = "The folder is incomplete, damaged, or of a model that this transformers does not know."
        absent = f"{how_to_fetch(name, '--model DIR')} `--model embedded` needs no download."
        load = partial(kind.from_pretrained, place, **how, **({"revision": revision} if revision is not None else {}))
        return read(f"The model {name!r}", place, load, damaged=damaged, absent=absent)

    config = had(AutoConfig)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise UnsupportedModelError(
            f"{name!r} is of the type {config.model_type!r}, which takes no pictures or gives no text. Give a "
            "vision-language model, such as llava-hf/llava-1.5-7b-hf."
        )
    if wanted == "auto" and where.type == "cpu" and getattr(config, "dtype", None) == torch.float16:
        wanted = torch.bfloat16
    processor, model = had(AutoProcessor), had(AutoModelForImageTextToText, config=config, dtype=wanted)
    if getattr(processor, "tokenizer", None) is None:
        told = "has no processor for pictures and text: preprocessor_config.json is amiss."
        raise UnsupportedModelError(f"{name!r} {told}")
    processor.tokenizer.padding_side = "left"  # answers of a batch start in one column
    # InstructBLIP's processor would pad the Q-Former's text so too, and its positions would follow the batch
    processor.tokenizer.init_kwargs.pop("padding_side", None)
    model = model.to(where).eval()
    return (model if adapter is None else with_adapters(model, {"default": adapter})), processor


def with_adapters(model: Any, adapters: Mapping[str, str]) -> Any:
    """Return a model, wrapped in place, with PEFT adapters over it, in evaluation mode; the first one acts.

    `adapters` are name -> folder or hub id of what `save_pretrained` wrote. `model.set_adapter(name)` lets another one
    act, and within `with model.disable_adapter():` none does.

    Raises `WeightsError` where one can't be had, or was made for another model, `MissingExtraError` without peft.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(
            f"An adapter needs peft, which can't be imported ({error}). Install it: pip install 'lvlm-guard[train]'."
        ) from error
    damaged = "The folder holds no PEFT adapter (adapter_config.json, adapter_model.safetensors), or one of a model of "
    damaged += "other shapes."
    wrapped: Any = None
    for name, place in adapters.items():
        load = partial(PeftModel.from_pretrained, model) if wrapped is None else wrapped.load_adapter
        load = partial(load, place, adapter_name=name)
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.24 by a name that is going away
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            absent = how_to_fetch(place, "--adapter DIR")
            found = read(f"The adapter {place!r}", place, load, damaged=damaged, absent=absent)
        wrapped = found if wrapped is None else wrapped
    return wrapped.eval()


def ask(processor: Any, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]) -> Any:
    """Return the inputs of one batch: each prompt in the model's chat template, after its pictures.

    A prompt that holds the model's picture placeholder is a finished one and is taken as it is; so is
    every prompt of a model without a template, after what its family puts before it for the pictures.

    Args:
        processor: a guarded or plain one.
        pictures: for each prompt its pictures, RGB.
        prompts: as a user writes them; an empty one raises `TextError`.
    """
    texts = templated(processor, pictures, prompts)
    bos = processor.tokenizer.bos_token
    return processor(
        images=[image for images in pictures for image in images] or None,
        text=texts,
        return_tensors="pt",
        padding=len(texts) > 1,
        # a template that writes the first token itself would get it twice
        add_special_tokens=not (bos and texts[0].startswith(bos)),
    )


def templated(processor: Any, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]) -> list[str]:
    """Return each prompt in the model's chat template, after its pictures' placeholders; see `ask`."""
    family = Family()
    texts = []
    for images, prompt in zip(pictures, prompts, strict=True):
        if not prompt.strip():
            raise TextError("The prompt is empty, so there is nothing to answer. Ask something about the picture.")
        finished = family.image_token(processor) in prompt
        texts.append(prompt if finished else family.asked(processor, prompt, len(images)))
    return texts


def spoken(processor: Any, tokens: Sequence[int]) -> str:
    """Return the text of an answer's tokens, special ones dropped."""
    text: str = processor.tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text


def unknown_words(processor: Any, prompt: str) -> list[str]:
    """Return the words of a prompt that a word-level tokenizer does not know."""
    unknown = processor.tokenizer.unk_token_id

    def holds(text: str) -> bool:
        return unknown is not None and unknown in processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    return [word for word in prompt.split() if holds(word)] if holds(prompt) else []


def usable_device(name: str) -> torch.device:
    """Return a device by name, "auto" for the best one here; raises `KnobError` where it can't be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise KnobError(f"The device {name!r} can't be used here: {reason} Give auto, cpu, cuda, or cuda:1.") from error
    return device


def dtype_of(name: str, dtype: str) -> torch.dtype | str:
    """Return a dtype by name; "auto" is the checkpoint's, and the embedded model's float32. Raises `KnobError`."""
    if dtype == "auto":
        return torch.float32 if name == EMBEDDED else "auto"
    if dtype not in DTYPES:
        raise KnobError(f"dtype is {dtype!r}: give auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]
