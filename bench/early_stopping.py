"""What early stopping costs and saves: full learning curves replayed under every rule, in many launch orders.

    python bench/early_stopping.py [--curves FILE]

Regret is the final loss of the chosen rate less the best final loss of its arm and seed, in nats per token; tokens are
a share of training every cell to its budget. An arm of which no cell finished is starved: its choice is the rate that
got furthest. The recorded curves are those of laptop's whole grid, three seeds, each seed replayed as a sweep of its
own; the simulated ones have a known truth. Writes ``bench/early_stopping.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import numpy as np  # noqa: E402

from bench.curves import RECORDED, TRUTHS, Case, Curve, Truth, by_case, read_curves, simulate  # noqa: E402
from bench.replay import Launch, launches  # noqa: E402
from bench.results import write_text  # noqa: E402
from bench.stopping_rules import Rule, rules  # noqa: E402

OUT = Path(__file__).with_name("early_stopping.json")
MOST_TOKENS, MOST_REGRET_NATS = 0.70, 0.003
SIMULATED_SWEEPS = 20
SIMULATED_ORDERS = 8


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One sweep replayed in one launch: tokens as a share of the full grid's, and per arm and seed what was chosen."""

    sweep: int
    launch: Launch
    tokens_share: float
    idle: float
    regrets: Mapping[Case, float]
    chosen: Mapping[Case, float]
    starved: tuple[Case, ...]


def watch(rule: Rule, sweeps: Sequence[Sequence[Curve]], *, orders: int) -> list[Seen]:
    """Replay every sweep in every launch; arms of which every rate diverges have no best rate and are left out."""
    seen = []
    for number, curves in enumerate(sweeps):
        finals = {case: [c.final for c in rivals if math.isfinite(c.final)] for case, rivals in by_case(curves).items()}
        full = sum(curve.diverged_at or max(curve.losses) for curve in curves)
        for launch in launches(curves, np.random.default_rng(number), random=orders if rule.ordered else 0):
            found = rule.run(curves, launch)
            # a starved arm's choice may be a rate that diverges when it is trained on: as bad as its worst
            losses = {case: min(found.chosen[case].final, max(known)) for case, known in finals.items() if known}
            seen.append(
                Seen(
                    sweep=number,
                    launch=launch,
                    tokens_share=found.tokens / full,
                    idle=found.idle,
                    regrets={case: loss - min(finals[case]) for case, loss in losses.items()},
                    chosen={case: found.chosen[case].lr for case in losses},
                    starved=tuple(case for case in found.starved if case in losses),
                )
            )
    return seen


def row(rule: Rule, seen: Sequence[Seen]) -> dict[str, Any]:
    """A rule's row: what it spent and lost, over sweeps, arms and launches."""
    regrets = [regret for each in seen for regret in each.regrets.values()]
    by_launch: dict[tuple[str, int], list[float]] = defaultdict(list)
    choices: dict[tuple[int, Case], set[float]] = defaultdict(set)
    for each in seen:
        by_launch[each.launch.name, each.launch.workers] += each.regrets.values()
        for case, lr in each.chosen.items():
            choices[each.sweep, case].add(lr)
    return {
        "rule": rule.name,
        "rungs": [str(rung) for rung in rule.rungs],
        "keep": list(rule.keep),
        "tokens_share": round(fmean(each.tokens_share for each in seen), 4),
        "regret_mean_nats": round(fmean(regrets), 5),
        "regret_worst_launch_nats": round(max(map(fmean, by_launch.values())), 5),
        "regret_max_nats": round(max(regrets), 5),
        "best_kept_share": round(fmean(regret == 0.0 for regret in regrets), 4),
        "order_matters_share": round(fmean(len(rates) > 1 for rates in choices.values()), 4),
        "starved_share": round(sum(len(each.starved) for each in seen) / len(regrets), 4),
        "idle_share_of_2_workers": (
            round(fmean(each.idle for each in seen if each.launch.workers == 2), 3) if rule.ordered else None
        ),
    }


def held_out(seen_by_rule: Mapping[Rule, Sequence[Seen]]) -> list[dict[str, Any]]:
    """Each family's rungs, counts and constants chosen on all seeds but one and judged on that one, in turn.

    Chosen is the lowest mean regret within the tokens that are allowed, then the fewest tokens: no rule is marked on
    what it was fitted to, however many constants it has.
    """
    families: dict[str, list[dict[int, tuple[float, float]]]] = defaultdict(list)
    for rule, seen in seen_by_rule.items():
        by_sweep: dict[int, list[Seen]] = defaultdict(list)
        for each in seen:
            by_sweep[each.sweep].append(each)
        families[rule.kind].append({sweep: _means(found) for sweep, found in by_sweep.items()})
    rows = []
    for kind, members in families.items():
        marks = []
        for out in members[0]:
            others = [sweep for sweep in members[0] if sweep != out]
            if not others:
                continue
            fitted = [tuple(map(fmean, zip(*(member[sweep] for sweep in others), strict=True))) for member in members]
            allowed = [(marks, place) for place, marks in enumerate(fitted) if marks[1] <= MOST_TOKENS]
            if allowed:
                marks.append(members[min(allowed)[1]][out])
        if marks:
            regret, tokens = (fmean(values) for values in zip(*marks, strict=True))
            rows.append({"rule": kind, "settings_tried": len(members), "tokens_share": round(tokens, 4),
                         "regret_mean_nats": round(regret, 5)})  # fmt: skip
    return sorted(rows, key=lambda each: (each["regret_mean_nats"], each["tokens_share"]))


