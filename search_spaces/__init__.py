"""What is asked: a space of strategies, learning rates and seeds, parsed from TOML and expanded into cells.

Nothing here imports more than the standard library and pydantic.
"""

from search_spaces.cells import (
    Arrangement,
    Cell,
    Identity,
    Rate,
    cell_at,
    confirm_cells,
    explore_cells,
    explore_cells_at,
    grid_of,
    planned_cells,
    rates_at,
    view_cells,
)
from search_spaces.corpus_facts import CorpusFacts, check_against_corpus, corpus_warnings
from search_spaces.extension import extended_space, frozen_differences, widened_rate
from search_spaces.fitting import fitted_space, with_shapes
from search_spaces.presets import preset_names, preset_text
from search_spaces.problems import Problem, SpaceErrors, did_you_mean
from search_spaces.pydantic_errors import checked_strategy
from search_spaces.reading import load_space, parse_space, template_text, with_overrides
from search_spaces.scaling import budget_unit, scaled_space
from search_spaces.sections import ADAMW_RATES, ARM_TABLES, SHAPE, EarlyStopping, OptunaSearch, Strategy
from search_spaces.space import MOST_BUDGET_TOKENS, Space

__all__ = [
    "ADAMW_RATES",
    "ARM_TABLES",
    "MOST_BUDGET_TOKENS",
    "SHAPE",
    "Arrangement",
    "Cell",
    "CorpusFacts",
    "EarlyStopping",
    "Identity",
    "OptunaSearch",
    "Problem",
    "Rate",
    "Space",
    "SpaceErrors",
    "Strategy",
    "budget_unit",
    "cell_at",
    "check_against_corpus",
    "checked_strategy",
    "confirm_cells",
    "corpus_warnings",
    "did_you_mean",
    "explore_cells",
    "explore_cells_at",
    "extended_space",
    "fitted_space",
    "frozen_differences",
    "grid_of",
    "load_space",
    "parse_space",
    "planned_cells",
    "preset_names",
    "preset_text",
    "rates_at",
    "scaled_space",
    "template_text",
    "view_cells",
    "widened_rate",
    "with_overrides",
    "with_shapes",
]
