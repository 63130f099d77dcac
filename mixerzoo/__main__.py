"""``python -m mixerzoo``: the command line, for where no script is at hand (``torchrun -m mixerzoo``)."""

import os
import sys


def _leave_out_the_working_directory() -> None:
    """Take off the path what ``-m`` put first, where a user's random.py or yaml.py would be taken for the real one."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        here = ""
    if not sys.flags.safe_path and sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    _leave_out_the_working_directory()
    from mixerzoo.cli import main

    main()
