"""A schedule as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    final: float = option(0.0, "share of the peak learning rate at the end", minimum=0, maximum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "schedule",
            "template-name",
            "genkit_template_name.schedule:TemplateName",
            TemplateNameOptions,
            "linear decay",
        )
    ]
