"""Addresses of tracking stores: which can be one, and how they are shown, without a password."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")

# User and password, whatever characters the password holds; and a password among the parameters of an address.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/@:\s]*:\S*|[^/\s]*)@")
_SECRET_PARAMETERS = re.compile(r"(?i)(?<=[?&])(\w*(?:password|token|secret)\w*=)[^&\s]+")


def impossible_store(uri: str) -> str | None:
    """Return why MLflow can never use a store at ``uri``, and what to do; None where it may, if it answers."""
    head, colon, _ = uri.partition(":")
    scheme = head.partition("+")[0] if colon or uri in _SCHEMES else ""
    remedy = "use sqlite:///FILE or a server's http address in MLFLOW_TRACKING_URI"
    if scheme in ("", "file"):
        return f"tracking store {without_credentials(uri)} is a folder of files, which MLflow no longer takes; {remedy}"
    if scheme in _SCHEMES or scheme in entry_points(group="mlflow.tracking_store").names:
        return None
    return f"tracking store {without_credentials(uri)} is of no kind that MLflow knows; {remedy}, or unset it"


def without_credentials(text: str) -> str:
    """Return ``text`` with ``user:password@`` cut out of every address in it, and the value of ``password=``."""
    return _SECRET_PARAMETERS.sub(r"\1", _CREDENTIALS.sub("", text))
