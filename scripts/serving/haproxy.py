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
# The head of a request must have come within a minute. And replicas want to know the client.
DEFAULTS = ["    timeout http-request 60s", "    option forwardfor"]
# What HAProxy answers by itself: while no replica can be reached, and to what is no request.
UNAVAILABLE = (
    503,
    "Service Unavailable",
    "The service is starting, or a part of it is being restarted. Try again.",
    "Retry-After: 2\r\n",
)
PROBLEMS = {
    400: (
        400,
        "Bad Request",
        "This is no HTTP request, or its URL and headers have more than 63 kB together.",
        "",
    ),
    408: (408, "Request Timeout", "The head of the request did not come within a minute.", ""),
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


def answer(status: int, title: str, detail: str, headers: str) -> str:
    """Return an answer as HAProxy sends it, see RFC 9457."""
    problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return (
        f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n{headers}"
        f"Cache-Control: no-store\r\nConnection: close\r\n\r\n{json.dumps(problem)}"
    )


def closed(config: str, folder: Path) -> str:
    """Return a config of Ray Serve's that is open to nobody but clients.

    Args:
        folder: has the files of `PROBLEMS`.
    """
    answers = [f'    errorfile {status} "{folder / str(status)}.http"' for status in PROBLEMS]
    lines, section = [], ""
    for line in config.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        if section in OPEN or line in DEFAULTS or line.strip().startswith("errorfile "):
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
    for status, problem in PROBLEMS.items():
        config.with_name(f"{status}.http").write_text(answer(*problem))
    config.write_text(closed(config.read_text(), config.parent))
    end_with_parent(signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
