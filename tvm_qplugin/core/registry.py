"""One table of names per kind of thing: built-in entries are written down, others are entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from tvm_qplugin.core.errors import QPluginError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from name to object; nothing is imported before it is asked for.

    ``table`` maps names to ``module:object``; installed packages add to it by entry points of the
    group ``tvm_qplugin.<kind>``. Raises QPluginError when two entries have one name, or when an entry
    cannot be loaded.

    >>> codecs = Registry("codec", {"json": "json:loads"})
    >>> codecs["json"]("[1]")
    [1]
    >>> codecs["yaml"]
    Traceback (most recent call last):
    KeyError: "unknown codec 'yaml'; known: json"
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = table

    @cached_property
    def _names(self) -> dict[str, str]:
        names = dict(self._table)
        for entry in entry_points(group=f"tvm_qplugin.{self.kind}"):
            if names.get(entry.name, entry.value) != entry.value:
                raise QPluginError(
                    f"{self.kind} {entry.name!r} is defined twice: {names[entry.name]} and {entry.value}; "
                    "rename one of them or uninstall its package"
                )
            names[entry.name] = entry.value
        return names

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._names))}")
        module, _, attribute = self._names[name].partition(":")
        try:
            return cast(T, getattr(import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise QPluginError(
                f"{self.kind} {name!r}: {self._names[name]!r} cannot be loaded ({error}); expected "
                "'module:object' of an installed package"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
