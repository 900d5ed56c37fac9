"""Normalisers for scoring and the units that are scored."""

from __future__ import annotations

import pytest

from steermoe.errors import UserError
from steermoe.text.normalizers import get_normalizer, normalize_marked, read_cardinal, split_units


@pytest.mark.parametrize(
    "text, normal",
    [
        ("Mr. Smith's colour, isn't it?", "mister smith is color is not it"),
        ("twenty-five dollars", "$25"),
        ("[noise] hello (laughs) world!", "hello world"),
        ("", ""),
    ],
)
def test_english_is_whispers(text, normal):
    assert get_normalizer("english")(text).strip() == normal


@pytest.mark.parametrize(
    "text, normal",
    [
        ("你好，世界！", "你好世界"),
        ("今天 是 ２０２１年１月５日", "今天是二零二一年一月五日"),
        ("增长了5%，共120人", "增长了百分之五共一百二十人"),
        ("圆周率3.14", "圆周率三点一四"),
        ("电话13800138000", "电话一三八零零一三八零零零"),
        ("零下-5度", "零下负五度"),
        ("我用 iPhone 15 Pro", "我用iphone十五pro"),
        ("OPEN the DOOR吧", "open the door吧"),
        ("", ""),
    ],
)
def test_chinese(text, normal):
    assert get_normalizer("chinese")(text) == normal


@pytest.mark.parametrize(
    "number, spoken",
    [
        *[(0, "零"), (10, "十"), (15, "十五"), (20, "二十"), (105, "一百零五"), (110, "一百一十"), (1000, "一千")],
        *[(1005, "一千零五"), (1050, "一千零五十"), (10000, "一万"), (10005, "一万零五"), (20300, "二万零三百")],
        *[(100000, "十万"), (12345678, "一千二百三十四万五千六百七十八"), (100000000, "一亿"), (100000005, "一亿零五")],
    ],
)
def test_cardinals(number, spoken):
    assert read_cardinal(number) == spoken


def test_marks_survive():
    assert normalize_marked("Hello { Color / colour } , World", get_normalizer("english")) == "hello { color / color } world"


def test_units():
    assert split_units("ab  c\u3000d e", "word") == ["ab", "c\u3000d", "e"]
    assert split_units("你 好a", "char") == ["你", "好", "a"]


def test_unknown_names():
    with pytest.raises(UserError, match="chinese"):
        get_normalizer("chinesee")
    with pytest.raises(UserError, match="word"):
        split_units("a", "words")
