"""Question files fetched from their authors' public repositories, at pinned commits and with known content.

Only texts are fetched: pictures stay what the user has. A file is kept in `$XDG_CACHE_HOME/lvlm-guard`
(else `~/.cache/lvlm-guard`) and read from there afterwards, so a second run needs no network.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lvlm_guard.evals.errors import DataError

_VCD = (
    "https://raw.githubusercontent.com/DAMO-NLP-SG/VCD/d6568ff81b8fd306a49e630df44f2db5c2300191/experiments/data/POPE"
)
_POPE = "https://raw.githubusercontent.com/RUCAIBox/POPE/3df3ba1b110ecce25696989577fad583b67d4239/output"
_AGLA = "https://raw.githubusercontent.com/Lackel/AGLA/efa126347c41631152a70d7db0a6ac0708bd9d00/data"

SECONDS = 30.0
"""How long a server may stay silent."""


@dataclass(frozen=True)
class Published:
    """A file of a pinned commit.

    Args:
        url: where it is.
        sha256: of its bytes.
    """

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


IMANGE = Published(
    f"{_VCD}/coco/coco_pope_adversarial.json", "185d7eb49958c882f15d46c51d5c0456fbd5efbf24c57ff8b7adc6648870c6ac"
)
"""The adversarial COCO file that AGLA and VCD used: 57 questions end in "imange"."""

QUESTIONS = {
    ("coco", "random"): Published(
        f"{_VCD}/coco/coco_pope_random.json", "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994"
    ),
    ("coco", "popular"): Published(
        f"{_VCD}/coco/coco_pope_popular.json", "fa3a986eb3d586ceb527371112ad7170f398835cbe0a3f08a7e888771dbd8bd6"
    ),
    ("coco", "adversarial"): Published(
        f"{_POPE}/coco/coco_pope_adversarial.json", "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8"
    ),
    ("aokvqa", "random"): Published(
        f"{_VCD}/aokvqa/aokvqa_pope_random.json", "900c244605e8d43626b9579a110e3631e534cddc2aff27fe91e3f080e15d4446"
    ),
    ("aokvqa", "popular"): Published(
        f"{_VCD}/aokvqa/aokvqa_pope_popular.json", "792d586a875c197362256b25e9252cc97df6fa1dca5aca72a53eba560414d6b7"
    ),
    ("aokvqa", "adversarial"): Published(
        f"{_VCD}/aokvqa/aokvqa_pope_adversarial.json",
        "87f9acb460fcb690f9120c6d69eb05cfedadab5af5eb385b5201fd48bfc6670c",
    ),
    ("gqa", "random"): Published(
        f"{_VCD}/gqa/gqa_pope_random.json", "1c1117ce33df2eae0d7b04827896caff1f79dac7b99b9e1b0c87a415066cff98"
    ),
    ("gqa", "popular"): Published(
        f"{_VCD}/gqa/gqa_pope_popular.json", "e48e138bd61dd3bc4ec35cc8d4357b4dbfc68f0e704283a92217325585a17653"
    ),
    ("gqa", "adversarial"): Published(
        f"{_VCD}/gqa/gqa_pope_adversarial.json", "64a3bdeb8d24c02d175eafa5e1b24bc7fd611efa95bb87a031c880e548aef094"
    ),
}
"""(data set, kind) -> POPE's question file; of the adversarial COCO one the repaired copy."""

AGLA_PICTURES = Published(
    f"{_AGLA}/CHAIR/chair.jsonl", "55a3883f5d779b4d0771d414c1ac52839e7ace12d2675e3eb0b20265bc337685"
)
"""The 100 pictures of COCO val2014 that AGLA captions."""


def cache_folder() -> Path:
    """Return the folder that fetched files are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvlm-guard"


def fetch(published: Published, folder: str = "pope", seconds: float = SECONDS) -> Path:
    """Return a published file, from the cache or fetched into it.

    Args:
        published: which.
        folder: where in the cache.
        seconds: how long a server may stay silent.

    Raises:
        DataError: it can't be fetched, and the message says where to put it by hand; or what came is another file.
    """
    # the digest keeps two files of one name apart
    path = cache_folder() / folder / published.sha256[:8] / published.name
    if path.is_file() and _digest(path.read_bytes()) == published.sha256:
        return path
    try:
        with urllib.request.urlopen(published.url, timeout=seconds) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{published.name} can't be fetched ({reason}). Get {published.url} on a machine with network, and put it "
            f"at {path}, or give it with --questions."
        ) from error
    if _digest(content) != published.sha256:
        raise DataError(
            f"{published.url} gave {len(content)} bytes that are not the published file (SHA-256 "
            f"{_digest(content)[:16]}, should be {published.sha256[:16]}): something on the way changes downloads. Get "
            "the file another way and give it with --questions."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} can't be written ({error.strerror or error}): set XDG_CACHE_HOME to a folder that can, or give "
            "the question files with --questions."
        ) from error
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
