"""Prepares a text for training: tokenises it once, into a folder that scripts/train.py takes as --corpus."""

from tsdae.commands.parser import Parser
from tsdae.commands.prepare import prepare
from tsdae.config import PrepareConfig


def main() -> None:
    parser = Parser(PrepareConfig, description=__doc__)
    parser.add_argument(
        "corpus", metavar="CORPUS", help="text file, pattern, jsonl, csv, tsv, parquet, - or hub:NAME[:CONFIG]"
    )
    config, rest = parser.configs()
    parser.run(lambda: prepare(rest.corpus, config))


if __name__ == "__main__":
    main()
