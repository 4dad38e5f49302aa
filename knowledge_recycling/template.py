"""`kr new`: a recipe with every key of its data source and the ones most often changed."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo

from knowledge_recycling.config import kind_module
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.storage import write_text

HEAD = """# A run of knowledge_recycling. Keys left out have defaults that suit the set.
# kr check {name}       shows the set
# kr run {name}         runs everything; the same command goes on after a stop

# seed = 0
# further_teachers = 2         # others that label with the teacher; 0: it labels alone
"""

TAIL = """
# [teacher.classifier]
# kind = "resnet"            # or "timm", with name = "resnet18"
# width = 16

# [teacher.training]
# augment = ["shift", "cutout", "hflip"]
# balance = "none"           # or "loss", "sampling"

# [student.synthesis]
# set_size = 1.0             # synthetic images per epoch, times the real ones
# prior = "balanced"         # or "real"

# [tuning]
# trials = 4                 # 0 keeps the default knobs
"""


def write_recipe(path: Path, kind: str) -> None:
    """Writes a commented recipe for a kind of data source.

    Raises:
        RecipeError: The file exists, or the kind is unknown.
    """
    if path.exists():
        raise RecipeError(
            "the file exists", where=path, next_step="choose another name, or remove the file"
        )
    config: type[SourceConfig] = kind_module("data.sources", kind).Config
    keys = [f'kind = "{kind}"', *(_line(*item) for item in _own_first(config) if item[0] != "kind")]
    write_text(path, HEAD.format(name=path) + "\n[data]\n" + "\n".join(keys) + "\n" + TAIL)


def _own_first(config: type[SourceConfig]) -> list[tuple[str, FieldInfo]]:
    shared = SourceConfig.model_fields
    return sorted(config.model_fields.items(), key=lambda item: item[0] in shared)


def _line(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    if field.is_required():
        return f'{name} = "..."  # {meaning}'
    return f"# {name} = {_toml(field.default)}  # {meaning}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "..." if value is None else repr(value).replace("'", '"')
