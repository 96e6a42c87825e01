"""A perceptual loss as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    scales: int = option(3, "number of scales, each half the size of the previous one", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "perceptual",
            "template-name",
            "genkit_template_name.perceptual:TemplateName",
            TemplateNameOptions,
            "differences of edges at several scales",
        )
    ]
