"""Where a checkpoint is: a folder, or a name on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """Where a checkpoint is; all but the first as for transformers' ``from_pretrained``."""

    name_or_path: str | os.PathLike[str]
    revision: str = "main"
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    subfolder: str = ""

    def options(self) -> dict[str, Any]:
        """All but the first, by name."""
        fields = self._asdict()
        del fields["name_or_path"]
        return fields

    def checked(self) -> Source:
        """This source; raises FileNotFoundError where it looks like a folder and is none."""
        name, path = os.fspath(self.name_or_path), Path(self.name_or_path)
        local = (
            not isinstance(self.name_or_path, str)
            or name.startswith((".", "~", "/"))
            or name.endswith("/")
            or "\\" in name
            or name.count("/") > 1
            or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
        )
        if local and not path.exists():
            raise FileNotFoundError(f"{name}: expected a folder, found none")
        return self
