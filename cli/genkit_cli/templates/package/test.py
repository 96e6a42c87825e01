from genkit.testing import check_template_kind


def test_template_name() -> None:
    check_template_kind("template-name")
