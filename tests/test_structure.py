"""Import rules, imports at start-up, and documented hooks."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from genkit.plugin import hookspecs
from genkit.plugin.registry import GROUP, registry

ROOT = Path(__file__).parent.parent
PLUGINS = {path.name: path for path in ROOT.glob("plugins/*/genkit_*")}
# Imports that a command must avoid if it only prints information.
HEAVY = {
    *("torch", "timm", "accelerate", "safetensors", "torchvision", "torchmetrics"),
    *("numpy", "PIL", "rich", "huggingface_hub"),
}


def imported(folder: Path) -> set[str]:
    """The top-level packages imported anywhere in a folder's files."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_the_core_imports_no_plugin_and_no_command_line() -> None:
    assert not {name for name in imported(ROOT / "genkit") if name.startswith("genkit_")}


def core_imports() -> dict[str, set[str]]:
    """The core modules that each core module imports, except for type checking only."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "genkit").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        typing = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for node in ast.walk(block)
        }
        names = set()
        for node in ast.walk(tree):
            if id(node) in typing:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = (names & modules.keys()) - {name}
    return found


def test_the_core_has_no_import_circle() -> None:
    # The package imports its modules; they import from it only the version.
    imports = {
        name: found - {"genkit"} for name, found in core_imports().items() if name != "genkit"
    }
    while leaves := {name for name, found in imports.items() if not found & imports.keys()}:
        imports = {name: found for name, found in imports.items() if name not in leaves}
    assert not imports


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("plugin", ("settings", "models", "run", "checkpoint", "data", "evaluation", "training")),
        ("checkpoint", ("run", "data", "evaluation", "training", "testing")),
        ("foreign", ("plugin", "settings", "models", "run", "data", "evaluation", "tokens")),
        ("foreign", ("training", "testing")),
        ("data", ("evaluation", "tokens", "training", "testing")),
        ("evaluation", ("tokens", "training", "testing")),
        ("tokens", ("training", "testing")),
        ("training", ("testing",)),
        ("demo", ("training", "testing")),
    ],
)
def test_a_room_imports_only_rooms_below_it(room: str, others: tuple[str, ...]) -> None:
    for name, found in core_imports().items():
        if name.startswith(f"genkit.{room}."):
            assert not [
                each for each in found if each.split(".")[1:2][:1] and each.split(".")[1] in others
            ], name


def test_the_core_names_no_component() -> None:
    """No string in the core's code is the name of one of our components.

    The exceptions are `none`, which any kind may have, `shards`, the key of a list of files, and
    two names that schedules of guidance and of learning rates share.
    """
    ours = {
        plugin.name: plugin for plugin in registry().plugins if plugin.distribution == "genkit-vq"
    }
    names = {component.name for plugin in ours.values() for component in plugin.components}
    names -= {"none", "shards", "constant", "cosine"}
    for file in (ROOT / "genkit").rglob("*.py"):
        strings = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & strings, file


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_imports_no_other_and_no_command_line(plugin: str) -> None:
    assert {name for name in imported(PLUGINS[plugin]) if name.startswith("genkit_")} <= {plugin}


def test_the_command_line_imports_no_plugin() -> None:
    # The templates of `genkit new` import the package that they become.
    assert {name for name in imported(ROOT / "cli") if name.startswith("genkit_")} <= {
        "genkit_cli",
        "genkit_template_name",
    }


def test_our_plugins_use_entry_points_like_third_party_ones() -> None:
    found = {
        point.value
        for point in metadata.entry_points(group=GROUP)
        if point.dist and point.dist.name == "genkit-vq"
    }
    assert found == set(PLUGINS)


def modules_after(*args: str) -> set[str]:
    """The top-level modules that a new process has loaded after `genkit ARGS`."""
    code = (
        "import sys, contextlib, io; sys.argv = ['genkit', *sys.argv[1:]]\n"
        "from genkit_cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["train", "--encoder", "aren", "--attention", "pixel", "--help"],
        ["plugins"],
        ["components"],
        ["components", "encoder", "aren"],
        ["components", "optimizer"],
    ],
)
def test_commands_that_only_print_start_without_torch(args: list[str]) -> None:
    loaded = modules_after(*args)
    assert "genkit_avqvae" in loaded or args == ["--help"]
    assert not HEAVY & loaded


def test_inspect_starts_without_torch(trained: Path) -> None:
    assert not HEAVY & modules_after("inspect", str(trained))


@pytest.mark.parametrize("module", ["genkit", *PLUGINS, "genkit_fsq"])
def test_packages_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(' '.join(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


# The packages that docs/guide.md names for inference.
INFERENCE = {"torch", "numpy", "PIL", "pluggy", "safetensors"}


@pytest.mark.slow
def test_inference_needs_only_the_packages_that_the_guide_names(trained: Path) -> None:
    wanted = {
        re.split(r"[<>=;\[ ]", line)[0].replace("-", "_")
        for line in metadata.requires("genkit-vq") or []
    }
    blocked = {{"pillow": "PIL", "pyyaml": "yaml"}.get(name, name) for name in wanted} - INFERENCE
    assert {"timm", "accelerate", "rich", "click", "huggingface_hub", "yaml"} <= blocked
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[2].split()))\n"
        "import genkit; from PIL import Image\n"
        "tokenizer = genkit.load(sys.argv[1])\n"
        "images = genkit.open_images(Image.new('RGB', (40, 32)), tokenizer)\n"
        "genkit.to_pil(tokenizer.decode(tokenizer.encode(images)))\n"
        "print(len(genkit.inspect(sys.argv[1])['levels']))"
    )
    command = [sys.executable, "-c", code, str(trained), " ".join({*blocked, "torchvision"})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert "uv pip install torch numpy pillow pluggy safetensors" in guide


def test_public_names_exist_and_unknown_ones_do_not() -> None:
    import genkit

    assert all(getattr(genkit, name) is not None for name in genkit.__all__)
    with pytest.raises(AttributeError):
        _ = genkit.no_such_name


def test_every_hook_is_documented_and_implemented() -> None:
    hooks = [
        function
        for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
        if name.startswith("genkit_")
    ]
    assert len(hooks) == 4
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    sources = "\n".join(
        (path / "__init__.py").read_text(encoding="utf-8") for path in PLUGINS.values()
    )
    for hook in hooks:
        assert hook.__doc__
        assert hook.__name__ in text
        assert f"def {hook.__name__}(" in sources


def test_nothing_in_the_repository_names_a_registrys_host_or_a_lock_file() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("no git checkout")
    assert not [name for name in tracked if name.endswith(".lock")]
    host = re.compile("py" + r"pi\.org|python" + r"hosted\.org|npm" + r"js\.org")
    for name in tracked:
        if (ROOT / name).suffix in {".py", ".md", ".toml", "", ".yml"} and (ROOT / name).is_file():
            assert not host.search((ROOT / name).read_text(encoding="utf-8")), name
