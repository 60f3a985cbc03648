"""A treasure is lost, looked for where the hero has been, in order, and found with somebody who needed it."""

from __future__ import annotations

RULES = {
    "lost": """
[Of all things in the world, {hero} loved {toy=treasures.a} the most.
|{hero}'s greatest treasure was {toy=treasures.a}.
|Nothing was dearer to {hero} than {toy=treasures.a}.]
{giver=elders} had [made it|found it at a fair|brought it from the city|dug it out of the garden|won it at cards]
[one long winter|when {hero} was ill|as a surprise|for no reason at all],
and {hero} [took it everywhere|showed it to everyone|kept it under the pillow|told it every secret|kissed it good night].

But one <when>, [the {toy} was gone|there was no {toy} anywhere|{hero} reached for the {toy}, and it was not there].
<sadly> <friend_comes>

"<oh>[Why so sad|What is the matter|Who stole your smile]?" asked {friend}<how>.

"[My {toy} is gone|I have lost my {toy}|I cannot find my {toy}]," said {hero}<how>.

"Where have you been today?"

"First I was {spot1=place/spots}, then {spot2=place/spots-spot1}, and after that {spot3=place/spots-spot1-spot2}."

"Then we will [go back|look|search] in just that order," said {friend}<how>.

[They looked|First they looked|So they searched] {spot1@ordering}[, but there was only|. They found|. All they saw was] {junk=junk}.
[Next they looked|They tried|After that they looked] {spot2@ordering}[, but there was only|. They found|. All they saw was] {_=junk-junk}.<aside>
[At last they looked|Only one place was left. They looked] {spot3@ordering}, and there <lost_found>
""",
    "lost_found": """
[sat a magpie called {thief=friend_names-friend} with the {toy}. <lost_magpie>
|lay a baby {cub=animals}, fast asleep, with the {toy} in its arms. <lost_baby>
|was nothing at all. <lost_pocket>
|they heard a [faint|tiny|muffled] {_=sounds}. The {toy} had fallen into a deep, dark hole. <lost_hole>]
""",
    "lost_magpie": """
"<oh>I took it because it [is so {_=shapes}|is so pretty|makes me happy]," said {thief}<how>. "My nest is [so cold and dull|so bare|full of holes]."

{hero} thought about this. Then {hero.he} took off {hero.his} {colour} {wear}. "[Would you take this instead|Shall we trade|Do you like this]? It is [soft|warm|almost clean]."

{thief} {_=joys} and handed over the {toy}.

[#ending In spring, {_=few_numbers} little magpies hatched in {colour.a} {wear}, and {hero} was allowed to name them all.
|So {hero} walked home [a little cold|without a {wear}] and very happy, and {giver} [sewed|knitted|found] {hero.him} {new=colours.a-colour} {wear} before the week was over.
|{giver} asked where the {wear} was. "Up in a tree," said {hero}<how>, and that was the truth.
|<end who=thief>]
""",
    "lost_baby": """
"[Sh|Hush|Quiet now]," whispered {friend}. "[It is all alone|It must have been crying|It has lost its mother]."

{hero} wanted the {toy} very much, but {hero.he} waited. [Soon|After a while|Before long] the mother {cub} came running. "<oh>[There you are|My baby|I looked everywhere for you]!" she cried.

[#ending "Keep the {toy}," said {hero} to the baby. "[I am bigger now|I have {friend}|You need it more than I do]." It was the hardest thing {hero.he} had ever said, and the best. {giver} [heard of it|was so proud] and baked {meal}.
|The baby gave the {toy} back with a [yawn|wet kiss|smile]. Now it visits every [Sunday|week|Thursday], and {hero} lets it play with the {toy} until [bedtime|supper].
|The mother was so thankful that she gave {hero} {_=fruit.a} and the {toy}, too. "It is good to lose things now and then," said {friend}<how>, "if you find somebody."
|<end who=friend>]
""",
    "lost_pocket": """
{hero} {_=sorrows}. But {friend} [frowned|looked closely|began to giggle]. "<oh>[What is that lump in your {wear}|Why does your {wear} rattle|Why does your {wear} look so fat]?"

{hero} felt inside the {colour} {wear}. It was the {toy}! It had been there the whole time, [first {spot1@ordering}, then {spot2@ordering}, then {spot3@ordering}|all day long|while they searched every corner of {place}].

[#ending {friend} laughed so hard that {friend.he} had to lie down. Now {hero} always looks in the {wear} first.
|"Let us tell nobody," said {hero}<how>. But {friend} told {giver}, and {giver} told everybody.
|"The best hiding place is the one you carry," said {friend}<how>, and both of them {_=joys}.
|<end who=friend>]
""",
    "lost_hole": """
{friend} tried to reach it, but {friend.his} [arm|nose|foot] was too short. {hero} tried {_=tools.a}, but it was too [wide|short|slippery].

"[Wait|I know|I have an idea]," said {hero}<how>, and {hero.he} pulled a long thread out of {hero.his} {colour} {wear}. They tied {bait=fruit.a} to the thread and let it down. Something in the hole went [crunch|munch|chomp]. It was a mole called {mole=friend_names-friend}.

"<oh>[Delicious|Lunch|Very kind]," said {mole}<how>. "[Is this yours|Did you drop this]?" And {mole.he} pushed up the {toy}.

[#ending They thanked {mole.him} with {_=few_numbers} more {bait.many}, and the {wear} was only a little shorter than before.
|Since then, {hero} leaves {bait.a} beside the hole every [evening|Sunday], and in the morning it is always gone.
|{mole} came along to supper and ate [all the {meal}|everything but the spoon].
|<end who=mole>]
""",
}
