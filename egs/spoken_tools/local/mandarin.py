#!/usr/bin/env python3
"""Writes Mandarin sentences to train on, of the kind that queries/tools_zh.jsonl asks, and none of its own.

usage: local/mandarin.py --queries queries/tools_zh.jsonl --out downloads/mandarin.txt

Every form with every city or number, days in turn; a line each. An adapter that has heard nothing else has heard a small world: say so.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Iterator

sys.path.insert(0, str(Path(__file__).parent))
from queries import read_queries, utterances  # noqa: E402

from steermoe.bin.cli import Parser, run  # noqa: E402
from steermoe.files import atomic_write  # noqa: E402

CITIES = (
    "上海 北京 广州 深圳 成都 重庆 天津 武汉 西安 杭州 南京 苏州 青岛 大连 厦门 长沙 郑州 沈阳 济南 昆明 贵阳 南宁 福州 合肥 太原 兰州 拉萨 海口 桂林 三亚 "
    "香港 澳门 台北 东京 大阪 首尔 伦敦 巴黎 柏林 罗马 马德里 维也纳 莫斯科 纽约 波士顿 芝加哥 洛杉矶 旧金山 悉尼 曼谷 新加坡 开罗 孟买 多伦多"
).split()
DAYS = "今天 明天 现在 这个周末 后天".split()
COUNTRIES = "法国 德国 日本 韩国 英国 美国 俄国 泰国 印度 埃及 加拿大 西班牙 意大利 澳大利亚 中国".split()
NUMBERS = "一 两 三 四 五 六 七 八 九 十 十二 十五 十八 二十 二十五 三十 四十 四十五 五十 六十 九十".split()
OF_CITY = (
    "{}的天气怎么样", "请告诉我{}的天气", "我想知道{}的天气", "你知道{}的天气吗", "{}冷不冷", "{}热吗", "我在{}，天气好不好", "{}现在几点了", "请问{}现在几点",
    "{}现在是什么时间", "告诉我{}的时间", "现在{}是几点钟", "请问{}现在是什么时间", "我要去{}，那里的天气怎么样", "{}那里现在是几点",
)  # fmt: skip
OF_DAY = (
    "{1}{0}的天气怎么样", "{0}{1}会下雨吗", "{0}{1}会下雪吗", "请告诉我{0}{1}的天气", "{1}{0}天气好吗", "{1}去{0}要带雨伞吗", "我{1}去{0}，那里天气怎么样", "{0}{1}是晴天吗",
)  # fmt: skip
OF_NUMBER = (
    "请设置一个{}分钟的定时器", "{}分钟以后提醒我", "请在{}分钟后提醒我", "定时{}分钟", "帮我设一个{}分钟的闹钟", "过{}分钟叫我", "把定时器设为{}分钟", "我需要一个{}分钟的定时器",
    "一个星期有{}天吗", "这里有{}个人",
)  # fmt: skip
OF_COUNTRY = ("{}的首都是哪里", "{}的首都是什么", "请问{}的首都在哪里", "你去过{}吗", "{}有多少人口", "{}人说什么语言")
ALONE = (
    "那里现在几点", "那边现在是什么时间", "那里的天气怎么样", "那边今天天气好吗", "那里会下雨吗", "天上掉下来的是什么", "下的是哪种金属", "是什么金属从天上下来", "金属有很多种",
    "黄金是一种金属", "天上下的是雨还是雪", "今天下的是什么", "天上有很多云", "这个定时器的号码是多少", "定时器的号码是什么", "谢谢你", "你好", "请再说一遍", "现在几点了", "今天天气很好",
    "明天会下雨吗", "一天有几个小时", "一年有几个月", "你叫什么名字", "你会说中文吗", "白银和黄金都是金属", "铁是什么样的金属", "这是什么金属",
)  # fmt: skip


def main(argv=None) -> None:
    parser = Parser(prog="local/mandarin.py", description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=Path, default=Path("queries/tools_zh.jsonl"), help="list whose sentences are left out")
    parser.add_argument("--out", type=Path, required=True, help="the text")
    args = parser.parse_args(argv)
    asked = {said.rstrip("。？?") for said in utterances(read_queries(args.queries)).values()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as stream:
        stream.writelines(f"{sentence}。\n" for sentence in dict.fromkeys(sentences()) if sentence not in asked)


def sentences() -> Iterator[str]:
    for number, city in enumerate(CITIES):
        yield from (form.format(city) for form in OF_CITY)
        yield from (form.format(city, day) for form, day in zip(OF_DAY, itertools.islice(itertools.cycle(DAYS), number % len(DAYS), None)))
    for count in NUMBERS:
        yield from (form.format(count) for form in OF_NUMBER)
    for country in COUNTRIES:
        yield from (form.format(country) for form in OF_COUNTRY)
    yield from ALONE


if __name__ == "__main__":
    run(main)
