"""``tsdae evaluate``: see tsdae/commands/main.py."""

from tsdae.commands.main import evaluate

if __name__ == "__main__":
    evaluate()
