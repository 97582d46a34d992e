"""``tsdae encode``: see tsdae/commands/main.py."""

from tsdae.commands.main import encode

if __name__ == "__main__":
    encode()
