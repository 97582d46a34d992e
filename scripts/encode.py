"""Embeds a corpus with a trained encoder: one float32 row per sentence, in the order of the input."""

from tsdae.commands.evaluate import EncodeConfig, encode_file
from tsdae.commands.parser import Parser


def main() -> None:
    parser = Parser(EncodeConfig, description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder or name on the hub")
    config, rest = parser.configs()
    parser.run(lambda: encode_file(rest.model, config))


if __name__ == "__main__":
    main()
