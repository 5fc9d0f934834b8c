"""`headway models`: what a running server serves, as a table."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests

from serving.commands.base import CommandFailed, Verb, say, without_credentials
from serving.commands.table import table

PATIENCE_SECONDS = 10
#: Head of the column, and key of the status; a column that no status has is left out.
COLUMNS = {
    "MODEL": "name",
    "REFERENCE": "uri",
    "ASPIRED": "aspired",
    "SERVING": "version",
    "STATE": "state",
    "SINCE": "since",
    "SIZE": "size_bytes",
    "DIGEST": "digest",
    "WHY": "problem",
}
UNITS = ("B", "kB", "MB", "GB", "TB")


def run(args: argparse.Namespace) -> int:
    """Shows all models; 0 if the server says that it is ready. Raises CommandFailed if no Headway answers there."""
    base = args.url.rstrip("/")
    names = _ask(base, "/v1/models").get("models", [])
    statuses = [_ask(base, f"/v1/models/{quote(str(name), safe='')}") for name in names]
    ready = _ask(base, "/ready").get("ready") is True
    if args.json:
        print(json.dumps({"ready": ready, "models": statuses}, indent=2, ensure_ascii=False))
    else:
        print(show(statuses))
    if not ready:
        say("headway: the server is not ready: a required model has no READY version, or it is being stopped")
    return 0 if ready else 1


def show(statuses: list[dict[str, Any]]) -> str:
    """The statuses as a table; what a status lacks is a dash."""
    columns = {head: key for head, key in COLUMNS.items() if any(status.get(key) for status in statuses)}
    columns = {"MODEL": "name", **columns}
    return table(list(columns), [[_cell(key, status.get(key)) for key in columns.values()] for status in statuses])


def _cell(key: str, value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if key == "size_bytes" and isinstance(value, int | float):
        return _size(float(value))
    if key == "since":
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S")
    return str(value)[:19] if key == "digest" else str(value)


def _size(number: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    unit = 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}"


def _ask(base: str, path: str) -> dict[str, Any]:
    """The JSON object at a path; a 503 has one too. Raises CommandFailed in a sentence."""
    shown = without_credentials(base)
    try:
        answer = requests.get(base + path, timeout=PATIENCE_SECONDS)
        body = answer.json()
    except requests.JSONDecodeError as error:
        raise CommandFailed(f"what answers at {shown}{path} is no Headway server: it sends no JSON") from error
    except requests.RequestException as error:
        raise CommandFailed(f"no server answers at {shown} ({type(error).__name__}); give --url") from error
    if answer.status_code not in (200, 503) or not isinstance(body, dict):
        raise CommandFailed(f"what answers at {shown}{path} is no Headway server: it answers {answer.status_code}")
    return body


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how to show what it says."""
    parser.add_argument("--url", default="http://localhost:8080", help="the server (http://localhost:8080)")
    parser.add_argument("--json", action="store_true", help="the server's own status of each model, as JSON")


VERB = Verb("models", "show what a running server serves, and why", add_flags, run)
