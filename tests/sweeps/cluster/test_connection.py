"""How a cluster is joined: with the token that the user gives, and never with one that lies about."""

from __future__ import annotations

import os

import pytest

from sweeps.cluster.connection import choose_auth_mode


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "disabled"),
        ({"RAY_AUTH_TOKEN": "secret"}, "token"),
        ({"RAY_AUTH_MODE": "token"}, "token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}, "disabled"),
    ],
)
def test_authentication_is_off_only_where_the_user_gives_neither_a_mode_nor_a_token(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], mode: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        if name in given:
            monkeypatch.setenv(name, given[name])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    choose_auth_mode()
    assert os.environ["RAY_AUTH_MODE"] == mode
