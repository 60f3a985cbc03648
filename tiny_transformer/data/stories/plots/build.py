"""Three things are collected to build something; it fails, is mended with what the hero wears, and works."""

from __future__ import annotations

RULES = {
    "build": """
More than anything, {hero} wanted to {plan=projects.dream}. "I will build {plan.a}," {hero.he} [told everybody|said
at breakfast|told the mirror|shouted from the roof]<how>.
[The {place.folk} laughed|{_=elders} said it could not be done|Nobody believed it], so {hero} wanted it even more.

"<oh>I need {p1=parts}, {p2=parts-p1} and {p3=parts-p1-p2}." [So {hero.he} looked|First {hero.he} searched|The search
began] {_=place/spots}, and there {hero.he} found {p1@ordering}. {n2=friend_names} the {_=looks} {k2=friend_kinds}
had {p2@ordering} and wanted {_=cakes.a} for it. <build_third><aside>

{hero} [hammered|tied|glued|sewed] {p1.the@ordering} to {p2.the@ordering}, and put {p3.the@ordering} on top. It took
{_=few_numbers} days[ and {_=few_numbers} sore thumbs|]. Then one <when>, {hero} climbed in. {_=sounds.Cap}! It
{plan.flop}.
<sadly>

<build_help>
""",
    "build_third": """
[For {p3@ordering}, {hero} had to [dance on a table|say please backwards|eat {_=fruit.a} with {_=meals-meal}] at
{_=jobs.shop}.
|And {p3@ordering} came down the road on the cart of {_=looks.a} farmer.
|Last of all, {hero} traded a secret about {_=junk} for {p3@ordering}.]
""",
    "build_help": """
["<oh>It is [too heavy on one side|missing something|coming apart in the middle|quite ugly, too]," said {n2}, who had
been watching for {_=few_numbers} hours.
|"<oh>I told you so," said {n2}<how>, but {n2.he} rolled up both sleeves.
|{n2} came with {_=meals-meal}. They ate it and looked at the {plan}, [and looked|and thought], and then they both
saw it.]
"[It only needs tying together|Something has to hold it together|You need a good strong knot]."

{hero} looked down. Then {hero.he} [sighed and|swallowed hard and|smiled and|very slowly] took off the {colour}
{wear}, and with it they [tied|bound|knotted] {p1.the@ordering} to {p2.the@ordering} and {p2.the@ordering} to
{p3.the@ordering}.

[This time|And now|The second time] it {plan.works}! {n2} {_=joys}.

[#ending "Where to?" asked {n2}<how>. "[Around the world|To the moon|As far as the bakery|Anywhere]," said {hero},
"and home for {meal}."
|Everybody who had laughed wanted a turn. {hero} let them have one, {_=cakes.a} each.
|They named it the {colour.Cap} {wear.Bare}, and painted the name on the side, almost straight.
|When {hero} is old, {hero.he} will still have a piece of that {colour} {wear}, and this story to go with it.
|<end who=n2>]
""",
}
