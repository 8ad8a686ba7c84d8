"""What Muon and AdamW have in common: one group of parameters with its rates, a state of each, and their checkpoint.

``torch.optim.Optimizer`` imports torch's compiler as soon as one is made: a second in every process, and nothing is
compiled here. State is kept and saved in its layout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


class Optimizer:
    """Parameters with their state; a subclass has the step.

    ``param_groups`` is a list of one group: the parameters as ``params``, and the hyperparameters by name.
    """

    def __init__(self, params: Iterable[Tensor], hyperparameters: Mapping[str, Any]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), **hyperparameters}]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @property
    def params(self) -> list[Tensor]:
        """Every parameter, in a fixed order."""
        found: list[Tensor] = self.param_groups[0]["params"]
        return found

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state of each parameter by its place; rates and decay are the config's, and stay there."""
        return {"state": {place: self.state[p] for place, p in enumerate(self.params) if p in self.state}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave, here or in ``torch.optim``, on the parameters' devices."""
        params = self.params
        self.state.clear()
        for place, state in saved["state"].items():
            self.state[params[place]] = {name: value.to(params[place].device) for name, value in state.items()}
