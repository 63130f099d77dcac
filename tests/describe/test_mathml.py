"""Equations keep every character, and what is lowered or raised is."""

from __future__ import annotations

import re
import unicodedata
from xml.etree import ElementTree

import pytest

import mixerzoo
from mixerzoo.describe import mathml
from own import OWN

#: Marks that become structure, and characters that have another form in formulas.
STRUCTURE = re.compile("[\\s_^{}√ᵀ⊤'′¯~\u0300-\u036f]")


def characters(text: str) -> list[str]:
    """All but structure; what is below and what is above may change places."""
    return sorted(STRUCTURE.sub("", unicodedata.normalize("NFD", text).replace("∑", "Σ")))


@pytest.mark.parametrize("name", OWN)
def test_no_character_of_an_equation_is_lost(name: str) -> None:
    equation = mixerzoo.load_registry().get(name).mixer.card.equation
    root = ElementTree.fromstring(mathml(equation))
    assert len(root) == len(equation.splitlines())
    assert characters("".join(root.itertext())) == characters(equation)
    for script in ("msub", "msup", "munder", "mover", "msubsup"):
        assert all(len(found) == 2 + (script == "msubsup") for found in root.iter(script)), script


@pytest.mark.parametrize(
    ("equation", "inside"),
    [
        ("x_i", "<msub><mi>x</mi><mrow><mi>i</mi></mrow></msub>"),
        ("b^c_j", "<msubsup><mi>b</mi><mrow><mi>j</mi></mrow><mrow><mi>c</mi></mrow></msubsup>"),
        ("r_ij", "<msub><mi>r</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>"),
        (
            "Σ_{j < l}",
            '<munder><mo movablelimits="false">∑</mo><mrow><mi>j</mi><mo>&lt;</mo><mi>l</mi></mrow></munder>',
        ),
        ("√d", "<msqrt><mi>d</mi></msqrt>"),
        ("Kᵀ", "<msup><mi>K</mi><mrow><mi>⊤</mi></mrow></msup>"),
        ("x̂", '<mover accent="true"><mi>x</mi><mo stretchy="false">^</mo></mover>'),
        ("b'", "<mi>b</mi><mo>′</mo>"),
        ("2.5·x", "<mn>2.5</mn><mo>·</mo><mi>x</mi>"),
        # Nothing is expected of what a stranger writes.
        ("x_", "<mi>x</mi><mo>_</mo>"),
        ("{x", '<mrow><mo stretchy="false">{</mo><mi>x</mi></mrow>'),
        ("<b>&", "<mo>&lt;</mo><mi>b</mi><mo>&gt;</mo><mo>&amp;</mo>"),
    ],
)
def test_a_formula(equation: str, inside: str) -> None:
    line = f'<div class="equation-line"><math displaystyle="true">{inside}</math></div>'
    assert mathml(equation) == f'<div class="equation">{line}</div>'


def test_words_stand_between_formulas_but_for_names_in_them() -> None:
    shown = mathml("a = softmax(s)  for l > 0, before a norm")
    assert re.sub("<math.*?</math>", "F", shown) == (
        '<div class="equation"><div class="equation-line">'
        'F<span class="equation-gap"> </span> for F before a norm</div></div>'
    )
    assert "<mi>softmax</mi>" in shown


@pytest.mark.parametrize("equation", ["", "\n\n", "x_{", "x^", "√", "((", "))", "_", "x_{a_{b", "é_ü", "a" * 5000])
def test_any_text_gives_html(equation: str) -> None:
    ElementTree.fromstring(mathml(equation))
