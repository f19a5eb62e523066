"""Guarded answers for a whole data set: `lvlm-guard batch`.

`rows` reads JSON lines, parquet and webdataset tars; `plan` cuts a data set into pieces, each of which becomes one file
of answers that is there whole or not at all, so that whatever is killed costs the pieces that were in work, and no row
is there twice; `answering` answers rows with a guarded model in this process or by a server; `run` does all pieces that
are not there yet, here or on a cluster.
"""

import os

# read when torch is imported, hence here: answers, and what is told of them, must not depend on where operands lie
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
