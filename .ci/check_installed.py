"""Fails unless the installed package, and not a checkout, embeds sentences by its built-in model."""

import sys
from pathlib import Path

import tsdae

place = Path(tsdae.__file__).parent
assert place.is_relative_to(Path(sys.argv[1]).resolve()), place
vectors = tsdae.SentenceEncoder.from_pretrained("mini").encode(["a man plays the guitar", "Dogs bark."])
assert vectors.shape == (2, 256), vectors.shape
print(f"the wheel's built-in model works: {place}")
