"""``tsdae explore``: see tsdae/commands/main.py."""

from tsdae.commands.main import explore

if __name__ == "__main__":
    explore()
