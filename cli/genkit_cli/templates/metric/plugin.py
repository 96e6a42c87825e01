"""A metric as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    threshold: float = option(
        8.0, "error in levels of 256 above which a value counts", minimum=0, maximum=255
    )


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "metric",
            "template-name",
            "genkit_template_name.metric:TemplateName",
            TemplateNameOptions,
            "share of values with a visible error",
        )
    ]
