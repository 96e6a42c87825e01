"""Features as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    side: int = option(8, "height and width of the small images", minimum=2)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "features",
            "template-name",
            "genkit_template_name.features:TemplateName",
            TemplateNameOptions,
            "pixels of small images",
        )
    ]
