"""A service of one's own, and what the shared one is configured with."""

from __future__ import annotations

from common.own_service import OwnService, free_port
from common.serve_run import ServiceFailed

__all__ = ["LIMITS", "QUEUES", "OwnService", "ServiceFailed", "free_port"]

# What can be refused is refused here early, so that the tests needn't send much.
LIMITS = {
    "max_image_bytes": 4 * 2**20,
    "max_request_bytes": 6 * 2**20,
    "max_pixels": 20_000_000,
    "timeout_s": 60,
}
# Short, so that the test that fills them needn't send much; no other test sends as many at once.
QUEUES = {
    "Segmenter": {"max_ongoing_requests": 4, "max_queued_requests": 20},
    "QueryEncoder": {"max_ongoing_requests": 4, "max_queued_requests": 40},
}
