"""``tsdae prepare``: see tsdae/commands/main.py."""

from tsdae.commands.main import prepare

if __name__ == "__main__":
    prepare()
