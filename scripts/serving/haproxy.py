"""What Ray Serve starts in place of HAProxy: closes its config, and becomes HAProxy.

    haproxy.py BINARY -f CONFIG ...

Ray Serve (as of 2.60) writes a config that lets everybody on the network read statistics and
metrics, and every user of the machine give orders; it has no word for that in its settings. If
Ray's process is killed, HAProxy would stay and hold the port.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

# Sections that listen on all addresses. Ray itself asks HAProxy through the admin socket.
OPEN = ("frontend prometheus", "listen stats")
# Where requests go as long as the service isn't there. Ray answers that its paths don't exist.
ABSENT = "backend default_backend"
# The head of a request must have come within a minute. And replicas want to know the client.
DEFAULTS = ["    timeout http-request 60s", "    option forwardfor"]
# What HAProxy answers while no replica can be reached: see RFC 9457. It is written here, because
# this program must start at once, and imports nothing of Inset. (To what is no HTTP, HAProxy has an
# answer of its own, whatever its config says.)
STATUSES = (502, 503, 504)
PROBLEM = {
    "type": "about:blank",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "The service is starting, or a part of it is being restarted. Try again.",
}
UNAVAILABLE = f"""\
HTTP/1.1 503 Service Unavailable\r
Content-Type: application/problem+json\r
Retry-After: 2\r
Cache-Control: no-store\r
Connection: close\r
\r
{json.dumps(PROBLEM)}"""


def closed(config: str, unavailable: Path) -> str:
    """Return a config of Ray Serve's that is open to nobody but clients.

    Args:
        unavailable: a file with `UNAVAILABLE`.
    """
    answers = [f'    errorfile {status} "{unavailable}"' for status in STATUSES]
    lines, section = [], ""
    for line in config.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        if section in OPEN or line in DEFAULTS or line.strip().startswith("errorfile "):
            continue
        if section == ABSENT and line != ABSENT:  # without a server it answers `UNAVAILABLE`
            continue
        lines.append(line.replace(" mode 666 level admin", " mode 600 level admin"))
        if line == "defaults":
            lines += [*DEFAULTS, *answers]
    return "\n".join(lines) + "\n"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from serving.parents import end_with_parent

    binary, *arguments = sys.argv[1:]
    config = Path(arguments[arguments.index("-f") + 1])
    unavailable = config.with_name("503.http")
    unavailable.write_text(UNAVAILABLE)
    config.write_text(closed(config.read_text(), unavailable))
    end_with_parent(signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
