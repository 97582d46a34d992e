"""Writes report.md and report.html of an ablation again, from its rows; --check only compares report.md."""

from dataclasses import dataclass
from pathlib import Path

from tsdae.ablation.report import check_report, write_report
from tsdae.commands.parser import Parser
from tsdae.config import flag


@dataclass(frozen=True)
class ReportConfig:
    """What to do with the report."""

    check: bool = flag(False, "write nothing; fail if report.md is not the one that the rows make")


def main() -> None:
    parser = Parser(ReportConfig, description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="--output of scripts/ablate.py")
    config, rest = parser.configs()
    parser.run(lambda: (check_report if config.check else write_report)(Path(rest.folder)))


if __name__ == "__main__":
    main()
