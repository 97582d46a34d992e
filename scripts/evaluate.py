"""Compares models on STS-B (or on --pairs of your own): Spearman and Pearson x 100 with intervals."""

from tsdae.command import Parser
from tsdae.inference import CompareConfig, compare


def main() -> None:
    parser = Parser(CompareConfig, description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder or name on the hub")
    config, rest = parser.configs()
    parser.run(lambda: compare(rest.models, config))


if __name__ == "__main__":
    main()
