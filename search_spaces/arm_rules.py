"""The rules of arms: what sets them apart, and what none of them can have for itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from search_spaces.budget_rules import Problems
from search_spaces.problems import Problem, did_you_mean, nearest_divisors, problem_at
from search_spaces.sections import ADAMW_RATES, ARM_TABLES, SHAPE
from search_spaces.shorthand import control_name

Arm = Mapping[str, Any]
"""The sound values of an arm, with its place as ``--set`` addresses it under ``where``."""
Arms = Sequence[Arm]
_SHAPE_IN_WORDS = "shape {micro_batch_size} x {seq_len}, accumulate {grad_accum_steps}"


def has_shape(arm: Arm) -> bool:
    """Whether the numbers of an arm's shape are all sound."""
    return all(key in arm for key in SHAPE)


def values_of_its_own(arm: Arm) -> dict[str, Any]:
    """An arm's values by the path of the common ones that they replace; AdamW's rate is decided in one way."""
    own = {f"{table}.{key}": value for table in ARM_TABLES for key, value in arm.get(table, {}).items()}
    alternatives = [f"rates.{key}" for key in ADAMW_RATES]
    return {**dict.fromkeys(alternatives), **own} if any(path in own for path in alternatives) else own


def two_arms(arms: Arms) -> Problems:
    """A comparison needs two, and a control takes no part in it."""
    compared = [arm for arm in arms if arm.get("role") != "control"]
    if len(compared) < 2:
        yield Problem(
            where="strategies",
            value=f"{len(compared)} given",
            rule="must hold at least two arms, since a comparison needs two",
            remedy="add a [[strategies]] table",
        )


def names_differ(arms: Arms) -> Problems:
    """An arm is found by its name."""
    for name, first, repeated in _repeated((arm["name"], arm) for arm in arms if "name" in arm):
        rule = f"is already the name of {first['where']}"
        yield problem_at(f"{repeated['where']}.name", name, rule, "give every arm its own name")


def arms_differ(arms: Arms, tables: Mapping[str, Any]) -> Problems:
    """Arms that differ in nothing that decides a number would be the same cells.

    AdamW's rate sets arms apart where both have a ratio, or both a fixed one: a ratio and a grid may meet at a rate.
    """
    for _, first, repeated in _repeated((_settings(arm, tables, "windows"), arm) for arm in arms if has_shape(arm)):
        rates = [_adamw_rate(arm, tables) for arm in (first, repeated)]
        if rates[0] != rates[1] and rates[0][0] == rates[1][0] != "rates.adamw_grid":
            continue
        same = _SHAPE_IN_WORDS.format_map(repeated)
        if any(values_of_its_own(arm) for arm in (first, repeated)):
            same += " and the same model, optimizer, schedule and windows"
        rule = f"has the same {same} as {first['where']}, so both would be the same cells"
        yield problem_at(repeated["where"], None, rule, "change one of them or leave it out")


def _settings(arm: Arm, tables: Mapping[str, Any], *more: str) -> str:
    """What decides an arm's numbers beside its rates and windows; a value that is the common one sets nothing apart."""
    own = {path: value for path, value in values_of_its_own(arm).items() if not path.startswith("rates.")}
    changed = sorted((path, value) for path, value in own.items() if tables.get(path) != value)
    return f"{_SHAPE_IN_WORDS.format_map(arm)} {changed} {[arm.get(key) for key in more]}"


def _adamw_rate(arm: Arm, tables: Mapping[str, Any]) -> tuple[str, Any]:
    """The path that decides AdamW's rate in an arm, and its value."""
    as_arm = {**tables, **values_of_its_own(arm)}
    paths = [f"rates.{key}" for key in ADAMW_RATES]
    return next(((path, as_arm[path]) for path in paths if as_arm.get(path) is not None), ("", None))


def _repeated(keyed: Iterable[tuple[str, Arm]]) -> Iterator[tuple[str, Arm, Arm]]:
    """Every key that occurs again, with the first arm that has it and the one that repeats it."""
    groups: dict[str, list[Arm]] = defaultdict(list)
    for key, arm in keyed:
        groups[key].append(arm)
    return ((key, arms[0], repeated) for key, arms in groups.items() for repeated in arms[1:])


def lengths_nest(arms: Arms) -> Problems:
    """Every arm's windows are cut from blocks of the longest arm's length."""
    longest = max((arm["seq_len"] for arm in arms if "seq_len" in arm), default=0)
    for arm in arms:
        if "seq_len" in arm and longest % arm["seq_len"]:
            rule = f"must divide the longest seq_len ({longest}), from whose blocks every arm's windows are cut"
            remedy = f"choose {nearest_divisors(arm['seq_len'], longest)}"
            yield problem_at(f"{arm['where']}.seq_len", arm["seq_len"], rule, remedy)


