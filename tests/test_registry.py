"""The registry, with entry points made up for plugins that are broken in every way."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import distribution

from genkit import Component
from genkit.errors import MissingComponent, PluginError
from genkit.plugin.extras import missing
from genkit.plugin.installing import to_install
from genkit.plugin.registry import GROUP, Registry

GOOD = """
from genkit import Component, hookimpl
@hookimpl
def genkit_components():
    return [Component("quantizer", "{name}", "no.such:Thing", help="a test")]
"""

BROKEN = {
    "raises on import": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "needs a missing library": ("import no_such_library", "no_such_library"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misspells a hook": (
        GOOD.format(name="x").replace("genkit_components", "genkit_component"),
        "there is no hook genkit_component. Did you mean 'genkit_components'",
    ),
    "returns nonsense": (
        "from genkit import hookimpl\n@hookimpl\ndef genkit_components():\n    return 3",
        "must return a list of genkit.Component, not 3",
    ),
    "takes a taken name": (
        GOOD.format(name="vq"),
        "the name quantizer 'vq' is taken by plugin 'avqvae' of genkit-vq",
    ),
    "raises in its hook": (
        "from genkit import hookimpl\n@hookimpl\n"
        "def genkit_components():\n    raise KeyError('oh')",
        "KeyError: 'oh'",
    ),
    "names no target": (
        GOOD.format(name="x").replace("no.such:Thing", "no.such.Thing"),
        "must read 'package.module:Class'",
    ),
}


OPTIONS = """
from dataclasses import dataclass
from genkit import Component, hookimpl, option
@dataclass(frozen={frozen})
class Options:
    {field}
@hookimpl
def genkit_components():
    return [Component("quantizer", "x", "no.such:Thing", Options)]
"""
BROKEN["forgets to mark its hook"] = (
    GOOD.format(name="mine").replace("@hookimpl\n", ""),
    "its function genkit_components is never called: write @genkit.hookimpl above it",
)
for _case, (_frozen, _field, _message) in {
    "has a type that cannot be": (
        True,
        "a: dict = option(64, 'x')",
        "the option Options.a has the type dict; it can be int, float, bool, str, a Literal",
    ),
    "has a list": (
        True,
        "a: list[float] = option((1.0,), 'x')",
        "the option Options.a has the type list[float]; it can be",
    ),
    "has an option called name": (True, "name: int = option(1, 'x')", "an option 'name'"),
    "has a default of another type": (True, "a: int = option('64', 'x')", "is '64', which is no"),
    "has a default out of range": (True, "a: int = option(1, 'x', minimum=2)", "at least 2"),
    "has a cure out of range": (
        True,
        "a: int = option(3, 'x', minimum=2, cure=-5)",
        "at least 2",
    ),
    "has a plain field": (True, "a: float = 0.25", "must be a genkit.option"),
    "has options that change": (False, "a: int = option(1, 'x')", "frozen=True"),
}.items():
    BROKEN[_case] = (OPTIONS.format(frozen=_frozen, field=_field), _message)


def plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "other"
) -> metadata.EntryPoint:
    """An entry point to a module with that source, in a new distribution."""
    module = f"module_of_{name}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(source)
    info = distribution(tmp_path, f"{name}-dist", "1.2", {name: module})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    return next(iter(metadata.PathDistribution(info).entry_points))


def ours() -> list[metadata.EntryPoint]:
    return list(metadata.entry_points(group=GROUP))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_causes_one_line_and_breaks_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, message = BROKEN[case]
    entry = plugin(tmp_path, monkeypatch, source)
    registry = Registry([entry, *ours()])
    error = caplog.text
    assert error.count("\n") == 1
    assert "plugin 'other' of other-dist is left out" in error
    assert message in error
    assert "vq" in registry.names("quantizer")
    assert registry.component("quantizer", "vq").origin.distribution == "genkit-vq"
    # The error about the missing component names the plugin again.
    with pytest.raises(MissingComponent, match="Plugin 'other' of other-dist is left out"):
        registry.component("quantizer", "what-it-would-have-brought")
    broken = next(plugin for plugin in registry.plugins if plugin.name == "other")
    assert broken.traceback


def test_a_good_plugin_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry([plugin(tmp_path, monkeypatch, GOOD.format(name="mine")), *ours()])
    assert registry.component("quantizer", "mine").help == "a test"
    assert registry.component("quantizer", "mine").origin.version == "1.2"
    assert not caplog.messages


NAMING = """
from genkit import hookimpl
@hookimpl
def genkit_names_for(kind):
    return ["violet"] if kind == "quantizer" else 1 / 0
