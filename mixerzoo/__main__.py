"""``python -m mixerzoo``: the command line, for where no script is at hand (``torchrun -m mixerzoo``)."""

from mixerzoo.cli import main

if __name__ == "__main__":
    main()
