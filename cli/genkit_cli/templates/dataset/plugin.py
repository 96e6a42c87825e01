"""A data set as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    size: int = option(1000, "number of training images", minimum=1)
    heldout: int = option(100, "number of held-out images", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "dataset",
            "template-name",
            "genkit_template_name.dataset:TemplateName",
            TemplateNameOptions,
            "discs of random colours",
        )
    ]
