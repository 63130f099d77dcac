"""The naive references of the tests' mixers, one module a mixer, named after it.

They are the specification that the library is tested against. A module gives

* a subclass of `mixerzoo.testing.reference.TokenMixer`, from the paper's equations: one token, plain loops;
* ``REFERENCE``, a `mixerzoo.testing.Reference`: that mixer with a built mixer's parameters, and its exact accounts;
* ``CASES``, what the tests run: every `case.ZooCase` that does something of its own;
* ``OPTIONS``, a Hypothesis strategy of any options (mixers of `adhoc` need none).

`zoo` collects them, so a new mixer is a new module and nothing else. Nothing here computes with the library: a
mixer is asked for its config, its shape and its parameters only.
"""
