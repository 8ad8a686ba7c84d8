"""A cell that a ledger may hold."""

from search_spaces import Cell

CELL = Cell(
    cell_id="c0ffee",
    phase="explore",
    strategy="balanced",
    lr=0.02,
    adamw_lr=0.006,
    arrangement="shuffled",
    seed=1,
    budget_tokens=400,
)
