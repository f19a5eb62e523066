"""Asking, which imports torch: so this, before anything of it, asks MKL for one result whatever the alignment.

Unasked, on some processors a product's last bit depends on where in memory its operands happen to lie, and the same run
would end in other bytes. Processes that are started from here inherit it.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
