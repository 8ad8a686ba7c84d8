"""What is asked: a space of strategies, learning rates and seeds, parsed from TOML and expanded into cells.

Nothing here imports more than the standard library and pydantic.
"""

from search_spaces.cells import (
    Arrangement,
    Cell,
    Identity,
    Phase,
    Rate,
    cell_at,
    confirm_cells,
    confirm_seeds,
    control_arms,
    control_cells,
    deciding_values,
    explore_cells,
    explore_cells_at,
    explore_seeds,
    explored_arms,
    planned_cells,
    rates_at,
    time_cells,
    whole_steps,
)
from search_spaces.corpus_facts import CorpusFacts, check_against_corpus, corpus_warnings
from search_spaces.extension import extended_space, frozen_differences, widened_rate
from search_spaces.fitting import fitted_space
from search_spaces.presets import preset_names, preset_text
from search_spaces.problems import Problem, SpaceErrors, did_you_mean
from search_spaces.reading import load_space, parse_space, template_text, with_overrides
from search_spaces.sections import (
    Corpus,
    EarlyStopping,
    Exam,
    GridSearch,
    Model,
    Optimizer,
    OptunaSearch,
    Rates,
    Resources,
    Schedule,
    Seeds,
    Strategy,
    Tokenizer,
    VerdictRules,
)
from search_spaces.space import Space
from search_spaces.validation import checked_strategy

__all__ = [
    "Arrangement",
    "Cell",
    "Corpus",
    "CorpusFacts",
    "EarlyStopping",
    "Exam",
    "GridSearch",
    "Identity",
    "Model",
    "Optimizer",
    "OptunaSearch",
    "Phase",
    "Problem",
    "Rate",
    "Rates",
    "Resources",
    "Schedule",
    "Seeds",
    "Space",
    "SpaceErrors",
    "Strategy",
    "Tokenizer",
    "VerdictRules",
    "cell_at",
    "check_against_corpus",
    "checked_strategy",
    "confirm_cells",
    "confirm_seeds",
    "control_arms",
    "control_cells",
    "corpus_warnings",
    "deciding_values",
    "did_you_mean",
    "explore_cells",
    "explore_cells_at",
    "explore_seeds",
    "explored_arms",
    "extended_space",
    "fitted_space",
    "frozen_differences",
    "load_space",
    "parse_space",
    "planned_cells",
    "preset_names",
    "preset_text",
    "rates_at",
    "template_text",
    "time_cells",
    "whole_steps",
    "widened_rate",
    "with_overrides",
]
