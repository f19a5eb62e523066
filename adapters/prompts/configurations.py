"""Published ways to prompt CLIP, each a few lines of settings of the one tuner.

Adding one means adding a function and its line in `CONFIGURATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lvlm_guard.adapters.prompts.config import DualPromptConfig
from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = "a photo of a"  # CoOp's, MaPLe's and CLIP's own hand-written prompt


def placeholders(tokenizer: PreTrainedTokenizerBase, n_ctx: int, words: str = WORDS) -> list[int]:
    """Return the n_ctx token ids that captions carry after BOS; the words are repeated where they are too few.

    Raises:
        KnobError: the tokenizer does not know the words, or makes nothing of them.
    """
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # CLIP's own tokenizer spells any text in pieces and uses its end token as the unknown one
    if not ids or (unknown is not None and unknown in ids):
        raise KnobError(
            f"This tokenizer does not know all of the words {words!r}, so the prompts would start from its unknown "
            "token. Give words=... that it knows."
        )
    return [int(ids[i % len(ids)]) for i in range(n_ctx)]


def coop(tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 4, words: str = WORDS, **options: Any) -> DualPromptConfig:
    """CoOp (Zhou et al., IJCV 2022, arXiv:2109.01134): text prompts before the first layer, no more."""
    return DualPromptConfig(
        **{
            "sides": "text",
            "depth": 1,
            "n_ctx": n_ctx,
            "coupling": "none",
            "placeholder_ids": placeholders(tokenizer, n_ctx, words),
            **options,
        }
    )


def vpt(
    tokenizer: PreTrainedTokenizerBase | None = None, *, n_ctx: int = 4, depth: int = 9, **options: Any
) -> DualPromptConfig:
    """VPT (Jia et al., ECCV 2022, arXiv:2203.12119): vision prompts; depth=1 is VPT-shallow. Needs no tokenizer."""
    return DualPromptConfig(**{"sides": "vision", "depth": depth, "n_ctx": n_ctx, "coupling": "none", **options})


def maple(
    tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 2, depth: int = 9, words: str = WORDS, **options: Any
) -> DualPromptConfig:
    """MaPLe (Khattak et al., CVPR 2023, arXiv:2210.03117): deep text prompts, and vision prompts made of them."""
    return DualPromptConfig(
        **{
            "sides": "both",
            "depth": depth,
            "n_ctx": n_ctx,
            "coupling": "t2v",
            "placeholder_ids": placeholders(tokenizer, n_ctx, words),
            **options,
        }
    )


def independent(
    tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 4, depth: int = 9, words: str = WORDS, **options: Any
) -> DualPromptConfig:
    """PromptSRC's prompts (Khattak et al., ICCV 2023, arXiv:2307.06948): deep ones on both sides, uncoupled."""
    return maple(tokenizer, n_ctx=n_ctx, depth=depth, words=words, **{"coupling": "none", **options})


def dual_prompt(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_ctx: int = 4,
    depth: int = 9,
    coupling_rank: int = 16,
    words: str = WORDS,
    **options: Any,
) -> DualPromptConfig:
    """DCAR's dual prompts (arXiv:2508.04028): as MaPLe, with four prompts and a coupling of low rank.

    The paper's code was not published; depth, number and rank are ours. coupling_rank=0 gives the full matrix, which
    has 3.5 M parameters on ViT-B instead of 0.19 M.
    """
    return maple(tokenizer, n_ctx=n_ctx, depth=depth, words=words, coupling_rank=coupling_rank, **options)


CONFIGURATIONS: Mapping[str, Callable[..., DualPromptConfig]] = {
    "coop": coop,
    "vpt": vpt,
    "maple": maple,
    "independent": independent,
    "dual-prompt": dual_prompt,
}


def configuration(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> DualPromptConfig:
    """Return a named configuration for a model's tokenizer; `options` are those of `DualPromptConfig`, and `words`.

    Raises:
        UnknownNameError: none has this name.
    """
    if name not in CONFIGURATIONS:
        raise UnknownNameError(
            f"No prompt configuration is called {name!r}. {did_you_mean(name, CONFIGURATIONS)}Known: "
            f"{', '.join(CONFIGURATIONS)}; or build a DualPromptConfig."
        )
    return CONFIGURATIONS[name](tokenizer, **options)
