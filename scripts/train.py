"""Trains a sentence encoder with TSDAE. Without arguments: the sample run (MiniLM on the sentences of STS-B)."""

from tsdae.command import Parser
from tsdae.recipe import run_training
from tsdae.resuming import resumed
from tsdae.settings import DataConfig, MethodConfig
from tsdae.training import TrainConfig


def main() -> None:
    parser = Parser(DataConfig, MethodConfig, TrainConfig, description=__doc__)
    data, method, config = parser.configs()
    parser.run(lambda: run_training(*resumed(data, method, config, parser.given)))


if __name__ == "__main__":
    main()
