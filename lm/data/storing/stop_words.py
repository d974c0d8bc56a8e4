"""Short lists of stop words: the function words that carry grammar rather than content.

NLTK's lists are not used, because they must be downloaded. Negations (no, not, never; 不, 没) are left out, since their
removal would reverse the meaning of a text. Numerals, adverbs of degree and all verbs except auxiliaries are also left
out. The words are lower-case. Contracted forms are listed both whole (`it's`) and as treebank tokens (`'s`).
"""

from __future__ import annotations

_ENGLISH = """
a an the this that these those each every either neither both all any some such other another same own
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves one oneself
who whom whose which what whoever whatever whichever when where why how
am is are was were be been being have has had having do does did doing
will would shall should can could may might must ought
about above across after against along among around at before behind below beneath beside between beyond by down during
for from in inside into near of off on onto out outside over past since through throughout to toward towards under until
up upon via with within without
and or but if then else than as because while although though whereas whether unless so
there here
i'm you're he's she's it's we're they're that's who's what's there's here's let's
i've you've we've they've i'd you'd he'd she'd we'd they'd i'll you'll he'll she'll it'll we'll they'll
's 'm 're 've 'd 'll
"""
_CHINESE = """
的 地 得 了 着 过 吗 呢 吧 啊 呀 嘛 啦 哦 哪 么
我 你 您 他 她 它 我们 你们 他们 她们 它们 咱 咱们 自己 人家 大家
这 那 这个 那个 这些 那些 这样 那样 这里 那里 这儿 那儿 此 其 某 各 每 谁 什么 怎么 怎样 哪里 哪儿 哪个 哪些 为什么
是 会 能 能够 可以 可 应 应该 要
在 从 自 于 到 向 往 朝 对 对于 关于 跟 和 与 同 及 以及 或 或者 把 被 让 给 为 为了 以 用 由 按 按照 比 除了 随着 通过
而 而且 并 并且 但 但是 可是 然而 不过 因为 因此 因而 所以 由于 虽然 尽管 如果 假如 要是 只要 只有 即使 那么 于是 则 却
就 也 都 还 又 再 上 下 中 里 之 所 等 等等 一个 一些 个 们
"""

# Maps the names of lists, as in data.cleaning.stop_words, to their words.
STOP_WORDS: dict[str, frozenset[str]] = {
    "english": frozenset(_ENGLISH.split()),
    "chinese": frozenset(_CHINESE.split()),
}
