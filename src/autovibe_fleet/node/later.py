# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that asyncio imports but fleetd may never use: they are loaded when one of their names is first asked for.

They are those of OpenSSL, a sixth of all the memory that fleetd would hold. A health check over https needs TLS, and
an agent's id needs a hash.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands in for a module. importlib.util.LazyLoader would not do: a second import statement makes it load."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__} is not loaded yet, so it has no {name}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# asyncio.sslproto takes names out of ssl when it is loaded, so it has to wait as well.
if "asyncio" not in sys.modules:
    for _name in ("ssl", "asyncio.sslproto", "hashlib"):
        sys.modules.setdefault(_name, Later(_name))
