"""The built-in mixers, one module each. They use the public API of `mixerzoo` and nothing else."""
