"""Tests run offline, on one thread, and leave no random state behind."""

import os
import signal
import tempfile
from contextlib import suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that threads wait for each other
# MKL's products otherwise depend on where in memory the operands happen to lie, and "bit for bit" is tested
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may wait for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job of a shell's background, which Ctrl-C does not reach
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("LVLM_GUARD_CACHE", tempfile.mkdtemp(prefix="lvlm-guard-proofs-"))  # not the user's own

with suppress(ImportError):  # the environments of the page and of Ray have no properties to test
    from hypothesis import settings

    # a busy machine is no failure; where a submission depends on it, the same examples each time
    settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
    settings.load_profile("here")
