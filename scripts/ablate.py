"""``tsdae ablate``: see tsdae/commands/main.py."""

from tsdae.commands.main import ablate

if __name__ == "__main__":
    ablate()
