"""Presets: spaces that come with the package, one TOML file each."""

from __future__ import annotations

from importlib.resources import files

from search_spaces.problems import Problem, SpaceErrors, did_you_mean


def preset_names() -> tuple[str, ...]:
    """The names of all presets, from the smallest to the largest."""
    found = {entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")}
    ordered = [
        name for name in ("smoke", "laptop", "routing", "schedule", "matched", "tutorial", "published") if name in found
    ]
    return (*ordered, *sorted(found.difference(ordered)))


def preset_text(name: str) -> str:
    """The TOML text of a preset.

    Raises:
        SpaceErrors: there is no preset of this name.
    """
    known = preset_names()
    if name not in known:
        remedy = f"{did_you_mean(name, known)} Presets: {', '.join(known)}".strip()
        raise SpaceErrors(
            [Problem(where="preset", value=f'"{name}"', rule="is not a preset", remedy=remedy)],
            source="the command line",
        )
    return files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
