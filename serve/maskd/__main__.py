"""`python -m lvlm_guard.serve.maskd`: the command `lvlm-guard maskd`."""

from __future__ import annotations

import sys

from lvlm_guard.cli import main

if __name__ == "__main__":
    main(["maskd", *sys.argv[1:]])
