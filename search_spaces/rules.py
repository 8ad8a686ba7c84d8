"""Which rule reads which values of a space. A rule runs when all that it reads is sound by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import arm_rules, section_rules
from search_spaces.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``check`` is called with the values at the dotted paths of ``reads``, in their order."""

    check: Callable[..., Iterator[Problem]]
    reads: tuple[str, ...]


def broken_rules(values: Mapping[str, Any]) -> list[Problem]:
    """Every breach of a rule whose values are all among ``values`` (dotted path to value)."""
    known = dict(values)
    if {"search", "rates.lr", "rates.adamw_grid"} <= known.keys():
        n_adamw = len(known["rates.adamw_grid"] or (None,))
        known["n_candidates"] = arm_rules.candidates_per_arm(known["search"], len(known["rates.lr"]), n_adamw)
    return [
        problem
        for rule in RULES
        if all(path in known for path in rule.reads)
        for problem in rule.check(*(known[path] for path in rule.reads))
    ]


_FIT = ("fit_memory_gib", "fitted")
_ADAMW = ("rates.adamw_ratio", "rates.adamw_fixed", "rates.adamw_grid")
_KEEP = ("early_stopping.kind", "early_stopping.keep")

RULES = (
    Rule(check=arm_rules.budget_is_whole, reads=("budget_tokens", "strategies", *_FIT)),
    Rule(check=arm_rules.rungs_are_whole, reads=("rungs_tokens", "strategies", *_FIT)),
    Rule(check=arm_rules.rungs_below_budget, reads=("rungs_tokens", "budget_tokens")),
    Rule(check=arm_rules.rungs_increase, reads=("rungs_tokens",)),
    Rule(check=arm_rules.controls_have_a_subject, reads=("controls", "strategies")),
    Rule(check=section_rules.fitting_is_asked_for, reads=_FIT),
    Rule(check=arm_rules.keep_fits_rungs, reads=(*_KEEP, "rungs_tokens")),
    Rule(check=arm_rules.keep_never_grows, reads=(*_KEEP, "n_candidates")),
    Rule(check=section_rules.search_bounds_are_ordered, reads=("search",)),
    Rule(check=arm_rules.two_arms, reads=("strategies",)),
    Rule(check=arm_rules.distinct_arms, reads=("strategies", *_FIT)),
    Rule(check=arm_rules.lengths_nest, reads=("strategies",)),
    Rule(check=section_rules.grid_has_rates, reads=("search", "rates.lr")),
    Rule(check=section_rules.rates_differ, reads=("rates.lr", "rates.adamw_grid")),
    Rule(check=section_rules.one_adamw_choice, reads=("search", *_ADAMW)),
    Rule(check=section_rules.grid_has_a_ratio, reads=("search", "rates.lr", "rates.max_widenings")),
    Rule(check=section_rules.experts_suffice, reads=("model.top_k", "model.n_experts")),
    Rule(check=section_rules.heads_divide_width, reads=("model.d_model", "model.n_heads")),
    Rule(check=section_rules.groups_divide_heads, reads=("model.n_heads", "model.n_kv_heads")),
    Rule(check=section_rules.corpus_is_named, reads=("corpus.kind", "corpus.paths", "corpus.dataset")),
    Rule(check=section_rules.train_split_remains, reads=("corpus.validation_share", "corpus.test_share")),
    Rule(
        check=section_rules.tokenizer_is_named,
        reads=("tokenizer.kind", "tokenizer.vocab_size", "tokenizer.path", "tokenizer.id"),
    ),
    Rule(check=section_rules.shares_fit_budget, reads=("schedule.warmup_share", "schedule.decay_share")),
    Rule(check=arm_rules.gpu_table_names_arms, reads=("resources.gpu_per_trial", "strategies")),
)
