"""The Ingress deployment: HTTP from Serve's proxy, and the same operations for Ray handles."""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import ASGIApp

from deployments.errors import keep_answers_out_of_the_log
from deployments.ingress.app import build_app
from deployments.ingress.service import Inset
from deployments.settings import HEALTH_CHECK_S


@serve.deployment(
    name="Ingress",
    max_ongoing_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class IngressDeployment(Inset):
    """`Inset` on Ray Serve."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        keep_answers_out_of_the_log()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Serve calls this in each replica (private; seen in 2.60)."""
        return build_app(self)
