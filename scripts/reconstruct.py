"""Shows what sentence vectors hold: sentences are noised, encoded, and written again by the decoder."""

from tsdae.commands.parser import Parser
from tsdae.commands.reconstruct import ReconstructConfig, show


def main() -> None:
    parser = Parser(ReconstructConfig, description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder; or a model, whose decoder then is new")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="text, each sentence in quotes")
    config, rest = parser.configs()
    parser.run(lambda: show(rest.run, rest.sentences, config))


if __name__ == "__main__":
    main()
