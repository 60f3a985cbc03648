"""A long walk to see a wonder: three are helped on the way, and three times help comes back, in order."""

from __future__ import annotations

RULES = {
    "walk": """
{hero} had heard that [beyond the hills|far behind the woods|at the end of the road] there was {wonder=wonders}.
"<oh>I must see that," {hero.he} said<how>, packed {food=more_numbers} {bun=cakes.many} into the {colour} {wear}, and
went.

First {hero.he} met {n1=friend_names} the {_=looks} {k1=friend_kinds}, who [was crying|was stuck in the mud|had lost
the way|was too hungry to walk|had {_=things.a} on one foot]. {hero} helped and gave {n1.him} {a=two_or_three}
{bun.many}. That left {left1=food-a}.
Then came {n2=friend_names-n1} the {_=looks} {k2=friend_kinds-k1}, who [had a thorn in one foot|had broken a
wheel|was afraid of {_=creepers.a}|had been left behind]. {hero} helped and gave {n2.him} {b=two_or_three}
{bun.many}. Now {left2=left1-b} {left2.was} left.
Last came {n3=friend_names-n1-n2} the {_=looks} {k3=friend_kinds-k1-k2}, who wanted [to hear a story|somebody to talk
to|a birthday song]. {hero} [did it gladly|had time|did not mind], and they ate what was left.

But <walk_trouble>

<walk_sight>
""",
    "walk_trouble": """
[then there was a river, and {hero} could not swim. "<oh>I can," said a voice<how>. It was {n1@ordering}, who carried
{hero.him} across.
|then came a wood so thick that {hero} could not see one step. "<oh>I know the way," said a voice<how>. It was
{n1@ordering}, who had followed {hero.him}.]
[Behind it stood a gate with a big lock. Then {n2@ordering} came running, with a key made of {_=tools.a}.
|Behind it was a cliff. Then a rope came down, and at the top stood {n2@ordering}, pulling.]
And when night fell, and {hero} {_=fears}, there came a [small|warm|dancing] light: {n3@ordering}, [with a
lantern|with a candle on a hat|with a firefly on each ear].
""",
    "walk_sight": """
[[So four of them stood there in the morning|And in the morning four of them stood there]: {n1@ordering},
{n2@ordering}, {n3@ordering} and {hero}. And there it was, {wonder}. [It was smaller than they had thought|It was
bigger than anything|It was a bit {_=shapes}], and nobody spoke for {_=more_numbers} minutes.
|When they came there, {n1@ordering}, {n2@ordering}, {n3@ordering} and {hero}, there was only fog, as thick as
{_=meals-meal}. They [told jokes|sang|played cards] until [they forgot why they had come|the fog had enough]. Then it
lifted, and there was {wonder}, [shining|waiting for them|just as it should be].
|In the morning they were there. "{wonder.Cap}?" said {_=looks.a} woman. "That is what people here say about {place}.
They walk for days to see it." {n1@ordering} began to laugh, then {n2@ordering}, then {n3@ordering}.]

[#ending Not one of the {food} {bun.many} was left for the way home. But with three friends the way was only half as
long.
|"Was it worth it?" asked {_=elders} when {hero} was home again. "The best thing was the way there," said {hero}<how>.
|{hero} still has three pictures on the wall: {n1@ordering}, {n2@ordering} and {n3@ordering}. There is no picture of
{wonder}. {hero.He} did not need one.
|<end who=n3>]
""",
}
