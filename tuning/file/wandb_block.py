"""The `wandb` block of a sweep file, and which projects W&B takes."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from lexray.storage.config_file import FileModel

REFUSED_IN_PROJECTS = "/\\#?%:"
"""Characters that W&B refuses in a project's name; the test holds them against W&B's own check."""
MAX_PROJECT_CHARACTERS = 128


class WandbBlock(FileModel):
    """The view in W&B: one run per dictionary, grouped by sweep. It never changes or stops a sweep."""

    project: str = "lexray"
    """Project of the default entity, or ENTITY/PROJECT."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where an API key is configured, else offline."""

    @field_validator("project")
    @classmethod
    def _accepted(cls, project: str) -> str:
        split_project(project)
        return project


def split_project(project: str) -> tuple[str | None, str]:
    """Return the entity (None: the user's default one) and the name. Raises ValueError for what W&B would refuse."""
    entity, slash, name = project.rpartition("/")
    for part in (entity, name) if slash else (name,):
        if not part.strip() or part != part.strip() or not part.isprintable():
            raise ValueError(f"{project!r} is neither PROJECT nor ENTITY/PROJECT")
        if found := [character for character in REFUSED_IN_PROJECTS if character in part]:
            raise ValueError(
                f"{project!r} contains {found[0]!r}, which W&B refuses; give PROJECT or ENTITY/PROJECT without any of "
                f"{' '.join(REFUSED_IN_PROJECTS[1:])}"
            )
        if len(part) > MAX_PROJECT_CHARACTERS:
            raise ValueError(f"{len(part)} characters, W&B takes at most {MAX_PROJECT_CHARACTERS}")
    return entity or None, name
