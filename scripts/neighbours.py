"""``tsdae neighbours``: see tsdae/commands/main.py."""

from tsdae.commands.main import neighbours

if __name__ == "__main__":
    neighbours()
