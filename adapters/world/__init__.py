"""The embedded world with colours, counts and order: what adapters train on when nothing can be downloaded.

The drawings are those of `lvlm_guard.embedded`; here they may be tinted and repeated, captions name colour and
number, and sets of pictures have an order (how many, how large, how bright). `facts(kind)` gives what
`lvlm_guard.adapters.data` reads from anywhere else, `captions(split)` and `ranks(split, by=...)` its two views. Every
picture is drawn from its split's seed and its number alone, so nothing is stored and no two splits share a scene.
"""

from lvlm_guard.adapters.world.pictures import ORDERS, Pictures, captions, facts, ranks

__all__ = ["ORDERS", "Pictures", "captions", "facts", "ranks"]
