"""The documentation site: README.md and the pages of docs/, with an API reference.

    uv run sphinx-build -W -c docs/site . build/site

The pages are those that one reads on GitHub. Nothing is fetched, while building or while reading.
"""

import re
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxRole

FIELD = type(namedtuple("Any", ["field"]).field)
SITE = Path(__file__).parent
ROOT = SITE.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where the repository is published, as a key of pyproject.toml's table of addresses.
SOURCE = PROJECT.get("urls", {}).get("Source", "")

project, author = "genkit", PROJECT["authors"][0]["name"]
version = release = PROJECT["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
exclude_patterns = [".*", "build", "runs"]  # Not searched for pages.
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/api/*.md"]
myst_heading_anchors = 4

nitpicky = True
# References to other projects' names need their inventories, from the network.
nitpick_ignore_regex = [(r"py:.*", r"(?!genkit\b).*")]
# Types in signatures that users need no name of.
nitpick_ignore = [
    ("py:class", "genkit.models.TokenizerOptions"),
    ("py:class", "genkit.reach.Reach"),
    ("py:class", "genkit.testing.pretend.Device"),
    ("py:class", "genkit.tokens.rows.Ragged"),
    ("py:class", "genkit.tokens.rows.Rows"),
    ("py:class", "genkit.tokens.shard.Shard"),
]
default_role = "name"
smartquotes = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"genkit {release}"
html_additional_pages = {"index": "index.html"}
templates_path = ["."]
html_copy_source = False
html_css_files = ["site.css"]
html_static_path = ["static"]
html_show_copyright = html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}


class Name(SphinxRole):
    """A name in backticks in a docstring: code, and a link if it is one of genkit's."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        code = nodes.literal(self.rawtext, self.text, classes=["code"])
        if not self.text.startswith("genkit.") or not self.text.replace(".", "").isidentifier():
            return [code], []
        link = addnodes.pending_xref(
            self.rawtext, code, refdomain="py", reftype="obj", reftarget=self.text, refexplicit=True
        )
        link["refdoc"] = self.env.docname
        self.set_source_info(link)
        return [link], []


class Repository(SphinxTransform):
    """Links to files and folders of the repository that are no pages lead to their address.

    While the repository has none, they are plain text.
    """

    default_priority = 5

    def apply(self, **_: Any) -> None:
        links = (addnodes.pending_xref, addnodes.download_reference)
        for link in list(self.document.findall(lambda node: isinstance(node, links))):
            if link.get("reftype") != "myst" or link.get("refdomain"):
                continue
            path, _ = self.env.relfn2path(link["reftarget"], self.env.docname)
            if not link["reftarget"] or not (ROOT / path).exists():
                continue  # An error, which MyST reports.
            text = link.deepcopy().children
            if SOURCE:
                address = f"{SOURCE}/blob/HEAD/{path}"
                link.replace_self(nodes.reference("", "", *text, refuri=address))
            else:
                link.replace_self(nodes.inline("", "", *text))


def extend(_: Sphinx, page: str, source: list[str]) -> None:
    """Blocks of code get their files' names. The start page holds the navigation, unseen."""
    block = r"^```(\w+) file=(\S+)$"
    source[0] = re.sub(
        block, r"```{code-block} \1\n:caption: `\2`\n", source[0], flags=re.MULTILINE
    )
    if page == root_doc:
        source[0] += (SITE / "navigation.md").read_text(encoding="utf-8")


def signature(_: Sphinx, kind: str, __: str, member: Any, *___: Any) -> tuple[str, None] | None:
    """Protocols have no constructor; their docstrings say how genkit builds a component."""
    return ("", None) if kind == "class" and getattr(member, "_is_protocol", False) else None


def leave_out(_: Sphinx, kind: str, name: str, member: Any, skip: bool, __: Any) -> bool | None:
    """The fields of a named tuple are in its signature, and their docstrings say nothing."""
    return True if isinstance(member, FIELD) else None


def setup(app: Sphinx) -> None:
    app.add_role("name", Name())
    app.add_transform(Repository)
    app.connect("source-read", extend)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", leave_out)