"""


def test_names_that_stand_for_settings_are_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry([plugin(tmp_path, monkeypatch, NAMING), *ours()])
    with pytest.raises(MissingComponent, match="Did you mean 'violet'"):
        registry.component("quantizer", "violett")
    with pytest.raises(PluginError, match="genkit_names_for failed on the kind encoder: division"):
        registry.component("encoder", "violett")


def test_any_kind_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = GOOD.format(name="mine").replace('"quantizer"', '"perceptual loss"')
    registry = Registry([plugin(tmp_path, monkeypatch, source)])
    assert registry.kinds() == ["perceptual loss"]


def test_genkit_plugins_allows_only_named_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_PLUGINS", "avqvae")
    registry = Registry(ours())
    assert registry.names("encoder") == ["aren"]
    assert registry.names("dataset") == []
    with pytest.raises(MissingComponent, match="GENKIT_PLUGINS allows only: avqvae"):
        registry.component("dataset", "faces")


def test_a_misspelt_name_in_genkit_plugins_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GENKIT_PLUGINS", "avqvea,datasets")
    Registry(ours())
    (error,) = caplog.messages
    assert error.startswith(
        "GENKIT_PLUGINS names 'avqvea', but no such plugin is installed. "
        "Did you mean 'avqvae'? Installed: avqvae, "
    )
    assert "\n" not in error


def test_two_plugins_of_one_name_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (
        plugin(tmp_path, monkeypatch, GOOD.format(name=name), name) for name in ("one", "two")
    )
    (tmp_path / "two_dist-1.2.dist-info" / "entry_points.txt").write_text(
        f"[{GROUP}]\none = {second.value}\n"
    )
    info = tmp_path / "two_dist-1.2.dist-info"
    (twin,) = metadata.PathDistribution(info).entry_points
    registry = Registry([first, twin])
    assert registry.names("quantizer") == ["one"]
    assert caplog.messages == [
        "plugin 'one' of two-dist is left out: one-dist has a plugin named 'one' too: "
        "give the entry point another name"
    ]


def test_the_example_is_found() -> None:
    assert Registry().component("quantizer", "fsq").origin.distribution == "genkit-vq-fsq"


def test_the_plugin_that_imports_a_heavy_package_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If two plugins import it, the first is blamed: the second gets the cached module."""
    (tmp_path / "takes_long.py").write_text("")
    monkeypatch.setattr("genkit.plugin.registry.HEAVY", ("takes_long",))
    monkeypatch.delitem(sys.modules, "takes_long", raising=False)
    source = "import takes_long\n" + GOOD
    entries = []
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        text = GOOD if name == "third" else source
        entries.append(plugin(tmp_path / name, monkeypatch, text.format(name=name), name))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry(entries)
    assert {each.name: each.heavy for each in registry.plugins} == {
        "first": ["takes_long"],
        "second": [],
        "third": [],
    }
    assert registry.names("quantizer") == ["first", "second", "third"]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("requirement", "advice"),
    [
        ("No.Such-Library>=1; extra == 'fast'", f": {to_install('other-dist[fast]')}"),
        ("no-such-library (>=1)", f": {to_install('other-dist')}"),
        ("something-else", ""),
    ],
)
def test_a_missing_library_comes_with_advice_where_the_metadata_has_some(
    requirement: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = plugin(tmp_path, monkeypatch, "import no_such_library.part")
    (tmp_path / "other_dist-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-dist\nVersion: 1.2\n"
        f"Requires-Dist: {requirement}\nProvides-Extra: fast\n"
    )
    Registry([entry])
    error = caplog.text
    assert error.endswith(f"No module named 'no_such_library'{advice}\n")


def test_missing_requirements_are_read_from_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, monkeypatch, "")
    (tmp_path / "other_dist-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-dist\nVersion: 1.2\nRequires-Dist: genkit_vq\n"
        "Requires-Dist: no-such (>=1) ; python_version > '3' and extra == 'Fast_er'\n"
        'Requires-Dist: click; extra == "all"\n'
        "Requires-Dist: no-such-either; extra == 'all' and sys_platform == 'no such system'\n"
    )
    assert missing("other-dist") == []
    assert missing("other-dist[fast-er]") == ["no-such"]
    assert missing("other_dist[all, fast-er]>=1") == ["no-such"]
    assert missing("other-dist[all]") == []
    assert missing("not-here[x]") == ["not-here"]
    assert missing("?") == []


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("no.such:Thing", "", "there is no module 'no'; its plugin names it wrongly"),
        ("their_thing.part:Thing", "", "there is no module 'their_thing.part'"),
        ("their_thing:Thing", "", "module 'their_thing' has no attribute 'Thing'"),
        ("their_thing:Thing", "import no_such", "needs the package 'no_such', which is not instal"),
        ("their_thing:Thing", "1/0", "cannot be loaded from their_thing:Thing: division by zero"),
    ],
)
def test_a_class_that_cannot_be_loaded(
    target: str, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_thing").mkdir()
    (tmp_path / "their_thing" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_thing", raising=False)
    with pytest.raises(PluginError, match=f"quantizer 'mine' .*{message}"):
        Component("quantizer", "mine", target).load()
    sys.modules.pop("their_thing", None)


def test_a_name_of_another_kind_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GOOD.format(name="mine").replace('"quantizer"', '"quantiser"')
    registry = Registry([plugin(tmp_path, monkeypatch, source), *ours()])
    with pytest.raises(MissingComponent, match="component 'mine', of the kind quantiser"):
        registry.component("quantizer", "mine")


def test_the_command_that_installs_a_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, pip in ((True, "pip"), (False, "uv pip")):
        monkeypatch.setattr("genkit.plugin.installing._has_pip", lambda found=found: found)
        assert to_install("genkit-vq[zoo]") == f"{pip} install 'genkit-vq[zoo]'"
        assert to_install("-e", ".") == f"{pip} install -e ."


def test_a_hint_leaves_the_process_as_it_is() -> None:
    """Looking for pip's module makes setuptools withdraw the distutils of torch.compile."""
    pytest.importorskip("setuptools")
    code = (
        "from genkit.plugin.installing import to_install; print(to_install('a[b]')); "
        "import setuptools"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("pip install 'a[b]'\n", "uv pip install 'a[b]'\n")
