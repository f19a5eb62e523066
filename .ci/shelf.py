"""Install the built wheel into an empty environment with each extra, try what it promises, and print sizes and times.

    python .ci/shelf.py dist [extra ...]

A row fails where its command fails. `uv` is taken where the machine has it, else pip. Some extras are resolved only:
their packages must go together.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

MOST = 15 << 20
"""Bytes that the wheel may have."""

README = Path(__file__).resolve().parents[1] / "README.md"
EVALUATE = ("lvlm-guard eval run --quick --out first",)
IMPORTS = "python -c 'import {}'"
TRIES: dict[str, tuple[str, ...]] = {
    "": ("python guard.py", "lvlm-guard doctor", "lvlm-guard methods"),
    "eval": ("lvlm-guard demo --quick", *EVALUATE),
    "lmms": (IMPORTS.format("lmms_eval, lvlm_guard.evals.lmms"),),
    "open-clip": (IMPORTS.format("open_clip"),),
    "photographs": (IMPORTS.format("lvlm_guard.embedded.photographs"),),
    "amber": (IMPORTS.format("nltk, spacy"),),
    "batch": ("lvlm-guard batch --help", IMPORTS.format("lvlm_guard.batch.run, pyarrow, openai")),
    "ray": (IMPORTS.format("ray.data, lvlm_guard.batch.run"),),
    "check": (IMPORTS.format("lvlm_guard.serve.front.checking, lvlm_guard.serve.launch.server"),),
    "play": (IMPORTS.format("lvlm_guard.play.page"),),
    "quant": (IMPORTS.format("bitsandbytes, accelerate"),),
    "site": ("mkdocs --version", IMPORTS.format("material, mkdocstrings")),
    "train": (
        "lvlm-guard train presets",
        "lvlm-guard train dual-prompt --help",
        IMPORTS.format("lvlm_guard.adapters.training"),
    ),
}
"""What is tried in an environment with the core alone, and with each extra."""

RESOLVED = ("serve", "serve-vote", "serve-cpu")
"""Extras that are resolved, not installed: vLLM for a GPU, and for CPUs, which `make test-serve` installs and tests."""


def guarded_answer() -> str:
    """Return the README's own Python, up to its first guarded answer."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "\n".join(blocks) + "\nprint(processor.decode(tokens[0], skip_special_tokens=True))\n"


def size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def offered(wheel: Path) -> list[str]:
    """Return the extras that a wheel offers its users.

    Raises:
        SystemExit: nothing says how one of them is tried.
    """
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        told = opened.read(name).decode()
    found = [extra for extra in re.findall(r"^Provides-Extra: (.+)$", told, re.MULTILINE) if extra != "dev"]
    unknown = [extra for extra in found if extra not in TRIES and extra not in RESOLVED]
    if unknown:
        raise SystemExit(f"Nothing tries the extra {', '.join(unknown)}: add it to TRIES or RESOLVED in .ci/shelf.py.")
    return found


def clock() -> tuple[float, float]:
    """Return the time, and the work of all commands that ended, in seconds."""
    spent = os.times()
    return time.monotonic(), spent.children_user + spent.children_system


def since(begun: tuple[float, float]) -> str:
    """Write how long something took, and how much of it was work of this machine's cores."""
    now = clock()
    return f"{now[0] - begun[0]:.1f} s ({now[1] - begun[1]:.1f} s of CPU)"


def run(command: list[str] | str, cwd: Path, env: dict[str, str]) -> None:
    """Run a command; raises `SystemExit` with what it wrote where it fails."""
    shell = isinstance(command, str)
    done = subprocess.run(
        command, cwd=cwd, env=env, shell=shell, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def tried(wheel: Path, extra: str) -> str:
    """Return the row of an extra: what was installed, how long that and the tries took."""
    uv = shutil.which("uv")
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    with tempfile.TemporaryDirectory(prefix="shelf-") as made:
        home = Path(made)
        bin_ = home / "env" / "bin"
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        env |= {"PATH": f"{bin_}:{env['PATH']}", "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": str(home / "env")}
        begun = clock()
        make = [uv, "venv", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        run([*make, str(home / "env")], home, env)
        install = [uv, "pip", "install", "-q"] if uv else [str(bin_ / "python"), "-m", "pip", "install", "-q"]
        if extra in RESOLVED:
            run([*install, "--dry-run", wanted], home, env)
            return f"{extra:12} resolves; not installed here"
        run([*install, wanted], home, env)
        installed = since(begun)
        (home / "guard.py").write_text(guarded_answer(), encoding="utf-8")
        took = []
        for command in TRIES[extra]:
            begun = clock()
            run(command, home, env)
            took.append(f"{command} {since(begun)}")
        packages = len(list((home / "env").glob("lib/python*/site-packages/*.dist-info")))
        heavy = size(home / "env") / 2**20
        weighs = f"{packages} packages, {heavy:.0f} MiB, installed in {installed}"
        return f"{extra or 'core':12} {weighs}; {'; '.join(took)}"


def main(folder: str, *extras: str) -> None:
    """Print a row for the archives and one for each extra.

    Raises:
        SystemExit: the wheel is too large, or something does not install or run.
    """
    for path in sorted(Path(folder).iterdir()):
        print(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")
    (wheel,) = Path(folder).resolve().glob("*.whl")
    if wheel.stat().st_size > MOST:
        raise SystemExit(f"{wheel.name} is larger than {MOST >> 20} MiB.")
    for extra in extras or ("core", *offered(wheel)):
        print(tried(wheel, "" if extra == "core" else extra), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
