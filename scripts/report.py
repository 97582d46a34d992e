"""``tsdae report``: see tsdae/commands/main.py."""

from tsdae.commands.main import report

if __name__ == "__main__":
    report()
