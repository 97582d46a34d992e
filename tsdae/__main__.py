"""``python -m tsdae COMMAND ...``, as ``tsdae COMMAND ...``."""

from tsdae.commands.main import main

if __name__ == "__main__":
    main()
