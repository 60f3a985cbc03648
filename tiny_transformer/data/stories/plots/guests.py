"""Cakes are baked for one, counted as the guests eat them, and what is left is shared."""

from __future__ import annotations

RULES = {
    "guests": """
{hero} got up early one <date> morning and baked {total=more_numbers} {cake=cakes.many}, all for {hero.himself}.
{hero.He}
[put them on a plate|set them by the window|counted them twice|sang to them] and tied on the {colour} {wear} like a
napkin.

[Knock, knock|There was a knock|{_=sounds.Cap}, went the door]. It was {n1=friend_names} the {_=looks}
{k1=friend_kinds}. "<oh>[I was just passing|I smelled something|I was {_=fun-fun} nearby|I have lost my {_=tools}],"
said {n1}<how>. "[Is that {cake.a}|Are those {cake.many}|Did somebody bake]?"

{hero} [sighed|swallowed|was polite]. "[Have some|Help yourself|Please sit down]." And {n1} ate {a=two_or_three}. Now
there were {left1=total-a} left.

Then came {n2=friend_names-n1} the {_=looks} {k2=friend_kinds-k1} with {_=shapes.a} {f2=fruit} as a present. {n2}
[was very hungry|had the hiccups|told a long story about {_=junk}] and ate {b=two_or_three}. {left1.Cap@arithmetic}
take away {b} is {left2=left1-b}.<aside>

"<oh>[Only {left2@arithmetic} left|There will be none for me|This is not how I planned it]," thought {hero}, and
{_=sorrows}.

<guests_turn>
""",
    "guests_turn": """
[The door opened once more. There stood {elder=elders} with {kids=few_numbers} hungry {kid=animals.many}.
<guests_many>
|Then {n1} made a strange face. So did {n2}. <guests_salt>
|But when {hero} looked up, both guests had gone without a word. <guests_back>]
""",
    "guests_many": """
{hero} looked at the plate, and at the {kids} {kid.many}. Then {hero.he} got a knife and cut, [as thin as paper|very
carefully|crumb by crumb|with one eye shut]. Everybody got a piece. {hero} got the plate, to lick.

"<oh>Come to us tomorrow," said {elder}<how>. "We shall bake."

[#ending And the next day there was a mountain of {cake.many}, {_=more_numbers} for each, and {hero} ate until the
{wear} was too tight.
|The smallest {kid} gave {hero} its last crumb. It was the best crumb in the world.
|{hero} was still hungry that night, but it was a happy kind of hungry.
|<end who=elder>]
""",
    "guests_salt": """
"[Is something wrong|Do you not like them|Is it a hair]?" asked {hero}<how>. "<oh>They are [special|unusual|very
strong|not too sweet]," said {n1}<how>. {n2} drank {_=few_numbers} glasses of water.

{hero} took a bite. It was salt! "Why did you eat them?" cried {hero}. "Because you [baked them|looked so happy|are
our friend]," said {n1}.

[#ending The goat got what was left, and {_=joys}. Then {n1}, {n2} and {hero} made {meal} together, and read every
label twice.
|{hero} laughed, {n1} laughed, and {n2} laughed so much that {n2.he} needed more water. Now there is a label on the
jar: not sugar, dear {hero}.
|Since that day, when {hero} asks if something is good, {n1} tells the truth, and {n2} brings the {f2.many}.
|<end who=n1>]
""",
    "guests_back": """
{hero} ate one. It did not taste of much. It is no fun to eat {cake.many} alone, [even the ones with cream|even the
big ones|with nobody to say mm]. {hero} {_=sorrows}.

Then the door flew open. {n1} had brought {g1=meals-meal}, and {n2} had brought {g2=meals-meal-g1} and
{_=instruments.a}. "<oh>Did you think we had gone?" asked {n1}<how>.

[#ending They ate the {cake.many}, the {g1@ordering} and the {g2@ordering}, in that order, and then they danced until
the plate broke.
|"Next time I bake {_=more_numbers}," said {hero}<how>, "and not one of them for me alone."
|So {total} {cake.many} were just enough, if you count {n1} and {n2}.
|<end who=n2>]
""",
}
