"""An attention as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    width: int = option(32, "channels of queries and keys", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "attention",
            "template-name",
            "genkit_template_name.attention:TemplateName",
            TemplateNameOptions,
            "softmax between all pixels",
        )
    ]
