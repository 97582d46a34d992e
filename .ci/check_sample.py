"""Fails unless the sample run's figures for the untrained model are the known ones, to 0.01."""

import json
import sys
from pathlib import Path

KNOWN = {"mean": {"dev": 86.72, "test": 82.03}, "cls": {"dev": 79.73, "test": 73.50}}

rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
untrained, trained = rows[:2], rows[2]
for row in untrained:
    for split, known in KNOWN[row["pooling"]].items():
        found = row[split]["spearman"]
        if abs(found - known) > 0.01:
            sys.exit(f"untrained MiniLM, {row['pooling']}, {split}: Spearman {found}, known is {known}")
if trained["dev"]["spearman"] == untrained[1]["dev"]["spearman"]:
    sys.exit("60 steps of training did not change the encoder")
print("the untrained model's four figures are the known ones")
