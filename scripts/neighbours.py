"""Shows what two models find in a text: each query's nearest sentences side by side, and how many the models share."""

from tsdae.commands.neighbours import NeighboursConfig, show_neighbours
from tsdae.commands.parser import Parser


def main() -> None:
    parser = Parser(NeighboursConfig, description=__doc__)
    for place in ("before", "after"):
        parser.add_argument(place, metavar=place.upper(), help="run folder, model folder or name on the hub")
    config, rest = parser.configs()
    parser.run(lambda: show_neighbours(rest.before, rest.after, config))


if __name__ == "__main__":
    main()
