"""The checks, by chapter of docs/conformance.md; importing them registers them."""

import mixerzoo.testing.checks.accounting
import mixerzoo.testing.checks.declarations
import mixerzoo.testing.checks.decoding
import mixerzoo.testing.checks.devices
import mixerzoo.testing.checks.equivalence
import mixerzoo.testing.checks.gradients
import mixerzoo.testing.checks.modes
import mixerzoo.testing.checks.numerics
import mixerzoo.testing.checks.persistence
import mixerzoo.testing.checks.process
import mixerzoo.testing.checks.purity
import mixerzoo.testing.checks.reference
import mixerzoo.testing.checks.scaling
import mixerzoo.testing.checks.sequence
import mixerzoo.testing.checks.weights  # noqa: F401
