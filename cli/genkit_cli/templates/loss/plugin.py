"""A reconstruction loss as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    epsilon: float = option(0.01, "error below which the loss is nearly quadratic", minimum=1e-6)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "loss",
            "template-name",
            "genkit_template_name.loss:TemplateName",
            TemplateNameOptions,
            "Charbonnier loss, a smooth absolute error",
        )
    ]
