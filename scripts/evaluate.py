"""Compares models on STS-B (or on --pairs of your own): figures x 100 with intervals, differences from the first.

With --make-pairs it writes a sheet of pairs to score by hand instead.
"""

from tsdae.commands.evaluate import CompareConfig, compare
from tsdae.commands.neighbours import SheetConfig, make_sheet
from tsdae.commands.parser import Parser


def main() -> None:
    parser = Parser(CompareConfig, SheetConfig, description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder or name on the hub")
    config, sheet, rest = parser.configs()
    parser.run(lambda: make_sheet(rest.models, sheet, config) if sheet.make_pairs else compare(rest.models, config))


if __name__ == "__main__":
    main()
