"""An optimizer as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    momentum: float = option(0.9, "decay rate of the mean gradient", minimum=0, maximum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "optimizer",
            "template-name",
            "genkit_template_name.optimizer:TemplateName",
            TemplateNameOptions,
            "sign descent with momentum",
        )
    ]
