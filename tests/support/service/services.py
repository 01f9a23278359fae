"""The services that tests share: what they are configured with, and the keys of one of them."""

from __future__ import annotations

from pathlib import Path

import httpx
from common.own_service import OwnService
from common.ports import free_port
from common.serve_run import ServiceFailed

from deployments.ingress.keys import Scope, make_key, revoke_key
from tests.support.running.waiting import wait_until

__all__ = ["LIMITS", "QUEUES", "Locked", "OwnService", "ServiceFailed", "free_port"]

# What can be refused is refused here early, so that the tests needn't send much.
LIMITS = {
    "max_image_bytes": 5 * 2**20,  # more than gRPC sends by default
    "max_request_bytes": 6 * 2**20,
    "max_pixels": 20_000_000,
    "timeout_s": 60,
}
# Short, so that the test that fills them needn't send much; no other test sends as many at once.
QUEUES = {
    "QueryEncoder": {"max_ongoing_requests": 4, "max_queued_requests": 40},
}


class Locked(OwnService):
    """A service that takes keys, started by `serve run` alone.

    Attributes:
        admin: headers with a key that allows everything.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, haproxy=False)
        self._keys = self.store / "keys.json"
        self._made = 0
        self.admin = bearer(make_key(self._keys, "first", ("admin",)))

    def make_key(self, *scopes: Scope) -> tuple[str, str]:
        """Make a key; return its name and itself, when the service knows it."""
        self._made += 1
        name = f"key-{self._made}"
        secret = make_key(self._keys, name, scopes)
        wait_until(lambda: self.lets_in(secret), f"{name} is known")
        return name, secret

    def revoke_key(self, name: str, secret: str) -> None:
        """Revoke a key; return when the service knows it no more."""
        revoke_key(self._keys, name)
        wait_until(lambda: not self.lets_in(secret), f"{name} is revoked")

    def lets_in(self, secret: str) -> bool:
        """Return whether the service knows a key."""
        answer = httpx.get(f"{self.url}/session", headers=bearer(secret), timeout=60)
        return answer.status_code == 200


def bearer(secret: str) -> dict[str, str]:
    """Return the headers that carry a key."""
    return {"Authorization": f"Bearer {secret}"}
