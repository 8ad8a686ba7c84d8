"""Sweeps of earlier versions, in which a control was a phase of the arm that it explains; today it is an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.shorthand import control_name, written_out

CONTROLS_ARE_ARMS = "controls_are_arms"
"""The key of a page of the plan that no earlier version wrote."""


def has_earlier_controls(space: Mapping[str, Any]) -> bool:
    """Whether a resolved space is one in which ``controls = true`` stands for arms that it does not name."""
    return space.get("controls") is True


def with_control_arms(beginning: dict[str, Any]) -> dict[str, Any]:
    """A beginning with such controls as arms; any other as it is."""
    if not has_earlier_controls(beginning["space"]):
        return beginning
    space = written_out(beginning["space"])
    del space["controls"]
    known = {arm["name"] for arm in beginning["strategies"]}
    added = [arm for arm in space["strategies"] if arm["name"] not in known]
    return {**beginning, "space": space, "strategies": [*beginning["strategies"], *added]}


def with_cells_of_control_arms(page: dict[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """A page of such a sweep's plan that an earlier version wrote.

    The cells on grouped windows have the names of the control arms, and the arms of an extension have controls.
    """
    today = {**page, "cells": [_of_control_arm(cell) for cell in page["cells"]]}
    added = (page["extension"] or {}).get("strategies")
    if added:
        known = [*space["strategies"], *added]
        with_controls = written_out({"strategies": known, "controls": True})["strategies"]
        controls = [
            arm for arm in with_controls[len(known) :] if arm["name"] in {control_name(a["name"]) for a in added}
        ]
        today["extension"] = {**page["extension"], "strategies": [*added, *controls]}
    return today


def _of_control_arm(cell: Mapping[str, Any]) -> dict[str, Any]:
    if cell["arrangement"] == "shuffled":
        return dict(cell)
    was_judged = {"phase": "confirm", "reason": "confirm"} if cell["phase"] == "control" else {}
    return {**cell, "strategy": control_name(cell["strategy"]), **was_judged}
