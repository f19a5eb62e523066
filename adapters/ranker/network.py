"""The ranker itself: from the tokens of pictures and of one instruction to scores and pair logits."""

from __future__ import annotations

from torch import Tensor, nn

from lvlm_guard.adapters.ranker.fusion import Fusion
from lvlm_guard.adapters.ranker.pair_head import PairHead
from lvlm_guard.adapters.ranker.readout import Readout
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.errors import UnsupportedCallError


class RankerNetwork(nn.Module):
    """Fusion, score head and pair head: everything that is learnt beside a trunk.

    Args:
        image_width, text_width: of the trunk's tokens.
        settings: sizes and choices.
    """

    def __init__(self, image_width: int, text_width: int, settings: RankerSettings) -> None:
        super().__init__()
        self.pool = settings.pool
        self.fusion = Fusion(image_width, text_width, settings)
        self.score_norm = nn.LayerNorm(settings.width)
        self.score = Readout(settings.width, layers=2, bias=True)
        self.pair = PairHead(settings)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        pairs: bool = True,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score pictures under an instruction.

        Args:
            image: [K, P, image_width].
            text: [1, T, text_width]; or [K, T, text_width], one for each picture, where no pairs are asked for.
            mask: [1 or K, T] bool, False on padding.
            pairs: whether pairs are compared.
            kept: see `Fusion`.

        Returns:
            Scores [K] and logits [K, K], float32 or wider; None for the logits where no pairs are asked for.

        Raises:
            UnsupportedCallError: pictures of several instructions can't be compared.
        """
        if pairs and len(text) != 1:
            raise UnsupportedCallError(
                f"{len(image)} pictures come with {len(text)} instructions, but pictures are compared under one: give "
                "a group the one instruction, or ask for scores alone (pairs=False)."
            )
        tokens = self.fusion(image, text, mask, kept)
        each = self.score_norm(tokens)
        scores = self.score(each.mean(1) if self.pool == "mean" else each.sum(1))
        return scores, self.pair(tokens) if pairs else None
