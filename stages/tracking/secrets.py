"""Credentials come from the environment and go nowhere else: not into a message, and not into an argument."""

from __future__ import annotations

import base64
import os
import re
from urllib.parse import unquote, urlsplit

_IN_A_URI = re.compile(r"(?<=://)[^/?#\s]+@")
_IN_A_QUERY = re.compile(r"(?i)((?:password|passwd|token|secret)=)[^&\s'\")]+")
_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PGPASSWORD",
)
_SHORTEST = 4
"""Characters of a password that is looked for in messages; a shorter one is part of any word."""


def hidden(text: str) -> str:
    """A message with `***` for users and passwords of addresses, and for the values of the variables that hold some."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"):
        for user in _IN_A_URI.findall(os.environ.get(name, "")):
            password = user[:-1].partition(":")[2]
            text = _without(_without(text, password), unquote(password))
    for name in _VARIABLES:
        text = _without(text, os.environ.get(name, ""))
    return _IN_A_QUERY.sub(r"\1***", _IN_A_URI.sub("***@", text))


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """A repository's address for git's arguments, which all on the machine can see, and variables with the rest.

    Args:
        url: or a path. User and password of http and https go into a header; other protocols know no passwords there.
    """
    parts = urlsplit(url) if re.match("https?://", url) else None
    if parts is None or parts.password is None:
        return url, {}
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    user = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
    header = f"Authorization: Basic {base64.b64encode(user.encode()).decode()}"
    number = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
    return address, {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": f"http.{address}.extraHeader",
        f"GIT_CONFIG_VALUE_{number}": header,
    }


def _without(text: str, secret: str) -> str:
    return text.replace(secret, "***") if len(secret) >= _SHORTEST else text


def refusal(text: str) -> str | None:
    """What to do about an error with which a server refuses a person; None if it is another one."""
    if "error code 401" in text:
        return "refuses: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of an account there"
    if "error code 403" in text:
        return "refuses: this account may not write there; ask its administrator"
    return None
