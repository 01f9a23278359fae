"""The Ingress deployment: HTTP from Serve's proxy, and the same operations for Ray handles."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from starlette.types import ASGIApp

from deployments.ingress.app import build_app
from deployments.ingress.metrics import measure_work
from deployments.ingress.service import Inset
from deployments.logs import join_the_log
from deployments.settings import HEALTH_CHECK_S, HttpSettings
from deployments.startup import ending_serve_run


@serve.deployment(
    name="Ingress",
    # Many may wait for their bodies. What they ask for is bounded by the queues behind this one.
    max_ongoing_requests=2048,
    max_queued_requests=1024,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class IngressDeployment(Inset):
    """`Inset` on Ray Serve.

    Args:
        http: who may come in.
        options: see `Inset`.
    """

    def __init__(self, *, http: HttpSettings, **options: Any) -> None:
        super().__init__(**options)
        self.http = http
        join_the_log()
        measure_work(self.progress)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Serve calls this in each replica (private; seen in 2.60).

        Raises:
            StartupError: see `build_app`.
        """
        front = _find_front()
        with ending_serve_run():
            return build_app(
                self,
                host=front.host or "127.0.0.1",
                request_timeout_s=front.request_timeout_s,
                http=self.http,
                behind_haproxy=RAY_SERVE_ENABLE_HA_PROXY,  # private; seen in 2.60
            )


def _find_front() -> HTTPOptions:
    """Return the options of Serve's proxy. The config decides them; no public call tells them."""
    client = _get_global_client() if ray.is_initialized() else None
    return HTTPOptions() if client is None else client.http_config  # None: it runs without a proxy
