"""Make, list and revoke the keys of clients.

    scripts/keys.py make NAME --scopes search,read|list|revoke NAME

Scopes: `search` searches by pictures, texts and stored photos; `read` lists photos and gets them;
`write` adds photos; `admin` removes photos, and may do all that the others may.

A running service notices within a second. As soon as the first key is made, it asks everybody for
one. Run this on the machine of the service. The exit status is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from common.config import DEFAULT_CONFIG, read_settings
from common.paths import ROOT

from deployments.errors import StartupError
from deployments.ingress.keys import (
    NAME_PATTERN,
    SCOPES,
    Scope,
    UnusableKeys,
    make_key,
    read_keys,
    revoke_key,
)

WRONG = 1
LOCKED = "the door is locked until one is made."
MAY = {
    "search": "search",
    "read": "list photos and get them",
    "write": "add photos",
    "admin": "do everything: search, list, get, add and remove photos",
}


def make(arguments: argparse.Namespace) -> None:
    """Make a key, print it on stdout, and what to know about it on stderr."""
    is_first = not arguments.path.exists()
    print(make_key(arguments.path, arguments.name, arguments.scopes), flush=True)
    scopes = ["admin"] if "admin" in arguments.scopes else arguments.scopes
    first = " From now on, the service asks everybody for a key." if is_first else ""
    print(
        f"The key {arguments.name} may {'; '.join(MAY[scope] for scope in scopes)}. Keep it: it is "
        f"shown only now, and stored nowhere.{first}",
        file=sys.stderr,
    )


def list_keys(arguments: argparse.Namespace) -> None:
    """Print a line for each key."""
    keys = read_keys(arguments.path)
    if keys:
        rows = [("name", "scopes", "created")]
        rows += [(key.name, ",".join(key.scopes), key.created) for key in keys]
        name, scopes, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        for row in rows:
            print(f"{row[0]:<{name}}  {row[1]:<{scopes}}  {row[2]}")
    elif arguments.path.exists():
        print(f"There are no keys in {arguments.path}: {LOCKED}")
    else:
        print(f"There is no file {arguments.path}: the service asks nobody for a key.")


def revoke(arguments: argparse.Namespace) -> None:
    """Revoke a key."""
    revoke_key(arguments.path, arguments.name)
    print(f"The key {arguments.name} is revoked.")
    if not read_keys(arguments.path):
        print(f"No key is left: {LOCKED}")


def parse_name(text: str) -> str:
    """Check the name of a key.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: take letters and digits, and . _ - after the first of them, at "
            "most 64 in all"
        )
    return text


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """Parse scopes with commas between them.

    Raises:
        ArgumentTypeError: one is none.
    """
    given = [scope.strip() for scope in text.split(",")]
    unknown = [scope for scope in given if scope not in SCOPES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no scope: give some of {','.join(SCOPES)}"
        )
    return tuple(scope for scope in SCOPES if scope in given)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=description)
        added.add_argument(
            "--config", type=Path, default=DEFAULT_CONFIG, help="of the service (serve_config.yaml)"
        )
        added.add_argument(
            "--path",
            type=lambda path: ROOT / Path(path).expanduser(),
            metavar="FILE",
            help="the file of keys; relative to this repository, like http.keys_path (what the "
            "config says)",
        )
        added.set_defaults(run=run)
        return added

    making = command("make", make, "make a key, and print it: it is shown only once")
    making.add_argument("name", type=parse_name, metavar="NAME", help="to know it by, as phone")
    making.add_argument(
        "--scopes",
        type=parse_scopes,
        required=True,
        help=f"what it allows: some of {','.join(SCOPES)}",
    )
    command("list", list_keys, "list the names and scopes of the keys")
    revoking = command("revoke", revoke, "make a key worth nothing")
    revoking.add_argument("name", metavar="NAME")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        if arguments.path is None:
            arguments.path = Path(read_settings(arguments.config).http.keys_path or "")
        arguments.run(arguments)
    except (StartupError, UnusableKeys) as error:
        print(error, file=sys.stderr)
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main())
