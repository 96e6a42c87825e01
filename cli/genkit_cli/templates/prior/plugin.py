"""A prior as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    width: int = option(64, "channels of a position", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "prior",
            "template-name",
            "genkit_template_name.prior:TemplateName",
            TemplateNameOptions,
            "a distribution for each position by itself",
        )
    ]
