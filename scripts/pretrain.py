"""``tsdae pretrain``: see tsdae/commands/main.py."""

from tsdae.commands.main import pretrain

if __name__ == "__main__":
    pretrain()