def mark_frontier(rows: Sequence[dict[str, Any]]) -> None:
    """Say of each row whether none beats it in both tokens and mean regret."""
    best = math.inf
    for each in sorted(rows, key=_by_tokens):
        each["on_frontier"] = each["regret_mean_nats"] < best
        best = min(best, each["regret_mean_nats"])


def main() -> None:
    """Replay recorded and simulated curves, print the table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=RECORDED)
    parser.add_argument("--orders", type=int, default=50, help="random launch orders beside worst and best first")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    started_s = time.perf_counter()
    recorded = _sweeps(read_curves(options.curves))
    seen = {rule: watch(rule, recorded, orders=options.orders) for rule in _rules_for(recorded)}
    rows = [row(rule, found) for rule, found in seen.items()]
    mark_frontier(rows)
    own = [rule for rule in seen if rule.is_laptops or rule.kind.startswith(("none", "stopping", "promotion"))]
    simulated = {truth: _simulated(truth) for truth in TRUTHS}
    found = {
        "curves": options.curves.name,
        "cases": sum(len(by_case(curves)) for curves in recorded),
        "launches": 2 * (options.orders + 2),
        "targets": {"tokens_share": MOST_TOKENS, "regret_mean_nats": MOST_REGRET_NATS},
        "rows": sorted(rows, key=_by_tokens),
        "held_out": held_out(seen),
        "simulated": {
            truth: [row(rule, watch(rule, sweeps, orders=SIMULATED_ORDERS)) for rule in own]
            for truth, sweeps in simulated.items()
        },
    }
    write_text(options.out, _a_row_a_line(found))
    show(found)
    print(f"written to {options.out.name} after {time.perf_counter() - started_s:.0f} s")


def show(found: Mapping[str, Any]) -> None:
    """Print the rows that launches can disturb and those on the frontier, which are marked; the file has them all."""
    print(f"{found['cases']} cases of {found['curves']}, {found['launches']} launches; * none beats it in both")
    for each in found["rows"]:
        if each["on_frontier"] or each["idle_share_of_2_workers"] is not None:
            print(("* " if each["on_frontier"] else "  ") + _line(each))
    print("settings chosen on all seeds but one, judged on that one:")
    for each in found["held_out"]:
        print(f"  {each['rule']:<36} {each['tokens_share']:.3f} tokens, regret {each['regret_mean_nats']:.4f}")
    for truth, rows in found["simulated"].items():
        print(f"simulated, {truth}:")
        for each in rows:
            print("  " + _line(each))


def _by_tokens(each: Mapping[str, Any]) -> tuple[float, float]:
    return each["tokens_share"], each["regret_mean_nats"]


def _a_row_a_line(found: Mapping[str, Any]) -> str:
    """The same JSON with lists of rows kept readable."""
    return re.sub(r"\n {3,}|\n {2}(?=\})", " ", json.dumps(found, indent=1)) + "\n"


def _line(each: Mapping[str, Any]) -> str:
    keep = ",".join(f"{count:g}" for count in each["keep"])
    return (
        f"{each['rule']:<36} {' '.join(each['rungs']):<12} keep {keep:<12} {each['tokens_share']:.3f} tokens, "
        f"regret {each['regret_mean_nats']:.4f} (worst launch {each['regret_worst_launch_nats']:.4f}), "
        f"best kept {each['best_kept_share']:.2f}, order matters {each['order_matters_share']:.2f}, "
        f"starved {each['starved_share']:.2f}"
    )


def _sweeps(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Each seed is a sweep of its own."""
    return [[curve for curve in curves if curve.seed == seed] for seed in sorted({curve.seed for curve in curves})]


def _simulated(truth: Truth) -> list[tuple[Curve, ...]]:
    return [simulate(truth, np.random.default_rng([TRUTHS.index(truth), n])).curves for n in range(SIMULATED_SWEEPS)]


def _rules_for(sweeps: Sequence[Sequence[Curve]]) -> list[Rule]:
    curves = sweeps[0]
    return list(rules(max(curves[0].losses), len({curve.lr for curve in curves})))


def _means(seen: Sequence[Seen]) -> tuple[float, float]:
    """Mean regret in nats, and tokens as a share."""
    return fmean(regret for each in seen for regret in each.regrets.values()), fmean(each.tokens_share for each in seen)


if __name__ == "__main__":
    main()
