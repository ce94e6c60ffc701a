"""The Sphinx configuration of the documentation, which `make docs` builds."""

from importlib.metadata import version as _version

from pygments.lexers.special import TextLexer

project = "tallystream"
author = "the tallystream developers"
copyright = "the tallystream developers"  # noqa: A001  # the name that Sphinx reads
release = version = _version("tallystream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_generate"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures are text; links between pages are checked

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_attr_annotations = True

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "tallystream"
html_show_sourcelink = False
html_copy_source = False


def setup(app: object) -> None:
    """Register a lexer for the Mermaid diagrams in the pages, so that a misspelt language is still an error."""
    app.add_lexer("mermaid", TextLexer)  # type: ignore[attr-defined]
