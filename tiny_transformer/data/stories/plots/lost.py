"""A treasure is lost, looked for where the hero has been, in order, and found with somebody who needed it."""

from __future__ import annotations

RULES = {
    "lost": """
[{hero} loved nothing so much as {toy=treasures.a}|{hero}'s greatest treasure was {toy=treasures.a}|Nothing was
dearer to {hero} than {toy=treasures.a}],
[made|won at cards|dug up|mended|saved from a fire|found at a fair] by {giver=elders}. {hero.He}
[took it everywhere|showed it to everyone|kept it under a pillow|told it every secret|kissed it good night|washed it
on Sundays].

[But one|One] <when>, [it was gone|there was no {toy} anywhere|{hero} reached for it, and it was not there].
<sadly> <friend_comes>

"<oh>[Why so sad|What is the matter|Who stole your smile|Did you lose something|Is there a fly in your {_=meals-meal}]?" asked
{friend}<how>.

"My {toy}!" said {hero}. "First I was {spot1=place/spots}, then {spot2=place/spots-spot1}, and after that
{spot3=place/spots-spot1-spot2}."

"[Then we go back|Then we look|Then we search] in just that order," said {friend}<how>.

{spot1.Cap@ordering} [there was only|they found|they saw nothing but] {junk=junk}.
{spot2.Cap@ordering} [there was only|they found|they saw nothing but] {_=junk-junk}.<aside>
And {spot3@ordering} <lost_found>
""",
    "lost_found": """
[sat {_=looks.a} magpie called {thief=friend_names-friend} with the {toy}. <lost_magpie>
|lay a baby {cub=animals}, fast asleep, with the {toy} in its arms. <lost_baby>
|was nothing at all. <lost_pocket>
|there was a {_=sounds} from deep down in a hole. <lost_hole>]
""",
    "lost_magpie": """
"<oh>[It is so {_=shapes}|It is so pretty|I saw it first|It makes me happy]," said {thief}<how>. "My nest is [so
cold|so bare|full of holes|so dull]."

{hero} thought about it. Then {hero.he} took off the {colour} {wear}. "[Take this instead|Shall we trade|Do you like
this]? It is [soft|warm|almost clean]." {thief} {_=joys}.

[#ending In {_=months}, {_=few_numbers} little magpies hatched in {colour.a} {wear}, and {hero} was allowed to name
them all.
|So {hero} walked home [a little cold|without {wear.a}] and very happy, and {giver} [sewed|knitted|found] {hero.him}
{new=colours.a-colour} {wear}.
|{giver} asked where the {wear} was. "Up in a tree," said {hero}<how>, and that was the truth.
|<end who=thief>]
""",
    "lost_baby": """
"[Sh|Hush|Quiet now]," whispered {friend}. "It is [all alone|so small|dreaming|lost]."

{hero} wanted the {toy} back very much, but {hero.he} waited {_=few_numbers} hours. Then the mother came running.
"<oh>[There you are|My baby|I looked in every {_=tools}]!" she cried.

[#ending "Keep the {toy}," said {hero} to the baby<how>. It was the hardest thing {hero.he} had ever said, and the
best.
|The baby gave the {toy} back with a [yawn|wet kiss|smile]. Now it visits every [Sunday|week|Thursday] and plays with
it until [bedtime|supper].
|The mother was so thankful that she gave {hero} {_=fruit.a} and {_=cakes.a}, too. "It is good to lose things now and
then," said {friend}<how>, "if you find somebody."
|<end who=friend>]
""",
    "lost_pocket": """
{hero} {_=sorrows}. But {friend} [frowned|looked closely|began to giggle]. "<oh>[What is that lump in your {wear}|Why
does your {wear} rattle|Why does your {wear} look so fat]?"

It was the {toy}! {hero} had worn it all the time, [{spot1@ordering}, {spot2@ordering} and {spot3@ordering}|all day
long|while they searched every corner of {place}].

[#ending {friend} laughed so hard that {friend.he} had to lie down. Now {hero} always looks in the {wear} first.
|"Let us tell nobody," said {hero}<how>. But {friend} told {giver}, and {giver} told everybody.
|"The best hiding place is the one you carry," said {friend}<how>, and both of them {_=joys}.
|<end who=friend>]
""",
    "lost_hole": """
{friend}'s [arm|nose|foot] was too short. {_=tools.A} was too [wide|short|slippery|weak].

"[Wait|I know|I have an idea]," said {hero}<how>, and pulled a long thread out of the {colour} {wear}. They tied
{bait=fruit.a} to it and let it down. Something in the hole went [crunch|munch|chomp]. It was a mole called
{mole=friend_names-friend}.

"<oh>[Delicious|Lunch|Very kind|Needs salt]," said {mole}<how>. "[Is this yours|Did you drop this]?" And {mole.he}
pushed up the {toy}.

[#ending They thanked {mole.him} with {_=few_numbers} more {bait.many}, and the {wear} was only a little shorter than
before.
|Since then, {hero} leaves {bait.a} beside the hole every [evening|Sunday], and in the morning it is always gone.
|{mole} came along to supper and ate [all the {meal}|everything but the spoon].
|<end who=mole>]
""",
}
