"""The short forms in which a space may be written, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def written_out(table: Mapping[str, Any]) -> dict[str, Any]:
    """A space's table with every short form replaced, and with the values that follow from others filled in.

    What is no short form stays as it is, right or wrong.
    """
    full = {key: SHORTHANDS[key](value) if _is_short(key, value) else value for key, value in table.items()}
    model, search = full.get("model"), full.get("search")
    if isinstance(model, Mapping) and "n_heads" in model:
        full["model"] = {"n_kv_heads": model["n_heads"], **model}  # no grouped-query attention
    if isinstance(full.get("strategies"), list | tuple):
        full |= _arms(full)
    if isinstance(search, Mapping):
        bounds = _ends_of_grid(full.get("rates")) if search.get("kind") == "optuna" else {}
        full["search"] = {"kind": "grid", **bounds, **search}
    full |= _budgets(full)
    if full.get("fitted") is True or ("fitted" in full and full.get("fit_memory_gib") is None):
        for key in ("fitted", "fit_memory_gib"):  # sweeps of before 0.2 hold them; arms are written as they were fitted
            full.pop(key, None)
    return full


def _arms(table: Mapping[str, Any]) -> dict[str, Any]:
    """The arms with key-value heads that follow their heads, and with the controls that ``controls = true`` is for.

    A control has the share of a GPU that its arm has.
    """
    model = table.get("model")
    shares_heads = not isinstance(model, Mapping) or model.get("n_kv_heads") == model.get("n_heads")
    arms = [_with_own_heads(arm) if shares_heads else arm for arm in table["strategies"]]
    if table.get("controls") is not True:
        return {"strategies": arms}
    controls = _controls(arms)
    found: dict[str, Any] = {"strategies": [*arms, *controls.values()]}
    resources = table.get("resources")
    shares = resources.get("gpu_per_trial") if isinstance(resources, Mapping) else None
    if isinstance(resources, Mapping) and isinstance(shares, Mapping):
        of_controls = {control["name"]: shares[arm] for arm, control in controls.items() if arm in shares}
        found["resources"] = {**resources, "gpu_per_trial": {**of_controls, **shares}}
    return found


def _with_own_heads(arm: Any) -> Any:
    model = arm.get("model") if isinstance(arm, Mapping) else None
    if not isinstance(model, Mapping) or "n_heads" not in model:
        return arm
    return {**arm, "model": {"n_kv_heads": model["n_heads"], **model}}


def _controls(arms: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """By name, a control of every arm that is shorter than the longest and has none: the arm on grouped windows."""
    if not all(isinstance(arm, Mapping) and type(arm.get("seq_len")) is int for arm in arms):
        return {}
    taken = [arm.get("name") for arm in arms]
    grouped = [_but_windows(arm) for arm in arms if arm.get("windows") == "grouped"]
    short = [arm for arm in arms if arm["seq_len"] < max(other["seq_len"] for other in arms)]
    return {
        str(arm.get("name")): {**arm, "name": name, "windows": "grouped", "role": "control"}
        for arm in short
        if arm.get("windows", "shuffled") == "shuffled"
        and (name := control_name(arm.get("name"))) not in taken
        and _but_windows(arm) not in grouped
    }


def _but_windows(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {"grad_accum_steps": 1, **{key: arm[key] for key in arm if key not in ("name", "windows", "role", "rates")}}


def control_name(arm: object) -> str:
    """The name of the control that ``controls = true`` adds for an arm."""
    return f"{arm}_grouped"


def _budgets(table: Mapping[str, Any]) -> dict[str, Any]:
    """One budget is a list of one; of several the largest is the one that the verdict is about."""
    one, several = table.get("budget_tokens"), table.get("budgets_tokens")
    if several is None and type(one) is int and one > 0:
        return {"budgets_tokens": [one]}
    if one is None and isinstance(several, list | tuple) and several and all(type(item) is int for item in several):
        return {"budget_tokens": max(several)}
    return {}


def _is_short(key: str, value: object) -> bool:
    return key in SHORTHANDS and isinstance(value, str)


def _corpus(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    if not rest:
        return {"kind": kind}
    if kind == "files":
        return {"kind": kind, "paths": [rest]}
    owner, _, tail = rest.partition("/")
    dataset, _, name = tail.partition("/")
    table = {"kind": kind, "dataset": f"{owner}/{dataset}" if dataset else owner}
    return {**table, "name": name} if name else table


def _tokenizer(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    key = {"bpe": "vocab_size", "directory": "path", "hub": "id"}.get(kind)
    if not rest or key is None:
        return {"kind": kind}
    return {"kind": kind, key: _whole_number_or_text(rest) if kind == "bpe" else rest}


def _whole_number_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _kind_alone(text: str) -> dict[str, Any]:
    return {"kind": text}


def _ends_of_grid(rates: object) -> dict[str, float]:
    """The bounds of an optuna search where it names none: those of the grid that it replaces."""
    grid = rates.get("lr") if isinstance(rates, Mapping) else None
    if not isinstance(grid, list | tuple) or not grid or not all(type(rate) in (int, float) for rate in grid):
        return {}
    return {"lr_low": min(grid), "lr_high": max(grid)}


SHORTHANDS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "early_stopping": _kind_alone,
    "search": _kind_alone,
}
