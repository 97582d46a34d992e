"""From nothing but text: trains a tokenizer, a BERT by masked-language modelling, and a sentence encoder by TSDAE."""

from tsdae.commands.parser import Parser
from tsdae.commands.pretrain import PretrainConfig, pretrain


def main() -> None:
    parser = Parser(PretrainConfig, description=__doc__)
    parser.add_argument(
        "corpus", metavar="CORPUS", help="text file, pattern, jsonl, csv, tsv, parquet or hub:NAME[:CONFIG]"
    )
    config, rest = parser.configs()
    parser.run(lambda: print(f"done: {pretrain(rest.corpus, config)}"))


if __name__ == "__main__":
    main()
