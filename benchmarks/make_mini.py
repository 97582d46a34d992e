"""Makes the built-in model of what `scripts/pretrain.py` has left: its raw/ in half precision, and a manifest.

python scripts/pretrain.py english_open.txt.gz --output mini --tsdae-steps 0 ...   # the flags stand in the model's card
python benchmarks/make_mini.py mini/raw tsdae/hub/mini
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tsdae.hub.downloads import MANIFEST
from tsdae.utils.files import read_json, sha256_of, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder of a language model in Hugging Face's format")
    parser.add_argument("output", type=Path, help="folder to write; its README.md stays")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half() for name, tensor in load_file(arguments.raw / "model.safetensors").items()}
    save_file(weights, arguments.output / "model.safetensors", metadata={"format": "pt"})
    config = read_json(arguments.raw / "config.json") | {"dtype": "float16"}
    write_json(arguments.output / "config.json", config)
    shutil.copyfile(arguments.raw / "tokenizer.json", arguments.output / "tokenizer.json")
    special = {
        name: text for name, text in read_json(arguments.raw / "tokenizer_config.json").items() if "_token" in name
    }
    reader = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"]}
    write_json(arguments.output / "tokenizer_config.json", special | reader)  # in words that old versions know too
    files = sorted(path for path in arguments.output.iterdir() if path.name not in (MANIFEST, "README.md"))
    write_json(arguments.output / MANIFEST, {path.name: sha256_of(path) for path in files})
    print(f"{arguments.output}: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
