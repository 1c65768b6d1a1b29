"""Fakes and contract tests for those who write plugins."""

import pkgutil
import sys

if "pytest" in sys.modules:
    # Otherwise a failed assert of a contract would not say what it compared.
    sys.modules["pytest"].register_assert_rewrite(
        *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
    )
