"""A discriminator as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    width: int = option(64, "channels of the convolutions", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "discriminator",
            "template-name",
            "genkit_template_name.discriminator:TemplateName",
            TemplateNameOptions,
            "patches of strided convolutions",
        )
    ]
