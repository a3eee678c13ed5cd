"""The registry: lazy, extended by entry points, clear about clashes."""

import sys
from importlib.metadata import EntryPoint

import pytest

from tvm_qplugin.core import registry
from tvm_qplugin.core.errors import QPluginError
from tvm_qplugin.core.registry import Registry


@pytest.fixture
def installed(monkeypatch):
    """Pretend that packages with these entry points are installed."""

    def install(**entries: str) -> None:
        found = [EntryPoint(name, value, "tvm_qplugin.codec") for name, value in entries.items()]
        monkeypatch.setattr(
            registry, "entry_points", lambda group: found if group == "tvm_qplugin.codec" else []
        )

    return install


def test_builtin_and_installed(installed):
    installed(dump="json:dumps")
    codecs = Registry("codec", {"load": "json:loads"})
    assert codecs["load"]("[1]") == [1] and codecs["dump"]([1]) == "[1]"
    assert list(codecs) == ["load", "dump"] and len(codecs) == 2


def test_nothing_is_imported_by_looking():
    sys.modules.pop("this", None)
    codecs = Registry("codec", {"zen": "this:s"})
    assert "zen" in codecs and list(codecs) == ["zen"] and "this" not in sys.modules


def test_a_clash_names_both(installed):
    installed(load="other:loads")
    with pytest.raises(QPluginError, match="'load' is defined twice: json:loads and other:loads"):
        Registry("codec", {"load": "json:loads"})["load"]


def test_the_same_entry_twice_is_no_clash(installed):
    installed(load="json:loads")
    assert len(Registry("codec", {"load": "json:loads"})) == 1


@pytest.mark.parametrize("value", ["no_such_module:x", "json:no_such_name", "json"])
def test_what_cannot_be_loaded(installed, value):
    installed(bad=value)
    with pytest.raises(QPluginError, match=r"'bad'.*cannot be loaded"):
        Registry("codec", {})["bad"]


def test_unknown_name():
    with pytest.raises(KeyError, match="unknown codec 'c'; known: a, b"):
        Registry("codec", {"b": "json:loads", "a": "json:loads"})["c"]
