"""Fails unless the default run's figures for the untrained model are those of its card, to 0.01."""

import json
import re
import sys
from pathlib import Path

CARD = Path(__file__).parents[1] / "tsdae" / "hub" / "mini" / "README.md"

rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
*untrained, trained = rows
for row in untrained:
    known = re.search(rf"\| untrained, {row['pooling']} \| ([\d.]+) \| ([\d.]+) \|", CARD.read_text(encoding="utf-8"))
    if known is None:
        sys.exit(f"{CARD} has no row for the untrained model under {row['pooling']} pooling")
    for split, figure in zip(("dev", "test"), map(float, known.groups()), strict=True):
        found = row[split]["spearman"]
        if abs(found - figure) > 0.01:
            sys.exit(f"untrained mini, {row['pooling']}, {split}: Spearman {found}, its card says {figure}")
if trained["dev"]["spearman"] == untrained[-1]["dev"]["spearman"]:
    sys.exit("60 steps of training did not change the encoder")
print("the untrained model's figures are those of its card")
