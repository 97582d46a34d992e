"""Trains in several settings with several seeds, paired, and writes a row a run and a report with intervals."""

from tsdae.ablation.runner import ablate
from tsdae.commands.parser import Parser
from tsdae.config import AblationConfig, DataConfig, MethodConfig, TrainConfig


def main() -> None:
    parser = Parser(AblationConfig, DataConfig, MethodConfig, TrainConfig, description=__doc__)
    config, data, method, train = parser.configs()
    parser.run(lambda: ablate(data, method, train, config, given=parser.given))


if __name__ == "__main__":
    main()
