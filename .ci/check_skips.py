"""Fails if a test was skipped for any reason but CUDA; prints how many were."""

import sys
import xml.etree.ElementTree as ElementTree

reports = [ElementTree.parse(path) for path in sys.argv[1:]]
reasons = [skip.get("message") or "" for report in reports for skip in report.iter("skipped")]
others = [reason for reason in reasons if reason != "needs CUDA"]
print(f"skipped tests: {len(reasons)}, of them {len(reasons) - len(others)} for want of CUDA")
if others:
    sys.exit("skipped for other reasons: " + "; ".join(sorted(set(others))))
