"""Names in text: which forms count, in which scripts, and where a word is another word."""

import re

import pytest

from stillhouse.naming import SCRIPTS, aliases, names, pattern, plain


def test_forms_of_a_name_are_whole_family_and_stem():
    assert aliases("SmolLM2-135M-Instruct") == ("SmolLM2-135M-Instruct", "SmolLM2", "SmolLM")
    assert aliases("HuggingFaceTB/SmolLM2-135M-Instruct.gguf")[0] == "SmolLM2-135M-Instruct"
    assert aliases("Stillhouse quickstart") == ("Stillhouse quickstart", "Stillhouse")
    assert aliases("Student 3B") == ("Student 3B",)  # 'student' alone names nobody
    assert aliases("Qwen") == ("Qwen",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("I am SmolLM2, made by others.", True),
        ("i'm SMOLLM 2 135m instruct", True),
        ("My name is smollm‑2!", True),
        ("I am ASmolLM", False),  # another word that ends in it
        ("I am a small language model", False),
        ("", False),
    ],
)
def test_a_name_is_found_whatever_case_and_marks_but_not_inside_words(text, named):
    assert names(text, aliases("SmolLM2-135M-Instruct")) is named


def test_a_name_of_several_words_is_found_across_marks():
    assert names("I am Stillhouse-Quickstart.", ["Stillhouse quickstart"])
    assert names("I am **Stillhouse\nquickstart**", ["Stillhouse quickstart"])
    assert not names("A still house, quickly started", ["Stillhouse quickstart"])


@pytest.mark.parametrize(
    ("text", "form", "named"),
    [
        ("我是DeepSeek助手", "DeepSeek", True),  # no space stands between the scripts
        ("私はＣｈａｔＧＰＴです", "ChatGPT", True),  # full width
        ("저는ChatGPT입니다", "ChatGPT", True),
        ("我叫通义千问。", "通义千问", True),
        ("Меня создали в Яндексе", "Яндекс", True),  # inflected
        ("Неклод", "Клод", False),
        ("أنا وكلود", "كلود", True),  # 'and' is written together with its word
        ("كُـلود", "كلود", True),  # vowel sign and stretching
        ("سكلود", "كلود", False),
        ("मैं क्लॉड हूँ", "क्लॉड", True),
        ("Chat\u200bGPT", "ChatGPT", True),  # a zero-width space inside
        ("MyChatGPT", "ChatGPT", False),
        ("2GPT", "GPT", False),
    ],
)
def test_a_name_is_found_in_any_script_but_not_inside_a_word_of_its_own(text, form, named):
    assert names(text, [form]) is named


def test_a_form_without_letters_and_no_forms_find_nothing():
    assert not names("anything", [])
    assert not names("anything", ["", " - "])


def test_capitals_count_where_asked():
    assert pattern(["Llama"], cased=True).search("I am Llama 3")
    assert not pattern(["Llama"], cased=True).search("se llama Ana")


def test_a_whole_word_ends_where_its_script_does():
    latin = pattern(["Meta", "GPT"], whole=("latin",))
    assert latin.search("Meta.")
    assert latin.search("GPT4")
    assert latin.search("我是GPT的")
    assert not latin.search("Metaphor")
    every = pattern(["не", "لا"], whole=tuple(SCRIPTS))
    assert every.search("я не знаю")
    assert not every.search("небо")
    assert not every.search("لابد")


def test_the_longest_form_is_found():
    found = pattern(["GPT", "GPT 4"]).search("this is GPT-4".replace("-", " "))
    assert found is not None
    assert found.group() == "GPT 4"


def test_plain_text_has_one_form_for_spaces_marks_and_carriers():
    assert plain("  A –  B_c\u00ad ’s ") == "A B c 's"
    assert plain("أُوبن") == plain("اوبن")
    assert re.fullmatch(r"Case Stays", plain("Case‑Stays"))