def controls_are_wanted(controls: bool, arms: Arms) -> Problems:
    """``controls = true`` adds a control of every arm shorter than the longest."""
    names = [arm.get("name") for arm in arms if arm.get("role") != "control"]
    for arm in arms:
        control = control_name(arm.get("name"))
        if controls and arm.get("role") != "control" and control in names:
            rule = f"leaves no name for its control: {control} is another arm"
            yield problem_at(f"{arm['where']}.name", arm.get("name"), rule, "rename one of the two")
    lengths = {arm.get("seq_len") for arm in arms}
    if controls and None not in lengths and len(arms) > 1 and len(lengths) == 1:
        rule = "needs an arm shorter than the longest, and all arms have the same seq_len"
        yield problem_at("controls", controls, rule, "set controls = false")


def windows_can_be_grouped(arms: Arms) -> Problems:
    """Windows as long as the blocks that they are cut from are grouped anyhow."""
    longest = max((arm["seq_len"] for arm in arms if "seq_len" in arm), default=0)
    for arm in arms:
        if arm.get("windows") == "grouped" and arm.get("seq_len") == longest:
            rule = f"changes nothing for windows as long as the longest arm's ({longest} tokens)"
            yield problem_at(f"{arm['where']}.windows", "grouped", rule, "leave it out, or shorten the arm")


def controls_have_a_subject(arms: Arms, tables: Mapping[str, Any]) -> Problems:
    """A control explains the lead of the arm that differs from it in its windows alone."""
    for arm in arms:
        if arm.get("role") != "control" or not has_shape(arm):
            continue
        where = f"{arm['where']}.role"
        if arm.get("windows") != "grouped":
            rule = 'is for an arm with windows = "grouped"'
            yield problem_at(where, "control", rule, 'add windows = "grouped", or leave role out')
        elif not any(_is_explained_by(other, arm, tables) for other in arms):
            rule = "needs the arm that it explains: one that differs from it in windows alone"
            yield problem_at(where, "control", rule, 'add that arm, with windows = "shuffled", or leave role out')


def _is_explained_by(arm: Arm, control: Arm, tables: Mapping[str, Any]) -> bool:
    """Whether an arm is a contender that differs from ``control`` in its windows alone."""
    if arm.get("role") == "control" or arm.get("windows") == "grouped" or not has_shape(arm):
        return False
    if _adamw_rate(arm, tables) != _adamw_rate(control, tables):
        return False
    return _settings(arm, tables) == _settings(control, tables)


def rates_of_its_own_are_a_grid(kind: str, arms: Arms) -> Problems:
    """With optuna every arm draws from the same range."""
    for arm in arms:
        if kind == "optuna" and "lr" in arm.get("rates", {}):
            rule = "is a grid, and search.kind is optuna, which draws every arm's rates from one range"
            remedy = 'leave it out, or set search.kind = "grid"'
            yield problem_at(f"{arm['where']}.rates.lr", arm["rates"]["lr"], rule, remedy)


def muon_is_used(kind: str, arms: Arms) -> Problems:
    """Values of Muon say nothing about an arm that AdamW trains."""
    for arm in arms:
        own = arm.get("optimizer", {})
        if own.get("kind", kind) == "adamw":
            for key, instead in (("muon_momentum", "adamw_betas"), ("muon_weight_decay", "adamw_weight_decay")):
                if key in own:
                    rule, remedy = 'has no meaning with optimizer.kind = "adamw"', f"leave it out, or set {instead}"
                    yield problem_at(f"{arm['where']}.optimizer.{key}", own[key], rule, remedy)


def gpu_table_names_arms(gpu_per_trial: object, arms: Arms) -> Problems:
    """A table of GPU shares has one entry per arm."""
    if not isinstance(gpu_per_trial, dict):
        return
    names = [arm["name"] for arm in arms if "name" in arm]
    for name, share in gpu_per_trial.items():
        if name not in names:
            remedy = did_you_mean(name, names) or f"the arms are {', '.join(names)}"
            yield problem_at(f"resources.gpu_per_trial.{name}", share, "names no arm", remedy)
    for name in names:
        if name not in gpu_per_trial:
            where = f"resources.gpu_per_trial.{name}"
            yield problem_at(where, None, "is missing from the table", "give every arm its share")
