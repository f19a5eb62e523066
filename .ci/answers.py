"""Refuse a soak that was not sound, or of fewer checked answers than wanted: python .ci/answers.py soak.json COUNT"""

import json
import sys
from pathlib import Path

told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
answers = sum(row["value"] for row in told["rows"] if row["metric"] == "answers")
print(f"{answers:,} answers, each checked; sound: {told['sound']}")
sys.exit(not told["sound"] or answers < int(sys.argv[2]))
