"""The hero saves for a present: coins are counted, earned and given away, and the present turns out otherwise."""

from __future__ import annotations

RULES = {
    "gift": """
[Soon it would be|In three days it was|It was nearly|Everybody knew about] {elder=elders}'s birthday. In the window
of {job=jobs.shop}, between {_=things.a} and {_=looks.a} cat, {hero} saw {gift=treasures.a}, [and knew at once|just
right|{_=shapes} and beautiful|and the search was over].

{hero} emptied the [piggy bank|money box|left sock]. Out came {have=few_numbers} coins. That was {short=few_numbers}
too few, because the {gift} cost {price=have+short}.
<sadly>

"<oh>[Is there any work|Can I help you|What needs doing|Do you need a hand]?" {hero} asked the {job}<how>. So {hero}
{job.work} [all morning|until both arms hurt|from breakfast to supper|for {_=few_numbers} days|while the others were
{_=fun-fun}] and got {short@arithmetic} coins.

"{have.Cap} and {short} make {price@arithmetic}," said {hero}<how>. {hero.He} {_=joys}.

<gift_turn>
""",
    "gift_turn": """
[But on the way to the shop stood {poor=friend_names} the {_=looks} {animal=friend_kinds}, [crying|shivering|looking
at an empty plate|with all ears down]. <gift_poor>
|{hero} bought the {gift} and carried it home [like an egg|with both hands|on tiptoe|in the {wear}]. <gift_broken>
|So on the birthday {elder} got the {gift}. <gift_twice>]
""",
    "gift_poor": """
"<oh>[My roof is broken|I have not eaten since Monday|My {_=few_numbers} little ones are hungry|I lost my {_=tools}
in the river]," said {poor}<how>. "It will cost {given=two_or_three} coins."

{hero} [looked at the coins for a long time|swallowed|thought of {elder}]. Then {hero.he} gave {poor} {given@copy} of
them. That left {left=price-given} coin{left.s}, not enough for the {gift}.

So {hero.he} [painted|carved|sewed|glued|folded] {toy=treasures.a-gift}. It was [{_=shapes}|a bit {_=shapes}|not
quite {_=shapes}], and {elder}'s name was on it. "<oh>[Did you make this|Is this really for me]?" asked {elder}<how>,
and [would not put it down again|kissed {hero} on the nose|cried a little, the good kind of crying].

[#ending And who came to the party? {poor}, with {_=colours.a} flower behind one ear.
|"Nobody can buy this in any shop," said {elder}, "not for {_=more_numbers} coins and not for a thousand."
|The {left@copy} coin{left.s} that {left.was} left bought {_=cakes.many} for everybody, and {poor} got the biggest.
|<end who=poor>]
""",
    "gift_broken": """
But [there was a stone in the road|a bee flew by|the path was wet|{_=looks.a} dog barked], and {hero}
[stumbled|slipped|jumped]. [Crack|Crash|Clonk]! The {gift} [broke in two|fell into {_=few_numbers} pieces|lost its
bottom half].

{hero} [could have hidden it|thought about running away|wished to be a stone], but {hero.he} brought what was left to
{elder}. "This was your present," {hero.he} said<how>. "I broke it."

{elder} [was quiet for a moment|put on {elder.his} glasses|looked at the pieces]. "<oh>Do you know what I wished for?
[A puzzle|Something to mend|An afternoon with you]."

[#ending So they [glued it together|stuck it together with {_=meals-meal}|mended it], and ate {meal} while it dried.
You can still see the crack. {elder} calls it the best part.
|It took them {days=few_numbers} days to mend it. {elder} said those were the {days@copy} best days of the whole year.
|They never got it quite right, so now it is half {gift} and half {toy=treasures-gift}. There is only one like it in
the world.
|<end who=elder>]
""",
    "gift_twice": """
{elder} [looked at it|turned it over|shook it] and laughed until {elder.he} had to sit down. "<oh>[Look under your
pillow|Go and look under the table|Open the cupboard|Look into your {wear}]," said {elder}<how>.

There was another {gift}, wrapped in {_=colours} paper. "I bought it for you," said {elder}, "because you [work so
hard|always stop at that window|are you|never ask for anything]."

[#ending Now they have two {gift.many}, and [on Sundays|every evening|at parties] they {_=together}.
|"What do we do with two {gift.many}?" asked {hero}. "We give one to somebody who has none," said {elder}<how>, and
they both knew who: {poor=friend_names} the {_=looks} {animal=friend_kinds}, who {_=joys}.
|<end who=elder>]
""",
}
