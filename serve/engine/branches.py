"""The model with two branches: every scheduled token runs twice, the second time over the other picture.

[n, 2H] is the runner's width, global and second branch side by side; [2n, H] the decoder's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.serve.engine.handover import open_handover
from lvlm_guard.serve.engine.refuse import refuse
from lvlm_guard.serve.engine.twin import building_twins, check_twins
from lvlm_guard.serve.engine.views import PIXELS, SECOND
from lvlm_guard.serve.errors import ServeError


class TwoBranches:
    """Mixed in before a model class of vLLM.

    Raises:
        ServeError: the engine's configuration is refused (see `refuse`).
        UnsupportedModelError: the decoder keeps state that has no twin.
    """

    # VCD's noise goes onto normalised pixels, so that the processor must give those and not bytes
    supports_mm_device_do_normalize: ClassVar[bool] = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        refuse(vllm_config)
        base: Any = super()
        with building_twins():
            base.__init__(vllm_config=vllm_config, prefix=prefix)
        check_twins(self.language_model)  # type: ignore[attr-defined]  # the base's
        self._handover = open_handover(vllm_config)
        self._width: int = vllm_config.model_config.get_hidden_size()
        if vllm_config.model_config.get_inputs_embeds_size() != 2 * self._width:
            raise ServeError("The runner's buffer does not hold two branches: this release of vLLM is not the pinned.")

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return each picture's embeddings, [tokens, 2H]; [tokens, H] where it has no second view."""
        base: Any = super()
        second = kwargs.pop(SECOND, None)
        first = base.embed_multimodal(**dict(kwargs))
        if second is None:
            return first
        other = base.embed_multimodal(**{**kwargs, PIXELS: second})
        return [torch.cat(both, -1) for both in zip(first, other, strict=True)]

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Return the embeddings of tokens and pictures for both branches, [n, 2H]."""
        items, width = multimodal_embeddings if multimodal_embeddings is not None else (), self._item_width()
        first = other = self._embedded(0, input_ids, [item[:, :width] for item in items], is_multimodal)
        if len(items):
            other = self._embedded(1, input_ids, [item[:, -width:] for item in items], is_multimodal)
        return torch.cat([first, other], -1)

    def _item_width(self) -> int:
        """Return how wide a picture's embeddings are in one branch."""
        return self._width

    def _embedded(self, branch: int, input_ids: Tensor, items: list[Tensor], is_multimodal: Tensor | None) -> Tensor:
        base: Any = super()
        embedded: Tensor = base.embed_input_ids(input_ids, items, is_multimodal=is_multimodal)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the decoder on both branches; embeddings [n, 2H] in, hidden states [n, 2H] out."""
        if inputs_embeds is None:
            raise ServeError("The runner gave tokens instead of embeddings: this release of vLLM is not the pinned.")
        base: Any = super()
        hidden: Tensor = base.forward(
            None,
            torch.cat([positions, positions], -1),  # [n], or [3, n] where positions have three axes
            inputs_embeds=torch.cat(inputs_embeds.split(self._width, -1)),
        )
        return torch.cat(hidden.chunk(2), -1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the global logits, [rows, V], and hand over the second branch's."""
        base: Any = super()
        logits: Tensor | None = base.compute_logits(torch.cat(hidden_states.split(self._width, -1)))
        if logits is None:  # a rank of a tensor-parallel engine that samples nothing
            return None
        first, second = logits.chunk(2)
        self._handover.put(second)
        return first
