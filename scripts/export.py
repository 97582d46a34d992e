"""``tsdae export``: see tsdae/commands/main.py."""

from tsdae.commands.main import export

if __name__ == "__main__":
    export()
