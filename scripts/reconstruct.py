"""``tsdae reconstruct``: see tsdae/commands/main.py."""

from tsdae.commands.main import reconstruct

if __name__ == "__main__":
    reconstruct()
