"""``tsdae train``: see tsdae/commands/main.py."""

from tsdae.commands.main import train

if __name__ == "__main__":
    train()
