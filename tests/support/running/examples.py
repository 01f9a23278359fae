"""How many examples Hypothesis tries: profiles, and a test's share of them.

`ci` is what `./scripts/test` runs, and `fast` what `./scripts/test fast` does. Both try the same
examples each time, so that a run fails by what was changed; `--hypothesis-profile=search` looks for
new ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

CI = 100  # Hypothesis's own default


def register_profiles() -> None:
    """Register the profiles, and choose `ci`; `--hypothesis-profile` chooses another."""
    # How long an example takes depends on what else the machine does.
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", patient, max_examples=CI, derandomize=True, database=None)
    settings.register_profile("fast", settings.get_profile("ci"), max_examples=CI // 5)
    settings.register_profile("search", patient, max_examples=10 * CI)
    settings.load_profile("ci")


def examples(count: int) -> int:
    """Return how many examples a test tries that tries `count` in the profile `ci`."""
    return max(1, count * settings.default.max_examples // CI)
