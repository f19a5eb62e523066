"""The processor with two views: a picture as it is, and as the second branch sees it.

Both views are one item to vLLM. Its hash covers the mask or the noise, so that the processor cache, the
encoder cache and the prefix cache tell requests apart that see a picture otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from torch import Tensor

from lvlm_guard.engine.call import Call
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.families.family import Family
from lvlm_guard.matching.match import Frame, painted
from lvlm_guard.methods.vcd import VCD
from lvlm_guard.serve.engine.arguments import MASK, NOISE
from lvlm_guard.serve.engine.insides import BaseMultiModalProcessor
from lvlm_guard.serve.errors import WireError
from lvlm_guard.serve.wire import unpack_mask

PIXELS, SECOND = "pixel_values", "pixel_values_second"
IMAGE = "image"


def _without(arguments: Mapping[str, Any], ours: tuple[str, ...] = (MASK, NOISE)) -> dict[str, Any]:
    """Return the arguments that are vLLM's: it keeps a processor of transformers for each distinct set."""
    return {name: value for name, value in arguments.items() if name not in ours}


def masks_of(arguments: Mapping[str, Any], pictures: int) -> list[str]:
    """Return the mask of each picture as text; none where the request has none.

    Raises:
        WireError: there are more or fewer masks than pictures.
    """
    given = arguments.get(MASK)
    if given is None:
        return []
    masks = [given] if isinstance(given, str) else given
    if not isinstance(masks, Sequence) or not all(isinstance(mask, str) for mask in masks):
        raise WireError(f"{MASK} is a {type(given).__name__}: give a mask's text, or a list with one for each picture.")
    if len(masks) != pictures:
        raise WireError(f"{MASK} has {len(masks)} masks for {pictures} pictures: give one each, in the prompt's order.")
    return list(masks)


class TwoViews(BaseMultiModalProcessor):  # type: ignore[misc]  # vllm is untyped here
    """Mixed in before a processor class of vLLM; `family` says how its pictures are laid out."""

    family: ClassVar[Family]

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's inputs for measuring memory, with a second view for every picture."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, NOISE: {}})

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        plain = _without(hf_kwargs)
        features = super()._apply_hf_processor_main(mm_items, plain)
        images = mm_items[IMAGE].get_processor_data()["images"] if mm_items.get(IMAGE) else ()
        if not images:
            return features
        if masks := masks_of(hf_kwargs, len(images)):
            frame: Frame = "squashed" if self.family.fixed_size else "original"
            views = [painted(image, unpack_mask(m), frame) for image, m in zip(images, masks, strict=True)]
            items = self.info.parse_mm_data({IMAGE: views}, validate=False)
            second = super()._apply_hf_processor_main(items, plain)[PIXELS]
            if [one.shape for one in second] != [one.shape for one in features[PIXELS]]:
                raise WireError("The masked picture takes another number of tokens than the picture: it can't be read.")
            features[SECOND] = second
        elif NOISE in hf_kwargs:
            features[SECOND] = self._noised(features, hf_kwargs[NOISE])
        return features

    def _noised(self, features: Any, noise: Mapping[str, Any]) -> Tensor:
        """Return the pixels that VCD sees: the transformers engine's own noise for the same pixels and seed."""
        if not isinstance(noise, Mapping) or not noise.keys() <= {"step", "seed"}:
            raise WireError(f'{NOISE} is {noise!r}: give {{"step": 0 to 999, "seed": a whole number}}.')
        default = VCD()
        method = VCD(noise_step=noise.get("step", default.noise_step), seed=noise.get("seed", default.seed))
        tensors = {key: features[key] for key in self.family.image_keys if key in features}
        trace = GuardTrace(method.name, method.knobs(), "twin", guarded=True)
        nothing = cast(Any, None)  # noise asks neither the model nor the picture behind the pixels
        call = Call(nothing, self.family, nothing, None, tensors, [True], trace)
        return method.view(call)[PIXELS]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, _without(hf_processor_mm_kwargs))
        return {**fields, SECOND: fields[PIXELS]}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        return super()._get_prompt_updates(mm_items, _without(hf_processor_mm_kwargs), out_mm_kwargs)

    # --- several pictures: each is hashed with its own mask, and only those that no cache holds are processed

    def _get_mm_hashes(self, inputs: Any) -> Any:
        arguments = inputs.hf_processor_mm_kwargs
        masks = masks_of(arguments, _pictures(inputs))
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=_without(arguments, (MASK,))))
        if masks:
            hashes[IMAGE] = [
                super(TwoViews, self)._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs={**arguments, MASK: mask}))[
                    IMAGE
                ][index]
                for index, mask in enumerate(masks)
            ]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, Any]) -> Mapping[str, Any]:
        arguments = super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)
        masks = masks_of(arguments, _pictures(inputs))
        missing = [mask for mask, cached in zip(masks, mm_is_cached.get(IMAGE, ()), strict=bool(masks)) if not cached]
        return {**arguments, MASK: missing} if missing else _without(arguments, (MASK,))


def _pictures(inputs: Any) -> int:
    return int(inputs.mm_data_items.get_count(IMAGE, strict=False))
