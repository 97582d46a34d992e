"""Trains a sentence encoder with TSDAE. Without arguments: the built-in model mini on the sentences of STS-B."""

from tsdae.commands.parser import Parser
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.run.resume import resumed


def main() -> None:
    parser = Parser(DataConfig, MethodConfig, TrainConfig, description=__doc__)
    configs: tuple[DataConfig, MethodConfig, TrainConfig] = parser.configs()

    def run() -> None:
        data, method, config = resumed(*configs, parser.given)
        method.check_used(parser.given)  # also where it is given as what it is by default
        run_training(data, method, config, given=parser.given)

    parser.run(run)


if __name__ == "__main__":
    main()
