"""The hero saves for a present: coins are counted, earned and given away, and the present turns out otherwise."""

from __future__ import annotations

RULES = {
    "gift": """
[Soon it would be|In three days it was|It was nearly] {elder=elders}'s birthday, and {hero} wanted to give {elder.him} {gift=treasures.a}.
[There was {_=shapes.a} one|The finest one stood|Just the right one stood] in the window of {job=jobs.shop}, between {_=things.a} and {_=looks.a} cat.

{hero} emptied {hero.his} [piggy bank|money box|left sock]. Out came {have=few_numbers} coins. That was {short=few_numbers} coins too few, because the {gift} cost {price=have+short}.
<sadly>

"<oh>[I need work|Can I help you|Is there anything to do]?" {hero} asked the {job}<how>. So {hero} {job.work} [all morning|until both arms hurt|from breakfast to supper|while the others were {fun2=fun-fun}].<aside>
[In the end|At last|When it was done], the {job} counted {short@arithmetic} coins into {hero.his} hand.

"{have.Cap} and {short} make {price@arithmetic}," said {hero}<how>. {hero.He} {_=joys}.

<gift_turn>
""",
    "gift_turn": """
[But on the way to the shop, {hero} met {poor=friend_names} the {_=looks} {animal=friend_kinds}, who was [crying|shivering|looking at an empty plate]. <gift_poor>
|{hero} bought the {gift} and carried it home [like an egg|with both hands|on tiptoe]. <gift_broken>
|So on the birthday {elder} got the {gift}. <gift_twice>]
""",
    "gift_poor": """
"<oh>[My roof is broken|I have not eaten since Monday|My {_=few_numbers} little ones are hungry]," said {poor}<how>. "It will cost {given=two_or_three} coins."

{hero} looked at the coins for a long time. Then {hero.he} gave {poor} {given@copy} of them. Now {hero.he} had {left=price-given} coin{left.s}, and that was not enough for the {gift}.

[So|"Then I will make something," thought {hero}. So] {hero.he} [painted|carved|sewed|glued] {toy=treasures.a-gift} all by {hero.himself}. It was [{_=shapes}|a bit {_=shapes}|not quite {_=shapes}], and it had {elder}'s name on it.

"<oh>[Did you make this|Is this really for me]?" asked {elder}<how>. {elder.He} [would not put it down again|put it in the best place in the house|cried a little, the good kind of crying].

[#ending And who came to the party? {poor}, with a {_=colours} flower behind one ear.
|"Nobody can buy this in any shop," said {elder}, "not for {_=more_numbers} coins and not for a thousand."
|The {left@copy} coin{left.s} that {left.was} left bought {_=cakes.many} for everybody, and {poor} got the biggest.
|<end who=poor>]
""",
    "gift_broken": """
But [there was a stone in the road|a bee flew by|the path was wet], and {hero} [stumbled|slipped|jumped]. [Crack|Crash|Clonk]! The {gift} [broke in two|fell into {_=few_numbers} pieces|lost its bottom half].

{hero} [could have hidden it|thought about running away|wished to be a stone]. But {hero.he} brought what was left to {elder} [in the {wear}|in both hands|piece by piece]. "This was your present," {hero.he} said<how>. "I broke it. I am so sorry."

{elder} [looked at the pieces|was quiet for a moment|put on {elder.his} glasses]. "<oh>Do you know what I wished for? [A puzzle|Something to mend|An afternoon with you]."

[#ending So they lit a lamp and glued the {gift} together, and they ate {meal} while the glue dried. You can still see the crack. {elder} calls it the best part.
|It took them {days=few_numbers} days to mend it. {elder} said those were the {days@copy} best days of the whole year.
|They never got it quite right, so now it is half {gift} and half {toy=treasures-gift}. There is only one like it in the world.
|<end who=elder>]
""",
    "gift_twice": """
{elder} [looked at it|turned it over|opened {elder.his} mouth] and began to laugh. {elder.He} laughed until {elder.he} had to sit down. "<oh>[Look under your pillow|Go and look under the table|Open the cupboard]," said {elder.he}<how>.

{hero} looked, and there was another {gift}, wrapped in {_=colours} paper. "I bought it for you," said {elder}, "because [you work so hard|you always stop at that window|I thought you wanted it]."

[#ending Now they have two {gift.many}, one for each, and [on Sundays|every evening|at parties] they bring them both out and {_=together}.
|"What do we do with two {gift.many}?" asked {hero}. "We give one to somebody who has none," said {elder}, and they both knew who: {poor=friend_names} the {animal=friend_kinds}, who {_=joys}.
|<end who=elder>]
""",
}
